"""The errors of a failed dial: each is a SocketError, and lists every failure."""

from __future__ import annotations

import errno
import os
import socket as stdlib
from typing import Any

import pytest

from anyio_connect import (
    AddressPolicy,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    RefusedError,
    SocketError,
    connect,
)
from support.names import LOOPBACK, Names
from support.peers import listening, refusing_address


async def test_the_error_lists_every_failure(names: Names) -> None:
    first, second = refusing_address(), refusing_address()
    names["host.test"] = [first, second]
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


async def test_failures_of_two_kinds_raise_a_plain_connect_error(names: Names) -> None:
    connector = Connector(happy_eyeballs_delay=0)
    # The kernel refuses to connect to a broadcast address, with EACCES or ENETUNREACH.
    names["host.test"] = [refusing_address(), ("255.255.255.255", 9)]
    with pytest.raises(ConnectError) as caught:
        await connector.connect("host.test:1").opened
    assert type(caught.value) is ConnectError
    assert {type(attempt) for attempt in caught.value.attempts} == {ConnectError, RefusedError}


async def test_an_error_about_local_host_lists_what_the_policy_dropped(names: Names) -> None:
    names["host.test"] = [("2001:db8::1", 80), ("127.0.0.1", 80)]
    connector = Connector(LOOPBACK, local_host="::1")
    with pytest.raises(ConnectError, match=r"not tried: \[2001:db8::1\]:80: .* forbids"):
        await connector.connect("host.test:1").opened


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
async def test_the_error_says_what_the_kernel_said(
    code: int, kind: type[ConnectError], text: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        if late:
            return code
        raise OSError(code, os.strerror(code))

    if late:  # most errors are reported like this
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


async def test_too_many_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("anyio_connect._tcp_connect.socket.socket", no_more)
    with pytest.raises(ConnectError, match="too many open files") as caught:
        await connect("127.0.0.1:9").opened
    assert caught.value.errno == errno.EMFILE


# --- only SocketErrors are raised


class OddError(Exception):
    """An unknown exception whose str() fails."""

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
async def test_any_exception_becomes_a_socket_error(
    where: str, error: Exception, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise error

    policy = LOOPBACK
    if where in ("refusal", "port_refusal"):
        policy = type("Foreign", (AddressPolicy,), {where: fail})()
    elif where == "loops_refused":
        policy = type("Foreign", (AddressPolicy,), {where: property(fail)})()
    async with listening() as listener:
        names["host.test"] = error if where == "resolver" else [listener.address] * 2
        if where in ("connect", "getpeername"):
            kind = type("Foreign", (stdlib.socket,), {where: fail})
            monkeypatch.setattr("anyio_connect._tcp_connect.socket.socket", kind)
        socket = Connector(policy, max_connections=1).connect("host.test:1")
        with pytest.raises(SocketError) as caught:
            await socket.opened
    assert isinstance(socket.closed.exception(), SocketError)
    cause: BaseException | None = caught.value
    while cause is not None and type(cause) is not type(error):
        cause = cause.__cause__
    assert cause is not None
    assert cause.args == error.args


async def test_a_base_exception_is_not_converted(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(BaseException):
        pass

    class Stopping(AddressPolicy):
        def refusal(self, address: object, port: int) -> str | None:
            raise Stop

    names["host.test"] = [refusing_address()]
    connector = Connector(Stopping(), max_connections=1)
    with pytest.raises(Stop):
        await connector.connect("host.test:1").opened
    with pytest.raises(Stop):  # the slot is free again
        await connector.connect("host.test:1", connect_timeout=5).opened
