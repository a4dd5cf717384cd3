"""``Connector``, which holds the rules and settings of connections, and ``connect()``."""

# No `from __future__ import annotations`: users may ask for a dataclass's type hints.
import math
import socket as stdlib
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from anyio.abc import ByteStream, SocketAttribute, TaskGroup

from ._address import SocketAddress, is_ip, parse_address
from ._blocking import event_loop_runs, wait_for
from ._dial_errors import no_thread
from ._dialer import Dialer
from ._errors import (
    BrokenError,
    DetachError,
    EventLoopRunningError,
    InvalidAddressError,
    InvalidOptionError,
    SocketError,
    bad_option,
    quote,
)
from ._keepalive import KEEP_ALIVE, keep_alive_as_before
from ._open import Dialled, Straight, Way, addresses_of
from ._options import (
    CLOSE_TIMEOUT,
    Options,
    SocketOptions,
    check_count,
    check_keep_alive,
    check_ssl_context,
    check_timeout,
    check_wait,
    parse_options,
)
from ._policy import UNRESTRICTED, AddressPolicy, judges_addresses
from ._route import HAPPY_EYEBALLS_DELAY, Route
from ._slots import Slot, Slots
from ._socket import Socket, transport_of
from ._target import Target
from ._tcp import TCPTransport
from ._threads import NoThreadError

if sys.version_info >= (3, 11):
    from typing import Self, Unpack
else:
    from typing_extensions import Self, Unpack


