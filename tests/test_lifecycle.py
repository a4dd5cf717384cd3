"""The lifecycle: its whole reachable state space, and each rule of the design by example."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from anyio_connect import _lifecycle
from anyio_connect._lifecycle import (
    JOINT,
    REFUSALS,
    TABLES,
    Dial,
    Effect,
    Event,
    Inbound,
    Link,
    Outbound,
    State,
    Verdict,
    initial,
    step,
)

ASKING = {Event.RECEIVE, Event.SEND, Event.END, Event.ABORT, Event.UPGRADE}
STARTS = [initial(half_open=h, starttls=s) for h in (False, True) for s in (False, True)]


def reachable() -> set[State]:
    seen: set[State] = set()
    todo = list(STARTS)
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo += [step(state, event).state for event in Event]
    return seen


STATES = reachable()
PAIRS = [(state, event) for state in STATES for event in Event]


def test_the_state_space_is_explored() -> None:
    assert 300 < len(STATES) < 2000
    for facet in (Dial, Link, Inbound, Outbound):
        used = {getattr(state, facet.__name__.lower()) for state in STATES}
        assert used == set(facet), f"{facet.__name__} has members that nothing leads to"


def test_a_step_is_pure() -> None:
    for state, event in PAIRS:
        assert step(state, event) is step(state, event)
        assert _lifecycle._step(state, event) == step(state, event)


def test_states_are_interned() -> None:
    keys = {(s.dial, s.link, s.inbound, s.outbound, s.half_open, s.starttls) for s in STATES}
    assert len(keys) == len(STATES)
    # So that identity is equality, and looking one up costs what looking up an int does.
    kinds: list[Any] = [State, Dial, Event, Verdict]
    for looked_up in kinds:
        assert looked_up.__hash__ is object.__hash__
        assert looked_up.__eq__ is object.__eq__
    with pytest.raises(FrozenInstanceError):
        STARTS[0].dial = Dial.DONE  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_every_question_is_answered_and_nothing_else_is() -> None:
    for state, event in PAIRS:
        assert (step(state, event).verdict is not None) == (event in ASKING), (state, event)


def test_asking_for_leave_has_no_effects() -> None:
    for state, event in PAIRS:
        if event in {Event.RECEIVE, Event.SEND, Event.END}:
            assert step(state, event).effects == (), (state, event)


def test_a_refusal_changes_nothing() -> None:
    for state, event in PAIRS:
        after, verdict, effects = step(state, event)
        if verdict is not None and verdict is not Verdict.PROCEED:
            assert (after, effects) == (state, ()), (state, event)


@pytest.mark.parametrize(
    ("settled", "effects"),
    [
        (
            lambda s: s.dial in (Dial.DONE, Dial.FAILED),
            {Effect.RESOLVE_OPENED, Effect.REJECT_OPENED},
        ),
        (
            lambda s: s.link in (Link.CLOSED, Link.RESET, Link.UPGRADED),
            {Effect.RESOLVE_CLOSED, Effect.REJECT_CLOSED},
        ),
    ],
    ids=["opened", "closed"],
)
def test_a_future_settles_exactly_once(settled: Any, effects: set[Effect]) -> None:
    for state, event in PAIRS:
        after, _, done = step(state, event)
        settling = [effect for effect in done if effect in effects]
        assert len(settling) == (settled(after) and not settled(state)), (state, event)


def test_the_end_is_final() -> None:
    for state, event in PAIRS:
        after = step(state, event).state
        if state.link in (Link.CLOSED, Link.UPGRADED):
            assert after.link is state.link
        if state.link is Link.RESET:
            assert after.link is Link.RESET
        if state.dial in (Dial.DONE, Dial.FAILED):
            assert after.dial is state.dial
        if state.outbound in (Outbound.ENDED, Outbound.CLOSED):
            assert after.outbound in (Outbound.ENDED, Outbound.CLOSED)


def test_no_leave_without_a_connection() -> None:
    for state in STATES:
        for event in (Event.RECEIVE, Event.SEND, Event.END):
            if step(state, event).verdict is Verdict.PROCEED:
                assert state.dial is Dial.DONE
                # A broken connection may have unread data left, but takes nothing more.
                assert state.link is Link.OPEN or (
                    event is Event.RECEIVE and state.link is Link.RESET
                )


def test_only_one_task_a_direction() -> None:
    for state in STATES:
        if state.inbound is Inbound.RECEIVING and state.dial is Dial.DONE:
            assert step(state, Event.RECEIVE).verdict is Verdict.BUSY
        if state.outbound in (Outbound.SENDING, Outbound.ENDING) and state.dial is Dial.DONE:
            assert step(state, Event.SEND).verdict is Verdict.BUSY
            assert step(state, Event.END).verdict is Verdict.BUSY


def test_a_receive_in_flight_never_stays_behind() -> None:
    """Whatever takes the leave of a receive in flight away also wakes it, or is its own word."""
    own = {Event.RECEIVE_DONE, Event.PEER_EOF}
    for state, event in PAIRS:
        after, _, effects = step(state, event)
        if (
            state.inbound is Inbound.RECEIVING
            and after.inbound is not Inbound.RECEIVING
            and event not in own
        ):
            assert Effect.INTERRUPT_RECEIVE in effects, (state, event)


def test_no_dead_entries() -> None:
    """Every entry of every table, every joint rule and every refusal decides something."""
    for facet, table in TABLES.items():
        for value, entries in table.items():
            for event in entries:
                assert any(
                    getattr(state, facet) is value
                    and step(state, event).verdict not in (Verdict.FAILED, Verdict.OPEN_FIRST)
                    for state in STATES
                ), (facet, value, event)
    for number, rule in enumerate(JOINT):
        rest = JOINT[:number] + JOINT[number + 1 :]
        assert any(
            _with_joint(rest, state, event) != step(state, event) for state, event in PAIRS
        ), rule
    for event, refusals in REFUSALS.items():
        for number, (when, _) in enumerate(refusals):
            earlier = [w for w, _ in refusals[:number]]
            assert any(
                _lifecycle._fits(state, when)
                and not any(_lifecycle._fits(state, other) for other in earlier)
                for state in STATES
            ), (event, when)


def _with_joint(rules: tuple[_lifecycle.Rule, ...], state: State, event: Event) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_lifecycle, "JOINT", rules)
        return _lifecycle._step(state, event)


OPEN = [Event.DIAL, Event.DIALLED]

# events -> link, inbound, outbound, effects of the last event
SCENARIOS: dict[str, tuple[bool, list[Event], Link, Inbound, Outbound, set[Effect]]] = {
    "peer ends, nothing in flight": (
        False,
        [*OPEN, Event.RECEIVE, Event.PEER_EOF],
        Link.CLOSING,
        Inbound.EOF,
        Outbound.ENDED,
        {Effect.FINISH},
    ),
    "peer ends, half-open": (
        True,
        [*OPEN, Event.RECEIVE, Event.PEER_EOF],
        Link.OPEN,
        Inbound.EOF,
        Outbound.OPEN,
        set(),
    ),
    "peer ends, half-open, then we do": (
        True,
        [*OPEN, Event.RECEIVE, Event.PEER_EOF, Event.END, Event.END_DONE],
        Link.CLOSING,
        Inbound.EOF,
        Outbound.ENDED,
        {Effect.FINISH},
    ),
    "we end first, then the peer": (
        True,
        [*OPEN, Event.END, Event.END_DONE, Event.RECEIVE, Event.PEER_EOF],
        Link.CLOSING,
        Inbound.EOF,
        Outbound.ENDED,
        {Effect.FINISH},
    ),
    "peer ends while a send is in flight": (
        False,
        [*OPEN, Event.SEND, Event.RECEIVE, Event.PEER_EOF],
        Link.OPEN,
        Inbound.EOF,
        Outbound.SENDING,
        set(),
    ),
    "and that send ends": (
        False,
        [*OPEN, Event.SEND, Event.RECEIVE, Event.PEER_EOF, Event.SEND_DONE],
        Link.CLOSING,
        Inbound.EOF,
        Outbound.ENDED,
        {Effect.FINISH},
    ),
    "and that send is cut short": (
        False,
        [*OPEN, Event.SEND, Event.RECEIVE, Event.PEER_EOF, Event.SEND_TORN],
        Link.RESET,
        Inbound.EOF,
        Outbound.BROKEN,
        {Effect.REJECT_CLOSED, Effect.DROP},
    ),
    "close": (
        False,
        [*OPEN, Event.CLOSE, Event.FLUSHED],
        Link.CLOSING,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.ACLOSE},
    ),
    "close while a send is in flight": (
        False,
        [*OPEN, Event.SEND, Event.RECEIVE, Event.CLOSE],
        Link.FLUSHING,
        Inbound.CLOSED,
        Outbound.FLUSHING,
        {Effect.INTERRUPT_RECEIVE},
    ),
    "close, cancelled while that send is flushed": (
        False,
        [*OPEN, Event.SEND, Event.CLOSE, Event.FORCE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.RESOLVE_CLOSED, Effect.DROP},
    ),
    "close after a torn send": (
        False,
        [*OPEN, Event.SEND, Event.SEND_TORN, Event.CLOSE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.RESOLVE_CLOSED, Effect.DROP},
    ),
    "close before the dial": (
        False,
        [Event.CLOSE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.REJECT_OPENED, Effect.RESOLVE_CLOSED, Effect.DROP},
    ),
    "close during the dial": (
        False,
        [Event.DIAL, Event.CLOSE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.CANCEL_DIAL, Effect.REJECT_OPENED, Effect.RESOLVE_CLOSED},
    ),
    "closed in the moment the dial succeeds": (
        False,
        [Event.DIAL, Event.CLOSE, Event.DIALLED],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.DISCARD},
    ),
    "dial cancelled, then made by the next": (
        False,
        [Event.DIAL, Event.DIAL_CANCELLED, Event.DIAL, Event.DIALLED],
        Link.OPEN,
        Inbound.OPEN,
        Outbound.OPEN,
        {Effect.RESOLVE_OPENED},
    ),
    "dial fails": (
        False,
        [Event.DIAL, Event.DIAL_FAILED],
        Link.CLOSED,
        Inbound.OPEN,
        Outbound.OPEN,
        {Effect.REJECT_OPENED, Effect.REJECT_CLOSED},
    ),
    "reset": (
        False,
        [*OPEN, Event.RECEIVE, Event.RESET],
        Link.RESET,
        Inbound.BROKEN,
        Outbound.BROKEN,
        {Effect.REJECT_CLOSED, Effect.DROP, Effect.INTERRUPT_RECEIVE},
    ),
    "reset with unread data": (
        False,
        [*OPEN, Event.SEND, Event.RESET_UNREAD],
        Link.RESET,
        Inbound.OPEN,
        Outbound.BROKEN,
        {Effect.REJECT_CLOSED},
    ),
    "and that data read to its end": (
        False,
        [*OPEN, Event.SEND, Event.RESET_UNREAD, Event.RECEIVE, Event.RESET],
        Link.RESET,
        Inbound.BROKEN,
        Outbound.BROKEN,
        {Effect.DROP, Effect.INTERRUPT_RECEIVE},
    ),
    "we stop reading and end": (
        True,
        [*OPEN, Event.CANCEL, Event.END, Event.END_DONE],
        Link.CLOSING,
        Inbound.CANCELLED,
        Outbound.ENDED,
        {Effect.FINISH},
    ),
    "we stop reading, the peer ends": (
        False,
        [*OPEN, Event.CANCEL, Event.PEER_EOF],
        Link.CLOSING,
        Inbound.DISCARDED,
        Outbound.ENDED,
        {Effect.FINISH},
    ),
    "abort": (
        False,
        [*OPEN, Event.RECEIVE, Event.SEND, Event.ABORT],
        Link.RESET,
        Inbound.BROKEN,
        Outbound.BROKEN,
        {Effect.REJECT_CLOSED, Effect.DROP, Effect.INTERRUPT_RECEIVE},
    ),
    "upgrade while a send is in flight": (
        False,
        [*OPEN, Event.SEND, Event.UPGRADE],
        Link.UPGRADED,
        Inbound.CLOSED,
        Outbound.FLUSHING,
        {Effect.RESOLVE_CLOSED},
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str) -> None:
    half_open, events, link, inbound, outbound, effects = SCENARIOS[name]
    state = initial(half_open=half_open, starttls=True)
    done: tuple[Effect, ...] = ()
    for event in events:
        state, _, done = step(state, event)
    assert (state.link, state.inbound, state.outbound) == (link, inbound, outbound)
    assert set(done) == effects
    assert len(done) == len(effects)


# what happened before -> why start_tls() is refused
REFUSED: dict[Verdict, list[Event]] = {
    Verdict.UPGRADED_ALREADY: [*OPEN, Event.UPGRADE],
    Verdict.FAILED: [Event.DIAL, Event.DIAL_FAILED],
    Verdict.BROKEN: [*OPEN, Event.SEND, Event.SEND_TORN],
    Verdict.CLOSED: [*OPEN, Event.CLOSE],
    Verdict.RECEIVE_IN_FLIGHT: [*OPEN, Event.RECEIVE],
    Verdict.ENDED: [*OPEN, Event.END, Event.END_DONE],
}


@pytest.mark.parametrize("verdict", REFUSED)
def test_upgrade_refused(verdict: Verdict) -> None:
    state = initial(half_open=True, starttls=True)
    for event in REFUSED[verdict]:
        state = step(state, event).state
    assert step(state, Event.UPGRADE).verdict is verdict


def test_upgrade_needs_starttls() -> None:
    state = initial(half_open=True, starttls=False)
    assert step(state, Event.UPGRADE).verdict is Verdict.NOT_STARTTLS
