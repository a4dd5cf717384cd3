"""Loops: connections that lead back to a listener of the same process."""

from __future__ import annotations

import errno
import os
import signal
import socket as stdlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from anyio_connect import (
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    Connector,
    LoopError,
    RefusedError,
    _lookup,
    _loops,
    connect,
    listen,
)
from anyio_connect._address import format_address
from anyio_connect._loops import announce, leads_back, withdraw
from support import peers
from support.errors import is_copy
from support.peers import needs_ipv6
from support.servers import port, send_back

LOOPBACK = replace(WORKERS, allow=["127.0.0.0/8", "::1"])


@pytest.mark.parametrize(
    ("at", "dialled"),
    [
        ("127.0.0.1:0", "127.0.0.1"),
        ("127.0.0.1:0", "::ffff:127.0.0.1"),
        ("127.0.0.1:0", "0.0.0.0"),
        ("0.0.0.0:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.1.2.3"),
        ("0.0.0.0:0", "0.0.0.0"),
        pytest.param("[::1]:0", "::1", marks=needs_ipv6),
        pytest.param("[::]:0", "::1", marks=needs_ipv6),
        pytest.param("[::]:0", "::", marks=needs_ipv6),
    ],
)
@pytest.mark.parametrize("policy", [WORKERS, LOOPBACK, AddressPolicy(refuse_loops=True)])
async def test_dialling_ourselves_is_a_loop(at: str, dialled: str, policy: AddressPolicy) -> None:
    async with await listen(at) as listener:
        socket = Connector(policy).connect((dialled, port(listener)))
        with pytest.raises(LoopError, match="this process itself listens there") as caught:
            await socket.opened
        assert is_copy(socket.closed.exception(), caught.value)
        # Not a loop: another port, another address.
        kind = (AddressNotAllowedError, OSError)
        with pytest.raises(kind) as other:
            await Connector(policy).connect(("127.0.0.1", 9)).opened
        assert not isinstance(other.value, LoopError)
    host, six = at.rpartition(":")[0].strip("[]"), "[" in at
    with stdlib.socket(stdlib.AF_INET6 if six else stdlib.AF_INET) as nobody_else:
        nobody_else.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR, 1)
        if six:
            nobody_else.setsockopt(stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY, 1)
        nobody_else.bind((host, port(listener)))
        with pytest.raises(kind) as other:  # it no longer listens
            await Connector(policy).connect((dialled, port(listener))).opened
        assert not isinstance(other.value, LoopError)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to connect by TCP is refused."""
    connect = stdlib.socket.connect

    def refuse(sock: stdlib.socket, address: Any) -> None:
        if sock.type == stdlib.SOCK_STREAM:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        connect(sock, address)

    monkeypatch.setattr(stdlib.socket, "connect", refuse, raising=False)


@pytest.mark.parametrize("bindable", [False, True])
@pytest.mark.parametrize(
    ("at", "elsewhere"),
    [
        ("0.0.0.0:0", "192.0.2.1"),
        ("0.0.0.0:0", "224.0.0.1"),
        ("0.0.0.0:0", "255.255.255.255"),
        ("0.0.0.0:0", "::ffff:224.0.0.1"),
        pytest.param("[::]:0", "2001:db8::1", marks=needs_ipv6),
        pytest.param("[::]:0", "ff02::1", marks=needs_ipv6),
        pytest.param("[::]:0", "ff01::1", marks=needs_ipv6),
    ],
)
async def test_only_own_addresses_lead_back_to_a_wildcard_listener(
    at: str, elsewhere: str, bindable: bool, nobody: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a listener listens at all addresses of this machine.

    With ip_nonlocal_bind, a socket can be bound to any address: that shows nothing then.
    """
    async with await listen(at) as listener:
        if bindable:
            monkeypatch.setattr(stdlib.socket, "bind", lambda *_: None, raising=False)
        with pytest.raises(RefusedError):
            await (
                Connector(AddressPolicy(refuse_loops=True))
                .connect((elsewhere, port(listener)))
                .opened
            )
        with pytest.raises(AddressNotAllowedError):
            await Connector(WORKERS).connect((elsewhere, port(listener))).opened


def own_addresses() -> list[str]:
    """The addresses of this machine besides loopback, as far as they can be found out."""
    found = []
    for family, elsewhere in (
        (stdlib.AF_INET, "198.51.100.1"),
        (stdlib.AF_INET6, "2606:4700::1"),
    ):
        with suppress(OSError), stdlib.socket(family, stdlib.SOCK_DGRAM) as sock:
            sock.connect((elsewhere, 9))
            found.append(sock.getsockname()[0])
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            number, _, _, scope, flags, name = line.split()
            if (
                scope == "20" and not int(flags, 16) & 0x48
            ):  # link-local, and not tentative or failed
                found.append(f"{ip_address(bytes.fromhex(number))}%{name}")
    return [ip for ip in found if not ip_address(ip.partition("%")[0]).is_loopback]


