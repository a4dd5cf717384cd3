"""The work that is measured, made from the operations of each kind of socket.

``Tool`` is one kind of socket on one event loop. It does an operation in the way that is best for
that kind, but the work is the same for all. Each work returns the client's cost of one operation.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeAlias

from benchmarks.services import Service

SMALL = 64  #: bytes of a round trip
BUSY = 10  #: sockets in use among many
MB = 1_000_000
PIECE = 1 << 18  #: bytes to receive at most at a time, which serves all best over TCP


Call: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

#: The cost of one operation: "cpu" and "wall" in microseconds, "calls", or "memory" in KiB.
Cost: TypeAlias = dict[str, float]


class Tool(Protocol):
    """One kind of socket. A connection is what ``open`` returns, of any type."""

    async def open(self, port: int, *, tls: bool) -> Any:
        """Connect to the peer."""

    async def open_without_context(self, port: int) -> Any:
        """Connect over TLS without a context, like a user who passes none."""

    async def close(self, connection: Any) -> None:
        """Close it. Wait only for what this kind of socket waits for by itself."""

    async def send(self, connection: Any, data: bytes) -> None:
        """Send something small."""

    async def take(self, connection: Any, amount: int) -> None:
        """Receive that many bytes, in pieces of the size that is best for this kind of socket."""

    async def take_into(self, connection: Any, amount: int) -> None:
        """Receive that many bytes into our own buffer."""

    async def give(self, connection: Any, amount: int, size: int) -> None:
        """Send that many bytes, in writes of ``size`` bytes."""

    async def ping(self, connection: Any, times: int, message: bytes) -> None:
        """Send the message and receive it back, ``times`` times."""

    async def at_once(self, calls: Sequence[Call]) -> None:
        """Make all the calls at the same time, as all others on this event loop do."""


class Clock:
    """Measures time from its creation. Or counts calls, which slows down the measured work."""

    def __init__(self, *, counts: bool) -> None:
        self._counts = counts
        self._calls = 0
        self._wall = time.perf_counter()
        self._cpu = time.process_time()
        if counts:
            sys.setprofile(self._count)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":  # of a Python function, or a resumption of a coroutine
            self._calls += 1

    def cost(self, operations: float) -> Cost:
        if self._counts:
            sys.setprofile(None)
            return {"calls": self._calls / operations}
        cpu = time.process_time() - self._cpu
        wall = time.perf_counter() - self._wall
        return {"cpu": cpu / operations * 1e6, "wall": wall / operations * 1e6}


@dataclass(frozen=True)
class Order:
    """How much work to do."""

    ports: Sequence[int]
    tls: bool
    amount: int
    sockets: int
    counts: bool = False  #: calls instead of time

    def clock(self) -> Clock:
        return Clock(counts=self.counts)


Run: TypeAlias = Callable[[Tool, Order], Coroutine[Any, Any, Cost]]


def command(amount: int) -> bytes:
    return amount.to_bytes(8, "big")


# --- much data


async def receive(tool: Tool, order: Order, *, into: bool = False) -> Cost:
    take = tool.take_into if into else tool.take
    connection = await tool.open(order.ports[Service.SEND], tls=order.tls)
    await tool.send(connection, command(1))
    await take(connection, 1)
    clock = order.clock()
    await tool.send(connection, command(order.amount))
    await take(connection, order.amount)
    cost = clock.cost(order.amount / MB)
    await tool.close(connection)
    return cost


async def receive_into(tool: Tool, order: Order) -> Cost:
    """The same, and also without a buffer, to compare: "cpu without" and "wall without"."""
    costs = {}
    for into in random.sample((True, False), 2):
        costs[into] = await receive(tool, order, into=into)
    return costs[True] | {f"{measure} without": cost for measure, cost in costs[False].items()}


def sending(size: int) -> Run:
    async def send(tool: Tool, order: Order) -> Cost:
        amount = max(1, order.amount // size) * size
        connection = await tool.open(order.ports[Service.TAKE], tls=order.tls)
        clock = order.clock()
        await tool.send(connection, command(amount))
        await tool.give(connection, amount, size)
        await tool.take(connection, 1)
        cost = clock.cost(amount / MB)
        await tool.close(connection)
        return cost

    return send


async def duplex(tool: Tool, order: Order) -> Cost:
    amount = max(1, order.amount // 65536) * 65536
    connection = await tool.open(order.ports[Service.BOTH], tls=order.tls)

    async def give() -> None:
        await tool.give(connection, amount, 65536)

    async def take() -> None:
        await tool.take(connection, amount + 1)

    clock = order.clock()
    await tool.send(connection, command(amount))
    await tool.at_once([give, take])
    cost = clock.cost(2 * amount / MB)
    await tool.close(connection)
    return cost


# --- small messages


def round_trips(busy: int | None = None) -> Run:
    """Round trips on that many of the sockets at the same time, or on all."""

    async def run(tool: Tool, order: Order) -> Cost:
        port = order.ports[Service.ECHO]
        connections = [await tool.open(port, tls=order.tls) for _ in range(order.sockets)]
        used = connections[:busy]

        def pinging(connection: Any, times: int) -> Call:
            return partial(tool.ping, connection, times, bytes(SMALL))

        async def ping(times: int) -> None:
            if len(used) == 1:  # without a task of its own
                await tool.ping(used[0], times, bytes(SMALL))
            else:
                await tool.at_once([pinging(connection, times) for connection in used])

        await ping(1)
        clock = order.clock()
        await ping(order.amount)
        cost = clock.cost(len(used) * order.amount)
        for connection in connections:
            await tool.close(connection)
        return cost

    return run


# --- short connections


async def connect_and_close(tool: Tool, order: Order) -> Cost:
    port = order.ports[Service.HOLD]
    clock = order.clock()
    for _ in range(order.amount):
        await tool.close(await tool.open(port, tls=order.tls))
    return clock.cost(order.amount)


async def connect_without_context(tool: Tool, order: Order) -> Cost:
    port = order.ports[Service.HOLD]
    clock = order.clock()
    for _ in range(order.amount):
        await tool.close(await tool.open_without_context(port))
    return clock.cost(order.amount)


async def first_byte(tool: Tool, order: Order) -> Cost:
    port = order.ports[Service.GREET]
    clock = order.clock()
    for _ in range(order.amount):
        connection = await tool.open(port, tls=order.tls)
        await tool.take(connection, 1)
        await tool.close(connection)
    return clock.cost(order.amount)


# --- memory


async def memory(tool: Tool, order: Order) -> Cost:
    port = order.ports[Service.HOLD]
    held = [await tool.open(port, tls=order.tls) for _ in range(10)]
    gc.collect()
    before = resident()
    held += [await tool.open(port, tls=order.tls) for _ in range(order.sockets)]
    gc.collect()
    used = resident() - before
    for connection in held:
        await tool.close(connection)
    return {"memory": used / order.sockets / 1024}


def resident() -> int:
    """How much memory this process has, in bytes."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("unreachable")


