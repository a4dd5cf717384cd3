"""The two halves of a socket, as AnyIO byte streams with the names of WHATWG Streams."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.lowlevel import checkpoint

from ._connection import Connection
from ._errors import BrokenError, ClosedError
from ._refusals import check_int
from ._transport import DEFAULT_MAX_BYTES

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer


def attributes_of(connection: Connection) -> Mapping[Any, Callable[[], Any]]:
    """The typed attributes of the transport; empty while there is no transport."""
    transport = connection.transport
    return {} if transport is None else transport.extra_attributes


class ReadableStream(ByteReceiveStream):
    """The type of ``socket.readable``: the stream of the data that the peer sends.

    One task at a time may receive, and another may send at the same time. Iterating over the
    stream yields chunks of bytes until the peer ends.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def receive(self, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Receive at least one and at most ``max_bytes`` bytes, as soon as there are any.

        Makes the connection first if necessary. Cancelling it loses no data.

        :raises TypeError: ``max_bytes`` is not an int
        :raises ValueError: ``max_bytes`` is less than 1
        :raises anyio.EndOfStream: the peer has ended, and everything it sent was received; every
            later call raises this too
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        return await self._connection.receive(max_bytes)

    async def receive_into(self, buffer: Buffer) -> int:
        """Receive at least one byte into ``buffer``, as soon as possible; return the number.

        The bytes go to the beginning of ``buffer``. Otherwise this behaves like :meth:`receive`.
        Cancelling it loses no data, but the content of ``buffer`` is then undefined. (WHATWG
        Streams: ``ReadableStreamBYOBReader``.)

        :raises TypeError: ``buffer`` is not a buffer, is read-only, or is not contiguous
        :raises ValueError: ``buffer`` is empty
        :raises anyio.EndOfStream: the peer has ended, and everything it sent was received; every
            later call raises this too
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        with writable(buffer) as view:
            return await self._connection.receive(len(view), view)

    async def receive_exactly(self, nbytes: int) -> bytes:
        """Receive exactly ``nbytes`` bytes; wait until all of them have arrived.

        It does not read beyond them. Until it returns, no other task may receive. If it is
        cancelled or raises, the data that has arrived is kept, and the next receive of any kind
        begins with it. Receiving 0 bytes never waits for the peer, not even after the peer's end.

        :raises TypeError: ``nbytes`` is not an int
        :raises ValueError: ``nbytes`` is less than 0
        :raises IncompleteReadError: the peer ended too early; the data that arrived is kept
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost; what came before that is kept
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        check_int("nbytes", nbytes, 0)
        return await self._connection.receive_exactly(nbytes)

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """Receive up to and including ``delimiter``; return the data without the delimiter.

        Data and delimiter together may have at most ``max_bytes`` bytes: a delimiter that ends
        later is not found. This never reads more than ``max_bytes`` bytes ahead.

        This is the only call that reads ahead. The data after the delimiter is kept: the next
        receive of any kind begins with it, and the peer's end is reported after it.
        ``start_tls()`` fails while any data is kept.

        Until this returns, no other task may receive. If it is cancelled or raises, all data that
        has arrived is kept.

        :raises TypeError: ``delimiter`` is not bytes-like, or ``max_bytes`` is not an int
        :raises ValueError: ``delimiter`` is empty, or longer than ``max_bytes``
        :raises DelimiterNotFoundError: the first ``max_bytes`` bytes do not contain the delimiter;
            they are kept
        :raises IncompleteReadError: the peer ended too early; the data that arrived is kept
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

        It does not wait, and takes no data. It is True if data or the peer's end has arrived; if
        the connection was reset or lost; after a failure, :meth:`aclose` or ``close()``; and while
        another task is receiving. It is False until the connection is made, and if the answer
        cannot be known. Over TLS, this decrypts what has arrived and keeps the result, because
        only application data counts.
        """
        return self._connection.is_readable()

    async def aclose(self) -> None:
        """Stop receiving (WHATWG Streams: ``cancel()``). The socket can still send.

        A receive in flight raises :class:`ClosedError`. When our side has ended too, the socket
        closes. A second call does nothing. A cancelled call still stops receiving. If it closes
        the socket, it does not wait then, like a cancelled :meth:`Socket.close`.
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

        The next chunk is received after the last one was sent, so a slow destination slows the
        peer down. If the destination is a socket, its writable half is used. Ends and errors are
        handled as in WHATWG Streams, ``pipeTo()``:

        - This stream ends, or is closed by its :meth:`aclose`: the destination is ended, unless
          ``prevent_close``. A two-way AnyIO stream gets ``send_eof()``, so that its other
          direction stays open. Any other destination gets ``aclose()``, which ends a
          :class:`WritableStream` gracefully.
        - This stream fails, or another task closes its socket: the destination is aborted, unless
          ``prevent_abort``, and the error is raised. A destination that is not a
          :class:`WritableStream` is closed by force instead.
        - The destination fails, or another task closes it: this stream is closed, unless
          ``prevent_cancel``, and the error is raised. If the destination is a
          :class:`WritableStream`, this is noticed at once, and nothing more is received; but a
          reset is noticed only if a call on that socket meets it or a task awaits its ``closed``.
          With any other destination, and with an unnoticed reset, the next chunk is received and
          lost.
        - The call is cancelled: the destination is aborted and this stream is closed (like an
          ``AbortSignal`` does), unless prevented. A chunk that was received but not sent is lost.

        :raises SocketError: what :meth:`receive` raises, and what :meth:`WritableStream.send` and
            :meth:`WritableStream.aclose` of the destination raise
        :raises BrokenError: everything was sent, but the two-way destination cannot end one
            direction alone (AnyIO's ``TLSStream`` cannot). It stays open: pass ``prevent_close``,
            and end it as its protocol requires
        :raises Exception: an error that another kind of destination raises is passed on unchanged
        :raises anyio.BusyResourceError: another task is receiving from this stream, or sending to
            the destination; neither stream is closed
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
        """Receive the next chunk; return None as soon as nothing can be sent any more."""
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
        """Whether this stream, and not the destination, decides what happens next.

        The order is that of WHATWG Streams: an error of this stream, an error of the destination,
        the end of this stream, the end of the destination.
        """
        theirs = target.why_no_send()
        if theirs is None:
            return True
        ours = self._connection.why_no_receive()
        if ours is None or isinstance(theirs, anyio.BusyResourceError):
            return False
        return not self._ended_by(ours) or isinstance(theirs, ClosedError)

    def _ended_by(self, error: BaseException) -> bool:
        """Whether ``error`` is a regular end for a pipe: the peer's end, or :meth:`aclose`.

        The end of the whole socket by ``close()`` or ``start_tls()`` is not a regular end: the
        peer may have had more to send.
        """
        return isinstance(error, anyio.EndOfStream) or self._connection.stopped_reading

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, such as ``SocketAttribute``; empty until it is connected."""
        return attributes_of(self._connection)


class WritableStream(ByteSendStream):
    """The type of ``socket.writable``: the stream of the data that we send.

    One task at a time may send, and another may receive at the same time.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of ``item``; return when the kernel has accepted it.

        Makes the connection first if necessary. Sending an empty ``item`` is only a checkpoint. A
        call that is cancelled before it has sent anything changes nothing. If it is cancelled
        after a part was sent, this half is broken: later sends raise :class:`BrokenError`, because
        they would follow an incomplete message, but receiving works. Over TLS, a call that is
        cancelled after the data was encrypted leaves this half broken, even if nothing was sent.

        :raises TypeError: ``item`` is not bytes-like; nothing was sent
        :raises anyio.BusyResourceError: another task is sending
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, or an earlier send was cut short
        :raises ClosedError: our side has ended, or the socket was closed, also while waiting
        """
        await self._connection.send(item)

    async def send_eof(self) -> None:
        """End our side: the peer sees the end of the stream, and receiving goes on.

        TCP sends FIN (RFC 9293 3.6). TLS sends close_notify instead (RFC 8446 6.1), and waits
        until the kernel has room for it. If the call is cancelled during that wait, this half is
        broken, and later calls raise :class:`BrokenError`. When the peer has ended too, the socket
        closes. A second call does nothing.

        :raises anyio.BusyResourceError: another task is sending
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, or a send was cut short
        :raises HalfCloseError: the wrapped stream cannot end one direction; nothing has changed
        :raises ClosedError: the socket was closed
        """
        await self._connection.end()

    async def aclose(self) -> None:
        """End our side gracefully, after a send in flight has finished. Receiving goes on.

        Like :meth:`send_eof`, but it does nothing if our side has ended or failed already. After
        this call no further send can start, so our end follows the send in flight directly. If a
        send was cut short, our side cannot end gracefully: the connection is dropped, as by
        :meth:`abort`. The same happens if this call is cancelled while it waits.

        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, also while this waited
        :raises HalfCloseError: the wrapped stream cannot end one direction; nothing has changed
        """
        await self._connection.end_gracefully()

    async def abort(self, reason: object = None) -> None:
        """Drop the connection now, so that the peer cannot mistake the data for complete.

        TCP can only abort both directions at once: it sends RST (RFC 9293 3.10.5). Sends and
        receives, in flight and later, raise :class:`BrokenError`, and ``closed`` fails with it.
        Its cause is ``reason``, if that is an exception. It does nothing if our side has ended or
        failed already. A cancelled call still drops the connection.

        On Linux, the reset is sent even if a forked child has a copy of the socket. On other
        systems, and if the raw socket was copied by ``dup()``, it is sent when the last copy is
        closed.
        """
        await self._connection.abort(reason)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, such as ``SocketAttribute``; empty until it is connected."""
        return attributes_of(self._connection)


def _delimiter(value: object) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        hint = ": encode it first" if isinstance(value, str) else ""
        raise TypeError(f"delimiter must be bytes, not {type(value).__name__}{hint}")
    return bytes(value)


def writable(buffer: Buffer) -> memoryview:
    """Return the memory of ``buffer`` as bytes, after checking that data can be received there."""
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
    return stream._connection  # noqa: SLF001  # the class is defined in this module


async def _send(destination: ByteSendStream, data: bytes | None) -> None:
    """Send a chunk. If it is None, raise the error that keeps the destination from sending."""
    if data is not None:
        await destination.send(data)
    elif isinstance(destination, WritableStream):
        error = _behind(destination).why_no_send()
        assert error is not None
        try:
            raise error
        finally:
            del error  # breaks the cycle of the error, its traceback and this frame


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
    with suppress(Exception):  # the caller is told the reason of the abort instead
        await anyio.aclose_forcefully(destination)
