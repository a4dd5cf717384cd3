"""``loop.sock_*``: the least that asyncio puts around the kernel's socket."""

from __future__ import annotations

import asyncio
import socket

from benchmarks.contenders.tasks import OnAsyncio
from benchmarks.services import HOST
from benchmarks.work import PIECE


class LoopSockets(OnAsyncio):
    def __init__(self, authority: str) -> None:
        self.buffer = memoryview(bytearray(PIECE))

    async def open(self, port: int, *, tls: bool) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, (HOST, port))
        return connection

    async def open_without_context(self, port: int) -> socket.socket:
        raise NotImplementedError

    async def close(self, connection: socket.socket) -> None:
        connection.close()

    async def send(self, connection: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(connection, data)

    async def take(self, connection: socket.socket, amount: int) -> None:
        receive = asyncio.get_running_loop().sock_recv
        while amount > 0:
            amount -= len(await receive(connection, min(amount, PIECE)))

    async def take_into(self, connection: socket.socket, amount: int) -> None:
        receive_into = asyncio.get_running_loop().sock_recv_into
        while amount > 0:
            part = self.buffer if amount >= len(self.buffer) else self.buffer[:amount]
            amount -= await receive_into(connection, part)

    async def give(self, connection: socket.socket, amount: int, size: int) -> None:
        send = asyncio.get_running_loop().sock_sendall
        data = bytes(size)
        for _ in range(amount // size):
            await send(connection, data)

    async def ping(self, connection: socket.socket, times: int, message: bytes) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(times):
            await loop.sock_sendall(connection, message)
            missing = len(message)
            while missing:
                missing -= len(await loop.sock_recv(connection, missing))
