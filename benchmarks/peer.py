"""The server at the other end: ``python -m benchmarks.peer CERTIFICATE``.

The services for much data use blocking sockets and a thread for each connection. Each other port
has one thread with an epoll, so that many connections cost no more than one. The server prints its
ports as JSON: first the plain ones, then those for TLS, each in the order of ``Service``.
"""

from __future__ import annotations

import json
import selectors
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from benchmarks.services import HOST, Service, allow_many_sockets

CHUNK = bytes(1 << 20)


def send(connection: socket.socket, amount: int) -> None:
    while amount > 0:
        connection.sendall(memoryview(CHUNK)[:amount])
        amount -= len(CHUNK)


def take(connection: socket.socket, amount: int) -> None:
    buffer = bytearray(1 << 20)
    while amount > 0:
        amount -= receive_into(connection, memoryview(buffer)[:amount])


def receive_into(connection: socket.socket, buffer: memoryview) -> int:
    received = connection.recv_into(buffer)
    if not received:
        raise ConnectionError("the client ended too early")
    return received


def number(connection: socket.socket) -> int:
    """The number that the client sends; 0 if it ends."""
    word = b""
    while len(word) < 8:
        piece = connection.recv(8 - len(word))
        if not piece:
            return 0
        word += piece
    return int.from_bytes(word, "big")


def serve_send(connection: socket.socket) -> None:
    while amount := number(connection):
        send(connection, amount)


def serve_take(connection: socket.socket) -> None:
    while amount := number(connection):
        take(connection, amount)
        connection.sendall(b".")


def serve_both(connection: socket.socket) -> None:
    while amount := number(connection):
        # Over TLS too: one thread may read from an SSLSocket while another writes.
        sending = threading.Thread(target=send, args=(connection, amount))
        sending.start()
        take(connection, amount)
        sending.join()
        connection.sendall(b".")


SERVE: dict[Service, Callable[[socket.socket], None]] = {
    Service.SEND: serve_send,
    Service.TAKE: serve_take,
    Service.BOTH: serve_both,
}


def listening() -> socket.socket:
    return socket.create_server((HOST, 0), backlog=4096)


def serve(listener: socket.socket, service: Service, context: ssl.SSLContext | None) -> None:
    def run(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            with connection:
                SERVE[service](connection)

    threading.stack_size(1 << 18)
    while True:
        threading.Thread(target=run, args=(listener.accept()[0],), daemon=True).start()


def serve_simply(
    listener: socket.socket, service: Service, context: ssl.SSLContext | None
) -> None:
    """All connections in one thread: for services that never wait within a connection."""
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    secured: set[socket.socket] = set()

    def accept() -> None:
        accepted = listener.accept()[0]
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            accepted = context.wrap_socket(
                accepted, server_side=True, do_handshake_on_connect=False
            )
        elif service is Service.GREET:
            accepted.send(b".")
        selector.register(accepted, selectors.EVENT_READ)

    def go_on(connection: socket.socket) -> bool:
        """Serve the client. Returns False if the client has ended."""
        if isinstance(connection, ssl.SSLSocket) and connection not in secured:
            connection.do_handshake()
            secured.add(connection)
            if service is Service.GREET:
                connection.send(b".")
            return True  # the kernel still has the data after it, and will report that
        data = connection.recv(65536)
        if data and service is Service.ECHO:
            connection.send(data)  # a few bytes, for which there is room
        return bool(data)

    while True:
        for key, _ in selector.select():
            found = key.fileobj
            assert isinstance(found, socket.socket)
            if found is listener:
                with suppress(OSError):  # there is no client, or it has gone again
                    while True:
                        accept()
                continue
            try:
                lasts = go_on(found)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except OSError:
                lasts = False
            if not lasts:
                selector.unregister(found)
                secured.discard(found)
                found.close()


def main(certificate: str) -> None:
    allow_many_sockets()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    ports: list[list[int]] = []
    for protect in (None, context):
        ports.append([])
        for service in Service:
            listener = listening()
            ports[-1].append(listener.getsockname()[1])
            run = serve if service in SERVE else serve_simply
            thread = threading.Thread(target=run, args=(listener, service, protect), daemon=True)
            thread.start()
    print(json.dumps(ports), flush=True)
    sys.stdin.read()  # until the parent process ends


if __name__ == "__main__":
    main(*sys.argv[1:])
