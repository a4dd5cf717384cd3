"""listen(): each accepted connection is a Socket, and failures are handled."""

from __future__ import annotations

import errno
import logging
import socket as stdlib
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
import trio
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.tls import TLSListener, TLSStream

from anyio_connect import (
    BrokenError,
    InvalidAddressError,
    InvalidOptionError,
    Listener,
    ListenError,
    RefusedError,
    ResolveError,
    Socket,
    _lookup,
    connect,
    listen,
)
from anyio_connect._address import format_address
from anyio_connect._listen import handle
from anyio_connect._options import Options
from anyio_connect._tcp import TCPTransport
from support import peers
from support.peers import needs_ipv6
from support.servers import port, send_back
from support.sockets import connected, settle
from support.tls_peers import client_context, server_context
from support.turns import all_blocked

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


# --- serving


@pytest.mark.parametrize("seconds", [None, 0.5])
async def test_accepted_sockets_have_the_close_timeout_of_the_listener(
    seconds: float | None,
) -> None:
    seen: list[Any] = []
    done = anyio.Event()

    async def handler(socket: Socket) -> None:
        async with socket:
            seen.append(socket._target.options.close_timeout)
        done.set()

    async with (
        await listen("127.0.0.1:0", close_timeout=seconds) as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, handler)
        async with connect(listener.addresses[0]):
            await done.wait()
        group.cancel_scope.cancel()
    assert seen == [seconds or Options().close_timeout]


@pytest.mark.parametrize("half_open", [False, True])
async def test_an_accepted_connection_is_an_open_socket(half_open: bool) -> None:
    seen: list[Socket] = []

    async def handler(socket: Socket) -> None:
        seen.append(socket)
        assert socket.opened.done()
        async with socket:
            assert await socket.receive() == b"ping"
            with pytest.raises(anyio.EndOfStream):
                await socket.receive()
            if half_open:
                await socket.send(b"after your end")
            else:
                await socket.closed

    async with (
        await listen("127.0.0.1:0", allow_half_open=half_open) as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, handler)
        async with connect(listener.addresses[0], allow_half_open=True) as socket:
            ours = await socket.opened
            await socket.send(b"ping")
            await socket.send_eof()
            answer = b"".join([data async for data in socket.readable])
        group.cancel_scope.cancel()
    theirs = seen[0].opened.result()
    assert (theirs.remote_address, theirs.local_address) == (
        ours.local_address,
        ours.remote_address,
    )
    assert answer == (b"after your end" if half_open else b"")


async def test_tasks_run_in_the_group_that_is_given() -> None:
    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def serve() -> None:
            with scope:
                await listener.serve(send_back, group)

        group.start_soon(serve)
        async with connect(listener.addresses[0]) as socket:
            await socket.send(b"1")
            assert await socket.receive() == b"1"
            scope.cancel()  # stops accepting; the handler goes on
            await listener.aclose()
            await socket.send(b"2")
            assert await socket.receive() == b"2"


async def test_a_task_group_that_has_ended_leaves_no_connection_open() -> None:
    async with anyio.create_task_group() as over:
        pass

    async def serve(listener: Listener) -> None:
        with pytest.raises(Exception) as caught:
            await listener.serve(send_back, over)
        raised: Any = caught.value
        while not isinstance(raised, RuntimeError):
            (raised,) = raised.exceptions

    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(serve, listener)
        async with connect(listener.addresses[0]) as socket:
            with pytest.raises(BrokenError):
                await socket.receive()


async def test_an_exception_of_a_handler_ends_serving() -> None:
    async def fail(socket: Socket) -> None:
        await socket.close()
        raise LookupError

    async def serve(listener: Listener) -> None:
        with pytest.raises(Exception) as caught:
            await listener.serve(fail)
        raised: Any = caught.value
        while not isinstance(raised, LookupError):  # in an exception group or two
            (raised,) = raised.exceptions

    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(serve, listener)
        async with connect(listener.addresses[0]):
            pass