@dataclass(frozen=True, eq=False, init=False)
class Connector:
    """Rules and settings for connections: where to, how, and how many at the same time.

    It belongs to no event loop: it may be a global variable, and several event loops may use it,
    even at the same time in different threads. ``max_connections`` counts the connections of all
    of them. Copying it returns the same object. ``dataclasses.replace()`` creates another one,
    with its own slots.

    Every value may be left out, and None means the same.

    ``policy``: the addresses that may be dialled. Every address of a name is judged, and only the
    allowed ones are dialled. If none is allowed, both futures of the socket fail with
    :class:`AddressNotAllowedError` or :class:`LoopError`.

    ``max_connections``: the maximum number of connections at the same time; None is no limit.
    Further sockets stay pending and wait in a queue, in the order in which they were first used. A
    slot becomes free when the ``closed`` of another socket settles or its dial fails.
    ``start_tls()`` keeps the slot. When a socket begins to wait, it checks the connections in its
    event loop once: a connection that the peer has reset or ended gives its slot back, even if no
    task awaits its ``closed``. The wait counts towards ``connect_timeout``. If the task that makes
    the connection is cancelled, the socket loses its place, even if other tasks wait for the same
    socket: one of them then goes to the end of the queue. If a socket is collected without being
    closed, its slot is free at once, with a ResourceWarning.

    ``ssl_context``: the settings of TLS, if neither the call nor ``start_tls()`` gives a context.

    ``happy_eyeballs_delay``: how long to wait for one address before the next is tried as well, in
    seconds (RFC 8305 section 5). A failed attempt starts the next one at once. With ``math.inf``,
    only a failed attempt starts the next one.

    ``local_host``: the IP address of this machine to connect from. Addresses of the other family
    are then not dialled.

    ``close_timeout``: how long ``close()`` may take without any progress, in seconds, unless the
    call says otherwise; 5 by default.

    ``connect_timeout``: how long connecting may take in all, in seconds, unless the call says
    otherwise; ``math.inf`` (the default) is no limit. A call with ``math.inf`` has no limit,
    whatever is given here.

    ``keep_alive``: after how many seconds of silence the kernel checks whether the peer is still
    there, unless the call says otherwise; 60 by default. ``math.inf`` switches this off, here or
    in a call.

    ``resolver``: looks names up instead of the system. It is an async function that is called with
    the host and the port, and returns a list of IP addresses, with a zone for IPv6 if necessary.
    They are judged by ``policy`` and raced like those of the system, at most 64 of them. It is not
    called for an IP address. If it raises an exception, or returns an empty list or anything that
    is not an IP address, that is a :class:`ResolveError`. Its time counts towards
    ``connect_timeout``. It is cancelled when the connection is no longer needed.

    ``prepare``: a function that is called with each new ``socket.socket`` before it is bound and
    connected, to set options of the kernel. It runs in the event loop, so it must not block, and
    it must leave the socket open and unconnected. ``keep_alive`` has been applied before, and may
    be changed. If it raises an exception, the attempt fails with a :class:`ConnectError`, and
    other addresses are tried.

    ``dialer``: makes the connections instead of the system: see :class:`Dialer`. If ``policy``
    judges addresses, the dialer gets the allowed addresses of a name, and they are raced as usual.
    Otherwise it gets the name, and only :meth:`resolve` calls the ``resolver``. TLS,
    ``start_tls()``, ``connect_timeout`` and ``max_connections`` work as usual. Options of the
    kernel's sockets are left to the dialer: ``keep_alive`` has no effect, and ``local_host``,
    ``prepare`` and ``proxy`` are errors.

    ``proxy``: the URL of a proxy to connect through: ``"http://user:password@host:3128"`` (HTTP
    CONNECT), ``"https://..."`` (the same over TLS), ``"socks5://..."`` or ``"socks5h://..."``. It
    needs the extra ``anyio_connect[proxy]``. The port is required. The user and the password are
    optional, and have to be percent-encoded. ``policy`` does not judge the proxy's own address. If
    the policy judges addresses, a name is resolved here, and the proxy is asked for each allowed
    address in turn, until it connects to one; ``socks5h`` is then an error. Otherwise the proxy
    gets the name, except with ``socks5``, for which a name is always resolved here. If the proxy
    cannot be reached, refuses, or gives an invalid answer, both futures of the socket fail with
    :class:`ProxyError`. ``connect_timeout`` covers all of this. ``happy_eyeballs_delay``,
    ``local_host`` and ``prepare`` apply to the connection to the proxy. ``resolver`` resolves the
    proxy's name too, and ``ssl_context`` applies to TLS with the proxy too.

    :raises InvalidOptionError: a value is bad
    """

    policy: AddressPolicy = UNRESTRICTED
    """The addresses that may be dialled. Every address of a name is judged, and only the allowed
    ones are dialled. If none is allowed, both futures of the socket fail with
    :class:`AddressNotAllowedError` or :class:`LoopError`."""
    max_connections: int | None = None
    """The maximum number of connections at the same time; None is no limit. Further sockets stay
    pending and wait in a queue, in the order in which they were first used. A slot becomes free
    when the ``closed`` of another socket settles or its dial fails. ``start_tls()`` keeps the
    slot. When a socket begins to wait, it checks the connections in its event loop once: a
    connection that the peer has reset or ended gives its slot back, even if no task awaits its
    ``closed``. The wait counts towards ``connect_timeout``. If the task that makes the connection
    is cancelled, the socket loses its place, even if other tasks wait for the same socket: one of
    them then goes to the end of the queue. If a socket is collected without being closed, its slot
    is free at once, with a ResourceWarning."""
    ssl_context: ssl.SSLContext | None = None
    """The settings of TLS, if neither the call nor ``start_tls()`` gives a context."""
    happy_eyeballs_delay: float = HAPPY_EYEBALLS_DELAY
    """How long to wait for one address before the next is tried as well, in seconds (RFC 8305
    section 5). A failed attempt starts the next one at once. With ``math.inf``, only a failed
    attempt starts the next one."""
    local_host: str | None = None
    """The IP address of this machine to connect from. Addresses of the other family are then not
    dialled."""
    close_timeout: float = CLOSE_TIMEOUT
    """How long ``close()`` may take without any progress, in seconds, unless the call says
    otherwise; 5 by default."""
    connect_timeout: float = math.inf
    """How long connecting may take in all, in seconds, unless the call says otherwise;
    ``math.inf`` (the default) is no limit. A call with ``math.inf`` has no limit, whatever is
    given here."""
    keep_alive: float = KEEP_ALIVE
    """After how many seconds of silence the kernel checks whether the peer is still there, unless
    the call says otherwise; 60 by default. ``math.inf`` switches this off, here or in a call."""
    resolver: Callable[[str, int], Awaitable[Sequence[str]]] | None = None
    """Looks names up instead of the system. It is an async function that is called with the host
    and the port, and returns a list of IP addresses, with a zone for IPv6 if necessary. They are
    judged by ``policy`` and raced like those of the system, at most 64 of them. It is not called
    for an IP address. If it raises an exception, or returns an empty list or anything that is not
    an IP address, that is a :class:`ResolveError`. Its time counts towards ``connect_timeout``. It
    is cancelled when the connection is no longer needed."""
    prepare: Callable[[stdlib.socket], object] | None = None
    """A function that is called with each new ``socket.socket`` before it is bound and connected,
    to set options of the kernel. It runs in the event loop, so it must not block, and it must
    leave the socket open and unconnected. ``keep_alive`` has been applied before, and may be
    changed. If it raises an exception, the attempt fails with a :class:`ConnectError`, and other
    addresses are tried."""
    dialer: Dialer | None = None
    """Makes the connections instead of the system: see :class:`Dialer`. If ``policy`` judges
    addresses, the dialer gets the allowed addresses of a name, and they are raced as usual.
    Otherwise it gets the name, and only :meth:`resolve` calls the ``resolver``. TLS,
    ``start_tls()``, ``connect_timeout`` and ``max_connections`` work as usual. Options of the
    kernel's sockets are left to the dialer: ``keep_alive`` has no effect, and ``local_host``,
    ``prepare`` and ``proxy`` are errors."""
    proxy: str | None = None
    """The URL of a proxy to connect through: ``"http://user:password@host:3128"`` (HTTP CONNECT),
    ``"https://..."`` (the same over TLS), ``"socks5://..."`` or ``"socks5h://..."``. It needs the
    extra ``anyio_connect[proxy]``. The port is required. The user and the password are optional,
    and have to be percent-encoded. ``policy`` does not judge the proxy's own address. If the
    policy judges addresses, a name is resolved here, and the proxy is asked for each allowed
    address in turn, until it connects to one; ``socks5h`` is then an error. Otherwise the proxy
    gets the name, except with ``socks5``, for which a name is always resolved here. If the proxy
    cannot be reached, refuses, or gives an invalid answer, both futures of the socket fail with
    :class:`ProxyError`. ``connect_timeout`` covers all of this. ``happy_eyeballs_delay``,
    ``local_host`` and ``prepare`` apply to the connection to the proxy. ``resolver`` resolves the
    proxy's name too, and ``ssl_context`` applies to TLS with the proxy too."""

    def __init__(
        self,
        policy: AddressPolicy | None = None,
        max_connections: int | None = None,
        ssl_context: ssl.SSLContext | None = None,
        happy_eyeballs_delay: float | None = None,
        local_host: str | None = None,
        close_timeout: float | None = None,
        connect_timeout: float | None = None,
        keep_alive: float | None = None,
        resolver: Callable[[str, int], Awaitable[Sequence[str]]] | None = None,
        prepare: Callable[[stdlib.socket], object] | None = None,
        dialer: Dialer | None = None,
        proxy: str | None = None,
    ) -> None:
        # Not generated by @dataclass: an argument may be None, but most attributes never are.
        given = locals()
        for field in fields(self):
            object.__setattr__(self, field.name, given[field.name])
        self.__post_init__()

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None:
                object.__setattr__(self, field.name, field.default)
        if isinstance(self.proxy, str):
            from ._proxy import ProxyURL  # here, because few programs need it

            object.__setattr__(self, "proxy", ProxyURL(self.proxy))
        _check(self)
        slots = None if self.max_connections is None else Slots(self.max_connections)
        dialer = None if self.dialer is None else _Opened(self.dialer)
        route = Route(
            self.policy,
            self.happy_eyeballs_delay,
            self.local_host,
            dialer=dialer,
            resolver=self.resolver,
            prepare=self.prepare,
        )
        defaults = Options(
            ssl_context=self.ssl_context,
            connect_timeout=self.connect_timeout,
            close_timeout=self.close_timeout,
            keep_alive=self.keep_alive,
        )
        object.__setattr__(self, "_slots", slots)
        object.__setattr__(self, "_route", route)
        object.__setattr__(self, "_way", _way(self, route))
        plain = self.proxy is None and route.is_plain
        object.__setattr__(self, "_short_cut", route if plain else None)
        object.__setattr__(self, "_defaults", defaults)

    def connect(
        self,
        address: str | SocketAddress | tuple[str, int],
        *,
        task_group: TaskGroup | None = None,
        **options: Unpack[SocketOptions],
    ) -> Socket:
        """Return a socket to ``address``, like the module's ``connect()``. Does not wait.

        The arguments are those of that function. The defaults of ``connect_timeout``,
        ``close_timeout``, ``keep_alive`` and ``ssl_context`` are the values of this ``Connector``.
        This raises no error for an address that the policy forbids: the futures of the socket
        fail.

        :raises InvalidAddressError: ``address`` is not the address of a TCP endpoint
        :raises InvalidOptionError: an option is unknown, has a bad value, or contradicts another
        """
        target = self._target(address, options)
        slot = self._slot()
        socket = Socket(self._dialled(target, slot), target, slot)
        if task_group is not None:
            task_group.start_soon(_open_now, socket, name=f"connect {target}")
        return socket

    async def resolve(
        self, host: str, port: int, *, connect_timeout: float | None = None
    ) -> list[str]:
        """Return the IP addresses of ``host`` that the policy allows for ``port``.

        This is for clients that dial by themselves, such as psycopg with ``hostaddr``, or aiohttp
        with a resolver. The list has at least one address. Its order is that in which
        :meth:`connect` would try them. At most 64 addresses of the name are judged. With
        ``local_host``, addresses of the other family are left out.

        The addresses are plain strings, for libpq, ``getaddrinfo()`` or the ``resolver`` of
        another Connector. IPv6 addresses have no brackets, and keep their zone.

        The client must dial these addresses. If it resolves the name again, the policy does not
        protect it. The client's connection is not judged once it is made, ``max_connections`` does
        not count it, and it uses neither ``proxy`` nor ``dialer``.

        ``connect_timeout``: replaces that of the Connector, in seconds; None means "not given".

        A cancelled call changes nothing. A lookup by the system that it has begun may go on for a
        while in its thread.

        :raises InvalidAddressError: ``host`` and ``port`` are not the address of a TCP endpoint
        :raises InvalidOptionError: ``connect_timeout`` has a bad value
        :raises ResolveError: the name has no address
        :raises AddressNotAllowedError: the policy allows none of the addresses, or not the port
        :raises LoopError: all addresses lead back to this process, and the policy refuses that
        :raises ConnectTimeoutError: the name was not resolved in time
        :raises ConnectError: no address has the family of ``local_host``
        """
        options = {"connect_timeout": connect_timeout}
        parsed = parse_options(options, vars(self)["_defaults"])
        target = Target(parse_address((host, port)), parsed)
        return await addresses_of(target, vars(self)["_route"])

    async def connect_socket(
        self,
        address: str | SocketAddress | tuple[str, int],
        *,
        connect_timeout: float | None = None,
        keep_alive: float | None = None,
    ) -> stdlib.socket:
        """Connect, and return the kernel's socket, for a library that accepts one (``sock=``).

        ``address``, ``connect_timeout`` and ``keep_alive`` are those of :meth:`connect`. The
        policy, the race of addresses, and the wait for a slot of ``max_connections`` are the same
        too. The socket is connected and non-blocking, and has TCP_NODELAY set. The caller owns it
        and has to close it. It has keepalive, but no limit on the time that sent data may stay
        unacknowledged (TCP_USER_TIMEOUT). The library may use TLS on it.

        With ``max_connections``, the socket is an instance of a subclass of ``socket.socket``,
        which gives the slot back when it is closed. :meth:`Socket.detach` says what gives it back
        too early. Until then the slot stays taken, even if the peer has ended.

        A cancelled call leaves nothing behind.

        :raises InvalidAddressError: ``address`` is not the address of a TCP endpoint
        :raises InvalidOptionError: an option has a bad value
        :raises DetachError: the connection has no such socket: a ``dialer`` returned another kind
            of stream, or the proxy is connected over TLS
        :raises ConnectError: the connection could not be made, or was reset at once
        """
        options = {"connect_timeout": connect_timeout, "keep_alive": keep_alive}
        return await self._dialled(self._target(address, options), self._slot()).open_socket()

    def connect_socket_blocking(
        self,
        address: str | SocketAddress | tuple[str, int],
        *,
        connect_timeout: float | None = None,
        keep_alive: float | None = None,
    ) -> stdlib.socket:
        """Like :meth:`connect_socket`, but for a thread without an event loop.

        ``address``, ``connect_timeout`` and ``keep_alive`` are those of that method.

        The calling thread waits while asyncio connects in another thread, which has ended when
        this returns. So one ``Connector`` can serve threads and event loops, with the same rules
        and slots. The socket is blocking, without a timeout. The policy and all functions of
        the Connector, such as ``resolver``, are called in that other thread, in a copy of the
        calling thread's context.

        If a signal handler raises an exception meanwhile, such as KeyboardInterrupt, the attempt
        is cancelled and leaves nothing behind. Then the exception is raised.

        :raises EventLoopRunningError: an event loop is running in this thread, and would be
            blocked
        :raises InvalidAddressError: ``address`` is not the address of a TCP endpoint
        :raises InvalidOptionError: an option has a bad value
        :raises DetachError: the connection has no such socket: a ``dialer`` returned another kind
            of stream, or the proxy is connected over TLS
        :raises ConnectError: the connection could not be made, or was reset at once
        """
        options = {"connect_timeout": connect_timeout, "keep_alive": keep_alive}
        target = self._target(address, options)
        if event_loop_runs():
            raise EventLoopRunningError(
                "connect_socket_blocking() was called in a thread whose event loop is running, "
                "and would block it: await connect_socket(), or call this in a worker thread"
            )
        try:
            opener = self._dialled(target, self._slot())
            sock = wait_for(opener.open_socket, stdlib.socket.close)
        except SocketError:
            raise
        except (NoThreadError, OSError) as exc:
            raise no_thread(str(target), exc) from exc
        sock.setblocking(True)
        return sock

    def _target(
        self,
        address: str | SocketAddress | tuple[str, int],
        options: Mapping[str, object],
    ) -> Target:
        target = Target(parse_address(address), parse_options(options, vars(self)["_defaults"]))
        if self.proxy is not None and "%" in target.address.hostname:
            raise InvalidAddressError(
                f"bad address {quote(address)}: a zone names a network interface of this machine, "
                "which a proxy does not know: leave out the '%' and what follows"
            )
        return target

    def _slot(self) -> Slot | None:
        slots: Slots | None = vars(self)["_slots"]
        return None if slots is None else Slot(slots)

    def _dialled(self, target: Target, slot: Slot | None) -> Dialled:
        return Dialled(target, self.policy, vars(self)["_way"], slot, vars(self)["_short_cut"])

    def __copy__(self) -> Self:
        return self  # it is immutable, and a copy must not have slots of its own

    def __deepcopy__(self, memo: object) -> Self:
        return self


