"""When the slot of a socket from ``connect_socket()`` is free again."""

from __future__ import annotations

import asyncio
import gc
import os
import socket as stdlib
import ssl
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import trio

from anyio_connect import (
    Connector,
    ConnectTimeoutError,
    _raw,
)
from support.peers import Peer, listening
from support.spying import slots
from support.tls_peers import NAME, TLSPeer, client_context, server_context
from support.turns import all_blocked


@asynccontextmanager
async def holding() -> AsyncIterator[tuple[Connector, stdlib.socket, Peer]]:
    """A socket that holds the only slot."""
    async with listening() as listener:
        connector = Connector(max_connections=1)
        sock = await connector.connect_socket(listener.address)
        try:
            assert slots(connector).free == 0
            yield connector, sock, await listener.accept()
        finally:
            sock.close()


def close(sock: stdlib.socket) -> None:
    sock.close()


def close_twice(sock: stdlib.socket) -> None:
    sock.close()
    sock.close()


def leave(sock: stdlib.socket) -> None:
    with sock:
        pass


def detach(sock: stdlib.socket) -> None:
    stdlib.close(sock.detach())


def detach_and_close(sock: stdlib.socket) -> None:
    stdlib.close(sock.detach())
    sock.close()


@pytest.mark.parametrize("give_back", [close, close_twice, leave, detach, detach_and_close])
async def test_the_slot_is_freed_once(give_back: Callable[[stdlib.socket], None]) -> None:
    async with holding() as (connector, sock, _):
        assert isinstance(sock, stdlib.socket)
        give_back(sock)
        assert slots(connector).free == 1
        assert not slots(connector).holders


async def test_a_dropped_socket_frees_the_slot() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        sock = await connector.connect_socket(listener.address)
        with pytest.warns(ResourceWarning, match="unclosed <"):
            del sock
        gc.collect()  # for a Python that does not count references
        assert slots(connector).free == 1


async def test_a_file_of_the_socket_holds_the_slot_until_it_is_closed() -> None:
    """As in http.client, which closes the socket and goes on reading from the file."""
    async with holding() as (connector, sock, peer):
        sock.setblocking(True)
        file = sock.makefile("rb")
        sock.close()
        assert slots(connector).free == 0
        await peer.send(b"still here\n")
        assert file.readline() == b"still here\n"
        file.close()
        assert slots(connector).free == 1


async def test_the_next_waiting_task_gets_the_slot() -> None:
    async with holding() as (connector, sock, peer), anyio.create_task_group() as group:
        address = sock.getpeername()
        following = connector.connect(address, task_group=group)
        await all_blocked()
        assert not following.opened.done()
        # The peer's end does not free the slot, because the descriptor is in use.
        peer.close()
        await all_blocked()
        assert not following.opened.done()
        await anyio.to_thread.run_sync(sock.close)  # any thread may close it
        with anyio.fail_after(10):
            await following.opened
        await following.close()


async def test_connect_socket_waits_for_a_slot() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        async with connector.connect(listener.address):
            with pytest.raises(ConnectTimeoutError, match="no slot came free within"):
                await connector.connect_socket(listener.address, connect_timeout=0.01)
        (await connector.connect_socket(listener.address)).close()
        assert slots(connector).free == 1


async def test_tls_of_the_standard_library_frees_the_slot_early() -> None:
    """``wrap_socket()`` calls ``detach()``, and makes a new socket from the descriptor."""
    async with holding() as (connector, sock, peer):
        with client_context().wrap_socket(
            sock, server_hostname=NAME, do_handshake_on_connect=False
        ) as tls:
            assert slots(connector).free == 1
            assert tls.getpeername() == peer.sock.getsockname()


async def test_a_copy_holds_no_slot() -> None:
    async with holding() as (connector, sock, peer):
        with sock.dup() as copy:
            sock.close()
            assert slots(connector).free == 1
            copy.send(b"still open")
            assert await peer.receive() == b"still open"


