"""The interface of byte streams that a socket uses, and an adapter for AnyIO streams.

:class:`Transport` extends AnyIO's ``ByteStream`` by what a socket needs and no AnyIO stream
offers. ``_tcp`` and ``_tls`` implement all of it. :class:`ForeignTransport` adapts any other
``ByteStream`` as well as possible. This module knows nothing of this package's sockets, futures or
dialling.
"""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, overload

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint

from ._copies import fresh
from ._readiness import Pause
from ._waking import cancel

#: The default limit of one receive, in bytes. It is the same as AnyIO's.
DEFAULT_MAX_BYTES = 65536

#: How much :meth:`Transport.discard` discards at a time, in reads of DEFAULT_MAX_BYTES. It is more
#: than any default receive buffer holds. The limit keeps a peer that never stops sending from
#: blocking the event loop.
DISCARD_READS = 128


class NoSocketError(Exception):
    """A transport has no socket that it could give away. The message says why."""


class Transport(ByteStream):
    """A byte stream that can also act without waiting, be watched, and be dropped.

    Errors are AnyIO's: ``EndOfStream``, ``BrokenResourceError`` (caused by the low-level
    error), ``ClosedResourceError``. One receive and one send may run at the same time.
    """

    #: Whether a send was cut short: the peer has an incomplete message, and would misread anything
    #: that is sent after it.
    torn: bool = False

    #: How many bytes at the end of the sent data may be lost in a reset without harm. They are the
    #: close_notify of TLS over this transport: a peer need not wait for it (RFC 8446 6.1).
    expendable: int = 0

    #: Whether :meth:`send_nowait` may buffer what it accepts. It is sent before anything else.
    keeps: bool = False

    @property
    def immediate(self) -> bool:
        """Whether the methods that do not wait are supported."""
        return True

    def may_go_on(self, amount: int) -> bool:
        """Whether a call that moves about ``amount`` bytes may do without a checkpoint.

        If not, :meth:`enter` comes before the call, and :attr:`leave` after it if it did not wait.
        """
        return False

    async def enter(self) -> None:
        """Be a checkpoint, or its first half if there is a :attr:`leave`.

        The first half raises a pending cancellation, and :attr:`leave` lets other tasks run.
        """
        await checkpoint()

    @property
    def leave(self) -> Pause | None:
        """The awaitable that lets other tasks run after a call, or None. It raises nothing."""
        return None

    @property
    def alpn(self) -> str | None:
        """The protocol that a TLS handshake agreed on (RFC 7301), or None."""
        return None

    @property
    def addresses(self) -> tuple[Any, Any]:
        """The addresses of the peer and of this side; None for each that is not known."""
        remote = attribute_of(self, SocketAttribute.remote_address)
        return remote, attribute_of(self, SocketAttribute.local_address)

    @overload
    def start_receive(self, max_bytes: int) -> bytes | Awaitable[bytes]: ...

    @overload
    def start_receive(self, max_bytes: int, into: memoryview) -> int | Awaitable[int]: ...

    def start_receive(
        self, max_bytes: int, into: memoryview | None = None
    ) -> bytes | int | Awaitable[bytes | int]:
        """Like :meth:`receive`, but return the data itself if nothing needs to be awaited.

        Otherwise return the awaitable, which is a checkpoint. With ``into``, which has room for
        ``max_bytes`` bytes, do the same for :meth:`receive_into`.
        """
        return self.receive(max_bytes) if into is None else self.receive_into(into)

    def start_send(self, item: bytes | memoryview) -> Awaitable[None] | None:
        """Like :meth:`send`, but return None if all is sent and nothing needs to be awaited."""
        return self.send(item)

    @abstractmethod
    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """Take up to ``max_bytes`` bytes that have arrived; return None if none have."""

    async def receive_into(self, view: memoryview) -> int:
        """Receive at least one byte into ``view``; return the number. Cancelling loses no data.

        ``view`` is writable, consists of bytes, and is not empty.
        """
        data = await self.receive(len(view))
        view[: len(data)] = data
        return len(data)

    def is_readable(self) -> bool:
        """Whether ``receive()`` would return or raise without waiting for the peer.

        No data is lost by it. It returns False if the answer cannot be known. It is not called
        while a receive is in flight.
        """
        return False

    @abstractmethod
    def stop_receiving(self) -> None:
        """Make a ``receive()`` in flight, and every later one, raise ``ClosedResourceError``."""

    @abstractmethod
    def resume_receiving(self) -> None:
        """Undo :meth:`stop_receiving`, after the ``receive()`` in flight has returned."""

    @abstractmethod
    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of ``item``. If it is cancelled after it sent a part, it sets ``torn``."""

    @abstractmethod
    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send as much of ``data`` as is possible without waiting; return the number of bytes."""

    async def flush(self) -> None:
        """Wait until the data that :meth:`send_nowait` has buffered is sent."""

    @abstractmethod
    async def wait_hangup(self, *, after_eof: bool) -> Exception | None:
        """Wait until the peer has ended or reset the connection, without taking data.

        Returns None for an end, which may come after unread data, and the error for a reset. With
        ``after_eof``, it waits for a reset only. Cancelling it changes nothing.
        """

    async def hung_up(self) -> tuple[bool, Exception | None]:
        """Return whether :meth:`wait_hangup` would return at once, and what.

        Returns ``(False, None)`` if that cannot be known without waiting.
        """
        return False, None

    @abstractmethod
    def unread(self) -> bool:
        """Whether there is unread data before the peer's end. Called only after a hang-up.

        :raises anyio.BrokenResourceError: there is no unread data, and the peer sent a reset
        """

    @abstractmethod
    async def finish(self) -> bool:
        """Start or continue closing, without waiting; return whether the transport is closed now.

        This ends our side, and discards what arrives. The transport stays open while there is no
        room for our end, or the peer has not acknowledged everything: see :meth:`wait_room`.

        :raises anyio.BrokenResourceError: the connection was lost, with some of the sent data
        """

    @abstractmethod
    async def wait_room(self) -> None:
        """Wait until another ``finish()`` may make progress. Cancelling it changes nothing."""

    async def let_go(self) -> bool:
        """Close now, without the wait for :meth:`finish`; the kernel delivers what it holds.

        This does not wait, and closes even if the caller is cancelled. It returns False if a send
        was cut short or data was left unread: then the peer gets a reset.

        :raises anyio.BrokenResourceError: a reset by the peer has destroyed sent data; the
            transport is closed
        """
        await self.abort()
        return False

    def discard(self) -> bool:
        """Discard what has arrived. Return False if nothing more can arrive."""
        try:
            for _ in range(DISCARD_READS):
                if self.receive_nowait(DEFAULT_MAX_BYTES) is None:
                    break
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return False
        return True

    async def wait_arrival(self) -> None:
        """Wait until there may be more data to discard. Cancelling it changes nothing."""
        await anyio.sleep_forever()

    def progress(self) -> object:
        """A value that changes whenever the peer has accepted more data."""
        return None

    def unacknowledged(self) -> int:
        """How many sent bytes the peer has not acknowledged; 0 if that cannot be known."""
        return 0

    @property
    def held(self) -> int:
        """How many bytes this transport has read from the kernel and not returned yet."""
        return 0

    def detach(self) -> socket.socket:
        """Return the kernel's socket; this transport is closed. No call is in flight.

        :attr:`held` is 0.

        :raises NoSocketError: there is no such socket, or more than one; nothing has changed
        :raises anyio.BrokenResourceError: the kernel has already reported a reset of the
            connection, and would not do so again; nothing has changed
        """
        raise NoSocketError("it is not a socket of the system, but another stream")

    def close_dropped(self) -> bool:
        """Close the transport, because its user was collected; return whether it was open.

        This may be called in any thread, and outside of tasks. No task waits for the transport any
        more. The peer sees the same as when a process ends. A foreign stream has to close itself.
        """
        return False

    @abstractmethod
    async def abort(self) -> None:
        """Drop the connection now, so that the peer cannot mistake the data for complete.

        This does not wait, and drops the connection even if the caller is cancelled. Calls in
        flight raise ``ClosedResourceError``.
        """


