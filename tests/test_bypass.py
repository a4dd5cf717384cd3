"""Ways around a policy that were found in other packages, and any that Hypothesis can find.

The resolver is a fake. The spy watches the sockets of the standard library. Real connections are
made only to loopback addresses. The attacks are in attacks.py. Its oracle says what is allowed,
and shares no code with the package. test_adapters_bypass.py tries the same through clients.
"""

from __future__ import annotations

import ipaddress
import socket as stdlib
import ssl
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.stapled import StapledObjectStream
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import anyio_connect
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
    _lookup,
    listen,
)
from anyio_connect._transport import ForeignTransport
from support import registry
from support.attacks import (
    INWARD_ANSWERS,
    ONE,
    PRESETS,
    PRIVATE,
    Resolver,
    Rules,
    answers,
    literal,
    names,
    numbers,
    some_rules,
    spellings,
    v4,
    v6,
)
from support.errors import is_copy
from support.peers import listening, needs_ipv6, refusing_address
from support.spying import spying
from support.tls_peers import NAME, TLSPeer, client_context, server_context

WORKER = Connector(WORKERS, happy_eyeballs_delay=0)


def memory_stream_pair() -> tuple[StapledObjectStream[bytes], StapledObjectStream[bytes]]:
    send_one, receive_one = anyio.create_memory_object_stream[bytes](1)
    send_two, receive_two = anyio.create_memory_object_stream[bytes](1)
    return (
        StapledObjectStream(send_one, receive_two),
        StapledObjectStream(send_two, receive_one),
    )


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(_lookup, "getaddrinfo", resolver.getaddrinfo)
    return resolver


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
    """If a lower layer redirects the connection, the address that the kernel names is judged."""
    connect = stdlib.socket.connect
    async with listening("127.0.0.2") as bad:

        def redirect(sock: stdlib.socket, _: Any) -> None:
            connect(sock, bad.address)

        socket = Connector(ONE).connect("127.0.0.1:9")
        with monkeypatch.context() as patch:
            patch.setattr(stdlib.socket, "connect", redirect, raising=False)
            with pytest.raises(AddressNotAllowedError, match=r"leads to 127\.0\.0\.2") as caught:
                await socket.opened
        assert is_copy(socket.closed.exception(), caught.value)
        with pytest.raises(ConnectionResetError):  # no byte was sent
            await (await bad.accept()).receive()


@pytest.mark.usefixtures("from_afar")
async def test_a_stream_of_anyio_that_leads_elsewhere_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


@pytest.mark.usefixtures("from_afar")
async def test_a_stream_that_does_not_tell_its_address_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """connect_tcp() of AnyIO returns a stream that does not tell where it leads."""

    async def wait_writable(_: object) -> None:
        raise NotImplementedError

    stream, theirs = memory_stream_pair()

    async def connect_tcp(*_: object, **__: object) -> Any:
        return stream

    async with listening() as good:
        monkeypatch.setattr(anyio, "wait_writable", wait_writable)
        monkeypatch.setattr(anyio, "connect_tcp", connect_tcp)
        with pytest.raises(AddressNotAllowedError, match="does not say where"):
            await Connector(ONE).connect(good.address).opened
    with pytest.raises(anyio.EndOfStream):
        await theirs.receive()
    await theirs.aclose()


# --- mixed answers


async def test_only_the_allowed_addresses_of_a_mixed_answer_are_dialled(
    resolver: Resolver,
) -> None:
    async with listening() as good, listening("127.0.0.2") as bad:
        resolver.answers = [[bad.address, ("10.0.0.1", 80), good.address, ("::1", 80)]]
        with spying(really=lambda _: True) as dialled:
            async with Connector(ONE).connect("mixed.test:1") as socket:
                assert (await socket.opened).remote_address == "{}:{}".format(*good.address)
        assert dialled == ["127.0.0.1"]


async def test_the_error_names_the_addresses_that_were_not_tried(resolver: Resolver) -> None:
    resolver.answers = [[("127.0.0.2", 80), refusing_address()]]
    with pytest.raises(RefusedError, match=r"not tried: 127\.0\.0\.2:80: .* forbids") as caught:
        await Connector(ONE).connect("mixed.test:1").opened
    assert len(caught.value.attempts) == 1


