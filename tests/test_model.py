"""A real socket over loopback and the reference model, driven side by side at random.

After every step all that can be observed has to be what the model says: how each call ended or
that it waits, both futures, what the peer can read and how that ends, and the kernel's socket.

Nothing here sleeps. A step is over when the kernel has delivered what the peer did (it is asked)
and what the model expects has come about; a few more turns of the event loop then give what the
model does not expect its chance to show up.
"""

from __future__ import annotations

import fcntl
import random
import select
import socket as stdlib
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any, Literal, TypeAlias

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import checkpoint
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from anyio_connect import BrokenError, ClosedError, Socket, SocketFuture, connect
from anyio_connect._transport import TCPTransport
from model import BIG, Call, Kind, Model, Outcome
from peers import Listener, Peer, listening

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the model says what Linux's TCP does after a reset"
)

#: Both kernel buffers of a direction. Together far less than BIG, so that a send of that waits.
BUFFER = 65536

#: How long what is expected may take, in seconds: only a failure waits so long, and those that
#: Hypothesis then makes of it to find the simplest are not given as much.
PATIENCE = 5
PATIENCE_AFTER_FAILURE = 0.1

#: Turns of the event loop that a mistake has to show itself in. The longest way from an event
#: of the kernel to the end of a call that it wakes takes six.
TURNS = 12

PATTERN = random.Random(0).randbytes(BIG + 4096)

ActName: TypeAlias = Literal["send", "fin", "rst", "close"]
Act: TypeAlias = tuple[ActName, bytes]


@dataclass(frozen=True)
class Move:
    """One of our calls, or the cancellation of one, or a row of acts of the peer."""

    number: int = 0
    call: Call | None = None
    cancelled: bool = False
    acts: tuple[Act, ...] = ()

    def apply(self, model: Model, *, noticed: bool = True) -> None:
        if self.call is not None and self.cancelled:
            model.call_cancelled(self.number, self.call)
        elif self.call is not None:
            model.call(self.number, self.call, noticed=noticed)
        elif self.cancelled:
            model.cancel(self.number)
        for act, data in self.acts:
            match act:
                case "send":
                    model.peer_sends(data)
                case "fin":
                    model.peer_ends()
                case "rst":
                    model.peer_resets()
                case "close":
                    model.peer_closes()
        if noticed:
            model.follow()


def outcomes_of(model: Model, moves: tuple[Move, ...]) -> Iterator[Model]:
    """What may come of these moves, made at once but taken up in this order."""
    after = model.copy()
    for move in moves:
        move.apply(after)
    yield after
    if any(move.acts for move in moves) and len(model.waiting) > 1:
        # Those who wait wake in any order: a receive finds the peer's end where a watcher would
        # find the reset behind it, and which of them is first decides how the connection ended.
        for first in model.waiting:
            other = model.copy()
            other.waiting = {first: model.waiting[first], **model.waiting}
            for move in moves:
                move.apply(other)
            yield other
    # What a call fails with it asks a moment after it woke: it may find its half closed by then.
    closing = {move.call.kind for move in moves if move.call is not None}
    if model.closed:
        closing.add("close")
    late = {"receive": {"close", "stop"}, "send": {"close"}}
    failed = [
        number
        for number, call in (*model.waiting.items(), *((m.number, m.call) for m in moves))
        if call is not None
        and late.get(call.kind, set()) & closing
        and after.outcomes.get(number) in ("eof", "broken")
    ]
    if failed:
        after = after.copy()
        after.outcomes.update(dict.fromkeys(failed, "closed"))
        yield after
    if len(moves) == 2:
        first, second = moves
        if second.cancelled and second.call and second.call.kind == "watch":
            # What it waits for happens before the cancellation gets there.
            after = model.copy()
            first.apply(after)
            after.call(second.number, second.call)
            if not after.waiting.get(second.number):
                yield after
        if first.acts or first.call:
            # The second comes after the first, but before those who wait have noticed that.
            after = model.copy()
            first.apply(after, noticed=False)
            second.apply(after)
            yield after
        if first.call is not None and second.call is not None:
            yield from overlapping(model, first, second)


