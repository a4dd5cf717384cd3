"""``Connector``: where sockets may go, how they get there, how many; and ``connect()``."""

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
from ._dial import HAPPY_EYEBALLS_DELAY, Route
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
from ._open import Dialled, Straight, Target, Way, addresses_of
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
from ._slots import Slot, Slots
from ._socket import Socket, transport_of
from ._tcp import TCPTransport
from ._threads import NoThreadError

if sys.version_info >= (3, 11):
    from typing import Self, Unpack
else:
    from typing_extensions import Self, Unpack


@dataclass(frozen=True, eq=False, init=False)
class Connector:
    """Where sockets may go, how they get there, and how many there may be at once.

    It belongs to no event loop: it may be a global, and be used by several loops, also at the
    same time in different threads. ``max_connections`` counts them all. A copy of it is the
    same object; ``dataclasses.replace()`` makes another, with slots of its own.

    Every value may be left out, and None means the same.

    ``policy``: what may be dialled: every address that a name has is judged, and only those that
    are allowed are dialled. Otherwise both futures of the socket fail with
    :class:`AddressNotAllowedError` or :class:`LoopError`.

    ``max_connections``: how many connections there may be at once; None: any number. Further
    sockets stay pending, and get their turn in the order in which they were first needed, one
    whenever another's ``closed`` settles or its dial fails. ``start_tls()`` keeps the slot.
    A socket that has to wait looks once at the holders in its event loop: a connection that the
    peer has reset or ended gives its slot back, even if no task awaits its ``closed``. The wait
    counts as connecting (``connect_timeout``). Cancelling the task that makes the connection gives
    up the place, even if other tasks wait for the same socket: one of them then queues up
    behind all others. The slot of a socket that was dropped unclosed comes back at once,
    with a ResourceWarning.

    ``ssl_context``: for TLS, if the call or ``start_tls()`` brings none of its own.

    ``happy_eyeballs_delay``: how long to wait for one address before the next is tried as well, in
    seconds (RFC 8305 section 5). One that fails starts the next at once. ``math.inf``: the next is
    tried only then.

    ``local_host``: the IP address of this machine to connect from. Addresses of the other family
    are then not dialled.

    ``close_timeout``: how long ``close()`` may go on without any progress, in seconds, if the
    call does not say; 5 unless given.

    ``connect_timeout``: how long connecting may take in all, in seconds, if the call does not
    say; ``math.inf`` (the default) is no limit. A call that says ``math.inf`` has none, whatever
    stands here.

    ``keep_alive``: how many seconds of silence there may be until the kernel asks for the peer,
    if the call does not say; 60 unless given. ``math.inf`` switches it off, here or in a call.

    ``resolver``: what looks names up, in place of the system: an async function that is called
    with the host and the port, and returns a list of IP addresses, IPv6 with a zone if need be.
    They are judged by ``policy`` and raced as the system's are, at most 64 of them. It is not
    asked for what is an IP address already. If it raises an exception, or its answer is empty or
    has anything else in it, that is a :class:`ResolveError`. Its time counts as connecting
    (``connect_timeout``), and it is cancelled when the connection is not wanted any more.

    ``prepare``: called with each new ``socket.socket`` before that is bound and connected, to set
    options of the system's. It runs in the event loop, so it must not wait, and it must leave the
    socket open and unconnected. ``keep_alive`` has been set by then, and can be changed. What it
    raises fails the attempt as a :class:`ConnectError`; other addresses are tried.

    ``dialer``: what makes the connections, in place of the system: see :class:`Dialer`. If
    ``policy`` judges addresses, it is given those of a name that are allowed, raced as others are.
    Otherwise it is given the name, and only :meth:`resolve` asks the ``resolver``. TLS,
    ``start_tls()``, ``connect_timeout`` and ``max_connections`` work as ever. What the system can
    do for its sockets, such as ``keep_alive``, is up to the dialer.

    ``proxy``: how sockets get to where they go: through the proxy with this URL,
    ``"http://user:password@host:3128"`` (HTTP CONNECT), ``"https://..."`` (the same over TLS),
    ``"socks5://..."`` or ``"socks5h://..."``. Takes the extra ``anyio_connect[proxy]``. The port
    has to be there; the user and the password may be left out, and are percent-encoded. The
    proxy's own address is not judged by ``policy``. If that judges addresses, a name is resolved
    here, and the proxy is asked for each address that is allowed, one after the other, until it
    connects to one; ``socks5h`` is then an error. Otherwise the proxy is given the name, except
    with ``socks5``, for which it is always resolved here. If the proxy cannot be reached, refuses,
    or gives no proper answer, both futures of the socket fail with :class:`ProxyError`.
    ``connect_timeout`` covers all of it. ``happy_eyeballs_delay``, ``local_host`` and ``prepare``
    are for connecting to the proxy, ``resolver`` looks its name up too, and ``ssl_context`` is
    also for TLS with it.

    :raises InvalidOptionError: a value is bad
    """

    policy: AddressPolicy = UNRESTRICTED
    """What may be dialled: every address that a name has is judged, and only those that are
    allowed are dialled. Otherwise both futures of the socket fail with
    :class:`AddressNotAllowedError` or :class:`LoopError`."""
    max_connections: int | None = None
    """How many connections there may be at once; None: any number. Further sockets stay
    pending, and get their turn in the order in which they were first needed, one whenever
    another's ``closed`` settles or its dial fails. ``start_tls()`` keeps the slot. A socket
    that has to wait looks once at the holders in its event loop: a connection that the peer has
    reset or ended gives its slot back, even if no task awaits its ``closed``. The wait counts as
    connecting (``connect_timeout``). Cancelling the task that makes the connection gives up
    the place, even if other tasks wait for the same socket: one of them then queues up
    behind all others. The slot of a socket that was dropped unclosed comes back at once,
    with a ResourceWarning."""
    ssl_context: ssl.SSLContext | None = None
    """For TLS, if the call or ``start_tls()`` brings none of its own."""
    happy_eyeballs_delay: float = HAPPY_EYEBALLS_DELAY
    """How long to wait for one address before the next is tried as well, in seconds (RFC 8305
    section 5). One that fails starts the next at once. ``math.inf``: the next is tried only
    then."""
    local_host: str | None = None
    """The IP address of this machine to connect from. Addresses of the other family are then not
    dialled."""
    close_timeout: float = CLOSE_TIMEOUT
    """How long ``close()`` may go on without any progress, in seconds, if the call does not
    say; 5 unless given."""
    connect_timeout: float = math.inf
    """How long connecting may take in all, in seconds, if the call does not say; ``math.inf``
    (the default) is no limit. A call that says ``math.inf`` has none, whatever stands here."""
    keep_alive: float = KEEP_ALIVE
    """How many seconds of silence there may be until the kernel asks for the peer, if the call
    does not say; 60 unless given. ``math.inf`` switches it off, here or in a call."""
    resolver: Callable[[str, int], Awaitable[Sequence[str]]] | None = None
    """What looks names up, in place of the system: an async function that is called with
    the host and the port, and returns a list of IP addresses, IPv6 with a zone if need be. They
    are judged by ``policy`` and raced as the system's are, at most 64 of them. It is not asked
    for what is an IP address already. If it raises an exception, or its answer is empty or has
    anything else in it, that is a :class:`ResolveError`. Its time counts as connecting
    (``connect_timeout``), and it is cancelled when the connection is not wanted any more."""
    prepare: Callable[[stdlib.socket], object] | None = None
    """Called with each new ``socket.socket`` before that is bound and connected, to set
    options of the system's. It runs in the event loop, so it must not wait, and it must leave the
    socket open and unconnected. ``keep_alive`` has been set by then, and can be changed. What it
    raises fails the attempt as a :class:`ConnectError`; other addresses are tried."""
    dialer: Dialer | None = None
    """What makes the connections, in place of the system: see :class:`Dialer`. If ``policy``
    judges addresses, it is given those of a name that are allowed, raced as others are. Otherwise
    it is given the name, and only :meth:`resolve` asks the ``resolver``. TLS, ``start_tls()``,
    ``connect_timeout`` and ``max_connections`` work as ever. What the system can do for its
    sockets, such as ``keep_alive``, is up to the dialer."""
    proxy: str | None = None
    """How sockets get to where they go: through the proxy with this URL,
    ``"http://user:password@host:3128"`` (HTTP CONNECT), ``"https://..."`` (the same over TLS),
    ``"socks5://..."`` or ``"socks5h://..."``. Takes the extra ``anyio_connect[proxy]``. The port
    has to be there; the user and the password may be left out, and are percent-encoded. The
    proxy's own address is not judged by ``policy``. If that judges addresses, a name is resolved
    here, and the proxy is asked for each address that is allowed, one after the other, until it
    connects to one; ``socks5h`` is then an error. Otherwise the proxy is given the name, except
    with ``socks5``, for which it is always resolved here. If the proxy cannot be reached, refuses,
    or gives no proper answer, both futures of the socket fail with :class:`ProxyError`.
    ``connect_timeout`` covers all of it. ``happy_eyeballs_delay``, ``local_host`` and ``prepare``
    are for connecting to the proxy, ``resolver`` looks its name up too, and ``ssl_context`` is
    also for TLS with it."""

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
        # Written out because an argument may be None where the attribute never is.
        given = locals()
        for field in fields(self):
            object.__setattr__(self, field.name, given[field.name])
        self.__post_init__()

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None:
                object.__setattr__(self, field.name, field.default)
        if isinstance(self.proxy, str):
            from ._proxy import ProxyURL  # here, because hardly anybody needs it

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
        """Return a socket to ``address`` at once, as the module's ``connect()`` does.

        The arguments are those of that function. ``connect_timeout``, ``close_timeout``,
        ``keep_alive`` and ``ssl_context`` are those of this ``Connector`` unless given. What the
        policy forbids is no error here: the futures of the socket fail.

        :raises InvalidAddressError: the address names no TCP endpoint
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

        They are for clients that dial by themselves, as psycopg does with ``hostaddr``, or aiohttp
        with a resolver. There is at least one, and they are in the order in which :meth:`connect`
        would try them. At most 64 of the name's addresses are judged; those of the other family
        than ``local_host`` are left out.

        They are plain strings, as libpq, ``getaddrinfo()`` and the ``resolver`` of another
        Connector take them. IPv6 addresses have no brackets, and keep their zone.

        The client must dial these and not resolve the name again, or the policy has judged
        nothing. Where its connection leads in the end is not judged, ``max_connections`` does not
        count it, and a ``proxy`` or a ``dialer`` has no part in it.

        ``connect_timeout``: in place of the Connector's, in seconds; None: not given.

        :raises InvalidAddressError: host and port name no TCP endpoint
        :raises InvalidOptionError: ``connect_timeout`` has a bad value
        :raises ResolveError: the name has no address
        :raises AddressNotAllowedError: the policy allows none of them, or not the port
        :raises LoopError: they all lead back to this process, which the policy refuses
        :raises ConnectTimeoutError: the name was not resolved in time
        :raises ConnectError: ``local_host`` can reach none of them
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
        """Connect, and return the kernel's socket, for a library that takes one (``sock=``).

        ``address``, ``connect_timeout``, ``keep_alive``: as for :meth:`connect`. So are the
        policy, the race of addresses, and the wait for a slot of ``max_connections``. The socket
        is connected and non-blocking, has TCP_NODELAY set, and is the caller's to close. It has
        keepalive, but no limit for how long what was sent may stay unacknowledged. The library may
        put TLS on it.

        With ``max_connections`` it is of a subclass of ``socket.socket``, which gives the slot
        back when it is closed; see :meth:`Socket.detach` for what gives it back too early. Until
        then the slot is taken: nobody looks whether the peer has ended.

        Cancelled, it leaves nothing behind.

        :raises InvalidAddressError: the address names no TCP endpoint
        :raises InvalidOptionError: an option has a bad value
        :raises DetachError: the connection is no socket of the kernel's: a ``dialer`` returned
            another stream, or it goes through TLS to a proxy
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
        """Do as :meth:`connect_socket` does, in a thread that has no event loop.

        ``address``, ``connect_timeout``, ``keep_alive``: as for that method.

        The thread waits while asyncio connects in a thread of its own, which has ended when this
        returns. So one ``Connector`` serves threads and event loops alike, with the same rules and
        slots. The socket is blocking, without a timeout. What the Connector calls (the policy,
        ``resolver``, ``prepare``, ``dialer``) is called in that thread, in a copy of this one's
        context.

        What a signal handler raises meanwhile, such as KeyboardInterrupt, is raised as soon as the
        attempt was cancelled; it leaves nothing behind either.

        :raises EventLoopRunningError: an event loop runs in this thread, and would stand still
        :raises InvalidAddressError: the address names no TCP endpoint
        :raises InvalidOptionError: an option has a bad value
        :raises DetachError: the connection is no socket of the kernel's: a ``dialer`` returned
            another stream, or it goes through TLS to a proxy
        :raises ConnectError: the connection could not be made, or was reset at once
        """
        options = {"connect_timeout": connect_timeout, "keep_alive": keep_alive}
        target = self._target(address, options)
        if event_loop_runs():
            raise EventLoopRunningError(
                "connect_socket_blocking() was called in a thread whose event loop runs, which it "
                "would stop: await connect_socket(), or call this in a worker thread"
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
                f"bad address {quote(address)}: a zone is a network interface of this machine, of "
                "which a proxy knows nothing: leave out the '%' and what follows"
            )
        return target

    def _slot(self) -> Slot | None:
        slots: Slots | None = vars(self)["_slots"]
        return None if slots is None else Slot(slots)

    def _dialled(self, target: Target, slot: Slot | None) -> Dialled:
        return Dialled(target, self.policy, vars(self)["_way"], slot, vars(self)["_short_cut"])

    def __copy__(self) -> Self:
        return self  # what it is cannot change, and its slots are not to be had twice

    def __deepcopy__(self, memo: object) -> Self:
        return self