async def test_a_socket_for_which_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, *args: object, **kwargs: object) -> None:
        raise MemoryError

    async with listening() as listener:
        connector = Connector(max_connections=1)
        monkeypatch.setattr(_raw.SlotSocket, "__init__", fail)
        with pytest.raises(MemoryError):
            await connector.connect_socket(listener.address)
        assert slots(connector).free == 1
        assert await (await listener.accept()).receive_all() == b""


async def test_trio_takes_the_socket_without_its_slot() -> None:
    async with holding() as (connector, sock, _):
        with pytest.raises(TypeError, match=r"expected object of type 'socket\.socket'"):
            trio.socket.from_stdlib_socket(sock)
        plain = stdlib.socket(fileno=sock.detach())
        assert slots(connector).free == 1
        with trio.socket.from_stdlib_socket(plain):
            pass


async def test_asyncio_frees_the_slot_when_it_closes_its_tls() -> None:
    if trio.lowlevel.in_trio_run():
        return
    async with holding() as (connector, sock, peer):
        tls = TLSPeer(peer, server_context())
        async with anyio.create_task_group() as group:
            group.start_soon(tls.shake)
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=client_context(), server_hostname=NAME
            )
        await tls.send(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert slots(connector).free == 0
        writer.close()
        peer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
        assert slots(connector).free == 1


async def test_asyncio_frees_the_slot_when_it_closes() -> None:
    if trio.lowlevel.in_trio_run():
        return
    async with holding() as (connector, sock, peer):
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(b"ping")
        assert await peer.receive_exactly(4) == b"ping"
        await peer.send(b"pong")
        assert await reader.readexactly(4) == b"pong"
        assert slots(connector).free == 0
        writer.close()
        await writer.wait_closed()
        assert slots(connector).free == 1
        assert await peer.receive_all() == b""


# --- after a fork


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")


BEGINNING = """
import os, socket, threading
import anyio
from anyio_connect import Connector, _lookup

server = socket.create_server(("127.0.0.1", 0))
connector = Connector(max_connections=2)
slots = vars(connector)["_slots"]

def connect():
    return connector.connect_socket_blocking(server.getsockname())

def in_child(function):
    child = os.fork()
    if not child:
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def run(program: str, tmp_path: Path) -> None:
    """Run a program that forks, in another process."""
    file = tmp_path / "program.py"
    text = BEGINNING + textwrap.dedent(program) + "print('done')\n"
    file.write_text(text, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", file],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert ended.stdout == "done\n", ended.stderr


@needs_fork
def test_a_forked_child_counts_for_itself(tmp_path: Path) -> None:
    program = """
    first, second = connect(), connect()
    waiting = threading.Thread(target=lambda: connect().close())
    waiting.start()
    while not slots.queue:
        pass

    def child():
        assert (slots.free, len(slots.queue), len(slots.holders)) == (0, 0, 2)
        first.close()
        assert slots.free == 1
        connect().close()
        second.close()
        assert slots.free == 2

    in_child(child)
    assert (slots.free, len(slots.queue)) == (0, 1)
    first.close()
    waiting.join()
    second.close()
    assert slots.free == 2
    """
    run(program, tmp_path)


@needs_fork
def test_a_forked_child_does_not_continue_the_dials_of_other_threads(tmp_path: Path) -> None:
    program = """
    asked, answer = threading.Event(), threading.Event()

    async def getaddrinfo(host, port):
        asked.set()
        while not answer.is_set():
            await anyio.sleep(0.001)
        return socket.getaddrinfo("127.0.0.1", server.getsockname()[1], type=socket.SOCK_STREAM)

    _lookup.getaddrinfo = getaddrinfo
    dial = lambda: connector.connect_socket_blocking("host.test:1").close()
    thread = threading.Thread(target=dial)
    thread.start()
    asked.wait()
    held = connect()
    assert slots.free == 0

    def child():
        assert slots.free == 1
        connect().close()
        held.close()
        assert slots.free == 2

    in_child(child)
    assert slots.free == 0
    answer.set()
    thread.join()
    assert slots.free == 1
    held.close()
    assert slots.free == 2
    """
    run(program, tmp_path)