def overlapping(model: Model, first: Move, second: Move) -> Iterator[Model]:
    """What else may come of two calls where the second finds the first still at work."""
    assert first.call is not None
    assert second.call is not None
    kinds = (first.call.kind, second.call.kind)
    after = model.copy()
    if kinds in BUSY:
        first.apply(after)
        after.outcomes[second.number] = "busy"
        yield after
    elif kinds[0] == "end" and not model.made and not model.failed:
        # It waits for the connection, to which the second may put an end.
        second.apply(after)
        if after.failed is not None:
            after.outcomes[first.number] = after.failed
            yield after
    elif kinds in (("send_eof", "abort"), ("end", "abort")) and model.writing == "open":
        # An end that is still on its way can be dropped.
        second.apply(after)
        after.outcomes[first.number] = "ok"
        yield after


def _as_expected(sock: stdlib.socket, wanted: int, amount: int) -> bool:
    return flags(sock) & wanted == wanted and unread(sock) == amount


def unread(sock: stdlib.socket) -> int:
    """How many bytes can be read at once."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


def flags(sock: stdlib.socket) -> int:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return next((found for _, found in poll.poll(0)), 0)


def until(arrived: Callable[[], bool]) -> None:
    """Wait for the kernel; the event loop stands still meanwhile."""
    give_up = time.monotonic() + PATIENCE
    while not arrived():
        assert time.monotonic() < give_up, "the kernel did not deliver"


class Driver:
    """Makes the moves on the real socket. Lives in the event loop."""

    patience: float = PATIENCE

    def __init__(self, listener: Listener, group: TaskGroup, *, half_open: bool) -> None:
        self.listener = listener
        self.group = group
        self.socket = connect(listener.address, allow_half_open=half_open)
        self.peer: Peer | None = None
        self.peer_was_told = False  # how it ended
        self.limited = False  # our kernel buffer
        self.scopes: dict[int, anyio.CancelScope] = {}
        self.outcomes: dict[int, Outcome] = {}

    # --- our calls

    def start(self, move: Move) -> None:
        assert move.call is not None
        scope = self.scopes[move.number] = anyio.CancelScope()
        if move.cancelled:
            scope.cancel()
        self.group.start_soon(self.run, move.number, move.call, scope)

    async def run(self, number: int, call: Call, scope: anyio.CancelScope) -> None:
        outcome: Outcome = "cancelled"
        with scope:
            try:
                received = await operation(self.socket, call)
            except anyio.EndOfStream:
                outcome = "eof"
            except anyio.BusyResourceError:
                outcome = "busy"
            except ClosedError:
                outcome = "closed"
            except BrokenError:
                outcome = "broken"
            else:
                outcome = received if isinstance(received, bytes) else "ok"
        self.outcomes[number] = outcome

    # --- the peer

    @property
    def ours(self) -> stdlib.socket | None:
        """The kernel's socket under ours, while it is open."""
        transport = self.socket._connection.transport
        assert transport is None or isinstance(transport, TCPTransport)
        return None if transport is None or transport._sock.fileno() == -1 else transport._sock

    def act(self, acts: tuple[Act, ...]) -> None:
        """Do it all, and see that it has arrived, before the event loop can look."""
        assert self.peer is not None
        ours = self.ours
        for act, data in acts:
            lost = False
            here = unread(ours) if ours else 0
            match act:
                case "send":
                    self.peer.sock.send(data)
                    here += len(data)
                case "fin":
                    self.peer.fin()
                case "rst":
                    self.peer.rst()
                    lost = True
                case "close":
                    lost = unread(self.peer.sock) > 0
                    self.peer.close()
            if ours is not None:
                wanted = select.POLLHUP if lost else 0 if act == "send" else select.POLLRDHUP
                until(partial(_as_expected, ours, wanted, here))

    async def read(self, count: int) -> bytes:
        """Take some of what is there."""
        assert self.peer is not None
        return await self.peer.receive(count)

    async def read_all(self, models: list[Model], before: int) -> list[Model]:
        """Take all that comes, up to how it ends; return the models that expect just that.

        ``before`` is how much the peer had read when the models did not know of this yet.
        """
        assert self.peer is not None
        whole, then = len(models[0].sent) - before, models[0].then
        data, found = b"", "more"
        with anyio.fail_after(self.patience):
            while found == "more" and (then != "more" or len(data) < whole):
                try:
                    chunk = await self.peer.receive()
                except ConnectionResetError:
                    found = "reset"
                else:
                    data += chunk
                    found = found if chunk else "end"
        self.peer_was_told = found != "more"
        agreeing = []
        for model in models:
            sent, all_of_it = model.sent[before:], (model.sent + model.piece)[before:]
            if found == model.then and data.startswith(sent) and all_of_it.startswith(data):
                agreeing.append(model)
            model.taken = before + len(data)
        assert agreeing, f"the peer got {len(data)} bytes, then {found}: {models[0]}"
        return agreeing

    # --- comparing

    async def step(self, moves: tuple[Move, ...], expected: list[Model]) -> list[Model]:
        """Make the moves at once; return those models that saw what happened."""
        for move in moves:
            if move.call is not None:
                self.start(move)
            elif move.cancelled:
                self.scopes[move.number].cancel()
            elif move.acts:
                self.act(move.acts)
        return await self.agree(expected)

    async def agree(self, expected: list[Model]) -> list[Model]:
        give_up = time.monotonic() + self.patience
        while not any(not [*self.differences(model)] for model in expected):
            if time.monotonic() > give_up:
                break
            await checkpoint()
        for _ in range(TURNS):
            await checkpoint()
        differences = [[*self.differences(model)] for model in expected]
        agreeing = [m for m, found in zip(expected, differences, strict=True) if not found]
        if not agreeing:
            type(self).patience = PATIENCE_AFTER_FAILURE
        assert agreeing, "\nor: ".join("; ".join(found) for found in differences)
        return agreeing

    def differences(self, model: Model) -> Iterator[str]:
        if model.made and self.peer is None:
            try:
                self.peer = Peer(self.listener.sock.accept()[0])
            except BlockingIOError:
                yield "nobody has connected"
                return
            self.listener.peers.append(self.peer)
        for number in self.scopes:
            found, wanted = self.outcomes.get(number), model.outcomes.get(number)
            if found != wanted:
                yield f"call {number} {found or 'waits'!r}, not {wanted or 'waits'!r}"
        yield from self.different_futures(model)
        if model.made and self.peer is not None:
            yield from self.different_kernel(model, self.peer.sock)

    def different_futures(self, model: Model) -> Iterator[str]:
        opened = "resolved" if model.made else model.failed
        if (found := settled(self.socket.opened)) != opened:
            yield f"opened {found}, not {opened}"
        closed = "broken" if model.over == "rejected" else model.over
        if (found := settled(self.socket.closed)) != closed:
            yield f"closed {found}, not {closed}"

    def different_kernel(self, model: Model, peer: stdlib.socket) -> Iterator[str]:
        ours = self.ours
        if ours is not None and not self.limited:
            ours.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, BUFFER)
            self.limited = True
        if model.released not in (None, ours is None):
            yield f"our kernel socket is {ours}"
        if ours is not None:
            if not model.released and unread(ours) != len(model.inbox):
                yield f"{unread(ours)} bytes unread, not {len(model.inbox)}"
            if model.reset and not flags(ours) & select.POLLHUP:
                yield "the reset has not arrived"
        if model.peer == "gone":
            return
        low, high = max(0, len(model.sent) - model.taken), len(model.coming)
        if not low <= unread(peer) <= high:
            yield f"the peer has {unread(peer)} bytes to read, not {low} to {high}"
        if not self.peer_was_told:
            then = ""
            if flags(peer) & select.POLLRDHUP:
                then = "reset" if flags(peer) & select.POLLERR else "end"
            if then != model.then.replace("more", ""):
                yield f"the peer sees {then or 'no end'}, not {model.then}"


