"""Sockets that are dropped without a close(): freed at once, not by the garbage collector."""

from __future__ import annotations

import os
import socket as stdlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_connect import Connector, Socket, SocketError, connect, listen
from support.peers import Listener, Peer, listening
from support.sockets import raw
from support.tls_peers import NAME, TLSPeer, client_context, server_context
from support.turns import all_blocked

pytestmark = pytest.mark.usefixtures("no_collector")

#: More than the buffers of both kernels hold, if they are small.
BIG = 1024 * 1024


@contextmanager
def told_of(address: str) -> Iterator[None]:
    """Expect one warning about an unclosed connection to ``address``."""
    with pytest.warns(ResourceWarning, match=f"^unclosed connection to {address}: ") as warned:
        yield
    assert len(warned) == 1


def named(listener: Listener) -> str:
    host, port = listener.address
    return f"{host}:{port}"


async def opened(listener: Listener, **options: Any) -> tuple[Socket, Peer]:
    socket = connect(listener.address, **options)
    await socket.opened
    return socket, await listener.accept()


async def ended(peer: Peer) -> bool:
    with anyio.fail_after(10):
        return await peer.receive_all() == b""


async def test_a_dropped_socket_is_closed_with_a_warning() -> None:
    async with listening() as listener:
        socket, peer = await opened(listener)
        with told_of(named(listener)):
            del socket
        assert await ended(peer)


async def test_the_event_loop_forgets_a_dropped_socket() -> None:
    async with listening() as listener:
        socket, peer = await opened(listener)
        async with anyio.create_task_group() as group:
            group.start_soon(peer.send, b"x")
            assert await socket.receive() == b"x"
        number = raw(socket).fileno()
        with told_of(named(listener)):
            del socket
        assert await ended(peer)
        # A new socket with the same descriptor works: the old one is not registered any more.
        async with connect(listener.address) as newcomer:
            assert raw(newcomer).fileno() == number
            peer = await listener.accept()
            async with anyio.create_task_group() as group:
                group.start_soon(peer.send, b"y")
                assert await newcomer.receive() == b"y"


async def test_a_socket_that_is_dropped_as_soon_as_it_is_open() -> None:
    async with listening() as listener:
        with told_of(named(listener)):
            info = await connect(listener.address).opened
        assert info.remote_address == named(listener)
        assert await ended(await listener.accept())


async def test_a_dropped_socket_frees_its_slot() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        for _ in range(3):
            with told_of(named(listener)), anyio.fail_after(10):
                await connector.connect(listener.address).opened


async def test_a_closed_socket_that_raised_errors_is_dropped_without_a_warning() -> None:
    """The errors keep nothing alive."""
    async with listening() as listener:
        socket, peer = await opened(listener, allow_half_open=True)
        peer.fin()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        await socket.send_eof()
        await socket.closed
        with pytest.raises(SocketError):
            await socket.send(b"x")
        del socket


async def test_each_part_of_a_socket_keeps_it_alive() -> None:
    async with listening() as listener:
        for part in ("readable", "writable", "closed"):
            socket, peer = await opened(listener)
            kept = getattr(socket, part)
            del socket
            if part == "writable":
                await kept.send(b"x")
                assert await peer.receive() == b"x"
            with told_of(named(listener)):
                del kept
            assert await ended(peer)


async def test_a_settled_future_does_not_keep_the_socket_alive() -> None:
    async with listening() as listener:
        socket, peer = await opened(listener)
        future = socket.opened
        with told_of(named(listener)):
            del socket
        assert future.result().remote_address == named(listener)
        assert await ended(peer)


async def test_a_dropped_socket_over_tls() -> None:
    async with listening() as listener, anyio.create_task_group() as group:
        peers = []

        async def serve() -> None:
            peer = TLSPeer(await listener.accept(), server_context())
            peers.append(peer)
            await peer.shake()

        group.start_soon(serve)
        context = client_context()
        socket = connect(listener.address, secure_transport="on", sni=NAME, ssl_context=context)
        await socket.opened
        await socket.send(b"x")
        with told_of(named(listener)):
            del socket


