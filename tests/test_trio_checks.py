"""trio's own checks of a half-closeable stream, on a socket.

They need trio's stream classes, method names and exceptions, so they use the adapter for trio,
which does little more than rename.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeAlias

import pytest
import trio
import trio.testing

from anyio_connect import Socket
from anyio_connect.adapters.trio import Stream
from support.sockets import raw, socket_pair
from support.tls_peers import TLS12, TLS13, tls_socket_pair

Maker: TypeAlias = Callable[[], Awaitable[tuple[Socket, Socket]]]
TrioMaker: TypeAlias = Callable[[], Awaitable[tuple[Stream, Stream]]]


def streams(pair: Maker) -> TrioMaker:
    async def make() -> tuple[Stream, Stream]:
        ours, theirs = await pair()
        return Stream(ours), Stream(theirs)

    return make


def clogged_streams(pair: Maker) -> TrioMaker:
    """Pairs in which neither side can send more until the other receives."""

    async def make() -> tuple[Stream, Stream]:
        ours, theirs = await streams(pair)()
        await clog(raw(ours.socket))
        await clog(raw(theirs.socket))
        return ours, theirs

    return make


async def clog(sock: socket.socket) -> None:
    # A full buffer may have room again soon, because loopback moves data to the other buffer with
    # a delay. And a small send may fit where a large one does not.
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
        # Not clogged: the bytes that fill the kernel's buffers would not be TLS records.
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
