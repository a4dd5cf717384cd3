"""Addresses as users write them: which forms are accepted, and why others are refused.

Nothing is guessed and nothing is repaired. Some addresses are ambiguous: a filter and a resolver,
for example, could read them as two different hosts. Those raise an error that says what to write
instead. So each accepted address has one normal form, and the filter, the resolver and TLS get
only that form.
"""

from __future__ import annotations

import re
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from ._errors import InvalidAddressError, quote, shorten


class SocketAddress(NamedTuple):
    """A host and a TCP port to connect to (WinterTC Sockets API draft, ``SocketAddress``).

    Creating one checks nothing. ``connect()`` checks it, as it checks any other pair.

    ``hostname``: a host name, or an IP address without brackets.

    ``port``: 1 to 65535.
    """

    hostname: str
    """A host name, or an IP address without brackets."""
    port: int
    """1 to 65535."""


def parse_address(address: str | tuple[str, int], *, lowest_port: int = 1) -> SocketAddress:
    """Check ``address`` and return its normal form.

    ``address`` is ``"host:port"``, ``"[IPv6]:port"`` (RFC 3986 section 3.2.2), or a pair of
    host and port. The returned host is one of:

    * a name in lower case (RFC 1035, RFC 1123). Its non-ASCII labels are converted to A-labels
      (RFC 5891, after the mapping of UTS #46). A trailing dot is kept: it tells the resolver
      that the name is complete;
    * an IPv4 address of four decimal numbers;
    * an IPv6 address without brackets, in the form of RFC 5952. Its zone, if any, is kept
      unchanged (RFC 4007 section 11).

    ``lowest_port`` is 0 if the system may choose the port.

    :raises InvalidAddressError: ``address`` is not the address of a TCP endpoint; ``__cause__``
        is the error of ``idna`` or ``ipaddress``, if one of them refused it
    """
    plain = _plain(address)
    if plain is not None and lowest_port <= plain.port <= 65535:
        return plain
    try:
        host, port = _split_text(address) if isinstance(address, str) else _split_pair(address)
        return SocketAddress(normal_host(host), _normal_port(port, lowest_port))
    except HostError as broken:
        why = f"bad address {quote(address)}: {broken}"
        raise InvalidAddressError(why) from broken.__cause__


