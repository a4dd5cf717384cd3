"""What is measured, put together from what each kind of socket can do.

``Tool`` is one kind of socket on one event loop. How it does a thing is its own best way; what
it does here is the same for all.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from benchmarks.services import Service

SMALL = 64  #: bytes of a round trip
MANY = 100  #: sockets at once
IDLE = 5000  #: sockets held open


Call: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Tool(Protocol):
    """One kind of socket. A connection is whatever ``open`` returns."""

    async def open(self, port: int, *, tls: bool) -> Any:
        """Connect to the peer."""

    async def open_without_context(self, port: int) -> Any:
        """Connect over TLS as one does who says nothing about certificates."""

    async def close(self, connection: Any) -> None:
        """Close it, waiting for no more than this kind of socket does by itself."""

    async def send(self, connection: Any, data: bytes) -> None:
        """Send something small."""

    async def take(self, connection: Any, amount: int) -> None:
        """Receive that many bytes, in pieces as large as serves this kind of socket best."""

    async def give(self, connection: Any, amount: int, size: int) -> None:
        """Send that many bytes, in writes of ``size`` bytes."""

    async def ping(self, connection: Any, times: int, message: bytes) -> None:
        """Send the message and receive it back, so many times."""

    async def at_once(self, calls: Sequence[Call]) -> None:
        """Make all the calls at the same time."""


@dataclass(frozen=True)
class Work:
    """One thing to measure. ``amount`` of it makes up a turn (0: only over TLS)."""

    title: str
    unit: str  #: MB/s and /s: more is better; KiB: less is
    run: Callable[[Tool, Sequence[int], bool, int], Coroutine[Any, Any, float]]
    amount: int
    tls_amount: int  #: 0: not over TLS
    afresh: bool = False  #: in a process that has done nothing else before


def command(amount: int) -> bytes:
    return amount.to_bytes(8, "big")


async def receive(tool: Tool, ports: Sequence[int], tls: bool, amount: int) -> float:
    connection = await tool.open(ports[Service.SEND], tls=tls)
    await tool.send(connection, command(1))
    await tool.take(connection, 1)
    begun = time.perf_counter()
    await tool.send(connection, command(amount))
    await tool.take(connection, amount)
    seconds = time.perf_counter() - begun
    await tool.close(connection)
    return amount / seconds / 1e6


def sending(size: int) -> Callable[[Tool, Sequence[int], bool, int], Coroutine[Any, Any, float]]:
    async def send(tool: Tool, ports: Sequence[int], tls: bool, amount: int) -> float:
        connection = await tool.open(ports[Service.TAKE], tls=tls)
        begun = time.perf_counter()
        await tool.send(connection, command(amount))
        await tool.give(connection, amount, size)
        await tool.take(connection, 1)
        seconds = time.perf_counter() - begun
        await tool.close(connection)
        return amount / seconds / 1e6

    return send


async def duplex(tool: Tool, ports: Sequence[int], tls: bool, amount: int) -> float:
    connection = await tool.open(ports[Service.BOTH], tls=tls)

    async def give() -> None:
        await tool.give(connection, amount, 65536)

    async def take() -> None:
        await tool.take(connection, amount + 1)

    begun = time.perf_counter()
    await tool.send(connection, command(amount))
    await tool.at_once([give, take])
    seconds = time.perf_counter() - begun
    await tool.close(connection)
    return 2 * amount / seconds / 1e6


async def round_trips(tool: Tool, ports: Sequence[int], tls: bool, amount: int) -> float:
    connection = await tool.open(ports[Service.ECHO], tls=tls)
    await tool.ping(connection, 10, bytes(SMALL))
    begun = time.perf_counter()
    await tool.ping(connection, amount, bytes(SMALL))
    seconds = time.perf_counter() - begun
    await tool.close(connection)
    return amount / seconds


async def many_round_trips(tool: Tool, ports: Sequence[int], tls: bool, amount: int) -> float:
    connections = [await tool.open(ports[Service.ECHO], tls=tls) for _ in range(MANY)]

    def pinging(connection: Any, times: int) -> Call:
        return partial(tool.ping, connection, times, bytes(SMALL))

    await tool.at_once([pinging(connection, 1) for connection in connections])
    begun = time.perf_counter()
    await tool.at_once([pinging(connection, amount) for connection in connections])
    seconds = time.perf_counter() - begun
    for connection in connections:
        await tool.close(connection)
    return MANY * amount / seconds


async def connect_and_close(tool: Tool, ports: Sequence[int], tls: bool, amount: int) -> float:
    port = ports[Service.HOLD]
    begun = time.perf_counter()
    for _ in range(amount):
        await tool.close(await tool.open(port, tls=tls))
    return amount / (time.perf_counter() - begun)


async def connect_without_context(
    tool: Tool, ports: Sequence[int], tls: bool, amount: int
) -> float:
    port = ports[Service.HOLD]
    begun = time.perf_counter()
    for _ in range(amount):
        await tool.close(await tool.open_without_context(port))
    return amount / (time.perf_counter() - begun)


async def first_byte(tool: Tool, ports: Sequence[int], tls: bool, amount: int) -> float:
    port = ports[Service.GREET]
    begun = time.perf_counter()
    for _ in range(amount):
        connection = await tool.open(port, tls=tls)
        await tool.take(connection, 1)
        await tool.close(connection)
    return amount / (time.perf_counter() - begun)


async def memory(tool: Tool, ports: Sequence[int], tls: bool, amount: int) -> float:
    port = ports[Service.HOLD]
    held = [await tool.open(port, tls=tls) for _ in range(10)]
    gc.collect()
    before = resident()
    held += [await tool.open(port, tls=tls) for _ in range(amount)]
    gc.collect()
    used = resident() - before
    for connection in held:
        await tool.close(connection)
    return used / amount / 1024


def resident() -> int:
    """How much memory this process has, in bytes."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("unreachable")


WORKS: dict[str, Work] = {
    "receive": Work("bulk receive", "MB/s", receive, 1 << 30, 384 << 20),
    "send_64k": Work("bulk send, 64 KiB writes", "MB/s", sending(1 << 16), 1 << 30, 384 << 20),
    "send_1m": Work("bulk send, 1 MiB writes", "MB/s", sending(1 << 20), 1 << 30, 384 << 20),
    "duplex": Work("duplex, both ways together", "MB/s", duplex, 512 << 20, 192 << 20),
    "round_trip": Work("64-byte round trips", "/s", round_trips, 4000, 3000),
    "round_trips": Work("the same on 100 sockets at once", "/s", many_round_trips, 60, 40),
    "connect": Work("connect and close", "/s", connect_and_close, 500, 100),
    "connect_default": Work(
        "connect and close, no context passed", "/s", connect_without_context, 0, 20
    ),
    "first_byte": Work("connect, first byte, close", "/s", first_byte, 300, 60),
    "memory": Work("memory of an open, idle socket", "KiB", memory, IDLE, 1000, afresh=True),
}
