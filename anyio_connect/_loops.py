"""What this process listens on by ``listen()``: to dial that would be a loop."""

from __future__ import annotations

import errno
import os
import socket
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from weakref import WeakKeyDictionary

from ._ranges import IPAddress, hidden, wrapped

#: What connecting a socket fails with if there is no way to the address, or none but to
#: several hosts at once: then it is not this machine's. (EINVAL: a link without its zone.)
_NOWHERE = frozenset(
    {
        *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL),
        *(errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT),
    }
)

# Weak, so that a listener that was dropped without closing it is not remembered.
_listening: WeakKeyDictionary[socket.socket, tuple[IPAddress, int]] = WeakKeyDictionary()
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()  # another thread of the parent may have had it, and is no more


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_BROADCAST = IPv4Address("255.255.255.255")


def announce(listener: socket.socket) -> None:
    """Remember a listening socket, until it is withdrawn or collected."""
    address = _normal(listener.getsockname())
    with _lock:
        _listening[listener] = address


def withdraw(listener: socket.socket) -> None:
    """Forget a listening socket."""
    with _lock:
        _listening.pop(listener, None)


def leads_back(sockaddr: tuple[Any, ...]) -> bool:
    """Whether a connection to ``sockaddr`` would be to a listener of this process.

    :raises ValueError: it has no IP address
    :raises OSError: it cannot be told
    """
    ip, port = _normal(sockaddr)
    if not int(ip):  # where the system connects to instead
        ip = hidden(ip)[0].ip
    with _lock:
        heard = [at for at, number in _listening.values() if number == port]
    if ip in heard:
        return True
    if not any(at.version == ip.version and not int(at) for at in heard):
        return False
    return _is_local(ip, port, _scope(sockaddr))


def _normal(sockaddr: tuple[Any, ...]) -> tuple[IPAddress, int]:
    ip = ip_address(sockaddr[0].partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = wrapped(ip)[0].ip
    return ip, sockaddr[1]


def _scope(sockaddr: tuple[Any, ...]) -> int:
    """The number of the zone, which is in the host only where a transport tells its peer."""
    if len(sockaddr) == 4:
        return int(sockaddr[3])
    _, _, zone = sockaddr[0].partition("%")
    return socket.if_nametoindex(zone) if zone else 0


def _is_local(ip: IPAddress, port: int, scope: int) -> bool:
    """Whether this machine has that address.

    To connect a socket for datagrams sends nothing, but makes the system choose where from: to
    an address of this machine, it is that address itself, or loopback. (Whether a socket can be
    bound to it does not tell: to multicast it always can, to anything with ip_nonlocal_bind.)
    """
    if ip.is_multicast or ip == _BROADCAST:
        return False
    six = isinstance(ip, IPv6Address)
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(ip), port, 0, scope) if six else (str(ip), port))
        except OSError as exc:
            if exc.errno in _NOWHERE:
                return False
            raise
        source, _ = _normal(probe.getsockname())
    return source == ip or source.is_loopback
