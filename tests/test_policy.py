"""AddressPolicy: what each rule allows. Only the test of loops makes a connection."""

from __future__ import annotations

import copy
import pickle
import re
import socket
from dataclasses import FrozenInstanceError, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import anyio_connect
from anyio_connect import (
    UNRESTRICTED,
    WORKERS,
    AddressPolicy,
    Connector,
    InvalidOptionError,
    LoopError,
    listen,
)
from anyio_connect._ranges import BLOCKS, METADATA, OPAQUE, block_of, hidden, wrapped
from support import registry

#: The policies that have a public name.
PRESETS = {
    name: value
    for name in anyio_connect.__all__
    if isinstance(value := getattr(anyio_connect, name), AddressPolicy)
}
PAGE = (Path(__file__).parent.parent / "docs" / "policies.md").read_text(encoding="utf-8")
#: The forms in which IPv6 addresses carry IPv4 addresses, which decide whether they are public.
FORMS = {
    *("IPv4-mapped, RFC 4291", "IPv4-compatible, RFC 4291", "NAT64, RFC 6052", "6to4, RFC 3056"),
    *("Teredo server, RFC 4380", "Teredo client, RFC 4380", "ISATAP, RFC 5214"),
}
#: The forms whose own network is not public, whatever they carry.
NEVER = {
    *("the system's reading of 0.0.0.0", "the system's reading of ::"),
    "IPv4-translated, RFC 2765",
}
PUBLIC = ["1.1.1.1", "8.8.8.8", "223.255.255.255", "2606:4700::1", "2a00::1"]


# --- the table in docs/policies.md


def rows() -> list[list[str]]:
    table = PAGE.partition("| what | for example |")[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]
    ]


def columns() -> dict[str, AddressPolicy]:
    """The presets that the table has."""
    names = re.search(r"\| what \| for example \|(.*)\|", PAGE)
    assert names is not None
    return {name: PRESETS[name] for name in re.findall(r"`(\w+)`", names[1])}


def test_the_table_has_a_column_for_each_preset() -> None:
    assert [*columns()] == [*PRESETS], (
        "give each preset a column in the table 'What the presets refuse' of docs/policies.md, in "
        "the order of __all__: does it allow the examples of the row?"
    )
    assert len(rows()) >= 16


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_of_the_table_says_what_the_presets_do(row: list[str]) -> None:
    what, examples, *cells = row
    if "LoopError" in what:
        assert cells == ["no" if p.loops_refused else "yes" for p in columns().values()]
        return  # the next test connects, to show that the cells are true
    found = re.findall(r"`([^`]+)`", examples)
    assert found
    for example in found:
        address, port = (example, 443) if "port" not in example else ("8.8.8.8", example[5:])
        for cell, policy in zip(cells, columns().values(), strict=True):
            assert cell in ("yes", "no")
            why = policy.refusal(address, int(port))
            assert (why is None) == (cell == "yes"), (example, policy, why)


async def test_the_row_on_loops_says_what_the_presets_do() -> None:
    (row,) = (row for row in rows() if "LoopError" in row[0])
    async with await listen("127.0.0.1:0") as listener:
        for cell, policy in zip(row[2:], columns().values(), strict=True):
            any_port = replace(policy, allow_ports=None)
            socket = Connector(any_port).connect(listener.addresses[0])
            try:
                await socket.opened
            except LoopError:
                assert cell == "no"
            else:
                assert cell == "yes"
            await socket.close()


def examples(workers: str) -> list[str]:
    """The examples of the rows in which the cell of WORKERS is ``workers``."""
    column = 2 + [*columns()].index("WORKERS")
    return re.findall(r"`([^`]+)`", "".join(row[1] for row in rows() if row[column] == workers))


def addresses(workers: str) -> list[IPv4Address | IPv6Address]:
    return [ip_address(e.partition("%")[0]) for e in examples(workers) if "port" not in e]


