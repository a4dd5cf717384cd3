"""Connections that are made, fail or are lost before a task has waited for anything."""

from __future__ import annotations

import errno
import os
import select
import socket as stdlib
import sys
from typing import Any
from unittest import mock

import anyio
import pytest

from anyio_connect import (
    AddressPolicy,
    BrokenError,
    ClosedError,
    ConnectError,
    Connector,
    ResolveError,
    Socket,
    SocketError,
    _route,
    connect,
)
from support.errors import is_copy
from support.names import LOOPBACK, Names
from support.peers import listening, needs_ipv6, refusing_address
from support.sockets import needs_poll, wait_for

only_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="other systems report other errors"
)


@pytest.mark.parametrize("connector", [Connector(), Connector(LOOPBACK)], ids=["short", "judged"])
async def test_a_connection_that_is_made_at_once_is_not_waited_for(
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


async def test_a_cancellation_that_is_due_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        with monkeypatch.context() as patch, anyio.CancelScope() as scope:
            patch.setattr("anyio_connect._open.begin", None)  # a call would fail
            scope.cancel()
            await socket.opened
        assert scope.cancelled_caught
        assert not socket.opened.done()
        async with socket:
            await listener.accept()


@pytest.mark.parametrize("name", _route.Route._fields)
def test_only_fields_about_names_leave_a_route_plain(name: str) -> None:
    """begin() only connects, so it must not be used if there is anything else to do."""

    something: Any = {name: mock.ANY}  # it is equal to everything
    route = _route.Route()._replace(**something)
    assert route.is_plain is (name in {"happy_eyeballs_delay", "resolver"})
    assert _route.Route().is_plain


async def test_every_task_that_awaits_opened_is_woken() -> None:
    async with listening() as listener:
        for _ in range(20):  # some of these calls let other tasks run first
            async with connect(listener.address) as socket, anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(wait_for, socket)
            async with anyio.create_task_group() as group:
                socket = connect(listener.address)
                for _ in range(3):
                    group.start_soon(wait_for, socket)
            await socket.close()


# --- one attempt for each address


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses for which connect() was called, in order."""
    addresses = []

    class Spied(stdlib.socket):
        def connect(self, address: Any) -> None:
            addresses.append(address)
            super().connect(address)

    monkeypatch.setattr("anyio_connect._tcp_connect.socket.socket", Spied)
    return addresses


async def _error_of(socket: Socket) -> SocketError:
    with pytest.raises(SocketError) as caught:
        await socket.opened
    return caught.value


#: Like :func:`connect`, but it judges each address first, so it does not begin an attempt at once.
judging = Connector(AddressPolicy())


@pytest.mark.parametrize(
    "address",
    [
        pytest.param(None, id="refused"),
        pytest.param("[fe80::1]:9", id="no zone", marks=[needs_ipv6, only_linux]),
        pytest.param("[fe80::1%lo]:9", id="unreachable", marks=[needs_ipv6, only_linux]),
    ],
)
async def test_an_address_that_fails_at_once_is_tried_once(
    address: str | None, tried: list[Any]
) -> None:
    address = address or "{}:{}".format(*refusing_address())
    error = await _error_of(connect(address))
    assert isinstance(error, ConnectError)
    assert len(tried) == len(error.attempts) == 1
    judged = await _error_of(judging.connect(address))
    assert len(tried) == 2  # so these attempts are counted too
    assert is_copy(error, judged)


async def test_each_of_several_addresses_that_fail_at_once_is_tried_once(
    names: Names, tried: list[Any]
) -> None:
    names["host.test"] = addresses = [refusing_address() for _ in range(2)]
    await _error_of(connect("host.test:9"))
    assert tried == addresses


@needs_ipv6
async def test_a_zone_that_names_no_interface_is_not_tried(tried: list[Any]) -> None:
    assert isinstance(await _error_of(connect("[fe80::1%nosuch0]:9")), ResolveError)
    assert not tried


async def test_a_socket_that_cannot_be_made_is_requested_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class Full(stdlib.socket):
        def __init__(self, *_: object) -> None:
            asked.append(self)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("anyio_connect._tcp_connect.socket.socket", Full)
        error = await _error_of(connect("127.0.0.1:9"))
    assert len(asked) == 1
    assert "too many open files" in str(error)


async def test_a_connection_that_breaks_while_it_is_made_is_not_made_again(
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


# --- an attempt that was begun


@pytest.mark.usefixtures("from_afar")
async def test_an_attempt_that_was_begun_is_completed() -> None:
    """No second attempt is made."""
    async with listening() as listener:
        async with connect(listener.address) as socket:
            peer = await listener.accept()
            local = socket.opened.result().local_address
            assert local == "{}:{}".format(*peer.sock.getpeername())
        assert await peer.receive() == b""
        with pytest.raises(BlockingIOError):
            listener.sock.accept()


@pytest.mark.usefixtures("from_afar")
async def test_an_attempt_that_was_begun_is_closed_with_the_socket(
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


# --- a connection that was made, and was lost at once


@needs_poll
@pytest.mark.usefixtures("from_afar")
@pytest.mark.parametrize("ended", [False, True])
async def test_data_that_came_before_a_reset_is_received(
    ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server refuses a client with a message and a reset, while our event loop is busy."""
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
            assert poll.poll(10_000)  # POLLERR or POLLHUP

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


async def test_a_reset_before_getpeername_does_not_fail_the_dial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel has reported the connection, and then no longer knows the peer's address."""

    class Lost(stdlib.socket):
        def getpeername(self) -> Any:
            raise OSError(errno.ENOTCONN, "not connected")

    async with listening() as listener:
        with monkeypatch.context() as patch:
            patch.setattr("anyio_connect._tcp_connect.socket.socket", Lost)
            async with Connector(LOOPBACK).connect(listener.address) as socket:
                info = await socket.opened
                assert info.remote_address == "{}:{}".format(*listener.address)
