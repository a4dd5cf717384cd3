"""A network in memory, for tests of code that uses ``connect()``.

    network = Network()
    async with network.listen("db.example:5432") as listener:
        ...  # listener.accept(), or listener.serve(handler)
        async with network.connector().connect("db.example:5432") as socket:
            ...

Nothing leaves the process, no descriptor is opened, and no task is started. Sockets behave as over
TCP on Linux: half-close, resets, full buffers, and a ``close()`` that waits for the peer.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import fields
from ipaddress import IPv4Network, IPv6Network, ip_address
from itertools import chain
from typing import Any

import anyio
from anyio import abc
from anyio.abc import ByteStream, SocketAttribute, TaskGroup
from anyio.lowlevel import checkpoint

from ._address import SocketAddress, format_address, is_ip, parse_address
from ._connector import Connector
from ._copies import fresh
from ._errors import InvalidAddressError, ListenError, bad_option, cannot_listen, quote
from ._listen import handle
from ._memory import Backlog, Memory
from ._memory_tcp import error
from ._open import Accepted
from ._options import Options, check_count, check_wait, parse_options
from ._policy import AddressPolicy, judges_addresses
from ._socket import Socket
from ._target import Target

__all__ = ("MemoryListener", "Network")

#: The networks of made-up addresses, for names without any. They belong to AS112 (RFC 7534, RFC
#: 7535): all rules count them as public, and no program needs to connect to the real hosts there.
_MADE_UP = (IPv4Network("192.31.196.0/24"), IPv6Network("2001:4:112::/48"))
#: The address of all clients (RFC 5737).
_CLIENT = "192.0.2.1"
_FIRST_FREE_PORT = 49152
_LAST_PORT = 65535


class Network:
    """A network in memory. Its connections follow the rules of TCP, by the event loop's clock.

    One event loop at a time may use it.

    ``latency``: how long everything takes from one end to the other, in seconds. Making a
    connection takes twice that. A new value applies to connections that are made later.

    ``buffer_size``: the size of the send buffer and of the receive buffer of each end, in bytes. A
    send waits while the send buffer is full. Unacknowledged data stays in the send buffer.

    A name exists after a call of :meth:`listen` or :meth:`add_host` for it. Every IP address
    exists. A connection to a port at which nothing listens is refused.

    :raises InvalidOptionError: a value is bad
    """

    def __init__(self, *, latency: float = 0.0, buffer_size: int = 65536) -> None:
        check_count("buffer_size", buffer_size)
        self._memory = Memory(buffer_size)
        self.latency = latency
        self._names: dict[str, tuple[str, ...]] = {"localhost": ("127.0.0.1",)}
        self._failing: dict[tuple[str, int], OSError] = {}
        self._made_up = map(str, chain.from_iterable(net.hosts() for net in _MADE_UP))
        self._ports: dict[str, int] = {}

    @property
    def latency(self) -> float:
        """How long everything takes from one end to the other, in seconds."""
        return self._memory.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._memory.latency = _seconds("latency", seconds)

    # --- hosts and listeners

    def add_host(self, name: str, *addresses: str) -> None:
        """Add a name with these IP addresses. If the name exists, they replace its old ones.

        ``name``: a host name. ``addresses``: its IP addresses, which policies judge. If none are
        given, an existing name keeps its addresses, and a new one gets a made-up public address.
        Listeners at the name keep their old addresses.

        :raises InvalidAddressError: ``name`` is not a host name, or an address is not an IP
            address
        """
        host = _host(name)
        ips = tuple(dict.fromkeys(_ip(address) for address in addresses))
        if ips or host not in self._names:
            self._names[host] = ips or (next(self._made_up),)

    def listen(
        self,
        address: str | SocketAddress | tuple[str, int],
        *,
        allow_half_open: bool | None = None,
        close_timeout: float | None = None,
    ) -> MemoryListener:
        """Listen at ``address``. Unlike the package's ``listen()``, this is not awaited.

        ``address``, ``allow_half_open`` and ``close_timeout`` are those of that function. A new
        name is added, as by :meth:`add_host`. This listens at all addresses of the name.

        :raises InvalidAddressError: ``address`` is not the address of a TCP endpoint
        :raises InvalidOptionError: an option has a bad value
        :raises ListenError: another listener is listening there
        """
        where = parse_address(address, lowest_port=0)
        options = parse_options(
            {"allow_half_open": allow_half_open, "close_timeout": close_timeout}
        )
        host = _host(where.hostname)
        if is_ip(host) and not int(ip_address(host)):
            raise ListenError(
                f"cannot listen at {format_address(*where)}: a network in memory has no address "
                "that stands for all: write the host that clients connect to"
            )
        if not is_ip(host):
            self.add_host(host)
        ips = self._addresses(host)
        port = where.port or self._free_port(*ips)
        for ip in ips:
            if (ip, port) in self._memory.hosts:
                raise cannot_listen(format_address(*where), error(errno.EADDRINUSE))
        return MemoryListener(self._memory, [(ip, port) for ip in ips], options)

    # --- failures

    def fail(
        self, address: str | SocketAddress | tuple[str, int], failure: OSError | None
    ) -> None:
        """Make each dial of ``address`` fail with ``failure``, without delay. None undoes this.

        For example, ``OSError(errno.EHOSTUNREACH, "")`` stands for the answer of a router. A new
        name is added, as by :meth:`add_host`.

        :raises InvalidAddressError: ``address`` is not the address of a TCP endpoint
        :raises InvalidOptionError: ``failure`` is neither an OSError nor None
        """
        where = parse_address(address)
        if failure is not None and not isinstance(failure, OSError):
            raise bad_option("failure", failure, "must be an OSError, or None")
        for key in self._keys(where):
            if failure is None:
                self._failing.pop(key, None)
            else:
                self._failing[key] = fresh(failure)

    def silence(
        self, address: str | SocketAddress | tuple[str, int]
    ) -> AbstractContextManager[None]:
        """Hold back everything that is sent to or from ``address``, until the block ends.

        This simulates an unplugged cable: dials get no answer, and connections neither end nor are
        reset. Data that was in flight before still arrives. After the block, everything that was
        sent meanwhile arrives in order, because TCP would retransmit it. A new name is added, as
        by :meth:`add_host`.

        :raises InvalidAddressError: ``address`` is not the address of a TCP endpoint
        """
        return self._silence(self._keys(parse_address(address)))

    # --- connecting

    async def dial(self, address: SocketAddress, /) -> ByteStream:
        """Connect to ``address``. This is a :class:`Dialer`.

        The addresses of a name are tried in order. A cancelled call leaves no connection behind.

        :raises OSError: the error that the system would raise: ``socket.gaierror`` for a name that
            does not exist, ``ConnectionRefusedError`` if nothing listens there
        """
        host, port = address
        failure: OSError = error(errno.EHOSTUNREACH)
        for ip in await self.resolve(host, port):
            try:
                if (ip, port) in self._failing:
                    raise fresh(self._failing[ip, port])
                client = (_CLIENT, self._free_port(_CLIENT))
                return await self._memory.connect(client, (ip, port))
            except OSError as exc:
                failure = exc
        try:
            raise failure
        finally:
            del failure

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the IP addresses of ``host``; for an IP address, only that.

        This is a ``resolver`` for ``Connector``. ``port`` makes no difference. A cancelled call
        changes nothing.

        :raises socket.gaierror: the name does not exist here
        """
        await checkpoint()
        return [*self._addresses(_host(host))]

    def connector(
        self, like: Connector | None = None, *, policy: AddressPolicy | None = None
    ) -> Connector:
        """Return a ``Connector`` whose sockets use this network.

        ``like``: the ``Connector`` of the tested program. The new one has the same values, apart
        from those that apply to real networks only (``local_host``, ``prepare``, ``proxy``). This
        network resolves the names.

        ``policy``: replaces the policy of ``like``.

        :raises InvalidOptionError: ``policy`` is not an ``AddressPolicy``
        """
        given = {} if like is None else {name: getattr(like, name) for name in _KEPT}
        given |= {} if policy is None else {"policy": policy}
        if like is not None and judges_addresses(given["policy"]):
            given["happy_eyeballs_delay"] = like.happy_eyeballs_delay
        return Connector(**given, dialer=self.dial, resolver=self.resolve)

    # --- the rest

    @contextmanager
    def _silence(self, servers: list[tuple[str, int]]) -> Iterator[None]:
        silenced = self._memory.silence(servers)
        try:
            yield
        finally:
            self._memory.hear(silenced)

    def _keys(self, where: SocketAddress) -> list[tuple[str, int]]:
        host = _host(where.hostname)
        if not is_ip(host):
            self.add_host(host)
        return [(ip, where.port) for ip in self._addresses(host)]

    def _addresses(self, host: str) -> tuple[str, ...]:
        if is_ip(host):
            return (host,)
        try:
            return self._names[host]
        except KeyError:
            why = "the network in memory has no such name: listen there, or add_host() it"
            raise socket.gaierror(socket.EAI_NONAME, why) from None

    def _free_port(self, *ips: str) -> int:
        """Return a port at which nothing listens and from which no connection comes."""
        port = max(self._ports.get(ip, _FIRST_FREE_PORT) for ip in ips)
        while any((ip, port) in self._memory.hosts for ip in ips):
            port += 1
        if port > _LAST_PORT:
            port = _FIRST_FREE_PORT  # its first connection has ended long ago
        self._ports.update(dict.fromkeys(ips, port + 1))
        return port


