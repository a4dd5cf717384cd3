"""Allowed addresses, and connected sockets of the kernel's, for other libraries."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import http.client
import math
import os
import selectors
import signal
import socket as stdlib
import ssl
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ref

import anyio
import anyio.to_thread
import pytest
import trio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from anyio_connect import (
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    DetachError,
    EventLoopRunningError,
    InvalidAddressError,
    InvalidOptionError,
    LoopError,
    RefusedError,
    ResolveError,
    SocketAddress,
    _blocking,
    _dial,
    _raw,
    listen,
)
from anyio_connect._slots import Slots
from anyio_connect._tcp import TCPTransport
from support.peers import Peer, full, has_ipv6, listening, refusing_address
from support.proxies import ESTABLISHED, Line, Proxy, hear_http, proxying
from support.servers import echo, serving
from support.spying import slots
from support.tls_peers import NAME, TLSPeer, client_context, server_context
from support.turns import all_blocked

LOOPBACK = AddressPolicy(allow=["127.0.0.0/8"])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")


class Names(dict[str, Any]):
    """A name server of our own: host name -> list of (ip, port), an exception, or silence."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    async def getaddrinfo(self, host: str, port: int) -> list[Any]:
        await checkpoint()
        self.asked.set()
        answer = self[host]
        if answer == "silence":
            await anyio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        families = [stdlib.AF_INET6 if ":" in ip else stdlib.AF_INET for ip, _ in answer]
        return [
            (family, stdlib.SOCK_STREAM, 6, "", (ip, at or port, 0, 0)[: 4 if ":" in ip else 2])
            for family, (ip, at) in zip(families, answer, strict=True)
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(_dial, "getaddrinfo", names.getaddrinfo)
    return names


# --- resolve()


async def test_the_allowed_addresses_in_the_order_of_dialling(names: Names) -> None:
    addresses = ["2606:4700::1", "2606:4700::2", "10.0.0.1", "1.1.1.1", "1.1.1.2"]
    names["host.test"] = [(ip, 0) for ip in addresses]
    raced = ["2606:4700::1", "1.1.1.1", "2606:4700::2", "1.1.1.2"]
    assert await Connector(WORKERS).resolve("host.test", 443) == raced
    assert await Connector(WORKERS, local_host="10.0.0.2").resolve("HOST.test", 443) == raced[1::2]
    everything = ["2606:4700::1", "10.0.0.1", "2606:4700::2", "1.1.1.1", "1.1.1.2"]
    assert await Connector().resolve("host.test", 443) == everything


async def test_an_address_stands_for_itself() -> None:
    assert await Connector().resolve("127.0.0.1", 1) == ["127.0.0.1"]
    assert await Connector().resolve("::1", 1) == ["::1"]
    assert await Connector().resolve("[::1]", 1) == ["::1"]


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the interface is Linux's")
async def test_a_zone_is_kept() -> None:
    assert await Connector().resolve("fe80::1%lo", 1) == ["fe80::1%lo"]
    assert await Connector().resolve("fe80::1%1", 1) == ["fe80::1%lo"]


async def test_no_more_than_sixty_four(names: Names) -> None:
    names["host.test"] = [(f"192.0.2.{n}", 0) for n in range(200)]
    assert len(await Connector().resolve("host.test", 1)) == 64


async def test_what_resolving_fails_with(names: Names) -> None:
    names["nowhere.test"] = stdlib.gaierror(stdlib.EAI_NONAME, "no such name")
    names["private.test"] = [("10.0.0.1", 0), ("192.168.0.1", 0)]
    names["silent.test"] = "silence"
    names["public.test"] = [("1.1.1.1", 0)]
    connector = Connector(WORKERS)
    with pytest.raises(ResolveError, match=r"cannot resolve 'nowhere\.test'"):
        await connector.resolve("nowhere.test", 1)
    with pytest.raises(AddressNotAllowedError, match=r"10\.0\.0\.1.*192\.168\.0\.1"):
        await connector.resolve("private.test", 1)
    with pytest.raises(ConnectError, match="can only reach IPv6"):
        await Connector(local_host="::1").resolve("public.test", 1)
    for limited, options in (
        (Connector(connect_timeout=0.01), {}),
        (Connector(), {"connect_timeout": 0.01}),
        (Connector(connect_timeout=3600), {"connect_timeout": 0.01}),
    ):
        with pytest.raises(ConnectTimeoutError, match=r"not resolved within 0\.01 seconds"):
            await limited.resolve("silent.test", 1, **options)


async def test_a_forbidden_port_is_not_even_looked_up(names: Names) -> None:
    with pytest.raises(AddressNotAllowedError, match="port 25"):
        await Connector(WORKERS).resolve("host.test", 25)
    with pytest.raises(AddressNotAllowedError, match="port 25"):
        await Connector(WORKERS).connect_socket("host.test:25")
    assert not names.asked.is_set()


async def test_a_call_may_have_no_limit(names: Names) -> None:
    names["host.test"] = [("192.0.2.1", 0)]
    connector = Connector(connect_timeout=1e-9)
    found = await connector.resolve("host.test", 1, connect_timeout=math.inf)
    assert found == ["192.0.2.1"]


async def test_an_address_of_this_process_is_a_loop() -> None:
    connector = Connector(AddressPolicy(refuse_loops=True))
    async with await listen("127.0.0.1:0") as listener:
        port = int(listener.addresses[0].rpartition(":")[2])
        with pytest.raises(LoopError):
            await connector.resolve("127.0.0.1", port)


async def test_bad_input_raises_before_any_lookup(names: Names) -> None:
    connector = Connector()
    with pytest.raises(InvalidAddressError):
        await connector.resolve("127.1", 80)
    with pytest.raises(InvalidAddressError):
        await connector.resolve("host.test", 0)
    with pytest.raises(InvalidOptionError, match="connect_timeout"):
        await connector.resolve("host.test", 80, connect_timeout=0)
    for address in ("127.1:80", "host.test"):
        with pytest.raises(InvalidAddressError):
            await connector.connect_socket(address)
    with pytest.raises(InvalidOptionError, match="connect_timeout"):
        await connector.connect_socket("host.test:80", connect_timeout=-1)
    with pytest.raises(InvalidOptionError, match="keep_alive"):
        await connector.connect_socket("host.test:80", keep_alive=0.5)
    assert not names.asked.is_set()


async def test_a_policy_that_raises_forbids(names: Names) -> None:
    class Broken(AddressPolicy):
        def refusal(self, address: Any, port: int) -> str | None:
            raise ZeroDivisionError

    names["host.test"] = [("192.0.2.1", 0)]
    with pytest.raises(AddressNotAllowedError, match="raised ZeroDivisionError"):
        await Connector(Broken()).resolve("host.test", 1)


async def test_what_a_dialer_would_be_given_is_resolved_here(names: Names) -> None:
    async def dial(address: SocketAddress) -> ByteStream:
        raise AssertionError("nothing is dialled")

    names["host.test"] = [("192.0.2.1", 0)]
    assert await Connector(dialer=dial).resolve("host.test", 1) == ["192.0.2.1"]


async def test_it_resolves_for_another() -> None:
    """What it returns is what the ``resolver`` of another is to return."""

    async def look_up(host: str, port: int) -> list[str]:
        return ["10.0.0.1", "1.1.1.1"]

    public = Connector(WORKERS, resolver=look_up)
    assert await Connector(resolver=public.resolve).resolve("host.test", 1) == ["1.1.1.1"]


# --- connect_socket()


async def test_a_connected_socket_that_does_not_block() -> None:
    async with listening() as listener:
        with await Connector().connect_socket(listener.address) as sock:
            peer = await listener.accept()
            assert type(sock) is stdlib.socket
            assert (sock.family, sock.type) == (stdlib.AF_INET, stdlib.SOCK_STREAM)
            assert sock.gettimeout() == 0
            assert sock.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY)
            sock.send(b"ping")
            assert await peer.receive() == b"ping"
            await peer.send(b"pong")
            assert await Peer(sock).receive() == b"pong"
        assert await peer.receive_all() == b""


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_over_ipv6() -> None:
    async with listening("::1") as listener:
        host, port = listener.address
        with await Connector().connect_socket(f"[{host}]:{port}") as sock:
            assert sock.family == stdlib.AF_INET6
            assert sock.getpeername()[:2] == listener.address


