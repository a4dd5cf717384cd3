"""The two halves of a socket, as AnyIO byte streams with the names of WHATWG Streams."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.lowlevel import checkpoint

from ._connection import Connection, check_int
from ._errors import BrokenError, ClosedError
from ._transport import DEFAULT_MAX_BYTES

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer


def attributes_of(connection: Connection) -> Mapping[Any, Callable[[], Any]]:
    """The typed attributes of the transport; none while there is no transport."""
    transport = connection.transport
    return {} if transport is None else transport.extra_attributes


class ReadableStream(ByteReceiveStream):
    """What the peer sends: ``socket.readable``.

    One task at a time may receive; another may send meanwhile. Iterating over it gives chunks
    of bytes until the peer's end.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def receive(self, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Receive at least one and at most ``max_bytes`` bytes, as soon as there are any.

        Makes the connection first, if no task has yet. Cancelling it loses no data.

        :raises TypeError: ``max_bytes`` is not an int
        :raises ValueError: ``max_bytes`` is less than 1
        :raises anyio.EndOfStream: the peer has ended, and all it sent was received; so does
            every later call
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        return await self._connection.receive(max_bytes)

    async def receive_into(self, buffer: Buffer) -> int:
        """Receive into ``buffer``, at least one byte, as soon as there are any; return how many.

        Fills it from its beginning. Otherwise as :meth:`receive`. Cancelling it loses no data, but
        the content of ``buffer`` is undefined then. (WHATWG: a reader that brings its own buffer.)

        :raises TypeError: ``buffer`` is no buffer, is read-only, or is not contiguous
        :raises ValueError: ``buffer`` is empty
        :raises anyio.EndOfStream: the peer has ended, and all it sent was received; so does
            every later call
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        with writable(buffer) as view:
            return await self._connection.receive(len(view), view)

    async def receive_exactly(self, nbytes: int) -> bytes:
        """Receive ``nbytes`` bytes, no more and no fewer, once all of them have come.

        Reads no byte beyond them. Until it returns, it is the one receive that may be in flight.
        If it is cancelled, or raises, what has come is kept: the next receive of any kind begins
        with that. 0 bytes are there at once, also after the peer's end.

        :raises TypeError: ``nbytes`` is not an int
        :raises ValueError: ``nbytes`` is less than 0
        :raises IncompleteReadError: the peer has ended before; what did come is kept
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost; what came before that is kept
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        check_int("nbytes", nbytes, 0)
        return await self._connection.receive_exactly(nbytes)

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """Receive what comes before ``delimiter``; the delimiter is received too, and left out.

        ``max_bytes`` is how many bytes both may have together: a delimiter that ends behind that
        is not found. No more bytes are looked at, and no more are ever read ahead. It is the only
        call that reads ahead: what has come behind the delimiter is kept, the next receive of any
        kind begins with that, and the peer's end is told after it. ``start_tls()`` refuses while
        anything is kept.

        Until it returns, it is the one receive that may be in flight. If it is cancelled, or
        raises, all that has come is kept.

        :raises TypeError: ``delimiter`` is not bytes-like, or ``max_bytes`` is not an int
        :raises ValueError: ``delimiter`` is empty, or longer than ``max_bytes``
        :raises DelimiterNotFoundError: the first ``max_bytes`` bytes do not have the delimiter;
            they are kept
        :raises IncompleteReadError: the peer has ended before; what did come is kept
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost; what came before that is kept
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        wanted = _delimiter(delimiter)
        check_int("max_bytes", max_bytes, 1)
        if not 1 <= len(wanted) <= max_bytes:
            raise ValueError(
                f"delimiter must have at least 1 byte, and at most max_bytes={max_bytes}, "
                f"but has {len(wanted)}"
            )
        return await self._connection.receive_until(wanted, max_bytes)

    def is_readable(self) -> bool:
        """Whether :meth:`receive` would return or raise without waiting for the peer.

        Looks at once, and takes no data. True if there is data, or the peer's end, or if the
        connection was reset or lost; after a failure, :meth:`aclose` or ``close()``; and while
        another task is receiving. False while the connection is not made, and if it cannot be
        known. Over TLS, what is here is decrypted and kept: bytes that are no data do not count.
        """
        return self._connection.is_readable()

    async def aclose(self) -> None:
        """Stop reading (WHATWG: ``cancel()``); the socket lives on for writing.

        A receive in flight raises :class:`ClosedError`. Once our side has ended too, the
        socket closes. Does nothing the second time. Done even when cancelled.
        """
        await self._connection.cancel()

    async def pipe_to(
        self,
        destination: ByteSendStream,
        *,
        prevent_close: bool = False,
        prevent_abort: bool = False,
        prevent_cancel: bool = False,
    ) -> None:
        """Send everything this stream receives to ``destination``, one chunk at a time.

        The next chunk is received when the last one was sent, so a slow destination slows the
        peer down. A socket as destination stands for its writable half. What happens at an end
        is what WHATWG ``pipeTo()`` does:

        - this stream ends, or is closed by its :meth:`aclose`: the destination is ended, unless
          ``prevent_close``. A two-way AnyIO stream gets ``send_eof()``, so that its other
          direction goes on; any other destination gets ``aclose()``, which is the graceful end of
          a :class:`WritableStream`;
        - this stream fails, or its socket is closed by another task: the destination is aborted,
          unless ``prevent_abort``, and the error is raised. To abort a stream of another kind is
          to close it by force;
        - the destination fails or is closed by another task: this stream is closed, unless
          ``prevent_cancel``, and the error is raised. A :class:`WritableStream` that is over is
          noticed at once, and nothing more is received. With any other destination, it is noticed
          when the next chunk is sent, which is lost; and so is a reset that no call has met yet,
          if no task awaits ``closed``;
        - the call is cancelled: the destination is aborted and this stream closed (as by an
          ``AbortSignal``), unless prevented; a chunk that was received but not sent is lost.

        :raises SocketError: as :meth:`receive`, and as :meth:`WritableStream.send` and
            :meth:`WritableStream.aclose` of the destination
        :raises BrokenError: everything was sent, but the two-way destination cannot end one
            direction alone (AnyIO's ``TLSStream`` cannot). It stays open: pass ``prevent_close``,
            and end it as its protocol does
        :raises Exception: whatever a destination of another kind raises, as it is
        :raises anyio.BusyResourceError: another task receives from this stream, or sends to the
            destination; both are left to it
        """
        half = getattr(destination, "writable", None)
        if isinstance(half, WritableStream):
            destination = half
        cancelled = anyio.get_cancelled_exc_class()
        leave_alone = (cancelled, anyio.BusyResourceError)
        try:
            while True:
                try:
                    data = await self._receive_for(destination)
                except leave_alone:
                    raise
                except BaseException as exc:
                    if self._ended_by(exc):
                        break
                    if not prevent_abort:
                        await _abort(destination, exc)
                    raise
                try:
                    await _send(destination, data)
                except leave_alone:
                    raise
                except BaseException:
                    if not prevent_cancel:
                        await self.aclose()
                    raise
        except cancelled:
            try:
                if not prevent_abort:
                    await _abort(destination, "pipe_to() was cancelled")
            finally:
                if not prevent_cancel:
                    await self.aclose()
            raise
        if not prevent_close:
            await _end(destination)

    async def _receive_for(self, destination: ByteSendStream) -> bytes | None:
        """Receive the next chunk; return None as soon as the destination can be sent none."""
        if not isinstance(destination, WritableStream):
            return await self.receive()
        target = _behind(destination)
        while True:
            while self._goes_before(target):
                with anyio.CancelScope() as scope, target.cancelling_once_it_ends(scope):
                    return await self.receive()
            await checkpoint()
            if not self._goes_before(target):
                return None

    def _goes_before(self, target: Connection) -> bool:
        """Whether it is this stream that says what happens next, in the order of WHATWG.

        First comes an error here, then one of the destination, then an end here, then one there.
        """
        theirs = target.why_no_send()
        if theirs is None:
            return True
        ours = self._connection.why_no_receive()
        if ours is None or isinstance(theirs, anyio.BusyResourceError):
            return False
        return not self._ended_by(ours) or isinstance(theirs, ClosedError)

    def _ended_by(self, error: BaseException) -> bool:
        """Whether this is an end of the stream for a pipe: the peer's, or :meth:`aclose`.

        The end of the whole socket by ``close()`` or ``start_tls()`` is none: it cuts off what
        was to come.
        """
        return isinstance(error, anyio.EndOfStream) or self._connection.stopped_reading

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, such as ``SocketAttribute``; empty before it is open."""
        return attributes_of(self._connection)


class WritableStream(ByteSendStream):
    """What we send: ``socket.writable``.

    One task at a time may send; another may receive meanwhile.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of ``item``; return when the kernel has taken it.

        Makes the connection first, if no task has yet. Sending nothing is a checkpoint.
        Cancelled after a part has gone out, it leaves this half broken: the peer holds a
        piece that nothing may follow, later sends raise :class:`BrokenError`, and reading goes
        on. Cancelled before, it has done nothing. Over TLS it is encryption that cannot be taken
        back: cancelled after that, it leaves this half broken even if nothing has gone out.

        :raises TypeError: ``item`` is not bytes-like; nothing was sent
        :raises anyio.BusyResourceError: another task is sending
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, or an earlier send was cut short
        :raises ClosedError: our side has ended, or the socket was closed, also while waiting
        """
        await self._connection.send(item)

    async def send_eof(self) -> None:
        """End our side: the peer sees an end of stream, and reading goes on.

        TCP sends FIN (RFC 9293 3.6). TLS sends close_notify instead (RFC 8446 6.1), for which
        this waits until there is room; cancelled while it does, it leaves this half broken, and
        later calls raise :class:`BrokenError`. Once the peer has ended too, the socket closes.
        Does nothing the second time.

        :raises anyio.BusyResourceError: another task is sending
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, or a send was cut short
        :raises HalfCloseError: the stream that was wrapped cannot do that; nothing has changed
        :raises ClosedError: the socket was closed
        """
        await self._connection.end()

    async def aclose(self) -> None:
        """End our side gracefully, once a send in flight is done; reading goes on.

        Like :meth:`send_eof`, but does nothing where our side has ended or failed already. From
        the call on nothing else can be sent: its end follows the send in flight at once.
        If a send was cut short, there is no graceful end: the connection is dropped, as by
        :meth:`abort`, and so it is when this call is cancelled while it waits.

        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, also while this waited
        :raises HalfCloseError: the stream that was wrapped cannot do that; nothing has changed
        """
        await self._connection.end_gracefully()

    async def abort(self, reason: object = None) -> None:
        """Drop the connection now, so that the peer cannot take what it got for the whole.

        TCP can only abort both directions at once: it sends RST (RFC 9293 3.10.5). Sends and
        receives, in flight and later, raise :class:`BrokenError`, and ``closed`` rejects with it;
        its cause is ``reason``, if that is an exception. Does nothing if our side has ended or
        failed already. Done even when cancelled.

        The reset goes out even if a forked child has the connection too, on Linux. On other
        systems, and if the raw socket was copied by ``dup()``, it does when the last copy is
        closed.
        """
        await self._connection.abort(reason)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, such as ``SocketAttribute``; empty before it is open."""
        return attributes_of(self._connection)


def _delimiter(value: object) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        hint = ": encode it first" if isinstance(value, str) else ""
        raise TypeError(f"delimiter must be bytes, not {type(value).__name__}{hint}")
    return bytes(value)


def writable(buffer: Buffer) -> memoryview:
    """The memory of a buffer that something can be received into."""
    why = "buffer must be writable and contiguous, such as a bytearray, not "
    kind = type(buffer).__name__
    try:
        view = memoryview(buffer)
    except TypeError:
        raise TypeError(f"{why}{kind}") from None
    if view.readonly or not view.c_contiguous:
        how = "read-only" if view.readonly else "strided"
        view.release()
        raise TypeError(f"{why}a {how} {kind}")
    if not view.nbytes:
        view.release()
        raise ValueError("buffer must have room for at least 1 byte")
    if view.format == "B" and view.ndim == 1:
        return view
    with view:
        return view.cast("B")


def _behind(stream: WritableStream) -> Connection:
    return stream._connection  # noqa: SLF001  # a class of this module, whose users need no more


async def _send(destination: ByteSendStream, data: bytes | None) -> None:
    """Send a chunk; None: raise what keeps the destination from being sent one."""
    if data is not None:
        await destination.send(data)
    elif isinstance(destination, WritableStream):
        error = _behind(destination).why_no_send()
        assert error is not None
        try:
            raise error
        finally:
            del error  # or it would keep this frame, and this frame it


async def _end(destination: ByteSendStream) -> None:
    if isinstance(destination, WritableStream) or not hasattr(destination, "receive"):
        await destination.aclose()
        return
    two_way: Any = destination
    try:
        await two_way.send_eof()
    except NotImplementedError as exc:
        raise BrokenError(
            f"everything was sent, but a {type(destination).__name__} cannot end one of its "
            "directions alone: pass prevent_close=True, and end it as its protocol does"
        ) from exc


async def _abort(destination: ByteSendStream, reason: object) -> None:
    if isinstance(destination, WritableStream):
        await destination.abort(reason)
        return
    with suppress(Exception):  # the reason is what the caller is to know
        await anyio.aclose_forcefully(destination)