_ANYIOS = (
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.BusyResourceError,
)


@contextmanager
def _as_anyios(*passed: type[Exception]) -> Iterator[None]:
    """Turn the errors of a foreign stream into ``anyio.BrokenResourceError``, as its cause.

    AnyIO's own errors and those in ``passed`` are not changed.
    """
    try:
        yield
    except _ANYIOS:
        raise
    except passed:
        raise
    except Exception as exc:
        raise anyio.BrokenResourceError(str(exc)) from exc


class ForeignTransport(Transport):
    """An adapter for any other ``ByteStream``.

    It can do nothing without waiting, and it cannot be watched. It drops a connection by closing
    the stream. A cancelled send always counts as cut short, because the stream does not tell how
    much it has sent. If the stream cannot end one direction, its :meth:`send_eof` raises
    ``NotImplementedError``.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._stopped = False
        self._dropped = False
        self._closed = False  # the stream was closed forcefully
        self._rest = b""  # what the stream returned in excess of max_bytes
        self._over: Exception | None = None  # what every receive raises from now on
        # Some streams do not wake their waiting tasks when they are closed.
        self._receiving: anyio.CancelScope | None = None
        self._sending: anyio.CancelScope | None = None

    @property
    def immediate(self) -> bool:
        return False

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        return None

    async def receive(self, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        await checkpoint()  # because not every stream's receive() is one
        if self._stopped:
            raise anyio.ClosedResourceError
        if not self._rest:
            await self._receive(max_bytes)
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return data

    async def _receive(self, max_bytes: int) -> None:
        if self._over is not None:
            raise fresh(self._over)
        try:
            with anyio.CancelScope() as self._receiving, _as_anyios():
                self._rest = _checked(await self._stream.receive(max_bytes))
                return
        except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            self._over = fresh(exc)
            raise
        finally:
            self._receiving = None
        raise anyio.ClosedResourceError

    def is_readable(self) -> bool:
        return bool(self._rest) or self._stopped or self._over is not None

    def stop_receiving(self) -> None:
        self._stopped = True
        if self._receiving is not None:
            cancel(self._receiving)

    def resume_receiving(self) -> None:
        self._stopped = self._dropped

    def unread(self) -> bool:
        return True

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        return 0

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        await checkpoint()  # because not every stream's send() is one
        if not len(item):  # some streams would pass on the empty item
            return
        try:
            await self._interruptibly(partial(self._stream.send, bytes(item)))
        except BaseException:
            self.torn = self._is_torn()
            raise

    def _is_torn(self) -> bool:
        """Whether a send that failed or was cancelled may have sent something."""
        return True

    async def send_eof(self) -> None:
        await self._interruptibly(self._stream.send_eof, NotImplementedError)

    async def _interruptibly(
        self, call: Callable[[], Awaitable[None]], *passed: type[Exception]
    ) -> None:
        if not self._dropped:
            try:
                with anyio.CancelScope() as self._sending, _as_anyios(*passed):
                    await call()
            except anyio.EndOfStream as exc:  # AnyIO's TLS streams raise it for sends too
                raise anyio.BrokenResourceError("the peer has ended") from exc
            finally:
                self._sending = None
        if self._dropped:
            raise anyio.ClosedResourceError

    async def aclose(self) -> None:
        with _as_anyios():
            await self._stream.aclose()

    async def finish(self) -> bool:
        # This waits for as long as the stream's aclose(). If the stream has ended or was closed
        # before, it counts as closed.
        with suppress(anyio.EndOfStream, anyio.ClosedResourceError):
            await self.aclose()
        return True

    async def wait_room(self) -> None:
        raise AssertionError("unreachable")

    async def abort(self) -> None:
        self._drop()
        await self._close_forcefully()

    def _drop(self) -> None:
        self._dropped = True
        self.stop_receiving()
        if self._sending is not None:
            cancel(self._sending)

    async def _close_forcefully(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Shielded, because the caller has more to do after this, even if it is cancelled. A stream
        # that fails to close counts as closed.
        with anyio.CancelScope(shield=True), suppress(Exception):
            await anyio.aclose_forcefully(self._stream)

    async def let_go(self) -> bool:
        self._drop()
        await self._close_forcefully()
        return True  # whether data was lost cannot be known

    async def wait_hangup(self, *, after_eof: bool) -> Exception | None:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    def detach(self) -> socket.socket:
        kind = type(self._stream).__name__
        raise NoSocketError(f"it is not a socket of the system, but a {kind}")

    @property
    def alpn(self) -> str | None:
        from anyio.streams.tls import TLSAttribute  # here, because few programs need it

        names: Any = TLSAttribute  # its members are typed as the values of the attributes
        alpn = attribute_of(self, names.alpn_protocol)
        return alpn if isinstance(alpn, str) else None

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes


def attribute_of(stream: ByteStream, attribute: Any) -> Any:
    """A typed attribute of any stream; None if the stream does not have it, or raises an error."""
    try:
        return stream.extra(attribute, None)
    except Exception:  # noqa: BLE001  # foreign code may raise anything
        return None


def _checked(data: Any) -> bytes:
    """Return ``data`` from a foreign stream, after checking it.

    :raises anyio.BrokenResourceError: ``data`` is empty, which has no defined meaning
    :raises TypeError: ``data`` is not bytes-like
    """
    data = bytes(memoryview(data))
    if not data:
        raise anyio.BrokenResourceError(
            "the stream below has received nothing: at its end it should raise anyio.EndOfStream"
        )
    checked: bytes = data
    return checked
