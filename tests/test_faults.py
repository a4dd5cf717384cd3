"""What goes wrong in networks and machines, injected.

Nothing hangs, nothing leaks, and each failure has its name and its cause.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import signal
import socket as stdlib
import ssl
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

import anyio
import pytest
from anyio.lowlevel import checkpoint

import guards
from anyio_connect import (
    BrokenError,
    ConnectError,
    ConnectTimeoutError,
    ResolveError,
    Socket,
    SocketError,
    TLSError,
    connect,
)
from peers import Peer, listening
from sockets import connected, raw
from tls_peers import NAME, TLS12, TLS13, TLSPeer, client_context, server_context

Fault: TypeAlias = Literal["reset", "end", "stall"]

MUCH = bytes(range(256)) * 1024


# --- at every moment of a conversation


class Conversation:
    """One between our socket and a server, with something between that does a fault.

    After ``at`` segments, of which none is longer than ``largest``, counted both ways.
    """

    def __init__(
        self,
        version: ssl.TLSVersion | None,
        fault: Fault,
        at: float = float("inf"),
        largest: int = 65536,
    ) -> None:
        self.context = None if version is None else server_context(version)
        self.fault = fault
        self.at = at
        self.largest = largest
        self.segments = 0
        self.stalled = anyio.Event()
        self.errors: list[Exception] = []
        self.received = 0
        self.done = False

    @property
    def faulty(self) -> bool:
        return self.segments >= self.at

    async def run(self) -> None:
        options: dict[str, Any] = {}
        if self.context is not None:
            options = {"secure_transport": "on", "sni": NAME, "ssl_context": client_context()}
        async with (
            listening() as outer,
            listening() as inner,
            anyio.create_task_group() as group,
        ):

            async def serve() -> None:
                near = await outer.accept()
                far = Peer(stdlib.create_connection(inner.address))
                inner.peers.append(far)
                group.start_soon(self.server, await inner.accept())
                await self.relay(near, far)
                if self.fault != "stall":
                    far.close()

            group.start_soon(serve)
            socket = connect(outer.address, **options)
            with anyio.CancelScope() as scope:

                async def give_up() -> None:
                    await self.stalled.wait()
                    # Everything else goes on as far as it gets.
                    for _ in range(20):
                        await checkpoint()
                    scope.cancel()

                group.start_soon(give_up)
                await self.catch(self.client, socket)
            with anyio.fail_after(5):
                await socket.close()
            group.cancel_scope.cancel()
        assert socket.opened.done()
        assert socket.closed.done()

    async def catch(self, call: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            await call(*args)
        except (SocketError, anyio.EndOfStream) as exc:
            self.errors.append(exc)

    async def client(self, socket: Socket) -> None:
        await socket.opened
        await socket.send(b"hello\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += await socket.receive()
        assert answer == b"welcome\n"
        async with anyio.create_task_group() as group:
            group.start_soon(self.catch, socket.send, MUCH)
            group.start_soon(self.catch, self.receive_much, socket)
        if self.errors:
            return
        await socket.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        self.done = True

    async def receive_much(self, socket: Socket) -> None:
        while self.received < len(MUCH):
            self.received += len(await socket.receive())

    async def server(self, peer: Peer) -> None:
        with suppress(OSError, ssl.SSLError, anyio.EndOfStream, anyio.ClosedResourceError):
            if self.context is None:
                await self.serve(peer.send, peer.receive)
            else:
                tls = TLSPeer(peer, self.context)
                await tls.shake()
                await self.serve(tls.send, tls.receive)
                await peer.send(tls.server.close_notify())
            peer.fin()

    async def serve(
        self, send: Callable[[bytes], Awaitable[None]], receive: Callable[[], Awaitable[bytes]]
    ) -> None:
        hello = b""
        while not hello.endswith(b"\n"):
            chunk = await receive()
            if not chunk:
                return
            hello += chunk
        await send(b"welcome\n")
        if not await receive():  # the first of what is much, so that "welcome" comes alone
            return
        lost: list[Exception] = []

        async def send_much() -> None:
            try:
                await send(MUCH)
            except OSError as exc:
                lost.append(exc)

        async with anyio.create_task_group() as group:
            group.start_soon(send_much)
            try:
                while await receive():
                    pass
            except (OSError, ssl.SSLError, anyio.EndOfStream) as exc:
                lost.append(exc)
        for error in lost:
            raise error

    async def relay(self, near: Peer, far: Peer) -> None:
        async with anyio.create_task_group() as group:

            async def one_way(source: Peer, sink: Peer) -> None:
                with suppress(OSError, anyio.ClosedResourceError):
                    while data := await source.receive(self.largest):
                        self.segments += 1
                        if self.faulty:
                            if self.fault == "reset":
                                near.rst()
                            elif self.fault == "end":
                                near.close()
                            else:
                                self.stalled.set()
                            group.cancel_scope.cancel()
                            return
                        await sink.send(data)
                    sink.fin()

            group.start_soon(one_way, near, far)
            group.start_soon(one_way, far, near)


@pytest.mark.parametrize("fault", ["reset", "end", "stall"])
@pytest.mark.parametrize("version", [None, TLS12, TLS13], ids=["tcp", "tls-1.2", "tls-1.3"])
async def test_at_every_moment(version: ssl.TLSVersion | None, fault: Fault) -> None:
    at = 0
    while True:
        at += 1
        conversation = Conversation(version, fault, at, largest=16384 if at > 8 else 65536)
        with anyio.fail_after(20):
            await conversation.run()
        if conversation.done:
            break
        if fault == "stall":
            continue  # there is no error, only nothing more
        assert conversation.errors, f"at segment {at}"
        for error in conversation.errors:
            if isinstance(error, anyio.EndOfStream):
                # Over TLS an end like that is never a clean one.
                assert fault == "end"
                assert version is None
            elif isinstance(error, TLSError):
                assert version is not None
            else:
                assert isinstance(error, BrokenError)
            if isinstance(error, SocketError):
                assert str(error)
    assert at > 4, "hardly a conversation"


@pytest.mark.parametrize("version", [None, TLS12, TLS13], ids=["tcp", "tls-1.2", "tls-1.3"])
async def test_very_short_segments(version: ssl.TLSVersion | None) -> None:
    conversation = Conversation(version, "stall", largest=499)
    await conversation.run()
    assert conversation.done
    assert conversation.segments > 1000


# --- what the kernel may answer


class Faulty:
    """A socket of which one method fails."""

    def __init__(self, sock: stdlib.socket, method: str, error: OSError) -> None:
        self._sock = sock
        self._method = method
        self._error = error

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            return self._fail
        return getattr(self._sock, name)

    def _fail(self, *args: object) -> None:
        raise self._error


FROM_THE_KERNEL = [
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENOBUFS,
    errno.ENOMEM,
]


@pytest.mark.parametrize("number", FROM_THE_KERNEL, ids=errno.errorcode.__getitem__)
@pytest.mark.parametrize("method", ["recv", "send", "shutdown"])
async def test_a_call_that_fails(
    method: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected() as (socket, peer):
        await peer.send(b"data")
        error = OSError(number, os.strerror(number))
        transport: Any = socket._connection.transport
        monkeypatch.setattr(transport, "_sock", Faulty(raw(socket), method, error))
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "recv": socket.receive,
            "send": lambda: socket.send(b"x"),
            "shutdown": socket.send_eof,
        }
        with pytest.raises(BrokenError, match=os.strerror(number)) as caught:
            await calls[method]()
        assert error in causes(caught.value)
        assert isinstance(socket.closed.exception(), BrokenError)


def causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no such signals here")
async def test_signals_all_the_time() -> None:
    """EINTR is no error and costs no byte (PEP 475)."""
    count = 0

    def handler(*_: object) -> None:
        nonlocal count
        count += 1

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        conversation = Conversation(TLS13, "stall")
        while count < 10:  # for as long as it takes to have been interrupted
            conversation = Conversation(TLS13, "stall")
            await conversation.run()
            assert conversation.done
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- connecting


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing can be opened in here."""
    resource = pytest.importorskip("resource", reason="descriptors cannot be limited here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open("rb") as lowest:
        limit = lowest.fileno()  # so that numbers below it are all taken
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_descriptor_for_the_dial() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        with no_descriptors(), pytest.raises(ConnectError, match="too many open files") as caught:
            await socket.opened
        assert any(getattr(exc, "errno", 0) == errno.EMFILE for exc in causes(caught.value))
        assert isinstance(socket.closed.exception(), ConnectError)
        async with connect(listener.address) as another:
            await another.send(b"there are again")


async def test_no_descriptor_to_watch_with() -> None:
    """Then `closed` learns of the end from who reads."""
    async with connected() as (socket, peer), anyio.create_task_group() as group:

        async def watch() -> None:
            await socket.closed

        with no_descriptors():
            group.start_soon(watch)
            for _ in range(5):
                await checkpoint()
        peer.fin()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (stdlib.EAI_NONAME, stdlib.EAI_AGAIN, stdlib.EAI_FAIL):

        async def fail(*_: object, code: int = code, **__: object) -> None:
            raise stdlib.gaierror(code, "the resolver's words")

        monkeypatch.setattr(anyio, "getaddrinfo", fail)
        socket = connect("name.example:80")
        with pytest.raises(ResolveError, match="the resolver's words"):
            await socket.opened
        assert isinstance(socket.closed.exception(), ResolveError)


async def test_a_resolver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    async def never(*args: object, **_: object) -> None:
        asked.append(args)
        await anyio.sleep_forever()

    monkeypatch.setattr(anyio, "getaddrinfo", never)
    with pytest.raises(ConnectTimeoutError, match=r"name\.example"):
        await connect("name.example:80", connect_timeout=0.01).opened
    # Cancelled, the socket is pending as before, and the next may ask again.
    socket = connect("name.example:80")
    for _ in range(2):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def ask() -> None:
                    await socket.opened

                group.start_soon(ask)
                before = len(asked)
                while len(asked) == before:
                    await checkpoint()
                scope.cancel()
        assert not socket.opened.done()
    await socket.close()


# --- the end of the event loop


@pytest.mark.parametrize("version", [None, TLS13], ids=["tcp", "tls-1.3"])
def test_the_loop_ends_with_sockets_open(
    anyio_backend: tuple[str, dict[str, Any]], version: ssl.TLSVersion | None
) -> None:
    """It ends, as it would with any other socket: with a warning, and no descriptor is left."""
    backend, options = anyio_backend
    kept: list[Any] = []
    before = guards.open_fds() if guards.CAN_LIST_FDS else None

    async def main() -> None:
        settings: dict[str, Any] = {}
        if version is not None:
            settings = {"secure_transport": "on", "sni": NAME, "ssl_context": client_context()}
        async with listening() as listener, anyio.create_task_group() as group:
            socket = connect(listener.address, **settings)

            async def serve() -> None:
                peer = await listener.accept()
                if version is not None:
                    await TLSPeer(peer, server_context(version)).shake()

            group.start_soon(serve)
            await socket.opened

            async def wait() -> None:
                await socket.receive()

            group.start_soon(wait)
            for _ in range(5):
                await checkpoint()
            kept.append(socket)
            group.cancel_scope.cancel()

    anyio.run(main, backend=backend, backend_options=options)
    kept.clear()
    with pytest.warns(ResourceWarning, match="unclosed"):
        gc.collect()
    if before is not None:
        assert not guards.leaked_fds(before)


# --- many


async def soak() -> None:
    """Sockets opened and ended in every way, at random: it ends with what it began with."""
    chance = random.Random(0)
    tls: dict[str, Any] = {
        "secure_transport": "on",
        "sni": NAME,
        "ssl_context": client_context(),
    }
    context = server_context()

    async def serve(peer: Peer) -> None:
        with suppress(OSError, ssl.SSLError, anyio.EndOfStream):
            first = await peer.receive(1)
            if first == b"\x16":  # a ClientHello
                secure = TLSPeer(peer, context)
                secure.server.incoming.write(first)
                await secure.shake()
                await secure.receive()
            elif first == b"e":
                await peer.send(b"echo")
                peer.fin()
                await peer.receive()
            elif first == b"r":
                peer.rst()
        peer.close()

    async def use(listener_address: tuple[str, int]) -> None:
        way = chance.randrange(8)
        options: dict[str, Any] = {"allow_half_open": chance.random() < 0.5}
        with suppress(SocketError, anyio.EndOfStream):
            if way == 0:  # never opened
                await connect(listener_address, **options).close()
            elif way == 1:  # cancelled on the way
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await connect(listener_address, **options).opened
            elif way == 2:
                async with connect(listener_address, **options, **tls) as socket:
                    await socket.send(b"in secret")
            elif way == 3:
                async with connect(listener_address, **options) as socket:
                    await socket.writable.abort("a change of mind")
            elif way == 4:
                async with connect(listener_address, **options) as socket:
                    await socket.send(b"r")
                    await socket.receive()
            else:
                async with connect(listener_address, **options) as socket:
                    await socket.send(b"e")
                    if way == 5:
                        await socket.send_eof()
                    while True:
                        await socket.receive()

    async def some(count: int) -> None:
        async with listening() as listener, anyio.create_task_group() as group:

            async def accept() -> None:
                while True:
                    peer = await listener.accept()
                    listener.peers.clear()  # each is closed by its task
                    group.start_soon(serve, peer)

            group.start_soon(accept)
            left = count

            async def one_after_another() -> None:
                nonlocal left
                while left:
                    left -= 1
                    await use(listener.address)

            async with anyio.create_task_group() as users:
                for _ in range(10):
                    users.start_soon(one_after_another)
            group.cancel_scope.cancel()

    def alive() -> int:
        gc.collect()
        return len(gc.get_objects())

    await some(300)  # what is made once, and kept, is made here
    before = guards.open_fds() if guards.CAN_LIST_FDS else None
    objects = alive()
    tracemalloc.start()
    try:
        await some(SOAK)
        grown = alive() - objects  # which collects garbage
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if before is not None:
        assert not guards.leaked_fds(before)
    assert grown < SOAK // 10, f"{grown} objects are left of {SOAK} sockets"
    # Some tens of kilobytes are kept for good, however many sockets there are.
    assert kept < SOAK * 128, f"{kept} bytes are left of {SOAK} sockets"


#: How many sockets; HYPOTHESIS_PROFILE=thorough makes it many more.
SOAK = 20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 2000


@pytest.mark.time_limit(600)
def test_soak(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    backend, options = anyio_backend
    # Not in debug mode, which takes most of the time.
    anyio.run(
        soak, backend=backend, backend_options={**options, "debug": False} if options else {}
    )