async def test_keepalive_is_set_as_for_other_sockets() -> None:
    async with listening() as listener:
        for connector, options, wanted in (
            (Connector(), {}, True),
            (Connector(), {"keep_alive": math.inf}, False),
            (Connector(keep_alive=math.inf), {}, False),
            (Connector(keep_alive=math.inf), {"keep_alive": 5.0}, True),
        ):
            with await connector.connect_socket(listener.address, **options) as sock:
                assert bool(sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_KEEPALIVE)) == wanted
                if sys.platform == "linux":
                    # A limit for what is unacknowledged would end a peer that reads slowly.
                    assert not sock.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_USER_TIMEOUT)


async def test_the_addresses_are_raced_and_judged(names: Names) -> None:
    async with listening() as listener:
        host, port = listener.address
        names["host.test"] = [("10.0.0.1", port), refusing_address(), (host, port)]
        connector = Connector(LOOPBACK, happy_eyeballs_delay=3600)
        with anyio.fail_after(30):
            sock = await connector.connect_socket("host.test:1")
        with sock:
            assert sock.getpeername() == listener.address


async def test_what_connecting_fails_with(names: Names) -> None:
    names["nowhere.test"] = stdlib.gaierror(stdlib.EAI_NONAME, "no such name")
    names["silent.test"] = "silence"
    with pytest.raises(RefusedError, match="connection refused"):
        await Connector().connect_socket(refusing_address())
    with pytest.raises(ResolveError):
        await Connector().connect_socket("nowhere.test:1")
    with pytest.raises(AddressNotAllowedError, match="Loopback"):
        await Connector(WORKERS).connect_socket("127.0.0.1:1")
    with pytest.raises(ConnectTimeoutError, match=r"within 0\.01 seconds"):
        await Connector(connect_timeout=0.01).connect_socket("silent.test:1")
    async with await listen("127.0.0.1:0") as loop, full() as silent:
        with pytest.raises(LoopError):
            await Connector(AddressPolicy(refuse_loops=True)).connect_socket(loop.addresses[0])
        with pytest.raises(ConnectTimeoutError, match=r"no connection within 0\.01 seconds"):
            await Connector().connect_socket(silent.address, connect_timeout=0.01)