def test_every_block_has_an_example_in_the_table() -> None:
    # Some examples are wrapped IPv4: they lie in "not Global Unicast" or in "Global Unicast".
    shown = {block_of(ip) for ip in addresses("no") if str(ip) not in registry.METADATA}
    missing = {str(block) for block in BLOCKS if not block.public} - {*map(str, shown)}
    assert not missing, (
        "give an example in the table 'What the presets refuse' of docs/policies.md: "
        f"{', '.join(sorted(missing))}"
    )
    assert {ip.version for ip in addresses("yes") if block_of(ip).public} == {4, 6}


def test_every_other_rule_has_an_example_in_the_table() -> None:
    assert "port 25" in examples("no")
    assert any(e.startswith("port") for e in examples("yes"))
    (metadata,) = (row for row in rows() if "metadata" in row[0])
    assert set(re.findall(r"`([^`]+)`", metadata[1])) == set(registry.METADATA)
    for cell in ("yes", "no"):
        forms = {inner.form for ip in addresses(cell) for inner in (*wrapped(ip), *hidden(ip))}
        assert forms == (FORMS if cell == "yes" else FORMS | NEVER)
    teredo = [ip for ip in addresses("no") if ip in ip_network("2001::/32")]
    for which in (0, 1):  # one refused address is enough: the server's or the client's
        assert any(
            WORKERS.refusal(wrapped(ip)[which].ip, 443)
            and not WORKERS.refusal(wrapped(ip)[1 - which].ip, 443)
            for ip in teredo
        )
    six_to_four = [ip for ip in addresses("no") if ip in ip_network("2002::/16")]
    assert any(hidden(ip) for ip in six_to_four)  # ISATAP within 6to4
    assert any(ip in OPAQUE for ip in addresses("no"))
    assert "fe80::1%eth0" in examples("no")


# --- addresses


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert WORKERS.refusal(address, 443) is None


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.0.0.1", "10.0.0.0/8 is Private-Use (RFC 1918)"),
        ("::1", "::1/128 is Loopback (RFC 4291)"),
        ("fe80::1%eth0", "fe80::/10 is Link-Local (RFC 4291)"),
        ("169.254.169.254", "169.254.169.254 is a cloud metadata address (most clouds)"),
        ("255.255.255.255", "255.255.255.255/32 is Limited Broadcast (RFC 919)"),
        (
            "::ffff:10.0.0.1",
            "it carries 10.0.0.1 (IPv4-mapped, RFC 4291): 10.0.0.0/8 is Private-Use (RFC 1918)",
        ),
        ("8.8.8.8.", "'8.8.8.8.' is not an IP address"),
        ("[::1]", "'[::1]' is not an IP address"),
        ("010.0.0.1", "'010.0.0.1' is not an IP address"),
        ("8.8.8.8%1", "'8.8.8.8%1' is not an IP address"),
        ("8.8.8.8%::", "'8.8.8.8%::' is not an IP address"),
        ("2606:4700::1%", "'2606:4700::1%' is not an IP address"),
        ("example.com", "'example.com' is not an IP address"),
        ("", "'' is not an IP address"),
    ],
)
def test_a_refusal_names_the_rule(address: str, why: str) -> None:
    assert WORKERS.refusal(address, 443) == why


def test_the_table_of_blocks_agrees_with_the_registries() -> None:
    ours = {
        **{str(block.network): block.public for block in BLOCKS},
        **{str(ip): "metadata" for ip in METADATA},
    }
    theirs = {
        **dict.fromkeys(registry.PUBLIC, True),
        **dict.fromkeys(registry.NOT_PUBLIC, False),
        **dict.fromkeys(registry.METADATA, "metadata"),
    }
    differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    assert not differing, (
        f"_ranges and support/registry.py disagree about {', '.join(differing)}. Look that up at "
        "IANA or in the cloud's documentation, and correct both by hand; do not copy one to the "
        "other. `python docs/made.py` updates the table in docs/policies.md"
    )


@pytest.mark.parametrize("text", [*registry.PUBLIC, *registry.NOT_PUBLIC, *registry.WRAPPINGS])
def test_a_block_ends_where_the_registries_say(text: str) -> None:
    network = ip_network(text)
    first, last = int(network[0]), int(network[-1])
    for number in (first - 1, first, first + 1, last - 1, last, last + 1):
        if 0 <= number < 1 << network.max_prefixlen:
            ip = IPv4Address(number) if network.version == 4 else IPv6Address(number)
            assert (block_of(ip).network, block_of(ip).public) == registry.block(ip)
            assert (WORKERS.refusal(ip, 443) is None) == registry.is_public(ip), ip


