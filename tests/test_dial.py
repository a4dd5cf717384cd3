"""Dialling: addresses of a name are raced, every failure is reported, nothing is left behind."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import select
import socket as stdlib
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from typing import Any
from unittest import mock

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_connect import (
    AddressNotAllowedError,
    AddressPolicy,
    BrokenError,
    ClosedError,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    RefusedError,
    ResolveError,
    Socket,
    SocketError,
    _dial,
    _open,
    _threads,
    connect,
)
from anyio_connect._transport import ForeignTransport, Transport
from support.errors import is_copy
from support.peers import full, listening, needs_ipv6, refusing_address

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems say other things")


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A name server of our own: host name -> list of (ip, port), or an exception."""
    names: dict[str, Any] = {}

    async def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        answer = names[host]
        if isinstance(answer, Exception):
            raise answer
        return [
            (
                stdlib.AF_INET6 if ":" in ip else stdlib.AF_INET,
                stdlib.SOCK_STREAM,
                6,
                "",
                (ip, at or port),
            )
            for ip, at in answer
        ]

    monkeypatch.setattr(_dial, "getaddrinfo", getaddrinfo)
    return names


def endpoints(*hosts: str) -> list[_dial.Endpoint]:
    return [
        _dial.Endpoint(stdlib.AF_INET6 if ":" in host else stdlib.AF_INET, (host, 1))
        for host in hosts
    ]


@pytest.mark.parametrize(
    ("given", "raced"),
    [
        (["a", "b"], ["a", "b"]),
        ([":1", ":2", "a", "b"], [":1", "a", ":2", "b"]),
        (["a", "b", ":1"], ["a", ":1", "b"]),
        ([":1", "a", "b", "c"], [":1", "a", "b", "c"]),
        (["a"], ["a"]),
    ],
)
def test_families_alternate(given: list[str], raced: list[str]) -> None:
    assert _dial._interleave(endpoints(*given)) == endpoints(*raced)


async def test_a_refused_address_starts_the_next_at_once(resolver: dict[str, Any]) -> None:
    connector = Connector(happy_eyeballs_delay=3600)
    async with listening() as listener:
        resolver["host.test"] = [refusing_address(), refusing_address(), listener.address]
        with anyio.fail_after(30):
            async with connector.connect("host.test:1") as socket:
                info = await socket.opened
        assert info.remote_address == "{}:{}".format(*listener.address)


async def test_a_silent_address_does_not_hold_up_the_next(resolver: dict[str, Any]) -> None:
    connector = Connector(happy_eyeballs_delay=0.01)
    async with full() as silent, listening() as listener:
        resolver["host.test"] = [silent.address, listener.address]
        with anyio.fail_after(30):
            async with connector.connect("host.test:1") as socket:
                info = await socket.opened
        assert info.remote_address == "{}:{}".format(*listener.address)


async def test_every_failure_is_told(resolver: dict[str, Any]) -> None:
    first, second = refusing_address(), refusing_address()
    resolver["host.test"] = [first, second]
    socket = connect("host.test:443")
    with pytest.raises(RefusedError, match="all 2 addresses failed") as caught:
        await socket.opened
    error = caught.value
    for address in (first, second):
        assert "{}:{}".format(*address) in str(error)
    assert len(error.attempts) == 2
    assert all(isinstance(attempt, RefusedError) for attempt in error.attempts)
    assert error.errno == errno.ECONNREFUSED
    assert "HTTP client" in "".join(vars(error)["__notes__"])


async def test_failures_of_two_kinds_have_no_common_name(resolver: dict[str, Any]) -> None:
    connector = Connector(happy_eyeballs_delay=0)
    # Connecting to a broadcast address is refused by the kernel: EACCES or ENETUNREACH.
    resolver["host.test"] = [refusing_address(), ("255.255.255.255", 9)]
    with pytest.raises(ConnectError) as caught:
        await connector.connect("host.test:1").opened
    assert type(caught.value) is ConnectError
    assert {type(attempt) for attempt in caught.value.attempts} == {ConnectError, RefusedError}


async def test_a_timeout_tells_what_failed_before(resolver: dict[str, Any]) -> None:
    async with full() as silent:
        resolver["host.test"] = [refusing_address(), silent.address]
        error = await too_late(Connector(), "refused")
        assert len(error.attempts) == 1
        assert isinstance(error.__cause__, ConnectionRefusedError)


LOCAL = AddressPolicy(allow=["127.0.0.0/8"])


async def test_a_timeout_tells_what_the_policy_dropped(resolver: dict[str, Any]) -> None:
    async with full() as silent:
        resolver["host.test"] = [("10.0.0.1", 80), silent.address]
        connector = Connector(LOCAL)
        error = await too_late(connector, "not tried: 10.0.0.1:80: ")
        assert "forbids" in str(error)


async def test_so_does_a_local_host_of_the_other_family(resolver: dict[str, Any]) -> None:
    resolver["host.test"] = [("2001:db8::1", 80), ("127.0.0.1", 80)]
    connector = Connector(LOCAL, local_host="::1")
    with pytest.raises(ConnectError, match=r"not tried: \[2001:db8::1\]:80: .* forbids"):
        await connector.connect("host.test:1").opened


