"""Copies of errors: a stored error is never raised, and a raised error is never stored.

A socket reports an error to every task that asks. If all tasks got the same object, it would
collect the tracebacks and notes of all of them. The socket would keep the frames of these tasks
alive, and through the frames their buffers and itself. So :func:`fresh` copies an error when it is
stored, and again each time it is raised or returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from types import (
    CodeType,
    FrameType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    TracebackType,
)
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)

#: How long a chain of causes may be. The rest of a longer chain is not copied.
_DEPTH = 50

#: The modules whose frames do not help a user to find the reason of an error.
_NOT_FOREIGN = frozenset(
    {
        *("anyio_connect", "anyio", "asyncio", "trio", "uvloop", "outcome"),
        *("concurrent", "contextlib", "encodings", "idna", "selectors", "socket", "ssl"),
        *("threading",),
    }
)

#: The attributes that need special treatment.
_SPECIAL = frozenset(
    {
        *("__cause__", "__context__", "__suppress_context__", "__traceback__"),
        *("__dict__", "__weakref__", "args"),
    }
)

_NOTHING = object()
_KINDS = (GetSetDescriptorType, MemberDescriptorType)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class was made at run time


def fresh(error: E) -> E:
    """Return a copy of ``error`` that keeps no frames alive, with copies of its causes.

    The copy has the class, the arguments, the attributes and the notes. Traceback entries of this
    package are dropped. Entries of foreign code (a policy, a resolver, the caller's reason to
    abort) keep the file, the line and the name, but not the frame. ``__context__`` is kept if
    foreign code was handling it, and dropped if a caller of this package was.
    """
    copy: E = _Copier().copy(error, 0)
    return copy


class _Copier:
    """Copies one error and all errors that it refers to, each of them once."""

    def __init__(self) -> None:
        # None stands for an unfinished copy. A chain that leads back to that error ends there,
        # because it would be a reference cycle.
        self._copies: dict[int, BaseException | None] = {}
        self._shadows: dict[FrameType, FrameType] = {}

    def copy(self, error: Any, depth: int) -> Any:
        with suppress(KeyError):
            return self._copies[id(error)]
        self._copies[id(error)] = None
        args = error.args
        if isinstance(getattr(error, "exceptions", None), tuple):  # a group
            args = (args[0], self._all(error.exceptions, depth))
        try:
            copy = bare(type(error), args)
        except Exception:  # noqa: BLE001 - the class does not support copies
            copy = error
        else:
            for name, value in slots_of(error).items():
                with suppress(AttributeError, TypeError):  # the attribute is read-only
                    setattr(copy, name, value)
            for name, value in vars(error).items():
                vars(copy)[name] = self._value(name, value, depth)
            self._chain(error, copy, depth)
        self._copies[id(error)] = copy
        return copy

    def _all(self, errors: tuple[Any, ...], depth: int) -> list[Any]:
        copies = (
            self.copy(error, depth + 1) if isinstance(error, BaseException) else error
            for error in errors
        )
        return [copy for copy in copies if copy is not None]

    def _value(self, name: str, value: Any, depth: int) -> Any:
        if name == "__notes__" and isinstance(value, list):
            return value.copy()
        if name == "attempts" and isinstance(value, tuple):
            return tuple(self._all(value, depth))
        return value

    def _chain(self, error: BaseException, copy: BaseException, depth: int) -> None:
        entries = [*_foreign(error.__traceback__)]
        copy.__traceback__ = self._traceback(entries)
        if depth < _DEPTH:
            if error.__cause__ is not None:
                copy.__cause__ = self.copy(error.__cause__, depth + 1)
            elif error.__context__ is not None and not error.__suppress_context__:
                # The traceback of the context begins in the frame that caught it.
                caught = error.__context__.__traceback__
                if caught and caught.tb_frame in {entry.tb_frame for entry in entries}:
                    copy.__context__ = self.copy(error.__context__, depth + 1)
        copy.__suppress_context__ = error.__suppress_context__

    def _traceback(self, entries: list[TracebackType]) -> TracebackType | None:
        made: TracebackType | None = None
        for entry in reversed(entries):
            # -1 is no instruction, so Python shows the given line and does not compute another.
            made = TracebackType(made, self._shadow(entry.tb_frame), -1, entry.tb_lineno)
        return made

    def _shadow(self, frame: FrameType) -> FrameType:
        """Return a new frame with the name and the file of ``frame``, and nothing else.

        A real frame keeps the frames of its callers alive, with all their variables, even long
        after the call (Python 3.12).
        """
        shadow = self._shadows.get(frame)
        if shadow is None:
            real = frame.f_code
            code: CodeType = _never.__code__.replace(
                co_filename=real.co_filename,
                co_name=real.co_name,
                co_firstlineno=real.co_firstlineno,
            )
            shadow = self._shadows[frame] = FunctionType(code, frame.f_globals)().gi_frame
        return shadow


def bare(cls: type[E], args: tuple[Any, ...]) -> E:
    """Return an exception of class ``cls`` with ``args``, without calling its ``__init__()``."""
    solid = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
    made: E = solid.__new__(cls, *args)
    made.args = args
    return made


def slots_of(error: BaseException) -> dict[str, object]:
    """The attributes that have a value and are not in ``__dict__``, such as errno."""
    new = bare(type(error), error.args)
    found: dict[str, object] = {}
    for base in type(error).__mro__:
        for name, descriptor in vars(base).items():
            if isinstance(descriptor, _KINDS) and name not in _SPECIAL and name not in found:
                value = _value_of(descriptor, error)
                # Skip a value that ``args`` have set already. For OSError, None is not the same
                # as unset.
                if value is not _NOTHING and value is not _value_of(descriptor, new):
                    found[name] = value
    return found


def _value_of(descriptor: Any, error: BaseException) -> object:
    try:
        return descriptor.__get__(error)
    except (AttributeError, TypeError):  # the attribute has no value
        return _NOTHING


def _foreign(traceback: TracebackType | None) -> Iterator[TracebackType]:
    """The entries of a traceback, beginning with the first one of foreign code."""
    found = False
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__"))
        found = found or module.partition(".")[0] not in _NOT_FOREIGN
        if found:
            yield traceback
        traceback = traceback.tb_next


def _never() -> Iterator[None]:
    yield None