async def test_a_stream_of_a_dialers_is_no_socket() -> None:
    async with listening() as listener:
        host, port = listener.address
        streams: list[ByteStream] = []

        async def dial(address: SocketAddress) -> ByteStream:
            streams.append(await anyio.connect_tcp(host, port))
            return streams[-1]

        connector = Connector(dialer=dial, max_connections=1)
        for _ in range(2):
            with pytest.raises(DetachError, match="cannot be given away: it is no socket of the"):
                await connector.connect_socket("unix.test:1")
        assert slots(connector).free == 1
        for stream in streams:
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()


async def test_what_another_connector_dialled_keeps_the_slots_of_both() -> None:
    async with listening() as listener:
        inner = Connector(max_connections=3)

        async def dial(address: SocketAddress) -> ByteStream:
            return inner.connect(listener.address)

        outer = Connector(dialer=dial, max_connections=2)
        with await outer.connect_socket("host.test:1") as sock:
            assert sock.getpeername() == listener.address
            assert (slots(outer).free, slots(inner).free) == (1, 2)
        assert (slots(outer).free, slots(inner).free) == (2, 3)
        async with outer.connect("host.test:1") as socket:
            with socket.detach():
                assert (slots(outer).free, slots(inner).free) == (1, 2)
            assert (slots(outer).free, slots(inner).free) == (2, 3)


async def test_through_a_proxy() -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(ESTABLISHED + b"220 hello")
        await line.send(await line.receive_all())

    async with proxying(script) as proxy:
        connector = Connector(proxy=proxy.url("http"), max_connections=1)
        with await connector.connect_socket("mail.example:587") as sock:
            # What the target says first is received from it.
            assert await Peer(sock).receive_exactly(9) == b"220 hello"
            await Peer(sock).send(b"EHLO")
            sock.shutdown(stdlib.SHUT_WR)
            assert await Peer(sock).receive_all() == b"EHLO"
        assert slots(connector).free == 1


