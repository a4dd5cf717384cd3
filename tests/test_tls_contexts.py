"""SSL contexts: the default ones, and those of other implementations, which may do anything."""

from __future__ import annotations

import gc
import ssl
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import truststore
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSAttribute
from typing_extensions import Self

from anyio_connect import (
    BrokenError,
    Connector,
    Socket,
    SocketError,
    TLSError,
    _tls_contexts,
    _tls_handshake,
    connect,
)
from anyio_connect._threads import Threads
from anyio_connect._tls_handshake import start_tls
from support.peers import Listener, listening
from support.servers import serving
from support.sockets import settle
from support.tls_peers import (
    NAME,
    TLS13,
    Server,
    TLSPeer,
    Wire,
    authority,
    certificate,
    client_context,
    server_context,
)


class UnexpectedError(Exception):
    """An error that no code catches by name."""


class OfAnotherMake(ssl.SSLContext):
    """A context for clients that trusts the tests' authority."""

    def __new__(cls) -> Self:
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=authority().cert_pem.bytes().decode())
        return context


class Served(TLSPeer):
    """The server of one connection, which it accepts first."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.server = Server(server_context(TLS13))
        self.ready = anyio.Event()

    async def serve(self) -> None:
        self.peer = await self.listener.accept()
        with suppress(ssl.SSLError, anyio.EndOfStream, OSError):
            await self.shake()
        self.ready.set()


@asynccontextmanager
async def secured(context: Any) -> AsyncIterator[tuple[Socket, Served]]:
    """A pending socket that is to use ``context``, and its server, which waits for it."""
    async with listening() as listener, anyio.create_task_group() as tasks:
        socket = connect(listener.address, secure_transport="on", sni=NAME, ssl_context=context)
        peer = Served(listener)
        tasks.start_soon(peer.serve)
        try:
            yield socket, peer
        finally:
            await socket.close()
            tasks.cancel_scope.cancel()


async def fails(socket: Socket) -> SocketError:
    """See that both futures fail with the same error, and return it."""
    errors = [await settle(socket.opened), await settle(socket.closed)]
    assert errors[0] is not None
    assert str(errors[1]) == str(errors[0])
    return errors[0]


# --- a context of another implementation: the handshake


@pytest.mark.parametrize("method", ["wrap_bio", "do_handshake"])
@pytest.mark.parametrize(
    "raised",
    [
        UnexpectedError("so"),
        AttributeError("it is missing"),
        ValueError(""),
        OSError(5, "disk"),
        KeyError(1),
    ],
    ids=lambda exc: type(exc).__name__,
)
async def test_whatever_a_context_raises_in_the_handshake_is_a_tls_error(
    method: str, raised: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise raised

    class Engine(ssl.SSLObject):
        do_handshake = fail

    class Context(OfAnotherMake):
        if method == "wrap_bio":
            wrap_bio = fail

    context = Context()
    context.sslobject_class = Engine
    async with secured(context) as (socket, _):
        error = await fails(socket)
    assert isinstance(error, TLSError)
    cause = error.__cause__
    assert cause is not None
    assert (type(cause), cause.args) == (type(raised), raised.args)
    assert (str(raised.args[-1]) if raised.args else type(raised).__name__) in str(error)


async def test_a_base_exception_of_a_context_passes_unchanged() -> None:
    class Stop(BaseException):
        pass

    class Context(OfAnotherMake):
        def wrap_bio(self, *_: Any, **__: Any) -> Any:
            raise Stop

    async with secured(Context()) as (socket, _):
        with pytest.raises(Stop):
            await socket.opened


class Slow:
    """A call that blocks until the test lets it go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.threads: set[int] = set()

    async def has_begun(self) -> None:
        """Wait until the call has begun. This fails if the call blocks the event loop."""
        assert await anyio.to_thread.run_sync(self.begun.wait, 30)

    def __call__(self) -> None:
        self.threads.add(threading.get_ident())
        self.begun.set()
        assert self.go_on.wait(30)


def slow_context(slow: Callable[[], None], method: str) -> ssl.SSLContext:
    class Engine(ssl.SSLObject):
        def do_handshake(self) -> None:
            if method == "do_handshake":
                slow()
            super().do_handshake()

    class Context(OfAnotherMake):
        def wrap_bio(self, *args: Any, **kwargs: Any) -> Any:
            if method == "wrap_bio":
                slow()
            return super().wrap_bio(*args, **kwargs)

    context = Context()
    context.sslobject_class = Engine
    return context


each_slow = pytest.mark.parametrize("method", ["wrap_bio", "do_handshake"])