@pytest.mark.parametrize("first", ["1.1.1.1", "10.0.0.1", "127.0.0.1", "169.254.169.254"])
@pytest.mark.parametrize("second", ["8.8.4.4", "192.168.0.1", "100.100.100.200"])
def test_ipv4_in_ipv6_is_judged_as_that_ipv4(first: str, second: str) -> None:
    one, two = int(IPv4Address(first)), int(IPv4Address(second))
    allowed = WORKERS.refusal(first, 443) is None
    forms = [
        one,  # compatible
        0xFFFF << 32 | one,  # mapped
        0x64FF9B << 96 | one,  # NAT64
        0x2002 << 112 | one << 80 | two,  # 6to4: only the first address counts
    ]
    for form in forms:
        assert (WORKERS.refusal(IPv6Address(form), 443) is None) == allowed, IPv6Address(form)
    both = allowed and WORKERS.refusal(second, 443) is None
    for server, client in ((one, two), (two, one)):
        teredo = IPv6Address(0x20010000 << 96 | server << 64 | client ^ 0xFFFFFFFF)
        assert (WORKERS.refusal(teredo, 443) is None) == both, teredo
    for middle in (0x00005EFE, 0x02005EFE):
        isatap = IPv6Address(0x26064700 << 96 | middle << 32 | one)
        assert (WORKERS.refusal(isatap, 443) is None) == allowed, isatap
        within = IPv6Address(0x2002 << 112 | two << 80 | middle << 32 | one)  # 6to4
        assert (WORKERS.refusal(within, 443) is None) == both, within
        assert (AddressPolicy(deny=[first]).refusal(within, 443)) is not None
        assert (AddressPolicy(deny=[second]).refusal(within, 443)) is not None


def test_an_address_that_only_resembles_a_wrapping_is_judged_as_itself() -> None:
    for middle in (0x00005EFF, 0x02005EFF, 0xAAAABBBB):  # near ISATAP
        ip = IPv6Address(0x26064700 << 96 | middle << 32 | int(IPv4Address("10.0.0.1")))
        assert WORKERS.refusal(ip, 443) is None, ip
    assert AddressPolicy(deny=["0.0.0.0/8"]).refusal("::2", 443)
    assert AddressPolicy(deny=["0.0.0.1"]).refusal("::1", 443) is None
    assert AddressPolicy(deny=["0.0.0.0"]).refusal("::", 443) is None


def test_both_addresses_of_teredo_are_decoded_exactly() -> None:
    server, client = IPv4Address("8.8.8.8"), IPv4Address("1.1.1.1")
    teredo = IPv6Address(0x20010000 << 96 | int(server) << 64 | int(client) ^ 0xFFFFFFFF)
    for carried in (server, client):
        assert AddressPolicy(deny=[carried]).refusal(teredo, 443)
        for other in (carried - 1, carried + 1):
            assert AddressPolicy(deny=[other]).refusal(teredo, 443) is None


def test_rules_about_ipv4_deny_an_address_that_cannot_be_decoded() -> None:
    opaque = "64:ff9b:1::808:808"
    assert UNRESTRICTED.refusal(opaque, 443) is None
    for policy in (
        WORKERS,
        replace(WORKERS, allow=["64:ff9b:1::/48"]),
        AddressPolicy(deny=["10.0.0.0/8"]),
    ):
        assert "so no rule can tell where it leads" in str(policy.refusal(opaque, 443))


def test_the_unspecified_address_is_this_machine() -> None:
    assert AddressPolicy(deny=["127.0.0.0/8"]).refusal("0.0.0.0", 80)
    assert AddressPolicy(deny=["127.0.0.0/8"]).refusal("::ffff:0.0.0.0", 80)
    assert AddressPolicy(deny=["::1"]).refusal("::", 80)


