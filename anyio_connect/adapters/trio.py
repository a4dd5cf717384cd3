"""For libraries on trio: a socket as a trio stream, with trio's errors.

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
    """Connect, like ``trio.open_tcp_stream()``, with TLS if the options say so.

    ``host``, ``port``: the address to connect to. ``connector``: None allows all addresses and any
    number of connections. The options are those of ``connect()``, but ``allow_half_open`` is True
    by default: for trio's streams, the peer's end is the end of one direction only.
    A cancelled call leaves nothing behind.

    :raises InvalidAddressError: ``host`` and ``port`` are not the address of a TCP endpoint
    :raises InvalidOptionError: an option is unknown, has a bad value, or contradicts another
    :raises ConnectError: the connection could not be made; it is an OSError, like trio's
    """
    connector = Connector() if connector is None else connector
    if options.get("allow_half_open") is None:
        options["allow_half_open"] = True
    socket = connector.connect((host, port), **options)
    await socket.__aenter__()
    return Stream(socket)


class Stream(trio.abc.HalfCloseableStream):
    """A :class:`Socket` for code that needs a ``trio.abc.Stream``.

    It raises trio's errors instead of AnyIO's: ``trio.BusyResourceError``,
    ``trio.ClosedResourceError`` and ``trio.BrokenResourceError``, with the same text. It passes
    ``trio.testing.check_half_closeable_stream()`` if the socket was made with
    ``allow_half_open=True``.
    """

    socket: Socket
    """The socket that this stream uses."""

    def __init__(self, socket: Socket) -> None:
        """``socket`` may be pending: the first call that needs the connection makes it."""
        self.socket = socket
        self._waiting = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. If it is cancelled after a part was sent, our side is broken.

        :raises trio.BusyResourceError: another task sends, or waits for room
        :raises trio.BrokenResourceError: the connection was reset or lost, or an earlier send was
            cut short
        :raises trio.ClosedResourceError: our side has ended, or the stream was closed
        """
        self._check_not_waiting()
        with _errors_as_trio():
            await self.socket.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel has room for more data. Cancelling it changes nothing.

        :raises trio.BusyResourceError: another task sends, or waits for room
        :raises trio.BrokenResourceError: the connection was reset or lost, or an earlier send was
            cut short
        :raises trio.ClosedResourceError: our side has ended, or the stream was closed
        """
        self._check_not_waiting()
        with _errors_as_trio():
            await self.socket.send(b"")  # raises if sending is not allowed
            raw = self.socket.extra(SocketAttribute.raw_socket, None)
            if raw is None:  # only a socket of the kernel can be waited for
                return
            self._waiting = True
            try:
                await trio.lowlevel.wait_writable(raw)
            finally:
                self._waiting = False
            await self.socket.send(b"")  # our own end may have ended the wait: then this raises

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte and at most ``max_bytes``; b"" is the peer's end.

        Cancelling it loses no data.

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

        A cancelled call is like one of :meth:`Socket.send_eof`.

        :raises trio.BusyResourceError: another task sends, or waits for room
        :raises trio.BrokenResourceError: the connection was reset or lost, or a send was cut short
        :raises trio.ClosedResourceError: the stream was closed
        """
        self._check_not_waiting()
        with _errors_as_trio():
            await self.socket.send_eof()

    async def aclose(self) -> None:
        """Close both directions, like :meth:`Socket.close`."""
        await self.socket.close()

    def _check_not_waiting(self) -> None:
        # In trio, one task may either send or wait for room. Only this class knows of the wait,
        # because sockets have no such method.
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
