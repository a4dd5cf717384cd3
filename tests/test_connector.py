"""Connector: its values, its policy, and where it connects from."""

from __future__ import annotations

import copy
import math
import socket as stdlib
import ssl
import sys
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from anyio_connect import (
    UNRESTRICTED,
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    ConnectError,
    Connector,
    InvalidAddressError,
    InvalidOptionError,
    LoopError,
    _lookup,
    connect,
)
from support.errors import is_copy
from support.peers import listening, needs_ipv6
from support.spying import slots

LOOPBACK = replace(WORKERS, allow=["127.0.0.0/8", "::1"])


# --- values


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"policy": "WORKERS"}, "must be an AddressPolicy"),
        ({"max_connections": 0}, "must be a whole number, at least 1"),
        ({"max_connections": True}, "must be a whole number, at least 1"),
        ({"max_connections": 1.5}, "must be a whole number, at least 1"),
        ({"ssl_context": True}, r"must be an ssl\.SSLContext"),
        ({"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "is for servers"),
        ({"happy_eyeballs_delay": -1}, "0 or more"),
        ({"happy_eyeballs_delay": float("nan")}, "0 or more"),
        ({"happy_eyeballs_delay": 10**400}, "0 or more"),
        ({"happy_eyeballs_delay": -(10**400)}, "0 or more"),
        ({"happy_eyeballs_delay": float("-inf")}, "0 or more"),
        ({"happy_eyeballs_delay": True}, "0 or more"),
        ({"local_host": "localhost"}, "must be an IP address"),
        ({"local_host": "127.1"}, "must be an IP address"),
        ({"local_host": 2130706433}, "must be an IP address"),
        ({"close_timeout": 0}, "seconds greater than 0"),
        ({"connect_timeout": "5"}, "seconds greater than 0"),
        ({"connect_timeout": float("nan")}, "seconds greater than 0"),
    ],
)
def test_a_bad_value_is_an_error_at_once(values: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"bad value for {next(iter(values))}.*{why}"):
        Connector(**values)


@pytest.mark.parametrize("name", [field.name for field in fields(Connector)])
def test_each_value_is_checked(name: str) -> None:
    values: dict[str, Any] = {name: object()}
    said = ""
    try:
        Connector(**values)
    except InvalidOptionError as exc:
        said = str(exc)
    assert said, f"Connector({name}=object()) is accepted: check it in _check() of _connector.py"
    assert said.startswith(f"bad value for {name}")


def test_a_connector_is_a_value() -> None:
    connector = Connector(WORKERS, max_connections=6)
    assert "policy=WORKERS, max_connections=6" in repr(connector)
    with pytest.raises(FrozenInstanceError):
        connector.policy = UNRESTRICTED  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    other = replace(connector, max_connections=7)
    assert slots(other) is not slots(connector)
    assert other != connector


def test_none_means_not_given() -> None:
    none = Connector(**dict.fromkeys(field.name for field in fields(Connector)))
    for field in fields(Connector):
        assert getattr(none, field.name) == field.default
    given = replace(none, policy=WORKERS, happy_eyeballs_delay=math.inf)
    assert (given.policy, given.happy_eyeballs_delay) == (WORKERS, math.inf)


