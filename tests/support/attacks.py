"""Attacks on a policy: spellings, answers of name servers, redirects; and an oracle.

The oracle, here and in registry.py, says what a policy allows. It shares no code with the package.
"""

from __future__ import annotations

import ipaddress
import socket as stdlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import anyio.lowlevel
from hypothesis import strategies as st

from anyio_connect import AddressPolicy
from support import registry

#: The policy allows one of this machine's loopback addresses, and forbids the others.
ONE = AddressPolicy(allow=["127.0.0.1"])


# --- spellings

PRIVATE = ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "100.64.0.1", "0.0.0.0"]
FULLWIDTH = {ord("0") + digit: 0xFF10 + digit for digit in range(10)}


def spellings(ip: str) -> Iterator[str]:
    """An IPv4 address in every form that inet_aton() of the C library accepts, and in others."""
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


#: Ways to write an address of this machine, or of its network, in a URL.
INWARD_URLS = (
    "http://127.0.0.1:8080/",
    "http://127.1:8080/",
    "http://2130706433:8080/",
    "http://0x7f000001:8080/",
    "http://0177.0.0.1:8080/",
    "http://0:8080/",
    "http://0.0.0.0:8080/",
    "http://127.0.0.2:8080/",
    "http://localhost:8080/",
    "http://LOCALHOST:8080/",
    "http://[::1]:8080/",
    "http://[::]:8080/",
    "http://[::ffff:127.0.0.1]:8080/",
    "http://[::ffff:7f00:1]:8080/",
    "http://[64:ff9b::7f00:1]:8080/",
    "http://[2002:7f00:1::]:8080/",
    "http://\uff11\uff12\uff17.0.0.1:8080/",
    "http://user@127.0.0.1:8080/",
    "http://169.254.169.254:8080/latest/meta-data/",
)


# --- answers of name servers

#: A client that may connect only to public addresses at port 80 may dial none of these.
INWARD_ANSWERS: dict[str, list[tuple[str, int]]] = {
    "private": [("127.0.0.1", 0), ("10.0.0.1", 0), ("::1", 0)],
    "zones": [("fe80::1%1", 0), ("::1%lo", 0)],
    "no addresses": [("", 0), ("127.1", 0), ("evil", 0), ("0x7f000001", 0)],
    "carried": [("::ffff:127.0.0.1", 0), ("64:ff9b::a00:1", 0), ("2002:7f00:1::1", 0)],
    "any": [("0.0.0.0", 0), ("::", 0)],
    "another port": [("8.8.8.8", 25)],
}


class Resolver:
    """A name server with a list of answers, one for each query. It counts the queries."""

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


# --- random combinations


@dataclass
class Rules:
    """The rules of an ``AddressPolicy``, and the oracle, which says what they allow."""

    allow: list[str] | None
    deny: list[str]
    deny_ports: list[int | tuple[int, int]]
    public_only: bool

    def policy(self) -> AddressPolicy:
        return AddressPolicy(
            allow=self.allow,
            deny=self.deny,
            deny_ports=self.deny_ports,
            public_only=self.public_only,
            refuse_loops=self.public_only,
        )

    def permit(self, ip: registry.Address, port: int) -> bool:
        for rule in self.deny_ports:
            first, last = rule if isinstance(rule, tuple) else (rule, rule)
            if first <= port <= last:
                return False
        involved = [ip]
        for one in involved:
            involved += [inner for inner, _ in registry.carried(one)]
        denying = [ipaddress.ip_network(text) for text in self.deny]
        if any(one in network for one in involved for network in denying):
            return False
        if ip in registry.OPAQUE and any(network.version == 4 for network in denying):
            return False
        if self.public_only and (
            ip in registry.OPAQUE or any(str(one) in registry.METADATA for one in involved)
        ):
            return False
        return self._allow(ip)

    def _allow(self, ip: registry.Address) -> bool:
        if self.allow is None and not self.public_only:
            return True
        holding = [n for n in map(ipaddress.ip_network, self.allow or ()) if ip in n]
        if ip in registry.OPAQUE:
            return any(_within(network, registry.OPAQUE) for network in holding)
        public = self.public_only and registry.block(ip)[1]
        if not holding and not public and not registry.is_wrapping(ip):
            return False
        return all(
            self._allow(inner) or any(_within(network, form) for network in holding)
            for inner, form in registry.carried(ip)
        )


#: The presets of the package, as rules of the oracle.
PRESETS = {
    "UNRESTRICTED": Rules(None, [], [], public_only=False),
    "WORKERS": Rules(None, [], [25], public_only=True),
}


def _within(network: registry.Network, other: registry.Network) -> bool:
    return network[0] in other and network[-1] in other