@given(st.ip_addresses())
def test_an_address_that_ipaddress_calls_special_is_not_public(
    ip: IPv4Address | IPv6Address,
) -> None:
    """Loopback, link-local, multicast and unspecified addresses are never public."""
    if WORKERS.refusal(ip, 443) is None:
        assert not any((ip.is_loopback, ip.is_link_local, ip.is_multicast, ip.is_unspecified))
        assert block_of(ip).public or ip.version == 6


@given(st.ip_addresses(), st.ip_addresses(v=4), st.integers(1, 65535))
def test_an_address_and_its_wrappings_are_judged_alike(
    ip: IPv4Address | IPv6Address, four: IPv4Address, port: int
) -> None:
    assert WORKERS.refusal(str(ip), port) == WORKERS.refusal(ip, port)
    alone = WORKERS.refusal(four, port) is None
    assert (WORKERS.refusal(f"::ffff:{four}", port) is None) == alone
    if int(four) > 1:
        assert (WORKERS.refusal(f"::{four}", port) is None) == alone
    assert (WORKERS.refusal(f"64:ff9b::{four}", port) is None) == alone


# --- rules


def test_deny_wins() -> None:
    policy = AddressPolicy(allow=["10.0.0.0/8"], deny=["10.1.0.0/16"])
    assert policy.refusal("10.0.0.1", 1) is None
    assert policy.refusal("10.1.0.1", 1) == "10.1.0.0/16 is in deny"
    both = AddressPolicy(deny=["10.1.0.0/16", "10.0.0.0/8"])  # the first one is named
    assert both.refusal("10.1.0.1", 1) == "10.1.0.0/16 is in deny"
    assert policy.refusal("::ffff:10.1.0.1", 1)
    assert policy.refusal("8.8.8.8", 1) == "8.8.8.8 is in none of the networks of allow"
    assert policy.refusal("2001:db8::1", 1)


def test_a_wrapping_is_denied_by_its_own_network_too() -> None:
    assert AddressPolicy(deny=["2002::/16"]).refusal("2002:808:808::1", 1)
    assert AddressPolicy(deny=["::ffff:8.0.0.0/104"]).refusal("8.8.8.8", 1)
    assert AddressPolicy(deny=["8.8.8.8"]).refusal("::ffff:0:8.8.8.8", 1)


@pytest.mark.parametrize(
    ("network", "same"),
    [
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:128.0.0.0/97", "128.0.0.0/1"),
        ("::ffff:8.0.0.0/104", "8.0.0.0/8"),
        ("::ffff:8.8.8.8", "8.8.8.8"),
    ],
)
def test_a_network_of_mapped_addresses_means_the_ipv4_network(network: str, same: str) -> None:
    assert AddressPolicy(deny=[network]) == AddressPolicy(deny=[same])


@pytest.mark.parametrize("network", ["::fffe:0:0/95", "::fffe:0:0/96", "2001:db8::/97"])
def test_any_other_ipv6_network_stays_as_it_is(network: str) -> None:
    assert AddressPolicy(deny=[network]).deny == (IPv6Network(network),)


def test_allow_makes_exceptions_from_public_only() -> None:
    policy = replace(WORKERS, allow=["10.0.0.0/8", "fd00::/8", "169.254.0.0/16"])
    for address in ("10.0.0.1", "::ffff:10.0.0.1", "fd00::1", "169.254.1.1", *PUBLIC):
        assert policy.refusal(address, 443) is None
    assert policy.refusal("192.168.0.1", 443)
    assert policy.refusal("10.0.0.1", 25) == "port 25 is in deny_ports"


@pytest.mark.parametrize("address", [*map(ip_address, registry.METADATA)], ids=str)
def test_metadata_addresses_stay_denied_whatever_is_allowed(address: Any) -> None:
    everything = replace(WORKERS, allow=["0.0.0.0/0", "::/0", address])
    assert "metadata" in str(everything.refusal(address, 80))
    assert "metadata" in str((everything & AddressPolicy(allow=[address])).refusal(address, 80))
    if address.version == 4:
        assert "metadata" in str(everything.refusal(f"::ffff:{address}", 80))
    assert UNRESTRICTED.refusal(address, 80) is None


