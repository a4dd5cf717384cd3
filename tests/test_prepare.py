"""Connector(prepare=): which sockets the function gets, and what happens if it spoils one."""

from __future__ import annotations

import errno
import os
import socket as stdlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_connect import (
    BrokenError,
    ConnectError,
    Connector,
    InvalidOptionError,
    RefusedError,
    _lookup,
)
from support.errors import is_copy
from support.peers import has_ipv6, listening, refusing_address
from support.sockets import raw

SAID = "the Connector's prepare "


def open_descriptors() -> set[str]:
    folder = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    return {path.name for path in folder.iterdir()}


async def test_prepare_gets_each_socket_before_it_is_bound_and_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Any, ...]] = []

    def prepare(sock: stdlib.socket) -> str:
        with pytest.raises(OSError, match="not connected"):
            sock.getpeername()
        keepalive = sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_KEEPALIVE)
        seen.append((type(sock), sock.getsockname(), sock.gettimeout(), keepalive))
        sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_KEEPALIVE, 0)
        sock.setblocking(True)
        return "an answer that nobody wants"

    async def getaddrinfo(host: str, port: int) -> list[Any]:
        return [
            (stdlib.AF_INET, stdlib.SOCK_STREAM, 6, "", (ip, at))
            for ip, at in (refusing_address(), listener.address)
        ]

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
    async with listening() as listener:
        connector = Connector(prepare=prepare, local_host="127.0.0.1")
        async with connector.connect("host.test:9") as socket:
            assert raw(socket).getsockopt(stdlib.SOL_SOCKET, stdlib.SO_KEEPALIVE) == 0
            await socket.send(b"hello")
            assert await (await listener.accept()).receive() == b"hello"
    assert seen == [(stdlib.socket, ("0.0.0.0", 0), 0.0, 1)] * 2


async def test_prepare_may_bind() -> None:
    async with listening() as listener:
        connector = Connector(prepare=lambda sock: sock.bind(("127.0.0.2", 0)))
        async with connector.connect(listener.address) as socket:
            assert str((await socket.opened).local_address).startswith("127.0.0.2:")


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not say whether data was lost"
)
async def test_data_that_prepare_sends_later_is_not_lost_silently() -> None:
    """The function may keep the socket, or a copy of it."""
    kept: list[stdlib.socket] = []
    async with listening(receive_buffer=4096) as listener:
        connector = Connector(prepare=lambda sock: kept.append(sock.dup()))
        socket = connector.connect(listener.address)
        await socket.opened
        peer = await listener.accept()
        (copy,) = kept
        copy.send(bytes(1 << 20))
        peer.rst()
        copy.close()
        await socket.close()
        with pytest.raises(BrokenError):
            await socket.closed


async def test_prepare_is_not_called_if_nothing_is_dialled() -> None:
    def prepare(_: stdlib.socket) -> None:
        raise AssertionError

    await Connector(prepare=prepare).connect("127.0.0.1:9").close()


async def test_an_error_of_prepare_is_the_failure_of_the_attempt() -> None:
    reason = PermissionError(errno.EPERM, "not for you")

    def prepare(_: stdlib.socket) -> None:
        raise reason

    before = open_descriptors()
    with pytest.raises(ConnectError) as caught:
        await Connector(prepare=prepare).connect("127.0.0.1:9").opened
    error = caught.value
    assert str(error) == (
        f"cannot connect to 127.0.0.1:9: {SAID}raised PermissionError: not for you"
    )
    assert type(error) is ConnectError
    assert error.errno == errno.EPERM
    assert is_copy(error.__cause__, reason)
    assert open_descriptors() == before


async def test_the_next_address_is_tried_after_an_error_of_prepare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sockets: list[stdlib.socket] = []

    def prepare(sock: stdlib.socket) -> None:
        sockets.append(sock)
        if len(sockets) == 1:
            raise ValueError("not the first")

    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    async with listening() as listener:
        connector = Connector(prepare=prepare, resolver=resolver, happy_eyeballs_delay=3600)
        with anyio.fail_after(30):
            async with connector.connect(("host.test", listener.address[1])):
                assert sockets[0].fileno() == -1


