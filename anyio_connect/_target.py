"""The facts about the peer of a socket: before it is open, and afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ._address import SocketAddress, format_address
from ._options import Options
from ._transport import Transport


class Target(NamedTuple):
    """The address that a socket connects to, and its options."""

    address: SocketAddress
    options: Options

    def __str__(self) -> str:
        return format_address(*self.address)

    @property
    def host(self) -> str:
        """The host name or IP address, without a port."""
        return self.address.hostname


class Wrapping(NamedTuple):
    """What :class:`Target` is for a socket over an existing stream, whose peer is unknown."""

    name: str
    options: Options

    def __str__(self) -> str:
        return self.name

    @property
    def host(self) -> str:
        """Empty, because the peer's host is unknown."""
        return ""


@dataclass(frozen=True)
class SocketInfo:
    """The facts about an open connection: the result of ``socket.opened``.

    ``remote_address``: the peer's address as the kernel reports it, ``"ip:port"``, with an IPv6
    address in brackets; None if the stream below has no such address. Through a proxy, it is the
    ``"host:port"`` that the proxy was asked for, where the host may be a name.

    ``local_address``: the address of this side, in the same form. Through a proxy, it is that of
    the connection to the proxy.

    ``alpn``: the protocol that the TLS handshake agreed on (RFC 7301), or None.

    ``proxy_address``: the ``"ip:port"`` of the proxy, or None without a proxy.
    """

    remote_address: str | None
    """The peer's address as the kernel reports it, ``"ip:port"``, with an IPv6 address in
    brackets; None if the stream below has no such address. Through a proxy, it is the
    ``"host:port"`` that the proxy was asked for, where the host may be a name."""
    local_address: str | None
    """The address of this side, in the same form. Through a proxy, it is that of the connection to
    the proxy."""
    alpn: str | None = None
    """The protocol that the TLS handshake agreed on (RFC 7301), or None."""
    proxy_address: str | None = None
    """The ``"ip:port"`` of the proxy, or None without a proxy."""


def info_of(transport: Transport) -> SocketInfo:
    """The facts that a transport reports about its connection."""

    def text(address: Any) -> str | None:  # the address of a Unix socket is a path, not a tuple
        return format_address(*address[:2]) if isinstance(address, tuple) else None

    remote, local = transport.addresses
    return SocketInfo(text(remote), text(local), transport.alpn)
