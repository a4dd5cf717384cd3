"""Ways around a policy that were found in other packages, and any that Hypothesis can find.

The resolver is a fake, the spy sits on the standard library's own socket, and only loopback
addresses are ever really connected to. What is public is decided here by an oracle that shares
no code with the package.
"""

from __future__ import annotations

import ipaddress
import socket as stdlib
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.stapled import StapledObjectStream
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from anyio_connect import (
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    ConnectError,
    Connector,
    InvalidAddressError,
    RefusedError,
    SocketError,
    TLSError,
    listen,
)
from anyio_connect._transport import ForeignTransport
from peers import has_ipv6, listening, refusing_address
from tls_peers import NAME, TLSPeer, client_context, server_context

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")

#: Of this machine's loopback addresses, one may be connected to and the others may not.
ONE = AddressPolicy(allow=["127.0.0.1"])
WORKER = Connector(WORKERS, happy_eyeballs_delay=0)


def memory_stream_pair() -> tuple[StapledObjectStream[bytes], StapledObjectStream[bytes]]:
    send_one, receive_one = anyio.create_memory_object_stream[bytes](1)
    send_two, receive_two = anyio.create_memory_object_stream[bytes](1)
    return (
        StapledObjectStream(send_one, receive_two),
        StapledObjectStream(send_two, receive_one),
    )


class Resolver:
    """A name server: what it answers, one answer after another, and how often it was asked."""

    def __init__(self) -> None:
        self.answers: list[list[tuple[str, int]]] = []
        self.asked: list[str] = []

    async def getaddrinfo(self, host: str, port: int, **_: object) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            (
                stdlib.AF_INET6 if ":" in ip else stdlib.AF_INET,
                stdlib.SOCK_STREAM,
                6,
                "",
                (ip, at or port, 0, 0) if ":" in ip else (ip, at or port),
            )
            for ip, at in answer
        ]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(anyio, "getaddrinfo", resolver.getaddrinfo)
    return resolver


@contextmanager
def spying(*, really: Callable[[str], bool] = lambda _: False) -> Iterator[list[str]]:
    """Record every address that any socket of this process is told to connect to.

    Only where ``really`` says so is it connected; every other attempt is refused.
    """
    dialled: list[str] = []
    connect, connect_ex = stdlib.socket.connect, stdlib.socket.connect_ex

    def spy(sock: stdlib.socket, address: Any) -> None:
        dialled.append(address[0])
        if not really(address[0]):
            raise ConnectionRefusedError
        connect(sock, address)

    def spy_ex(sock: stdlib.socket, address: Any) -> int:
        raise AssertionError(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib.socket, "connect", spy, raising=False)
        patch.setattr(stdlib.socket, "connect_ex", spy_ex, raising=False)
        yield dialled
    assert (stdlib.socket.connect, stdlib.socket.connect_ex) == (connect, connect_ex)


# --- what is public, by another way: text, and lists of what is not


def is_public(text: str) -> bool:
    """Whether an address is public unicast, in every reading of it."""
    ip = ipaddress.ip_address(text.partition("%")[0])
    return all(map(_plain, _readings(ip)))


