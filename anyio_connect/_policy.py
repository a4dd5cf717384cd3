"""Egress rules: which addresses and ports may be connected to. Pure; see also _ranges."""

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

Network: TypeAlias = str | IPv4Network | IPv6Network | IPv4Address | IPv6Address
Port: TypeAlias = int | range | tuple[int, int]


@dataclass(frozen=True, slots=True, repr=False)
class AddressPolicy:
    """Which addresses and ports sockets may connect to.

    It judges IP addresses, never names: a socket's name is resolved first, each of its
    addresses is judged, and only those that were allowed are dialled.

    An address is allowed when nothing in ``deny`` holds it, and

    * with ``public_only``: it is a public unicast address, or ``allow`` holds it. The metadata
      addresses of clouds stay denied, whatever ``allow`` says;
    * without: ``allow`` holds it, or is None.

    A port is allowed when ``deny_ports`` does not have it, and ``allow_ports`` has it or is
    None. An empty ``allow_ports`` allows none. An empty ``allow`` allows nothing either, but
    with ``public_only`` it is like None: it adds nothing.

    IPv4 in an IPv6 address (mapped, compatible, NAT64, 6to4, Teredo) is judged as the IPv4 that
    it is, and an address that may lead to another one as well (ISATAP, IPv4-translated,
    ``0.0.0.0``, ``::``) as both. So ``::/0`` in ``allow`` is no way to IPv4: of such addresses
    it takes a network that is of that form alone, such as ``2002::/16``. What no rule can see
    into, 64:ff9b:1::/48, is denied by ``public_only``, by IPv4 in ``deny``, and by an ``allow``
    that has no network within it. Zones do not count.

    ``allow``: networks and addresses: ``"10.0.0.0/8"``, ``"2001:db8::1"``, or objects of
    ``ipaddress``.

    ``deny``: like ``allow``. It wins over ``allow``.

    ``allow_ports``: ports: numbers, ranges, or pairs of the first and the last:
    ``[443, (8000, 8099)]``.

    ``deny_ports``: like ``allow_ports``. It wins over ``allow_ports``.

    ``public_only``: allow public unicast addresses, and otherwise only what ``allow`` holds.

    ``refuse_loops``: refuse connections to what this process listens on by ``listen()``, and a
    connection of a socket to itself (:class:`LoopError`).

    ``also``: further policies, which must allow it as well: what ``&`` makes.

    ``a & b`` allows what both allow. To allow more, ``dataclasses.replace(policy, allow=...)``.

    :raises InvalidOptionError: a network or port is none
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
    """Allow public unicast addresses, and otherwise only what ``allow`` holds."""
    refuse_loops: bool = False
    """Refuse connections to what this process listens on by ``listen()``, and a connection of a
    socket to itself (:class:`LoopError`)."""
    also: "tuple[AddressPolicy, ...]" = ()
    """Further policies, which must allow it as well: what ``&`` makes."""

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "allow": None if self.allow is None else _networks("allow", self.allow),
            "deny": _networks("deny", self.deny),
            "allow_ports": None if self.allow_ports is None else _ports("allow_ports", self),
            "deny_ports": _ports("deny_ports", self),
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
        """Say which rule forbids to connect to ``address`` at ``port``; None if none does.

        What is no IP address, or no port, is refused as well. Does no I/O.
        """
        ip = _ip(address)
        if ip is None:
            return f"{quote(address)} is not an IP address"
        return self.port_refusal(port) or self._address_refusal(ip)

    def port_refusal(self, port: int) -> str | None:
        """Say which rule forbids ``port``, whatever the address; None if none does."""
        number: object = port
        if not isinstance(number, int) or not 1 <= number <= 65535:
            return f"{quote(port)} is not a port"
        for policy in self._parts():
            if _has(policy.deny_ports, port):
                return f"port {port} is in deny_ports"
            if policy.allow_ports is not None and not _has(policy.allow_ports, port):
                return f"port {port} is not in allow_ports"
        return None

    @property
    def loops_refused(self) -> bool:
        """Whether this policy, or one of ``also``, refuses loops."""
        return any(policy.refuse_loops for policy in self._parts())

    def _parts(self) -> "tuple[AddressPolicy, ...]":
        return (self, *self.also)

    def _address_refusal(self, ip: IPAddress) -> str | None:
        for policy in self._parts():
            if why := _denied(policy, ip) or _not_allowed(policy, ip):
                return why
        return None

    def __and__(self, other: "AddressPolicy") -> "AddressPolicy":
        if not isinstance(other, AddressPolicy):
            return NotImplemented
        if other in (UNRESTRICTED, self):
            return self
        if self == UNRESTRICTED:
            return other
        return replace(self, also=(*self.also, other))

    def __repr__(self) -> str:
        for name, preset in _PRESETS.items():
            if self == preset:
                return name
        own = replace(self, also=())
        if self.also and own != UNRESTRICTED:
            return " & ".join(map(repr, (own, *self.also)))
        shown = (
            f"{field.name}={value if field.name == 'also' else _show(value)}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        )
        return f"AddressPolicy({', '.join(shown)})"


# --- judging


def _ip(address: object) -> IPAddress | None:
    if isinstance(address, str):
        try:
            address = ip_address(address)
        except ValueError:
            return None
    # As a plain address: without its zone, or the network that an interface has.
    if isinstance(address, IPv6Address):
        return IPv6Address(int(address))
    return IPv4Address(int(address)) if isinstance(address, IPv4Address) else None


def _holding(ip: IPAddress, networks: Iterable[Network] | None) -> list[IPNetwork]:
    # (They all are one of the two by now, but a type checker only knows the parameters.)
    return [
        network
        for network in networks or ()
        if isinstance(network, (IPv4Network, IPv6Network)) and ip in network
    ]


def _denied(policy: AddressPolicy, ip: IPAddress) -> str | None:
    """What denies ``ip``, or an address that it carries or leads to: this always wins."""
    if ip in OPAQUE and (
        policy.public_only or any(isinstance(net, IPv4Network) for net in policy.deny)
    ):
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
    """Why nothing allows ``ip``, which nothing denies."""
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
        # A network that happens to have such addresses too, as "::/0" has, says nothing of
        # what they carry.
        if not _any_within(networks, inner.network) and (why := _not_allowed(policy, inner.ip)):
            return f"it carries {inner.ip} ({inner.form}): {why}"
    return None


def _any_within(networks: Iterable[IPNetwork], network: IPNetwork) -> bool:
    return any(
        net.prefixlen >= network.prefixlen and net.network_address in network for net in networks
    )


def _opaque(ip: IPAddress) -> str:
    return f"{block_of(ip)}, so no rule can tell where it leads"


def _has(ports: Iterable[Port], port: int) -> bool:
    return any(first <= port <= last for first, last in map(_first_last, ports))


# --- checking what a policy is made of


def _distinct(policy: AddressPolicy) -> tuple[AddressPolicy, ...]:
    """Its ``also`` in a row, each policy once: however it was put together, it is the same."""
    parts = (part for other in policy.also for part in (replace(other, also=()), *other.also))
    own = (UNRESTRICTED, replace(policy, also=()))
    return tuple(part for part in dict.fromkeys(parts) if part not in own)


def _networks(name: str, value: object) -> tuple[IPNetwork, ...]:
    # A network is iterable itself, over all its addresses; a str is over its characters.
    if isinstance(value, (str, bytes, IPv4Network, IPv6Network)) or not isinstance(
        value, Iterable
    ):
        raise bad_option(name, value, "must be a list of networks, such as ['10.0.0.0/8']")
    return tuple(dict.fromkeys(_network(name, item) for item in value))


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
        if mapped is not None:  # the same hosts, by their own addresses
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def _ports(name: str, policy: AddressPolicy) -> tuple[Port, ...]:
    value = getattr(policy, name)
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise bad_option(name, value, "must be a list of ports, such as [443, (8000, 8099)]")
    ports: dict[Port, None] = {}
    for item in value:
        try:
            first, last = _first_last(item)
        except (TypeError, ValueError):
            first = last = 0
        if not 1 <= first <= last <= 65535:
            why = "must be a number from 1 to 65535, a range, or a pair of the first and the last"
            raise bad_option(name, item, why)
        ports[first if first == last else (first, last)] = None
    return tuple(ports)


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
