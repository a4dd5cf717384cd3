"""The purpose of each block of addresses: a second list, which shares no code with the package.

Sources: https://www.iana.org/assignments/ iana-ipv4-special-registry, iana-ipv6-special-registry,
ipv6-address-space and the multicast registries; and the documentation of clouds about their
metadata servers.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

#: The longest prefix decides. Addresses that only wrap IPv4 (such as 2002::/16) are not listed
#: here.
PUBLIC = [
    "0.0.0.0/0",
    "2000::/3",
    "2001:3::/32",
    "2001:4:112::/48",
    "2001:20::/28",
    "2001:30::/28",
]
NOT_PUBLIC = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "::/0",
    "::/128",
    "::1/128",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001:2::/48",
    "2001:10::/28",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]

#: Only 168.63.129.16 is in a public block.
METADATA = [
    "169.254.169.254",
    "169.254.169.250",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.42.42",
    "169.254.0.23",
    "168.63.129.16",
    "100.100.100.200",
    "100.80.80.80",
    "100.96.0.96",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
    "fd00:a9fe:a9fe::1",
    "fe80::a9fe:a9fe",
]

#: The networks in which IPv6 only wraps IPv4. That IPv4 address is judged instead.
WRAPPINGS = ["::ffff:0:0/96", "::/96", "64:ff9b::/96", "2002::/16", "2001::/32"]
#: The network that may wrap IPv4 in a way that only its operator knows.
OPAQUE = ipaddress.IPv6Network("64:ff9b:1::/48")

_BLOCKS: list[tuple[Network, bool]] = sorted(
    [
        *((ipaddress.ip_network(text), True) for text in PUBLIC),
        *((ipaddress.ip_network(text), False) for text in NOT_PUBLIC),
    ],
    key=lambda block: block[0].prefixlen,
)


def block(ip: Address) -> tuple[Network, bool]:
    """The block of ``ip``, and whether that is public."""
    return [found for found in _BLOCKS if ip in found[0]][-1]


def carried(ip: Address) -> list[tuple[Address, Network]]:
    """The addresses that ``ip`` wraps or may lead to, each with the network of such addresses."""
    if not int(ip):
        here: Address = IPv4Address("127.0.0.1") if ip.version == 4 else IPv6Address("::1")
        return [(here, ipaddress.ip_network(ip))]
    if isinstance(ip, IPv4Address):
        return []
    packed = ip.packed
    tail = IPv4Address(packed[12:])
    forms = [
        ("::ffff:0:0/96", tail),
        ("::/96", tail),
        ("64:ff9b::/96", tail),
        ("::ffff:0:0:0/96", tail),
        ("2002::/16", IPv4Address(packed[2:6])),
        ("2001::/32", IPv4Address(packed[4:8])),
        ("2001::/32", IPv4Address(bytes(byte ^ 0xFF for byte in packed[12:]))),
    ]
    if packed[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe"):  # ISATAP
        forms.append((f"{IPv6Address(packed[:12] + bytes(4))}/96", tail))
    found = [(inner, ipaddress.ip_network(text)) for text, inner in forms]
    return [(inner, network) for inner, network in found if ip in network and int(ip) != 1]


def readings(ip: Address) -> list[Address]:
    """All addresses by which ``ip`` is judged."""
    inner = [reading for one, _ in carried(ip) for reading in readings(one)]
    return inner if is_wrapping(ip) else [ip, *inner]


def is_wrapping(ip: Address) -> bool:
    """Whether ``ip`` has no meaning other than the IPv4 address that it carries."""
    return int(ip) > 1 and any(ip in ipaddress.ip_network(text) for text in WRAPPINGS)


def is_public(ip: Address) -> bool:
    """Whether ``ip`` is a public unicast address in every reading, and not a metadata address."""
    return all(block(each)[1] and str(each) not in METADATA for each in readings(ip))
