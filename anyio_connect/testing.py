"""A network in memory under ``connect()``, for tests of code that uses it.

    network = Network()
    async with network.listen("db.example:5432") as listener:
        ...  # listener.accept(), or listener.serve(handler)
        async with network.connector().connect("db.example:5432") as socket:
            ...

Nothing leaves the process, no descriptor is opened, and no task is started. Sockets behave as over
TCP on Linux: half-close, resets, buffers that are full, ``close()`` that waits for the peer.
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

#: The addresses of names that were given none. They are those of AS112 (RFC 7534, RFC 7535): they
#: count as public by every rule, and nobody would want to connect to the hosts that have them.
_MADE_UP = (IPv4Network("192.31.196.0/24"), IPv6Network("2001:4:112::/48"))
#: Where clients connect from (RFC 5737).
_CLIENT = "192.0.2.1"
_FIRST_FREE_PORT = 49152
_LAST_PORT = 65535


class Network:
    """A network in memory. Its connections have the rules of TCP, and the time of the event loop.

    It belongs to one event loop at a time.

    ``latency``: how long anything takes from one end to the other, in seconds. Making a connection
    takes twice that. A new value is for connections that are made after it was set.

    ``buffer_size``: how many bytes each end of a connection keeps on either side, sent or
    received, before a send has to wait.

    A name exists once something listens there, or :meth:`add_host` has made it known. Every IP
    address exists. A connection to a port where nothing listens is refused.

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
        """How long anything takes from one end to the other, in seconds."""
        return self._memory.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._memory.latency = _seconds("latency", seconds)

    # --- who is there

    def add_host(self, name: str, *addresses: str) -> None:
        """Make a name known, with these IP addresses in place of those that it had.

        ``name``: a host name. ``addresses``: its IP addresses, by which policies judge it. If none
        is given, the name keeps those that it has, or gets a public one that is made up. Listeners
        at the name stay at the addresses that it had.

        :raises InvalidAddressError: ``name`` is no host name, or an address is no IP address
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
        """Listen at ``address`` at once; the package's ``listen()`` does the same, but is awaited.

        ``address``, ``allow_half_open``, ``close_timeout``: as for that function. A new name
        exists from then on, as by :meth:`add_host`. This listens at all addresses of the name.

        :raises InvalidAddressError: the address names no TCP endpoint
        :raises InvalidOptionError: an option has a bad value
        :raises ListenError: something listens there already
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

    # --- what goes wrong

    def fail(
        self, address: str | SocketAddress | tuple[str, int], failure: OSError | None
    ) -> None:
        """Make each dial of ``address`` fail with ``failure``, at once; with None, no longer.

        For example, ``OSError(errno.EHOSTUNREACH, "")`` is what a router may answer. A new name
        exists from then on, as by :meth:`add_host`.

        :raises InvalidAddressError: the address names no TCP endpoint
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
        """Hold back all that is sent to ``address``, or from there, until the block ends.

        It is as if a cable were pulled: dials get no answer, and connections neither end nor are
        reset. What was under way before still arrives. After the block, everything that was sent
        meanwhile arrives in order, as TCP would send it again. A new name exists from then on, as
        by :meth:`add_host`.

        :raises InvalidAddressError: the address names no TCP endpoint
        """
        return self._silence(self._keys(parse_address(address)))

    # --- ways there

    async def dial(self, address: SocketAddress, /) -> ByteStream:
        """Connect to ``address``: a :class:`Dialer`. The addresses of a name are tried in turn.

        :raises OSError: what the system would raise: ``socket.gaierror`` for a name that does not
            exist, ``ConnectionRefusedError`` if nothing listens there
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
        """Return the IP addresses of the name ``host``; of an IP address, itself.

        It is a ``resolver`` of ``Connector``. ``port`` makes no difference.

        :raises socket.gaierror: the name does not exist here
        """
        await checkpoint()
        return [*self._addresses(_host(host))]

    def connector(
        self, like: Connector | None = None, *, policy: AddressPolicy | None = None
    ) -> Connector:
        """Return a ``Connector`` whose sockets are on this network.

        ``like``: the ``Connector`` of the program that is tested. The new one has its values,
        apart from those that are for real networks only (``local_host``, ``prepare``, ``proxy``).
        Names are resolved on this network.

        ``policy``: the policy to use in place of that of ``like``.

        :raises InvalidOptionError: ``policy`` is no ``AddressPolicy``
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
        """A port that nothing listens at and no connection comes from."""
        port = max(self._ports.get(ip, _FIRST_FREE_PORT) for ip in ips)
        while any((ip, port) in self._memory.hosts for ip in ips):
            port += 1
        if port > _LAST_PORT:
            port = _FIRST_FREE_PORT  # the first that was used is long gone
        self._ports.update(dict.fromkeys(ips, port + 1))
        return port


#: What a Connector has that means something on a network in memory too.
_KEPT = [
    field.name
    for field in fields(Connector)
    if field.name
    not in ("dialer", "happy_eyeballs_delay", "local_host", "prepare", "proxy", "resolver")
]


class MemoryListener(abc.Listener[Socket]):
    """What ``Network.listen()`` returns. It has no public constructor; close it after use.

    Its sockets are open, as those of the package's ``Listener`` are.
    """

    def __init__(self, memory: Memory, where: list[tuple[str, int]], options: Options) -> None:
        self._backlog = Backlog(memory, where)
        self._where = where
        self._options = options
        self._serving = anyio.ResourceGuard("serving")

    @property
    def addresses(self) -> list[str]:
        """Where it listens: ``"ip:port"``, IPv6 in brackets, one or more."""
        return [format_address(*key) for key in self._where]

    async def accept(self) -> Socket:
        """Wait for a connection, and return our end of it, which is open.

        Clients connect without waiting for this. If it is cancelled, it has taken no connection.

        :raises anyio.ClosedResourceError: the listener was closed, also while waiting
        """
        await checkpoint()
        transport = await self._backlog.take()
        peer: Any = transport.extra(SocketAttribute.remote_address)
        target = Target(SocketAddress(*peer), self._options)
        ours = Socket(Accepted(transport), target, None)
        with anyio.CancelScope(shield=True):  # it has been taken, and so has to be returned
            await ours.opened
        return ours

    async def serve(
        self, handler: Callable[[Socket], Any], task_group: TaskGroup | None = None
    ) -> None:
        """Accept connections until cancelled or closed; run ``handler`` in a task for each.

        It does what :meth:`anyio_connect.Listener.serve` does: what a client can cause ends its
        handler only, and is logged. The tasks are in ``task_group``, or in a group around this
        call.

        :raises anyio.ClosedResourceError: the listener was closed, and the tasks in the group
            around this call have ended
        :raises anyio.BusyResourceError: another task serves already
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
        """Start the handler: from then on, nothing else has the connection."""
        peer = accepted.opened.result().remote_address
        try:
            group.start_soon(handle, handler, accepted, str(peer), name=f"serve {peer}")
        except BaseException:  # the group is no more
            await accepted.writable.abort()
            raise

    async def aclose(self) -> None:
        """Stop listening. Connections that were accepted go on. Done even when cancelled.

        Connections that came in and were not accepted yet are reset.
        """
        self._backlog.close()
        await checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's ``SocketAttribute``: of the first address, if there are several."""
        host, port = self._where[0]
        return {
            SocketAttribute.family: lambda: socket.AF_INET6 if ":" in host else socket.AF_INET,
            SocketAttribute.local_address: lambda: (host, port),
            SocketAttribute.local_port: lambda: port,
        }


def _host(name: str) -> str:
    """A name as the table of names has it, or an IP address, without a zone: there is one link."""
    return parse_address((name, 1)).hostname.partition("%")[0].removesuffix(".")


def _seconds(name: str, value: object) -> float:
    """A number of seconds, which may be 0, but not infinite."""
    seconds = check_wait(name, value)
    if seconds == math.inf:
        raise bad_option(name, value, "must be a number of seconds, 0 or more")
    return seconds


def _ip(text: str) -> str:
    host = _host(text)
    if not is_ip(host):
        raise InvalidAddressError(f"bad address {quote(text)}: write an IP address")
    return host