async def test_closing_ends_serving_but_no_handler() -> None:
    ended = False

    async def serve(listener: Listener) -> None:
        nonlocal ended
        with pytest.raises(anyio.ClosedResourceError):
            await listener.serve(send_back)
        ended = True

    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(serve, listener)
        async with connect(listener.addresses[0]) as socket:
            await socket.send(b"1")
            assert await socket.receive() == b"1"
            with pytest.raises(anyio.BusyResourceError):
                await listener.serve(send_back)
            await listener.aclose()
            await listener.aclose()
            await socket.send(b"2")
            assert await socket.receive() == b"2"
            assert not ended
    assert ended
    with pytest.raises(anyio.ClosedResourceError):
        await listener.serve(send_back)
    with pytest.raises(RefusedError):
        await connect(listener.addresses[0]).opened


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPERM, errno.EMFILE, errno.ENOMEM])
async def test_accepting_goes_on_after_an_error(
    code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("anyio_connect._listen._PAUSE", 0)
    errors = [OSError(code, "no")]
    real = stdlib.socket

    class Failing(real):  # type: ignore[misc, valid-type]
        def accept(self) -> Any:
            if errors:
                raise errors.pop()
            return super().accept()

    with monkeypatch.context() as patch:
        patch.setattr("anyio_connect._listen.socket.socket", Failing)
        listener = await listen("127.0.0.1:0")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, send_back)
        async with connect(listener.addresses[0]) as socket:
            await socket.send(b"1")
            assert await socket.receive() == b"1"
        group.cancel_scope.cancel()
    assert not errors
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == (code in (errno.EMFILE, errno.ENOMEM))


async def test_accepting_goes_on_when_descriptors_are_free_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long that takes, the error is logged once."""
    fails = partial(next, iter([True] * 5), False)
    listener = await listen_with(monkeypatch, OSError(errno.EMFILE, "no more"), fails)
    async with listener, anyio.create_task_group() as group:
        monkeypatch.setattr("anyio_connect._listen._PAUSE", 0)
        group.start_soon(listener.serve, send_back)
        async with connect(listener.addresses[0]) as socket:
            await socket.send(b"1")
            assert await socket.receive() == b"1"
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        group.cancel_scope.cancel()


async def test_closing_does_not_wait_for_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_connect._listen._PAUSE", 3600)
    listener = await listen_with(monkeypatch, OSError(errno.EMFILE, "no more"), lambda: True)
    with anyio.fail_after(5):
        async with listener, anyio.create_task_group() as group:
            group.start_soon(serve_until_closed, listener, send_back)
            await all_blocked()
            await listener.aclose()


async def test_a_permanent_error_is_a_listen_error(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = await listen_with(monkeypatch, OSError(errno.EINVAL, "for good"), lambda: True)
    async with listener:
        with pytest.raises(ListenError) as caught:  # not in an exception group
            await listener.serve(send_back)
        where = listener.addresses[0]
        assert str(caught.value) == f"cannot accept connections at {where} any more: for good"
        assert caught.value.errno == errno.EINVAL
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("own", [True, False], ids=["own group", "given group"])
async def test_a_permanent_error_ends_only_handlers_in_the_group_of_serve(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = False
    listener = await listen_with(monkeypatch, OSError(errno.EINVAL, "for good"), lambda: broken)
    serves, over = anyio.Event(), anyio.Event()

    async def handler(socket: Socket) -> None:
        async with socket:
            serves.set()
            await socket.receive()
        over.set()

    async def serve() -> None:
        with pytest.raises(ListenError):
            await listener.serve(handler, None if own else group)

    async with listener, anyio.create_task_group() as group, anyio.create_task_group() as serving:
        serving.start_soon(serve)
        async with connect(listener.addresses[0]) as socket:
            await serves.wait()
            broken = True
            async with connect(listener.addresses[0]):
                if own:
                    with pytest.raises((anyio.EndOfStream, BrokenError)):
                        await socket.receive()
                    assert not over.is_set()
                else:
                    await socket.send(b"goes on")
                    await over.wait()


async def listen_with(
    monkeypatch: pytest.MonkeyPatch, error: OSError, fails: Callable[[], bool]
) -> Listener:
    """A listener whose accept() raises ``error`` as long as ``fails()`` is true."""
    real = stdlib.socket

    class Failing(real):  # type: ignore[misc, valid-type]
        def accept(self) -> Any:
            if fails():
                raise error
            return super().accept()

    with monkeypatch.context() as patch:
        patch.setattr("anyio_connect._listen.socket.socket", Failing)
        return await listen("127.0.0.1:0")


async def serve_until_closed(listener: Listener, handler: Callable[[Socket], Any]) -> None:
    with suppress(anyio.ClosedResourceError):
        await listener.serve(handler)


async def test_data_before_a_reset_is_received_though_both_came_before_serving() -> None:
    outcome: list[object] = []
    done = anyio.Event()

    async def handler(socket: Socket) -> None:
        async with socket:
            info = await socket.opened
            outcome.append(info.remote_address)
            outcome.append(await socket.receive())
            with pytest.raises(BrokenError):
                await socket.receive()
            outcome.append(await settle(socket.closed))
        done.set()

    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        with stdlib.create_connection(("127.0.0.1", port(listener))) as client:
            address = format_address(*client.getsockname())
            client.sendall(b"metric 1")
            peers.Peer(client).rst()
        group.start_soon(listener.serve, handler)
        with anyio.fail_after(5):
            await done.wait()
        group.cancel_scope.cancel()
    assert outcome[:2] == [address, b"metric 1"]
    assert isinstance(outcome[2], BrokenError)


async def test_a_connection_that_is_gone_before_it_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On some systems, accept() then gives no address, and getpeername() fails."""
    gone = [True]

    def make(sock: stdlib.socket, **known: Any) -> Any:
        if gone:
            gone.pop()
            raise OSError(errno.ENOTCONN, "not connected")
        return TCPTransport(sock, **known)

    monkeypatch.setattr("anyio_connect._listen.TCPTransport", make)
    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, send_back)
        async with connect(listener.addresses[0]) as first:
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await first.receive()
        async with connect(listener.addresses[0]) as second:
            await second.send(b"1")
            assert await second.receive() == b"1"
        group.cancel_scope.cancel()


