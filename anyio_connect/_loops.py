"""The addresses that this process listens on by ``listen()``.

A connection to one of them would be a loop, which ``AddressPolicy.refuse_loops`` refuses.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from weakref import WeakKeyDictionary

from ._ranges import IPAddress, hidden, wrapped

#: The errors of connect() that mean: there is no route to the address, or it is a broadcast
#: address. Such an address is not this machine's. (EINVAL: a link-local address without a zone.)
_NOWHERE = frozenset(
    {
        *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL),
        *(errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT),
    }
)

# Weak keys: a listener that is collected without being closed is forgotten.
_listening: WeakKeyDictionary[socket.socket, tuple[IPAddress, int]] = WeakKeyDictionary()
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()  # another thread of the parent may have held the old lock


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_BROADCAST = IPv4Address("255.255.255.255")


def announce(listener: socket.socket) -> None:
    """Remember a listening socket until :func:`withdraw` is called or it is collected."""
    address = _normal(listener.getsockname())
    with _lock:
        _listening[listener] = address


def withdraw(listener: socket.socket) -> None:
    """Forget a listening socket."""
    with _lock:
        _listening.pop(listener, None)


def leads_back(sockaddr: tuple[Any, ...]) -> bool:
    """Whether a connection to ``sockaddr`` would reach a listener of this process.

    :raises ValueError: ``sockaddr`` does not begin with an IP address
    :raises OSError: the system did not say whether the address is its own
    """
    ip, port = _normal(sockaddr)
    if not int(ip):  # for the unspecified address, the system connects to loopback
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
    """The number of the zone, 0 if there is none.

    It is the fourth item of ``sockaddr``. A transport that tells the address of its peer may give
    only two items; then the zone is part of the host.
    """
    if len(sockaddr) == 4:
        return int(sockaddr[3])
    _, _, zone = sockaddr[0].partition("%")
    return socket.if_nametoindex(zone) if zone else 0


def _is_local(ip: IPAddress, port: int, scope: int) -> bool:
    """Whether ``ip`` is an address of this machine.

    Connecting a datagram socket sends nothing, but makes the system choose a source address. If
    the destination is an address of this machine, the source is that same address, or loopback.
    (bind() is no test: it always accepts multicast addresses, and with ip_nonlocal_bind it accepts
    any address.)
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
