"""Connector(resolver=): its answers are judged and raced, and its failures are reported."""

from __future__ import annotations

import socket as stdlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_connect import (
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    ClosedError,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    InvalidOptionError,
    RefusedError,
    ResolveError,
    SocketAddress,
    _dial,
    _lookup,
    _route,
)
from support.errors import is_copy
from support.peers import listening, needs_ipv6, refusing_address

ASKED = "cannot resolve 'host.test': the Connector's resolver "


NOWHERE = "this machine has no network interface 'nowhere'"


def answering(answer: Any) -> Callable[[str, int], Any]:
    """A resolver that gives the same answer for every name."""

    async def resolver(host: str, port: int) -> Any:
        await checkpoint()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return resolver


@pytest.fixture(autouse=True)
def no_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail each test that asks the system."""

    async def getaddrinfo(*_: object) -> Any:
        raise AssertionError

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)


async def failure(connector: Connector, **options: Any) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        await connector.connect("host.test:9", **options).opened
    return caught.value


# --- when it is asked


async def test_the_resolver_is_asked_instead_of_the_system() -> None:
    asked: list[tuple[str, int]] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    async with listening() as listener:
        connector = Connector(resolver=resolver)
        port = listener.address[1]
        for host in ("Host.Test", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.test"):
            async with connector.connect((host, port)) as socket:
                assert (await socket.opened).remote_address == f"127.0.0.1:{port}"
    assert asked == [("host.test", port), ("xn--bcher-kva.test", port)]


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
async def test_the_resolver_is_not_asked_for_an_ip_address(host: str) -> None:
    async with listening(host) as listener:
        connector = Connector(resolver=answering(AssertionError()))
        async with connector.connect(listener.address):
            pass


async def test_the_resolver_is_not_asked_if_the_port_is_forbidden() -> None:
    connector = Connector(AddressPolicy(deny_ports=[9]), resolver=answering(AssertionError()))
    assert isinstance(await failure(connector), AddressNotAllowedError)


# --- its answers


async def test_the_answer_is_judged_by_the_policy() -> None:
    error = await failure(Connector(WORKERS, resolver=answering(["127.0.0.1", "10.0.0.1"])))
    assert isinstance(error, AddressNotAllowedError)
    assert "127.0.0.0/8 is Loopback" in str(error)
    assert "10.0.0.0/8" in str(error)


@needs_ipv6
async def test_the_addresses_of_the_answer_are_raced() -> None:
    """The families alternate, and each address is tried once."""
    silent = "192.0.2.1"
    async with listening("::1") as listener:
        connector = Connector(
            AddressPolicy(allow=["::1"]),
            happy_eyeballs_delay=3600,
            resolver=answering([silent, silent, "::1"]),
        )
        async with connector.connect(("host.test", listener.address[1])) as socket:
            assert str((await socket.opened).remote_address).startswith("[::1]:")
    host, port = refusing_address()
    connector = Connector(resolver=answering((host, host)))
    with pytest.raises(RefusedError) as caught:
        await connector.connect(("host.test", port)).opened
    assert len(caught.value.attempts) == 1


async def test_no_more_than_64_addresses_are_tried() -> None:
    many = [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(5000)]
    asked: list[str] = []

    class Looking(AddressPolicy):
        def refusal(self, address: Any, port: int) -> str | None:
            asked.append(str(address))
            return "no"

    error = await failure(Connector(Looking(), resolver=answering(many)))
    assert asked == many[:64]
    assert str(error).endswith("and 56 more; 4936 more addresses were left out")
    assert len(str(error)) < 2000


@needs_ipv6
async def test_a_zone_is_kept() -> None:
    name = stdlib.if_indextoname(1)
    found = await _dial.find(
        _route.Route(resolver=answering([f"fe80::1%{name}", "fe80::2%1"])),
        _dial.Progress(SocketAddress("host.test", 9)),
    )
    assert [endpoint.sockaddr[3] for endpoint in found] == [1, 1]


class Endless(Sequence[str]):
    """A sequence with a short length that never ends when it is iterated."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        while True:
            yield "10.0.0.1"


async def test_an_answer_without_end_is_bounded() -> None:
    error = await failure(Connector(WORKERS, resolver=answering(Endless(3))))
    assert str(error).startswith("cannot connect to host.test:9: 10.0.0.1:9: ")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("127.0.0.1", "'127.0.0.1', which is not a list of IP addresses"),
        (b"127.0.0.1", "b'127.0.0.1', which is not a list of IP addresses"),
        (None, "None, which is not a list of IP addresses"),
        ({"127.0.0.1"}, "{'127.0.0.1'}, which is not a list of IP addresses"),
        (5, "5, which is not a list of IP addresses"),
        ([None], "None, which is not an IP address"),
        ([("127.0.0.1", 80)], "('127.0.0.1', 80), which is not an IP address"),
        ([2130706433], "2130706433, which is not an IP address"),
        ([b"127.0.0.1"], "b'127.0.0.1', which is not an IP address"),
        (["127.0.0.1", "other.test"], "'other.test', which is not an IP address"),
        (["127.1"], "'127.1', which is not an IP address"),
        (["0x7f.1"], "'0x7f.1', which is not an IP address"),
        (["127.0.0.1:80"], "'127.0.0.1:80', which is not an IP address"),
        (["[::1]"], "'[::1]', which is not an IP address"),
        ([""], "'', which is not an IP address"),
        (["\x1b[2J"], r"'\x1b[2J', which is not an IP address"),
        (["fe80::1%a\0b"], r"'fe80::1%a\x00b', which is not an IP address"),
        (["fe80::1%\ud800"], r"'fe80::1%\ud800', which is not an IP address"),
        (
            ["fe80::1%nowhere"],
            f"'fe80::1%nowhere', which cannot be used: {NOWHERE}",
        ),
    ],
)
async def test_the_error_quotes_an_answer_that_is_no_list_of_addresses(
    answer: object, why: str
) -> None:
    error = await failure(Connector(resolver=answering(answer)))
    assert isinstance(error, ResolveError)
    assert str(error) == f"{ASKED}returned {why}"


