"""``listen()``: the inbound half, each accepted connection a ``Socket``."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
from anyio import abc
from anyio.abc import SocketAttribute, TaskGroup
from anyio.lowlevel import checkpoint

from ._address import SocketAddress, format_address, parse_address
from ._dial import Endpoint, resolve
from ._errors import cannot_listen
from ._loops import announce, withdraw
from ._open import Accepted, Target
from ._options import Options, check_count, parse_options
from ._socket import Socket
from ._tcp import TCPTransport, host_and_port

#: What accept() fails with when there is too little of something, which may come back.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
#: What it fails with for one connection, which is gone. EPERM: a firewall. The rest are errors
#: that were pending on that connection (accept(2)); not every system has them all.
_GONE = frozenset(
    getattr(errno, name, errno.ECONNABORTED)
    for name in (
        *("ECONNABORTED", "EPERM", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET"),
        *("EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ETIMEDOUT", "ECONNRESET"),
    )
)
#: How long to wait where something is exhausted, in seconds.
_PAUSE = 0.1
_FREE_PORT_TRIES = 10
_BACKLOG = 65536


async def listen(
    address: str | SocketAddress | tuple[str, int],
    *,
    allow_half_open: bool | None = None,
    backlog: int | None = None,
) -> Listener:
    """Listen at ``address``; each connection that is accepted becomes a :class:`Socket`.

    ``address`` is as for ``connect()``, and its port may be 0: one that is free. A name is
    listened to at all its addresses; for every address of the machine, write ``"0.0.0.0:80"``
    or ``"[::]:80"``, each for its own family. ``allow_half_open`` is as for ``connect()``.
    ``backlog``: how many connections the kernel keeps until they are accepted, at most; 65536,
    or what the system allows, unless given.

    Plain TCP only. For TLS, ``anyio.streams.tls.TLSListener(listener, ssl_context)``, whose
    handlers get AnyIO's ``TLSStream``.

    While it listens, a ``Connector`` whose policy refuses loops does not connect to it from
    this process. Cancelled, it leaves nothing behind.

    :raises InvalidAddressError: the address names no TCP endpoint
    :raises InvalidOptionError: an option has a bad value
    :raises ResolveError: the name has no address
    :raises ListenError: it cannot be listened there
    """
    where = parse_address(address, lowest_port=0)
    options = parse_options({"allow_half_open": allow_half_open})
    if backlog is None:
        backlog = _BACKLOG
    check_count("backlog", backlog)
    await checkpoint()
    endpoints = await resolve(where)
    # A port that is free at one address need not be at the next.
    tries = 1 if where.port else _FREE_PORT_TRIES
    while True:
        tries -= 1
        try:
            return Listener(_bind(endpoints, where.port, min(backlog, 2**31 - 1)), options)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not tries:
                raise cannot_listen(format_address(*where), exc) from exc


def _bind(endpoints: list[Endpoint], port: int, backlog: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, sockaddr in endpoints:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setblocking(False)
            if sys.platform == "win32":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((sockaddr[0], port, *sockaddr[2:]))
            sock.listen(backlog)
            port = sock.getsockname()[1]
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _log_exhausted(error: OSError) -> None:
    import logging  # here, because hardly anybody needs it, and it imports much

    logger = logging.getLogger(__name__.partition(".")[0])
    logger.error("accept() failed; trying again in %g seconds", _PAUSE, exc_info=error)


class Listener(abc.Listener[Socket]):
    """What ``listen()`` returns. It has no public constructor; close it, or ``async with`` it."""

    def __init__(self, sockets: list[socket.socket], options: Options) -> None:
        self._sockets = sockets
        self._names = [host_and_port(sock.getsockname()) for sock in sockets]
        self._options = options
        self._closed = False
        self._waited_for: set[socket.socket] = set()
        self._serving = anyio.ResourceGuard("serving")
        for sock in sockets:
            announce(sock)

    @property
    def addresses(self) -> list[str]:
        """Where it listens: ``"ip:port"``, IPv6 in brackets, one or more."""
        return [format_address(*name) for name in self._names]

    async def serve(
        self, handler: Callable[[Socket], Any], task_group: TaskGroup | None = None
    ) -> None:
        """Accept connections until cancelled or closed; run ``handler`` in a task for each.

        The socket is open, and it is the handler's to close. An exception that a handler lets
        out ends its task group: ``task_group``, or one around this call. When this process has
        run out of descriptors or memory, that is logged, and accepting goes on a little later.

        :raises anyio.ClosedResourceError: the listener was closed, and the tasks in the group
            around this call have ended
        :raises anyio.BusyResourceError: another task serves already
        """
        with self._serving:
            async with AsyncExitStack() as stack:
                if task_group is None:
                    task_group = await stack.enter_async_context(anyio.create_task_group())
                async with anyio.create_task_group() as accepting:
                    for sock in self._sockets:
                        accepting.start_soon(self._serve, sock, handler, task_group)
        raise anyio.ClosedResourceError

    async def _serve(
        self, sock: socket.socket, handler: Callable[[Socket], Any], group: TaskGroup
    ) -> None:
        while accepted := await self._accept(sock):
            try:
                transport = TCPTransport(accepted)
            except OSError:  # it has gone already
                accepted.close()
                continue
            remote: Any = transport.extra(SocketAttribute.remote_address)
            target = Target(SocketAddress(*remote), self._options)
            ours = Socket(Accepted(transport), target)
            await ours.opened  # which waits for nothing
            try:
                group.start_soon(handler, ours)
            except BaseException:  # the group is no more
                await transport.abort()
                raise

    async def _accept(self, sock: socket.socket) -> socket.socket | None:
        await checkpoint()
        while not self._closed:
            try:
                accepted, _ = sock.accept()
            except BlockingIOError:
                await self._wait(sock)
            except OSError as exc:
                if exc.errno in _EXHAUSTED:
                    _log_exhausted(exc)
                    await anyio.sleep(_PAUSE)
                elif exc.errno not in _GONE:
                    raise
            else:
                accepted.setblocking(False)
                return accepted
        return None

    async def _wait(self, sock: socket.socket) -> None:
        # The number stays taken until the waiter is out: see TaskReadiness.
        self._waited_for.add(sock)
        try:
            with suppress(anyio.ClosedResourceError):
                await anyio.wait_readable(sock)
        finally:
            self._waited_for.discard(sock)
            if self._closed:
                sock.close()

    async def aclose(self) -> None:
        """Stop listening. Connections that were accepted go on. Done even when cancelled."""
        if not self._closed:
            self._closed = True
            for sock in self._sockets:
                withdraw(sock)
                anyio.notify_closing(sock)
                if sock not in self._waited_for:
                    sock.close()
        await checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's ``SocketAttribute``: of the first address, where there are several."""
        return {
            SocketAttribute.family: lambda: self._sockets[0].family,
            SocketAttribute.local_address: lambda: self._names[0],
            SocketAttribute.local_port: lambda: self._names[0][1],
            SocketAttribute.raw_socket: lambda: self._sockets[0],
        }