async def test_tls_to_a_proxy_is_no_socket() -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(ESTABLISHED)

    async with proxying(script, over_tls=True) as proxy:
        connector = Connector(proxy=proxy.url("https"), ssl_context=client_context())
        with pytest.raises(DetachError, match="cannot be given away: TLS is spoken on it"):
            await connector.connect_socket("mail.example:587")


async def test_a_connection_that_was_reset_at_once_is_no_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel has told of the reset, and would not tell it the next one who reads."""

    async def connect_and_be_reset(endpoint: Any, *_: Any) -> TCPTransport:
        await checkpoint()
        sock = stdlib.create_connection(endpoint.sockaddr)
        sock.setblocking(False)
        error = OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return TCPTransport(sock, remote=endpoint.sockaddr, error=error)

    monkeypatch.setattr(_dial, "_connect", connect_and_be_reset)
    connector = Connector(max_connections=1)
    async with listening() as listener:
        with pytest.raises(ConnectError, match="broke at once: Connection reset") as caught:
            await connector.connect_socket(listener.address)
        assert caught.value.errno == errno.ECONNRESET
        assert isinstance(caught.value.__cause__, OSError)
    assert slots(connector).free == 1


class Local:
    """What a caller's frame keeps alive."""


async def test_nothing_is_kept_of_a_failure(no_collector: None) -> None:
    async def fail(connector: Connector) -> ref[Local]:
        local = Local()
        with suppress(RefusedError, DetachError):
            await connector.connect_socket(refusing_address())
        return ref(local)

    async def dial(address: SocketAddress) -> ByteStream:
        return await anyio.connect_tcp(host, port)

    async with listening() as listener:
        host, port = listener.address
        for dialer in (None, dial):
            connector = Connector(max_connections=1, dialer=dialer)
            local = await fail(connector)
            # AnyIO's scope, in which the stream is closed, keeps its cancellation until then.
            await checkpoint()
            assert local() is None
            assert slots(connector).free == 1


# --- its slot


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
async def test_the_slot_comes_back_once(give_back: Callable[[stdlib.socket], None]) -> None:
    async with holding() as (connector, sock, _):
        assert isinstance(sock, stdlib.socket)
        give_back(sock)
        assert slots(connector).free == 1
        assert not slots(connector).holders


async def test_a_dropped_one_gives_it_back() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        sock = await connector.connect_socket(listener.address)
        with pytest.warns(ResourceWarning, match="unclosed <"):
            del sock
        gc.collect()  # for Pythons that do not count references
        assert slots(connector).free == 1


async def test_a_file_keeps_it_until_that_is_closed_too() -> None:
    """As http.client has it: it closes the socket, and reads on from the file."""
    async with holding() as (connector, sock, peer):
        sock.setblocking(True)
        file = sock.makefile("rb")
        sock.close()
        assert slots(connector).free == 0
        await peer.send(b"still here\n")
        assert file.readline() == b"still here\n"
        file.close()
        assert slots(connector).free == 1


async def test_the_next_gets_it() -> None:
    async with holding() as (connector, sock, peer), anyio.create_task_group() as group:
        address = sock.getpeername()
        following = connector.connect(address, task_group=group)
        await all_blocked()
        assert not following.opened.done()
        # The peer's end does not free it: the descriptor is in use.
        peer.close()
        await all_blocked()
        assert not following.opened.done()
        await anyio.to_thread.run_sync(sock.close)  # in any thread
        with anyio.fail_after(10):
            await following.opened
        await following.close()


async def test_it_waits_for_one() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        async with connector.connect(listener.address):
            with pytest.raises(ConnectTimeoutError, match="no slot came free within"):
                await connector.connect_socket(listener.address, connect_timeout=0.01)
        (await connector.connect_socket(listener.address)).close()
        assert slots(connector).free == 1


async def test_tls_by_the_standard_library_gives_it_back_early() -> None:
    """``wrap_socket()`` calls ``detach()``, and makes a socket of its own of the descriptor."""
    async with holding() as (connector, sock, peer):
        with client_context().wrap_socket(
            sock, server_hostname=NAME, do_handshake_on_connect=False
        ) as tls:
            assert slots(connector).free == 1
            assert tls.getpeername() == peer.sock.getsockname()


