"""anyio_connect."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

import anyio

from anyio_connect import Socket, connect
from benchmarks.services import HOST
from benchmarks.work import Call


class Ours:
    def __init__(self, authority: str) -> None:
        self.context = ssl.create_default_context(cafile=authority)

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

    async def close(self, connection: Socket) -> None:
        await connection.close()

    async def send(self, connection: Socket, data: bytes) -> None:
        await connection.send(data)

    async def take(self, connection: Socket, amount: int) -> None:
        most = 1 << 16 if connection.secure_transport == "off" else 1 << 18
        while amount > 0:
            amount -= len(await connection.receive(min(amount, most)))

    async def give(self, connection: Socket, amount: int, size: int) -> None:
        data = bytes(size)
        for _ in range(amount // size):
            await connection.send(data)

    async def ping(self, connection: Socket, times: int, message: bytes) -> None:
        for _ in range(times):
            await connection.send(message)
            missing = len(message)
            while missing:
                missing -= len(await connection.receive(missing))

    async def at_once(self, calls: Sequence[Call]) -> None:
        async with anyio.create_task_group() as group:
            for call in calls:
                group.start_soon(call)