# --- one client cannot hurt a server


async def shout(socket: Socket) -> None:
    """The example of the README."""
    async with socket:
        async for data in socket.readable:
            await socket.send(data.upper())


async def shout_lines(socket: Socket) -> None:
    async with BufferedByteStream(socket) as stream:
        while True:
            line = await stream.receive_until(b"\n", 100)
            await stream.send(line.upper())


async def still_serves(listener: Listener) -> None:
    async with connect(listener.addresses[0]) as socket:
        await socket.send(b"well\n")
        assert (await socket.receive())[:4] == b"WELL"


def reset(client: stdlib.socket) -> None:
    peers.Peer(client).rst()


def hang_up_in_mid_line(client: stdlib.socket) -> None:
    client.sendall(b"no end of li")
    client.close()


def say_a_line_that_is_too_long(client: stdlib.socket) -> None:
    client.sendall(bytes(1000))
    client.close()


@pytest.mark.parametrize(
    ("handler", "act", "logged"),
    [
        (shout, reset, "BrokenError"),
        (shout_lines, reset, "BrokenError"),
        (shout_lines, hang_up_in_mid_line, "IncompleteRead"),
        (shout_lines, say_a_line_that_is_too_long, "DelimiterNotFound"),
    ],
)
async def test_one_client_ends_its_own_handler_and_no_more(
    handler: Callable[[Socket], Any],
    act: Callable[[stdlib.socket], None],
    logged: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handler)
        async with connect(listener.addresses[0]) as innocent:
            await innocent.send(b"before")
            client = stdlib.create_connection(("127.0.0.1", port(listener)))
            address = format_address(*client.getsockname())
            client.sendall(b"x\n")
            while not caplog.records:
                if client.fileno() != -1:
                    await anyio.wait_readable(client)
                    client.recv(10)
                    act(client)
                await anyio.lowlevel.checkpoint()
            client.close()
            await still_serves(listener)
            await innocent.send(b" and after\n")
            assert (await innocent.receive())[:6] == b"BEFORE"
        group.cancel_scope.cancel()
    record = caplog.records[0]
    assert (record.name, record.levelname) == ("anyio_connect", "WARNING")
    assert record.getMessage().startswith(f"the handler of {address} ended with {logged}: ")


def group_of(*errors: BaseException) -> BaseException:
    """An exception group like that of a task group."""
    return BaseExceptionGroup("unhandled errors in a TaskGroup", errors)


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


@pytest.mark.parametrize(
    "error",
    [
        BrokenError("lost"),
        ResolveError("upstream has no address"),
        anyio.EndOfStream(),
        anyio.BrokenResourceError(),
        anyio.ClosedResourceError(),
        anyio.IncompleteRead(),
        anyio.DelimiterNotFound(10),
        group_of(BrokenError("lost")),
        group_of(BrokenError("lost"), group_of(anyio.EndOfStream())),
    ],
    ids=repr,
)
async def test_an_error_that_a_client_can_cause_ends_only_its_handler(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    first = [True]

    async def handler(socket: Socket) -> None:
        if first:
            first.pop()
            await socket.close()
            raise error
        await shout(socket)

    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handler)
        async with connect(listener.addresses[0]) as socket:
            with pytest.raises(anyio.EndOfStream):
                await socket.receive()
        await still_serves(listener)
        group.cancel_scope.cancel()
    (record,) = caplog.records
    assert record.levelname == "WARNING"