def _readings(ip: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    packed = ip.packed
    if len(packed) == 4:
        yield ip
    elif packed[:10] == bytes(10) and packed[10:12] in (b"\xff\xff", bytes(2)):
        yield IPv4Address(packed[12:]) if packed[:15] != bytes(15) or packed[15] > 1 else ip
    elif packed[:12] == b"\x00\x64\xff\x9b" + bytes(8):
        yield IPv4Address(packed[12:])
    elif packed[:2] == b"\x20\x02":
        yield IPv4Address(packed[2:6])
    elif packed[:4] == b"\x20\x01\x00\x00":
        yield IPv4Address(packed[4:8])
        yield IPv4Address(bytes(byte ^ 0xFF for byte in packed[12:]))
    else:
        yield ip
        if packed[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe"):
            yield IPv4Address(packed[12:])


NOT_PUBLIC = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3", "168.63.129.16/32"),
    *("2001:db8::/32", "2001:10::/28", "2001:2::/48", "2001:1::/32", "3fff::/20"),
]


def _plain(ip: IPv4Address | IPv6Address) -> bool:
    if ip.version == 6 and ip not in ipaddress.ip_network("2000::/3"):
        return False
    networks = map(ipaddress.ip_network, NOT_PUBLIC)
    return not any(ip.version == network.version and ip in network for network in networks)


# --- rebinding


async def test_a_name_is_resolved_once_and_the_address_that_was_judged_is_dialled(
    resolver: Resolver,
) -> None:
    async with listening() as good, listening("127.0.0.2") as bad:
        resolver.answers = [[good.address], [bad.address]]
        with spying(really=lambda _: True) as dialled:
            async with Connector(ONE).connect("rebound.test:1") as socket:
                assert (await socket.opened).remote_address == "{}:{}".format(*good.address)
            assert resolver.asked == ["rebound.test"]
            with pytest.raises(AddressNotAllowedError):
                await Connector(ONE).connect("rebound.test:1").opened
        assert dialled == ["127.0.0.1"]


async def test_a_connection_that_leads_elsewhere_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Something below redirects: what the kernel says in the end is judged too."""
    connect = stdlib.socket.connect
    async with listening("127.0.0.2") as bad:

        def redirect(sock: stdlib.socket, _: Any) -> None:
            connect(sock, bad.address)

        socket = Connector(ONE).connect("127.0.0.1:9")
        with monkeypatch.context() as patch:
            patch.setattr(stdlib.socket, "connect", redirect, raising=False)
            with pytest.raises(AddressNotAllowedError, match=r"leads to 127\.0\.0\.2") as caught:
                await socket.opened
        assert socket.closed.exception() is caught.value
        with pytest.raises(ConnectionResetError):  # and not a byte was sent
            await (await bad.accept()).receive()


async def test_so_is_one_of_anyios_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_writable(_: object) -> None:
        raise NotImplementedError

    connect_tcp = anyio.connect_tcp
    async with listening() as good, listening("127.0.0.2") as bad:

        async def redirect(host: str, port: int, **_: object) -> Any:
            return await connect_tcp(*bad.address)

        with monkeypatch.context() as patch:
            patch.setattr(anyio, "wait_writable", wait_writable)
            async with Connector(ONE).connect(good.address) as socket:
                assert isinstance(socket._connection.transport, ForeignTransport)
            patch.setattr(anyio, "connect_tcp", redirect)
            with pytest.raises(AddressNotAllowedError, match=r"leads to 127\.0\.0\.2"):
                await Connector(ONE).connect(good.address).opened


async def test_what_cannot_be_judged_in_the_end_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AnyIO's own stream, and one that does not tell where it leads."""

    async def wait_writable(_: object) -> None:
        raise NotImplementedError

    stream, theirs = memory_stream_pair()

    async def connect_tcp(*_: object, **__: object) -> Any:
        return stream

    async with listening() as good:
        monkeypatch.setattr(anyio, "wait_writable", wait_writable)
        monkeypatch.setattr(anyio, "connect_tcp", connect_tcp)
        with pytest.raises(AddressNotAllowedError, match="cannot be told where"):
            await Connector(ONE).connect(good.address).opened
    with pytest.raises(anyio.EndOfStream):
        await theirs.receive()
    await theirs.aclose()


# --- mixed answers


async def test_of_a_mixed_answer_only_what_is_allowed_is_dialled(resolver: Resolver) -> None:
    async with listening() as good, listening("127.0.0.2") as bad:
        resolver.answers = [[bad.address, ("10.0.0.1", 80), good.address, ("::1", 80)]]
        with spying(really=lambda _: True) as dialled:
            async with Connector(ONE).connect("mixed.test:1") as socket:
                assert (await socket.opened).remote_address == "{}:{}".format(*good.address)
        assert dialled == ["127.0.0.1"]


async def test_what_was_not_tried_is_told_where_the_rest_fails(resolver: Resolver) -> None:
    resolver.answers = [[("127.0.0.2", 80), refusing_address()]]
    with pytest.raises(RefusedError, match=r"not tried: 127\.0\.0\.2:80: .* forbids") as caught:
        await Connector(ONE).connect("mixed.test:1").opened
    assert len(caught.value.attempts) == 1


async def test_where_nothing_is_allowed_all_is_told(resolver: Resolver) -> None:
    resolver.answers = [[("127.0.0.1", 0), ("10.0.0.1", 0), ("::1", 0)]]
    socket = WORKER.connect("evil.test:80")
    with spying() as dialled, pytest.raises(AddressNotAllowedError) as caught:
        await socket.opened
    assert str(caught.value) == (
        "cannot connect to evil.test:80: "
        "127.0.0.1:80: the Connector's policy forbids it: 127.0.0.0/8 is Loopback (RFC 1122); "
        "10.0.0.1:80: the Connector's policy forbids it: 10.0.0.0/8 is Private-Use (RFC 1918); "
        "[::1]:80: the Connector's policy forbids it: ::1/128 is Loopback (RFC 4291)"
    )
    assert socket.closed.exception() is caught.value
    assert isinstance(caught.value, PermissionError)
    assert caught.value.attempts == ()
    assert dialled == []


async def test_a_hosts_file_is_no_way_in() -> None:
    """The system's own resolver, which has "localhost" from there."""
    with spying() as dialled, pytest.raises(AddressNotAllowedError, match="Loopback"):
        await WORKER.connect("localhost:80").opened
    assert dialled == []


async def test_the_name_that_was_given_is_the_one_that_is_verified(resolver: Resolver) -> None:
    async with listening() as listener:
        resolver.answers = [[listener.address]]
        connector = Connector(ONE, ssl_context=client_context())

        async def serve() -> None:
            with suppress(ssl.SSLError, anyio.EndOfStream):
                await TLSPeer(await listener.accept(), server_context()).shake()

        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            async with connector.connect(f"{NAME}:1", secure_transport="on"):
                pass
            group.start_soon(serve)
            with pytest.raises(TLSError, match=r"other\.test"):
                await connector.connect("other.test:1", secure_transport="on").opened


# --- spellings

PRIVATE = ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "100.64.0.1", "0.0.0.0"]
FULLWIDTH = {ord("0") + digit: 0xFF10 + digit for digit in range(10)}