def test_empty_lists_allow_nothing() -> None:
    assert AddressPolicy(allow=[]).refusal("8.8.8.8", 1)
    assert AddressPolicy(allow_ports=[]).refusal("8.8.8.8", 1)
    # With public_only, "allow" only adds to the public addresses.
    assert AddressPolicy(allow=[], public_only=True).refusal("8.8.8.8", 1) is None
    assert AddressPolicy(allow=[], public_only=True).refusal("10.0.0.1", 1)


CARRYING = {
    "::ffff:10.0.0.1": "::ffff:0:0/96",
    "::10.0.0.1": "::/96",
    "64:ff9b::10.0.0.1": "64:ff9b::/96",
    "2002:a00:1::1": "2002::/16",
    "2001:0:a00:1::f5ff:fffe": "2001::/32",
    "::ffff:0:10.0.0.1": "::ffff:0:0:0/96",
    "2001:db8::5efe:10.0.0.1": "2001:db8::5efe:0:0/96",
    "2001:db8::200:5efe:10.0.0.1": "2001:db8::200:5efe:0:0/96",
}


@pytest.mark.parametrize("public_only", [False, True])
@pytest.mark.parametrize(("address", "form"), CARRYING.items())
def test_allow_has_to_name_the_ipv4_address_that_is_carried(
    address: str, form: str, public_only: bool
) -> None:
    def refusal(*allow: str) -> str | None:
        return AddressPolicy(allow=allow, public_only=public_only).refusal(address, 443)

    larger = str(ip_network(form).supernet())
    for networks in (["::/0"], ["2000::/3", "::/3"], [larger], [larger, "::/0", "11.0.0.0/8"]):
        assert "it carries 10.0.0.1" in str(refusal(*networks))
    assert refusal("10.0.0.0/8", "::/0") is None
    # A network that has only addresses of that form cannot mean anything else.
    for network in (form, address):
        assert refusal(network) is None
        assert refusal("::/0", network, "1.1.1.1") is None
    # The IPv4 network alone is enough if the address only carries the IPv4 address.
    mere = bool(wrapped(ip_address(address)))
    assert (refusal("10.0.0.0/8") is None) == mere


@pytest.mark.parametrize("public_only", [False, True])
def test_which_networks_allow_the_unspecified_address(public_only: bool) -> None:
    for address, here in (("0.0.0.0", "127.0.0.1"), ("::", "::1")):
        for allow, allowed in (
            (["0.0.0.0/8", "::/127"], address == "::"),  # ::/127 has ::1
            (["0.0.0.0/31", "::2"], False),
            ([address], True),
            ([here], False),
            ([f"{address}/0"], True),
        ):
            policy = AddressPolicy(allow=allow, public_only=public_only)
            assert (policy.refusal(address, 443) is None) == allowed, (address, allow)


def test_only_its_own_network_allows_an_address_that_cannot_be_decoded() -> None:
    opaque = "64:ff9b:1::7f00:1"
    for allow in (["::/0"], ["10.0.0.0/8", "::/0"], ["64:ff9b::/32"], ["64:ff9b:0::/47"]):
        why = AddressPolicy(allow=allow).refusal(opaque, 443)
        assert "so no rule can tell where it leads" in str(why)
    for allow in (["64:ff9b:1::/48"], ["::/0", "64:ff9b:1::/64"], [opaque]):
        assert AddressPolicy(allow=allow).refusal(opaque, 443) is None
    assert AddressPolicy(allow=["64:ff9b:1:1::/64"]).refusal(opaque, 443)
    assert AddressPolicy(deny=["::1"]).refusal(opaque, 443) is None


def test_an_interface_is_judged_as_its_address() -> None:
    everything = replace(WORKERS, allow=["0.0.0.0/0", "::/0"])
    for address in (IPv4Interface("169.254.169.254/16"), IPv6Interface("fd00:ec2::254/64")):
        assert "metadata" in str(everything.refusal(address, 80))
    assert WORKERS.refusal(IPv4Interface("8.8.8.8/0"), 80) is None