async def test_a_timeout_counts_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: object, **__: object) -> list[Any]:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(_dial, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectTimeoutError):
        await connect("host.test:1", connect_timeout=0.02).opened


@pytest.mark.parametrize(
    "answer",
    [
        stdlib.gaierror(stdlib.EAI_NONAME, "no such name"),
        UnicodeError("label too long"),
        [],
    ],
)
async def test_unresolvable(resolver: dict[str, Any], answer: object) -> None:
    resolver["host.test"] = answer
    with pytest.raises(ResolveError, match=r"cannot resolve 'host\.test'") as caught:
        await connect("host.test:1").opened
    if isinstance(answer, Exception):
        assert is_copy(caught.value.__cause__, answer)
    else:
        assert caught.value.__cause__ is None


async def test_the_same_address_twice_is_tried_once(resolver: dict[str, Any]) -> None:
    resolver["host.test"] = [refusing_address()] * 2
    with pytest.raises(RefusedError) as caught:
        await connect("host.test:1").opened
    assert len(caught.value.attempts) == 1


async def test_several_winners_leave_one(resolver: dict[str, Any]) -> None:
    connector = Connector(happy_eyeballs_delay=0)
    async with listening() as first, listening() as second, listening() as third:
        resolver["host.test"] = [first.address, second.address, third.address]
        async with connector.connect("host.test:1") as socket:
            info = await socket.opened
            assert info.remote_address in {
                "{}:{}".format(*listener.address) for listener in (first, second, third)
            }


