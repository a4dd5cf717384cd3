"""Copies of errors: what is raised is never kept, and what is kept is never raised.

A socket tells each of its users what went wrong, as often as they ask. If all got the same object,
it would collect the tracebacks and notes of all tasks that meet it. The socket would keep the
frames of these tasks alive, and through the frames their buffers and itself. So :func:`fresh`
copies an error when it is stored, and again each time it is handed out.
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

#: How many causes of causes are copied. The rest of a longer chain is left off.
_DEPTH = 50

#: Modules whose frames do not tell a user why the system refused something.
_NOT_FOREIGN = frozenset(
    {
        *("anyio_connect", "anyio", "asyncio", "trio", "uvloop", "outcome"),
        *("concurrent", "contextlib", "encodings", "idna", "selectors", "socket", "ssl"),
        *("threading",),
    }
)

#: What is not copied attribute by attribute.
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

    The copy has the class, the arguments, the attributes and the notes. Tracebacks of our own code
    are dropped. Of tracebacks of foreign code (a policy, a resolver, the caller's reason to
    abort), file, line and name are kept, but not the frames. ``__context__`` is kept if foreign
    code met it, and dropped if it is what a caller was handling.
    """
    copy: E = _Copier().copy(error, 0)
    return copy


class _Copier:
    """Copies one error, and all that hangs on it, once each."""

    def __init__(self) -> None:
        # None means that the copy is not done yet. A chain that leads back to such an error ends
        # there: otherwise it would be a reference cycle.
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
        except Exception:  # noqa: BLE001 - of a class that does not let itself be copied
            copy = error
        else:
            for name, value in slots_of(error).items():
                with suppress(AttributeError, TypeError):  # it cannot be set
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
                # Its traceback begins where it was caught.
                caught = error.__context__.__traceback__
                if caught and caught.tb_frame in {entry.tb_frame for entry in entries}:
                    copy.__context__ = self.copy(error.__context__, depth + 1)
        copy.__suppress_context__ = error.__suppress_context__

    def _traceback(self, entries: list[TracebackType]) -> TracebackType | None:
        made: TracebackType | None = None
        for entry in reversed(entries):
            # Without an instruction, so that Python shows this line and does not look it up.
            made = TracebackType(made, self._shadow(entry.tb_frame), -1, entry.tb_lineno)
        return made

    def _shadow(self, frame: FrameType) -> FrameType:
        """Return a frame that has only the name and the file of ``frame``.

        A real frame leads to that of its caller, with all its locals, even long after the call
        (Python 3.12).
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
    """Return an exception of that class with ``args``, without running its ``__init__()``."""
    solid = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
    made: E = solid.__new__(cls, *args)
    made.args = args
    return made


def slots_of(error: BaseException) -> dict[str, object]:
    """The attributes that are set and kept outside of ``__dict__``, as errno is."""
    new = bare(type(error), error.args)
    found: dict[str, object] = {}
    for base in type(error).__mro__:
        for name, descriptor in vars(base).items():
            if isinstance(descriptor, _KINDS) and name not in _SPECIAL and name not in found:
                value = _value_of(descriptor, error)
                # ``args`` have set it already; and for OSError, None is not the same as unset.
                if value is not _NOTHING and value is not _value_of(descriptor, new):
                    found[name] = value
    return found


def _value_of(descriptor: Any, error: BaseException) -> object:
    try:
        return descriptor.__get__(error)
    except (AttributeError, TypeError):  # it has none
        return _NOTHING


def _foreign(traceback: TracebackType | None) -> Iterator[TracebackType]:
    """The entries of a traceback from the first of foreign code on."""
    found = False
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__"))
        found = found or module.partition(".")[0] not in _NOT_FOREIGN
        if found:
            yield traceback
        traceback = traceback.tb_next


def _never() -> Iterator[None]:
    yield None