async def test_every_address_of_this_machine_leads_back() -> None:
    ours = own_addresses()
    if not ours:
        pytest.skip("this machine has loopback addresses only")
    for ip in ours:
        async with await listen("[::]:0" if ":" in ip else "0.0.0.0:0") as listener:
            for policy in (WORKERS, AddressPolicy(refuse_loops=True)):
                with pytest.raises(LoopError, match="this process itself listens there"):
                    await Connector(policy).connect((ip, port(listener))).opened
            # A transport names its peer in this form, with the zone by name.
            assert leads_back((ip, port(listener)))
            async with connect(
                (ip, port(listener))
            ) as socket:  # without a policy, the loop is made
                assert (await socket.opened).remote_address == format_address(ip, port(listener))


@pytest.fixture
def exhausted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After a call of this, no socket can be made to find out where an address leads."""

    def no_more(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    module = SimpleNamespace(**{**vars(stdlib), "socket": no_more})
    return lambda: monkeypatch.setattr("anyio_connect._loops.socket", module)


async def test_a_loop_that_cannot_be_ruled_out_is_refused(
    nobody: None, exhausted: Callable[[], None]
) -> None:
    async with await listen("0.0.0.0:0") as listener:
        exhausted()
        socket = Connector(AddressPolicy(refuse_loops=True)).connect(("192.0.2.1", port(listener)))
        with pytest.raises(
            AddressNotAllowedError, match="the system does not say whether"
        ) as caught:
            await socket.opened
        assert "Too many open files" in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert is_copy(socket.closed.exception(), caught.value)
        # The error of an address that is forbidden anyway names that rule.
        with pytest.raises(AddressNotAllowedError, match="Documentation"):
            await Connector(WORKERS).connect(("192.0.2.1", port(listener))).opened


@pytest.mark.parametrize(
    "code", [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EPERM], ids=errno.errorcode.get
)
async def test_an_address_is_refused_if_the_system_does_not_tell_where_it_leads(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, "failed")

    async with await listen("0.0.0.0:0") as listener:
        monkeypatch.setattr(stdlib.socket, "connect", fail, raising=False)
        with pytest.raises(AddressNotAllowedError, match="the system does not say whether"):
            await (
                Connector(AddressPolicy(refuse_loops=True))
                .connect(("192.0.2.1", port(listener)))
                .opened
            )


@contextmanager
def listening_from_connect_on(
    target: peers.Listener, and_then: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Make ``target`` a listener of this process between the check and the connection."""
    connect = stdlib.socket.connect

    def announcing(sock: stdlib.socket, address: Any) -> None:
        if sock.type == stdlib.SOCK_STREAM:
            announce(target.sock)
            and_then()
        connect(sock, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib.socket, "connect", announcing, raising=False)
        yield
    withdraw(target.sock)


async def test_a_loop_that_comes_about_after_the_check_is_found() -> None:
    async with peers.listening() as target:
        socket = Connector(AddressPolicy(refuse_loops=True)).connect(target.address)
        with listening_from_connect_on(target):
            with pytest.raises(LoopError, match="this process itself listens there") as caught:
                await socket.opened
            assert is_copy(socket.closed.exception(), caught.value)
            assert isinstance(caught.value.attempts[0], LoopError)
            with pytest.raises(ConnectionResetError):  # no byte was sent
                await (await target.accept()).receive()


async def test_a_connection_is_dropped_if_a_loop_cannot_be_ruled_out_afterwards(
    exhausted: Callable[[], None],
) -> None:
    async with peers.listening("0.0.0.0") as target:
        address = ("127.0.0.2", target.address[1])
        socket = Connector(AddressPolicy(refuse_loops=True)).connect(address)
        with listening_from_connect_on(target, exhausted):
            with pytest.raises(AddressNotAllowedError, match="does not say whether") as caught:
                await socket.opened
            assert getattr(caught.value.__cause__, "errno", None) == errno.EMFILE
            assert isinstance(socket.closed.exception(), AddressNotAllowedError)
            with pytest.raises(ConnectionResetError):
                await (await target.accept()).receive()


async def test_a_name_that_leads_back_is_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, number: int, **_: object) -> list[Any]:
        return [(stdlib.AF_INET, stdlib.SOCK_STREAM, 6, "", ("127.0.0.1", number))]

    async with await listen("127.0.0.1:0") as listener:
        monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
        with pytest.raises(LoopError):
            await Connector(WORKERS).connect(f"host.test:{port(listener)}").opened


async def test_loops_are_allowed_without_refuse_loops() -> None:
    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, send_back)
        async with Connector(replace(LOOPBACK, refuse_loops=False)).connect(
            listener.addresses[0]
        ) as socket:
            await socket.send(b"1")
            assert await socket.receive() == b"1"
        group.cancel_scope.cancel()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_finds_loops() -> None:
    with stdlib.create_server(("127.0.0.1", 0)) as listener:
        announce(listener)
        try:
            with _loops._lock:  # another thread may have it during the fork
                pid = os.fork()
                if not pid:
                    signal.alarm(30)  # ends the child if it hangs
                    os._exit(not leads_back(listener.getsockname()))
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
        finally:
            withdraw(listener)