#: The values of a Connector that apply to a network in memory too.
_KEPT = [
    field.name
    for field in fields(Connector)
    if field.name
    not in ("dialer", "happy_eyeballs_delay", "local_host", "prepare", "proxy", "resolver")
]


class MemoryListener(abc.Listener[Socket]):
    """The result of ``Network.listen()``. It has no public constructor. Close it after use.

    Its sockets are open, like those of the package's ``Listener``.
    """

    def __init__(self, memory: Memory, where: list[tuple[str, int]], options: Options) -> None:
        self._backlog = Backlog(memory, where)
        self._where = where
        self._options = options
        self._serving = anyio.ResourceGuard("serving")

    @property
    def addresses(self) -> list[str]:
        """The addresses that it listens at: one or more ``"ip:port"``, with IPv6 in brackets."""
        return [format_address(*key) for key in self._where]

    async def accept(self) -> Socket:
        """Wait for a connection, and return an open socket for it.

        Clients do not wait for this call to connect. A cancelled call has accepted no connection.

        :raises anyio.ClosedResourceError: the listener was closed, before the call or during it
        """
        await checkpoint()
        transport = await self._backlog.take()
        peer: Any = transport.extra(SocketAttribute.remote_address)
        target = Target(SocketAddress(*peer), self._options)
        ours = Socket(Accepted(transport), target, None)
        with anyio.CancelScope(shield=True):  # the connection is accepted, so it must be returned
            await ours.opened
        return ours

    async def serve(
        self, handler: Callable[[Socket], Any], task_group: TaskGroup | None = None
    ) -> None:
        """Accept connections until cancelled or closed; run ``handler`` in a task for each.

        This is like :meth:`anyio_connect.Listener.serve`: an error that a client may have caused
        ends only its handler, and is logged. The tasks are in ``task_group``, or else in a group
        that this call creates and waits for.

        :raises anyio.ClosedResourceError: the listener was closed, and the tasks in the group of
            this call have ended
        :raises anyio.BusyResourceError: another task is serving already
        """
        with self._serving:
            async with AsyncExitStack() as stack:
                if task_group is None:
                    group = await stack.enter_async_context(anyio.create_task_group())
                else:
                    group = task_group
                with suppress(anyio.ClosedResourceError):
                    while True:
                        await self._start(await self.accept(), handler, group)
        raise anyio.ClosedResourceError

    async def _start(
        self, accepted: Socket, handler: Callable[[Socket], Any], group: TaskGroup
    ) -> None:
        """Start the handler, which then has the only reference to the connection."""
        peer = accepted.opened.result().remote_address
        try:
            group.start_soon(handle, handler, accepted, str(peer), name=f"serve {peer}")
        except BaseException:  # the group has ended
            await accepted.writable.abort()
            raise

    async def aclose(self) -> None:
        """Stop listening. Accepted connections stay open. A cancelled call still stops listening.

        Connections that were not accepted yet are reset.
        """
        self._backlog.close()
        await checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's ``SocketAttribute``, for the first address if there are several."""
        host, port = self._where[0]
        return {
            SocketAttribute.family: lambda: socket.AF_INET6 if ":" in host else socket.AF_INET,
            SocketAttribute.local_address: lambda: (host, port),
            SocketAttribute.local_port: lambda: port,
        }


def _host(name: str) -> str:
    """Return the key of a host: a name without its trailing dot, or an IP address without zone."""
    return parse_address((name, 1)).hostname.partition("%")[0].removesuffix(".")


def _seconds(name: str, value: object) -> float:
    """Check a number of seconds, which may be 0, but not infinite."""
    seconds = check_wait(name, value)
    if seconds == math.inf:
        raise bad_option(name, value, "must be a number of seconds, 0 or more")
    return seconds


def _ip(text: str) -> str:
    host = _host(text)
    if not is_ip(host):
        raise InvalidAddressError(f"bad address {quote(text)}: write an IP address")
    return host
