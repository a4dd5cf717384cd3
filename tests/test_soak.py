"""Thousands of sockets, ended in every way, leave nothing behind."""

from __future__ import annotations

import gc
import os
import random
import ssl
import tracemalloc
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from anyio.abc import SocketAttribute

from anyio_connect import (
    Connector,
    Socket,
    SocketError,
    connect,
    listen,
)
from support import guards
from support.peers import Peer, listening
from support.tls_peers import (
    NAME,
    TLSPeer,
    client_context,
    server_context,
)


@dataclass
class Soak:
    """What all sockets share."""

    chance: random.Random
    address: tuple[str, int]  # of a peer that does what the first byte says
    listener: tuple[str, int]  # of a listener of ours, which answers
    connector: Connector

    def connect(self, **options: Any) -> Socket:
        return connect(self.address, allow_half_open=self.chance.random() < 0.5, **options)


async def never_open(soak: Soak) -> None:
    await soak.connect().close()


async def cancel_the_dial(soak: Soak) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await soak.connect().opened


async def speak_tls(soak: Soak) -> None:
    async with soak.connect(**TLS) as socket:
        await socket.send(b"in secret")


async def upgrade(soak: Soak) -> None:
    plain = soak.connect(**{**TLS, "secure_transport": "starttls"})
    await plain.send(b"t")
    await plain.receive(1)
    async with plain.start_tls() as socket:
        await socket.send(b"in secret")


async def change_your_mind(soak: Soak) -> None:
    async with soak.connect() as socket:
        await socket.writable.abort("a change of mind")


async def be_reset(soak: Soak) -> None:
    async with soak.connect() as socket:
        await socket.send(b"r")
        await socket.receive()


async def read_to_the_end(soak: Soak) -> None:
    async with soak.connect() as socket:
        await socket.send(b"e")
        if soak.chance.random() < 0.5:
            await socket.send_eof()
        while True:
            await socket.receive()


async def watch_for_the_end(soak: Soak) -> None:
    async with soak.connect() as socket:
        await socket.send(b"e")
        await socket.receive()
        if soak.chance.random() < 0.5:
            await socket.send_eof()
        else:
            await socket.readable.aclose()
            await socket.writable.aclose()
        await socket.closed


async def pipe(soak: Soak) -> None:
    async with soak.connect() as source, soak.connect() as target:
        await target.send(b"x")
        await source.send(b"e")
        await source.readable.pipe_to(target)


async def take_turns(soak: Soak) -> None:
    async with soak.connector.connect(soak.listener) as socket:
        await socket.send(b"ask")
        await socket.receive()


WAYS = [
    never_open,
    cancel_the_dial,
    speak_tls,
    upgrade,
    change_your_mind,
    be_reset,
    read_to_the_end,
    watch_for_the_end,
    pipe,
    take_turns,
]


async def do_as_told(peer: Peer) -> None:
    with suppress(OSError, ssl.SSLError, anyio.EndOfStream):
        first = await peer.receive(1)
        if first == b"t":
            await peer.send(b"!")
            first = await peer.receive(1)
        if first == b"\x16":  # a ClientHello
            secure = TLSPeer(peer, SERVER)
            secure.server.incoming.write(first)
            await secure.shake()
            await secure.receive()
        elif first == b"e":
            await peer.send(b"echo")
            peer.fin()
            await peer.receive()
        elif first == b"r":
            peer.rst()
        elif first == b"x":
            await peer.receive_all()
    peer.close()


async def answer(socket: Socket) -> None:
    async with socket:
        with suppress(SocketError, anyio.EndOfStream):
            await socket.send(await socket.receive())
            await socket.receive()


async def use(chance: random.Random, count: int) -> None:
    """Open ``count`` sockets, and end each in a random way; ten at a time."""
    async with (
        listening() as peers,
        await listen("127.0.0.1:0") as listener,
        anyio.create_task_group() as group,
    ):

        async def accept() -> None:
            while True:
                peer = await peers.accept()
                peers.peers.clear()  # each is closed by its task
                group.start_soon(do_as_told, peer)

        group.start_soon(accept)
        group.start_soon(listener.serve, answer, group)
        ours = listener.extra(SocketAttribute.local_address)
        soak = Soak(chance, peers.address, (ours[0], int(ours[1])), Connector(max_connections=2))
        left = count

        async def one_after_another() -> None:
            nonlocal left
            while left:
                left -= 1
                with suppress(SocketError, anyio.EndOfStream):
                    await chance.choice(WAYS)(soak)

        async with anyio.create_task_group() as users:
            for _ in range(10):
                users.start_soon(one_after_another)
        group.cancel_scope.cancel()


def objects() -> int:
    gc.collect()
    return sum(not is_stale_deadline(thing) for thing in gc.get_objects())


def is_stale_deadline(thing: object) -> bool:
    """Trio keeps up to a thousand expired deadlines, each as a cancel scope in a tuple."""
    scope = thing[-1] if type(thing) is tuple and len(thing) == 3 else thing
    return type(scope) is trio.CancelScope


def resident() -> int:
    """The resident memory of this process, in bytes; 0 if the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


async def soak() -> None:
    """Use many sockets, and see that objects, memory and descriptors do not grow."""
    chance = random.Random(0)
    await use(chance, 300)  # this fills the caches
    descriptors = guards.open_fds() if guards.CAN_LIST_FDS else None
    for _ in range(3):  # a leak grows each time, but a cache is filled only once
        before, memory = objects(), resident()
        await use(chance, SOAK)
        grown, more = objects() - before, resident() - memory
        if grown < 50 and more < 4 << 20:
            break
    assert grown < 50, f"{grown} objects are left of {SOAK} sockets"
    assert more < 4 << 20, f"{more} bytes of memory are left of {SOAK} sockets"
    # This also finds memory that the garbage collector does not track. All caches are full now.
    tracemalloc.start()
    try:
        await use(chance, SOAK // 3)
        objects()
        kept, _ = tracemalloc.get_traced_memory()
        await use(chance, SOAK // 3)
        objects()
        more = tracemalloc.get_traced_memory()[0] - kept
    finally:
        tracemalloc.stop()
    assert more < 32 << 10, f"{more} bytes are left of {SOAK // 3} sockets"
    if descriptors is not None:
        assert not guards.leaked_fds(descriptors)


TLS: dict[str, Any] = {"secure_transport": "on", "sni": NAME, "ssl_context": client_context()}
SERVER = server_context()

#: How many sockets in each round; `nox -s soak` asks for many more.
SOAK = int(os.environ.get("ANYIO_CONNECT_SOAK", "1000"))


@pytest.mark.slow
def test_soak(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    backend, options = anyio_backend
    if backend == "asyncio":  # its debug mode would take most of the time
        options = {**options, "debug": False}
    anyio.run(soak, backend=backend, backend_options=options)
