"""An address as a user writes it: what one may be, and why anything else is turned away.

Nothing is guessed and nothing is repaired. Wherever two readers could take an address to mean
two hosts, one of them a filter and the other the resolver, the answer is an error that says
what to write. So each accepted address has one normal form, and only that form goes on to the
filter, the resolver and TLS.
"""

from __future__ import annotations

import re
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from ._errors import InvalidAddressError, quote, shorten


class SocketAddress(NamedTuple):
    """A host and a TCP port to connect to (WinterTC Sockets API draft, ``SocketAddress``).

    Making one checks nothing; ``connect()`` does, as it does with any other pair.

    ``hostname``: a host name, or an IP address without brackets.

    ``port``: 1 to 65535.
    """

    hostname: str
    """A host name, or an IP address without brackets."""
    port: int
    """1 to 65535."""


def parse_address(address: str | tuple[str, int], *, lowest_port: int = 1) -> SocketAddress:
    """Check ``address`` and bring it into its normal form.

    ``address`` is ``"host:port"``, ``"[IPv6]:port"`` (RFC 3986 section 3.2.2), or a pair of
    host and port. The host comes back as one of:

    * a name in lower case (RFC 1035, RFC 1123), its non-ASCII labels turned into A-labels
      (RFC 5891, after the mapping of UTS #46). A trailing dot is kept: to the resolver it
      means that the name is complete;
    * an IPv4 address of four decimal numbers;
    * an IPv6 address without brackets, as RFC 5952 writes it, and its zone, if any, as given
      (RFC 4007 section 11).

    ``lowest_port`` is 0 if the port may be left to the system to choose.

    :raises InvalidAddressError: the address names no TCP endpoint; ``__cause__`` is what
        ``idna`` or ``ipaddress`` said about it, if they were asked
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

#: A name in its normal form that cannot be meant for an IPv4 address.
_NAME = re.compile(rf"(?:{_LABEL}\.)*(?=[a-z]){_LABEL}\.?")


def _is_plain(host: str) -> bool:
    """Whether a host is its own normal form, and easily seen to be. Most are."""
    return len(host) <= 253 and bool(IPV4.fullmatch(host) or _NAME.fullmatch(host))


def _plain(address: Any) -> SocketAddress | None:
    """The address, if its host is plain and its port a number of some kind; else None."""
    # Exact types: what comes back has none of a subclass of the user's.
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
    """An address, or its host, breaks a rule: what is wrong with it, and what to write instead."""


_Rules = tuple[tuple[str, str], ...]
_OF_A_URL = "of a URL: write only 'host:port'"

#: What an address may not contain anywhere: patterns, and what each says about the text it
#: finds. Most of them are for parts of a URL, of which host and port are only two.
_NOT_IN_ADDRESSES: _Rules = (
    (r"[\s\x00-\x1f\x7f-\x9f]", "is white space or a control character: remove it"),
    (r"://", f"follows the scheme {_OF_A_URL}"),
    (r"@", f"follows the user {_OF_A_URL}"),
    (r"\\", "is a backslash: remove it"),
    (r"\?", f"begins the query {_OF_A_URL}"),
    (r"#", f"begins the fragment {_OF_A_URL}"),
    (r"/", f"begins the path {_OF_A_URL}"),
)

#: What else a name may not contain. RFC 1123 has no underscore, but the DNS has (RFC 8552),
#: and so have the names that container networks give out.
_NOT_IN_NAMES: _Rules = (
    *_NOT_IN_ADDRESSES,
    (r"%", "begins the percent-escape of a URL: write the character that it stands for"),
    (r"[^a-z0-9._-]", "cannot be in a host name: write letters, digits, '-', '_' and '.'"),
)


@cache
def _any_of(rules: _Rules) -> re.Pattern[str]:
    return re.compile("|".join([pattern for pattern, _ in rules]))


def _check(text: str, rules: _Rules) -> None:
    # As a rule there is nothing to find, which one search can tell.
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
        # "::1:80" is an IPv6 address as it stands, and also one with a port.
        raise HostError("it has more than one ':': write an IPv6 address as '[::1]:80'")
    # int() alone would take "+80", "8_0" and the digits of every script.
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
    return int(port)  # a plain int, also of an IntEnum


def normal_host(host: str) -> str:
    """The normal form of a host, as :func:`parse_address` has it.

    :raises HostError: it is none
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
    # RFC 1035 section 2.3.4 says 255 octets, of which the wire format takes two for itself.
    if len(normal.removesuffix(".")) > 253:
        raise HostError("the host has more than 253 characters: write a shorter one")
    return normal


def _normal_ipv6(text: str) -> str:
    # ipaddress understands zones too, but takes any characters for one.
    number, percent, zone = text.partition("%")
    try:
        ip = IPv6Address(number)
    except ValueError as exc:
        why = "brackets and ':' are for IPv6 addresses: write other hosts without them"
        raise HostError(f"{quote(text)} is not an IPv6 address; {why}") from exc
    if percent and not re.fullmatch("[A-Za-z0-9._~-]+", zone):  # RFC 6874, ZoneID
        raise HostError("a zone is of letters, digits, '.', '_', '~' and '-': '[fe80::1%eth0]'")
    # RFC 6874 writes "%25" for the "%" of a zone, but only in a URI. To read that here as well
    # would give one text two meanings. "%25" and "%251" stay what they are: interface numbers.
    if zone.startswith("25") and not zone.isdigit():
        raise HostError("'%25' is for URLs: write a plain '%' before the zone: '[fe80::1%eth0]'")
    # RFC 5952 section 5. Python does so itself, but only since 3.13.
    mapped = ip.ipv4_mapped
    return f"{f'::ffff:{mapped}' if mapped else ip}{percent}{zone}"


def _to_ascii(name: str) -> str:
    import idna  # here, because it would be a good part of the time that importing us takes

    try:
        labels = idna.uts46_remap(name, std3_rules=False).split(".")
        # Not idna.encode(): that refuses ASCII labels which IDNA has no place for but the DNS
        # has, such as "_http" and "r3---sn". _normal_name() checks those, and turns away labels
        # that are too long; on such a one idna might spend quadratic time.
        return ".".join(
            label if label.isascii() or len(label) > 63 else idna.alabel(label).decode()
            for label in labels
        )
    except ValueError as exc:  # idna.IDNAError, and what older versions let through
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
    # No top-level domain is a number, so this is meant for an IPv4 address (WHATWG URL, "ends
    # in a number"). Of those C reads more than most filters do: 127.1, 0x7f.1, 2130706433.
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
    """The address that C's ``inet_aton()`` sees in ``parts``, if any."""
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    bases = [16 if part.startswith("0x") else 8 if part[0] == "0" else 10 for part in parts]
    try:
        *high, low = (int(part, base) for part, base in zip(parts, bases, strict=True))
        # The last number fills all the octets that are left.
        return IPv4Address(bytes(high) + low.to_bytes(4 - len(high), "big"))
    except (ValueError, OverflowError):  # "08", "0x", or too large a number
        return None


def is_ip(text: str) -> bool:
    """Whether it is an IP address, perhaps with a zone."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
