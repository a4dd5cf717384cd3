"""From a host name and port to a connected transport."""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from ._address import SocketAddress, format_address
from ._errors import ConnectError, attempt_failed, dial_failed, no_such_zone, resolve_failed
from ._transport import ForeignTransport, TCPTransport, Transport, host_and_port

#: RFC 8305 section 5, "Connection Attempt Delay", in seconds.
HAPPY_EYEBALLS_DELAY = 0.25


class Endpoint(NamedTuple):
    """One resolved address to try."""

    family: int
    sockaddr: tuple[Any, ...]

    def __str__(self) -> str:
        return format_address(*host_and_port(self.sockaddr))


async def dial(address: SocketAddress, attempts: list[ConnectError]) -> Transport:
    """Connect to ``address``: resolve it, then race what it resolves to (RFC 8305).

    Each attempt that fails adds an error to ``attempts``, which the caller owns: it is wanted
    even where a cancellation ends the dial. Cancelled, it leaves no socket behind.

    :raises ConnectError: the name has no address, or no address could be connected to
    """
    await checkpoint_if_cancelled()
    endpoints = _interleave(await _resolve(address))
    transport = await _race(endpoints, attempts)
    if transport is None:
        raise dial_failed(format_address(*address), address.port, tuple(attempts))
    return transport


async def _resolve(address: SocketAddress) -> list[Endpoint]:
    host, port = address
    try:
        # A literal needs no resolver, and this call keeps an IPv6 zone, which AnyIO's drops.
        found: Any = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except socket.gaierror as exc:
        if ":" in host:  # IPv6, and parse_address() has checked all but the zone
            raise no_such_zone(host, exc) from exc
        try:
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            raise resolve_failed(host, port, exc) from exc
    endpoints = [
        Endpoint(family, sockaddr)
        for family, _, _, _, sockaddr in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]
    if not endpoints:
        raise resolve_failed(host, port, None)
    return list(dict.fromkeys(endpoints))


def _interleave(endpoints: list[Endpoint]) -> list[Endpoint]:
    """Alternate the address families, beginning with the resolver's choice (RFC 8305 4)."""
    first = [e for e in endpoints if e.family == endpoints[0].family]
    other = [e for e in endpoints if e.family != endpoints[0].family]
    mixed = [e for pair in zip(first, other, strict=False) for e in pair]
    return mixed + first[len(other) :] + other[len(first) :]


async def _race(endpoints: list[Endpoint], attempts: list[ConnectError]) -> Transport | None:
    if len(endpoints) == 1:  # the common case, without a task group
        return await _attempt(endpoints[0], attempts)

    winner: Transport | None = None
    failed = anyio.Event()

    async def run(endpoint: Endpoint) -> None:
        nonlocal winner
        transport = await _attempt(endpoint, attempts)
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
                with anyio.move_on_after(HAPPY_EYEBALLS_DELAY):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            await winner.abort()
        raise
    return winner


async def _attempt(endpoint: Endpoint, attempts: list[ConnectError]) -> Transport | None:
    try:
        return await _connect(endpoint)
    except OSError as exc:
        attempts.append(attempt_failed(str(endpoint), exc))
        return None


async def _connect(endpoint: Endpoint) -> Transport:
    sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.connect(endpoint.sockaddr)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
        return TCPTransport(sock)
    except NotImplementedError:
        # No waiting for sockets on this platform's event loop: AnyIO's own stream it is.
        sock.close()
        host, port = host_and_port(endpoint.sockaddr)
        return ForeignTransport(await anyio.connect_tcp(host, port))
    except BaseException:
        sock.close()
        raise