# --- the rows of the tables


@dataclass(frozen=True)
class Row:
    """One measurement. A turn does ``amount`` operations, on that number of sockets."""

    title: str
    run: Run
    amount: int = 1
    sockets: int = 1
    unit: str = "µs"  #: of the cost of one operation: µs, µs/MB, KiB
    tls: bool = False
    rounds: int | None = None  #: at most, for rows that take long and need no warm-up
    afresh: bool = False  #: in a process that has done nothing else before
    without: tuple[str, ...] = ()  #: contenders that do not do this

    @property
    def counts(self) -> bool:
        """Whether calls are counted too: in rows with many short operations in a turn."""
        return self.unit == "µs" and self.amount >= 50

    def rounds_of(self, rounds: int) -> int:
        return rounds if self.rounds is None else min(rounds, self.rounds)

    @property
    def measures(self) -> tuple[str, ...]:
        return ("memory",) if self.unit == "KiB" else ("cpu", "wall")


def _on_sockets(amounts: dict[int, int], *, tls: bool = False) -> dict[str, Row]:
    """A row for each number of sockets."""
    rows = {}
    for sockets, amount in amounts.items():
        without = () if sockets == 1 else ("blocking",) if sockets <= 100 else _FEW_ONLY
        rows[f"{'tls_' * tls}round_trip_{sockets}"] = Row(
            f"{'TLS: ' * tls}64-byte round trip on {sockets:,} socket{'s' * (sockets > 1)}",
            round_trips(),
            amount,
            sockets,
            tls=tls,
            without=(*without, *_NO_TLS * tls),
            rounds=None if sockets <= 1000 else 5 if sockets <= 5000 else 3,
        )
    return rows


