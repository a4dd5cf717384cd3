"""trio's own checks of a half-closeable stream, on a socket.

They need trio's stream classes, method names and exceptions, so an adapter stands between.
Renaming is all it should do. Each line that does more is marked DEVIATION and explained.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeAlias

import anyio
import pytest
import trio
import trio.testing

from anyio_connect import Socket
from sockets import raw, socket_pair
from tls_peers import TLS12, TLS13, tls_socket_pair


@contextmanager
def trio_errors() -> Iterator[None]:
    """Rename AnyIO's exceptions to trio's: the same three, in other classes."""
    try:
        yield
    except anyio.BusyResourceError as exc:
        raise trio.BusyResourceError(str(exc)) from exc
    except anyio.ClosedResourceError as exc:
        raise trio.ClosedResourceError(str(exc)) from exc
    except anyio.BrokenResourceError as exc:
        raise trio.BrokenResourceError(str(exc)) from exc


class TrioStream(trio.abc.HalfCloseableStream):
    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        # DEVIATION: wait_send_all_might_not_block() is trio's alone. That it excludes, and is
        # excluded by, sending is checked, so the adapter that provides it has to guard it. The
        # lifecycle cannot: it does not know of the method.
        self.waiting = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.check_not_waiting()  # DEVIATION: see __init__
        with trio_errors():
            await self.socket.send(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with trio_errors():
            try:
                if max_bytes is None:
                    return await self.socket.receive()
                return await self.socket.receive(max_bytes)
            except anyio.EndOfStream:  # a rename, too: AnyIO's word for trio's b""
                return b""

    async def send_eof(self) -> None:
        self.check_not_waiting()  # DEVIATION: see __init__
        with trio_errors():
            await self.socket.send_eof()

    async def aclose(self) -> None:
        await self.socket.aclose()

    # DEVIATION, all of it: a socket has no such method. It is built from what it does have:
    # an empty send tells whether sending is allowed, and the kernel when there is room.
    async def wait_send_all_might_not_block(self) -> None:
        self.check_not_waiting()
        with trio_errors():
            await self.socket.send(b"")
            self.waiting = True
            try:
                await trio.lowlevel.wait_writable(raw(self.socket))
            finally:
                self.waiting = False
            await self.socket.send(b"")  # what woke it may have been our own end

    def check_not_waiting(self) -> None:
        if self.waiting:
            raise trio.BusyResourceError("another task waits for room")


Maker: TypeAlias = Callable[[], Awaitable[tuple[Socket, Socket]]]
TrioMaker: TypeAlias = Callable[[], Awaitable[tuple[TrioStream, TrioStream]]]


def streams(pair: Maker) -> TrioMaker:
    async def make() -> tuple[TrioStream, TrioStream]:
        ours, theirs = await pair()
        return TrioStream(ours), TrioStream(theirs)

    return make


def clogged_streams(pair: Maker) -> TrioMaker:
    """Pairs of which neither can send any more until the other receives."""

    async def make() -> tuple[TrioStream, TrioStream]:
        ours, theirs = await streams(pair)()
        await clog(raw(ours.socket))
        await clog(raw(theirs.socket))
        return ours, theirs

    return make


async def clog(sock: socket.socket) -> None:
    # Clogged is what stays so: loopback moves data on to the other buffer in its own time, and
    # where a large send no longer fits, a small one still may.
    filled = True
    while filled:
        filled = False
        for size in (65536, 1):
            with suppress(BlockingIOError):
                while True:
                    sock.send(bytes(size))
                    filled = True
        with trio.move_on_after(0.05):
            await trio.lowlevel.wait_writable(sock)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "clogged"),
    [
        pytest.param(socket_pair, False, id="tcp"),
        pytest.param(socket_pair, True, id="tcp-clogged"),
        # Not clogged: what fills the kernel from outside would be no TLS.
        pytest.param(partial(tls_socket_pair, TLS12), False, id="tls-1.2"),
        pytest.param(partial(tls_socket_pair, TLS13), False, id="tls-1.3"),
    ],
)
def test_check_half_closeable_stream(pair: Maker, clogged: bool) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            await trio.testing.check_half_closeable_stream(
                streams(pair), clogged_streams(pair) if clogged else None
            )

    trio.run(main)
