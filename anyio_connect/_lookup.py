"""From a host name and a port to endpoints, by the system or by the user's resolver."""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

from ._address import IPV4, SocketAddress, format_address
from ._dial_errors import bad_answer, no_lookup, no_such_zone, resolve_failed
from ._errors import ResolveError
from ._log import log
from ._resolver import Resolver, ask
from ._tcp import host_and_port
from ._threads import NoThreadError, Threads

#: How many names may be looked up at the same time.
_lookups = Threads("look up names", 64)


class Endpoint(NamedTuple):
    """One resolved address to try."""

    family: int
    sockaddr: tuple[Any, ...]

    @property
    def ip(self) -> str:
        """The IP address, with its zone if it has one."""
        try:
            return host_and_port(self.sockaddr)[0]
        except OSError:  # no interface has the number of the zone
            host, _, _, zone = self.sockaddr
            return f"{host}%{zone}"

    def __str__(self) -> str:
        return format_address(self.ip, self.sockaddr[1])


async def resolve(address: SocketAddress) -> list[Endpoint]:
    """Return all endpoints of ``address``, at least one.

    :raises ResolveError: the name has no address, or could not be looked up
    """
    if endpoints := literal(address):
        return endpoints
    host, port = address
    if log.debugs:
        log.debug("%s: looking the name up", format_address(host, port))
    try:
        endpoints = _endpoints(await getaddrinfo(host, port))
    except NoThreadError as exc:
        raise no_lookup(host, port, exc) from exc
    except Exception as exc:
        raise resolve_failed(host, port, exc) from exc
    if not endpoints:
        raise resolve_failed(host, port, None)
    return endpoints


async def have_resolved(resolver: Resolver, address: SocketAddress) -> tuple[list[Endpoint], int]:
    """Like :func:`resolve`, by the user's resolver.

    Returns the endpoints, and how many more addresses the resolver named.

    :raises ResolveError: the resolver returned no address or an invalid one, or it failed
    """
    if endpoints := literal(address):
        return endpoints, 0
    host, port = address
    if log.debugs:
        log.debug("%s: asking the resolver", format_address(host, port))
    found, more = await ask(resolver, address)
    for ip in found:
        try:
            endpoints += literal(SocketAddress(ip, port))
        except ResolveError as exc:  # the zone is unknown
            _, _, why = str(exc).partition(": ")
            raise bad_answer(host, port, ip, f"cannot be used: {why}") from exc.__cause__
        except ValueError as exc:  # the zone has invalid characters
            raise bad_answer(host, port, ip, "is not an IP address") from exc
    return list(dict.fromkeys(endpoints)), more


def literal(address: SocketAddress) -> list[Endpoint]:
    """The endpoint of an IP address, which needs no resolver; an empty list for a name."""
    host, port = address
    if IPV4.fullmatch(host):  # getaddrinfo() would return the same
        return [Endpoint(socket.AF_INET, (host, port))]
    try:
        # anyio.getaddrinfo() would drop the zone of an IPv6 address.
        return _endpoints(
            # Bytes, because Python would load its IDNA codec for a str.
            socket.getaddrinfo(
                host.encode(), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
        )
    except OSError as exc:  # mostly a gaierror
        if "%" in host:  # parse_address() has checked everything but that the zone exists
            raise no_such_zone(host, exc) from exc
        if ":" in host:
            raise resolve_failed(host, port, exc) from exc
        return []


async def getaddrinfo(host: str, port: int) -> Any:
    """``socket.getaddrinfo()`` for TCP, in a thread of this package."""
    # Bytes, because Python would load its IDNA codec for a str.
    name = host.encode()
    return await _lookups.run(lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))


def _endpoints(found: Any) -> list[Endpoint]:
    endpoints = [
        Endpoint(family, sockaddr)
        for family, _, _, _, sockaddr in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]
    return list(dict.fromkeys(endpoints))
