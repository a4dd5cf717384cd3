"""A transport over a network in memory, for ``anyio_connect.testing``.

The rules of TCP are in ``_memory_tcp``. This module adds the time of the event loop, waiting
tasks, and an object with the methods of a socket. The transport on top of it is the one that is
used over real TCP.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from heapq import heappop, heappush
from types import TracebackType
from typing import Any, TypeAlias

import anyio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._memory_tcp import End, Host, Wire, accept, connect, error
from ._tcp import TCPTransport
from ._threads import from_any_thread
from ._transport import NoSocketError
from ._watch import ERR, HUP, IN, OUT, RDHUP

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

Address = tuple[str, int]

#: The errors for a connection that was made and then reset, before we asked. It counts as made, as
#: on a real network (see _tcp_connect).
_RESET = frozenset({errno.ECONNRESET, errno.EPIPE})


class Clock:
    """A schedule of calls, in the time of the running event loop.

    It has no task and no timer of its own. A task that uses the network first makes all calls that
    are due, in the order of their times.
    """

    def __init__(self) -> None:
        self.now: float = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0
        self._running = False
        self._sooner = False  # a new call is due before those that were scheduled
        self._waiting: dict[anyio.Event, None] = {}

    def at(self, when: float, what: Callable[..., None], *args: object) -> None:
        """Schedule a call of ``what`` at that time, and after earlier calls of the same time.

        The caller has to call :meth:`catch_up` afterwards.
        """
        self._count += 1
        heappush(self._due, (when, self._count, what, args))
        self._sooner = self._sooner or self._due[0][1] == self._count

    def catch_up(self) -> None:
        """Make the calls that are due."""
        if self._running:
            return
        now = anyio.current_time()
        self._running = True
        try:
            while self._due and self._due[0][0] <= now:
                self.now, _, what, args = heappop(self._due)
                what(*args)
        finally:
            self._running = False
        self.now = now
        if self._sooner and self._due:
            for event in self._waiting:
                event.set()  # its task has to wait for the new call instead of a later one
        self._sooner = False

    async def wait(self, event: anyio.Event) -> None:
        """Wait for ``event``, or until the next call is due, which may set it."""
        deadline = self._due[0][0] if self._due else float("inf")
        self._waiting[event] = None
        try:
            with anyio.CancelScope(deadline=deadline):
                await event.wait()
        finally:
            del self._waiting[event]


class Bell:
    """Wakes all tasks that wait for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[anyio.Event, None] = {}

    def ring(self) -> None:
        for event in self._waiting:
            event.set()

    async def wait(self) -> None:
        """Wait until :meth:`ring` is called, then catch up. There may be false alarms."""
        event = anyio.Event()
        self._waiting[event] = None
        try:
            await self._clock.wait(event)
        finally:
            del self._waiting[event]
        # The task may be cancelled in the same turn in which the event was set.
        await checkpoint_if_cancelled()
        self._clock.catch_up()


class Line(End):
    """An end of a connection. Everything sent to or from a silent server is held back."""

    def __init__(
        self, clock: Clock, wire: Wire, server: Address, silent: Mapping[Address, list[Kept]]
    ) -> None:
        """``silent``: for each silent server, what is held back."""
        super().__init__(clock, wire)
        self._server = server
        self._silent = silent

    def send_over(self, when: float, what: Callable[..., None], *args: object) -> None:
        kept = self._silent.get(self._server)
        if kept is None:
            super().send_over(when, what, *args)
        else:
            kept.append((self, what, args))


#: A call that is held back: the end that sends, the function, and its arguments.
Kept: TypeAlias = tuple[Line, Callable[..., None], tuple[object, ...]]