@each_slow
async def test_a_slow_context_does_not_block_the_event_loop(method: str) -> None:
    slow = Slow()
    async with secured(slow_context(slow, method)) as (socket, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(settle, socket.opened)
            await slow.has_begun()
            assert not socket.opened.done()
            slow.go_on.set()
        assert socket.opened.exception() is None
        await peer.ready.wait()
        await socket.send(b"x")
        assert await peer.receive() == b"x"
    assert threading.get_ident() not in slow.threads


@each_slow
async def test_a_connection_with_a_slow_context_can_be_closed(method: str) -> None:
    slow = Slow()
    async with secured(slow_context(slow, method)) as (socket, _):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(settle, socket.opened)
            await slow.has_begun()
            await socket.close()
        assert socket.opened.exception() is not None
        assert socket.closed.done()
    slow.go_on.set()


async def test_a_handshake_cancelled_while_it_reads_last_words_drops_the_connection() -> None:
    class Reset(Wire):
        async def receive(self, max_bytes: int = 65536) -> bytes:
            self.arrive(b"last words")
            raise anyio.BrokenResourceError

    slow, wire = Slow(), Reset()

    def wait_the_second_time() -> None:
        if wire.asked:
            slow()

    async with anyio.create_task_group() as tasks:
        context = slow_context(wait_the_second_time, "do_handshake")
        tasks.start_soon(
            partial(start_tls, wire, where="x", server_hostname=NAME, context=context)
        )
        await slow.has_begun()
        tasks.cancel_scope.cancel()
    slow.go_on.set()
    assert wire.calls == ["abort"]


async def test_the_standard_librarys_own_context_needs_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_tls_contexts, "threads", None)
    monkeypatch.setattr(_tls_handshake, "threads", None)
    async with secured(client_context()) as (socket, _):
        await socket.opened


async def test_the_handshake_fails_if_no_thread_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_tls_contexts, "threads", Threads("work on TLS contexts", 0))
    async with secured(slow_context(lambda: None, "")) as (socket, _):
        error = await fails(socket)
    assert isinstance(error, TLSError)
    assert str(error).endswith(": all 0 threads that work on TLS contexts hang")


@pytest.mark.parametrize("method", ["wrap_bio", "do_handshake"])
async def test_a_failed_handshake_keeps_no_context_alive(method: str) -> None:
    def fail() -> None:
        raise UnexpectedError

    context = slow_context(fail, method)
    watched = weakref.ref(context)
    gc.disable()
    try:
        async with secured(context) as (socket, _):
            await fails(socket)
        del context, socket, _
        with anyio.move_on_after(5):
            while watched() is not None:  # the thread may not have returned yet
                await checkpoint()
        assert watched() is None
    finally:
        gc.enable()


# --- a context of another implementation: the session


class Proxy:
    """An engine. If the test says so, one of its methods fails or is missing."""

    def __init__(self, engine: ssl.SSLObject) -> None:
        self.engine = engine
        self.broken = ""
        self.error: Exception = UnexpectedError("so")

    def __getattr__(self, name: str) -> Any:
        if name != self.broken:
            return getattr(self.engine, name)
        if isinstance(self.error, AttributeError):
            raise self.error

        def fail(*_: Any) -> Any:
            raise self.error

        return fail


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Socket, Served, Proxy]]:
    proxies: list[Proxy] = []

    class Context(OfAnotherMake):
        def wrap_bio(self, *args: Any, **kwargs: Any) -> Any:
            proxies.append(Proxy(super().wrap_bio(*args, **kwargs)))
            return proxies[0]

    async with secured(Context()) as (socket, peer):
        await socket.opened
        await peer.ready.wait()
        yield socket, peer, proxies[0]


def calls(socket: Socket) -> dict[str, Callable[[], Awaitable[object]]]:
    return {"read": socket.receive, "write": partial(socket.send, b"x"), "unwrap": socket.send_eof}


@pytest.mark.parametrize("error", [UnexpectedError("so"), AttributeError("missing")], ids=repr)
@pytest.mark.parametrize("method", ["read", "write", "unwrap"])
async def test_whatever_an_engine_raises_breaks_the_connection(
    method: str, error: Exception
) -> None:
    async with proxied() as (socket, peer, proxy):
        await peer.send(b"x")
        proxy.broken, proxy.error = method, error
        with pytest.raises(BrokenError) as caught:
            await calls(socket)[method]()
        assert type(caught.value.__cause__) is type(error)
        assert str(error) in str(caught.value)
        assert type(error).__name__ in str(caught.value)
        told = await settle(socket.closed)
        assert isinstance(told, BrokenError)
        assert str(told.__cause__) == str(error)


@pytest.mark.parametrize("error", [UnexpectedError("so"), AttributeError("missing")], ids=repr)
async def test_close_works_even_if_the_engine_cannot_end_the_session(
    error: Exception,
) -> None:
    async with proxied() as (socket, _, proxy):
        proxy.broken, proxy.error = "unwrap", error
        await socket.close()
        assert socket.closed.done()