async def operation(socket: Socket, call: Call) -> bytes | None:
    match call.kind:
        case "receive":
            return await socket.receive(call.max_bytes)
        case "send":
            await socket.send(call.data)
        case "send_eof":
            await socket.send_eof()
        case "end":
            await socket.writable.aclose()
        case "stop":
            await socket.readable.aclose()
        case "abort":
            await socket.writable.abort()
        case "close":
            await socket.close()
        case "watch":
            await socket.closed
    return None


def settled(future: SocketFuture[Any]) -> str | None:
    if not future.done():
        return None
    error = future.exception()
    if error is None:
        return "resolved"
    return {ClosedError: "closed", BrokenError: "broken"}.get(type(error), repr(error))


@asynccontextmanager
async def driving(*, half_open: bool) -> AsyncIterator[Driver]:
    async with (
        listening(receive_buffer=BUFFER) as listener,
        anyio.create_task_group() as group,
    ):
        driver = Driver(listener, group, half_open=half_open)
        try:
            yield driver
        finally:
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await driver.socket.close()


# --- the machine

#: Pairs of calls of which the second may find the first still at work.
BUSY = {
    ("receive", "receive"),
    *((one, other) for one in ("send", "send_eof", "end") for other in ("send", "send_eof")),
}

# What ends everything comes less often than what there may be to end.
KINDS: st.SearchStrategy[Any] = st.sampled_from(
    [*("receive", "send", "watch") * 3, *("send_eof", "end", "stop") * 2, "abort", "close"]
)
ACTS: st.SearchStrategy[Any] = st.lists(
    st.sampled_from([*("send", "fin") * 2, "rst", "close"]), min_size=1, max_size=3
)
SIZES = st.sampled_from([0, 1, 3, 100])