v4 = st.one_of(
    st.ip_addresses(v=4),
    st.sampled_from(["8.8.8.8", *PRIVATE, "168.63.129.16"]).map(IPv4Address),
    *(st.ip_addresses(network=net) for net in registry.NOT_PUBLIC if ":" not in net),
)
v6 = st.one_of(
    st.ip_addresses(v=6),
    *(st.ip_addresses(network=n) for n in ("2000::/3", "::/8", "2001::/23", "fc00::/6")),
    st.sampled_from(["::", "::1", "fe80::1", *registry.METADATA]).map(ipaddress.ip_address),
    v4.map(lambda ip: IPv6Address(int(ip))),
    v4.map(lambda ip: IPv6Address(0xFFFF << 32 | int(ip))),
    v4.map(lambda ip: IPv6Address(0xFFFF << 48 | int(ip))),
    v4.map(lambda ip: IPv6Address(0x64FF9B << 96 | int(ip))),
    v4.map(lambda ip: IPv6Address(0x64FF9B0001 << 80 | int(ip))),
    v4.map(lambda ip: IPv6Address(0x2002 << 112 | int(ip) << 80 | 1)),
    st.builds(
        lambda prefix, universal, ip: IPv6Address(
            prefix << 80 | universal << 57 | 0x5EFE << 32 | int(ip)
        ),
        st.sampled_from([0x260647000000, 0x20010DB80000, 0xFE8000000000, 0x20020A000001])
        | v4.map(lambda ip: 0x2002 << 32 | int(ip)),
        st.booleans(),
        v4,
    ),
    st.tuples(v4, v4).map(
        lambda two: IPv6Address(0x20010000 << 96 | int(two[0]) << 64 | int(two[1]) ^ 0xFFFFFFFF)
    ),
)
answers = st.lists(st.one_of(v4, v6).map(str), min_size=1, max_size=5)
NETWORKS = [
    *("0.0.0.0/0", "::/0", "10.0.0.0/8", "8.8.8.8", "127.0.0.0/8", "2000::/3", "::/8", "::/64"),
    *("2002::/16", "2002:7f00::/24", "64:ff9b::/96", "64:ff9b::/32", "64:ff9b:1::/48", "::/96"),
    *("2001::/32", "169.254.0.0/16", "fd00::/8", "fe80::/10", "0.0.0.0/8", "0.0.0.0", "::1"),
    *("::ffff:0:0:0/96", "2606:4700::5efe:0:0/96", "2606:4700::/32", "8.0.0.0/8", "10.0.0.0/9"),
]
networks = st.lists(st.sampled_from(NETWORKS), max_size=4)
some_rules = st.builds(
    Rules,
    allow=st.none() | networks,
    deny=st.just([]) | networks,
    deny_ports=st.lists(st.sampled_from([80, (1, 100), 443, (8000, 8080)]), max_size=2),
    public_only=st.booleans(),
)


@st.composite
def spelled(draw: st.DrawFn, ip: IPv4Address) -> str:
    """An IPv4 address that inet_aton() would accept: one to four numbers, each in its own base."""
    octets = draw(st.integers(0, 3))
    rest = int(ip) & (1 << 32 - 8 * octets) - 1
    parts = [*ip.packed[:octets], rest]
    form = st.sampled_from(["{}", "{:#x}", "{:#X}", "0{:o}", "0{:010o}", "{:#012x}", "00x{:x}"])
    return draw(st.just(str(ip)) | st.just(".".join(draw(form).format(part) for part in parts)))


@st.composite
def disguised(draw: st.DrawFn, host: str) -> str:
    """``host`` with other letters, digits and dots, a suffix, brackets or a zone."""
    if draw(st.booleans()):
        wide = st.sampled_from([lambda c: c, str.upper, _fullwidth, _circled])
        dots = st.sampled_from([*".\u3002\uff0e\uff61"])
        host = "".join(draw(dots) if c == "." else draw(wide)(c) for c in host)
    host += draw(st.sampled_from(["", "", "", ".", "..", "\u3002"]))
    host += draw(st.sampled_from(["", "", "", "%1", "%lo", "%25lo", "%::", "%"]))
    return f"[{host}]" if draw(st.integers(0, 3)) == 3 else host


def _fullwidth(c: str) -> str:
    return chr(ord(c) + 0xFEE0) if c.isalnum() else c


def _circled(c: str) -> str:
    if "a" <= c <= "z":
        return chr(ord("\u24d0") + ord(c) - ord("a"))
    return chr(ord("\u2460") + int(c) - 1) if c in "123456789" else c


def literal(host: str) -> registry.Address:
    """The address that an accepted host stands for, in any kind of digits."""
    plain = unicodedata.normalize("NFKC", host).replace("\u3002", ".")
    return ipaddress.ip_address(plain.strip("[]").partition("%")[0])


names = st.one_of(
    st.just("any.test"),
    st.sampled_from(["localhost", "any.test", "metadata.internal"]).flatmap(disguised),
)
numbers = st.one_of(
    v4.flatmap(spelled),
    v4.flatmap(spelled).flatmap(disguised),
    v6.map(str),
    v6.map(lambda ip: ip.exploded.upper()),
    v6.map(str).flatmap(disguised),
    st.tuples(st.sampled_from(["::ffff:{}", "::{}", "64:ff9b::{}", "::FFFF:0:{}"]), v4).map(
        lambda two: two[0].format(two[1])
    ),
)
