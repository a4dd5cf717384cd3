"""For libraries on trio: a socket as trio's own kind of stream, with trio's errors.

::

    stream = await open_tcp_stream("echo.example", 7, connector=Connector(WORKERS))
    async with stream:
        await stream.send_all(b"hello")
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import trio
from anyio.abc import SocketAttribute

from anyio_connect import Connector, Socket, SocketOptions

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

__all__ = ("Stream", "open_tcp_stream")


async def open_tcp_stream(
    host: str,
    port: int,
    *,
    connector: Connector | None = None,
    **options: Unpack[SocketOptions],
) -> Stream:
    """Connect, as ``trio.open_tcp_stream()`` does, and with TLS if the options say so.

    ``host``, ``port``: where to. ``connector``: None allows every address, and any number of
    connections. The options are those of ``connect()``, but ``allow_half_open`` is True unless
    given: for trio's streams, the peer's end is the end of one direction.

    :raises InvalidAddressError: there is no such host or port
    :raises InvalidOptionError: an option is unknown, has a bad value, or contradicts another
    :raises ConnectError: the connection could not be made; it is an OSError, as trio's is
    """
    connector = Connector() if connector is None else connector
    if options.get("allow_half_open") is None:
        options["allow_half_open"] = True
    socket = connector.connect((host, port), **options)
    await socket.__aenter__()
    return Stream(socket)


class Stream(trio.abc.HalfCloseableStream):
    """A :class:`Socket` for code that takes a ``trio.abc.Stream``.

    It has trio's errors in place of AnyIO's: ``trio.BusyResourceError``,
    ``trio.ClosedResourceError`` and ``trio.BrokenResourceError``, with the same text. What
    ``trio.testing.check_half_closeable_stream()`` asks for holds if the socket was made with
    ``allow_half_open=True``.
    """

    socket: Socket
    """The socket that this stream is made of."""

    def __init__(self, socket: Socket) -> None:
        """``socket`` may be pending: the first call that needs the connection makes it."""
        self.socket = socket
        self._waiting = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. Cancelled part-way, it leaves our side broken.

        :raises trio.BusyResourceError: another task sends, or waits for room
        :raises trio.BrokenResourceError: the connection was reset or lost, or an earlier send was
            cut short
        :raises trio.ClosedResourceError: our side has ended, or the stream was closed
        """
        self._check_not_waiting()
        with _errors_as_trio():
            await self.socket.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel has room for more.

        :raises trio.BusyResourceError: another task sends, or waits for room
        :raises trio.BrokenResourceError: the connection was reset or lost, or an earlier send was
            cut short
        :raises trio.ClosedResourceError: our side has ended, or the stream was closed
        """
        self._check_not_waiting()
        with _errors_as_trio():
            await self.socket.send(b"")  # tells whether sending is allowed
            raw = self.socket.extra(SocketAttribute.raw_socket, None)
            if raw is None:  # a stream that is not the kernel's does not tell
                return
            self._waiting = True
            try:
                await trio.lowlevel.wait_writable(raw)
            finally:
                self._waiting = False
            await self.socket.send(b"")  # what woke it may have been our own end

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte and at most ``max_bytes``; b"" is the peer's end.

        :raises ValueError: ``max_bytes`` is less than 1
        :raises trio.BusyResourceError: another task is receiving
        :raises trio.BrokenResourceError: the connection was reset or lost
        :raises trio.ClosedResourceError: the stream was closed, also while waiting
        """
        with _errors_as_trio():
            try:
                if max_bytes is None:
                    return await self.socket.receive()
                return await self.socket.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def send_eof(self) -> None:
        """End our side; go on receiving.

        :raises trio.BusyResourceError: another task sends, or waits for room
        :raises trio.BrokenResourceError: the connection was reset or lost, or a send was cut short
        :raises trio.ClosedResourceError: the stream was closed
        """
        self._check_not_waiting()
        with _errors_as_trio():
            await self.socket.send_eof()

    async def aclose(self) -> None:
        """Close both directions, as :meth:`Socket.close` does."""
        await self.socket.close()

    def _check_not_waiting(self) -> None:
        # For trio, one task may either send or wait for room. Only this class knows of the
        # waiting: sockets have no such call.
        if self._waiting:
            raise trio.BusyResourceError("another task waits for room")


@contextmanager
def _errors_as_trio() -> Iterator[None]:
    try:
        yield
    except anyio.BusyResourceError as exc:
        raise trio.BusyResourceError(str(exc)) from exc
    except anyio.ClosedResourceError as exc:
        raise trio.ClosedResourceError(str(exc)) from exc
    except anyio.BrokenResourceError as exc:
        raise trio.BrokenResourceError(str(exc)) from exc