async def test_if_no_address_is_allowed_the_error_names_all_of_them(resolver: Resolver) -> None:
    resolver.answers = [INWARD_ANSWERS["private"]]
    socket = WORKER.connect("evil.test:80")
    with spying() as dialled, pytest.raises(AddressNotAllowedError) as caught:
        await socket.opened
    assert str(caught.value) == (
        "cannot connect to evil.test:80: "
        "127.0.0.1:80: the Connector's policy forbids it: 127.0.0.0/8 is Loopback (RFC 1122); "
        "10.0.0.1:80: the Connector's policy forbids it: 10.0.0.0/8 is Private-Use (RFC 1918); "
        "[::1]:80: the Connector's policy forbids it: ::1/128 is Loopback (RFC 4291)"
    )
    assert is_copy(socket.closed.exception(), caught.value)
    assert isinstance(caught.value, PermissionError)
    assert caught.value.attempts == ()
    assert dialled == []


async def test_an_address_from_the_hosts_file_is_judged() -> None:
    """The system's resolver finds "localhost" there."""
    with spying() as dialled, pytest.raises(AddressNotAllowedError, match="Loopback"):
        await WORKER.connect("localhost:80").opened
    assert dialled == []


async def test_tls_verifies_the_name_that_was_given(resolver: Resolver) -> None:
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


async def refused(connector: Connector, address: str | tuple[str, int]) -> None:
    """Check that the call raises, or that opening fails, and that no address is dialled."""
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
        # The zone is not that of an interface, or the host is not resolved here.
        assert isinstance(error, ConnectError), error


