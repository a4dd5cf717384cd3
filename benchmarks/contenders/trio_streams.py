"""trio's own streams."""

from __future__ import annotations

import ssl
from typing import TypeAlias

import trio

from benchmarks.contenders.tasks import OnTrio
from benchmarks.services import HOST
from benchmarks.work import PIECE

Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"


class Trio(OnTrio):
    def __init__(self, authority: str) -> None:
        self.context = ssl.create_default_context(cafile=authority)

    async def open(self, port: int, *, tls: bool) -> Stream:
        # TCP_NODELAY is what trio sets itself.
        if not tls:
            return await trio.open_tcp_stream(HOST, port)
        # https_compatible: do not wait for the peer's close_notify. No other contender waits.
        stream = await trio.open_ssl_over_tcp_stream(
            HOST, port, https_compatible=True, ssl_context=self.context
        )
        await stream.do_handshake()
        return stream

    async def open_without_context(self, port: int) -> Stream:
        stream = await trio.open_ssl_over_tcp_stream(HOST, port, https_compatible=True)
        await stream.do_handshake()
        return stream

    async def close(self, connection: Stream) -> None:
        await connection.aclose()

    async def send(self, connection: Stream, data: bytes) -> None:
        await connection.send_all(data)

    async def take(self, connection: Stream, amount: int) -> None:
        most = 1 << 16 if isinstance(connection, trio.SSLStream) else PIECE
        while amount > 0:
            amount -= len(await connection.receive_some(min(amount, most)))

    async def take_into(self, connection: Stream, amount: int) -> None:
        raise NotImplementedError

    async def give(self, connection: Stream, amount: int, size: int) -> None:
        data = bytes(size)
        for _ in range(amount // size):
            await connection.send_all(data)

    async def ping(self, connection: Stream, times: int, message: bytes) -> None:
        for _ in range(times):
            await connection.send_all(message)
            missing = len(message)
            while missing:
                missing -= len(await connection.receive_some(missing))
