"""A real socket over loopback and the reference model, driven side by side at random.

After every step, everything that can be observed has to agree with the model: the outcome of each
call, or that the call still waits; both futures; what the peer can read, and how that ends; and
the kernel's socket. One event happens in a step. tests/simulation tests several events at once, in
every order, and it tests far more histories.
"""

from __future__ import annotations

import random
import ssl
import sys
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

if sys.platform != "linux":
    pytest.skip("the model says what Linux's TCP does after a reset", allow_module_level=True)
else:
    from support.driver import PATIENCE, ActName, Driver, Move, Over, driving
    from support.model import BIG, Call, Kind, Model
    from support.tls_peers import TLS12, TLS13

pytestmark = pytest.mark.slow

PATTERN = random.Random(0).randbytes(BIG + 4096)

# --- the steps

Step: TypeAlias = (
    tuple[Literal["call", "cancelled call"], Kind, int]
    | tuple[Literal["cancel", "peer reads"], int]
    | tuple[Literal["peer"], ActName]
    | tuple[Literal["send a lot", "peer reads all"]]
)

SIZES = st.sampled_from([0, 1, 3, 100])
# The more a call ends, the rarer it is. Otherwise most histories would soon be over.
KINDS: st.SearchStrategy[Any] = st.sampled_from(
    [*("receive", "send", "watch") * 3, *("send_eof", "end", "stop") * 2, "abort", "close"]
)
ACTS: st.SearchStrategy[Any] = st.sampled_from([*("send",) * 3, *("fin",) * 2, "rst", "close"])
CALLS = st.tuples(st.just("call"), KINDS, SIZES)
STEPS: st.SearchStrategy[Any] = st.one_of(
    CALLS,
    CALLS,
    st.tuples(st.just("cancelled call"), KINDS, SIZES),
    st.tuples(st.just("cancel"), st.integers(0, 2)),
    st.tuples(st.just("send a lot")),
    st.tuples(st.just("peer"), ACTS),
    st.tuples(st.just("peer"), ACTS),
    st.tuples(st.just("peer reads"), st.integers(1, 100)),
    st.tuples(st.just("peer reads all")),
)


class History:
    """Takes the steps that are possible, and compares after each."""

    def __init__(self, driver: Driver, model: Model) -> None:
        self.driver = driver
        self.number = 0
        #: The models that agree with all that was seen so far. There is more than one, for
        #: example, if several tasks may have been the first to learn of an event.
        self.models = [model]

    @property
    def model(self) -> Model:
        return self.models[0]

    @property
    def has_peer(self) -> bool:
        return self.model.made and self.model.peer != "gone"

    async def take(self, step: Step) -> None:
        match step:
            case ("call", kind, size):
                await self.call(kind, size)
            case ("cancelled call", kind, size):
                await self.call(kind, size, cancelled=True)
            case ("send a lot",):
                if self.model.made:
                    await self.call("send", BIG)
            case ("cancel", index):
                if self.model.waiting:
                    waiting = [*self.model.waiting]
                    await self.make(Move(waiting[index % len(waiting)], cancelled=True))
            case ("peer", act):
                await self.peer(act)
            case ("peer reads", count):
                await self.peer_reads(count)
            case ("peer reads all",):
                if self.model.coming or self.model.over:
                    await self.peer_reads_all()

    async def make(self, move: Move) -> None:
        expected: list[Model] = []
        for model in self.models:
            expected += [m for m in outcomes_of(model, move) if m not in expected]
        self.models = await self.driver.step(move, expected)

    async def call(self, kind: Kind, size: int, *, cancelled: bool = False) -> None:
        if kind == "close" and self.model.sending:
            return  # close() would wait for the peer, up to close_timeout
        self.number += 1
        data = PATTERN[self.number : self.number + size]
        await self.make(Move(self.number, Call(kind, max(1, size), data), cancelled))

    async def peer(self, act: ActName) -> None:
        model = self.model
        if not self.has_peer or (act in ("send", "fin") and model.then in ("reset", "dropped")):
            return
        if act in ("send", "fin") and model.peer != "open":
            return
        if act == "send" and model.over:
            return  # our kernel would answer the data with a reset
        self.number += 1
        await self.make(Move(act=act, data=b"%d," % self.number))

    async def peer_reads(self, count: int) -> None:
        if not self.has_peer or not (
            self.model.taken < len(self.model.sent) or self.model.sending
        ):
            return
        found = await self.driver.read(count)
        self.models = [model for model in self.models if model.coming.startswith(found)]
        assert self.models, f"the peer got data that was not sent: {found!r}"
        for model in self.models:
            model.taken += len(found)
        await self.make(Move())

    async def peer_reads_all(self) -> None:
        if not self.has_peer or self.driver.peer_was_told:
            return
        if self.model.end_waits_for_room and not self.model.waits("watch"):
            return
        before = self.model.taken
        for model in self.models:
            model.peer_takes_all()
        self.models = await self.driver.read_all(self.models, before)
        await self.make(Move())

    async def finish(self) -> None:
        """Close the socket, which ends every call. The peer reads everything that is left."""
        if self.model.sending:
            await self.call("watch", 0)
            await self.peer_reads_all()
        await self.call("close", 0)
        await self.peer_reads_all()
        for model in self.models:
            assert not model.waiting
            assert model.over