def spellings(ip: str) -> Iterator[str]:
    """An IPv4 address in every way in which inet_aton() of the C library reads it, and more."""
    number = int(IPv4Address(ip))
    parts = [number >> shift & 0xFF for shift in (24, 16, 8, 0)]
    tails = [parts, [*parts[:2], number & 0xFFFF], [parts[0], number & 0xFFFFFF], [number]]
    for tail in tails:
        for form in ("{}", "{:#x}", "{:#o}", "{:#X}", "{:#012x}"):
            dotted = ".".join(form.format(part).replace("0o", "0") for part in tail)
            yield dotted
            yield f"{dotted}."
            yield f"[{dotted}]"
            yield dotted.translate(FULLWIDTH)
            for dot in "\u3002\uff0e\uff61":
                yield dotted.replace(".", dot)
    for wrapping in ("::ffff:{}", "::{}", "64:ff9b::{}", "::FFFF:{}", "0:0:0:0:0:ffff:{}"):
        yield wrapping.format(ip)
        yield f"[{wrapping.format(ip)}]"
        yield f"[{wrapping.format(ip)}%1]"
    yield f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1"
    yield f"2001:0:{number >> 16:x}:{number & 0xFFFF:x}::f7f7:f7f7"
    yield f"2001:0:808:808::{(~number >> 16) & 0xFFFF:x}:{~number & 0xFFFF:x}"


async def refused(connector: Connector, address: str | tuple[str, int]) -> None:
    """It raises at once, or fails with what the policy says; in no case is it dialled."""
    with spying() as dialled:
        try:
            socket = connector.connect(address)
        except InvalidAddressError:
            return
        with suppress(ConnectError):
            await socket.opened
        error = socket.closed.exception()
    assert dialled == []
    if not isinstance(error, AddressNotAllowedError):
        # A zone that is no interface, or an address that is not resolved here.
        assert isinstance(error, ConnectError), error


