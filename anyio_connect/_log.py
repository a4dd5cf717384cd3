"""The log of the package, by ``logging.getLogger("anyio_connect")``.

Warnings and errors report what no call can raise. Debug lines report how a connection is made and
ended: name lookups, attempts, handshakes, closing. They cost very little while they are off,
because :attr:`Log.debugs` is read before a line is built. Importing ``logging`` is slow, so this
module does not import it: before other code has imported it, no code can have switched debug lines
on.

A line has no characters that control a terminal, and its length is limited. Exceptions of handlers
and filters are ignored, so that logging cannot break a connection.
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

#: How long the text of one value may be, in characters, and how many values of a list are shown.
_LONGEST = 500
_MOST = 8


class Log:
    """Logs for the package."""

    __slots__ = ("_logger",)

    def __init__(self) -> None:
        self._logger: logging.Logger | None = None

    @property
    def debugs(self) -> bool:
        """Whether debug lines are switched on."""
        try:
            logger = self._logger
            if logger is None:
                # While another thread imports the module, the name may be missing.
                get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
                if get_logger is None:
                    return False
                logger = self._logger = get_logger(_NAME)
            return logger.isEnabledFor(_DEBUG)
        except Exception:  # noqa: BLE001  # from a user's logger class
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
            import logging  # here, because few programs need it, and its import is slow

            self._logger = logging.getLogger(_NAME)
        return self._logger


def _line(thing: object) -> str:
    """The text of a value, or of each value in a list, for a line of a log."""
    if isinstance(thing, Sequence) and not isinstance(thing, (str, tuple)):
        more = [f"{len(thing) - _MOST} more"] * (len(thing) > _MOST)
        return ", ".join([*map(_line, thing[:_MOST]), *more])
    return printable(shorten(str(thing), _LONGEST))


log = Log()