@pytest.mark.parametrize(
    "error",
    [
        LookupError(),
        anyio.BusyResourceError("receiving from"),
        group_of(BrokenError("lost"), LookupError()),
        group_of(group_of(LookupError())),
    ],
    ids=repr,
)
async def test_any_other_exception_ends_the_server(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(socket: Socket) -> None:
        await socket.close()
        raise error

    async def serve(listener: Listener) -> None:
        with pytest.raises(Exception) as caught:
            await listener.serve(handler)
        assert leaves(caught.value) == leaves(error)  # trio makes new groups

    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(serve, listener)
        async with connect(listener.addresses[0]) as socket:
            with suppress(anyio.EndOfStream):
                await socket.receive()
    assert not caplog.records


async def test_a_client_that_fails_while_the_server_is_cancelled() -> None:
    """On trio, the exception group of the handler contains the cancellation."""
    waiting = anyio.Event()

    async def fail_when_cancelled() -> None:
        waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise BrokenError("lost")

    async def handler(socket: Socket) -> None:
        async with socket, anyio.create_task_group() as own:
            own.start_soon(fail_when_cancelled)
            await anyio.sleep_forever()

    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handler)
        async with connect(listener.addresses[0]):
            await waiting.wait()
            group.cancel_scope.cancel()


async def test_a_cancelled_handler_stays_cancelled_though_its_client_failed() -> None:
    async def fail_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise BrokenError("lost")

    async def handler(_: Socket) -> None:
        async with anyio.create_task_group() as own:
            own.start_soon(fail_when_cancelled)
            own.start_soon(anyio.sleep_forever)
            await all_blocked()
            scope.cancel()

    async with connected() as (socket, _):
        with anyio.CancelScope() as scope:
            await handle(handler, socket, "test:1")
        # On asyncio, a task group does not raise its cancellation together with other errors.
        assert scope.cancelled_caught == trio.lowlevel.in_trio_run()


# --- closing


async def test_the_port_of_a_closed_listener_is_free_at_once() -> None:
    """Even while a task waits for a connection, and before the next turn of the event loop."""
    async with anyio.create_task_group() as group:
        listener = await listen("127.0.0.1:0")
        group.start_soon(serve_until_closed, listener, send_back)
        await all_blocked()
        (sock,) = listener._sockets
        where = sock.getsockname()
        await listener.aclose()
        assert sock.fileno() == -1
        with stdlib.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(where)
        with stdlib.socket() as other:
            other.bind(where)  # without SO_REUSEADDR
        async with await listen(where) as again:
            assert again.addresses == listener.addresses


async def wait_readable(sock: stdlib.socket) -> None:
    with anyio.fail_after(5):
        await anyio.wait_readable(sock)


async def test_a_new_socket_may_have_the_descriptor_of_a_closed_listener() -> None:
    ours, theirs = stdlib.socketpair()
    with theirs:
        async with anyio.create_task_group() as group:
            listener = await listen("127.0.0.1:0")
            group.start_soon(serve_until_closed, listener, send_back)
            await all_blocked()
            (sock,) = listener._sockets
            number = sock.fileno()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await listener.aclose()  # closes though it is cancelled
            newcomer = ours.dup()
            ours.close()
            newcomer.setblocking(False)
            assert newcomer.fileno() == number
            with newcomer:
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(wait_readable, newcomer)
                    await all_blocked()
                    theirs.send(b"x")
                assert newcomer.recv(1) == b"x"


async def test_a_listener_under_the_tls_listener_of_anyio() -> None:
    async def handler(stream: TLSStream) -> None:
        async with stream:
            await stream.send(await stream.receive())

    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(TLSListener(listener, server_context()).serve, handler)
        async with connect(
            listener.addresses[0], secure_transport="on", ssl_context=client_context()
        ) as socket:
            await socket.send(b"secret")
            assert await socket.receive() == b"secret"
        group.cancel_scope.cancel()


# --- where


