"""``anyio.connect_tcp()``."""

from __future__ import annotations

import ssl

import anyio
from anyio.abc import ByteStream

from benchmarks.contenders.tasks import OnAsyncio, OnTrio
from benchmarks.services import HOST
from benchmarks.work import PIECE


class AnyIO:
    def __init__(self, authority: str) -> None:
        self.context = ssl.create_default_context(cafile=authority)

    async def open(self, port: int, *, tls: bool) -> ByteStream:
        # TCP_NODELAY is what AnyIO sets itself.
        if tls:
            # Do not wait for the peer's close_notify at the end, because no other client does.
            return await anyio.connect_tcp(
                HOST, port, tls=True, ssl_context=self.context, tls_standard_compatible=False
            )
        return await anyio.connect_tcp(HOST, port)

    async def open_without_context(self, port: int) -> ByteStream:
        return await anyio.connect_tcp(HOST, port, tls=True, tls_standard_compatible=False)

    async def close(self, connection: ByteStream) -> None:
        await connection.aclose()

    async def send(self, connection: ByteStream, data: bytes) -> None:
        await connection.send(data)

    async def take(self, connection: ByteStream, amount: int) -> None:
        while amount > 0:
            amount -= len(await connection.receive(min(amount, PIECE)))

    async def take_into(self, connection: ByteStream, amount: int) -> None:
        raise NotImplementedError

    async def give(self, connection: ByteStream, amount: int, size: int) -> None:
        data = bytes(size)
        for _ in range(amount // size):
            await connection.send(data)

    async def ping(self, connection: ByteStream, times: int, message: bytes) -> None:
        for _ in range(times):
            await connection.send(message)
            missing = len(message)
            while missing:
                missing -= len(await connection.receive(missing))


class AnyIOOnAsyncio(AnyIO, OnAsyncio):
    pass


class AnyIOOnTrio(AnyIO, OnTrio):
    pass