def alive(machine: Machine) -> bool:
    """Not everything is over yet: there is something left to happen."""
    model = machine.model
    return not model.over or bool(model.waiting or model.inbox)


def has_peer(machine: Machine) -> bool:
    return machine.model.made and machine.model.peer != "gone"


class Machine(RuleBasedStateMachine):
    def __init__(self, portal: BlockingPortal) -> None:
        super().__init__()
        self.portal = portal
        self.number = 0
        #: More than one where things happened at once and may have done so in several orders.
        self.models: list[Model] = []

    @property
    def model(self) -> Model:
        return self.models[0]

    @initialize(half_open=st.booleans())
    def connect(self, half_open: bool) -> None:
        self.context = self.portal.wrap_async_context_manager(driving(half_open=half_open))
        self.driver = self.context.__enter__()
        self.models = [Model(half_open)]

    @precondition(lambda self: not alive(self))
    @rule(half_open=st.booleans())
    def connect_anew(self, half_open: bool) -> None:
        self.finish()
        self.models = []
        self.context.__exit__(None, None, None)
        self.connect(half_open)

    def teardown(self) -> None:
        if self.models:
            try:
                if sys.exc_info()[0] is None:
                    self.finish()
            finally:
                self.context.__exit__(None, None, None)

    def finish(self) -> None:
        """Close, which ends every call, and the peer has got everything."""
        self.step(self.ours("close"))
        if has_peer(self):
            self.peer_reads_all()
        for model in self.models:
            assert not model.waiting
            assert model.over

    def step(self, *moves: Move) -> None:
        """Whatever happens at once must look as if done one after the other, in some order."""
        expected: list[Model] = []
        for model in self.models:
            for order in permutations(moves):
                expected += [m for m in outcomes_of(model, order) if m not in expected]
        self.models = self.portal.call(self.driver.step, moves, expected)

    def ours(self, kind: Kind, size: int = 3, *, cancelled: bool = False) -> Move:
        self.number += 1
        data = PATTERN[self.number : self.number + size]
        return Move(self.number, Call(kind, max(1, size), data), cancelled)

    def theirs(self, names: list[ActName]) -> Move:
        """Those of the acts that the peer can still do."""
        acts: list[Act] = []
        peer = self.model.peer if self.model.made else "gone"
        for name in names:
            if peer == "gone" or (name in ("send", "fin") and self.model.then == "reset"):
                continue
            if name == "send":
                if peer == "open" and not self.model.over:
                    self.number += 1
                    acts.append((name, b"%d," % self.number))
            elif name == "fin":
                if peer == "open":
                    acts.append((name, b""))
                    peer = "ended"
            else:
                acts.append((name, b""))
                peer = "gone"
        return Move(acts=tuple(acts))

    # --- we

    @rule(kind=KINDS, size=SIZES)
    def call(self, kind: Kind, size: int) -> None:
        self.step(self.ours(kind, size))

    @rule(kind=KINDS, size=SIZES)
    def call_cancelled(self, kind: Kind, size: int) -> None:
        self.step(self.ours(kind, size, cancelled=True))

    @precondition(alive)
    @rule(size=SIZES)
    def receive(self, size: int) -> None:
        self.step(self.ours("receive", size))

    @precondition(alive)
    @rule()
    def watch(self) -> None:
        self.step(self.ours("watch"))

    @precondition(lambda self: self.model.made and alive(self))
    @rule()
    def send_more_than_fits(self) -> None:
        self.step(self.ours("send", BIG))

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.step(Move(data.draw(st.sampled_from([*self.model.waiting])), cancelled=True))

    # --- the peer

    @precondition(has_peer)
    @rule(names=ACTS)
    def peer_acts(self, names: list[ActName]) -> None:
        self.step(self.theirs(names))

    @precondition(lambda self: has_peer(self) and alive(self))
    @rule()
    def peer_sends(self) -> None:
        self.step(self.theirs(["send"]))

    @precondition(lambda self: has_peer(self) and self.model.coming and alive(self))
    @rule(count=st.integers(1, 100))
    def peer_reads(self, count: int) -> None:
        if self.model.taken < len(self.model.sent) or self.model.waits("send"):
            found = self.portal.call(self.driver.read, count)
            self.models = [model for model in self.models if model.coming.startswith(found)]
            assert self.models, f"the peer got what was not sent: {found!r}"
            for model in self.models:
                model.taken += len(found)
            self.step()

    @precondition(lambda self: has_peer(self) and (self.model.coming or self.model.over))
    @rule()
    def peer_reads_all(self) -> None:
        if self.driver.peer_was_told:
            return
        before = self.model.taken
        for model in self.models:
            model.peer_takes_all()
        self.models = self.portal.call(self.driver.read_all, self.models, before)
        self.step()

    # --- two things at once

    @precondition(alive)
    @rule(names=ACTS, kind=KINDS, size=SIZES, cancelled=st.booleans())
    def peer_acts_as_we_call(
        self, names: list[ActName], kind: Kind, size: int, cancelled: bool
    ) -> None:
        self.step(self.theirs(names), self.ours(kind, size, cancelled=cancelled))

    @precondition(alive)
    @rule(kinds=st.tuples(KINDS, KINDS), size=SIZES)
    def call_twice(self, kinds: tuple[Kind, Kind], size: int) -> None:
        self.step(*(self.ours(kind, size) for kind in kinds))

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data(), names=ACTS)
    def peer_acts_as_we_cancel(self, data: st.DataObject, names: list[ActName]) -> None:
        number = data.draw(st.sampled_from([*self.model.waiting]))
        self.step(self.theirs(names), Move(number, cancelled=True))

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data(), kind=KINDS)
    def call_as_we_cancel(self, data: st.DataObject, kind: Kind) -> None:
        number = data.draw(st.sampled_from([*self.model.waiting]))
        self.step(self.ours(kind), Move(number, cancelled=True))


#: An example takes some tenths of a second, so a usual run makes few of them; many more are
#: made by HYPOTHESIS_PROFILE=thorough.
LENGTH = settings(
    stateful_step_count=30,
    max_examples=max(25, settings().max_examples // 4),
)


@pytest.mark.time_limit(300)
def test_model(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    backend, options = anyio_backend
    with start_blocking_portal(backend, options) as portal:
        machine: Any = partial(Machine, portal)  # the hint says a class; any maker will do
        run_state_machine_as_test(machine, settings=LENGTH)
