"""anyio_connect."""

from __future__ import annotations

from anyio.abc import ByteStream

from anyio_connect import Socket, connect
from benchmarks.contenders.anyio_streams import AnyIO
from benchmarks.contenders.tasks import OnAsyncio, OnTrio
from benchmarks.services import HOST
from benchmarks.work import PIECE


class Ours(AnyIO):
    """An AnyIO stream as well, which is opened in another way."""

    async def open(self, port: int, *, tls: bool) -> Socket:
        if tls:
            socket = connect((HOST, port), secure_transport="on", ssl_context=self.context)
        else:
            socket = connect((HOST, port))
        await socket.opened
        return socket

    async def open_without_context(self, port: int) -> Socket:
        socket = connect((HOST, port), secure_transport="on")
        await socket.opened
        return socket

    async def take_into(self, connection: ByteStream, amount: int) -> None:
        assert isinstance(connection, Socket)
        view = memoryview(bytearray(PIECE))
        while amount > 0:
            part = view if amount >= len(view) else view[:amount]
            amount -= await connection.receive_into(part)


class OursOnAsyncio(Ours, OnAsyncio):
    pass


class OursOnTrio(Ours, OnTrio):
    pass
