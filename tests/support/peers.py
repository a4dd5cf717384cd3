"""The other end: a TCP peer that does exactly what a test tells it to.

It uses raw sockets in the same event loop, and shares no code with the package. So a mistake in
the package cannot hide here.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import cycle

import anyio
import pytest


class Peer:
    """One accepted connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self.sock)

    async def fill(self) -> int:
        """Send until neither kernel accepts more data; return the number of bytes."""
        sent = 0
        while True:
            try:
                sent += self.sock.send(bytes(65536))
            except BlockingIOError:
                # Loopback needs some time to move the data into the other buffer.
                with anyio.move_on_after(0.05):
                    await anyio.wait_writable(self.sock)
                    continue
                return sent

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next data; b"" at the end."""
        while True:
            try:
                return self.sock.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self.sock)

    async def receive_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            chunk = await self.receive(min(count - len(data), 65536))
            assert chunk, f"the end came after {len(data)} of {count} bytes"
            data += chunk
        return bytes(data)

    async def receive_all(self) -> bytes:
        """All data up to a clean end. A reset raises ConnectionResetError."""
        chunks = []
        while chunk := await self.receive():
            chunks.append(chunk)
        return b"".join(chunks)

    def fin(self) -> None:
        """End this side; go on receiving."""
        self.sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        """Reset the connection."""
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        if self.sock.fileno() != -1:
            anyio.notify_closing(self.sock)
            self.sock.close()


def under_way(sock: socket.socket) -> int:
    """How many packets were sent and not acknowledged yet.

    Data for which the peer has no room does not count, because it was not sent. Only Linux reports
    this. Loopback needs some time to deliver.
    """
    if sys.platform != "linux" or sock.fileno() < 0:
        return 0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int.from_bytes(info[24:], sys.byteorder)  # tcpi_unacked: see linux/tcp.h


class Listener:
    """A listening socket on loopback. Accepted peers are closed together with it."""

    def __init__(self, host: str = "127.0.0.1", *, receive_buffer: int | None = None) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.setblocking(False)
        self.sock.bind((host, 0))
        self.sock.listen(128)
        self.peers: list[Peer] = []

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.sock.getsockname()[:2]
        return host, port

    async def accept(self) -> Peer:
        while True:
            try:
                sock, _ = self.sock.accept()
            except BlockingIOError:
                await anyio.wait_readable(self.sock)
            else:
                peer = Peer(sock)
                self.peers.append(peer)
                return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        if self.sock.fileno() != -1:
            anyio.notify_closing(self.sock)
            self.sock.close()


@asynccontextmanager
async def listening(
    host: str = "127.0.0.1", *, receive_buffer: int | None = None
) -> AsyncIterator[Listener]:
    listener = Listener(host, receive_buffer=receive_buffer)
    try:
        yield listener
    finally:
        listener.close()


@asynccontextmanager
async def full() -> AsyncIterator[Listener]:
    """A listener whose backlog is full: Linux leaves further SYNs unanswered."""
    async with listening() as listener:
        with full_backlog(listener.sock):
            yield listener


@contextmanager
def full_backlog(listening: socket.socket) -> Iterator[None]:
    """Fill the backlog of a socket that listens: Linux leaves further SYNs unanswered."""
    listening.listen(0)
    with socket.socket() as first, socket.socket() as second:
        first.connect(listening.getsockname())
        # A place in the backlog is taken only when the last packet of the handshake has arrived.
        assert select.select([listening], [], [], 5)[0]
        second.setblocking(False)
        second.connect_ex(listening.getsockname())
        yield


def _bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


#: Bound but not listening, as long as the tests run. At a port that was only free a moment ago,
#: another process may listen now, for example another test process.
_REFUSING = cycle([_bound() for _ in range(3)])


def refusing_address() -> tuple[str, int]:
    """An address where nothing listens, different from the last two."""
    host, port = next(_REFUSING).getsockname()
    return host, port


def has_ipv6() -> bool:
    """Whether this machine can listen on IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError as exc:
        if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return False
        raise
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