def test_ports() -> None:
    policy = AddressPolicy(allow_ports=[443, (8000, 8099), range(9000, 9010)], deny_ports=[8080])
    allowed = {p for p in range(7990, 9100) if policy.refusal("8.8.8.8", p) is None}
    assert allowed == {*range(8000, 8100), *range(9000, 9010)} - {8080}
    assert policy.refusal("8.8.8.8", 443) is None
    assert policy.refusal("8.8.8.8", 80) == "port 80 is not in allow_ports"
    last = AddressPolicy(allow_ports=[(65000, 65535)])
    assert last.refusal("8.8.8.8", 65535) is None
    assert last.refusal("8.8.8.8", 64999)
    assert AddressPolicy(deny_ports=[1]).refusal("8.8.8.8", 1)
    port: Any
    for port in (0, 65536, -1, "443"):
        assert "is not a port" in str(UNRESTRICTED.refusal("8.8.8.8", port))


def test_both_must_allow() -> None:
    low = AddressPolicy(allow=["10.0.0.0/8"], allow_ports=[(1, 100)])
    part = AddressPolicy(allow=["10.5.0.0/16"], deny_ports=[7], refuse_loops=True)
    for policy in (low & part, part & low, low & part & low, low & (part & UNRESTRICTED)):
        assert policy.refusal("10.5.0.1", 80) is None
        assert policy.refusal("10.6.0.1", 80)
        assert policy.refusal("10.5.0.1", 7)
        assert policy.refusal("10.5.0.1", 101)
        assert policy.loops_refused
    nested = AddressPolicy(deny=["1.1.1.1"]) & (AddressPolicy(deny=["2.2.2.2"]) & WORKERS)
    assert nested.refusal("10.0.0.1", 80)
    assert nested.loops_refused
    assert UNRESTRICTED & low is low
    assert low & UNRESTRICTED is low
    assert AddressPolicy() & low is low
    # Widening one part does not widen the other.
    assert replace(low & part, allow=None).refusal("10.6.0.1", 80)
    with pytest.raises(TypeError):
        _ = low & "10.0.0.0/8"  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]


# --- values


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_shown_by_its_name(name: str) -> None:
    assert repr(PRESETS[name]) == name, f"add {name} to _PRESETS in _policy.py"


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (UNRESTRICTED, "UNRESTRICTED"),
        (WORKERS, "WORKERS"),
        (AddressPolicy(), "UNRESTRICTED"),
        (
            replace(WORKERS, allow=["10.0.0.0/8"], refuse_loops=False),
            "AddressPolicy(allow=['10.0.0.0/8'], deny_ports=[25], public_only=True)",
        ),
        (
            WORKERS & AddressPolicy(deny=["1.1.1.1"], deny_ports=[range(1, 5), 8]),
            "WORKERS & AddressPolicy(deny=['1.1.1.1'], deny_ports=[(1, 4), 8])",
        ),
        (
            AddressPolicy(deny=["1.1.1.1"]) & (AddressPolicy(deny=["2.2.2.2"]) & WORKERS),
            "AddressPolicy(deny=['1.1.1.1']) & AddressPolicy(deny=['2.2.2.2']) & WORKERS",
        ),
        (
            AddressPolicy(also=(WORKERS, AddressPolicy(deny_ports=[80]), UNRESTRICTED)),
            "AddressPolicy(also=(WORKERS, AddressPolicy(deny_ports=[80])))",
        ),
    ],
)
def test_repr(policy: AddressPolicy, text: str) -> None:
    assert repr(policy) == text
    assert eval(text, {**globals()}) == policy


def test_a_combined_policy_is_flat() -> None:
    one, two, three = (AddressPolicy(deny=[f"{n}.{n}.{n}.{n}"]) for n in (1, 2, 3))
    assert (one & (two & three)).also == (two, three)
    assert one & (two & three) == (one & two) & three
    assert one & (one & two) == one & two == (one & two) & one == one & two & two
    assert replace(one, also=(one, two, UNRESTRICTED, two & one)) == one & two
    assert hash(one & (two & three)) == hash(one & two & three)
    assert replace(one & two, also=()) == one


