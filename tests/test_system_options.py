"""The options for the kernel's sockets: each has its effect on every way to a connection."""

from __future__ import annotations

import socket as stdlib
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_connect import AddressPolicy, Connector, Socket, connect, listen
from anyio_connect._options import SYSTEM_ONLY
from support.connectors import resolve
from support.peers import listening
from support.proxies import http, proxying

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads options of Linux")


def _idle(sock: stdlib.socket) -> int:
    return sock.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_KEEPIDLE)


#: For each option, a value other than the default, and a function that reads it from a socket.
EXAMPLES: dict[str, tuple[Any, Callable[[stdlib.socket], object]]] = {"keep_alive": (77, _idle)}

each_option = pytest.mark.parametrize("name", EXAMPLES)


def test_each_option_has_an_example() -> None:
    assert {*EXAMPLES} == {*SYSTEM_ONLY}, (
        "SYSTEM_ONLY of _options has the options for the kernel's sockets. Add each to EXAMPLES: "
        "a value, and how to read it from a socket. The tests here then try it on every way"
    )


async def read_opened(connector: Connector, address: tuple[str, int], name: str) -> object:
    value, read = EXAMPLES[name]
    options: dict[str, Any] = {name: value}
    async with connector.connect(address, **options) as socket:
        return read(socket.extra(SocketAttribute.raw_socket))


async def read_returned(connector: Connector, address: tuple[str, int], name: str) -> object:
    value, read = EXAMPLES[name]
    options: dict[str, Any] = {name: value}
    with await connector.connect_socket(address, **options) as sock:
        return read(sock)


async def read_blocking(connector: Connector, address: tuple[str, int], name: str) -> object:
    value, read = EXAMPLES[name]
    options: dict[str, Any] = {name: value}
    call = partial(connector.connect_socket_blocking, address, **options)
    with await anyio.to_thread.run_sync(call) as sock:
        return read(sock)


WAYS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "to an IP address": (read_opened, "127.0.0.1", {}),
    "to a name": (read_opened, "host.test", {}),
    "with a policy": (read_opened, "127.0.0.1", {"policy": AddressPolicy(deny=["192.0.2.1"])}),
    "after a wait for a slot": (read_opened, "127.0.0.1", {"max_connections": 1}),
    "connect_socket": (read_returned, "127.0.0.1", {}),
    "connect_socket_blocking": (read_blocking, "127.0.0.1", {}),
}


@pytest.mark.parametrize("way", WAYS)
@each_option
async def test_an_option_has_its_effect_on_each_way(name: str, way: str) -> None:
    read, host, values = WAYS[way]
    async with listening() as listener:
        connector = Connector(resolver=resolve, **values)
        found = await read(connector, (host, listener.address[1]), name)
    assert found == EXAMPLES[name][0], f"{name} has no effect on a connection {way}"


@pytest.mark.usefixtures("from_afar")
@pytest.mark.parametrize("waits", [True, False])
@each_option
async def test_an_option_has_its_effect_if_the_connection_takes_time(
    name: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some event loops cannot wait for a socket. There, AnyIO makes the connection."""

    async def wait_writable(_: object) -> None:
        raise NotImplementedError

    if not waits:
        monkeypatch.setattr(anyio, "wait_writable", wait_writable)
    async with listening() as listener:
        found = await read_opened(Connector(), listener.address, name)
    assert found == EXAMPLES[name][0], "see connect() in _tcp_connect"


@each_option
async def test_an_option_has_its_effect_on_the_connection_to_a_proxy(name: str) -> None:
    async with proxying(http()) as proxy:
        connector = Connector(proxy=proxy.url("http"))
        found = await read_opened(connector, ("db.example", 80), name)
    assert found == EXAMPLES[name][0], (
        f"{name} has no effect through a proxy: see Route.for_socket()"
    )


@each_option
async def test_an_option_has_its_effect_on_accepted_sockets(name: str) -> None:
    value, read = EXAMPLES[name]
    options: dict[str, Any] = {name: value}
    found: list[object] = []
    done = anyio.Event()

    async def handler(socket: Socket) -> None:
        async with socket:
            found.append(read(socket.extra(SocketAttribute.raw_socket)))
        done.set()

    async with (
        await listen("127.0.0.1:0", **options) as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, handler)
        async with connect(listener.addresses[0]) as client:
            await client.opened
            await done.wait()
        group.cancel_scope.cancel()
    assert found == [value], f"{name} has no effect on accepted sockets: see _listen"


@pytest.mark.parametrize(
    "name", [field.name for field in fields(Connector) if field.name in EXAMPLES]
)
async def test_the_value_of_the_connector_is_the_default(name: str) -> None:
    value, read = EXAMPLES[name]
    async with listening() as listener:
        connector = Connector(**{name: value})
        async with connector.connect(listener.address) as socket:
            assert read(socket.extra(SocketAttribute.raw_socket)) == value
