"""Blocking sockets: no event loop at all, so the limit of what Python can do."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Sequence

from benchmarks.services import HOST
from benchmarks.work import PIECE, Call


class Blocking:
    def __init__(self, authority: str) -> None:
        self.context = ssl.create_default_context(cafile=authority)
        self.buffer = bytearray(PIECE)

    async def open(self, port: int, *, tls: bool) -> socket.socket:
        connection = socket.create_connection((HOST, port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            return self.context.wrap_socket(connection, server_hostname=HOST)
        return connection

    async def open_without_context(self, port: int) -> socket.socket:
        connection = socket.create_connection((HOST, port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return ssl.create_default_context().wrap_socket(connection, server_hostname=HOST)

    async def close(self, connection: socket.socket) -> None:
        connection.close()

    async def send(self, connection: socket.socket, data: bytes) -> None:
        connection.sendall(data)

    async def take(self, connection: socket.socket, amount: int) -> None:
        take(connection, amount)

    async def take_into(self, connection: socket.socket, amount: int) -> None:
        take_into(connection, amount, self.buffer)

    async def give(self, connection: socket.socket, amount: int, size: int) -> None:
        give(connection, amount, size)

    async def ping(self, connection: socket.socket, times: int, message: bytes) -> None:
        ping(connection, times, message)

    async def at_once(self, calls: Sequence[Call]) -> None:
        def run(call: Call) -> None:
            # There is nothing in it that would wait for an event loop.
            for _ in call().__await__():
                raise AssertionError("unreachable")

        threads = [threading.Thread(target=run, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def take(connection: socket.socket, amount: int) -> None:
    while amount > 0:
        amount -= len(connection.recv(min(amount, PIECE)))


def take_into(connection: socket.socket, amount: int, buffer: bytearray) -> None:
    view = memoryview(buffer)
    receive_into = connection.recv_into
    while amount > 0:
        amount -= receive_into(view, min(amount, len(view)))


def give(connection: socket.socket, amount: int, size: int) -> None:
    data = bytes(size)
    for _ in range(amount // size):
        connection.sendall(data)


def ping(connection: socket.socket, times: int, message: bytes) -> None:
    for _ in range(times):
        connection.sendall(message)
        missing = len(message)
        while missing:
            missing -= len(connection.recv(missing))