@pytest.mark.parametrize("ip", PRIVATE)
async def test_no_spelling_of_a_private_address_gets_through(
    ip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(host: str, port: int, **_: object) -> Any:
        # A spelling that gets this far is read as the C library reads it.
        with suppress(OSError):
            packed = stdlib.inet_aton(host.removesuffix("."))
            return [(stdlib.AF_INET, stdlib.SOCK_STREAM, 6, "", (stdlib.inet_ntoa(packed), port))]
        raise stdlib.gaierror(stdlib.EAI_NONAME, "no such name")

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
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
async def test_a_zone_does_not_hide_an_address(zone: str) -> None:
    for ip in ("::1", "fe80::1", "::ffff:127.0.0.1", "fec0::1"):
        await refused(WORKER, f"[{ip}{zone}]:80")


@needs_ipv6
async def test_a_zone_with_a_number_that_no_interface_has() -> None:
    nowhere = "[fe80::1%4321]:80"
    with spying() as dialled, pytest.raises(AddressNotAllowedError, match="Link-Local"):
        await WORKER.connect(nowhere).opened
    assert dialled == []
    with pytest.raises(ConnectError, match=r"cannot connect to \[fe80::1%4321\]:80"):
        await Connector().connect(nowhere).opened


async def test_a_zone_in_an_answer_does_not_hide_an_address(resolver: Resolver) -> None:
    resolver.answers = [INWARD_ANSWERS["zones"]]
    with spying() as dialled, pytest.raises(AddressNotAllowedError):
        await WORKER.connect("zone.test:80").opened
    assert dialled == []


async def test_an_answer_that_is_not_an_address_is_not_dialled(resolver: Resolver) -> None:
    """What cannot be judged is denied."""
    resolver.answers = [INWARD_ANSWERS["no addresses"]]
    with spying() as dialled, pytest.raises(AddressNotAllowedError, match="is not an IP address"):
        await WORKER.connect("odd.test:80").opened
    assert dialled == []


async def test_an_answer_cannot_change_the_port(resolver: Resolver) -> None:
    resolver.answers = [INWARD_ANSWERS["another port"]]
    with spying() as dialled, pytest.raises(AddressNotAllowedError, match="port 25"):
        await WORKER.connect("odd.test:80").opened
    assert dialled == []


# --- all of this at once


class Rebinding(Resolver):
    """Gives another answer each time. A number in any form is read as the C library reads it."""

    def __init__(self, answers: list[list[str]]) -> None:
        super().__init__()
        self.answers = [[(ip, 0) for ip in answer] for answer in answers]
        self.given: list[str] = []

    async def getaddrinfo(self, host: str, port: int, **options: object) -> list[Any]:
        with suppress(OSError):
            read = stdlib.inet_ntoa(stdlib.inet_aton(host.removesuffix(".")))
            self.answers.insert(0, [(read, 0)])
        found = await super().getaddrinfo(host, port, **options)
        self.given = [sockaddr[0] for *_, sockaddr in found]
        return found


@pytest.mark.slow
@settings(
    max_examples=max(300, settings().max_examples), suppress_health_check=[HealthCheck.too_slow]
)
@given(
    host=st.booleans().flatmap(lambda named: names if named else numbers),
    as_text=st.booleans(),
    port=st.sampled_from([25, 80, 443, 8080]),
    answers=st.lists(answers, min_size=1, max_size=3),
    first=some_rules,
    second=st.none() | some_rules,
    preset=st.sampled_from([*PRESETS]),
)
@example(
    host="::ffff:127.0.0.1",
    as_text=False,
    port=80,
    answers=[["8.8.8.8"]],
    first=Rules(["::/0"], [], [], public_only=False),
    second=None,
    preset="UNRESTRICTED",
)
@example(
    host="any.test",
    as_text=True,
    port=443,
    answers=[["8.8.8.8", "2002:7f00:1::1"], ["127.0.0.1", "2002:808:808::5efe:a00:1"]],
    first=Rules(None, [], [], public_only=False),
    second=None,
    preset="WORKERS",
)
async def test_nothing_outside_the_policy_is_ever_connected_to(
    host: str,
    as_text: bool,
    port: int,
    answers: list[list[str]],
    first: Rules,
    second: Rules | None,
    preset: str,
) -> None:
    """However an address is written, wherever it comes from, whatever it is rebound to."""
    every = [first, PRESETS[preset]]
    policy = first.policy() & getattr(anyio_connect, preset)
    if second is not None:
        every.append(second)
        policy &= second.policy()
    connector = Connector(policy, happy_eyeballs_delay=0)
    address = f"[{host}]:{port}" if ":" in host and "[" not in host else f"{host}:{port}"
    resolver = Rebinding(answers)

    def permitted(found: list[str]) -> set[registry.Address]:
        ips = {ipaddress.ip_address(ip.partition("%")[0]) for ip in found}
        return {ip for ip in ips if all(rules.permit(ip, port) for rules in every)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_lookup, "getaddrinfo", resolver.getaddrinfo)
        for _ in range(len(answers) + 1):
            asked = len(resolver.asked)
            with spying() as dialled, suppress(SocketError):
                await connector.connect(address if as_text else (host, port)).opened
            reached = {ipaddress.ip_address(ip.partition("%")[0]) for ip in dialled}
            assert reached == permitted(dialled)
            if len(resolver.asked) > asked:  # all permitted ones, after one lookup
                assert reached == permitted(resolver.given)
                assert len(resolver.asked) == asked + 1
            elif reached:  # the address that was written
                assert reached == {literal(host)}


def test_the_oracle_knows_each_preset() -> None:
    public = {
        name
        for name in anyio_connect.__all__
        if isinstance(getattr(anyio_connect, name), AddressPolicy)
    }
    assert public == PRESETS.keys(), (
        "add to PRESETS of tests/support/attacks.py what each preset allows, in the words of the "
        "oracle; the tests here then attack it"
    )


@given(st.one_of(v4, v6), some_rules, st.sampled_from([25, 80, 443]))
@example(IPv6Address("2002:808:808::5efe:a00:1"), Rules(None, [], [], public_only=True), 443)
def test_the_oracle_and_the_policy_agree(
    ip: IPv4Address | IPv6Address, rules: Rules, port: int
) -> None:
    """Both ways: no other test would notice an address that is refused by mistake."""
    assert (WORKERS.refusal(ip, 443) is None) == registry.is_public(ip)
    for name, preset in PRESETS.items():
        assert (getattr(anyio_connect, name).refusal(ip, port) is None) == preset.permit(ip, port)
    assert (rules.policy().refusal(ip, port) is None) == rules.permit(ip, port)


# --- nothing is left behind


async def test_a_race_cancelled_at_any_moment_keeps_no_slot(resolver: Resolver) -> None:
    """The dial is cancelled at its k-th task switch, for every k until it succeeds."""
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
            pytest.fail("the dial never succeeded")
