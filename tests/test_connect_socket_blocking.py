"""``Connector.connect_socket_blocking()``: in a thread without an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import http.client
import os
import selectors
import signal
import socket as stdlib
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from weakref import ref

import anyio
import anyio.to_thread
import pytest
import trio
from anyio.lowlevel import checkpoint

from anyio_connect import (
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    EventLoopRunningError,
    InvalidAddressError,
    InvalidOptionError,
    RefusedError,
    ResolveError,
    _blocking,
)
from anyio_connect._slots import Slots
from support.cycles import Local
from support.names import LOOPBACK, Names
from support.peers import listening, refusing_address
from support.servers import echo, serving
from support.spying import slots
from support.tls_peers import NAME, client_context, server_context


def test_a_thread_without_an_event_loop() -> None:
    connector = Connector(LOOPBACK, max_connections=1)
    with serving(echo) as address, connector.connect_socket_blocking(address) as sock:
        # The thread that made the connection has ended.
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


def test_tls_of_the_standard_library() -> None:
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


def test_the_errors_of_connect_socket_blocking(names: Names) -> None:
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


def test_a_failure_in_the_thread_keeps_no_frame_alive(no_collector: None) -> None:
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


async def test_it_is_refused_where_an_event_loop_runs() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        with pytest.raises(EventLoopRunningError, match=r"await connect_socket\(\)"):
            connector.connect_socket_blocking(listener.address)
        # Bad input is reported first.
        with pytest.raises(InvalidAddressError):
            connector.connect_socket_blocking("127.1:1")
        assert slots(connector).free == 1


async def test_it_is_refused_in_a_callback() -> None:
    if trio.lowlevel.in_trio_run():
        return  # on trio, a callback cannot report what it raised
    called: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def callback() -> None:
        try:
            Connector().connect_socket_blocking("127.0.0.1:1")
        except EventLoopRunningError as exc:
            called.set_exception(exc)

    asyncio.get_running_loop().call_soon(callback, context=contextvars.Context())
    with pytest.raises(EventLoopRunningError):
        await called


async def test_it_works_in_a_worker_thread_of_an_event_loop() -> None:
    """Such a thread knows the event loop that it works for, but runs none itself."""
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
    """Block until a task or a thread waits for a slot. To be called in a thread."""
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


def test_hooks_are_called_in_one_other_thread() -> None:
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


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    connector = Connector(max_connections=1)
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ConnectError, match=r"cannot connect to 127\.0\.0\.1:1: can't start"):
        connector.connect_socket_blocking("127.0.0.1:1")
    monkeypatch.undo()
    assert slots(connector).free == 1


def test_an_event_loop_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loop(selector: selectors.BaseSelector) -> asyncio.AbstractEventLoop:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(asyncio, "SelectorEventLoop", no_loop)
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1: Too many open files") as caught:
        Connector().connect_socket_blocking("127.0.0.1:1")
    assert caught.value.errno == errno.EMFILE


# --- interrupted


@contextmanager
def interrupted(when: threading.Event) -> Iterator[None]:
    """Interrupt this thread, as Ctrl-C does, once the event is set."""
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


needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pthread_kill()")


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
    """A result that counts how often it was dropped."""

    def __init__(self) -> None:
        self.dropped = 0

    def drop(self) -> None:
        self.dropped += 1


async def make() -> Made:
    return Made()


def test_a_result_made_before_the_interrupt_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt comes after the function has ended, and before the call returns."""
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
def test_a_result_made_after_the_interrupt_is_dropped() -> None:
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


def test_a_call_that_is_cancelled_before_it_begins_does_nothing() -> None:
    async def function() -> None:
        raise AssertionError("this call was cancelled")

    call: _blocking._Call[None] = _blocking._Call(function, print)
    assert not call.cancel()
    call.run()
    assert call.over.is_set()
    assert not call._made
    assert call._error is None


def test_a_call_returns_or_raises_what_the_function_does() -> None:
    async def fail() -> Made:
        await checkpoint()
        raise ZeroDivisionError

    made = _blocking.wait_for(make, Made.drop)
    assert made.dropped == 0
    with pytest.raises(ZeroDivisionError):
        _blocking.wait_for(fail, Made.drop)