def outcomes_of(model: Model, move: Move) -> Iterator[Model]:
    """The models that a move may lead to: waiting calls can learn of it in any order.

    A receive finds the peer's end, but a task that awaits ``closed`` finds the reset behind it.
    Which of the two is first decides how the connection ended.
    """
    for first in (None, *model.waiting):
        after = model.copy()
        if first is not None:
            after.waiting = {first: after.waiting[first], **after.waiting}
        move.apply(after)
        yield after
    if model.tls and model.fin and move.call and move.call.kind == "receive":
        # A task that awaits ``closed`` may have decrypted what has arrived. Then a receive returns
        # one piece of that, and the peer's end comes only after the last piece.
        after = model.copy()
        after.in_pieces = True
        move.apply(after)
        after.in_pieces = False
        yield after
    if model.tls and model.peer == "gone" and model.sent and not model.over:
        # The peer's kernel answers our close_notify with a reset. The reset may overtake the
        # acknowledgement of data that the peer has read. Then our side cannot know whether that
        # data has arrived.
        after = model.copy()
        after.unacknowledged = True
        move.apply(after)
        yield after
    if model.lost_unseen and not (move.call and move.call.kind == "send" and not move.call.data):
        # Any step may show us the reset, even a call that is cancelled. But a send of no bytes
        # does not ask the kernel.
        after = model.copy()
        after.lose()
        move.apply(after)
        yield after


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Give each test the full patience: a test that failed has shortened it."""
    Driver.patience = PATIENCE
    yield
    Driver.patience = PATIENCE


#: The peer sends two records and then its end. A receive returns only one of the records.
LEFT_BY_A_RECEIVE: list[Step] = [
    ("call", "watch", 0),
    ("peer", "send"),
    ("peer", "send"),
    ("peer", "fin"),
]


@pytest.mark.parametrize(
    "over", ["tcp", "wrapped", TLS12, TLS13], ids=["tcp", "wrapped", "tls-1.2", "tls-1.3"]
)
@given(half_open=st.booleans(), steps=st.lists(STEPS, min_size=1, max_size=15))
@example(half_open=False, steps=[*LEFT_BY_A_RECEIVE, ("call", "receive", 100)])
@example(half_open=False, steps=[*LEFT_BY_A_RECEIVE, ("send a lot",), ("call", "receive", 100)])
@example(half_open=True, steps=[*LEFT_BY_A_RECEIVE, ("call", "receive", 100)] * 2)
async def test_model(over: Over, half_open: bool, steps: list[Step]) -> None:
    async with driving(over, half_open=half_open) as driver:
        model = Model(half_open, tls=isinstance(over, ssl.TLSVersion), wrapped=over == "wrapped")
        history = History(driver, model)
        if model.wrapped:  # the connection is there already
            await driver.socket.opened
            model.made = True
            await history.make(Move())
        for step in steps:
            await history.take(step)
        await history.finish()
