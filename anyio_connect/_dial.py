"""Connect to a host name and a port: resolve, judge, and dial (RFC 8305)."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from inspect import isawaitable
from ipaddress import ip_address
from typing import Any, NamedTuple

import anyio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._address import IPV4, SocketAddress, format_address
from ._copies import fresh
from ._dial_errors import (
    attempt_failed,
    bad_answer,
    badly_prepared,
    cannot_bind,
    dial_failed,
    dial_timed_out,
    dialer_failed,
    forbidden,
    loop,
    needs_zone,
    no_family,
    no_lookup,
    no_such_zone,
    none_allowed,
    not_judged,
    not_resolved,
    perhaps_loop,
    prepare_failed,
    resolve_failed,
    system_error,
)
from ._dialer import Dialer, reach
from ._errors import ConnectError, ConnectTimeoutError, LoopError, ResolveError, SocketError
from ._keepalive import KEEP_ALIVE, keep_alive
from ._log import log
from ._loops import leads_back
from ._options import Options
from ._policy import UNRESTRICTED, AddressPolicy, judges_addresses, parts_of
from ._readiness import Loop, here
from ._resolver import Resolver, ask
from ._tcp import TCPTransport, host_and_port
from ._threads import NoThreadError, Threads
from ._transport import ForeignTransport, Transport

#: The most addresses of a name that are judged and dialled, and so the most sockets that one dial
#: has at a time. A DNS server may return any number of addresses.
MOST_ADDRESSES = 64

#: How many policies of a chain judge an address before other tasks get to run.
_AT_A_TIME = 16

#: RFC 8305 section 5, "Connection Attempt Delay", in seconds.
HAPPY_EYEBALLS_DELAY = 0.25

#: The kernel's errors for a connection that was made and then reset, before we asked. Data that
#: the peer sent before the reset can still be received. EPIPE: the peer had ended before the
#: reset. (If a reset refuses a connection, the error is ECONNREFUSED.)
_RESET = frozenset({errno.ECONNRESET, errno.EPIPE})

#: ip(7); Python has a name for it only since 3.12.
_IP_BIND_ADDRESS_NO_PORT = 24

#: The first byte of TCP_INFO is the state of a TCP socket. This is that of an unused one
#: (linux/tcp.h).
_TCP_CLOSE = 7


#: The type of new sockets: non-blocking from the start, if the system supports that.
_NON_BLOCKING = getattr(socket, "SOCK_NONBLOCK", 0)
_NEW = socket.SOCK_STREAM | _NON_BLOCKING


class Route(NamedTuple):
    """How to dial: the options of a ``Connector`` that concern dialling."""

    policy: AddressPolicy = UNRESTRICTED
    happy_eyeballs_delay: float = HAPPY_EYEBALLS_DELAY
    local_host: str | None = None
    #: The keep_alive option of the socket that is dialled, in seconds: see _keepalive.
    keep_alive: float = KEEP_ALIVE
    dialer: Dialer | None = None
    resolver: Resolver | None = None
    prepare: Callable[[socket.socket], object] | None = None

    def for_socket(self, options: Options) -> Route:
        """Return the route with what the options of one socket say about dialling."""
        if options.keep_alive == self.keep_alive:
            return self
        return self._replace(keep_alive=options.keep_alive)

    @property
    def is_plain(self) -> bool:
        """Whether all it does with an IP address is to connect: see :func:`begin`."""
        # Only names use these two fields. A route with any other value that is not the default is
        # not plain, so a new field needs no change here.
        given = self._replace(happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY, resolver=None)
        return all(value is default for value, default in zip(given, Route(), strict=True))


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


async def forbid(address: SocketAddress, policy: AddressPolicy) -> None:
    """Refuse a forbidden port or IP address before any I/O. This is a checkpoint.

    :raises AddressNotAllowedError: the policy forbids the address
    :raises LoopError: this process listens on the address
    """
    await checkpoint()
    where = format_address(*address)
    try:
        why = policy.port_refusal(address.port)
    except Exception as exc:
        raise none_allowed(where, [not_judged(where, exc)]) from exc
    if why is not None:
        raise none_allowed(where, [forbidden(where, why)])
    found = _literal(address)
    refused: list[ConnectError] = []
    await _allowed(found, policy, refused)
    if refused:
        raise none_allowed(where, refused)


class Begun(NamedTuple):
    """A connection that the kernel is making or has made."""

    endpoint: Endpoint
    sock: socket.socket
    limit: int  #: the TCP_USER_TIMEOUT of the socket
    unused: bool  #: no other code has had the socket, so nothing was sent on it


class Failed(NamedTuple):
    """An attempt to connect that failed without waiting."""

    endpoint: Endpoint
    error: ConnectError


def begin(address: SocketAddress, route: Route, loop: Loop) -> Transport | Begun | Failed | None:
    """Begin to connect to an IP address that need not be judged. Does not wait.

    ``route`` is a plain one, with the options of this socket. Returns None if nothing was tried,
    because the address is a name or has an unknown zone. :func:`dial` continues with any other
    result that is not a transport.
    """
    if not IPV4.fullmatch(address.hostname) and ":" not in address.hostname:
        return None
    try:
        (endpoint,) = _literal(address)
    except Exception:  # noqa: BLE001  # dial() meets the same error, and reports it
        return None
    if log.debugs:
        log.debug("%s: trying %s", format_address(*address), endpoint)
    try:
        begun = _set_out(endpoint, route)
        try:
            return connected(begun, loop) or begun
        except BaseException:
            begun.sock.close()
            raise
    except Exception as exc:  # noqa: BLE001
        return Failed(endpoint, _error_of(endpoint, exc))


def connected(begun: Begun, loop: Loop) -> Transport | None:
    """Return the transport if the connection is made; None if it is not made yet, or failed.

    On short distances, a connection is often made by the time that connect() returns.
    """
    if not loop.native:  # this event loop may be unable to wait for sockets
        return None
    try:
        # Unlike a second connect(), this does not consume the error of a reset.
        peer = begun.sock.getpeername()
    except OSError:
        return None
    ready = loop.readiness(begun.sock)
    return TCPTransport(begun.sock, ready, peer=peer, limit=begun.limit, unused=begun.unused)


class Progress:
    """How far a dial has got. The caller has it, so that it is not lost by a cancellation."""

    def __init__(self, address: SocketAddress, begun: Begun | Failed | None = None) -> None:
        self.address = address
        self.begun = begun  # the first attempt, if begin() has made it
        self.resolved = False
        self.left_out = 0  # the number of addresses beyond MOST_ADDRESSES
        self.refused: list[ConnectError] = []  # one for each address that the policy refused
        self.untried: list[Endpoint] = []  # to be dialled, in order
        self.silent: list[Endpoint] = []  # being dialled, without an answer yet
        self.attempts: list[ConnectError] = []  # one for each failed attempt, in order
        self.told: SocketError | None = None  # a dialer's own error for the last failed attempt

    def __str__(self) -> str:
        return format_address(*self.address)

    def failed(self, endpoint: Endpoint, error: ConnectError) -> None:
        self.silent.remove(endpoint)
        self.attempts.append(error)
        if log.debugs:
            log.debug("%s: %s", self, error)

    def failure(self) -> SocketError:
        """The error of a dial if all attempts have failed."""
        attempts = tuple(self.attempts)
        if self.told is not None and len(attempts) == 1:
            return fresh(self.told)
        return dial_failed(str(self), self.address.port, attempts, self.refused, self.left_out)

    def too_late(self, seconds: float) -> ConnectTimeoutError:
        """The error of a dial that took longer than ``seconds``."""
        if not self.resolved:
            return not_resolved(str(self), self.address.port, seconds)
        return dial_timed_out(
            str(self),
            self.address.port,
            seconds,
            silent=self.silent,
            attempts=tuple(self.attempts),
            refused=self.refused,
            left_out=self.left_out + len(self.untried),
        )


async def dial(route: Route, progress: Progress) -> Transport:
    """Connect to the address of ``progress``: resolve it, then race the attempts (RFC 8305).

    The policy of ``route`` judges each IP address. Only the allowed addresses are dialled, and the
    name is not resolved again. The others are dropped: if a name has private and public addresses,
    the public ones are dialled. If there are more than ``MOST_ADDRESSES``, the rest is left out.

    Each failed attempt and each dropped address adds an error to ``progress``, which the caller
    can use even if the dial is cancelled. A cancelled dial leaves no socket behind.

    :raises AddressNotAllowedError: the policy allows none of the addresses
    :raises LoopError: all addresses lead back to this process
    :raises ConnectError: the name has no address, or all attempts failed
    :raises SocketError: the dialer's own error, if there was only one address
    """
    if progress.begun is not None:
        progress.resolved = True
        progress.untried = [progress.begun.endpoint]
    elif route.dialer is not None and not judges_addresses(route.policy):
        await checkpoint_if_cancelled()
        # The dialer gets the name: the remote network may know names that are unknown here.
        progress.resolved = True
        progress.untried = [Endpoint(socket.AF_UNSPEC, progress.address)]
    else:
        await find(route, progress)
    transport = await _race(route, progress)
    if transport is None:
        raise progress.failure()
    return transport


async def find(route: Route, progress: Progress) -> list[Endpoint]:
    """Resolve the address of ``progress``; return the endpoints to dial, in that order.

    They are stored in ``progress.untried`` as well.

    :raises AddressNotAllowedError: the policy allows none of the addresses
    :raises LoopError: all addresses lead back to this process
    :raises ConnectError: the name has no address, or none of the family of ``local_host``
    """
    await checkpoint_if_cancelled()
    if route.resolver is None:
        found = await resolve(progress.address)
    else:
        found, progress.left_out = await _have_resolved(route.resolver, progress.address)
    progress.resolved = True
    if len(found) > MOST_ADDRESSES:
        progress.left_out += len(found) - MOST_ADDRESSES
        found = _interleave(found)[:MOST_ADDRESSES]  # interleaved, to keep some of both families
    if log.debugs and str(found[0]) != str(progress):
        log.debug("%s: has %s", progress, found)
    endpoints = await _allowed(found, route.policy, progress.refused)
    if progress.refused and log.debugs:
        log.debug("%s: not dialled: %s", progress, progress.refused)
    if not endpoints:
        raise none_allowed(str(progress), progress.refused, progress.left_out)
    if route.local_host is not None:
        family = socket.AF_INET6 if ":" in route.local_host else socket.AF_INET
        endpoints = [endpoint for endpoint in endpoints if endpoint.family == family]
        if not endpoints:
            raise no_family(str(progress), route.local_host, progress.refused)
    progress.untried = _interleave(endpoints)
    return [*progress.untried]


async def _allowed(
    endpoints: list[Endpoint], policy: AddressPolicy, refused: list[ConnectError]
) -> list[Endpoint]:
    """The endpoints that the policy allows. It adds an error to ``refused`` for each other one.

    Other tasks run between two endpoints, because a long list of rules takes time.
    """
    if policy is UNRESTRICTED:
        return endpoints
    allowed: list[Endpoint] = []
    for number, endpoint in enumerate(endpoints):
        if number:
            await checkpoint()
        error = await _vet(endpoint, policy)
        if error is None:
            allowed.append(endpoint)
        else:
            refused.append(error)
    return allowed


def _literal(address: SocketAddress) -> list[Endpoint]:
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


#: How many names may be looked up at the same time.
_lookups = Threads("look up names", 64)


async def getaddrinfo(host: str, port: int) -> Any:
    """``socket.getaddrinfo()`` for TCP, in a thread of this package."""
    # Bytes, because Python would load its IDNA codec for a str.
    name = host.encode()
    return await _lookups.run(lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))


async def resolve(address: SocketAddress) -> list[Endpoint]:
    """Return all endpoints of ``address``, at least one.

    :raises ResolveError: the name has no address, or could not be looked up
    """
    if endpoints := _literal(address):
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


async def _have_resolved(resolver: Resolver, address: SocketAddress) -> tuple[list[Endpoint], int]:
    """Like :func:`resolve`, by the user's resolver.

    Returns the endpoints, and how many more addresses the resolver named.

    :raises ResolveError: the resolver returned no address or an invalid one, or it failed
    """
    if endpoints := _literal(address):
        return endpoints, 0
    host, port = address
    if log.debugs:
        log.debug("%s: asking the resolver", format_address(host, port))
    found, more = await ask(resolver, address)
    for ip in found:
        try:
            endpoints += _literal(SocketAddress(ip, port))
        except ResolveError as exc:  # the zone is unknown
            _, _, why = str(exc).partition(": ")
            raise bad_answer(host, port, ip, f"cannot be used: {why}") from exc.__cause__
        except ValueError as exc:  # the zone has invalid characters
            raise bad_answer(host, port, ip, "is not an IP address") from exc
    return list(dict.fromkeys(endpoints)), more


def _endpoints(found: Any) -> list[Endpoint]:
    endpoints = [
        Endpoint(family, sockaddr)
        for family, _, _, _, sockaddr in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]
    return list(dict.fromkeys(endpoints))


async def _vet(endpoint: Endpoint, policy: AddressPolicy) -> ConnectError | None:
    """The error if ``policy`` forbids ``endpoint``. A long chain of policies has checkpoints."""
    parts = parts_of(policy)
    if len(parts) <= _AT_A_TIME:
        return _judge(endpoint, policy)
    for number, part in enumerate(parts, 1):
        if error := _judge(endpoint, part):
            return error
        if not number % _AT_A_TIME:
            await checkpoint()
    return None


def _judge(endpoint: Endpoint, policy: AddressPolicy) -> ConnectError | None:
    try:  # the policy may be a user's subclass, which may raise anything
        why = policy.refusal(*endpoint.sockaddr[:2])
        loops_refused = policy.loops_refused
    except Exception as exc:  # noqa: BLE001
        return not_judged(str(endpoint), exc)
    try:
        if loops_refused and leads_back(endpoint.sockaddr):
            return loop(str(endpoint), "this process itself listens there")
    except ValueError:  # the endpoint is not an IP address
        why = why or "it is not an IP address"
    except OSError as exc:
        if why is None:
            return perhaps_loop(str(endpoint), exc)
    return None if why is None else forbidden(str(endpoint), why)


async def _recheck(
    transport: Transport, endpoint: Endpoint, policy: AddressPolicy
) -> ConnectError | None:
    """Judge the address that the kernel reports for a connection that was made."""
    if policy is UNRESTRICTED:
        return None
    remote = transport.extra(SocketAttribute.remote_address, None)
    if not isinstance(remote, tuple):
        return forbidden(str(endpoint), "the system does not say where the connection leads")
    if policy.loops_refused and remote == transport.extra(SocketAttribute.local_address, None):
        # The kernel chose the dialled port as our own port: a TCP simultaneous open.
        return loop(str(endpoint), "the socket was connected to itself")
    error = await _vet(Endpoint(endpoint.family, remote), policy)
    if error is None or isinstance(error, LoopError):
        return error
    found = forbidden(str(endpoint), f"the connection leads to {error}")
    found.__cause__ = error.__cause__
    return found


def _interleave(endpoints: list[Endpoint]) -> list[Endpoint]:
    """Alternate the address families, beginning with that of the first (RFC 8305 section 4)."""
    first = [e for e in endpoints if e.family == endpoints[0].family]
    other = [e for e in endpoints if e.family != endpoints[0].family]
    mixed = [e for pair in zip(first, other, strict=False) for e in pair]
    return mixed + first[len(other) :] + other[len(first) :]


async def _race(route: Route, progress: Progress) -> Transport | None:
    if len(progress.untried) == 1:  # the common case, without a task group
        return await _attempt(route, progress)

    winner: Transport | None = None
    failed = anyio.Event()

    async def run() -> None:
        nonlocal winner
        transport = await _attempt(route, progress)
        if transport is None:
            failed.set()
        elif winner is None:
            winner = transport
            group.cancel_scope.cancel()
        else:
            await transport.abort()

    try:
        async with anyio.create_task_group() as group:
            for _ in [*progress.untried]:
                failed = anyio.Event()
                group.start_soon(run)
                with anyio.move_on_after(route.happy_eyeballs_delay):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            await winner.abort()
        raise
    return winner


async def _attempt(route: Route, progress: Progress) -> Transport | None:
    """Try the next address; return None if that fails."""
    endpoint = progress.untried.pop(0)
    progress.silent.append(endpoint)
    begun, progress.begun = progress.begun, None
    if isinstance(begun, Failed):
        progress.failed(endpoint, begun.error)
        return None
    if log.debugs and begun is None:
        log.debug("%s: trying %s", progress, endpoint)
    if route.dialer is not None:
        return await _have_dialled(route.dialer, endpoint, progress)
    try:
        transport = await _connect(endpoint, route, begun)
        try:
            error = await _recheck(transport, endpoint, route.policy)
        except BaseException:  # AnyIO's stream asks the kernel for its addresses, which may fail
            await transport.abort()
            raise
    except Exception as exc:  # noqa: BLE001
        progress.failed(endpoint, _error_of(endpoint, exc))
        return None
    if error is not None:
        progress.failed(endpoint, error)
        await transport.abort()
        return None
    return transport


async def _have_dialled(
    dialer: Dialer, endpoint: Endpoint, progress: Progress
) -> Transport | None:
    """Let a dialer try an address. The address of its stream is not judged: it was chosen here."""
    try:
        # This fails if no interface has the number of the zone.
        address = SocketAddress(*host_and_port(endpoint.sockaddr))
        return await reach(dialer, address)
    except SocketError as exc:
        progress.told = error = fresh(exc)
        if not isinstance(error, ConnectError):
            error = dialer_failed(str(endpoint), exc)
    except Exception as exc:  # noqa: BLE001  # foreign code may raise anything
        error = dialer_failed(str(endpoint), exc)
    progress.failed(endpoint, error)
    return None


def _error_of(endpoint: Endpoint, exc: Exception) -> ConnectError:
    """The ``ConnectError`` for the exception of a failed attempt."""
    if isinstance(exc, ConnectError):
        return fresh(exc)
    failed = needs_zone if _lacks_zone(endpoint) else attempt_failed
    return failed(str(endpoint), exc)


def _lacks_zone(endpoint: Endpoint) -> bool:
    host, _, *rest = endpoint.sockaddr
    return rest[1:] == [0] and ip_address(host).is_link_local


def _set_out(endpoint: Endpoint, route: Route) -> Begun:
    """Make a socket and start to connect it. Does not wait.

    :raises OSError: the attempt has failed already
    :raises ConnectError: the socket could not be prepared or bound
    """
    sock = socket.socket(endpoint.family, _NEW)
    try:
        if not _NON_BLOCKING:
            sock.setblocking(False)
        limit = keep_alive(sock, route.keep_alive)
        if route.prepare is not None:
            _prepare(sock, route.prepare, endpoint)
        if route.local_host is not None:
            _bind(sock, route.local_host, endpoint)
        try:  # noqa: SIM105  # suppress() would be one more object for each connection
            sock.connect(endpoint.sockaddr)
        except BlockingIOError:
            pass  # the connection is under way
    except BaseException:
        sock.close()
        raise
    return Begun(endpoint, sock, limit, route.prepare is None)


async def _connect(endpoint: Endpoint, route: Route, begun: Begun | None) -> Transport:
    made_here = begun is None  # otherwise, begin() has checked whether it is connected already
    begun = begun or _set_out(endpoint, route)
    sock = begun.sock
    try:
        transport = connected(begun, here()) if made_here else None
        if transport is not None:
            await checkpoint()
            return transport
        await anyio.wait_writable(sock)
        error = None
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            error = OSError(code, os.strerror(code))
            if code not in _RESET:
                raise fresh(error) from None  # noqa: TRY301  # a copy, to avoid a reference cycle
        return TCPTransport(
            sock,
            remote=endpoint.sockaddr,
            error=error,
            limit=begun.limit,
            unused=begun.unused,
        )
    except NotImplementedError:
        # The event loop cannot wait for sockets (asyncio's proactor loop): use AnyIO's stream.
        sock.close()
        if route.prepare is not None:
            why = "is not possible: this event loop creates its sockets itself"
            raise badly_prepared(str(endpoint), why) from None
        host, port = host_and_port(endpoint.sockaddr)
        try:
            stream = await anyio.connect_tcp(host, port, local_host=route.local_host)
        except OSError as exc:
            raise fresh(system_error(exc)) from None
        made = stream.extra(SocketAttribute.raw_socket, None)
        if made is not None:
            keep_alive(made, route.keep_alive)
        return ForeignTransport(stream)
    except BaseException:
        sock.close()
        raise


def _prepare(
    sock: socket.socket, prepare: Callable[[socket.socket], object], endpoint: Endpoint
) -> None:
    """Let the user's ``prepare`` set socket options, and check what it did."""
    number = sock.fileno()
    try:
        answer: Any = prepare(sock)
    except Exception as exc:
        raise prepare_failed(str(endpoint), exc) from exc
    if isawaitable(answer):
        getattr(answer, "close", bool)()  # avoids the warning about a coroutine never awaited
        raise badly_prepared(str(endpoint), "is async, and is never awaited: write it with 'def'")
    if sock.fileno() != number:
        raise badly_prepared(str(endpoint), "closed or detached the socket, which is not its own")
    if _is_used(sock):  # the policy has not judged where it leads
        raise badly_prepared(str(endpoint), "connected the socket, or made it listen")
    sock.setblocking(False)  # in case `prepare` has changed that


def _is_used(sock: socket.socket) -> bool:
    """Whether a socket is connected, is about to be, or listens."""
    if sys.platform == "linux":
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _bind(sock: socket.socket, local_host: str, endpoint: Endpoint) -> None:
    if sys.platform == "linux":
        # Without this option, bind() reserves a port for this socket alone. With it, the kernel
        # chooses the port in connect(), and one port can serve several destinations.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    try:
        found = socket.getaddrinfo(
            local_host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        sock.bind(found[0][4])
    except OSError as exc:
        raise cannot_bind(str(endpoint), local_host, exc) from exc
