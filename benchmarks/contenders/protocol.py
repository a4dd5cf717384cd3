"""A bare ``asyncio.Protocol``, without a task for each message: the limit of the event loop."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

from benchmarks.contenders.tasks import OnAsyncio
from benchmarks.services import HOST
from benchmarks.work import PIECE


class Connection(asyncio.Protocol):
    """Counts received bytes, and wakes the waiting task when enough have arrived."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.missing = 0
        self.times = 0
        self.message = b""
        self.enough: asyncio.Future[None] | None = None
        self.room: asyncio.Future[None] | None = None
        self.lost = self.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.received(len(data))

    def received(self, amount: int) -> None:
        self.missing -= amount
        if self.missing > 0 or self.enough is None:
            return
        if self.times:
            self.times -= 1
            self.missing += len(self.message)
            self.transport.write(self.message)
        else:
            self.enough.set_result(None)
            self.enough = None

    def pause_writing(self) -> None:
        self.room = self.loop.create_future()

    def resume_writing(self) -> None:
        if self.room is not None:
            self.room.set_result(None)
            self.room = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)
        if self.enough is not None:
            self.enough.set_exception(exc or ConnectionError("the peer has ended"))


class Into(asyncio.BufferedProtocol):
    """Receives into a buffer, and passes on how much."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.buffer = bytearray(PIECE)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.connection.received(nbytes)

    def pause_writing(self) -> None:
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        self.connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.connection_lost(exc)


class BareProtocol(OnAsyncio):
    def __init__(self, authority: str) -> None:
        self.context = ssl.create_default_context(cafile=authority)

    async def open(self, port: int, *, tls: bool) -> Connection:
        return await self.open_with(port, self.context if tls else None)

    async def open_without_context(self, port: int) -> Connection:
        return await self.open_with(port, True)

    async def open_with(self, port: int, protection: Any) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, HOST, port, ssl=protection))[1]

    async def close(self, connection: Connection) -> None:
        connection.transport.close()
        await connection.lost

    async def send(self, connection: Connection, data: bytes) -> None:
        connection.transport.write(data)

    async def take(self, connection: Connection, amount: int) -> None:
        connection.missing += amount
        if connection.missing > 0:
            connection.enough = connection.loop.create_future()
            await connection.enough

    async def take_into(self, connection: Connection, amount: int) -> None:
        connection.transport.set_protocol(Into(connection))
        await self.take(connection, amount)

    async def give(self, connection: Connection, amount: int, size: int) -> None:
        data = bytes(size)
        for _ in range(amount // size):
            connection.transport.write(data)
            if connection.room is not None:
                await connection.room

    async def ping(self, connection: Connection, times: int, message: bytes) -> None:
        connection.message, connection.times = message, times - 1
        connection.missing += len(message)
        connection.enough = connection.loop.create_future()
        connection.transport.write(message)
        await connection.enough
