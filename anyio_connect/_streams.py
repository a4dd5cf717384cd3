"""The two halves of a socket, as AnyIO byte streams with the names of WHATWG Streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from ._connection import Connection
from ._transport import DEFAULT_MAX_BYTES

#: What one receive takes at most, in bytes: that much is allocated before it is known how much
#: there is.
_MOST = 1 << 20


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

        Makes the connection first, where nobody has yet. Cancelling it loses no data.

        :raises ValueError: ``max_bytes`` is less than 1
        :raises anyio.EndOfStream: the peer has ended, and all it sent was received; so does
            every later call
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        if not isinstance(max_bytes, int):
            raise TypeError(f"max_bytes must be an int, not {type(max_bytes).__name__}")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        return await self._connection.receive(min(max_bytes, _MOST))

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

        - this stream ends: the destination is closed (``aclose()``: for a
          :class:`WritableStream` that is its graceful end), unless ``prevent_close``;
        - this stream fails: the destination is aborted, unless ``prevent_abort``, and the
          error is raised;
        - the destination fails: this stream is closed, unless ``prevent_cancel``, and the
          error is raised;
        - the call is cancelled: both of the last two (as by an ``AbortSignal``); a chunk that
          was received but not sent is lost.

        :raises SocketError: as :meth:`receive`, or what the destination raises
        :raises anyio.BusyResourceError: another task receives from this stream, or sends to the
            destination, which is left to it
        """
        half = getattr(destination, "writable", None)
        if isinstance(half, WritableStream):
            destination = half
        try:
            while True:
                try:
                    data = await self.receive()
                except anyio.EndOfStream:
                    break
                except (anyio.get_cancelled_exc_class(), anyio.BusyResourceError):
                    raise
                except BaseException as exc:
                    if not prevent_abort:
                        await _abort(destination, exc)
                    raise
                try:
                    await destination.send(data)
                except (anyio.get_cancelled_exc_class(), anyio.BusyResourceError):
                    raise
                except BaseException:
                    if not prevent_cancel:
                        await self.aclose()
                    raise
        except anyio.get_cancelled_exc_class():
            try:
                if not prevent_abort:
                    await _abort(destination, "pipe_to() was cancelled")
            finally:
                if not prevent_cancel:
                    await self.aclose()
            raise
        if not prevent_close:
            await destination.aclose()

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

        Makes the connection first, where nobody has yet. Sending nothing is a checkpoint.
        Cancelled after a part has gone out, it leaves this half broken: the peer holds a
        piece that nothing may follow, later sends raise :class:`BrokenError`, and reading goes
        on. Cancelled before, it has done nothing. Over TLS it is encryption that cannot be taken
        back: cancelled after that, it leaves this half broken even where nothing has gone out.

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
        :raises ClosedError: the socket was closed
        """
        await self._connection.end()

    async def aclose(self) -> None:
        """End our side gracefully, once a send in flight is done; reading goes on.

        Like :meth:`send_eof`, but does nothing where our side has ended or failed already. From
        the call on nothing else can be sent: its end follows the send in flight at once.
        Where a send was cut short there is no graceful end: the connection is dropped, as by
        :meth:`abort`, and so it is when this call is cancelled while it waits.

        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, also while this waited
        """
        await self._connection.end_gracefully()

    async def abort(self, reason: object = None) -> None:
        """Drop the connection now, so that the peer cannot take what it got for the whole.

        TCP can only abort both directions at once: it sends RST (RFC 9293 3.10.5). Sends and
        receives, in flight and later, raise :class:`BrokenError`, which ``reason`` is the cause
        of where it is an exception, and ``closed`` rejects with it. Does nothing where our
        side has ended or failed already. Done even when cancelled.
        """
        await self._connection.abort(reason)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, such as ``SocketAttribute``; empty before it is open."""
        return attributes_of(self._connection)


async def _abort(destination: ByteSendStream, reason: object) -> None:
    if isinstance(destination, WritableStream):
        await destination.abort(reason)
    else:
        await anyio.aclose_forcefully(destination)