_FEW_ONLY = (
    "blocking",
    "workerd",
)  # one has a thread for each socket, the other a limit for each request
_NO_TLS = ("sock",)
_NO_INTO = ("streams", "anyio", "trio", "node", "workerd")

ROWS: dict[str, Row] = {
    **_on_sockets({1: 4000, 10: 1000, 100: 100, 1000: 12, 5000: 4, 10000: 3}),
    "busy": Row(
        "64-byte round trip on 10 busy of 1,000 sockets",
        round_trips(BUSY),
        1000,
        1000,
        without=_FEW_ONLY,
    ),
    "connect": Row("connect and close", connect_and_close, 500),
    "first_byte": Row("connect, first byte, close", first_byte, 300),
    "receive": Row("bulk receive", receive, 1 << 30, unit="µs/MB"),
    "receive_into": Row(
        "bulk receive into a buffer",
        receive_into,
        512 << 20,
        unit="µs/MB",
        without=_NO_INTO,
    ),
    "send_64k": Row("bulk send, 64 KiB writes", sending(1 << 16), 1 << 30, unit="µs/MB"),
    "send_1m": Row("bulk send, 1 MiB writes", sending(1 << 20), 1 << 30, unit="µs/MB"),
    "duplex": Row("bulk, both ways together", duplex, 512 << 20, unit="µs/MB"),
    "memory": Row(
        "memory of an open, idle socket",
        memory,
        sockets=5000,
        unit="KiB",
        rounds=3,
        afresh=True,
        without=("node", "workerd"),
    ),
    **_on_sockets({1: 3000, 100: 60}, tls=True),
    "tls_connect": Row(
        "TLS: connect and close", connect_and_close, 100, tls=True, without=_NO_TLS
    ),
    "tls_connect_default": Row(
        "TLS: connect and close, no context passed",
        connect_without_context,
        10,
        tls=True,
        without=_NO_TLS,
    ),
    "tls_first_byte": Row(
        "TLS: connect, first byte, close", first_byte, 60, tls=True, without=_NO_TLS
    ),
    "tls_receive": Row(
        "TLS: bulk receive",
        receive,
        256 << 20,
        unit="µs/MB",
        tls=True,
        without=_NO_TLS,
    ),
    "tls_send": Row(
        "TLS: bulk send, 64 KiB writes",
        sending(1 << 16),
        256 << 20,
        unit="µs/MB",
        tls=True,
        without=_NO_TLS,
    ),
    "tls_duplex": Row(
        "TLS: bulk, both ways together",
        duplex,
        128 << 20,
        unit="µs/MB",
        tls=True,
        without=_NO_TLS,
    ),
    "tls_memory": Row(
        "TLS: memory of an open, idle socket",
        memory,
        sockets=300,
        unit="KiB",
        tls=True,
        rounds=3,
        afresh=True,
        without=("node", "workerd", *_NO_TLS),
    ),
}