def format_address(host: str, port: int) -> str:
    """``"host:port"``, an IPv6 address in brackets, with its zone if it has one."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_PORT = re.compile("[0-9]{1,5}")
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL = "[a-z0-9_-]{1,63}"

#: An IPv4 address in its normal form.
IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")

#: A name in its normal form that cannot be an IPv4 address in disguise.
_NAME = re.compile(rf"(?:{_LABEL}\.)*(?=[a-z]){_LABEL}\.?")


def _is_plain(host: str) -> bool:
    """Whether a quick test shows that a host is in its normal form. For most hosts it does."""
    return len(host) <= 253 and bool(IPV4.fullmatch(host) or _NAME.fullmatch(host))


def _plain(address: Any) -> SocketAddress | None:
    """The address, if its host is plain and its port is a number, in range or not; else None."""
    # Exact types only, so that the result holds no instance of a user's subclass.
    if type(address) is str:
        host, _, digits = address.rpartition(":")
        if _is_plain(host) and _PORT.fullmatch(digits):
            return SocketAddress(host, int(digits))
    elif type(address) in (tuple, SocketAddress) and len(address) == 2:
        host, port = address
        if type(host) is str and type(port) is int and _is_plain(host):
            return SocketAddress(host, port)
    return None


class HostError(Exception):
    """An address or a host breaks a rule. The message says which, and what to write instead."""


_Rules = tuple[tuple[str, str], ...]
_OF_A_URL = "of a URL: write only 'host:port'"

#: What an address must not contain: patterns, each with the message about the text that it
#: matches. Most of them match the parts of a URL other than host and port.
_NOT_IN_ADDRESSES: _Rules = (
    (r"[\s\x00-\x1f\x7f-\x9f]", "is white space or a control character: remove it"),
    (r"://", f"follows the scheme {_OF_A_URL}"),
    (r"@", f"follows the user {_OF_A_URL}"),
    (r"\\", "is a backslash: remove it"),
    (r"\?", f"begins the query {_OF_A_URL}"),
    (r"#", f"begins the fragment {_OF_A_URL}"),
    (r"/", f"begins the path {_OF_A_URL}"),
)

#: What a name must not contain. RFC 1123 does not allow the underscore, but names in the DNS have
#: it (RFC 8552), and so have the names of container networks.
_NOT_IN_NAMES: _Rules = (
    *_NOT_IN_ADDRESSES,
    (r"%", "begins the percent-escape of a URL: write the character that it stands for"),
    (r"[^a-z0-9._-]", "cannot be in a host name: write letters, digits, '-', '_' and '.'"),
)


@cache
def _any_of(rules: _Rules) -> re.Pattern[str]:
    return re.compile("|".join([pattern for pattern, _ in rules]))


def _check(text: str, rules: _Rules) -> None:
    # Most texts break no rule. A single search finds that out.
    if not _any_of(rules).search(text):
        return
    for pattern, why in rules:
        if found := re.search(pattern, text):
            raise HostError(f"{found[0]!r} {why}")


def _split_text(text: str) -> tuple[str, int]:
    if not text:
        raise HostError("it is empty: write 'host:port'")
    _check(text, _NOT_IN_ADDRESSES)
    inside, bracket, rest = text.rpartition("]")
    before, colon, port = rest.rpartition(":")
    if not (colon and port):
        raise HostError("it has no port: write 'host:port'")
    if bracket and before:
        raise HostError("only ':' and the port may follow a ']', as in '[::1]:80'")
    if ":" in before:
        # "::1:80" has two readings: an IPv6 address, or the address ::1 and port 80.
        raise HostError("it has more than one ':': write an IPv6 address as '[::1]:80'")
    # int() alone would accept "+80", "8_0" and the digits of every script.
    if not _PORT.fullmatch(port):
        raise HostError(f"the port {quote(port)} must be a number from 1 to 65535, in digits")
    return inside + bracket + before, int(port)


def _split_pair(pair: object) -> tuple[str, int]:
    match pair:
        case tuple((str(host), int(port))) if not isinstance(port, bool):
            _check(host, _NOT_IN_ADDRESSES)
            return host, port
        case _:
            raise HostError("write a str, 'host:port', or a tuple of a str and an int, ('h', 80)")


def _normal_port(port: int, lowest: int) -> int:
    if not lowest <= port <= 65535:
        raise HostError(f"the port must be a number from {lowest} to 65535")
    return int(port)  # a plain int, even if a subclass such as an IntEnum was given


def normal_host(host: str) -> str:
    """The normal form of a host, as :func:`parse_address` describes it.

    :raises HostError: ``host`` is not a valid host
    """
    if not host:
        raise HostError("it has no host: write 'host:port'")
    if type(host) is str and _is_plain(host):
        return host
    if host.startswith("[") and host.endswith("]"):
        normal = _normal_ipv6(host[1:-1])
    elif ":" in host:
        normal = _normal_ipv6(host)
    else:
        normal = _normal_name(host if host.isascii() else _to_ascii(host))
    # RFC 1035 section 2.3.4 allows 255 octets. The wire format needs two of them for itself.
    if len(normal.removesuffix(".")) > 253:
        raise HostError("the host has more than 253 characters: write a shorter one")
    return normal


def _normal_ipv6(text: str) -> str:
    # ipaddress can parse zones too, but it accepts any character in them.
    number, percent, zone = text.partition("%")
    try:
        ip = IPv6Address(number)
    except ValueError as exc:
        why = "brackets and ':' are for IPv6 addresses: write other hosts without them"
        raise HostError(f"{quote(text)} is not an IPv6 address; {why}") from exc
    if percent and not re.fullmatch("[A-Za-z0-9._~-]+", zone):  # RFC 6874, ZoneID
        raise HostError("a zone is of letters, digits, '.', '_', '~' and '-': '[fe80::1%eth0]'")
    # RFC 6874 writes "%25" for the "%" of a zone, but only in a URI. If that were accepted here as
    # well, one text would have two meanings. "%25" and "%251" are the interfaces 25 and 251.
    if zone.startswith("25") and not zone.isdigit():
        raise HostError("'%25' is for URLs: write a plain '%' before the zone: '[fe80::1%eth0]'")
    # RFC 5952 section 5: a mapped IPv4 address has four decimal numbers. str() does that itself,
    # but only since Python 3.13.
    mapped = ip.ipv4_mapped
    return f"{f'::ffff:{mapped}' if mapped else ip}{percent}{zone}"


def _to_ascii(name: str) -> str:
    import idna  # here, because it would make importing this package much slower

    try:
        labels = idna.uts46_remap(name, std3_rules=False).split(".")
        # idna.encode() would refuse some ASCII labels that the DNS allows but IDNA does not, such
        # as "_http" and "r3---sn". _normal_name() checks those. It also refuses labels that are
        # too long: idna might need quadratic time for one.
        return ".".join(
            label if label.isascii() or len(label) > 63 else idna.alabel(label).decode()
            for label in labels
        )
    except ValueError as exc:  # idna.IDNAError; older versions let other ValueErrors through
        raise HostError(f"the name is not valid in IDNA 2008: {shorten(str(exc))}") from exc


_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")


def _normal_name(name: str) -> str:
    name = name.lower()
    labels = name.removesuffix(".").split(".")
    if "" in labels:
        raise HostError("it has an empty label: write something before, between and after dots")
    if any(len(label) > 63 for label in labels):  # RFC 1035 section 2.3.4
        raise HostError("a label of the name has more than 63 characters: write a shorter one")
    _check(name, _NOT_IN_NAMES)
    # No top-level domain is a number, so this is an attempt at an IPv4 address (WHATWG URL, "ends
    # in a number"). C libraries accept forms that most filters do not expect: 127.1, 0x7f.1,
    # 2130706433.
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(name))
        except ValueError as exc:
            meant = _c_reading(labels)
            write = f"if you mean {meant}, write that" if meant else "write it as '127.0.0.1'"
            why = "a host that ends in a number must be four decimal numbers, 0 to 255"
            raise HostError(f"{why}: {write}") from exc
    return name


def _c_reading(parts: list[str]) -> IPv4Address | None:
    """The address that C's ``inet_aton()`` would read from ``parts``, if any."""
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    bases = [16 if part.startswith("0x") else 8 if part[0] == "0" else 10 for part in parts]
    try:
        *high, low = (int(part, base) for part, base in zip(parts, bases, strict=True))
        # The last number fills all the remaining octets.
        return IPv4Address(bytes(high) + low.to_bytes(4 - len(high), "big"))
    except (ValueError, OverflowError):  # "08", "0x", or too large a number
        return None


def is_ip(text: str) -> bool:
    """Whether ``text`` is an IP address, with or without a zone."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