async def test_the_second_winner_is_reset(
    resolver: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both attempts get through before either of them can cancel the other."""
    real, made, both = _dial._connect, list[_dial.Endpoint](), anyio.Event()

    async def connect_both(endpoint: _dial.Endpoint, *how: Any) -> Any:
        transport = await real(endpoint, *how)
        made.append(endpoint)
        if len(made) == 2:
            both.set()
        with anyio.CancelScope(shield=True):
            await both.wait()
        return transport

    monkeypatch.setattr(_dial, "_connect", connect_both)
    connector = Connector(happy_eyeballs_delay=0)
    async with listening() as first, listening() as second:
        resolver["host.test"] = [first.address, second.address]
        async with connector.connect("host.test:1") as socket:
            won = (await socket.opened).remote_address
            assert len(made) == 2
            for listener in (first, second):
                peer = await listener.accept()
                if won == "{}:{}".format(*listener.address):
                    await peer.send(b"1")
                    assert await socket.receive() == b"1"
                else:
                    with pytest.raises(ConnectionResetError):
                        await peer.receive()


def test_the_delay_is_that_of_the_rfc() -> None:
    assert Connector().happy_eyeballs_delay == 0.25
    assert _dial.Route().happy_eyeballs_delay == 0.25


@pytest.mark.parametrize("delay", [float("inf"), 1.7e308, 10**308, 0, 0.0])
async def test_any_delay_that_is_taken_works(delay: float, resolver: dict[str, Any]) -> None:
    connector = Connector(happy_eyeballs_delay=delay)
    async with listening() as listener:
        resolver["host.test"] = [refusing_address(), refusing_address(), listener.address]
        async with connector.connect("host.test:1") as socket:
            assert (await socket.opened).remote_address == "{}:{}".format(*listener.address)


async def test_a_race_cancelled_at_any_moment_leaves_nothing(resolver: dict[str, Any]) -> None:
    """The k-th task switch cancels, for every k until the dial gets through."""
    connector = Connector(happy_eyeballs_delay=0)
    async with listening() as first, listening() as second:
        resolver["host.test"] = [refusing_address(), first.address, second.address]
        for switches in range(200):
            socket = connector.connect("host.test:1")
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def cancel(scope: anyio.CancelScope, switches: int) -> None:
                        for _ in range(switches):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()

                    group.start_soon(cancel, scope, switches)
                    await socket.opened
                    group.cancel_scope.cancel()
            if socket.opened.done():
                await socket.close()
                if not scope.cancel_called:
                    break
        else:
            pytest.fail("the dial never got through")


def test_a_zone_is_shown_by_name() -> None:
    name = stdlib.if_indextoname(1)
    assert str(_dial.Endpoint(stdlib.AF_INET6, ("fe80::1", 9, 0, 1))) == f"[fe80::1%{name}]:9"
    assert str(_dial.Endpoint(stdlib.AF_INET6, ("::1", 9, 0, 0))) == "[::1]:9"


KERNEL = [
    (errno.ECONNREFUSED, RefusedError, "connection refused: nothing is listening there"),
    (errno.ETIMEDOUT, ConnectTimeoutError, "no answer: the system's own connect timeout ran out"),
    (errno.ENETUNREACH, ConnectError, "network unreachable: this machine has no route to it"),
    (errno.EHOSTUNREACH, ConnectError, "host unreachable"),
    (errno.EADDRNOTAVAIL, ConnectError, "no local address or port is free to connect from"),
    (errno.EPROTO, ConnectError, "Protocol error"),
]


@pytest.mark.usefixtures("from_afar")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("code", "kind", "text"), KERNEL)
async def test_what_the_kernel_says_is_told(
    code: int, kind: type[ConnectError], text: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        if late:
            return code
        raise OSError(code, os.strerror(code))

    if late:  # as most are told
        monkeypatch.setattr(stdlib.socket, "getsockopt", fail, raising=False)
    else:
        monkeypatch.setattr(stdlib.socket, "connect", fail, raising=False)
    async with listening() as listener:
        address = "{}:{}".format(*listener.address)
        with pytest.raises(ConnectError) as caught:
            await connect(address).opened
    assert type(caught.value) is kind
    assert [type(attempt) for attempt in caught.value.attempts] == [kind]
    assert str(caught.value) == f"cannot connect to {address}: {text}"
    assert caught.value.errno == code
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_system_without_room_for_a_literal(monkeypatch: pytest.MonkeyPatch) -> None:
    """getaddrinfo() may fail with any error of the system's."""

    def no_more(*_: object, **__: object) -> Any:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(stdlib, "getaddrinfo", no_more)
    with pytest.raises(ResolveError, match=r"cannot resolve '::1': no memory"):
        await connect("[::1]:9").opened


async def test_too_many_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("anyio_connect._dial.socket.socket", no_more)
    with pytest.raises(ConnectError, match="too many open files") as caught:
        await connect("127.0.0.1:9").opened
    assert caught.value.errno == errno.EMFILE


@needs_ipv6
async def test_a_zone_reaches_the_kernel() -> None:
    async with listening("::1") as listener:
        port = listener.address[1]
        index = stdlib.if_nametoindex("lo")
        async with connect(f"[::1%{index}]:{port}") as socket:
            info = await socket.opened
            assert info.remote_address == f"[::1]:{port}"


async def test_a_zone_that_is_no_interface() -> None:
    with pytest.raises(ResolveError, match="no network interface 'nosuch0'"):
        await connect("[fe80::1%nosuch0]:9").opened


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may take that zone")
async def test_a_zone_that_the_address_cannot_have() -> None:
    with pytest.raises(ResolveError, match=r"only link-local addresses have zones: write '::1'"):
        await connect("[::1%lo]:9").opened


@pytest.mark.usefixtures("from_afar")
async def test_without_waiting_for_sockets_anyio_connects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An event loop that cannot wait for sockets: AnyIO's own stream serves."""

    async def wait_writable(_: object) -> None:
        raise NotImplementedError

    async with listening() as listener:
        with monkeypatch.context() as patch:
            patch.setattr(anyio, "wait_writable", wait_writable)
            socket = connect(listener.address, allow_half_open=True)
            info = await socket.opened
        assert info.remote_address == "{}:{}".format(*listener.address)
        assert isinstance(socket._connection.transport, ForeignTransport)
        peer = await listener.accept()  # the one that could not be waited for, or the next
        if "{}:{}".format(*peer.sock.getpeername()) != info.local_address:
            peer = await listener.accept()
        await socket.send(b"ping")
        assert await peer.receive() == b"ping"
        await peer.send(b"pong")
        assert await socket.receive() == b"pong"
        await socket.send_eof()
        assert await peer.receive() == b""
        await peer.send(b"after our end")
        assert await socket.receive() == b"after our end"
        peer.fin()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        assert socket.closed.result() is None


class GroupError(Exception):
    """As ExceptionGroup, which Python 3.10 lacks."""

    def __init__(self, *exceptions: Exception) -> None:
        super().__init__("multiple connection attempts failed")
        self.exceptions = exceptions


@pytest.mark.usefixtures("from_afar")
async def test_what_anyio_fails_with_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_writable(_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(anyio, "wait_writable", wait_writable)
    with pytest.raises(RefusedError, match="connection refused") as caught:
        await connect(refusing_address()).opened
    assert caught.value.errno == errno.ECONNREFUSED

    unreachable = OSError(errno.ENETUNREACH, "unreachable")
    causes: list[tuple[Exception | None, str]] = [
        (unreachable, "no route"),
        (GroupError(unreachable), "no route"),
        (GroupError(GroupError(unreachable)), "no route"),
        (GroupError(ValueError()), "All connection attempts failed"),
        (None, "All connection attempts failed"),
    ]
    for cause, text in causes:

        async def connect_tcp(
            *_: object, cause: Exception | None = cause, **__: object
        ) -> anyio.abc.SocketStream:
            raise OSError("All connection attempts failed") from cause

        monkeypatch.setattr(anyio, "connect_tcp", connect_tcp)
        with pytest.raises(ConnectError, match=text):
            await connect(refusing_address()).opened


@pytest.mark.usefixtures("from_afar")
async def test_a_stream_that_no_longer_knows_its_peer_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AnyIO's asks the kernel, which has no answer once the connection was reset."""

    async def wait_writable(_: object) -> None:
        raise NotImplementedError

    connect_tcp = anyio.connect_tcp
    streams: list[Any] = []

    async def forgetful(*args: Any, **options: Any) -> Any:
        stream = await connect_tcp(*args, **options)
        streams.append(stream)

        def forgotten() -> Any:
            raise OSError(errno.ENOTCONN, "not connected")

        attributes = {**stream.extra_attributes, SocketAttribute.remote_address: forgotten}
        patched = type("Forgetful", (type(stream),), {"extra_attributes": attributes})
        stream.__class__ = patched
        return stream

    async with listening() as listener:
        monkeypatch.setattr(anyio, "wait_writable", wait_writable)
        monkeypatch.setattr(anyio, "connect_tcp", forgetful)
        with pytest.raises(ConnectError, match="not connected") as caught:
            await Connector(LOCAL).connect(listener.address).opened
    assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(anyio.ClosedResourceError):
        await streams[0].receive()


# --- the event loop


@pytest.mark.parametrize("max_connections", [None, 1])
async def test_an_import_that_has_only_begun_is_not_looked_into(
    max_connections: int | None, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread; or it is a file of the user's, or a stub, with the name of a library."""
    other = "asyncio" if anyio_backend_name == "trio" else "trio"
    connector = Connector(max_connections=max_connections)
    async with listening() as listener:
        waiting = connector.connect(listener.address)
        async with (
            connector.connect(listener.address) as one,
            anyio.create_task_group() as group,
        ):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, other, types.ModuleType(other))
                if max_connections is None:
                    await waiting.opened
                else:
                    group.start_soon(waits, waiting)
                await one.send(b"1")
                peer = await listener.accept()
                assert await peer.receive() == b"1"
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
            await one.close()
        assert waiting.opened.exception() is None
        await waiting.close()


async def waits(socket: Socket) -> None:
    with anyio.fail_after(10):
        await socket.opened


# --- a connection that is made at once, as on loopback


@pytest.mark.parametrize("connector", [Connector(), Connector(LOCAL)], ids=["short", "judged"])
async def test_a_connection_that_is_there_is_not_waited_for(
    connector: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait_writable(_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(anyio, "wait_writable", wait_writable)
    async with listening() as listener:
        address = "{}:{}".format(*listener.address)
        async with connector.connect(address) as socket:
            peer = await listener.accept()
            info = socket.opened.result()
            assert info.remote_address == address
            assert info.local_address == "{}:{}".format(*peer.sock.getpeername())
            await peer.send(b"1")
            assert await socket.receive() == b"1"


async def test_a_cancellation_that_is_due_comes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        with monkeypatch.context() as patch, anyio.CancelScope() as scope:
            patch.setattr("anyio_connect._open.begin", None)  # which would fail
            scope.cancel()
            await socket.opened
        assert scope.cancelled_caught
        assert not socket.opened.done()
        async with socket:
            await listener.accept()


@pytest.mark.parametrize("name", _dial.Route._fields)
def test_only_what_is_for_names_leaves_a_route_plain(name: str) -> None:
    """begin() does nothing but connect, so whatever else there is to do is not its business."""

    something: Any = {name: mock.ANY}  # which is equal to everything
    route = _dial.Route()._replace(**something)
    assert route.is_plain is (name in {"happy_eyeballs_delay", "resolver"})
    assert _dial.Route().is_plain


async def test_a_step_behind_the_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the connection is there at once."""

    async def greet(transport: Transport | None) -> Transport:
        assert transport is not None
        await transport.send(b"hello ")
        return transport

    def further(_: object) -> list[_open.Step]:
        return [_open.Step(greet, lambda _: ConnectTimeoutError("never"))]

    monkeypatch.setattr(_open.Dialled, "_further_steps", further)
    async with listening() as listener, connect(listener.address) as socket:
        await socket.send(b"world")
        peer = await listener.accept()
        await socket.send_eof()
        assert await peer.receive_all() == b"hello world"


@pytest.mark.parametrize("how", ["an error of ours", "another error", "late", "cancelled"])
async def test_a_step_that_fails_leaves_no_connection(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The author of a step need not think of the transport."""
    began = anyio.Event()

    async def fail(_: object) -> Transport:
        if how == "an error of ours":
            raise ConnectError("no")
        if how == "another error":
            raise ZeroDivisionError
        began.set()
        await anyio.sleep_forever()
        raise AssertionError

    def further(_: object) -> list[_open.Step]:
        return [_open.Step(fail, lambda _: ConnectTimeoutError("late"))]

    monkeypatch.setattr(_open.Dialled, "_further_steps", further)
    async with listening() as listener:
        timeout = 0.01 if how == "late" else math.inf
        socket = Connector(max_connections=1).connect(listener.address, connect_timeout=timeout)
        async with anyio.create_task_group() as group:
            group.start_soon(settled, socket)
            if how == "cancelled":
                await began.wait()
                group.cancel_scope.cancel()
        peer = await listener.accept()
        with pytest.raises(ConnectionResetError):
            await peer.receive()
        await socket.close()


async def settled(socket: Socket) -> None:
    with suppress(SocketError):
        await socket.opened


async def test_every_task_that_waits_for_it_is_woken() -> None:
    async with listening() as listener:
        for _ in range(20):  # some give way to others first
            async with connect(listener.address) as socket, anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(_opened, socket)
            async with anyio.create_task_group() as group:
                socket = connect(listener.address)
                for _ in range(3):
                    group.start_soon(_opened, socket)
            await socket.close()


async def _opened(socket: Socket) -> None:
    await socket.opened


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """To which addresses a socket was to be connected, in order."""
    addresses = []

    class Spied(stdlib.socket):
        def connect(self, address: Any) -> None:
            addresses.append(address)
            super().connect(address)

    monkeypatch.setattr("anyio_connect._dial.socket.socket", Spied)
    return addresses


async def _error_of(socket: Socket) -> SocketError:
    with pytest.raises(SocketError) as caught:
        await socket.opened
    return caught.value


#: As :func:`connect`, but it judges each address first, and so begins nothing before that.
judging = Connector(AddressPolicy())


@pytest.mark.parametrize(
    "address",
    [
        pytest.param(None, id="refused"),
        pytest.param("[fe80::1]:9", id="no zone", marks=[needs_ipv6, only_linux]),
        pytest.param("[fe80::1%lo]:9", id="unreachable", marks=[needs_ipv6, only_linux]),
    ],
)
async def test_what_fails_at_once_is_tried_once(address: str | None, tried: list[Any]) -> None:
    address = address or "{}:{}".format(*refusing_address())
    error = await _error_of(connect(address))
    assert isinstance(error, ConnectError)
    assert len(tried) == len(error.attempts) == 1
    judged = await _error_of(judging.connect(address))
    assert len(tried) == 2  # to make sure that those are counted
    assert is_copy(error, judged)


async def test_each_of_several_addresses_that_fail_at_once_is_tried_once(
    resolver: dict[str, Any], tried: list[Any]
) -> None:
    resolver["host.test"] = addresses = [refusing_address() for _ in range(2)]
    await _error_of(connect("host.test:9"))
    assert tried == addresses


@needs_ipv6
async def test_a_zone_that_is_no_interface_is_told_without_a_try(tried: list[Any]) -> None:
    assert isinstance(await _error_of(connect("[fe80::1%nosuch0]:9")), ResolveError)
    assert not tried


async def test_a_socket_that_cannot_be_made_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class Full(stdlib.socket):
        def __init__(self, *_: object) -> None:
            asked.append(self)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("anyio_connect._dial.socket.socket", Full)
        error = await _error_of(connect("127.0.0.1:9"))
    assert len(asked) == 1
    assert "too many open files" in str(error)


async def test_a_connection_that_breaks_as_it_is_made_is_not_made_again(
    tried: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def getsockname(_: object) -> Any:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    async with listening() as listener:
        address = listener.address
        with monkeypatch.context() as patch:
            patch.setattr(stdlib.socket, "getsockname", getsockname, raising=False)
            error = await _error_of(connect(address))
    assert tried == [address]
    assert isinstance(error, ConnectError)
    assert error.errno == errno.ENOBUFS


@pytest.mark.usefixtures("from_afar")
async def test_what_was_begun_is_gone_on_with() -> None:
    """And not started again."""
    async with listening() as listener:
        async with connect(listener.address) as socket:
            peer = await listener.accept()
            local = socket.opened.result().local_address
            assert local == "{}:{}".format(*peer.sock.getpeername())
        assert await peer.receive() == b""
        with pytest.raises(BlockingIOError):
            listener.sock.accept()


@pytest.mark.usefixtures("from_afar")
async def test_what_was_begun_is_closed_if_it_is_not_wanted_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def wait_writable(_: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(anyio, "wait_writable", wait_writable)
    async with listening() as listener:
        socket = connect(listener.address)
        async with anyio.create_task_group() as group:
            group.start_soon(_fails, socket)
            peer = await listener.accept()
            await socket.close()
        assert await peer.receive() == b""


async def _fails(socket: Socket) -> None:
    with pytest.raises(ClosedError):
        await socket.opened


# --- a connection that was made, and is lost already


@pytest.mark.usefixtures("from_afar")
@pytest.mark.parametrize("ended", [False, True])
async def test_a_reset_that_came_first_leaves_what_the_peer_said(
    ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server sends that refuses a client at once, while our event loop is busy."""
    wait_writable = anyio.wait_writable

    async with listening() as listener:

        async def wait_too_long(sock: stdlib.socket) -> None:
            await wait_writable(sock)
            peer = await listener.accept()
            await peer.send(b"421 too many connections")
            if ended:
                peer.fin()
            peer.rst()
            poll = select.poll()
            poll.register(sock, 0)
            assert poll.poll(10_000)  # an error, or that both sides are gone

        with monkeypatch.context() as patch:
            patch.setattr(anyio, "wait_writable", wait_too_long)
            socket = connect(listener.address)
            info = await socket.opened
        assert info.remote_address == "{}:{}".format(*listener.address)
        assert await socket.receive() == b"421 too many connections"
        if ended:
            with pytest.raises(anyio.EndOfStream):
                await socket.receive()
            assert socket.closed.exception() is None
        else:
            with pytest.raises(BrokenError, match="reset") as caught:
                await socket.receive()
            assert isinstance(caught.value.__cause__, ConnectionResetError)
            with pytest.raises(BrokenError):
                await socket.closed
        await socket.close()


async def test_a_reset_between_two_looks_is_no_failed_dial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel has said that the connection was made, and then no longer knows with whom."""

    class Lost(stdlib.socket):
        def getpeername(self) -> Any:
            raise OSError(errno.ENOTCONN, "not connected")

    async with listening() as listener:
        with monkeypatch.context() as patch:
            patch.setattr("anyio_connect._dial.socket.socket", Lost)
            async with Connector(LOCAL).connect(listener.address) as socket:
                info = await socket.opened
                assert info.remote_address == "{}:{}".format(*listener.address)


# --- time limits, and what each says

PHASES = [
    "no slot came free",
    "the name was not resolved",
    "no connection",
    "the handshake did not finish",
]


async def too_late(connector: Connector, text: str, **options: Any) -> ConnectTimeoutError:
    """Connect in a time that is too short; not so short, though, that ``text`` is not reached."""
    for seconds in (0.05, 0.5, 5):
        socket = connector.connect("host.test:1", connect_timeout=seconds, **options)
        with pytest.raises(ConnectTimeoutError) as caught:
            await socket.opened
        assert f" within {seconds} seconds" in str(caught.value)
        assert isinstance(socket.closed.exception(), ConnectTimeoutError)
        if text in str(caught.value):
            break
    assert text in str(caught.value)
    return caught.value


@pytest.mark.parametrize("phase", PHASES)
async def test_each_phase_has_a_time_limit_of_its_own_words(
    phase: str, resolver: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = Connector(max_connections=1)
    async with full() as silent, listening() as listener:
        resolver["host.test"] = [silent.address if phase == "no connection" else listener.address]
        holder = connector.connect(listener.address)
        if phase == "no slot came free":
            await holder.opened
        elif phase == "the name was not resolved":
            monkeypatch.setattr(_dial, "getaddrinfo", lambda *_: anyio.sleep_forever())
        error = await too_late(connector, phase, secure_transport="on")
        await holder.close()
    assert [phase] == [each for each in PHASES if each in str(error)]
    assert "host.test:1" in str(error)
    assert error.errno == errno.ETIMEDOUT


async def test_a_timeout_names_those_that_never_answered(resolver: dict[str, Any]) -> None:
    async with full() as one, full() as two:
        resolver["host.test"] = [one.address, refusing_address(), two.address]
        silent = ", ".join("{}:{}".format(*listener.address) for listener in (one, two))
        connector = Connector(happy_eyeballs_delay=0)
        error = await too_late(connector, f"no answer from {silent}; ")
    assert len(error.attempts) == 1


async def test_a_timeout_of_one_address_names_it_once() -> None:
    async with full() as silent:
        address = "{}:{}".format(*silent.address)
        with pytest.raises(ConnectTimeoutError) as caught:
            await connect(address, connect_timeout=0.02).opened
    assert str(caught.value) == f"cannot connect to {address}: no connection within 0.02 seconds"


async def test_a_timeout_counts_what_had_no_turn(resolver: dict[str, Any]) -> None:
    async with full() as silent:
        resolver["host.test"] = [silent.address, ("127.0.0.2", 1), ("127.0.0.3", 1)]
        connector = Connector(happy_eyeballs_delay=3600)
        await too_late(connector, "; 2 more addresses were left out")


# --- many addresses

MANY = [(f"127.{n >> 16}.{n >> 8 & 255}.{n & 255}", 1) for n in range(1, 4001)]


async def test_of_very_many_addresses_a_few_are_dialled(
    resolver: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    class Counting(stdlib.socket):
        def connect(self, address: Any, /) -> None:
            nonlocal made
            made += 1
            raise OSError(errno.EHOSTUNREACH, "no way")

    monkeypatch.setattr("anyio_connect._dial.socket.socket", Counting)
    resolver["host.test"] = MANY
    with pytest.raises(ConnectError) as caught:
        await connect("host.test:1").opened
    assert made == len(caught.value.attempts) == _dial.MOST_ADDRESSES
    message = str(caught.value)
    assert "all 64 addresses failed" in message
    assert "and 56 more" in message
    assert "3936 more addresses were left out" in message
    assert len(message) < 1000


async def test_both_families_of_very_many_have_a_chance(resolver: dict[str, Any]) -> None:
    async with listening() as listener:
        resolver["host.test"] = [*((f"2001:db8::{n:x}", 1) for n in range(1000)), listener.address]
        connector = Connector(LOCAL)
        async with connector.connect("host.test:1") as socket:
            assert (await socket.opened).remote_address == "{}:{}".format(*listener.address)


async def test_others_run_while_addresses_are_judged(resolver: dict[str, Any]) -> None:
    judged = 0
    seen: list[int] = []

    class Slow(AddressPolicy):
        def refusal(self, address: object, port: int) -> str | None:
            nonlocal judged
            judged += 1
            return "no" * 10_000

    async def look() -> None:
        while True:
            seen.append(judged)
            await anyio.lowlevel.checkpoint()

    resolver["host.test"] = MANY
    async with anyio.create_task_group() as group:
        group.start_soon(look)
        with pytest.raises(AddressNotAllowedError) as caught:
            await Connector(Slow()).connect("host.test:1").opened
        group.cancel_scope.cancel()
    seen.append(judged)
    assert judged == _dial.MOST_ADDRESSES
    assert max(later - earlier for earlier, later in pairwise(seen)) <= 3
    assert "and 56 more; 3936 more addresses were left out" in str(caught.value)
    assert len(str(caught.value)) < 6000


async def test_a_time_limit_ends_the_judging(resolver: dict[str, Any]) -> None:
    class Slow(AddressPolicy):
        def refusal(self, address: object, port: int) -> str | None:
            time.sleep(0.01)
            return None

    resolver["host.test"] = MANY
    socket = Connector(Slow()).connect("host.test:1", connect_timeout=0.03)
    with pytest.raises(ConnectTimeoutError):
        await socket.opened


# --- only SocketErrors come out


class OddError(Exception):
    """An unknown exception, whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError


FOREIGN = [
    ValueError("no"),
    UnicodeError("no"),
    OverflowError("no"),
    MemoryError(),
    RuntimeError(),
    OddError(),
    KeyError("no"),
]


@pytest.mark.parametrize("error", FOREIGN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "where", ["resolver", "refusal", "port_refusal", "loops_refused", "connect", "getpeername"]
)
async def test_whatever_is_raised_is_a_socket_error(
    where: str, error: Exception, resolver: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise error

    policy = LOCAL
    if where in ("refusal", "port_refusal"):
        policy = type("Foreign", (AddressPolicy,), {where: fail})()
    elif where == "loops_refused":
        policy = type("Foreign", (AddressPolicy,), {where: property(fail)})()
    async with listening() as listener:
        resolver["host.test"] = error if where == "resolver" else [listener.address] * 2
        if where in ("connect", "getpeername"):
            kind = type("Foreign", (stdlib.socket,), {where: fail})
            monkeypatch.setattr("anyio_connect._dial.socket.socket", kind)
        socket = Connector(policy, max_connections=1).connect("host.test:1")
        with pytest.raises(SocketError) as caught:
            await socket.opened
    assert isinstance(socket.closed.exception(), SocketError)
    cause: BaseException | None = caught.value
    while cause is not None and type(cause) is not type(error):
        cause = cause.__cause__
    assert cause is not None
    assert cause.args == error.args


async def test_what_is_no_exception_passes(
    resolver: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(BaseException):
        pass

    class Stopping(AddressPolicy):
        def refusal(self, address: object, port: int) -> str | None:
            raise Stop

    resolver["host.test"] = [refusing_address()]
    connector = Connector(Stopping(), max_connections=1)
    with pytest.raises(Stop):
        await connector.connect("host.test:1").opened
    with pytest.raises(Stop):  # its slot came back
        await connector.connect("host.test:1", connect_timeout=5).opened


@needs_ipv6
@pytest.mark.skipif(sys.platform != "linux", reason="other systems may choose an interface")
async def test_a_link_local_address_needs_a_zone() -> None:
    with pytest.raises(ConnectError, match=r"needs a zone, .* like '\[fe80::1%eth0\]:80'"):
        await connect("[fe80::1]:80").opened


# --- given up in the very turn in which it gets through


@pytest.mark.usefixtures("from_afar")
@pytest.mark.parametrize("native", [False, True], ids=["by scope", "by task.cancel()"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_dial_that_is_cancelled_as_it_connects_leaves_nothing(
    count: int,
    moment: str,
    native: bool,
    resolver: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    anyio_backend_name: str,
) -> None:
    """At the n-th wait for a socket: before it, or when the socket is connected."""
    if native and anyio_backend_name == "trio":
        return  # it has none
    connector = Connector(LOCAL, happy_eyeballs_delay=0, max_connections=1)
    real, waits, number = anyio.wait_writable, 0, 0
    scope = anyio.CancelScope()
    task: Any = None

    async def wait_writable(sock: stdlib.socket) -> None:
        nonlocal waits
        waits += 1
        mine = waits == number
        if mine and moment == "before":
            give_up()
        await real(sock)
        if mine and moment == "after":
            give_up()

    def give_up() -> None:
        if native:
            task.cancel()
        else:
            scope.cancel()

    async def dial(socket: Socket) -> None:
        nonlocal task
        if native:
            task = asyncio.current_task()
        with scope, suppress(asyncio.CancelledError) if native else nullcontext():
            await socket.opened

    monkeypatch.setattr(anyio, "wait_writable", wait_writable)
    async with listening() as one, listening() as two:
        addresses = [one.address, two.address, refusing_address()]
        resolver["host.test"] = addresses[:count]
        for number in range(1, count + 1):
            waits, task = 0, None
            scope = anyio.CancelScope()
            socket = connector.connect("host.test:1")
            async with anyio.create_task_group() as group:
                group.start_soon(dial, socket)
            assert waits >= min(number, 2)  # with one that gets through, there may be no third
            if socket.opened.done():  # that race was over
                assert socket.opened.exception() is None
            else:
                waits = -100
                with anyio.fail_after(10):
                    await socket.opened  # the next task that needs it starts again, with the slot
            await socket.close()
            assert socket.closed.exception() is None


async def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides the question whether it is an IP address."""
    flags: list[int] = []
    real = stdlib.getaddrinfo

    def getaddrinfo(*args: Any, **options: Any) -> Any:
        flags.append(options.get("flags", 0))
        return real(*args, **options)

    monkeypatch.setattr(stdlib, "getaddrinfo", getaddrinfo)
    async with listening() as listener, connect(f"localhost:{listener.address[1]}") as socket:
        await socket.opened
    assert flags == [stdlib.AI_NUMERICHOST, 0]


# --- lookups that hang


@contextmanager
def silent_dns(monkeypatch: pytest.MonkeyPatch, *, threads: int) -> Iterator[list[str]]:
    """A system's resolver that never answers, but for one name; yields what it was asked."""
    asked: list[str] = []
    go_on, ended = threading.Event(), threading.Semaphore(0)
    real = stdlib.getaddrinfo

    def getaddrinfo(host: bytes, *args: Any, **options: Any) -> Any:
        if options.get("flags"):  # is it a number?
            return real(host, *args, **options)
        asked.append(host.decode())
        if not host.startswith(b"silent"):
            return real("127.0.0.1", *args, **options)
        try:
            go_on.wait(60)
            raise OSError("no answer")
        finally:
            ended.release()

    monkeypatch.setattr(stdlib, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(_dial, "_lookups", _threads.Threads("look up names", threads))
    try:
        yield asked
    finally:
        go_on.set()
        for name in asked:
            assert not name.startswith("silent") or ended.acquire(timeout=60)


async def test_a_lookup_that_hangs_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_dns(monkeypatch, threads=3):
        async with listening() as listener:
            for _ in range(2):
                with pytest.raises(ConnectTimeoutError, match="the name was not resolved within"):
                    await connect("silent.test:1", connect_timeout=0.05).opened
            async with connect(f"host.test:{listener.address[1]}") as socket:
                assert (await socket.opened).remote_address == "{}:{}".format(*listener.address)


async def test_when_all_lookups_hang_another_fails_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_threads, "_HANGS_ABANDONED", 0)
    with silent_dns(monkeypatch, threads=2) as asked:
        for _ in range(2):
            with pytest.raises(ConnectTimeoutError):
                await connect("silent.test:1", connect_timeout=0.05).opened
        socket = connect("host.test:1")
        with pytest.raises(ResolveError, match="all 2 threads that look up names hang") as caught:
            await socket.opened
        assert str(caught.value).startswith("cannot resolve 'host.test'")
        assert isinstance(socket.closed.exception(), ResolveError)
    assert asked == ["silent.test"] * 2


def test_there_may_be_64_lookups_at_a_time() -> None:
    assert _dial._lookups.limit == 64


async def test_others_run_while_a_chain_of_policies_judges(resolver: dict[str, Any]) -> None:
    judged = 0
    seen: list[int] = []

    class Counting(AddressPolicy):
        def refusal(self, address: object, port: int) -> str | None:
            nonlocal judged
            judged += 1
            return None

    async def look() -> None:
        while True:
            seen.append(judged)
            await anyio.lowlevel.checkpoint()

    chain = AddressPolicy(also=tuple(Counting() for _ in range(1000)))
    async with listening() as listener, anyio.create_task_group() as group:
        resolver["host.test"] = [listener.address]
        group.start_soon(look)
        async with Connector(chain).connect("host.test:1"):
            pass
        async with Connector(chain).connect(listener.address):
            pass
        denied = chain & AddressPolicy(deny=["127.0.0.1"])
        with pytest.raises(AddressNotAllowedError, match="in deny"):
            await Connector(denied).connect("host.test:1").opened
        group.cancel_scope.cancel()
    seen.append(judged)
    assert judged == 6000  # by name, then twice by number before it is dialled, and when connected
    assert max(later - earlier for earlier, later in pairwise(seen)) <= 3 * _dial._AT_A_TIME


@pytest.mark.parametrize("step", ["dial", "start_tls"])
async def test_whatever_a_step_raises_is_a_socket_error_and_drops_the_connection(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a foreign SSLContext may, or what comes to be a step one day."""

    async def fail(*_: object, **__: object) -> Any:
        await anyio.lowlevel.checkpoint()
        raise ZeroDivisionError("by nobody knows whom")

    connector = Connector(max_connections=1)
    async with listening() as listener:
        with monkeypatch.context() as patch:
            patch.setattr(_open, step, fail)
            socket = connector.connect(listener.address, secure_transport="on")
            with pytest.raises(ConnectError, match="ZeroDivisionError: by nobody") as caught:
                await socket.opened
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert isinstance(socket.closed.exception(), ConnectError)
        if step == "start_tls":
            with pytest.raises(ConnectionResetError):
                await (await listener.accept()).receive()
        async with connector.connect(listener.address):  # its slot came back
            pass