def test_policies_with_equal_rules_are_equal() -> None:
    one = AddressPolicy(deny=["10.0.0.0/8", "1.1.1.1"], deny_ports=[range(5, 7)])
    two = AddressPolicy(
        deny=(n for n in (IPv4Network("10.0.0.0/8"), IPv4Address("1.1.1.1"))),
        deny_ports=[(5, 6)],
    )
    assert one == two
    assert hash(one) == hash(two)
    port = AddressPolicy(deny_ports=[(int("8000"), int("8000"))])  # two objects of one value
    assert port == AddressPolicy(deny_ports=[8000])
    assert not hasattr(one, "__dict__")
    assert one != UNRESTRICTED
    for same in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert same == one
    with pytest.raises(FrozenInstanceError):
        one.deny = ()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"deny": "10.0.0.0/8"}, "must be a list of networks"),
    ({"deny": IPv4Network("10.0.0.0/8")}, "must be a list of networks"),
    ({"deny": IPv6Network("::/0")}, "must be a list of networks"),
    ({"deny": None}, "must be a list of networks"),
    ({"allow": 5}, "must be a list of networks"),
    ({"allow": ["10.0.0.1/8"]}, "has host bits set"),
    ({"allow": ["example.com"]}, "write it like '10.0.0.0/8'"),
    ({"allow": ["fe80::1%eth0"]}, "no zones"),
    ({"allow": [IPv6Address("fe80::1%eth0")]}, "no zones"),
    ({"allow": [5]}, "must be a network or an address"),
    ({"allow": [b"\x0a\x00\x00\x01"]}, "must be a network or an address"),
    ({"deny_ports": 25}, "must be a list of ports"),
    ({"deny_ports": "25"}, "must be a list of ports"),
    ({"deny_ports": None}, "must be a list of ports"),
    ({"deny_ports": [0]}, "1 to 65535"),
    ({"deny_ports": [65536]}, "1 to 65535"),
    ({"deny_ports": [True]}, "1 to 65535"),
    ({"deny_ports": ["25"]}, "1 to 65535"),
    ({"deny_ports": [(5, 4)]}, "1 to 65535"),
    ({"deny_ports": [(1, 2, 3)]}, "1 to 65535"),
    ({"allow_ports": [range(10, 20, 2)]}, "1 to 65535"),
    ({"allow_ports": [range(5, 5)]}, "1 to 65535"),
    ({"public_only": 1}, "must be True or False"),
    ({"refuse_loops": None}, "must be True or False"),
    ({"also": [WORKERS]}, "must be a tuple of AddressPolicy"),
    ({"also": ("WORKERS",)}, "must be a tuple of AddressPolicy"),
]


@pytest.mark.parametrize(("rules", "why"), BAD)
def test_an_invalid_rule_is_an_error_at_once(rules: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"bad value for {next(iter(rules))}.*{why}"):
        AddressPolicy(**rules)


def test_a_policy_does_no_input_or_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    assert AddressPolicy(deny=["10.0.0.0/8"]).refusal("example.com", 80)


# --- subclasses, and long lists


class Mine(AddressPolicy):
    """A subclass that judges in its own way, by attributes of its own."""

    def __init__(self, forbidden: str = "192.0.2.7", port: int = 8) -> None:
        super().__init__()
        object.__setattr__(self, "forbidden", forbidden)
        object.__setattr__(self, "port", port)

    def refusal(self, address: str | IPv4Address | IPv6Address, port: int) -> str | None:
        if str(address) == vars(self)["forbidden"]:
            return "mine says no"
        return super().refusal(address, port)

    def port_refusal(self, port: int) -> str | None:
        return "not this port" if port == vars(self)["port"] else super().port_refusal(port)


@pytest.mark.parametrize(
    "policy",
    [
        Mine(),
        Mine() & UNRESTRICTED,
        UNRESTRICTED & Mine(),
        AddressPolicy(deny_ports=[25]) & Mine(),
        Mine() & AddressPolicy(deny_ports=[25]),
        Mine("1.1.1.1", 1) & Mine(),
        AddressPolicy(deny_ports=[25]) & (AddressPolicy(deny_ports=[26]) & Mine()),
        replace(AddressPolicy(deny_ports=[25]), also=(Mine(),)),
        replace(Mine() & AddressPolicy(deny_ports=[25]), deny=["10.0.0.1"]),
    ],
)
def test_a_combined_policy_asks_the_subclass(policy: AddressPolicy) -> None:
    assert policy.refusal("192.0.2.7", 80) == "mine says no"
    assert policy.refusal("192.0.2.8", 80) is None
    assert policy.port_refusal(8) == policy.refusal("192.0.2.8", 8) == "not this port"
    assert policy.port_refusal(9) is None