class MemorySocket:
    """An end in memory, with the methods of ``socket.socket`` that ``TCPTransport`` uses."""

    def __init__(self, clock: Clock, end: End) -> None:
        self.clock = clock
        self.end = end
        self.family = socket.AF_INET6 if ":" in end.local[0] else socket.AF_INET
        self.watches: dict[MemoryWatch, None] = {}
        # A method of this object would make a reference cycle.
        end.changed = _teller(self.watches)

    def fileno(self) -> int:
        return -1

    def recv(self, most: int, flags: int = 0) -> bytes:
        self.clock.catch_up()
        try:
            return self.end.receive(most, peek=bool(flags & socket.MSG_PEEK))
        finally:
            self.clock.catch_up()

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def send(self, data: bytes | bytearray | memoryview) -> int:
        self.clock.catch_up()
        try:
            return self.end.send(data)
        finally:
            self.clock.catch_up()

    def shutdown(self, how: int) -> None:
        self.clock.catch_up()
        try:
            self.end.shutdown(how)
        finally:
            self.clock.catch_up()

    def getsockname(self) -> Address:
        return self.end.local

    def getpeername(self) -> Address:
        return self.end.remote

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            on, seconds = struct.unpack("hh" if len(value) == 4 else "ii", value)
            if on and not seconds:
                self.end.linger0()

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int:
        asked = (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.end.take_error() if asked else 0

    def close(self) -> None:
        for watch in self.watches:
            watch.close()
        self.clock.catch_up()
        self.end.close()
        self.clock.catch_up()


def _teller(watches: dict[MemoryWatch, None]) -> Callable[[int], None]:
    def tell(key: int) -> None:
        for watch in watches:
            watch.tell(key)

    return tell


class MemoryWatch:
    """Watches one socket in memory, like :class:`_watch.Watch`."""

    def __init__(self, sock: MemorySocket, events: int) -> None:
        self._sock = sock
        self._events = events | ERR | HUP
        self._came = True  # events that have occurred before are reported too
        self._closed = sock.end.released
        self._bell = Bell(sock.clock)

    def __enter__(self) -> Self:
        self._sock.watches[self] = None
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self._sock.watches.pop(self, None)

    def tell(self, key: int) -> None:
        """Report that events have occurred, or that the state has changed (0)."""
        if not key or key & self._events:
            self._came = True
            self._bell.ring()

    def close(self) -> None:
        """Make :meth:`wait` raise from now on."""
        self._closed = True
        self._bell.ring()

    async def wait(self) -> int:
        """Wait until at least one of the events has occurred, and return all that have.

        :raises anyio.ClosedResourceError: the socket or this watch was closed
        """
        await checkpoint_if_cancelled()
        self._sock.clock.catch_up()
        while not self._closed:
            if self._came:
                self._came = False
                if found := self._sock.end.flags() & self._events:
                    return found
            await self._bell.wait()
        raise anyio.ClosedResourceError


class MemoryReadiness:
    """Waits for one socket in memory, like :class:`_readiness.Readiness`."""

    waits_first = False
    leave = None

    def __init__(self, sock: MemorySocket) -> None:
        self._sock = sock
        self._stopped = False
        self._closed = False
        self._reader: MemoryWatch | None = None

    def may_go_on(self, amount: int) -> bool:
        return False

    def charge(self, amount: int) -> None:
        pass

    async def enter(self) -> None:
        await checkpoint()

    async def readable(self, attempt: Callable[[], bool]) -> None:
        if self._stopped:
            raise anyio.ClosedResourceError
        try:
            with MemoryWatch(self._sock, IN | RDHUP) as self._reader:
                await self._reader.wait()
        finally:
            self._reader = None

    def after_reading(self) -> bool:
        return True

    async def refuse_reading(self) -> None:
        raise AssertionError("unreachable")

    async def writable(self) -> None:
        with MemoryWatch(self._sock, OUT) as watch:
            await watch.wait()

    def stop_reading(self) -> None:
        self._stopped = True
        if self._reader is not None:
            self._reader.close()

    def resume_reading(self) -> None:
        self._stopped = self._closed

    def close(self) -> None:
        self._closed = self._stopped = True
        self._sock.close()

    def close_dropped(self) -> None:
        raise AssertionError("unreachable")

    def detach(self) -> None:
        raise AssertionError("unreachable")


class MemoryTransport(TCPTransport):
    """The TCP transport over a connection in memory: it asks the other end, not the kernel."""

    def __init__(self, sock: MemorySocket, error: OSError | None = None) -> None:
        as_if: Any = sock
        super().__init__(as_if, MemoryReadiness(sock), remote=sock.end.remote, error=error)
        self._memory = sock
        self._drop = from_any_thread(sock.close)

    @property
    def _can_watch(self) -> bool:
        return True

    @property
    def _can_watch_all(self) -> bool:
        return True

    @property
    def _knows_outstanding(self) -> bool:
        return True

    def _outstanding(self) -> int:
        self._memory.clock.catch_up()
        return self._memory.end.unacknowledged

    async def _wait_arrival(self, *, delivered: bool) -> None:
        with self._watch(IN | OUT | RDHUP) as watch:
            while not await watch.wait() & ~OUT:
                if delivered and not self._outstanding():
                    return

    def _events(self, events: int) -> int:
        self._memory.clock.catch_up()
        return self._memory.end.flags() & (events | ERR | HUP)

    def _watch(self, events: int) -> MemoryWatch:
        return MemoryWatch(self._memory, events)

    def _unwatch(self) -> None:
        """Do nothing: closing the socket ends its watches."""

    def detach(self) -> socket.socket:
        raise NoSocketError("it is not a socket of the system, but a connection in memory")

    def close_dropped(self) -> bool:
        if self._closed:
            return False
        self._closed = True
        with suppress(RuntimeError):  # the event loop has ended, and the other end with it
            self._drop()
        return True

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        attributes = {**super().extra_attributes}
        del attributes[SocketAttribute.raw_socket]
        return attributes


async def _made(sock: MemorySocket) -> int:
    """Wait until the connection is made; return the errno of a reset since then, or 0.

    :raises OSError: the connection could not be made
    """
    with MemoryWatch(sock, OUT) as watch:
        while sock.end.connecting:
            await watch.wait()
    code = sock.end.take_error()
    if code and code not in _RESET:
        raise error(code)
    return code


class Memory:
    """The network: its hosts, which of them are silent, and its latency and buffers."""

    def __init__(self, buffer_size: int) -> None:
        self.clock: Clock = Clock()
        self.latency: float = 0.0
        self.hosts: dict[Address, Host[Line]] = {}
        self._buffer_size = buffer_size
        self._silent: dict[Address, list[Kept]] = {}

    def line(self, server: Address) -> Line:
        """Return one end of a new connection with ``server``."""
        wire = Wire(self.latency, self._buffer_size, self._buffer_size)
        return Line(self.clock, wire, server, self._silent)

    async def connect(self, client: Address, server: Address) -> MemoryTransport:
        """Connect. A cancelled call leaves nothing behind.

        :raises OSError: the error that the kernel would report
        """
        line = self.line(server)
        line.local = client
        sock = MemorySocket(self.clock, line)
        try:
            self.clock.catch_up()
            connect(self.hosts, line, server)
            code = await _made(sock)
            return MemoryTransport(sock, error(code) if code else None)
        except BaseException:
            sock.close()
            raise

    def silence(self, servers: list[Address]) -> list[Address]:
        """Hold back everything sent to and from ``servers``; return those not silent before."""
        new = [server for server in servers if server not in self._silent]
        self._silent.update((server, []) for server in new)
        return new

    def hear(self, servers: list[Address]) -> None:
        """Deliver everything that was held back."""
        self.clock.catch_up()
        for server in servers:
            for line, what, args in self._silent.pop(server):
                self.clock.at(self.clock.now + line.wire.delay, what, *args)
        self.clock.catch_up()


class Backlog:
    """The connections at the addresses of a listener that were not accepted yet."""

    def __init__(self, memory: Memory, where: list[Address]) -> None:
        self._memory = memory
        self._where = where
        self._queue: deque[MemorySocket] = deque()
        self._closed = False
        self._came = Bell(memory.clock)
        memory.hosts.update(dict.fromkeys(where, self))

    def syn(self, client: Line) -> None:
        accept(client, self._memory.line(client.remote), self._ready)

    def _ready(self, server: Line) -> None:
        sock = MemorySocket(self._memory.clock, server)
        if self._closed:
            _reset(sock)
        else:
            self._queue.append(sock)
            self._came.ring()

    async def take(self) -> MemoryTransport:
        """Wait for a connection and take it. A cancelled call has taken none.

        :raises anyio.ClosedResourceError: this was closed, before the call or during it
        """
        self._memory.clock.catch_up()
        while not self._closed and not self._queue:
            await self._came.wait()
        if self._closed:
            raise anyio.ClosedResourceError
        return MemoryTransport(self._queue.popleft())

    def close(self) -> None:
        """Refuse further connections, and reset those that were not accepted."""
        if not self._closed:
            self._closed = True
            for address in self._where:
                del self._memory.hosts[address]
            while self._queue:
                _reset(self._queue.popleft())
            self._came.ring()


def _reset(sock: MemorySocket) -> None:
    sock.end.linger0()
    sock.close()