@pytest.mark.parametrize("ip", PRIVATE)
async def test_no_spelling_of_a_private_address_gets_through(
    ip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(host: str, port: int, **_: object) -> Any:
        # Were a spelling to get here, this is what the C library would make of it.
        with suppress(OSError):
            packed = stdlib.inet_aton(host.removesuffix("."))
            return [(stdlib.AF_INET, stdlib.SOCK_STREAM, 6, "", (stdlib.inet_ntoa(packed), port))]
        raise stdlib.gaierror(stdlib.EAI_NONAME, "no such name")

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    seen = 0
    for host in spellings(ip):
        for address in (f"{host}:80", (host, 80)):
            await refused(WORKER, address)
            seen += 1
    assert seen > 100


@pytest.mark.parametrize(
    "host", ["LOCALHOST", "localhost.", "LocalHost.", "[localhost]", "\uff4cocalhost", "ⓛocalhost"]
)
async def test_no_spelling_of_a_private_name_gets_through(host: str, resolver: Resolver) -> None:
    resolver.answers = [[("127.0.0.1", 0)]]
    await refused(WORKER, (host, 80))


@needs_ipv6
@pytest.mark.parametrize("zone", ["%1", "%lo", ""])
async def test_a_zone_hides_nothing(zone: str) -> None:
    for ip in ("::1", "fe80::1", "::ffff:127.0.0.1", "fec0::1"):
        await refused(WORKER, f"[{ip}{zone}]:80")


@needs_ipv6
async def test_a_zone_of_a_number_that_no_interface_has() -> None:
    nowhere = "[fe80::1%4321]:80"
    with spying() as dialled, pytest.raises(AddressNotAllowedError, match="Link-Local"):
        await WORKER.connect(nowhere).opened
    assert dialled == []
    with pytest.raises(ConnectError, match=r"cannot connect to \[fe80::1%4321\]:80"):
        await Connector().connect(nowhere).opened


async def test_a_zone_in_an_answer_hides_nothing(resolver: Resolver) -> None:
    resolver.answers = [[("fe80::1%1", 0), ("::1%lo", 0)]]
    with spying() as dialled, pytest.raises(AddressNotAllowedError):
        await WORKER.connect("zone.test:80").opened
    assert dialled == []


async def test_an_answer_that_is_no_address_is_not_dialled(resolver: Resolver) -> None:
    """What cannot be judged is denied."""
    resolver.answers = [[("", 0), ("127.1", 0), ("evil", 0), ("0x7f000001", 0)]]
    with spying() as dialled, pytest.raises(AddressNotAllowedError, match="is not an IP address"):
        await WORKER.connect("odd.test:80").opened
    assert dialled == []


async def test_an_answer_cannot_change_the_port(resolver: Resolver) -> None:
    resolver.answers = [[("8.8.8.8", 25)]]
    with spying() as dialled, pytest.raises(AddressNotAllowedError, match="port 25"):
        await WORKER.connect("odd.test:80").opened
    assert dialled == []


# --- any of it at once

v4 = st.one_of(
    st.ip_addresses(v=4),
    st.sampled_from(["8.8.8.8", "127.0.0.1", "169.254.169.254", "168.63.129.16"]).map(IPv4Address),
    *(st.ip_addresses(network=net) for net in NOT_PUBLIC if ":" not in net),
)
v6 = st.one_of(
    st.ip_addresses(v=6),
    st.ip_addresses(network="2000::/3"),
    st.ip_addresses(network="::/8"),
    st.sampled_from(["::", "::1", "fe80::1", "fd00:ec2::254"]).map(IPv6Address),
    v4.map(lambda ip: IPv6Address(int(ip))),
    v4.map(lambda ip: IPv6Address(0xFFFF << 32 | int(ip))),
    v4.map(lambda ip: IPv6Address(0xFFFF << 48 | int(ip))),
    v4.map(lambda ip: IPv6Address(0x64FF9B << 96 | int(ip))),
    v4.map(lambda ip: IPv6Address(0x64FF9B0001 << 80 | int(ip))),
    v4.map(lambda ip: IPv6Address(0x2002 << 112 | int(ip) << 80 | 1)),
    v4.map(lambda ip: IPv6Address(0x26064700 << 96 | 0x5EFE << 32 | int(ip))),
    st.tuples(v4, v4).map(
        lambda two: IPv6Address(0x20010000 << 96 | int(two[0]) << 64 | int(two[1]) ^ 0xFFFFFFFF)
    ),
)
answers = st.lists(st.one_of(v4, v6).map(str), min_size=1, max_size=5)
some_rules = st.builds(
    AddressPolicy,
    allow=st.none() | st.lists(st.sampled_from(["0.0.0.0/0", "::/0", "10.0.0.0/8", "8.8.8.8"])),
    deny=st.lists(st.sampled_from(["127.0.0.0/8", "::1", "10.0.0.0/9", "8.0.0.0/8", "::/8"])),
    deny_ports=st.lists(st.sampled_from([80, (1, 100), 443])),
    public_only=st.booleans(),
    refuse_loops=st.booleans(),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=answers, port=st.sampled_from([25, 80, 443]), literal=st.booleans())
@example(answer=["::ffff:127.0.0.1", "8.8.8.8"], port=80, literal=False)
@example(answer=["2002:7f00:1::1"], port=80, literal=True)
async def test_nothing_outside_workers_is_ever_connected_to(
    answer: list[str], port: int, literal: bool, resolver: Resolver
) -> None:
    resolver.answers = [[(ip, 0) for ip in answer]]
    host = answer[0] if literal else "any.test"
    with spying() as dialled, suppress(SocketError):
        await WORKER.connect((host, port)).opened
    assert all(map(is_public, dialled))
    assert port != 25 or not dialled
    if port != 25:  # and nothing that is allowed is left out
        ours = answer[:1] if literal else answer
        assert {ipaddress.ip_address(ip) for ip in dialled} == {
            ipaddress.ip_address(ip) for ip in ours if WORKERS.refusal(ip, port) is None
        }


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=answers, port=st.sampled_from([80, 443, 8080]), first=some_rules, second=some_rules)
async def test_nothing_outside_any_policy_is_ever_connected_to(
    answer: list[str],
    port: int,
    first: AddressPolicy,
    second: AddressPolicy,
    resolver: Resolver,
) -> None:
    resolver.answers = [[(ip, 0) for ip in answer]]
    connector = Connector(first & second, happy_eyeballs_delay=0)
    with spying() as dialled, suppress(SocketError):
        await connector.connect(("any.test", port)).opened
    for policy in (first, second):
        for ip in dialled:
            assert policy.refusal(ip, port) is None
            mapped = ipaddress.ip_address(ip)
            for reading in _readings(mapped):
                denied = [ipaddress.ip_network(str(net)) for net in policy.deny]
                assert not any(n.version == reading.version and reading in n for n in denied)


