"""Puts the simulated network under the package, during a history.

The package's ``socket``, ``select`` and ``fcntl`` are replaced by modules that accept simulated
descriptors, and are otherwise the real ones. The package itself is not changed, except that names
are resolved from a table, because a lookup would need a thread.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import anyio

import anyio_connect
from anyio_connect import _dial, _listen, _lookup
from anyio_connect._memory_tcp import error

from .network import FIRST_FD, Network
from .polling import Epoll
from .sockets import Socket, setting
from .tcp import Wire

PACKAGE = anyio_connect.__name__

_SIOCOUTQNSD = 0x894B  # linux/sockios.h


class _Overlay(ModuleType):
    """A module that replaces some names of a real one."""

    def __init__(self, real: ModuleType, **names: Any) -> None:
        super().__init__(real.__name__)
        self._real = real
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _ioctl(fd: Any, request: int, arg: Any = 0, mutate_flag: bool = True) -> Any:
    """``fcntl.ioctl()``: how much is not acknowledged (SIOCOUTQ), not sent, or not received
    yet."""
    number = fd if isinstance(fd, int) else fd.fileno()
    if number < FIRST_FD:
        return fcntl.ioctl(fd, request, arg, mutate_flag)
    thing = setting.network.thing(number)
    end = thing.end if isinstance(thing, Socket) else None
    if end is None or request not in (termios.TIOCOUTQ, termios.FIONREAD, _SIOCOUTQNSD):
        raise error(22)
    count = len(end.rx)
    if request != termios.FIONREAD:
        count = end.unacknowledged if request == termios.TIOCOUTQ else end.unsent
    packed = struct.pack("i", count)
    if isinstance(arg, (bytearray, memoryview)) or hasattr(arg, "tobytes"):
        memoryview(arg).cast("B")[: len(packed)] = packed
        return 0
    return packed


def _overlays() -> Mapping[ModuleType, ModuleType]:
    return {
        socket: _Overlay(socket, socket=Socket),
        select: _Overlay(select, epoll=lambda *_: Epoll(setting.network)),
        fcntl: _Overlay(fcntl, ioctl=_ioctl),
    }


_OVERLAYS = _overlays()


@contextmanager
def simulated(
    network: Network,
    wires: Callable[[], tuple[Wire, Wire]],
    names: Mapping[str, list[tuple[int, str]]],
    resolving: float,
) -> Iterator[None]:
    """Make the package use ``network``. ``names``: host names, with families and addresses."""
    changed: list[tuple[ModuleType, str, Any]] = []

    def put(module: ModuleType, name: str, value: Any) -> None:
        changed.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    resolve = _lookup.resolve

    async def from_table(address: Any) -> Any:
        if address.hostname not in names:
            return await resolve(address)
        await anyio.sleep(resolving)
        port = address.port
        return [
            _lookup.Endpoint(family, (ip, port, 0, 0) if ":" in ip else (ip, port))
            for family, ip in names[address.hostname]
        ]

    setting.network, setting.wires = network, wires
    try:
        for name, module in [*sys.modules.items()]:
            if name.partition(".")[0] != PACKAGE:
                continue
            for variable, value in [*vars(module).items()]:
                if isinstance(value, ModuleType) and value in _OVERLAYS:
                    put(module, variable, _OVERLAYS[value])
        put(_dial, "resolve", from_table)
        put(_listen, "resolve", from_table)
        yield
    finally:
        for module, name, value in reversed(changed):
            setattr(module, name, value)
