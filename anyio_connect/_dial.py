"""From a host name and port to a connected transport."""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import suppress
from typing import Any, NamedTuple

import anyio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint_if_cancelled

from ._address import SocketAddress, format_address
from ._copies import fresh
from ._errors import (
    ConnectError,
    LoopError,
    attempt_failed,
    cannot_bind,
    dial_failed,
    forbidden,
    loop,
    no_family,
    no_such_zone,
    none_allowed,
    perhaps_loop,
    resolve_failed,
)
from ._loops import leads_back
from ._policy import UNRESTRICTED, AddressPolicy
from ._tcp import TCPTransport, host_and_port
from ._threads import Threads
from ._transport import ForeignTransport, Transport

#: RFC 8305 section 5, "Connection Attempt Delay", in seconds.
HAPPY_EYEBALLS_DELAY = 0.25

#: What the kernel says of a connection that was made, and reset before anybody looked. (Of one
#: that a reset kept from being made, it says ECONNREFUSED.) What the peer said before that can be
#: received still. EPIPE: it had ended before.
_RESET = frozenset({errno.ECONNRESET, errno.EPIPE})

#: ip(7); Python has a name for it only since 3.12.
_IP_BIND_ADDRESS_NO_PORT = 24


class Route(NamedTuple):
    """How to get anywhere: what of a ``Connector`` is for dialling."""

    policy: AddressPolicy = UNRESTRICTED
    happy_eyeballs_delay: float = HAPPY_EYEBALLS_DELAY
    local_host: str | None = None


class Endpoint(NamedTuple):
    """One resolved address to try."""

    family: int
    sockaddr: tuple[Any, ...]

    def __str__(self) -> str:
        try:
            return format_address(*host_and_port(self.sockaddr))
        except OSError:  # a zone of a number that no interface has
            host, port, _, zone = self.sockaddr
            return format_address(f"{host}%{zone}", port)


def forbid(address: SocketAddress, policy: AddressPolicy) -> None:
    """Refuse what is known to be forbidden before any I/O: a port, an IP address.

    :raises AddressNotAllowedError: it is forbidden
    :raises LoopError: it is a listener of this process
    """
    where = format_address(*address)
    if why := policy.port_refusal(address.port):
        raise none_allowed(where, [forbidden(where, why)])
    found = _literal(address)
    refused = [error for endpoint in found if (error := _vet(endpoint, policy))]
    if refused:
        raise none_allowed(where, refused)


class Progress:
    """What a dial has come to so far: whoever dials keeps it, for when that is cancelled."""

    def __init__(self) -> None:
        self.attempts: list[ConnectError] = []  # that failed, in order
        self.refused: list[ConnectError] = []  # what the policy dropped, and why


async def dial(address: SocketAddress, route: Route, progress: Progress) -> Transport:
    """Connect to ``address``: resolve it, then race what it resolves to (RFC 8305).

    Each address is judged by the policy of ``route`` first; only those that it allows are
    dialled, by number, and nothing is resolved twice. The others are dropped: a name with
    private and public addresses leads to the public ones.

    Each attempt that fails, and each address that is dropped, adds an error to ``progress``: it
    is wanted even where a cancellation ends the dial. Cancelled, it leaves no socket behind.

    :raises AddressNotAllowedError: the policy allows none of the addresses
    :raises LoopError: they all lead back to this process
    :raises ConnectError: the name has no address, or no address could be connected to
    """
    await checkpoint_if_cancelled()
    where = format_address(*address)
    vetted = [(endpoint, _vet(endpoint, route.policy)) for endpoint in await resolve(address)]
    progress.refused += [error for _, error in vetted if error is not None]
    endpoints = [endpoint for endpoint, error in vetted if error is None]
    if not endpoints:
        raise none_allowed(where, progress.refused)
    if route.local_host is not None:
        family = socket.AF_INET6 if ":" in route.local_host else socket.AF_INET
        endpoints = [endpoint for endpoint in endpoints if endpoint.family == family]
        if not endpoints:
            raise no_family(where, route.local_host, progress.refused)
    transport = await _race(_interleave(endpoints), route, progress.attempts)
    if transport is None:
        raise dial_failed(where, address.port, tuple(progress.attempts), progress.refused)
    return transport


def _literal(address: SocketAddress) -> list[Endpoint]:
    """The endpoint of an IP address, for which no resolver is needed; none for a name."""
    host, port = address
    try:
        # This call keeps an IPv6 zone, which AnyIO's drops.
        return _endpoints(
            # As bytes, or Python would look for its IDNA codec, of which nothing here has need.
            socket.getaddrinfo(
                host.encode(), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
        )
    except OSError as exc:  # mostly a gaierror
        if "%" in host:  # IPv6, and parse_address() has checked all but the zone
            raise no_such_zone(host, exc) from exc
        if ":" in host:
            raise resolve_failed(host, port, exc) from exc
        return []


#: How many names may be looked up at the same time.
_lookups = Threads("look up names", 64)


async def getaddrinfo(host: str, port: int) -> Any:
    """``socket.getaddrinfo()`` for TCP, in a thread of ours."""
    # As bytes, for a str makes Python look for its IDNA codec, of which nothing here has need.
    name = host.encode()
    return await _lookups.run(lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))


async def resolve(address: SocketAddress) -> list[Endpoint]:
    """Every endpoint that ``address`` stands for, at least one.

    :raises ResolveError: there is none
    """
    if endpoints := _literal(address):
        return endpoints
    host, port = address
    try:
        endpoints = _endpoints(await getaddrinfo(host, port))
    except Exception as exc:
        raise resolve_failed(host, port, exc) from exc
    if not endpoints:
        raise resolve_failed(host, port, None)
    return endpoints