def connect(
    address: str | SocketAddress | tuple[str, int],
    *,
    task_group: TaskGroup | None = None,
    **options: Unpack[SocketOptions],
) -> Socket:
    """Return a socket to ``address`` at once; the connection is made when it is first needed.

    Needs no running event loop. It is the ``connect()`` of ``Connector()``: every address is
    allowed, and any number of connections. Source: the WinterTC Sockets API draft, ``connect()``.

    ``address``: ``"host:port"``, ``"[IPv6]:port"``, or a pair of host name and port.

    ``task_group``: a task in this group makes the connection right away. A failure settles the
    socket's futures, and does not cancel the group.

    For each option, None means the same as leaving it out. :class:`SocketOptions` says more about
    them.

    ``secure_transport``: ``"off"`` (the default) is plain TCP, ``"on"`` is TLS from the first
    byte, ``"starttls"`` is plain TCP until ``start_tls()``.

    ``allow_half_open``: with True, we may go on sending after the peer has ended; with False (the
    default), the peer's end ends our side too.

    ``sni``: the server name to ask for in the TLS handshake and to verify, in place of the
    address's host name.

    ``alpn``: the protocols to offer in the TLS handshake, most wanted first.

    ``ssl_context``: the settings of TLS, such as a CA of your own or a client certificate.

    ``connect_timeout``: how long connecting may take in all, TLS included, in seconds;
    ``math.inf`` (the default) is no limit.

    ``close_timeout``: how long ``close()`` may go on without any progress, in seconds; 5 unless
    given.

    ``keep_alive``: how many seconds of silence there may be until the kernel asks whether the peer
    is still there; 60 unless given.

    ``require_close_notify``: with True (the default), a TLS connection that ends without
    close_notify is broken; with False, it has ended.

    :raises InvalidAddressError: the address names no TCP endpoint
    :raises InvalidOptionError: an option is unknown, has a bad value, or contradicts another
    """
    return _DEFAULT.connect(address, task_group=task_group, **options)


