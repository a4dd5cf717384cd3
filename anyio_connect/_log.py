"""What the package logs, by ``logging.getLogger("anyio_connect")``.

Warnings and errors say what nobody else would hear of. Debug lines tell how a connection comes
about and ends: looking names up, attempts, handshakes, closing. They are made only if somebody
wants them: :attr:`Log.debugs` comes first, and is one look while nobody does. The ``logging``
module, which imports much, is not imported for that: nobody can want what it has not been told.

A line has no characters that control a terminal, and is of a bounded length. What handlers and
filters raise is not passed on: it would break connections for the sake of telling of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ._errors import printable, shorten

if TYPE_CHECKING:
    import logging

_NAME = __name__.partition(".")[0]

#: ``logging.DEBUG``.
_DEBUG = 10

#: How long the text of a thing may be, in characters, and how many of several are told.
_LONGEST = 500
_MOST = 8


class Log:
    """Logs for the package."""

    __slots__ = ("_logger",)

    def __init__(self) -> None:
        self._logger: logging.Logger | None = None

    @property
    def debugs(self) -> bool:
        """Whether anybody wants debug lines."""
        try:
            logger = self._logger
            if logger is None:
                # If another thread is about to import it, it may have nothing in it yet.
                get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
                if get_logger is None:
                    return False
                logger = self._logger = get_logger(_NAME)
            return logger.isEnabledFor(_DEBUG)
        except Exception:  # noqa: BLE001  # of a logger class of the user's
            return False

    def debug(self, text: str, *about: object, error: BaseException | None = None) -> None:
        """Log a line for debugging. ``text`` has a ``%s`` for each of ``about``."""
        with suppress(Exception):
            lines = map(_line, about)
            self._get().debug(text, *lines, exc_info=error, stacklevel=2)

    def warning(self, text: str, *about: object) -> None:
        """Log a warning."""
        with suppress(Exception):
            self._get().warning(text, *map(_line, about), stacklevel=2)

    def error(self, text: str, *about: object, error: BaseException) -> None:
        """Log an error with its traceback."""
        with suppress(Exception):
            self._get().error(text, *map(_line, about), exc_info=error, stacklevel=2)

    def _get(self) -> logging.Logger:
        if self._logger is None:
            import logging  # here, because hardly anybody needs it, and it imports much

            self._logger = logging.getLogger(_NAME)
        return self._logger


def _line(thing: object) -> str:
    """What a thing, or each of several, says, for a line of a log."""
    if isinstance(thing, Sequence) and not isinstance(thing, (str, tuple)):
        more = [f"{len(thing) - _MOST} more"] * (len(thing) > _MOST)
        return ", ".join([*map(_line, thing[:_MOST]), *more])
    return printable(shorten(str(thing), _LONGEST))


log = Log()