async def test_a_copy_has_none() -> None:
    async with holding() as (connector, sock, peer):
        with sock.dup() as copy:
            sock.close()
            assert slots(connector).free == 1
            copy.send(b"still open")
            assert await peer.receive() == b"still open"


async def test_no_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, *args: object, **kwargs: object) -> None:
        raise MemoryError

    async with listening() as listener:
        connector = Connector(max_connections=1)
        monkeypatch.setattr(_raw.SlotSocket, "__init__", fail)
        with pytest.raises(MemoryError):
            await connector.connect_socket(listener.address)
        assert slots(connector).free == 1
        assert await (await listener.accept()).receive_all() == b""


async def test_trio_takes_it_without_its_slot() -> None:
    async with holding() as (connector, sock, _):
        with pytest.raises(TypeError, match=r"expected object of type 'socket\.socket'"):
            trio.socket.from_stdlib_socket(sock)
        plain = stdlib.socket(fileno=sock.detach())
        assert slots(connector).free == 1
        with trio.socket.from_stdlib_socket(plain):
            pass


async def test_asyncio_gives_it_back_when_it_closes_its_tls() -> None:
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


async def test_asyncio_gives_it_back_when_it_closes() -> None:
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


BEGINNING = """
import os, socket, threading
import anyio
from anyio_connect import Connector, _dial

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
    """Run a program that forks, in a process of its own."""
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
def test_a_forked_child_does_not_go_on_with_what_other_threads_dial(tmp_path: Path) -> None:
    program = """
    asked, answer = threading.Event(), threading.Event()

    async def getaddrinfo(host, port):
        asked.set()
        while not answer.is_set():
            await anyio.sleep(0.001)
        return socket.getaddrinfo("127.0.0.1", server.getsockname()[1], type=socket.SOCK_STREAM)

    _dial.getaddrinfo = getaddrinfo
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


# --- connect_socket_blocking()


def test_a_thread_without_an_event_loop() -> None:
    connector = Connector(LOOPBACK, max_connections=1)
    with serving(echo) as address, connector.connect_socket_blocking(address) as sock:
        # The thread in which it was made has ended.
        assert not [t for t in threading.enumerate() if "anyio_connect" in t.name]
        assert sock.gettimeout() is None
        assert sock.getblocking()
        sock.sendall(b"hello")
        assert sock.recv(10) == b"hello"
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()


def test_without_a_limit_it_is_a_plain_socket() -> None:
    with serving(echo) as address, Connector().connect_socket_blocking(address) as sock:
        assert type(sock) is stdlib.socket


def test_http_client_takes_it() -> None:
    def answer(connection: stdlib.socket) -> None:
        while b"\r\n\r\n" not in connection.recv(65536):
            pass
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")

    connector = Connector(LOOPBACK, max_connections=1)
    with serving(answer) as address:
        client = http.client.HTTPConnection("host.test")
        client.sock = connector.connect_socket_blocking(address)
        client.request("GET", "/")
        response = client.getresponse()
        assert slots(connector).free == 0
        assert response.read() == b"hello"
        client.close()
        assert slots(connector).free == 1


def test_tls_by_the_standard_library() -> None:
    def secure(connection: stdlib.socket) -> None:
        with server_context().wrap_socket(connection, server_side=True) as tls:
            echo(tls)

    with serving(secure) as address:
        sock = Connector().connect_socket_blocking(address)
        with client_context().wrap_socket(sock, server_hostname=NAME) as tls:
            tls.sendall(b"hello")
            assert tls.recv(10) == b"hello"
            with suppress(ssl.SSLError, OSError):
                tls.unwrap()


def test_what_it_fails_with(names: Names) -> None:
    names["nowhere.test"] = stdlib.gaierror(stdlib.EAI_NONAME, "no such name")
    names["silent.test"] = "silence"
    connector = Connector(max_connections=1)
    with pytest.raises(RefusedError, match="connection refused"):
        connector.connect_socket_blocking(refusing_address())
    with pytest.raises(ResolveError):
        connector.connect_socket_blocking("nowhere.test:1")
    with pytest.raises(ConnectTimeoutError, match=r"not resolved within 0\.01"):
        connector.connect_socket_blocking("silent.test:1", connect_timeout=0.01)
    with pytest.raises(AddressNotAllowedError):
        Connector(WORKERS).connect_socket_blocking("127.0.0.1:1")
    with pytest.raises(InvalidAddressError):
        connector.connect_socket_blocking("127.1:1")
    with pytest.raises(InvalidOptionError):
        connector.connect_socket_blocking("host.test:1", connect_timeout=0)
    assert slots(connector).free == 1