def test_a_combined_policy_refuses_loops_if_a_subclass_does() -> None:
    class NoLoops(AddressPolicy):
        @property
        def loops_refused(self) -> bool:
            return True

    assert (AddressPolicy(deny_ports=[25]) & NoLoops()).loops_refused
    assert (NoLoops() & AddressPolicy(deny_ports=[25])).loops_refused
    assert not (Mine() & AddressPolicy(deny_ports=[25])).loops_refused


def test_two_instances_of_a_subclass_are_both_asked() -> None:
    one, other = Mine("1.1.1.1"), Mine("1.1.1.2")
    both = one & other
    assert both.also == (one, other)
    for address in ("1.1.1.1", "1.1.1.2"):
        assert both.refusal(address, 80) == "mine says no"
    assert one & one is one


def test_an_empty_reason_is_still_a_refusal() -> None:
    class Silent(AddressPolicy):
        def refusal(self, address: str | IPv4Address | IPv6Address, port: int) -> str | None:
            return ""

    assert (AddressPolicy(deny_ports=[25]) & Silent()).refusal("1.1.1.1", 80) == ""


NETWORKS = st.one_of(
    st.ip_addresses(v=4, network="9.0.0.0/29"), st.ip_addresses(v=6, network="2001:db8::/125")
).flatmap(
    lambda ip: st.integers(ip.max_prefixlen - 4, ip.max_prefixlen).map(
        lambda length: ip_network((ip, length), strict=False)
    )
)


@given(
    st.lists(NETWORKS),
    st.one_of(
        st.ip_addresses(v=4, network="9.0.0.0/28"), st.ip_addresses(v=6, network="2001:db8::/124")
    ),
)
def test_the_lookup_of_networks_agrees_with_a_linear_search(
    networks: list[IPv4Network | IPv6Network], address: IPv4Address | IPv6Address
) -> None:
    holding = [network for network in networks if address in network]
    why = AddressPolicy(deny=networks).refusal(address, 80)
    assert why == (f"{holding[0]} is in deny" if holding else None)
    assert (AddressPolicy(allow=networks).refusal(address, 80) is None) == bool(holding)


@given(
    st.lists(
        st.one_of(
            st.integers(1, 30), st.tuples(st.integers(1, 10), st.integers(10, 30)), st.just((5, 9))
        )
    ),
    st.integers(1, 31),
)
def test_the_lookup_of_ports_agrees_with_a_linear_search(ports: list[Any], port: int) -> None:
    pairs = [(item, item) if isinstance(item, int) else item for item in ports]
    listed = any(first <= port <= last for first, last in pairs)
    assert (AddressPolicy(deny_ports=ports).port_refusal(port) is not None) == listed
    assert (AddressPolicy(allow_ports=ports).port_refusal(port) is None) == listed


@pytest.mark.slow
def test_a_long_list_is_not_searched_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(65536)]
    policy = AddressPolicy(deny=networks, deny_ports=range(1, 50000)) & AddressPolicy(
        allow=[*networks, "11.0.0.0/8"]
    )
    looked = 0

    def look(network: IPv4Network, address: object) -> bool:
        nonlocal looked
        looked += 1
        return contains(network, address)

    contains = IPv4Network.__contains__
    monkeypatch.setattr(IPv4Network, "__contains__", look)
    assert policy.refusal("10.255.7.7", 50000) == "10.255.7.0/24 is in deny"
    assert policy.refusal("11.0.0.1", 50000) is None
    assert "in none of" in str(policy.refusal("12.0.0.1", 50000))
    assert looked < 10
    for same in (copy.copy(policy), copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert same == policy
        assert same.refusal("10.255.7.7", 50000) == "10.255.7.0/24 is in deny"
        assert same.port_refusal(7) == "port 7 is in deny_ports"