def connect(
    address: str | SocketAddress | tuple[str, int],
    *,
    task_group: TaskGroup | None = None,
    **options: Unpack[SocketOptions],
) -> Socket:
    """Return a socket to ``address``, without waiting. The first use makes the connection.

    This needs no running event loop. It is the ``connect()`` of ``Connector()``: all addresses and
    any number of connections are allowed. Source: the WinterTC Sockets API draft, ``connect()``.

    ``address``: ``"host:port"``, ``"[IPv6]:port"``, or a pair of host name and port.

    ``task_group``: a task in this group makes the connection right away. A failure settles the
    socket's futures, and does not cancel the group.

    For each option, None means the same as leaving it out. :class:`SocketOptions` has the details.

    ``secure_transport``: ``"off"`` (the default) is plain TCP, ``"on"`` is TLS from the first
    byte, ``"starttls"`` is plain TCP until ``start_tls()``.

    ``allow_half_open``: with True, we can go on sending after the peer has ended; with False (the
    default), the peer's end ends our side too.

    ``sni``: the server name to send and to verify in the TLS handshake, instead of the host name
    of the address.

    ``alpn``: the protocols to offer in the TLS handshake, in order of preference.

    ``ssl_context``: the settings of TLS, such as your own CA or a client certificate.

    ``connect_timeout``: how long connecting may take in all, TLS included, in seconds;
    ``math.inf`` (the default) is no limit.

    ``close_timeout``: how long ``close()`` may take without any progress, in seconds; 5 by
    default.

    ``keep_alive``: after how many seconds of silence the kernel checks whether the peer is still
    there; 60 by default.

    ``require_close_notify``: with True (the default), a TLS connection that ends without
    close_notify is broken; with False, it has ended.

    :raises InvalidAddressError: ``address`` is not the address of a TCP endpoint
    :raises InvalidOptionError: an option is unknown, has a bad value, or contradicts another
    """
    return _DEFAULT.connect(address, task_group=task_group, **options)


