"""``trio.socket``: the least that trio puts around the kernel's socket."""

from __future__ import annotations

import trio
from trio.socket import IPPROTO_TCP, TCP_NODELAY, SocketType

from benchmarks.contenders.tasks import OnTrio
from benchmarks.services import HOST
from benchmarks.work import PIECE


class TrioSockets(OnTrio):
    def __init__(self, authority: str) -> None:
        self.buffer = memoryview(bytearray(PIECE))

    async def open(self, port: int, *, tls: bool) -> SocketType:
        connection = trio.socket.socket()
        connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        await connection.connect((HOST, port))
        return connection

    async def open_without_context(self, port: int) -> SocketType:
        raise NotImplementedError

    async def close(self, connection: SocketType) -> None:
        connection.close()

    async def send(self, connection: SocketType, data: bytes) -> None:
        sent = await connection.send(data)
        while sent < len(data):
            sent += await connection.send(memoryview(data)[sent:])

    async def take(self, connection: SocketType, amount: int) -> None:
        while amount > 0:
            amount -= len(await connection.recv(min(amount, PIECE)))

    async def take_into(self, connection: SocketType, amount: int) -> None:
        while amount > 0:
            amount -= await connection.recv_into(self.buffer, min(amount, len(self.buffer)))

    async def give(self, connection: SocketType, amount: int, size: int) -> None:
        data = bytes(size)
        for _ in range(amount // size):
            await self.send(connection, data)

    async def ping(self, connection: SocketType, times: int, message: bytes) -> None:
        for _ in range(times):
            await self.send(connection, message)
            missing = len(message)
            while missing:
                missing -= len(await connection.recv(missing))