@given(st.one_of(v4, v6))
def test_the_oracle_and_the_table_agree(ip: IPv4Address | IPv6Address) -> None:
    if not is_public(str(ip)):
        assert WORKERS.refusal(ip, 443)
    elif WORKERS.refusal(ip, 443):
        # The other way round the oracle is coarse: AS112 and the like, it does not know.
        assume(ip.version == 6)


# --- nothing is left behind


async def test_a_vetted_race_cancelled_at_any_moment_leaves_nothing(resolver: Resolver) -> None:
    """The k-th task switch cancels, for every k until the dial gets through."""
    policy = AddressPolicy(allow=["127.0.0.1"], refuse_loops=True)
    connector = Connector(policy, max_connections=1, happy_eyeballs_delay=0)
    async with listening() as first, listening() as second, await listen("127.0.0.1:0") as own:
        loop = ("127.0.0.1", int(own.addresses[0].rpartition(":")[2]))
        resolver.answers = [
            [("127.0.0.2", 9), refusing_address(), first.address, loop, second.address]
        ]
        for switches in range(200):
            socket = connector.connect("host.test:1")
            scope = anyio.CancelScope()

            async def cancel(scope: anyio.CancelScope, switches: int) -> None:
                for _ in range(switches):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

            async with anyio.create_task_group() as group:
                group.start_soon(cancel, scope, switches)
                with scope:
                    await socket.opened
                through = not scope.cancel_called
                group.cancel_scope.cancel()
            await socket.close()
            assert vars(connector)["_slots"].free == 1
            if through:
                break
        else:
            pytest.fail("the dial never got through")
