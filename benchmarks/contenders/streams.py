"""``asyncio.open_connection()``."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, TypeAlias

from benchmarks.contenders.tasks import OnAsyncio
from benchmarks.services import HOST

Pair: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: How much a reader may hold: more than the default of 64 KiB serves it best.
LIMIT = 1 << 20


class Streams(OnAsyncio):
    def __init__(self, authority: str) -> None:
        self.context = ssl.create_default_context(cafile=authority)

    async def open(self, port: int, *, tls: bool) -> Pair:
        # TCP_NODELAY is what asyncio sets itself.
        protection: Any = self.context if tls else None
        return await asyncio.open_connection(HOST, port, ssl=protection, limit=LIMIT)

    async def open_without_context(self, port: int) -> Pair:
        return await asyncio.open_connection(HOST, port, ssl=True)

    async def close(self, connection: Pair) -> None:
        _, writer = connection
        writer.close()
        await writer.wait_closed()

    async def send(self, connection: Pair, data: bytes) -> None:
        connection[1].write(data)

    async def take(self, connection: Pair, amount: int) -> None:
        reader, _ = connection
        while amount > 0:
            amount -= len(await reader.read(min(amount, LIMIT)))

    async def take_into(self, connection: Pair, amount: int) -> None:
        raise NotImplementedError

    async def give(self, connection: Pair, amount: int, size: int) -> None:
        _, writer = connection
        data = bytes(size)
        for _ in range(amount // size):
            writer.write(data)
            await writer.drain()

    async def ping(self, connection: Pair, times: int, message: bytes) -> None:
        reader, writer = connection
        for _ in range(times):
            writer.write(message)
            await reader.readexactly(len(message))