def _endpoints(found: Any) -> list[Endpoint]:
    endpoints = [
        Endpoint(family, sockaddr)
        for family, _, _, _, sockaddr in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]
    return list(dict.fromkeys(endpoints))


def _vet(endpoint: Endpoint, policy: AddressPolicy) -> ConnectError | None:
    """What forbids to dial ``endpoint``."""
    if policy is UNRESTRICTED:
        return None
    why = policy.refusal(*endpoint.sockaddr[:2])
    try:
        if policy.loops_refused and leads_back(endpoint.sockaddr):
            return loop(str(endpoint), "this process itself listens there")
    except ValueError:
        assert why is not None  # it is not an IP address
    except OSError as exc:
        if why is None:
            return perhaps_loop(str(endpoint), exc)
    return forbidden(str(endpoint), why) if why else None


def _recheck(
    transport: Transport, endpoint: Endpoint, policy: AddressPolicy
) -> ConnectError | None:
    """What forbids the connection that was made, which the kernel knows best."""
    if policy is UNRESTRICTED:
        return None
    remote = transport.extra(SocketAttribute.remote_address, None)
    if not isinstance(remote, tuple):
        return forbidden(str(endpoint), "it cannot be told where the connection leads")
    if policy.loops_refused and remote == transport.extra(SocketAttribute.local_address, None):
        # A port that the kernel chose for us, and happened to be the one that was dialled.
        return loop(str(endpoint), "the socket was connected to itself")
    error = _vet(Endpoint(endpoint.family, remote), policy)
    if error is None or isinstance(error, LoopError):
        return error
    found = forbidden(str(endpoint), f"the connection leads to {error}")
    found.__cause__ = error.__cause__
    return found


def _interleave(endpoints: list[Endpoint]) -> list[Endpoint]:
    """Alternate the address families, beginning with the resolver's choice (RFC 8305 4)."""
    first = [e for e in endpoints if e.family == endpoints[0].family]
    other = [e for e in endpoints if e.family != endpoints[0].family]
    mixed = [e for pair in zip(first, other, strict=False) for e in pair]
    return mixed + first[len(other) :] + other[len(first) :]


async def _race(
    endpoints: list[Endpoint], route: Route, attempts: list[ConnectError]
) -> Transport | None:
    if len(endpoints) == 1:  # the common case, without a task group
        return await _attempt(endpoints[0], route, attempts)

    winner: Transport | None = None
    failed = anyio.Event()

    async def run(endpoint: Endpoint) -> None:
        nonlocal winner
        transport = await _attempt(endpoint, route, attempts)
        if transport is None:
            failed.set()
        elif winner is None:
            winner = transport
            group.cancel_scope.cancel()
        else:
            await transport.abort()

    try:
        async with anyio.create_task_group() as group:
            for endpoint in endpoints:
                failed = anyio.Event()
                group.start_soon(run, endpoint)
                with anyio.move_on_after(route.happy_eyeballs_delay):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            await winner.abort()
        raise
    return winner


async def _attempt(
    endpoint: Endpoint, route: Route, attempts: list[ConnectError]
) -> Transport | None:
    try:
        transport = await _connect(endpoint, route)
        try:
            error = _recheck(transport, endpoint, route.policy)
        except BaseException:  # a stream of AnyIO's asks the kernel, which may know no more
            await transport.abort()
            raise
    except ConnectError as exc:
        attempts.append(fresh(exc))
        return None
    except OSError as exc:
        attempts.append(attempt_failed(str(endpoint), exc))
        return None
    if error is not None:
        attempts.append(error)
        await transport.abort()
        return None
    return transport


async def _connect(endpoint: Endpoint, route: Route) -> Transport:
    sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if route.local_host is not None:
            _bind(sock, route.local_host, endpoint)
        error = None
        try:
            sock.connect(endpoint.sockaddr)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                error = OSError(code, os.strerror(code))
                if code not in _RESET:
                    raise fresh(error) from None  # a frame that has its own error is a cycle
        return TCPTransport(sock, remote=endpoint.sockaddr, error=error)
    except NotImplementedError:
        # No waiting for sockets on this platform's event loop: AnyIO's own stream it is.
        sock.close()
        host, port = host_and_port(endpoint.sockaddr)
        try:
            stream = await anyio.connect_tcp(host, port, local_host=route.local_host)
        except OSError as exc:
            raise fresh(_kernels(exc)) from None
        return ForeignTransport(stream)
    except BaseException:
        sock.close()
        raise


def _kernels(exc: OSError) -> OSError:
    """The kernel's error behind "All connection attempts failed", which has no number."""
    cause: Any = exc.__cause__
    while hasattr(cause, "exceptions"):  # a group of one for each address, of which there is one
        cause = cause.exceptions[0]
    return cause if isinstance(cause, OSError) else exc


def _bind(sock: socket.socket, local_host: str, endpoint: Endpoint) -> None:
    if sys.platform == "linux":
        # Without it, bind() takes a port for this connection alone, wherever that goes. So the
        # kernel chooses one in connect(), where one port serves for any number of destinations.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    try:
        found = socket.getaddrinfo(
            local_host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        sock.bind(found[0][4])
    except OSError as exc:
        raise cannot_bind(str(endpoint), local_host, exc) from exc