def test_a_dataclass_may_extend_connector() -> None:
    @dataclass(frozen=True, eq=False)
    class Named(Connector):
        name: str = ""

    named = Named(name="outside", policy=WORKERS, happy_eyeballs_delay=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert (named.name, named.policy, named.happy_eyeballs_delay) == ("outside", WORKERS, 0.25)


def test_a_copy_has_the_same_slots() -> None:
    connector = Connector(max_connections=2, ssl_context=ssl.create_default_context())
    assert copy.copy(connector) is connector
    assert copy.deepcopy(connector) is connector
    assert copy.deepcopy({"held": [connector]}) == {"held": [connector]}


def test_connect_raises_for_bad_input_but_not_for_a_forbidden_address() -> None:
    connector = Connector(WORKERS)
    with pytest.raises(InvalidAddressError):
        connector.connect("127.1:80")
    with pytest.raises(InvalidOptionError):
        connector.connect("h:1", sni="x")
    connector.connect("127.0.0.1:25")


def test_the_ssl_context_is_the_default_of_its_sockets() -> None:
    ours, mine = ssl.create_default_context(), ssl.create_default_context()
    connector = Connector(ssl_context=ours)

    def used(**options: Any) -> object:
        return connector.connect("h:1", **options)._target.options.ssl_context

    assert used(secure_transport="on") is ours
    assert used(secure_transport="starttls") is ours
    assert used(secure_transport="on", ssl_context=mine) is mine
    assert used(secure_transport="on", ssl_context=None, alpn=None) is ours
    assert used() is None
    with pytest.raises(InvalidOptionError, match="alpn has no effect with an ssl_context"):
        used(secure_transport="on", alpn=["h2"])


@pytest.mark.parametrize("name", ["connect_timeout", "close_timeout"])
def test_a_time_limit_is_the_default_of_its_sockets(name: str) -> None:
    values: dict[str, Any] = {name: 7}
    connector = Connector(**values)

    def used(**options: Any) -> object:
        return getattr(connector.connect("h:1", **options)._target.options, name)

    assert used() == used(**{name: None}) == 7
    assert used(**{name: 3}) == 3
    assert used(**{name: math.inf}) == math.inf
    none: dict[str, Any] = {name: math.inf}
    assert getattr(Connector(**none).connect("h:1")._target.options, name) == math.inf


# --- the policy


@pytest.mark.parametrize(
    ("address", "policy", "why"),
    [
        ("127.0.0.1:9", WORKERS, r"127\.0\.0\.0/8 is Loopback"),
        ("[::ffff:127.0.0.1]:9", WORKERS, r"it carries 127\.0\.0\.1"),
        ("mail.test:25", WORKERS, "port 25 is in deny_ports"),
        ("1.1.1.1:25", WORKERS, "port 25 is in deny_ports"),
        ("127.0.0.1:9", AddressPolicy(allow=[]), "in none of the networks of allow"),
    ],
)
async def test_an_address_that_is_known_to_be_forbidden_is_not_resolved(
    address: str, policy: AddressPolicy, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(_lookup, "getaddrinfo", forbidden)
    socket = Connector(policy).connect(address)
    with monkeypatch.context() as patch:
        patch.setattr("anyio_connect._tcp_connect.socket.socket", forbidden)
        with pytest.raises(AddressNotAllowedError, match=why) as caught:
            await socket.opened
    assert str(caught.value).startswith(f"cannot connect to {address}: the Connector's policy")
    assert is_copy(socket.closed.exception(), caught.value)
    with pytest.raises(AddressNotAllowedError):
        await socket.send(b"x")


async def test_a_forbidden_address_needs_no_slot() -> None:
    async with listening() as listener:
        connector = Connector(LOOPBACK, max_connections=1)
        async with connector.connect(listener.address):
            with pytest.raises(AddressNotAllowedError):
                await connector.connect("10.0.0.1:9").opened


async def test_a_forbidden_address_does_not_cancel_the_task_group() -> None:
    async with anyio.create_task_group() as group:
        socket = Connector(WORKERS).connect("127.0.0.1:9", task_group=group)
    assert isinstance(socket.opened.exception(), AddressNotAllowedError)


async def test_a_socket_connected_to_itself_is_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP's simultaneous open: the kernel chose the dialled port for our side."""
    real = stdlib.socket
    with real() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    class Bound(real):  # type: ignore[misc, valid-type]
        def connect(self, address: Any) -> None:
            self.bind(("127.0.0.1", port))
            super().connect(address)

    monkeypatch.setattr("anyio_connect._tcp_connect.socket.socket", Bound)
    socket = Connector(LOOPBACK).connect(f"127.0.0.1:{port}")
    with pytest.raises(LoopError, match="the socket was connected to itself") as caught:
        await socket.opened
    assert is_copy(socket.closed.exception(), caught.value)
    async with connect(f"127.0.0.1:{port}") as itself:  # without a policy, this is allowed
        assert (await itself.opened).remote_address == (await itself.opened).local_address


# --- local_host


async def test_a_socket_connects_from_local_host() -> None:
    async with listening() as listener:
        socket = Connector(local_host="127.0.0.2").connect(listener.address)
        local = (await socket.opened).local_address
        await socket.close()
    assert local is not None
    assert local.startswith("127.0.0.2:")


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux can bind a socket without taking a port"
)
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
async def test_with_local_host_the_port_is_taken_only_on_connecting(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[tuple[str, int]] = []

    class Looking(stdlib.socket):
        def connect(self, address: Any, /) -> None:
            bound.append(self.getsockname()[:2])
            super().connect(address)

    async with listening(host) as listener:
        monkeypatch.setattr("anyio_connect._tcp_connect.socket.socket", Looking)
        async with Connector(local_host=host).connect(listener.address) as socket:
            assert bound == [(host, 0)]
            assert not str((await socket.opened).local_address).endswith(":0")


async def test_a_local_host_of_another_machine() -> None:
    async with listening() as listener:
        with pytest.raises(ConnectError, match=r"cannot connect from local_host 192\.0\.2\.1"):
            await Connector(local_host="192.0.2.1").connect(listener.address).opened


async def test_a_local_host_of_the_other_family() -> None:
    with pytest.raises(ConnectError, match="can only reach IPv6 addresses"):
        await Connector(local_host="::1").connect("127.0.0.1:9").opened


@needs_ipv6
async def test_addresses_of_the_other_family_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        return [
            (stdlib.AF_INET, stdlib.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            (stdlib.AF_INET6, stdlib.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
        ]

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
    async with listening("::1") as listener:
        connector = Connector(local_host="::1", happy_eyeballs_delay=3600)
        async with connector.connect(f"host.test:{listener.address[1]}") as socket:
            assert str((await socket.opened).local_address).startswith("[::1]:")
