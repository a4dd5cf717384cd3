"""One attempt to connect: make a TCP socket, set its options, and connect it to an endpoint."""

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
from anyio.lowlevel import checkpoint

from ._address import IPV4, SocketAddress, format_address
from ._copies import fresh
from ._dial_errors import (
    attempt_failed,
    badly_prepared,
    cannot_bind,
    needs_zone,
    prepare_failed,
    system_error,
)
from ._errors import ConnectError
from ._keepalive import keep_alive
from ._log import log
from ._lookup import Endpoint, literal
from ._readiness import Loop, here
from ._route import Route
from ._tcp import TCPTransport, host_and_port
from ._transport import ForeignTransport, Transport

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
    because the address is a name or has an unknown zone. :func:`_dial.dial` continues with any
    other result that is not a transport.
    """
    if not IPV4.fullmatch(address.hostname) and ":" not in address.hostname:
        return None
    try:
        (endpoint,) = literal(address)
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
        return Failed(endpoint, error_of(endpoint, exc))


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


async def connect(endpoint: Endpoint, route: Route, begun: Begun | None) -> Transport:
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


def error_of(endpoint: Endpoint, exc: Exception) -> ConnectError:
    """The ``ConnectError`` for the exception of a failed attempt."""
    if isinstance(exc, ConnectError):
        return fresh(exc)
    failed = needs_zone if _lacks_zone(endpoint) else attempt_failed
    return failed(str(endpoint), exc)


def _lacks_zone(endpoint: Endpoint) -> bool:
    host, _, *rest = endpoint.sockaddr
    return rest[1:] == [0] and ip_address(host).is_link_local
