"""Egress rules: which addresses and ports may be connected to. Pure; see also _ranges."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeAlias

from ._errors import bad_option, quote
from ._ranges import METADATA, OPAQUE, IPAddress, IPNetwork, block_of, hidden, wrapped

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

Network: TypeAlias = str | IPv4Network | IPv6Network | IPv4Address | IPv6Address
Port: TypeAlias = int | range | tuple[int, int]


@dataclass(frozen=True, slots=True, repr=False)
class AddressPolicy:
    """Which addresses and ports sockets may connect to.

    It judges IP addresses, never names. The name of a socket is resolved first, each of its
    addresses is judged, and only those that are allowed are dialled.

    An address is allowed if ``deny`` does not contain it, and

    * with ``public_only``: it is a public unicast address, or ``allow`` contains it. The metadata
      addresses of clouds stay denied, even if ``allow`` contains them;
    * without ``public_only``: ``allow`` contains it, or is None.

    A port is allowed if ``deny_ports`` does not contain it, and ``allow_ports`` contains it or is
    None. An empty ``allow_ports`` allows no port. An empty ``allow`` allows no address; with
    ``public_only`` it makes no difference.

    An IPv6 address that only carries an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo) is
    judged as that IPv4 address. An address that may also lead to another address (ISATAP,
    IPv4-translated, ``0.0.0.0``, ``::``) is judged as both. So ``::/0`` in ``allow`` does not
    allow the IPv4 addresses that IPv6 carries. To allow those, name a network whose addresses all
    have that form, such as ``2002::/16``. No rule can tell what is behind 64:ff9b:1::/48. An
    address there is denied by ``public_only``, by any IPv4 network in ``deny``, and by an
    ``allow`` that names no network within 64:ff9b:1::/48. Zones make no difference.

    ``allow``: networks and addresses: ``"10.0.0.0/8"``, ``"2001:db8::1"``, or objects of
    ``ipaddress``.

    ``deny``: like ``allow``. It wins over ``allow``.

    ``allow_ports``: ports: numbers, ranges, or pairs of the first and the last:
    ``[443, (8000, 8099)]``.

    ``deny_ports``: like ``allow_ports``. It wins over ``allow_ports``.

    ``public_only``: allow public unicast addresses, and no others but those that ``allow``
    contains.

    ``refuse_loops``: refuse connections to what this process listens on by ``listen()``, and a
    connection of a socket to itself (:class:`LoopError`).

    ``also``: further policies, which must all allow the address and the port too. ``&`` adds to
    them.

    ``a & b`` allows what both allow. To allow more, call ``dataclasses.replace(policy,
    allow=...)``.

    A subclass may judge in its own way: it overrides :meth:`refusal` and :meth:`port_refusal`,
    which ``&`` calls as well. They are called once or twice for each address, in the event loop,
    so they should neither block nor take long. If one of them raises an exception, the address is
    forbidden.

    :raises InvalidOptionError: a value is bad, for example not a network or not a port
    """

    allow: Iterable[Network] | None = None
    """Networks and addresses: ``"10.0.0.0/8"``, ``"2001:db8::1"``, or objects of ``ipaddress``."""
    deny: Iterable[Network] = ()
    """Like ``allow``. It wins over ``allow``."""
    allow_ports: Iterable[Port] | None = None
    """Ports: numbers, ranges, or pairs of the first and the last: ``[443, (8000, 8099)]``."""
    deny_ports: Iterable[Port] = ()
    """Like ``allow_ports``. It wins over ``allow_ports``."""
    public_only: bool = False
    """Allow public unicast addresses, and no others but those that ``allow`` contains."""
    refuse_loops: bool = False
    """Refuse connections to what this process listens on by ``listen()``, and a connection of a
    socket to itself (:class:`LoopError`)."""
    also: "tuple[AddressPolicy, ...]" = ()
    """Further policies, which must all allow the address and the port too. ``&`` adds to them."""

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "allow": None if self.allow is None else _networks("allow", self.allow),
            "deny": _networks("deny", self.deny),
            "allow_ports": None
            if self.allow_ports is None
            else _ports("allow_ports", self.allow_ports),
            "deny_ports": _ports("deny_ports", self.deny_ports),
        }
        for name in ("public_only", "refuse_loops"):
            if not isinstance(getattr(self, name), bool):
                raise bad_option(name, getattr(self, name), "must be True or False")
        also: object = self.also
        if not isinstance(also, tuple) or not all(isinstance(p, AddressPolicy) for p in also):
            raise bad_option("also", also, "must be a tuple of AddressPolicy")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.also:
            object.__setattr__(self, "also", _distinct(self))

    def refusal(self, address: str | IPv4Address | IPv6Address, port: int) -> str | None:
        """Say which rule forbids connecting to ``address`` at ``port``; None if no rule does.

        Anything that is not an IP address, or not a port, is refused as well. Does no I/O.
        """
        ip = _ip(address)
        if ip is None:
            return f"{quote(address)} is not an IP address"
        why = self.port_refusal(port)
        if why is None:
            why = _denied(self, ip) or _not_allowed(self, ip)
        for policy in self.also:
            if why is not None:
                break
            why = policy.refusal(address, port)
        return why

    def port_refusal(self, port: int) -> str | None:
        """Say which rule forbids ``port`` for every address; None if no rule does."""
        number: object = port
        if not isinstance(number, int) or not 1 <= number <= 65535:
            return f"{quote(port)} is not a port"
        if _has(self.deny_ports, port):
            return f"port {port} is in deny_ports"
        if self.allow_ports is not None and not _has(self.allow_ports, port):
            return f"port {port} is not in allow_ports"
        for policy in self.also:
            why = policy.port_refusal(port)
            if why is not None:
                return why
        return None

    @property
    def loops_refused(self) -> bool:
        """Whether this policy, or one of ``also``, refuses loops."""
        return self.refuse_loops or any(policy.loops_refused for policy in self.also)

    def __and__(self, other: "AddressPolicy") -> "AddressPolicy":
        if not isinstance(other, AddressPolicy):
            return NotImplemented
        if other is self or other == UNRESTRICTED:
            return self
        if self == UNRESTRICTED:
            return other
        if not _is_plain(self):  # only a subclass knows how it is copied
            return AddressPolicy(also=(self, other))
        return replace(self, also=(*self.also, other))

    def __repr__(self) -> str:
        for name, preset in _PRESETS.items():
            if self == preset:
                return name
        if self.also and _is_plain(self):
            own = replace(self, also=())
            if own != UNRESTRICTED:
                return " & ".join(map(repr, (own, *self.also)))
        shown = (
            f"{field.name}={value if field.name == 'also' else _show(value)}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        )
        return f"{type(self).__name__}({', '.join(shown)})"


# --- judging


def _ip(address: object) -> IPAddress | None:
    if isinstance(address, str):
        try:
            address = ip_address(address)
        except ValueError:
            return None
    # As a plain address: without its zone, or the network of an IPv4Interface.
    if isinstance(address, IPv6Address):
        return IPv6Address(int(address))
    return IPv4Address(int(address)) if isinstance(address, IPv4Address) else None


class _Networks(tuple[IPNetwork, ...]):  # noqa: SLOT001  # a tuple can have none
    """Networks, in the order given, and an index of those that hold an address.

    There may be a hundred thousand of them, and they are looked up in the event loop.
    """

    # For each IP version and length of prefix: the prefixes, and their places in the order.
    _places: dict[tuple[int, int], dict[int, int]]

    def __new__(cls, networks: Iterable[IPNetwork]) -> Self:
        self = super().__new__(cls, networks)
        self._places = {}
        for place, net in enumerate(self):
            prefixes = self._places.setdefault((net.version, net.prefixlen), {})
            prefixes[int(net.network_address) >> (net.max_prefixlen - net.prefixlen)] = place
        return self

    def holding(self, ip: IPAddress) -> list[IPNetwork]:
        number, bits, version = int(ip), ip.max_prefixlen, ip.version
        places = [
            prefixes.get(number >> (bits - length))
            for (of, length), prefixes in self._places.items()
            if of == version
        ]
        return [self[place] for place in sorted(place for place in places if place is not None)]

    def any_of_version(self, version: int) -> bool:
        return any(of == version for of, _ in self._places)


class _Ports(tuple[int | tuple[int, int], ...]):  # noqa: SLOT001
    """Ports and ranges of ports, as given, and a number in which the bit of each port is set."""

    _bits: int

    def __new__(cls, ports: Iterable[int | tuple[int, int]]) -> Self:
        self = super().__new__(cls, ports)
        self._bits = 0
        for first, last in map(_first_last, self):
            self._bits |= ((1 << (last - first + 1)) - 1) << first
        return self

    def has(self, port: int) -> bool:
        return bool(self._bits >> port & 1)


# By now they are objects of the two classes above, but a type checker does not know that.


def _holding(ip: IPAddress, networks: Iterable[Network] | None) -> list[IPNetwork]:
    return networks.holding(ip) if isinstance(networks, _Networks) else []


def _has(ports: Iterable[Port], port: int) -> bool:
    assert isinstance(ports, _Ports)
    return ports.has(port)


def _denied(policy: AddressPolicy, ip: IPAddress) -> str | None:
    """What denies ``ip``, or an address that it carries or leads to. Nothing overrules this."""
    if ip in OPAQUE and (policy.public_only or _names_ipv4(policy.deny)):
        return _opaque(ip)
    if networks := _holding(ip, policy.deny):
        return f"{networks[0]} is in deny"
    if policy.public_only and ip in METADATA:
        return f"{ip} is a cloud metadata address ({METADATA[ip]})"
    for inner in (*wrapped(ip), *hidden(ip)):
        if why := _denied(policy, inner.ip):
            return f"it carries {inner.ip} ({inner.form}): {why}"
    return None


def _not_allowed(policy: AddressPolicy, ip: IPAddress) -> str | None:
    """Why ``ip``, which no rule denies, is not allowed either; None if it is."""
    if policy.allow is None and not policy.public_only:
        return None
    networks = _holding(ip, policy.allow)
    wrapping = wrapped(ip)
    if not networks and not wrapping:
        if not policy.public_only:
            return f"{ip} is in none of the networks of allow"
        block = block_of(ip)
        if not block.public:
            return str(block)
    if ip in OPAQUE and not _any_within(networks, OPAQUE):
        return _opaque(ip)
    for inner in (*wrapping, *hidden(ip)):
        # A wider network, such as "::/0", has such addresses too, but does not say that what
        # they carry is allowed.
        if not _any_within(networks, inner.network) and (why := _not_allowed(policy, inner.ip)):
            return f"it carries {inner.ip} ({inner.form}): {why}"
    return None


def _any_within(networks: Iterable[IPNetwork], network: IPNetwork) -> bool:
    return any(
        net.prefixlen >= network.prefixlen and net.network_address in network for net in networks
    )


def _opaque(ip: IPAddress) -> str:
    return f"{block_of(ip)}, so no rule can tell where it leads"


def _names_ipv4(networks: Iterable[Network]) -> bool:
    assert isinstance(networks, _Networks)
    return networks.any_of_version(4)


# --- checking what a policy is made of


def _distinct(policy: AddressPolicy) -> tuple[AddressPolicy, ...]:
    """Its ``also`` without nesting, each policy once, so that equal policies compare equal."""
    parts: list[AddressPolicy] = []
    for other in policy.also:
        parts += parts_of(other)
    own = (UNRESTRICTED, replace(policy, also=()) if _is_plain(policy) else policy)
    # Only a subclass knows whether two of its objects are equal.
    distinct = {part if _is_plain(part) else id(part): part for part in parts}
    return tuple(part for part in distinct.values() if not (_is_plain(part) and part in own))


def parts_of(policy: AddressPolicy) -> tuple[AddressPolicy, ...]:
    """The policies that ``&`` put together, each of which must allow an address."""
    if policy.also and _is_plain(policy):
        return (replace(policy, also=()), *policy.also)
    return (policy,)


def judges_addresses(policy: AddressPolicy) -> bool:
    """Whether it may refuse any address; if not, it judges ports alone, or nothing."""
    return any(
        not _is_plain(part)
        or part.allow is not None
        or part.deny != ()
        or part.public_only
        or part.refuse_loops
        for part in parts_of(policy)
    )


def _is_plain(policy: AddressPolicy) -> bool:
    """Whether it is no subclass, which may judge in another way."""
    return type(policy) is AddressPolicy


def _networks(name: str, value: object) -> _Networks:
    if isinstance(value, _Networks):
        return value
    # A network is iterable too, over all its addresses; a str, over its characters.
    if isinstance(value, (str, bytes, IPv4Network, IPv6Network)) or not isinstance(
        value, Iterable
    ):
        raise bad_option(name, value, "must be a list of networks, such as ['10.0.0.0/8']")
    return _Networks(dict.fromkeys(_network(name, item) for item in value))


def _network(name: str, value: object) -> IPNetwork:
    # ip_network() would also take numbers, bytes and tuples.
    if not isinstance(value, (str, IPv4Network, IPv6Network, IPv4Address, IPv6Address)):
        raise bad_option(name, value, "must be a network or an address, as a str or of ipaddress")
    if "%" in str(value):
        raise bad_option(name, value, "rules have no zones: leave out the '%' and what follows")
    try:
        network = ip_network(value)
    except ValueError as exc:
        raise bad_option(
            name, value, f"{exc}: write it like '10.0.0.0/8' or '2001:db8::1'"
        ) from exc
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:  # they are the same hosts as these IPv4 addresses
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def _ports(name: str, value: object) -> _Ports:
    if isinstance(value, _Ports):
        return value
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise bad_option(name, value, "must be a list of ports, such as [443, (8000, 8099)]")
    ports: dict[int | tuple[int, int], None] = {}
    for item in value:
        try:
            first, last = _first_last(item)
        except (TypeError, ValueError):
            first = last = 0
        if not 1 <= first <= last <= 65535:
            why = "must be a number from 1 to 65535, a range, or a pair of the first and the last"
            raise bad_option(name, item, why)
        ports[first if first == last else (first, last)] = None
    return _Ports(ports)


def _first_last(port: object) -> tuple[int, int]:
    match port:
        case bool():
            pass
        case int():
            return int(port), int(port)
        case range() if len(port) and port.step == 1:
            return port.start, port.stop - 1
        case (int(first), int(last)) if bool not in (type(first), type(last)):
            return int(first), int(last)
    raise ValueError(port)


def _show(value: object) -> str:
    if not isinstance(value, tuple):
        return repr(value)
    return (
        "["
        + ", ".join(
            repr(item) if isinstance(item, (int, tuple)) else repr(_short(item)) for item in value
        )
        + "]"
    )


def _short(network: IPNetwork) -> str:
    whole = network.prefixlen == network.max_prefixlen
    return str(network.network_address if whole else network)


# --- presets

#: Everything is allowed: the default.
UNRESTRICTED = AddressPolicy()

#: What the Workers runtime allows: public unicast addresses, no port 25, no loops.
WORKERS = AddressPolicy(public_only=True, deny_ports=(25,), refuse_loops=True)

_PRESETS = {"UNRESTRICTED": UNRESTRICTED, "WORKERS": WORKERS}