def test_the_addresses_are_raced(names: Names) -> None:
    with serving(echo) as address:
        host, _, port = address.rpartition(":")
        names["host.test"] = [refusing_address(), refusing_address(), (host, int(port))]
        connector = Connector(happy_eyeballs_delay=3600)
        with connector.connect_socket_blocking("host.test:1", connect_timeout=30) as sock:
            assert sock.getpeername() == (host, int(port))


def test_nothing_is_kept_in_a_thread_either(no_collector: None) -> None:
    def fail() -> ref[Local]:
        local = Local()
        with suppress(RefusedError):
            Connector().connect_socket_blocking(refusing_address())
        return ref(local)

    assert fail()() is None


def test_threads_share_the_slots() -> None:
    connector = Connector(max_connections=2)
    open_now: list[int] = []

    def use(address: str) -> None:
        with connector.connect_socket_blocking(address) as sock:
            open_now.append(2 - slots(connector).free)
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"

    with serving(echo) as address:
        threads = [threading.Thread(target=use, args=(address,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(open_now) == 12
    assert max(open_now) == 2
    assert slots(connector).free == 2


async def test_refused_where_an_event_loop_runs() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        with pytest.raises(EventLoopRunningError, match=r"await connect_socket\(\)"):
            connector.connect_socket_blocking(listener.address)
        # Bad input is told before that.
        with pytest.raises(InvalidAddressError):
            connector.connect_socket_blocking("127.1:1")
        assert slots(connector).free == 1


async def test_refused_in_a_callback() -> None:
    if trio.lowlevel.in_trio_run():
        return  # where a callback has no way to tell what it raised
    called: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def callback() -> None:
        try:
            Connector().connect_socket_blocking("127.0.0.1:1")
        except EventLoopRunningError as exc:
            called.set_exception(exc)

    asyncio.get_running_loop().call_soon(callback, context=contextvars.Context())
    with pytest.raises(EventLoopRunningError):
        await called


async def test_a_worker_thread_of_an_event_loop() -> None:
    """Whatever that thread has been told of the event loop that it works for."""
    async with listening() as listener:
        connect = partial(Connector().connect_socket_blocking, listener.address)
        if trio.lowlevel.in_trio_run():
            runs: list[Any] = [anyio.to_thread.run_sync, trio.to_thread.run_sync]
        else:
            runs = [anyio.to_thread.run_sync, asyncio.to_thread]
        for run in runs:
            sock: stdlib.socket = await run(connect)
            with sock:
                assert sock.getpeername() == listener.address


async def test_it_waits_for_the_slot_of_an_event_loops_socket() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        holder = connector.connect(listener.address)
        await holder.opened
        made: list[stdlib.socket] = []

        async def connect() -> None:
            blocking = partial(connector.connect_socket_blocking, listener.address)
            made.append(await anyio.to_thread.run_sync(blocking))

        async with anyio.create_task_group() as threads:
            threads.start_soon(connect)
            await anyio.to_thread.run_sync(wait_for_queue, slots(connector))
            assert not made
            await holder.close()
        made[0].close()
        assert slots(connector).free == 1


def wait_for_queue(slots: Slots) -> None:
    """In a thread: wait until somebody waits for a slot."""
    while not slots.queue:
        threading.Event().wait(0.001)


def test_the_policy_is_asked_in_the_callers_context() -> None:
    user = contextvars.ContextVar("user", default="nobody")

    class Personal(AddressPolicy):
        def refusal(self, address: Any, port: int) -> str | None:
            return f"not for {user.get()}"

    user.set("alice")
    with pytest.raises(AddressNotAllowedError, match="not for alice"):
        Connector(Personal()).connect_socket_blocking("127.0.0.1:1")


def test_what_the_connector_calls_is_called_in_one_other_thread() -> None:
    called: dict[str, int] = {}

    async def resolver(host: str, port: int) -> list[str]:
        assert isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
        called["resolver"] = threading.get_ident()
        return ["127.0.0.1"]

    def prepare(sock: stdlib.socket) -> None:
        called["prepare"] = threading.get_ident()

    with serving(echo) as address:
        port = int(address.rpartition(":")[2])
        connector = Connector(resolver=resolver, prepare=prepare)
        connector.connect_socket_blocking(("host.test", port)).close()
    assert [*called] == ["resolver", "prepare"]
    assert len({*called.values(), threading.get_ident()}) == 2


def test_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    connector = Connector(max_connections=1)
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ConnectError, match=r"cannot connect to 127\.0\.0\.1:1: can't start"):
        connector.connect_socket_blocking("127.0.0.1:1")
    monkeypatch.undo()
    assert slots(connector).free == 1


def test_no_event_loop_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loop(selector: selectors.BaseSelector) -> asyncio.AbstractEventLoop:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(asyncio, "SelectorEventLoop", no_loop)
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1: Too many open files") as caught:
        Connector().connect_socket_blocking("127.0.0.1:1")
    assert caught.value.errno == errno.EMFILE


# --- interrupted


@contextmanager
def interrupted(when: threading.Event) -> Iterator[None]:
    """Have this thread interrupted, as by Ctrl-C, once the event has come."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread is interrupted")

    def interrupt() -> None:
        when.wait()
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        when.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="has no pthread_kill()")


@needs_kill
def test_interrupted_while_it_resolves(names: Names) -> None:
    names["silent.test"] = "silence"
    connector = Connector(max_connections=1)
    threads = threading.active_count()
    with interrupted(names.asked):
        connector.connect_socket_blocking("silent.test:1")
    assert slots(connector).free == 1
    assert threading.active_count() == threads


@needs_kill
def test_interrupted_while_it_waits_for_a_slot() -> None:
    connector = Connector(max_connections=1)
    threads = threading.active_count()
    with stdlib.create_server(("127.0.0.1", 0)) as server:
        with connector.connect_socket_blocking(server.getsockname()):
            queued = threading.Event()

            def watch() -> None:
                wait_for_queue(slots(connector))
                queued.set()

            watcher = threading.Thread(target=watch)
            watcher.start()
            with interrupted(queued):
                connector.connect_socket_blocking(server.getsockname())
            watcher.join()
            assert not slots(connector).queue
        assert slots(connector).free == 1
    assert threading.active_count() == threads


class Made:
    """Something that is made, and dropped."""

    def __init__(self) -> None:
        self.dropped = 0

    def drop(self) -> None:
        self.dropped += 1


async def make() -> Made:
    return Made()


def test_what_was_made_by_then_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt comes between the end of the work and the return."""
    made: list[Made] = []

    async def function() -> Made:
        made.append(Made())
        return made[-1]

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            super().wait(timeout)
            if not interrupts:
                return True
            raise interrupts.pop()

    interrupts: list[BaseException] = [KeyboardInterrupt()]
    call: _blocking._Call[Made] = _blocking._Call(function, Made.drop)
    monkeypatch.setattr(_blocking, "_Call", lambda *_: call)
    call.over = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        _blocking.wait_for(function, Made.drop)
    assert [thing.dropped for thing in made] == [1]


@needs_kill
def test_what_is_made_after_that_is_dropped() -> None:
    made: list[Made] = []
    begun = threading.Event()

    async def function() -> Made:
        with suppress(anyio.get_cancelled_exc_class()):
            begun.set()
            await anyio.sleep_forever()
        made.append(Made())
        return made[-1]

    with interrupted(begun):
        _blocking.wait_for(function, Made.drop)
    assert [thing.dropped for thing in made] == [1]


def test_what_was_given_up_before_it_began_does_not_begin() -> None:
    async def function() -> None:
        raise AssertionError("it was given up")

    call: _blocking._Call[None] = _blocking._Call(function, print)
    assert not call.cancel()
    call.run()
    assert call.over.is_set()
    assert not call._made
    assert call._error is None


def test_what_it_returns_and_raises() -> None:
    async def fail() -> Made:
        await checkpoint()
        raise ZeroDivisionError

    made = _blocking.wait_for(make, Made.drop)
    assert made.dropped == 0
    with pytest.raises(ZeroDivisionError):
        _blocking.wait_for(fail, Made.drop)
