"""TCP as a transport, directly on a non-blocking socket."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, suppress
from enum import Enum, auto
from typing import Any, Protocol, overload

import anyio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from ._copies import fresh
from ._keepalive import limit_of, room_of, set_limit
from ._linger import KNOWS_OUTSTANDING, outstanding, wait_arrival
from ._raw import moved
from ._readiness import Pause, Readiness, readiness
from ._transport import DEFAULT_MAX_BYTES, DISCARD_READS, Transport
from ._watch import (
    CAN_WATCH,
    CAN_WATCH_ALL,
    ERR,
    IN,
    OUT,
    RDHUP,
    Watch,
    events_of,
    unwatch,
)

#: A receive that returned fewer bytes than this has probably emptied the kernel's buffer.
_LITTLE = 8192

#: How many receives at most wait without asking the kernel first, because earlier ones asked in
#: vain.
_MOST_BETS = 15

#: SO_LINGER with a time of 0: close() discards unsent data and sends RST (RFC 9293 3.10.5).
_LINGER_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


#: Whether another process may have copies of the sockets, so that close() alone ends nothing.
_has_forked = False


def _on_fork() -> None:
    global _has_forked  # noqa: PLW0603
    _has_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_on_fork, after_in_child=_on_fork)


def disconnect(sock: socket.socket) -> None:
    """Reset a connection, even if another process has a copy of the socket. Linux only.

    This calls connect() with the family AF_UNSPEC (connect(2)), which Python's own connect()
    cannot do.
    """
    if sys.platform != "linux":
        return
    with suppress(ImportError, OSError, AttributeError):  # some Pythons lack ctypes
        import ctypes

        nowhere = bytes(16)  # a struct sockaddr with the family AF_UNSPEC, 0
        ctypes.CDLL(None).connect(sock.fileno(), nowhere, len(nowhere))


def host_and_port(sockaddr: tuple[Any, ...]) -> tuple[str, int]:
    """The host and the port of a socket address. The zone of IPv6 becomes a part of the host."""
    host, port, *rest = sockaddr
    if len(rest) == 2 and rest[1] and "%" not in host:
        host = f"{host}%{socket.if_indextoname(rest[1])}"
    return host, port


class _Watching(Protocol):
    """The interface of :class:`Watch` for the waiting task."""

    async def wait(self) -> int: ...


class _Found(Enum):
    """The result of an attempt to discard data."""

    NOTHING = auto()
    DATA = auto()
    MORE = auto()  #: data, and there may be more
    OVER = auto()  #: no more data can arrive


class TCPTransport(Transport):
    """A connected, non-blocking TCP socket, on any event loop.

    A call tries the operation first, and waits only if the kernel reports that it would block.
    """

    def __init__(
        self,
        sock: socket.socket,
        ready: Readiness | None = None,
        *,
        peer: tuple[Any, ...] | None = None,
        remote: tuple[Any, ...] | None = None,
        error: OSError | None = None,
        limit: int = 0,
        unused: bool = False,
    ) -> None:
        """``remote`` and ``error`` describe a connection that may have been reset already.

        ``peer``: the peer's address, if the caller has it from the kernel already.
        ``remote``: the address that was dialled, used if the kernel does not know the peer's.
        ``error``: the error of a reset, if the caller has read it: the kernel reports it once.
        ``limit``: the TCP_USER_TIMEOUT that was set for keepalive, in milliseconds; 0: none.
        ``unused``: nothing was sent on the socket yet.
        """
        self._sock = sock
        self._closed = False
        self._stopped = False  # receive() must raise ClosedResourceError
        self._ended = False  # shutdown() was called, or failed because of a reset
        self._fin = False  # shutdown() succeeded: the FIN counts as one unacknowledged byte
        self._over = False  # no more data can arrive
        self._talks = False  # the peer sent data while we were closing
        self._waits = 0  # how many times a send has waited for room and got it
        self._ready = ready or readiness(sock)
        self._wanted = 0  # the max_bytes of the waiting receive
        self._into: memoryview | None = None  # the buffer of the waiting receive_into(), if any
        # What the loop's callback received for the waiting task. For receive_into(), this is a
        # part of its buffer.
        self._arrived: bytes | memoryview = b""
        # Whether the last receive has probably emptied the kernel's buffer. At first it may hold
        # data already.
        self._drained = False
        self._misses = 0  # what _bets was set to after a receive last asked in vain
        self._bets = 0  # how many of the next receives wait without asking first
        # The kernel reports a reset only once, so it is kept: for receives, and for close().
        self._error: OSError | None = None
        self._reset: OSError | None = None
        self._limit = limit
        self._limited = limit > 0  # whether TCP_USER_TIMEOUT is set at present
        self._room = 0  # how many bytes may be sent before room_of() has to be called again
        # Whether nothing was sent yet. The first send clears this, because _room is 0 at first.
        self._silent = unused and self._limited
        if error is not None:
            self._note(error)
        # Read the addresses now: they are needed after close, and getpeername() fails after a
        # reset.
        self._local = host_and_port(sock.getsockname())
        try:
            self._remote = host_and_port(peer or sock.getpeername())
        except OSError:
            if remote is None:
                raise
            self._remote = host_and_port(remote)
        # Not suppress(), here and in _shut_down(): it would create an object for each connection.
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            return  # some systems refuse this after the peer has hung up

    def may_go_on(self, amount: int) -> bool:
        return self._ready.may_go_on(amount)

    async def enter(self) -> None:
        await self._ready.enter()

    @property
    def leave(self) -> Pause | None:
        return self._ready.leave

    # --- receiving

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        data: bytes | None = self._take(max_bytes, None)
        return data

    def _take(self, max_bytes: int, into: memoryview | None) -> Any:
        """Take up to ``max_bytes`` bytes that have arrived; None if none have.

        Here and in each method below that has ``into``: if it is given, the data goes there, and
        the number of bytes is returned. It has room for ``max_bytes`` bytes.
        """
        if self._arrived:
            data, self._arrived = self._arrived[:max_bytes], self._arrived[max_bytes:]
            if into is None:
                return bytes(data)
            into[: len(data)] = data
            return len(data)
        got: bytes | int
        try:
            if into is None:
                got = self._sock.recv(max_bytes)
                count = len(got)
            else:
                got = count = self._sock.recv_into(into)
        except BlockingIOError:
            self._drained = True
            return None
        except OSError as exc:
            raise self._failed(exc) from exc
        if not count:
            self._raise_end()
        self._drained = count < _LITTLE and count < max_bytes
        return got

    # A call that takes data without waiting has to be a checkpoint first. Waiting is a checkpoint.

    @overload
    def start_receive(self, max_bytes: int) -> bytes | Awaitable[bytes]: ...

    @overload
    def start_receive(self, max_bytes: int, into: memoryview) -> int | Awaitable[int]: ...

    def start_receive(self, max_bytes: int, into: memoryview | None = None) -> Any:
        if self._is_worth_asking():
            if not self._ready.may_go_on(min(max_bytes, DEFAULT_MAX_BYTES)):
                return self._receive(max_bytes, into)
            if self._stopped:
                raise anyio.ClosedResourceError
            data = self._take(max_bytes, into)
            if data is not None:
                self._misses = 0
                if max_bytes > DEFAULT_MAX_BYTES:
                    count = len(data) if into is None else data
                    self._ready.charge(max(0, count - DEFAULT_MAX_BYTES))
                return data
            # Let the next receives wait at once, twice as many as last time.
            self._bets = self._misses = min(2 * self._misses + 1, _MOST_BETS)
        return self._wait_to_receive(max_bytes, into)

    async def receive(self, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        data: bytes = await self._receive(max_bytes, None)
        return data

    async def receive_into(self, view: memoryview) -> int:
        count: int = await self._receive(len(view), view)
        return count

    async def _receive(self, max_bytes: int, into: memoryview | None) -> Any:
        if self._is_worth_asking():
            ready = self._ready
            await ready.enter()
            if self._stopped:  # close() may have discarded some of the data
                raise anyio.ClosedResourceError
            data = self._take(max_bytes, into)
            if data is not None and ready.leave is not None:
                # Keep the data where others find it while they run: a failing send over TLS reads
                # on, and needs the data in order.
                kept = data if into is None else into[:data]
                self._arrived = bytes(kept) + self._arrived if self._arrived else kept
                await ready.leave()
                if self._arrived is kept and not self._stopped:
                    self._arrived = b""
                    return data
                self._arrived = bytes(self._arrived)
                if self._stopped:  # another task has stopped receives
                    raise anyio.ClosedResourceError
                data = self._take(max_bytes, into)
            if data is not None:
                return data
        return await self._wait_to_receive(max_bytes, into)

    def _is_worth_asking(self) -> bool:
        """Whether to ask the kernel for data before waiting.

        If the last receive emptied the kernel's buffer, new data is unlikely. If there is some
        after all, waiting for it costs no more than asking. If the last receive got exactly what
        it wanted, as in a protocol with length prefixes, the results of earlier calls decide.
        """
        if self._arrived or not self._ready.waits_first:
            return True
        if self._drained:
            return False
        if self._bets:
            self._bets -= 1
            return False
        return True

    async def _wait_to_receive(self, max_bytes: int, into: memoryview | None) -> Any:
        if self._limit and not self._limited:
            self._limit_again()
        self._wanted, self._into = max_bytes, into
        ready = self._ready
        try:
            while True:
                try:
                    await ready.readable(self._fetch)
                finally:
                    may_take = ready.after_reading()
                if not may_take:
                    await ready.refuse_reading()
                # No await from here on: a cancellation would lose the data.
                data = self._arrived  # not more than max_bytes
                if data:
                    self._arrived = b""
                    return data if into is None else len(data)
                more = self._take(max_bytes, into)
                if more is not None:
                    return more
        finally:
            if into is not None:
                self._into = None
                # This call may have been cancelled after data arrived in the caller's buffer.
                self._arrived = bytes(self._arrived)

    def _fetch(self) -> bool:
        """Receive data for the waiting task, in the loop's callback; return whether to wake it.

        If the task is cancelled before it runs, the next receive returns the data.
        """
        into = self._into
        try:
            if into is None:
                self._arrived = self._sock.recv(self._wanted)
            else:
                self._arrived = into[: self._sock.recv_into(into)]
        except BlockingIOError:
            return False
        except OSError as exc:
            self._failed(exc)  # keeps the error, which the task meets when it tries again
        count = len(self._arrived)
        self._drained = count < _LITTLE and count < self._wanted
        return True

    def is_readable(self) -> bool:
        if self._arrived or self._stopped or self._closed:
            return True
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError as exc:
            self._failed(exc)  # keeps the error
        self._drained, self._bets = False, 0  # so that the next receive does not wait first
        return True

    def stop_receiving(self) -> None:
        self._stopped = True
        self._ready.stop_reading()

    def resume_receiving(self) -> None:
        self._stopped = False
        self._ready.resume_reading()

    def unread(self) -> bool:
        if self._arrived:
            return True
        try:
            if self._sock.recv(1, socket.MSG_PEEK):
                return True
        except BlockingIOError:
            return True  # this was a false alarm: the next receive will find out
        except OSError as exc:
            raise self._failed(exc) from exc
        if self._error is not None:
            raise self._failed(self._error) from self._error
        return False

    # --- sending

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            raise self._failed(exc) from exc
        if self._limited:
            self._use_room(sent)
        return sent

    def _use_room(self, count: int) -> None:
        """Count sent bytes; lift TCP_USER_TIMEOUT if the peer has no room for all of them.

        The timeout must not end a connection whose peer answers but has no room (see _keepalive).
        """
        self._room -= count
        if self._room < 0:
            self._silent = False
            self._room = room_of(self._sock)
            if self._room < 0:
                self._lift_limit()

    def _lift_limit(self) -> None:
        self._limited = False
        if limit_of(self._sock) == self._limit:
            set_limit(self._sock, 0)
        else:
            self._limit = 0  # other code has set another value, which stays

    def _limit_again(self) -> None:
        """Set TCP_USER_TIMEOUT again if the peer has room for everything that was sent."""
        self._room = room_of(self._sock)
        if self._room >= 0:
            if limit_of(self._sock) == 0:
                self._limited = set_limit(self._sock, self._limit)
            else:
                self._limit = 0

    def start_send(self, item: bytes | memoryview) -> Awaitable[None] | None:
        if not item or not self._ready.may_go_on(len(item)):
            return self.send(item)
        sent = self.send_nowait(item)
        return None if sent == len(item) else self._send_rest(memoryview(item), sent)

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        if type(item) is not bytes:
            item = memoryview(item).cast("B")
        ready = self._ready
        if not item:  # do not call send(), which would report a reset
            await checkpoint()
            if self._closed:
                raise anyio.ClosedResourceError
            return
        await ready.enter()
        sent = self.send_nowait(item)
        if sent < len(item):
            await self._send_rest(memoryview(item), sent)
        elif ready.leave is not None:
            await ready.leave()

    async def _send_rest(self, view: memoryview, sent: int) -> None:
        """Send the rest of ``view``, after the ``sent`` bytes that were sent already."""
        try:
            while sent < len(view):
                await self._ready.writable()
                self._waits += 1
                sent += self.send_nowait(view[sent:])
        except BaseException:
            self.torn = self.torn or sent > 0
            raise

    async def send_eof(self) -> None:
        # This never waits and is not a checkpoint, so a cancelled caller still ends our side.
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise self._failed(exc) from exc
        self._ended = self._fin = True
        if self._limited:
            self._use_room(1)

    # --- ending

    async def aclose(self) -> None:
        try:
            while not await self.finish():
                await self.wait_room()
            await checkpoint()
        except anyio.BrokenResourceError:
            await checkpoint()  # the connection is lost, and the socket is closed
        except BaseException:
            with suppress(anyio.BrokenResourceError):
                await self.let_go()
            raise

    async def finish(self) -> bool:
        if self._closed:
            return True
        found = self._discard()
        self._talks = self._talks or found is not _Found.NOTHING
        if found is _Found.OVER:
            # If the peer has ended without a reset, the kernel still delivers data after close().
            self._release_and_tell()
            return True
        at_once = not self._talks and not self.unacknowledged()
        self._shut_down()
        if not at_once and self._outstanding():
            return False
        if found is _Found.MORE and not self._knows_outstanding:
            return False  # closing with unread data would cause a reset, which may destroy ours
        self._release()
        return True

    def _release_and_tell(self) -> None:
        """Close the socket; raise ``BrokenResourceError`` if a reset destroyed sent data."""
        lost = self._loss()
        self._shut_down()
        self._release()
        if lost is not None:
            raise anyio.BrokenResourceError(str(lost)) from lost

    def _loss(self) -> OSError | None:
        """The error of the reset that destroyed sent data, if there was one."""
        if self.unacknowledged() <= self.expendable:
            return None
        if self._reset is None:
            # After the peer's FIN, receives do not report a reset.
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._note(OSError(code, os.strerror(code)))
        return self._reset

    def _discard(self) -> _Found:
        """Discard data that has arrived, up to a limit."""
        found = _Found.NOTHING
        try:
            for _ in range(DISCARD_READS):
                if not self._sock.recv(DEFAULT_MAX_BYTES):
                    return _Found.OVER
                found = _Found.DATA
        except BlockingIOError:
            return found
        except OSError as exc:
            self._failed(exc)  # keeps the error
            return _Found.OVER
        return _Found.MORE

    def _shut_down(self) -> None:
        # close() alone would not end our side while a forked child has a copy of the socket.
        if self._ended:
            return
        self._ended = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # after a reset, the unacknowledged data shows what was lost
        self._fin = True
        # If nothing was sent and the peer is silent, the socket is closed next: the timeout of our
        # end is then up to the kernel.
        if self._limited and (self._talks or not self._nothing_sent()):
            self._use_room(1)

    async def wait_room(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if not self._ended:
            await self._wait_room()
        else:
            await self._wait_arrival(delivered=True)

    async def _wait_room(self) -> None:
        """Wait for room, or for data to discard: the peer may not read before it has sent that."""
        if self._over or not self._can_watch_all:
            await self._ready.writable()
        else:
            with self._watch(IN | OUT | RDHUP) as watch:
                await watch.wait()

    def discard(self) -> bool:
        self._over = self._over or self._discard() is _Found.OVER
        return not self._over

    async def let_go(self) -> bool:
        if self._closed:
            return True
        self._shut_down()
        if self.torn or self._discard() is _Found.MORE:
            await self.abort()
            return False
        self._release_and_tell()
        return True

    async def wait_arrival(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        await self._wait_arrival(delivered=False)

    def progress(self) -> object:
        return self._closed or (self._waits, self._outstanding())

    def _nothing_sent(self) -> bool:
        return self._silent and not _has_forked  # a forked process may have sent something

    def unacknowledged(self) -> int:
        if self._closed or self._nothing_sent():
            return 0
        count = self._outstanding()
        return max(0, count - 1) if self._fin else count

    async def abort(self) -> None:
        if self._closed:
            return
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            if _has_forked:
                disconnect(self._sock)
        self._release()

    @property
    def held(self) -> int:
        return len(self._arrived)

    def detach(self) -> socket.socket:
        if self._error is not None:
            raise self._failed(self._error) from self._error
        if self._limited:  # nothing would lift it later for a peer that has no room
            self._lift_limit()
        with suppress(RuntimeError):  # no event loop is running, so nothing is watched
            self._unwatch()
        self._ready.detach()
        self._closed = True
        return moved(self._sock)

    def close_dropped(self) -> bool:
        if self._closed:
            return False
        self._closed = True
        self._ready.close_dropped()
        return True

    def _release(self) -> None:
        self._closed = True
        self._arrived = b""
        self._unwatch()
        self._ready.close()

    # --- errors

    def _failed(self, exc: OSError) -> Exception:
        if self._closed:
            return anyio.ClosedResourceError()
        self._note(exc)
        return anyio.BrokenResourceError(str(exc))

    def _note(self, exc: OSError) -> None:
        # ENOTCONN from shutdown() only means that there is nothing left to shut down.
        if exc.errno == errno.ENOTCONN:
            return
        self._reset = fresh(exc)
        # EPIPE means a reset after the peer's FIN (RFC 9293 3.10.7.4). The peer's data is
        # complete, so receiving can go on to the end.
        if exc.errno != errno.EPIPE:
            self._error = self._reset

    def _raise_end(self) -> None:
        if self._error is not None:
            raise self._failed(self._error) from self._error
        raise anyio.EndOfStream

    # --- watching

    async def hung_up(self) -> tuple[bool, Exception | None]:
        events = 0 if self._closed else self._events(RDHUP)
        return bool(events), self._hangup_error() if events & ERR else self._error

    async def wait_hangup(self, *, after_eof: bool) -> OSError | None:
        # No event loop reports RDHUP, and receiving would take data away from the receiving task.
        if self._can_watch and not self._closed:
            wanted = 0 if after_eof else RDHUP
            with suppress(anyio.ClosedResourceError), self._watch(wanted) as watch:
                while True:
                    events = await watch.wait()
                    if events & ERR:
                        return self._hangup_error()
                    if not after_eof:
                        return None
                    # HUP without an error: both sides have ended, so no reset can follow.
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    def _hangup_error(self) -> OSError:
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and self._error is not None:
            return self._error  # another call has read the error from the kernel
        code = code or errno.EPIPE
        error = OSError(code, os.strerror(code))
        self._note(error)
        return error

    # --- other facts from the kernel: a network in memory overrides these methods

    @property
    def _can_watch(self) -> bool:
        return CAN_WATCH

    @property
    def _can_watch_all(self) -> bool:
        return CAN_WATCH_ALL

    @property
    def _knows_outstanding(self) -> bool:
        return KNOWS_OUTSTANDING

    def _outstanding(self) -> int:
        return outstanding(self._sock)

    async def _wait_arrival(self, *, delivered: bool) -> None:
        await wait_arrival(self._sock, delivered=delivered)

    def _events(self, events: int) -> int:
        return events_of(self._sock, events)

    def _watch(self, events: int) -> AbstractContextManager[_Watching]:
        return Watch(self._sock, events)

    def _unwatch(self) -> None:
        unwatch(self._sock)

    # --- attributes

    def _lend(self) -> socket.socket:
        self._silent = False  # other code may send on it
        return self._sock

    @property
    def addresses(self) -> tuple[Any, Any]:
        return self._remote, self._local

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        attributes: dict[Any, Callable[[], Any]] = {
            SocketAttribute.family: lambda: self._sock.family,
            SocketAttribute.local_address: lambda: self._local,
            SocketAttribute.local_port: lambda: self._local[1],
            SocketAttribute.raw_socket: self._lend,
            SocketAttribute.remote_address: lambda: self._remote,
            SocketAttribute.remote_port: lambda: self._remote[1],
        }
        return attributes
