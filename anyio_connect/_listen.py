"""``listen()``: accept connections, each of them as a ``Socket``."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any

import anyio
from anyio import abc
from anyio.abc import SocketAttribute, TaskGroup
from anyio.lowlevel import checkpoint

from ._address import SocketAddress, format_address, parse_address
from ._errors import ListenError, SocketError, cannot_accept, cannot_listen, text_of
from ._keepalive import keep_alive as set_keep_alive
from ._log import log
from ._lookup import Endpoint, resolve
from ._loops import announce, withdraw
from ._open import Accepted
from ._options import Options, check_count, parse_options
from ._readiness import readiness, until_readable
from ._socket import Socket
from ._target import Target
from ._tcp import TCPTransport, host_and_port

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # installed with AnyIO on these versions

#: Temporary errors of accept(): the process or the system has run out of a resource.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
#: Errors of accept() that concern a single connection, which is lost. EPERM comes from a firewall.
#: The others were pending errors of that connection (accept(2)). Some systems lack some of them.
_GONE = frozenset(
    getattr(errno, name, errno.ECONNABORTED)
    for name in (
        *("ECONNABORTED", "EPERM", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET"),
        *("EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ETIMEDOUT", "ECONNRESET"),
    )
)
#: Errors of bind() for an address, or a family of addresses, that this machine does not have.
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
#: Exceptions of a handler that its client may have caused.
_OF_ONE_CLIENT = (
    SocketError,
    *(anyio.EndOfStream, anyio.IncompleteRead, anyio.DelimiterNotFound),
    *(anyio.BrokenResourceError, anyio.ClosedResourceError),
)
#: How long to wait before the next accept() if a resource is exhausted, in seconds.
_PAUSE = 0.1
_FREE_PORT_TRIES = 10
_BACKLOG = 65536


async def listen(
    address: str | SocketAddress | tuple[str, int],
    *,
    allow_half_open: bool | None = None,
    close_timeout: float | None = None,
    keep_alive: float | None = None,
    backlog: int | None = None,
) -> Listener:
    """Listen at ``address``. Each accepted connection becomes a :class:`Socket`.

    ``address``: as for ``connect()``, but port 0 stands for any free port. If it is a name, this
    listens at all addresses of the name that this machine has. To listen at all addresses of the
    machine, write ``"0.0.0.0:80"`` for IPv4 or ``"[::]:80"`` for IPv6.

    ``allow_half_open``, ``close_timeout``, ``keep_alive``: as for ``connect()``, for each accepted
    socket.

    ``backlog``: the maximum number of connections that the kernel keeps until they are accepted;
    65536 by default. The system may have a lower limit.

    For each option, None means the same as leaving it out.

    This is for plain TCP. For TLS, use ``anyio.streams.tls.TLSListener(listener, ssl_context)``,
    whose handlers get AnyIO's ``TLSStream``.

    While it listens, a ``Connector`` in this process whose policy refuses loops does not connect
    to it. A cancelled call leaves nothing behind.

    :raises InvalidAddressError: ``address`` is not the address of a TCP endpoint
    :raises InvalidOptionError: an option has a bad value
    :raises ResolveError: the name has no address
    :raises ListenError: the system does not allow listening there
    """
    where = parse_address(address, lowest_port=0)
    options = parse_options(
        {
            "allow_half_open": allow_half_open,
            "close_timeout": close_timeout,
            "keep_alive": keep_alive,
        }
    )
    if backlog is None:
        backlog = _BACKLOG
    check_count("backlog", backlog)
    await checkpoint()
    endpoints = await resolve(where)
    # With several addresses, a port that is free at the first may be taken at the next.
    tries = 1 if where.port else _FREE_PORT_TRIES
    while True:
        tries -= 1
        try:
            return Listener(_bind(endpoints, where.port, min(backlog, 2**31 - 1)), options)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not tries:
                raise cannot_listen(format_address(*where), exc) from exc


def _bind(endpoints: list[Endpoint], port: int, backlog: int) -> list[socket.socket]:
    """Listen at those of the addresses that this machine has, all on the same port.

    :raises OSError: an address is in use or forbidden, or this machine has none of them
    """
    sockets: list[socket.socket] = []
    missing: list[OSError] = []
    with ExitStack() as opened:
        for family, sockaddr in endpoints:
            try:
                sock = _listening(family, (sockaddr[0], port, *sockaddr[2:]), backlog)
            except OSError as exc:
                if exc.errno not in _NOT_HERE:
                    raise
                missing.append(exc)
            else:
                sockets.append(opened.enter_context(sock))
                port = sock.getsockname()[1]
        if not sockets:
            raise missing.pop()
        opened.pop_all()
    return sockets


def _listening(family: int, sockaddr: tuple[Any, ...], backlog: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if sys.platform == "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(sockaddr)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


class Listener(abc.Listener[Socket]):
    """The result of ``listen()``; it has no public constructor. Close it or use ``async with``."""

    def __init__(self, sockets: list[socket.socket], options: Options) -> None:
        self._sockets = {sock: readiness(sock) for sock in sockets}
        self._names = [host_and_port(sock.getsockname()) for sock in sockets]
        self._options = options
        self._closed = anyio.Event()
        self._serving = anyio.ResourceGuard("serving")
        for sock in sockets:
            announce(sock)

    @property
    def addresses(self) -> list[str]:
        """The addresses that it listens at: one or more ``"ip:port"``, with IPv6 in brackets."""
        return [format_address(*name) for name in self._names]

    async def serve(
        self, handler: Callable[[Socket], Any], task_group: TaskGroup | None = None
    ) -> None:
        """Accept connections until cancelled or closed; run ``handler`` in a task for each.

        The handler gets an open socket and has to close it. It also gets connections that were
        reset before they were accepted: the peer's data can be received, and then
        :class:`BrokenError` is raised.

        Some exceptions may be caused by the client: a :class:`SocketError`, an exception of
        AnyIO's streams (``EndOfStream``, ``IncompleteRead``, ``DelimiterNotFound``,
        ``BrokenResourceError``, ``ClosedResourceError``), or an exception group that has only
        these. They end only the handler that raised them, and are logged as warnings with the
        peer's address, by ``logging.getLogger("anyio_connect")``. Any other exception of a handler
        ends its task group: ``task_group``, or else one that this call creates and waits for.

        If this process runs out of descriptors or memory, this is logged, and accepting is tried
        again a little later.

        :raises anyio.ClosedResourceError: the listener was closed, and the tasks in the group of
            this call have ended
        :raises anyio.BusyResourceError: another task is serving already
        :raises ListenError: accepting failed with a permanent error; the tasks in the group of
            this call were cancelled
        """
        failed: list[ListenError] = []  # raised at the end, outside of the exception groups
        with self._serving:
            async with AsyncExitStack() as stack:
                if task_group is None:
                    group = await stack.enter_async_context(anyio.create_task_group())
                else:
                    group = task_group
                async with anyio.create_task_group() as accepting:

                    async def serve(sock: socket.socket) -> None:
                        try:
                            await self._serve(sock, handler, group)
                        except ListenError as exc:
                            failed.append(exc)
                            accepting.cancel_scope.cancel()

                    for sock in self._sockets:
                        accepting.start_soon(serve, sock)
                if failed and task_group is None:
                    group.cancel_scope.cancel()
        if failed:
            raise failed.pop()
        raise anyio.ClosedResourceError

    async def _serve(
        self, sock: socket.socket, handler: Callable[[Socket], Any], group: TaskGroup
    ) -> None:
        while accepted := await self._accept(sock):
            await self._give(*accepted, handler, group)

    async def _give(
        self,
        connection: socket.socket,
        remote: Any,
        handler: Callable[[Socket], Any],
        group: TaskGroup,
    ) -> None:
        """Start the handler, which then has the only reference to the connection."""
        try:
            limit = set_keep_alive(connection, self._options.keep_alive)
            transport = TCPTransport(connection, remote=remote, limit=limit, unused=True)
        except (OSError, ValueError):  # it is lost: the system no longer knows its address
            connection.close()
            return
        peer: Any = transport.extra(SocketAttribute.remote_address)
        target = Target(SocketAddress(*peer), self._options)
        ours = Socket(Accepted(transport), target, None)
        try:
            # This does not wait. An accepted connection must reach the handler.
            with anyio.CancelScope(shield=True):
                await ours.opened
            group.start_soon(handle, handler, ours, str(target), name=f"serve {target}")
        except BaseException:  # the group has ended
            await transport.abort()
            raise

    async def _accept(self, sock: socket.socket) -> tuple[socket.socket, Any] | None:
        await checkpoint()
        exhausted = False
        while not self._closed.is_set():
            try:
                accepted, remote = sock.accept()
            except BlockingIOError:
                with suppress(anyio.ClosedResourceError):
                    await until_readable(self._sockets[sock])
            except OSError as exc:
                if exc.errno in _EXHAUSTED:
                    if not exhausted:
                        log.error(
                            f"accept() failed; trying again every {_PAUSE:g} seconds", error=exc
                        )
                    exhausted = True
                    with anyio.move_on_after(_PAUSE):
                        await self._closed.wait()
                elif exc.errno not in _GONE:
                    raise cannot_accept(", ".join(self.addresses), exc) from exc
            else:
                accepted.setblocking(False)
                return accepted, remote
        return None

    async def aclose(self) -> None:
        """Stop listening. Accepted connections stay open. A cancelled call still stops listening.

        Afterwards the port is free, and connections to it are refused. Connections that were not
        accepted yet are reset.
        """
        if not self._closed.is_set():
            self._closed.set()
            for sock, ready in self._sockets.items():
                withdraw(sock)
                ready.close()
        await checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's ``SocketAttribute``, for the first address if there are several."""
        first = next(iter(self._sockets))

        return {
            SocketAttribute.family: lambda: first.family,
            SocketAttribute.local_address: lambda: self._names[0],
            SocketAttribute.local_port: lambda: self._names[0][1],
            SocketAttribute.raw_socket: lambda: first,
        }


async def handle(handler: Callable[[Socket], Any], socket: Socket, peer: str) -> None:
    """Run a handler. An error that the client may have caused is logged and not raised."""
    try:
        await handler(socket)
    except _OF_ONE_CLIENT as exc:
        _log_end(peer, exc)
    except BaseExceptionGroup as group:
        ours, others = group.split(_OF_ONE_CLIENT)
        cancelled = anyio.get_cancelled_exc_class()
        if ours is None or (others is not None and others.split(cancelled)[1] is not None):
            raise
        _log_end(peer, ours)
        if others is not None:
            raise others from None  # cancellations only: a client must not turn them into an error


def _log_end(peer: str, error: BaseException) -> None:
    first = error
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    kind = type(first).__name__
    log.warning("the handler of %s ended with %s: %s", peer, kind, text_of(first))
    if log.debugs:
        log.debug("the handler of %s ended with this", peer, error=error)
