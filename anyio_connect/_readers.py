"""One epoll for many sockets of an asyncio loop, to learn which of them have data.

For each event, an asyncio loop looks up several objects, and calls the reader in its context. With
many sockets this takes as long as the receive itself, because those objects are no longer in the
processor's caches. An epoll of our own returns the numbers of the sockets alone. The event loop
watches that epoll like any other descriptor.

But it adds one system call to a turn of the event loop. So a few sockets are registered with the
event loop itself. When there are more, the epoll is opened and takes over all of them. It is
closed when none of them is left.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, Generic, Protocol, TypeVar
from weakref import ref

#: How many sockets may be registered with the event loop itself.
_FEW = 8

#: How many sockets at most are served in one turn of the event loop. Their tasks run next, while
#: the processor's caches hold what belongs to them. The epoll reports the rest in the next turn.
_AT_ONCE = 128

#: EPOLLIN, which Python has on Linux only.
_IN = 0x1

#: select() cannot watch descriptors from this number on.
_FD_SETSIZE = 1024


class _Registration(Protocol):
    @property
    def sock(self) -> socket.socket: ...


_T = TypeVar("_T", bound=_Registration)


class Readers(Generic[_T]):
    """The sockets of one event loop that are registered for reading.

    ``on_readable`` is called with what was registered for a socket, in each turn of the event loop
    in which that socket has data, its peer's end, or an error. This object does not keep the event
    loop alive.
    """

    __slots__ = ("_elsewhere", "_epoll", "_on_readable")

    def __init__(self, on_readable: Callable[[_T], None]) -> None:
        self._on_readable = on_readable
        # Only the event loop keeps these objects alive. Those that are gone were unregistered or
        # replaced by other code, or the event loop was closed.
        self._epoll: ref[_Epoll[_T]] | None = None
        self._elsewhere: dict[int, ref[_T]] = {}  # by the descriptors that the loop itself has

    def add(self, loop: asyncio.AbstractEventLoop, fd: int, what: _T) -> bool:
        """Register a descriptor. ``what`` is kept until :meth:`remove` or the end of the loop.

        If this returns False, the caller has to register it with the event loop itself, and still
        has to call :meth:`remove` later.
        """
        epoll = None if self._epoll is None else self._epoll()
        if epoll is None and len(self._elsewhere) >= _FEW:
            epoll = self._open(loop, fd)
        if epoll is not None and epoll.add(fd, what):
            return True
        # The event loop raises the error, or manages without us.
        self._elsewhere[fd] = ref(what)
        return False

    def remove(self, loop: asyncio.AbstractEventLoop, fd: int, sock: socket.socket) -> bool:
        """Undo :meth:`add`; return what it returned.

        ``sock`` tells whether the descriptor still belongs to the caller. Other code may have
        closed it without our knowledge, and a new socket may have got the same number. (A weak
        reference does not tell it: the garbage collector clears those of what it collects.)
        """
        epoll = None if self._epoll is None else self._epoll()
        what = None if epoll is None else epoll.registered.get(fd)
        ours = what is not None and what.sock is sock
        if ours and epoll is not None:
            epoll.remove(fd)
        self._elsewhere.pop(fd, None)
        # The garbage collector may have run, and called this method for another socket.
        if epoll is not None and self._epoll is not None and not epoll.registered:
            self._epoll = None
            remove_from_loop(loop, epoll.fileno())
            epoll.close()
        return ours

    def has_got(self, fd: int) -> bool:
        """Whether the epoll itself has got this number, because other code has closed a socket."""
        epoll = None if self._epoll is None else self._epoll()
        return epoll is not None and epoll.fileno() == fd

    def _open(self, loop: asyncio.AbstractEventLoop, first: int) -> _Epoll[_T] | None:
        """Open the epoll, and let it take over all sockets. Return None if there can be none."""
        if sys.platform != "linux":
            return None
        try:
            epoll = _Epoll(select.epoll(), self._on_readable)
        except OSError:  # out of descriptors or memory
            return None
        if epoll.fileno() >= _FD_SETSIZE > first:
            # The loop may use select(), which cannot watch this number but can watch the socket's.
            epoll.close()
            return None
        try:
            # Other code may have closed a registered socket that had this number before.
            remove_from_loop(loop, epoll.fileno())
            # In an empty context: that of this task would be kept as long as the epoll.
            Context().run(add_to_loop, loop, loop.add_reader, epoll.fileno(), epoll.report)
        except OSError:
            epoll.close()
            return None
        self._epoll = ref(epoll)
        for fd, weakly in [*self._elsewhere.items()]:
            what = weakly()
            # If it is gone, this is the other code's registration.
            if what is not None and epoll.add(fd, what):
                self._elsewhere.pop(fd, None)
                loop.remove_reader(fd)
        return epoll


class _Epoll(Generic[_T]):
    __slots__ = ("__weakref__", "_epoll", "_on_readable", "close", "fileno", "registered")

    def __init__(self, epoll: Any, on_readable: Callable[[_T], None]) -> None:
        self._epoll = epoll  # select.epoll, which only Linux has
        self.fileno: Callable[[], int] = self._epoll.fileno
        self.close: Callable[[], None] = self._epoll.close
        self._on_readable = on_readable
        self.registered: dict[int, _T] = {}  # by descriptor

    # At any point, the garbage collector may run and remove other sockets. This epoll is closed
    # when none is left, so what is being added or removed counts all the time.

    def add(self, fd: int, what: _T) -> bool:
        self.registered[fd] = what
        try:
            self._epoll.register(fd, _IN)
        except (OSError, ValueError):  # ValueError: it was closed just before
            self.registered.pop(fd, None)
            return False
        return True

    def remove(self, fd: int) -> None:
        with suppress(OSError):  # other code has closed the descriptor
            self._epoll.unregister(fd)
        self.registered.pop(fd, None)

    def report(self) -> None:
        for fd, _ in self._epoll.poll(0, _AT_ONCE):
            what = self.registered.get(fd)
            if what is not None:  # otherwise it was removed by one of those before
                self._on_readable(what)


def add_to_loop(
    loop: asyncio.AbstractEventLoop,
    add: Callable[..., object],
    fd: int,
    callback: Callable[..., None],
    *args: object,
) -> None:
    """Register a descriptor by ``add``, the event loop's ``add_reader`` or ``add_writer``."""
    try:
        add(fd, callback, *args)
    except RuntimeError:
        # After an error, uvloop keeps a closed handle for the number, and refuses a new one.
        remove_from_loop(loop, fd)
        add(fd, callback, *args)


def remove_from_loop(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Remove everything that the event loop has for the number, because a new socket may get it.

    After an error, uvloop forgets the callback, but keeps the closed handle.
    """
    if not loop.is_closed():
        loop.remove_reader(fd)
        loop.remove_writer(fd)