async def test_a_base_exception_of_prepare_passes_unchanged() -> None:
    class Stop(BaseException):
        pass

    def prepare(_: stdlib.socket) -> None:
        raise Stop

    before = open_descriptors()
    socket = Connector(prepare=prepare).connect("127.0.0.1:9")
    with pytest.raises(Stop):
        await socket.opened
    assert open_descriptors() == before
    await socket.close()


def _steal(kept: list[int]) -> Callable[[stdlib.socket], None]:
    return lambda sock: kept.append(sock.detach())


@pytest.mark.parametrize("how", ["close", "detach"])
async def test_the_error_says_that_prepare_closed_or_detached_the_socket(how: str) -> None:
    kept: list[int] = []
    before = open_descriptors()
    prepare = stdlib.socket.close if how == "close" else _steal(kept)
    with pytest.raises(ConnectError) as caught:
        await Connector(prepare=prepare).connect("127.0.0.1:9").opened
    assert str(caught.value) == (
        f"cannot connect to 127.0.0.1:9: {SAID}closed or detached the socket, which is not its own"
    )
    for number in kept:
        os.close(number)  # it belongs to the function that detached it
    assert open_descriptors() == before


async def test_a_descriptor_that_prepare_closed_by_number_is_an_error() -> None:
    before = open_descriptors()
    with pytest.raises(ConnectError, match="Bad file descriptor"):
        await Connector(prepare=lambda s: os.close(s.fileno())).connect("127.0.0.1:9").opened
    assert open_descriptors() == before


@pytest.mark.parametrize("how", ["connected", "connecting", "listening"])
async def test_a_socket_that_prepare_used_is_no_way_around_the_policy(how: str) -> None:
    def prepare(sock: stdlib.socket) -> None:
        if how == "listening":
            sock.listen()
        else:
            sock.setblocking(how == "connected")
            sock.connect_ex(other.address)

    before = open_descriptors()
    async with listening() as listener, listening() as other:
        with pytest.raises(ConnectError) as caught:
            await Connector(prepare=prepare).connect(listener.address).opened
    assert str(caught.value).endswith(f"{SAID}connected the socket, or made it listen")
    assert open_descriptors() == before


async def test_an_async_prepare_is_refused() -> None:
    async def prepare(_: stdlib.socket) -> None:
        raise AssertionError

    with pytest.raises(InvalidOptionError, match=r"^bad value for prepare: .*is not async$"):
        Connector(prepare=prepare)
    before = open_descriptors()
    hidden: Callable[[stdlib.socket], object] = lambda sock: prepare(sock)  # noqa: E731, PLW0108
    with pytest.raises(ConnectError) as caught:
        await Connector(prepare=hidden).connect("127.0.0.1:9").opened
    assert f"{SAID}is async, and is never awaited: write it with 'def'" in str(caught.value)
    assert open_descriptors() == before


@pytest.mark.parametrize("value", [5, "socket", []])
def test_prepare_must_be_a_function(value: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"^bad value for prepare: .*is not async$"):
        Connector(prepare=value)


def test_prepare_is_refused_together_with_a_dialer() -> None:
    async def dialer(address: object) -> Any:
        raise AssertionError

    with pytest.raises(InvalidOptionError, match=r"prepare=.* has no effect with a dialer"):
        Connector(dialer=dialer, prepare=stdlib.socket.close)


@pytest.mark.usefixtures("from_afar")
async def test_prepare_is_refused_if_only_anyio_can_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An event loop that cannot wait for a socket leaves the connecting to AnyIO."""

    async def wait(_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("anyio.wait_writable", wait)
    async with listening() as listener:
        with pytest.raises(ConnectError, match="this event loop creates its sockets itself"):
            await Connector(prepare=lambda _: None).connect(listener.address).opened


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_prepare_gets_sockets_of_both_families() -> None:
    families: list[int] = []

    async def resolver(host: str, port: int) -> list[str]:
        return ["::1", "127.0.0.1"]

    connector = Connector(prepare=lambda s: families.append(s.family), resolver=resolver)
    host, port = refusing_address()
    with pytest.raises(RefusedError):
        await connector.connect((host, port)).opened
    with pytest.raises(ConnectError):
        await connector.connect(("host.test", port)).opened
    assert families == [stdlib.AF_INET, stdlib.AF_INET6, stdlib.AF_INET]
