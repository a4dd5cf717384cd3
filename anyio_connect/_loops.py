"""What this process listens on by ``listen()``: to dial that would be a loop."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from ipaddress import IPv6Address, ip_address
from typing import Any
from weakref import WeakKeyDictionary

from ._ranges import IPAddress, hidden, wrapped

# Weak, so that a listener that was dropped without closing it is not remembered.
_listening: WeakKeyDictionary[socket.socket, tuple[IPAddress, int]] = WeakKeyDictionary()
_lock = threading.Lock()


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
    """
    ip, port = _normal(sockaddr)
    if not int(ip):  # where the system connects to instead
        ip = hidden(ip)[0].ip
    with _lock:
        heard = [at for at, number in _listening.values() if number == port]
    if ip in heard:
        return True
    return any(at.version == ip.version and not int(at) for at in heard) and _is_local(sockaddr)


def _normal(sockaddr: tuple[Any, ...]) -> tuple[IPAddress, int]:
    ip = ip_address(sockaddr[0].partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = wrapped(ip)[0].ip
    return ip, sockaddr[1]


def _is_local(sockaddr: tuple[Any, ...]) -> bool:
    """Whether this machine has that address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in sockaddr[0] else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
        try:
            probe.bind((sockaddr[0], 0, *sockaddr[2:]))
        except OSError:
            return False
    return True