async def _open_now(socket: Socket) -> None:
    with suppress(SocketError):  # the socket's futures report it
        await socket.opened


def _way(connector: Connector, route: Route) -> Callable[[Target], Way]:
    if connector.proxy is None:
        return partial(Straight, route)
    from ._tunnel import through  # here, because few programs need it

    return through(connector.proxy, route, connector.ssl_context)


def _check(connector: Connector) -> None:
    # Callers need not obey the annotations.
    policy: object = connector.policy
    if not isinstance(policy, AddressPolicy):
        raise bad_option("policy", policy, "must be an AddressPolicy, such as WORKERS")
    if connector.max_connections is not None:
        check_count("max_connections", connector.max_connections)
    if connector.ssl_context is not None:
        check_ssl_context("ssl_context", connector.ssl_context)
    check_wait("happy_eyeballs_delay", connector.happy_eyeballs_delay)
    host: object = connector.local_host
    if host is not None and not (isinstance(host, str) and is_ip(host)):
        raise bad_option("local_host", host, "must be an IP address of this machine")
    check_timeout("close_timeout", connector.close_timeout)
    check_timeout("connect_timeout", connector.connect_timeout)
    check_keep_alive("keep_alive", connector.keep_alive)
    resolver: object = connector.resolver
    if resolver is not None and not callable(resolver):
        why = "must be an async function that takes a host and a port, and returns IP addresses"
        raise bad_option("resolver", resolver, why)
    prepare: object = connector.prepare
    if prepare is not None and (not callable(prepare) or iscoroutinefunction(prepare)):
        why = "must be a function that takes a socket.socket, and is not async"
        raise bad_option("prepare", prepare, why)
    if connector.dialer is not None:
        _check_dialer(connector)


