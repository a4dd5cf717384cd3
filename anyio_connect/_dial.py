"""Connect to a host name and a port: find its addresses, and race them (RFC 8305)."""

from __future__ import annotations

import socket

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from ._address import SocketAddress, format_address
from ._copies import fresh
from ._dial_errors import (
    dial_failed,
    dial_timed_out,
    dialer_failed,
    no_family,
    none_allowed,
    not_resolved,
)
from ._dialer import Dialer, reach
from ._errors import ConnectError, ConnectTimeoutError, SocketError
from ._judging import keep_allowed, recheck
from ._log import log
from ._lookup import Endpoint, have_resolved, resolve
from ._policy import judges_addresses
from ._route import Route
from ._tcp import host_and_port
from ._tcp_connect import Begun, Failed, connect, error_of
from ._transport import Transport

#: The most addresses of a name that are judged and dialled, and so the most sockets that one dial
#: has at a time. A DNS server may return any number of addresses.
MOST_ADDRESSES = 64


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
        found, progress.left_out = await have_resolved(route.resolver, progress.address)
    progress.resolved = True
    if len(found) > MOST_ADDRESSES:
        progress.left_out += len(found) - MOST_ADDRESSES
        found = _interleave(found)[:MOST_ADDRESSES]  # interleaved, to keep some of both families
    if log.debugs and str(found[0]) != str(progress):
        log.debug("%s: has %s", progress, found)
    endpoints = await keep_allowed(found, route.policy, progress.refused)
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
        transport = await connect(endpoint, route, begun)
        try:
            error = await recheck(transport, endpoint, route.policy)
        except BaseException:  # AnyIO's stream asks the kernel for its addresses, which may fail
            await transport.abort()
            raise
    except Exception as exc:  # noqa: BLE001
        progress.failed(endpoint, error_of(endpoint, exc))
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