async def _open_now(socket: Socket) -> None:
    with suppress(SocketError):  # the futures have it
        await socket.opened


def _way(connector: Connector, route: Route) -> Callable[[Target], Way]:
    if connector.proxy is None:
        return partial(Straight, route)
    from ._tunnel import through  # here, because hardly anybody needs it

    return through(connector.proxy, route, connector.ssl_context)


def _check(connector: Connector) -> None:
    # Whatever the annotations promise.
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
        raise _no_effect("local_host", connector.local_host, "which connects from where it likes")
    if connector.proxy is not None:
        raise InvalidOptionError("proxy and dialer are two ways to one place: leave one out")
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
    """A dialer, whose sockets are connected once it returns them."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer

    def __call__(self, address: SocketAddress, /) -> Awaitable[ByteStream]:
        dialling: Any = self._dialer(address)
        # What cannot be awaited is refused by whoever awaits this.
        return _opened(dialling) if isawaitable(dialling) else dialling


async def _opened(dialling: Awaitable[ByteStream]) -> ByteStream:
    stream = await dialling
    if not isinstance(stream, Socket):
        return stream
    try:
        await stream.opened  # it is pending at first
    except BaseException:
        await stream.close()
        raise
    # In case the connection is reset by then, and the kernel tells the peer's address no more.
    remote: Any = stream.extra(SocketAttribute.remote_address, None)
    try:
        sock = stream.detach()
    except (DetachError, BrokenError):
        return transport_of(stream)  # which is used as by Socket.wrap()
    return TCPTransport(sock, remote=remote, limit=keep_alive_as_before(sock))


_DEFAULT = Connector()
