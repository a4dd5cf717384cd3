"""What the address blocks of IPv4 and IPv6 are for: a table of our own.

It is made from the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, RFC 8190) and
the multicast registries, as of 2026. The block with the longest prefix decides.

``ipaddress.is_global`` is not used: it differs between patch releases of Python, and it is True
for multicast, and for IPv6 addresses that only carry a private IPv4 address. This module does no
I/O.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import NamedTuple, TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network


class Block(NamedTuple):
    """One row of the table."""

    network: IPNetwork
    public: bool  #: whether hosts of the internet have such addresses
    name: str
    source: str

    def __str__(self) -> str:
        return f"{self.network} is {self.name} ({self.source})"


_NO, _YES = False, True
_TABLE: tuple[tuple[str, bool, str, str], ...] = (
    ("0.0.0.0/0", _YES, "Unicast", "RFC 791"),
    ("0.0.0.0/8", _NO, "This Network", "RFC 1122"),
    ("10.0.0.0/8", _NO, "Private-Use", "RFC 1918"),
    ("100.64.0.0/10", _NO, "Shared Address Space", "RFC 6598"),
    ("127.0.0.0/8", _NO, "Loopback", "RFC 1122"),
    ("169.254.0.0/16", _NO, "Link-Local", "RFC 3927"),
    ("172.16.0.0/12", _NO, "Private-Use", "RFC 1918"),
    # The registry calls two of these globally reachable: the anycast addresses of PCP and TURN.
    # But it is our own network that answers there, not a host of the internet.
    ("192.0.0.0/24", _NO, "IETF Protocol Assignments", "RFC 6890"),
    ("192.0.2.0/24", _NO, "Documentation (TEST-NET-1)", "RFC 5737"),
    ("192.88.99.0/24", _NO, "Deprecated (6to4 Relay Anycast)", "RFC 7526"),
    ("192.168.0.0/16", _NO, "Private-Use", "RFC 1918"),
    ("198.18.0.0/15", _NO, "Benchmarking", "RFC 2544"),
    ("198.51.100.0/24", _NO, "Documentation (TEST-NET-2)", "RFC 5737"),
    ("203.0.113.0/24", _NO, "Documentation (TEST-NET-3)", "RFC 5737"),
    ("224.0.0.0/4", _NO, "Multicast", "RFC 5771"),
    ("240.0.0.0/4", _NO, "Reserved", "RFC 1112"),
    ("255.255.255.255/32", _NO, "Limited Broadcast", "RFC 919"),
    ("::/0", _NO, "not Global Unicast", "RFC 4291"),
    ("::/128", _NO, "Unspecified", "RFC 4291"),
    ("::1/128", _NO, "Loopback", "RFC 4291"),
    ("64:ff9b:1::/48", _NO, "Local-Use IPv4/IPv6 Translation", "RFC 8215"),
    ("100::/64", _NO, "Discard-Only", "RFC 6666"),
    ("100:0:0:1::/64", _NO, "Dummy IPv6 Prefix", "RFC 9780"),
    ("2000::/3", _YES, "Global Unicast", "RFC 4291"),
    ("2001::/23", _NO, "IETF Protocol Assignments", "RFC 2928"),
    ("2001:2::/48", _NO, "Benchmarking", "RFC 5180"),
    ("2001:3::/32", _YES, "AMT", "RFC 7450"),
    ("2001:4:112::/48", _YES, "AS112-v6", "RFC 7535"),
    ("2001:10::/28", _NO, "Deprecated (ORCHID)", "RFC 4843"),
    ("2001:20::/28", _YES, "ORCHIDv2", "RFC 7343"),
    ("2001:30::/28", _YES, "Drone Remote ID", "RFC 9374"),
    ("2001:db8::/32", _NO, "Documentation", "RFC 3849"),
    ("3fff::/20", _NO, "Documentation", "RFC 9637"),
    ("5f00::/16", _NO, "Segment Routing (SRv6) SIDs", "RFC 9602"),
    ("fc00::/7", _NO, "Unique-Local", "RFC 4193"),
    ("fe80::/10", _NO, "Link-Local", "RFC 4291"),
    ("fec0::/10", _NO, "Deprecated (Site-Local)", "RFC 3879"),
    ("ff00::/8", _NO, "Multicast", "RFC 4291"),
)

#: The longest prefix first.
BLOCKS = tuple(
    sorted(
        (Block(ip_network(row[0]), *row[1:]) for row in _TABLE),
        key=lambda block: -block.network.prefixlen,
    )
)


@lru_cache(1024)  # each policy of a chain of them asks for the same
def block_of(ip: IPAddress) -> Block:
    """The block that ``ip`` belongs to."""
    return next(block for block in BLOCKS if ip in block.network)


#: Where clouds give the credentials of a machine to every program that connects from there.
METADATA: dict[IPAddress, str] = {
    IPv4Address("169.254.169.254"): "most clouds",
    IPv4Address("169.254.169.250"): "Rancher",
    IPv4Address("169.254.170.2"): "AWS ECS",
    IPv4Address("169.254.170.23"): "AWS EKS",
    IPv4Address("169.254.42.42"): "Scaleway",
    IPv4Address("169.254.0.23"): "Tencent Cloud",
    IPv4Address("168.63.129.16"): "Azure",
    IPv4Address("100.100.100.200"): "Alibaba Cloud",
    IPv4Address("100.80.80.80"): "UCloud",
    IPv4Address("100.96.0.96"): "Volcano Engine",
    IPv4Address("192.0.0.192"): "Oracle Cloud",
    IPv6Address("fd00:ec2::254"): "AWS",
    IPv6Address("fd00:ec2::23"): "AWS EKS",
    IPv6Address("fd20:ce::254"): "Google Cloud",
    IPv6Address("fd00:c1::a9fe:a9fe"): "Oracle Cloud",
    IPv6Address("fd00:42::42"): "Scaleway",
    IPv6Address("fd00:a9fe:a9fe::1"): "Linode",
    IPv6Address("fe80::a9fe:a9fe"): "OpenStack",
}


class Carried(NamedTuple):
    """An address that another address carries, or leads to."""

    ip: IPAddress
    form: str  #: in which form the other one carries it
    network: IPNetwork  #: of the addresses of that form


#: IPv6 addresses that only carry an IPv4 address, and are judged as that one: the network, by how
#: many bits the IPv4 address is shifted, and the name of the form.
_WRAPPINGS = (
    (IPv6Network("::ffff:0:0/96"), 0, "IPv4-mapped, RFC 4291"),
    (IPv6Network("::/96"), 0, "IPv4-compatible, RFC 4291"),
    (IPv6Network("64:ff9b::/96"), 0, "NAT64, RFC 6052"),
    (IPv6Network("2002::/16"), 80, "6to4, RFC 3056"),
)
_TEREDO = IPv6Network("2001::/32")  # RFC 4380 section 4
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")  # RFC 2765 section 2.1
#: Only the operator of a network knows what these addresses lead to (RFC 8215).
OPAQUE = IPv6Network("64:ff9b:1::/48")


@lru_cache(1024)
def wrapped(ip: IPAddress) -> tuple[Carried, ...]:
    """The IPv4 addresses that ``ip`` only carries: it is to be judged as each of them."""
    if isinstance(ip, IPv4Address) or int(ip) <= 1:  # "::" and "::1" carry none
        return ()
    for network, shift, form in _WRAPPINGS:
        if ip in network:
            return (Carried(_low32(int(ip) >> shift), form, network),)
    if ip in _TEREDO:
        return (
            Carried(_low32(int(ip) >> 64), "Teredo server, RFC 4380", _TEREDO),
            Carried(_low32(~int(ip)), "Teredo client, RFC 4380", _TEREDO),
        )
    return ()


@lru_cache(1024)
def hidden(ip: IPAddress) -> tuple[Carried, ...]:
    """Further addresses that ``ip`` may lead to: each is judged in addition to ``ip`` itself."""
    if not int(ip):
        here = IPv4Address("127.0.0.1") if isinstance(ip, IPv4Address) else IPv6Address("::1")
        return (Carried(here, f"the system's reading of {ip}", ip_network(ip)),)
    if isinstance(ip, IPv4Address):
        return ()
    if ip in _TRANSLATED:
        return (Carried(_low32(int(ip)), "IPv4-translated, RFC 2765", _TRANSLATED),)
    if int(ip) >> 32 & 0xFDFFFFFF == 0x00005EFE:  # in any network, a 6to4 one too
        network = IPv6Network((int(ip) >> 32 << 32, 96))
        return (Carried(_low32(int(ip)), "ISATAP, RFC 5214", network),)
    return ()


def _low32(number: int) -> IPv4Address:
    return IPv4Address(number & 0xFFFFFFFF)
