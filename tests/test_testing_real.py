"""The same acts on sockets of a network in memory and on real ones have the same results."""

from __future__ import annotations

import select
import socket as stdlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from anyio_connect import Socket, connect
from anyio_connect._linger import outstanding
from anyio_connect._memory import MemoryTransport
from anyio_connect._tcp import TCPTransport
from anyio_connect.testing import Network
from support.peers import Listener
from support.sockets import Made, opened_by, raw
from support.turns import all_blocked

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the network in memory behaves like Linux"),
    pytest.mark.slow,
]

#: How long the kernel may take to deliver what was sent on loopback, in seconds.
PATIENCE = 5.0
#: What poll() reports: IN, OUT, ERR, HUP, RDHUP.
FLAGS = 0x201D


async def receive_into(socket: Socket, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await socket.receive_into(buffer)])


async def is_readable(socket: Socket) -> bool:
    return socket.is_readable()


ACTIONS: dict[str, Callable[[Socket, int], Awaitable[Any]]] = {
    "send": lambda socket, size: socket.send(bytes(number % 251 for number in range(size))),
    "receive": lambda socket, size: socket.receive(size),
    "receive_exactly": lambda socket, size: socket.receive_exactly(size + 1),
    "receive_until": lambda socket, size: socket.receive_until(b"\x05", size),
    "receive_into": receive_into,
    "is_readable": lambda socket, _: is_readable(socket),
    "send_eof": lambda socket, _: socket.send_eof(),
    "end": lambda socket, _: socket.writable.aclose(),
    "stop": lambda socket, _: socket.readable.aclose(),
    "abort": lambda socket, _: socket.writable.abort("enough"),
    "close": lambda socket, _: socket.close(),
    "closed": lambda socket, _: socket.closed,
}


@dataclass(frozen=True)
class Act:
    side: int
    what: str
    size: int = 1


@dataclass
class Call:
    """One act, on one of the pairs."""

    act: Act
    done: anyio.Event = field(default_factory=anyio.Event)
    came: str = ""

    async def run(self, socket: Socket) -> None:
        try:
            self.came = repr(await ACTIONS[self.act.what](socket, self.act.size))
        except Exception as exc:  # noqa: BLE001  # the errors are compared
            self.came = f"{type(exc).__name__}: {exc}"
        self.done.set()


@asynccontextmanager
async def in_memory(half_open: tuple[bool, bool]) -> AsyncIterator[tuple[Socket, Socket]]:
    network = Network(buffer_size=1 << 20)
    async with network.listen("h.example:1", allow_half_open=half_open[1]) as listener:
        ours = network.connector().connect("h.example:1", allow_half_open=half_open[0])
        await ours.opened
        theirs = await listener.accept()
    try:
        yield ours, theirs
    finally:
        await ours.close()
        await theirs.close()


@asynccontextmanager
async def on_loopback(half_open: tuple[bool, bool]) -> AsyncIterator[tuple[Socket, Socket]]:
    listener = Listener()
    try:
        ours = connect(listener.address, allow_half_open=half_open[0])
        await ours.opened
        peer = await listener.accept()
        listener.peers.clear()
    finally:
        listener.close()
    theirs = opened_by(Made(TCPTransport(peer.sock)), half_open=half_open[1])
    await theirs.opened
    try:
        yield ours, theirs
    finally:
        await ours.close()
        await theirs.close()


Seen: TypeAlias = tuple[int, bool]


def seen_in_memory(socket: Socket) -> Seen | None:
    """What poll() would report, and whether everything is acknowledged; None if closed."""
    transport = socket._connection.transport
    assert isinstance(transport, MemoryTransport)
    if transport._closed:
        return None
    return transport._events(FLAGS) & FLAGS, not transport._outstanding()


def seen_on_loopback(socket: Socket) -> Seen | None:
    sock = raw(socket)
    if sock.fileno() < 0:
        return None
    # Otherwise the kernel would delay its acknowledgements.
    sock.setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_QUICKACK, 1)
    poll = select.poll()
    poll.register(sock, FLAGS)
    found = poll.poll(0)
    return found[0][1] if found else 0, not outstanding(sock)


class Comparison:
    """Performs the same acts on both pairs, one after the other."""

    def __init__(
        self,
        group: TaskGroup,
        memory: tuple[Socket, Socket],
        real: tuple[Socket, Socket],
    ) -> None:
        self.group = group
        self.memory = memory
        self.real = real
        self.calls: list[tuple[Call, Call]] = []

    async def do(self, act: Act) -> None:
        calls = Call(act), Call(act)
        self.calls.append(calls)
        self.group.start_soon(calls[0].run, self.memory[act.side])
        self.group.start_soon(calls[1].run, self.real[act.side])
        await self.settle()

    async def settle(self) -> None:
        """Let everything under way finish, and compare all that can be observed."""
        await all_blocked()
        for ours, theirs in self.calls:
            if ours.done.is_set():
                with anyio.move_on_after(PATIENCE):
                    await theirs.done.wait()
                assert theirs.came == ours.came, ours.act
        give_up = time.monotonic() + PATIENCE
        for side in (0, 1):
            expected = seen_in_memory(self.memory[side])
            while seen_on_loopback(self.real[side]) != expected:
                assert time.monotonic() < give_up, (
                    f"side {side}: {expected} in memory, "
                    f"{seen_on_loopback(self.real[side])} on loopback"
                )
                await checkpoint()
        await all_blocked()
        for ours, theirs in self.calls:
            assert ours.done.is_set() == theirs.done.is_set(), (ours, theirs)
        for one, two in zip(self.memory, self.real, strict=True):
            assert one._connection.state is two._connection.state
            assert one.closed.done() == two.closed.done()
            if one.closed.done():
                assert repr(one.closed.exception()) == repr(two.closed.exception())


acts = st.lists(
    st.builds(
        Act,
        st.integers(0, 1),
        st.sampled_from(["send", "receive"] * 2 + [*ACTIONS]),
        st.sampled_from([1, 1000]),
    ),
    min_size=2,
    max_size=12,
)


@given(acts, st.tuples(st.booleans(), st.booleans()))
async def test_the_same_acts_have_the_same_results(
    acts: list[Act], half_open: tuple[bool, bool]
) -> None:
    async with (
        in_memory(half_open) as memory,
        on_loopback(half_open) as real,
        anyio.create_task_group() as group,
    ):
        comparison = Comparison(group, memory, real)
        for act in acts:
            await comparison.do(act)
        for side in (1, 0):
            await comparison.do(Act(side, "close"))
