"""The socket: a thin face of the connection and its two streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from anyio.abc import ByteStream
from typing_extensions import Self

from ._connection import Connection, SocketInfo
from ._future import SocketFuture
from ._lifecycle import Dial, Link
from ._options import SecureTransport
from ._streams import ReadableStream, WritableStream, attributes_of
from ._transport import DEFAULT_MAX_BYTES


class Socket(ByteStream):
    """A TCP connection, made by ``connect()``; it has no public constructor.

    It begins *pending*: whichever task first awaits something that needs the connection makes
    it. ``async with`` enters once it is open, and leaves it closed. As a ``ByteStream`` it
    goes wherever AnyIO takes one; its methods are those of its two streams.
    """

    def __init__(
        self, connection: Connection, *, name: str, secure_transport: SecureTransport
    ) -> None:
        self._connection = connection
        self._name = name
        self._secure_transport: SecureTransport = secure_transport
        self._readable = ReadableStream(connection)
        self._writable = WritableStream(connection)

    @property
    def readable(self) -> ReadableStream:
        """What the peer sends."""
        return self._readable

    @property
    def writable(self) -> WritableStream:
        """What we send."""
        return self._writable

    @property
    def opened(self) -> SocketFuture[SocketInfo]:
        """Settles when the connection is made, with what is known of it, or cannot be.

        Fails with the :class:`ConnectError` that says why, or with :class:`ClosedError` where
        the socket was closed before.
        """
        return self._connection.opened

    @property
    def closed(self) -> SocketFuture[None]:
        """Settles when the connection is over.

        Resolves after ``close()``, when both directions have ended, and when ``start_tls()``
        has taken the connection over. Fails with what ``opened`` failed with, or with
        :class:`BrokenError` where the connection was reset, lost or aborted. Awaiting it
        watches for the peer's hang-up, without taking any data.
        """
        return self._connection.closed

    @property
    def upgraded(self) -> bool:
        """Whether ``start_tls()`` has taken the connection over."""
        return self._connection.state.link is Link.UPGRADED

    @property
    def secure_transport(self) -> SecureTransport:
        """``"off"``, ``"on"`` (the connection is, or will be, TLS) or ``"starttls"``."""
        return self._secure_transport

    async def receive(self, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """As :meth:`ReadableStream.receive`."""
        return await self._readable.receive(max_bytes)

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """As :meth:`WritableStream.send`."""
        await self._connection.send(item)

    async def send_eof(self) -> None:
        """As :meth:`WritableStream.send_eof`."""
        await self._connection.end()

    async def close(self) -> None:
        """Close both directions; any task may, at any time, any number of times.

        Receives in flight raise :class:`ClosedError` at once. A send in flight is finished
        first, for as long as this call is not cancelled. Then the peer gets our end and
        ``closed`` resolves; unread data is thrown away. Where a send was cut short, the peer
        gets a reset instead. Before the connection is made there is none to make any more:
        ``opened`` fails with :class:`ClosedError`, and ``closed`` resolves.

        Cancelled, it still closes, but waits for nothing: a send in flight raises
        :class:`ClosedError` and the peer gets a reset. Raises nothing else.
        """
        await self._connection.close()

    async def aclose(self) -> None:
        """The same as :meth:`close`, by AnyIO's name."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        try:
            await self._connection.opened
        except BaseException:
            # Another task may have made the connection: without this, nobody would close it.
            await self._connection.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self._connection.close()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, such as ``SocketAttribute``; empty before it is open."""
        return attributes_of(self._connection)

    def __repr__(self) -> str:
        state = self._connection.state
        word = state.link.name.lower()
        if state.link is Link.OPEN and state.dial is not Dial.DONE:
            word = "pending"
        elif state.dial is Dial.FAILED:
            word = "failed"
        return f"<Socket {self._name} {word} secure_transport={self._secure_transport!r}>"