@pytest.mark.parametrize("returned", [None, 0, -1, 2, "1"])
async def test_an_engine_that_returns_a_bad_count_breaks_the_connection(returned: object) -> None:
    async with proxied() as (socket, _, proxy):
        proxy.engine.write = lambda _: returned  # type: ignore[method-assign, assignment, return-value] # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(
            BrokenError, match=r"write\(\) of its engine returned .*, not a number"
        ):
            await socket.send(b"x")
        assert isinstance(await settle(socket.closed), BrokenError)


async def test_other_methods_of_an_engine_may_fail() -> None:
    async with proxied() as (socket, peer, proxy):
        for proxy.broken in ("pending", "selected_alpn_protocol", "shared_ciphers"):
            await peer.send(b"x")
            assert await socket.receive() == b"x"
            assert socket.extra(TLSAttribute.alpn_protocol) is None
            assert socket.extra(TLSAttribute.tls_version) == "TLSv1.3"


async def test_alpn_is_none_if_the_engine_cannot_tell_it() -> None:
    class Engine(ssl.SSLObject):
        def selected_alpn_protocol(self) -> Any:
            raise UnexpectedError

    context = OfAnotherMake()
    context.sslobject_class = Engine
    async with secured(context) as (socket, _):
        assert (await socket.opened).alpn is None


# --- truststore


@pytest.fixture
def injected() -> Iterator[None]:
    truststore.inject_into_ssl()
    try:
        yield
    finally:
        truststore.extract_from_ssl()


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the system trust the authority of the tests; return the file of its certificate."""
    file = str(tmp_path / "authorities.pem")
    authority().cert_pem.write_to_path(file)
    monkeypatch.setenv("SSL_CERT_FILE", file)
    return file


@pytest.mark.parametrize("alpn", [None, ["tls-test"]])
async def test_truststore_injected_late(
    alpn: list[str] | None, injected: None, trusted: str
) -> None:
    server = server_context()
    server.set_alpn_protocols(["tls-test"])
    async with listening() as listener:
        socket = connect(listener.address, secure_transport="on", sni=NAME, alpn=alpn)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(settle, socket.opened)
            await TLSPeer(await listener.accept(), server).shake()
        assert socket.opened.result().alpn == (alpn and alpn[0])
        await socket.close()


async def test_a_context_from_before_the_injection_is_still_accepted(injected: None) -> None:
    truststore.extract_from_ssl()
    context = client_context()
    truststore.inject_into_ssl()
    assert not isinstance(context, ssl.SSLContext)
    Connector(ssl_context=context)
    async with secured(context) as (socket, _):
        await socket.opened


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_truststore_injected_before_anything_else(backend: str, trusted: str) -> None:
    program = """if True:
        import sys, truststore
        truststore.inject_into_ssl()
        import anyio
        from anyio_connect import connect

        async def main():
            for alpn in (None, ["tls-test"]):
                socket = connect(sys.argv[1], secure_transport="on", alpn=alpn)
                print((await socket.opened).alpn)
                await socket.close()

        anyio.run(main, backend=sys.argv[2])
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["tls-test"])

    def serve(connection: Any) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1)

    with serving(serve) as address:
        ran = subprocess.run(
            [sys.executable, "-c", program, address, backend],
            check=True,
            capture_output=True,
            timeout=60,
        )
    assert ran.stdout.split() == [b"None", b"tls-test"]


# --- the default contexts


async def test_few_default_contexts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = _tls_contexts.Contexts()
    monkeypatch.setattr(
        _tls_contexts, "build_context", lambda _: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )
    often = await contexts.get(())
    for n in range(100):
        await contexts.get((str(n),))
        assert await contexts.get(()) is often
    assert len(contexts._kept) <= 20


async def test_default_contexts_are_built_in_threads_of_our_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AnyIO's threads may all be busy."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    monkeypatch.setattr(limiter, "total_tokens", 1)
    release = threading.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, lambda: release.wait(30))
        await checkpoint()
        try:
            with anyio.fail_after(30):
                assert isinstance(await _tls_contexts.Contexts().get(()), ssl.SSLContext)
        finally:
            release.set()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="this system has no fork()")
def test_a_fork_while_a_default_context_is_built_leaves_no_lock() -> None:
    program = """if True:
        import os, ssl, sys, threading, anyio
        from anyio_connect import _tls_contexts as tls

        begun, release = threading.Event(), threading.Event()

        def build(alpn):
            begun.set()
            release.wait()

        build_context, tls.build_context = tls.build_context, build
        threading.Thread(target=anyio.run, args=(tls._contexts.get, ()), daemon=True).start()
        begun.wait()
        child = os.fork()
        if child:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        tls.build_context = build_context

        async def main():
            with anyio.fail_after(30):
                assert isinstance(await tls._contexts.get(()), ssl.SSLContext)

        anyio.run(main)
        os._exit(0)
    """
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
