"""Servers in threads, on blocking sockets, for code that blocks; and a handler."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from anyio.abc import SocketAttribute

from anyio_connect import Listener, Socket


@contextmanager
def serving(handler: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve each connection with ``handler``; yield the address, ``host:port``."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            handler(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield "{}:{}".format(*listener.getsockname())
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() alone would not
        acceptor.join()
        listener.close()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def echo(connection: socket.socket) -> None:
    """Send everything back, and end when the other side does."""
    while data := connection.recv(65536):
        connection.sendall(data)


async def send_back(socket: Socket) -> None:
    """A handler of ``listen()`` that sends everything back."""
    async with socket:
        async for data in socket.readable:
            await socket.send(data)


def port(listener: Listener) -> int:
    """The port at which it listens, the same at all addresses."""
    return listener.extra(SocketAttribute.local_port)