async def test_a_long_answer_makes_no_long_message() -> None:
    error = await failure(Connector(resolver=answering(["x" * 10_000])))
    assert len(str(error)) < 300


@pytest.mark.parametrize("answer", [[], ()])
async def test_an_empty_answer_is_no_address(answer: object) -> None:
    error = await failure(Connector(resolver=answering(answer)))
    assert isinstance(error, ResolveError)
    assert str(error) == (
        "cannot resolve 'host.test': the name has no address; check the spelling and your DNS"
    )


async def test_a_resolver_that_is_not_async_is_an_error() -> None:
    resolver: Any = lambda host, port: ["127.0.0.1"]  # noqa: E731
    error = await failure(Connector(resolver=resolver))
    assert isinstance(error, ResolveError)
    assert str(error) == (
        f"{ASKED}returned ['127.0.0.1'], which cannot be awaited: write it with 'async def'"
    )


# --- its errors


class Strange(Endless):
    def __iter__(self) -> Iterator[str]:
        raise KeyError("strange")


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (KeyError("host.test"), "raised KeyError: 'host.test'"),
        (stdlib.gaierror(stdlib.EAI_NONAME, "no such name"), "raised gaierror: no such name"),
        (RefusedError("the DNS server is down"), "raised RefusedError: the DNS server is down"),
        (TimeoutError(), "raised TimeoutError: TimeoutError"),
        (Strange(1), "raised KeyError: 'strange'"),
    ],
)
async def test_the_error_quotes_what_the_resolver_raised(raised: Any, text: str) -> None:
    error = await failure(Connector(resolver=answering(raised)))
    assert isinstance(error, ResolveError)
    assert str(error) == f"{ASKED}{text}"
    if isinstance(raised, Exception):
        assert is_copy(error.__cause__, raised)
        assert error.errno == getattr(raised, "errno", None)


async def test_a_base_exception_of_the_resolver_passes_unchanged() -> None:
    class Stop(BaseException):
        pass

    socket = Connector(resolver=answering(Stop())).connect("host.test:9")
    with pytest.raises(Stop):
        await socket.opened
    assert not socket.opened.done()
    await socket.close()


async def test_a_resolver_with_only_one_parameter_is_an_error() -> None:
    async def resolver(host: str) -> Sequence[str]:
        return [host]

    wrong: Any = resolver
    error = await failure(Connector(resolver=wrong))
    assert str(error).startswith(f"{ASKED}raised TypeError: ")


# --- its time limit, and cancellation


async def test_the_time_of_the_resolver_counts_as_connecting() -> None:
    cancelled = anyio.Event()

    async def resolver(host: str, port: int) -> Sequence[str]:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    error = await failure(Connector(resolver=resolver, connect_timeout=0.02))
    assert isinstance(error, ConnectTimeoutError)
    assert "the name was not resolved within 0.02 seconds" in str(error)
    assert cancelled.is_set()


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_a_lookup_is_cancelled_by_close_and_by_cancellation(how: str) -> None:
    asked, cancelled = anyio.Event(), anyio.Event()

    async def resolver(host: str, port: int) -> Sequence[str]:
        asked.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.set()
            raise
        raise AssertionError

    socket = Connector(resolver=resolver, max_connections=1).connect("host.test:9")
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            with anyio.CancelScope() as scope:
                group.start_soon(end, scope)
                with suppress(ClosedError):
                    await socket.opened

        async def end(scope: anyio.CancelScope) -> None:
            await asked.wait()
            if how == "close":
                await socket.close()
            else:
                scope.cancel()

        group.start_soon(wait)
    assert cancelled.is_set()
    assert socket.opened.done() == (how == "close")
    await socket.close()


# --- the option


@pytest.mark.parametrize("value", [5, "dns.test", [], ["127.0.0.1"]])
def test_the_resolver_must_be_a_function(value: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"^bad value for resolver: .*async function"):
        Connector(resolver=value)


async def test_with_a_dialer_the_resolver_is_asked_by_resolve_and_for_a_policy() -> None:
    async def dialer(address: SocketAddress) -> Any:
        raise RefusedError(f"no way to {address.hostname}")

    connector = Connector(dialer=dialer, resolver=answering(["192.0.2.1"]))
    assert await connector.resolve("db.test", 1) == ["192.0.2.1"]
    with pytest.raises(RefusedError, match=r"^no way to db\.test$"):
        await connector.connect("db.test:1").opened
    connector = replace(connector, policy=AddressPolicy(deny=["10.0.0.1"]))
    with pytest.raises(RefusedError, match=r"^no way to 192\.0\.2\.1$"):
        await connector.connect("db.test:1").opened