def _check_dialer(connector: Connector) -> None:
    dialer: object = connector.dialer
    if not callable(dialer):
        why = "must be an async function that takes a SocketAddress and returns a ByteStream"
        raise bad_option("dialer", dialer, why)
    if connector.local_host is not None:
        raise _no_effect("local_host", connector.local_host, "which chooses the local address")
    if connector.proxy is not None:
        raise InvalidOptionError("proxy and dialer cannot be combined: leave one out")
    if connector.prepare is not None:
        raise _no_effect("prepare", connector.prepare, "which makes its sockets itself")
    delay = connector.happy_eyeballs_delay
    if delay != HAPPY_EYEBALLS_DELAY and not judges_addresses(connector.policy):
        why = "which is given the name, unless the policy judges addresses"
        raise _no_effect("happy_eyeballs_delay", delay, why)


def _no_effect(name: str, value: object, why: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"{name}={quote(value)} has no effect with a dialer, {why}: leave it out"
    )


class _Opened:
    """Wraps a dialer. If that returns a ``Socket``, this waits until the socket is connected."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer

    def __call__(self, address: SocketAddress, /) -> Awaitable[ByteStream]:
        dialling: Any = self._dialer(address)
        # If this cannot be awaited, the caller reports the error.
        return _opened(dialling) if isawaitable(dialling) else dialling


async def _opened(dialling: Awaitable[ByteStream]) -> ByteStream:
    stream = await dialling
    if not isinstance(stream, Socket):
        return stream
    try:
        await stream.opened  # the socket may be pending
    except BaseException:
        await stream.close()
        raise
    # Read it now: after a reset, the kernel no longer knows the peer's address.
    remote: Any = stream.extra(SocketAttribute.remote_address, None)
    try:
        sock = stream.detach()
    except (DetachError, BrokenError):
        return transport_of(stream)  # it is wrapped as by Socket.wrap()
    return TCPTransport(sock, remote=remote, limit=keep_alive_as_before(sock))


_DEFAULT = Connector()
