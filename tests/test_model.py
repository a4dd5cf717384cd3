"""A real socket over loopback and the reference model, driven side by side at random.

After every step all that can be observed has to be what the model says: how each call ended or
that it waits, both futures, what the peer can read and how that ends, and the kernel's socket.
"""

from __future__ import annotations

import random
import ssl
import sys
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from driver import PATIENCE, Act, ActName, Driver, Move, driving
from model import BIG, Call, Kind, Model
from tls_peers import TLS12, TLS13

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the model says what Linux's TCP does after a reset"
)

PATTERN = random.Random(0).randbytes(BIG + 4096)


def outcomes_of(model: Model, moves: tuple[Move, ...]) -> Iterator[Model]:
    """What may come of these moves, made at once but taken up in this order."""
    records = 1
    if model.tls and model.writing != "ended":
        here = model.inbox + b"".join(data for move in moves for _, data in move.acts)
        records = max(1, here.count(b","))
    for fetched in range(1, records + 1):
        before = model.copy()
        before.fetched = fetched
        found = [*outcomes_in_order(before, moves)]
        for after in found:
            yield after
            yield from asked_late(model, moves, after)
            yield from answered_early(model, after)
        if all(after.writing != "ended" for after in found):
            return  # it makes no difference


def asked_late(model: Model, moves: tuple[Move, ...], after: Model) -> Iterator[Model]:
    """What a call fails with it asks a moment after it woke: its half may be closed by then."""
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


def answered_early(model: Model, after: Model) -> Iterator[Model]:
    """Where the peer has gone, the reset that answers our close_notify overtakes its going out."""
    now_ended = model.writing == "open" and after.writing == "ended"
    gone = after.tls and after.stopped and after.peer == "gone"
    if gone and now_ended and after.over == "resolved" and not after.closed:
        lost = after.copy()
        lost.over, lost.reset = "rejected", True
        for number, call in model.waiting.items():
            if call.kind == "watch" and lost.outcomes.get(number) == "ok":
                lost.outcomes[number] = "broken"
        yield lost


def outcomes_in_order(model: Model, moves: tuple[Move, ...]) -> Iterator[Model]:
    after = model.copy()
    for move in moves:
        move.apply(after)
    yield after
    if any(move.acts for move in moves) and len(model.waiting) > 1:
        # Those who wait wake in any order: a receive finds the peer's end where a watcher would
        # find the reset behind it, and which of them is first decides how the connection ended.
        for early in model.waiting:
            other = model.copy()
            other.waiting = {early: model.waiting[early], **model.waiting}
            for move in moves:
                move.apply(other)
            yield other
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
    def __init__(self, portal: BlockingPortal, version: ssl.TLSVersion | None) -> None:
        super().__init__()
        self.portal = portal
        self.version = version
        self.number = 0
        #: More than one where things happened at once and may have done so in several orders.
        self.models: list[Model] = []

    @property
    def model(self) -> Model:
        return self.models[0]

    @initialize(half_open=st.booleans())
    def connect(self, half_open: bool) -> None:
        self.context = self.portal.wrap_async_context_manager(
            driving(self.version, half_open=half_open)
        )
        self.driver = self.context.__enter__()
        self.models = [Model(half_open, tls=self.version is not None)]

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


@pytest.mark.slow
@pytest.mark.parametrize("version", [None, TLS12, TLS13], ids=["tcp", "tls-1.2", "tls-1.3"])
def test_model(anyio_backend: tuple[str, dict[str, Any]], version: ssl.TLSVersion | None) -> None:
    Driver.patience = PATIENCE  # which a test that failed may have shortened
    backend, options = anyio_backend
    with start_blocking_portal(backend, options) as portal:
        machine: Any = partial(
            Machine, portal, version
        )  # the hint says a class; any maker will do
        run_state_machine_as_test(machine, settings=LENGTH)