def refuse_ipv6(where: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse as a kernel does that has no IPv6, or no IPv6 address."""
    real = stdlib.socket

    class Refusing(real):  # type: ignore[misc, valid-type]
        def __init__(self, family: int = -1, *args: Any, **keywords: Any) -> None:
            if where == "socket" and family == stdlib.AF_INET6:
                raise OSError(code, "no IPv6 here")
            super().__init__(stdlib.AF_INET, *args, **keywords)
            self.asked = family

        def bind(self, address: Any) -> None:
            if self.asked == stdlib.AF_INET6:
                raise OSError(code, "no IPv6 here")
            super().bind(address)

        def setsockopt(self, level: int, *arguments: Any) -> None:
            if level != stdlib.IPPROTO_IPV6:
                super().setsockopt(level, *arguments)

    monkeypatch.setattr("anyio_connect._listen.socket.socket", Refusing)


@pytest.mark.parametrize(
    ("where", "code"), [("socket", errno.EAFNOSUPPORT), ("bind", errno.EADDRNOTAVAIL)]
)
async def test_addresses_of_a_name_that_this_machine_does_not_have_are_skipped(
    where: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ["::1", "127.0.0.1"]

    async def getaddrinfo(_: str, number: int, **__: object) -> list[Any]:
        return [
            (
                stdlib.AF_INET6 if ":" in ip else stdlib.AF_INET,
                *(stdlib.SOCK_STREAM, 6, ""),
                (ip, number, 0, 0) if ":" in ip else (ip, number),
            )
            for ip in both
        ]

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
    with monkeypatch.context() as patch:
        refuse_ipv6(where, code, patch)
        listener = await listen("localhost:0")
    async with listener:
        assert listener.addresses == [f"127.0.0.1:{port(listener)}"]
    both.pop()
    with monkeypatch.context() as patch:
        refuse_ipv6(where, code, patch)
        with pytest.raises(ListenError, match=r"^cannot listen at localhost:0: ") as caught:
            await listen("localhost:0")
    assert caught.value.errno == code


async def test_a_name_fails_if_the_port_is_taken_at_one_of_its_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def getaddrinfo(_: str, number: int, **__: object) -> list[Any]:
        return [
            (stdlib.AF_INET, stdlib.SOCK_STREAM, 6, "", (ip, number))
            for ip in ("127.0.0.2", "127.0.0.1")
        ]

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
    async with await listen("127.0.0.1:0") as taken:
        with pytest.raises(ListenError, match="another socket listens there"):
            await listen(f"host.test:{port(taken)}")


@needs_ipv6
async def test_a_name_stands_for_all_its_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def getaddrinfo(host: str, number: int, **_: object) -> list[Any]:
        assert (host, number) == ("host.test", 0)
        return [
            (stdlib.AF_INET, stdlib.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
            (stdlib.AF_INET6, stdlib.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        ]

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
    async with await listen("host.test:0") as listener, anyio.create_task_group() as group:
        number = port(listener)
        assert listener.addresses == [f"127.0.0.1:{number}", f"[::1]:{number}"]
        group.start_soon(listener.serve, send_back)
        for address in listener.addresses:
            async with connect(address) as socket:
                await socket.send(b"1")
                assert await socket.receive() == b"1"
        group.cancel_scope.cancel()


async def test_typed_attributes() -> None:
    async with await listen(("127.0.0.1", 0)) as listener:
        at: Any = listener.extra(SocketAttribute.local_address)
        host, number = at
        assert listener.addresses == [f"{host}:{number}"]
        assert listener.extra(SocketAttribute.family) == stdlib.AF_INET
        assert listener.extra(SocketAttribute.raw_socket).getsockname() == (host, number)


async def test_a_port_that_is_taken_and_an_address_of_another_machine_are_errors() -> None:
    async with await listen("127.0.0.1:0") as listener:
        with pytest.raises(ListenError, match="another socket listens there") as caught:
            await listen(listener.addresses[0])
        assert caught.value.errno == errno.EADDRINUSE
        assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ListenError, match="no such address"):
        await listen("192.0.2.1:0")


async def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    address: Any
    for address in ("127.0.0.1", "127.1:0", "h:65536", ("h", -1)):
        with pytest.raises(InvalidAddressError):
            await listen(address)
    bad: list[dict[str, Any]] = [{"backlog": 0}, {"backlog": True}, {"allow_half_open": 1}]
    bad += [{"close_timeout": 0}]
    for options in bad:
        with pytest.raises(InvalidOptionError, match=f"bad value for {next(iter(options))}"):
            await listen("127.0.0.1:0", **options)

    async def getaddrinfo(*_: object, **__: object) -> Any:
        raise stdlib.gaierror(stdlib.EAI_NONAME, "no such name")

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
    with pytest.raises(ResolveError, match="no such name"):
        await listen("host.test:0")