@pytest.mark.parametrize("when", ["before", "after"])
async def test_dropping_the_sockets_of_start_tls(when: str) -> None:
    """Both sockets are dropped, before the handshake or after it."""
    async with listening() as listener:
        context = client_context()
        plain, peer = await opened(listener, secure_transport="starttls", ssl_context=context)
        secure = plain.start_tls(expected_server_hostname=NAME)
        if when == "after":
            async with anyio.create_task_group() as group:
                group.start_soon(TLSPeer(peer, server_context()).shake)
                await secure.opened
            del group
        del plain
        with told_of(named(listener)):
            del secure


async def test_a_send_in_flight_does_not_hang_if_the_socket_of_start_tls_is_dropped() -> None:
    async with listening(receive_buffer=4096) as listener:
        plain, peer = await opened(listener, secure_transport="starttls")
        raw(plain).setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 4096)
        async with anyio.create_task_group() as group:
            group.start_soon(plain.send, b"x" * BIG)
            await all_blocked()
            plain.start_tls()
            assert await peer.receive_exactly(BIG) == b"x" * BIG
        del group
        with told_of(named(listener)):
            del plain
        assert await ended(peer)


async def test_a_socket_that_was_never_open_is_dropped_without_a_warning() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        del socket
        plain = connect(listener.address, secure_transport="starttls")
        secure = plain.start_tls()
        del plain, secure


async def test_a_task_that_awaits_closed_keeps_the_socket_alive() -> None:
    async with listening() as listener:
        socket, peer = await opened(listener)
        scope = anyio.CancelScope()

        async def watch(future: Any) -> None:
            with scope:
                await future

        with told_of(named(listener)):
            async with anyio.create_task_group() as group:
                group.start_soon(watch, socket.closed)
                await all_blocked()
                del socket
                with pytest.raises(BlockingIOError):
                    peer.sock.recv(1)
                scope.cancel()
        assert await ended(peer)


@pytest.mark.parametrize("registered", [False, True])
async def test_a_socket_that_is_dropped_in_another_thread(registered: bool) -> None:
    async with listening() as listener:
        socket, peer = await opened(listener)
        if registered:
            async with anyio.create_task_group() as group:
                group.start_soon(peer.send, b"x")
                assert await socket.receive() == b"x"
        held = [socket]
        del socket
        with told_of(named(listener)):
            await anyio.to_thread.run_sync(held.clear)
        assert await ended(peer)


async def test_a_dropped_socket_that_a_listener_accepted() -> None:
    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:

        async def drop(socket: Socket) -> None:
            await socket.opened

        group.start_soon(listener.serve, drop)
        async with connect(listener.addresses[0]) as socket:
            with pytest.warns(ResourceWarning, match=r"^unclosed connection to 127\.0\.0\.1:"):
                await socket.closed
        group.cancel_scope.cancel()


def test_a_socket_that_is_dropped_after_its_event_loop_has_ended(anyio_backend: Any) -> None:
    backend, options = anyio_backend
    held: list[Socket] = []

    async def make() -> str:
        async with listening() as listener:
            socket, peer = await opened(listener)
            async with anyio.create_task_group() as group:
                group.start_soon(peer.send, b"x")
                assert await socket.receive() == b"x"
            held.append(socket)
            return named(listener)

    name = anyio.run(make, backend=backend, backend_options=options)
    with told_of(name):
        held.clear()


AT_EXIT = """
import asyncio, socket, sys, types
from anyio_connect import connect

server = socket.create_server(("127.0.0.1", 0))
loop = asyncio.new_event_loop()

async def receive():
    made = connect(server.getsockname())
    await made.opened
    peer = server.accept()[0]
    loop.call_later(0.01, peer.send, b"x")
    assert await made.receive() == b"x"
    return made, peer

# What is in a module lives until the interpreter clears its modules.
sys.modules["kept"] = types.ModuleType("kept")
sys.modules["kept"].kept = loop.run_until_complete(receive())
if sys.argv[1] == "closed":
    loop.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["open", "closed"])
def test_a_socket_that_lives_until_the_interpreter_ends_is_closed_then(loop: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", AT_EXIT, loop],
        # In its debug mode, asyncio fails itself if a loop lives until then.
        env={**os.environ, "PYTHONASYNCIODEBUG": ""},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr == ""
