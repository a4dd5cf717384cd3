"""The lifecycle: its whole reachable state space, and each rule of the design by example.

LIFECYCLE.txt lists what every event means in every state, for people who change the tables.
Run this file to update it.
"""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace
from difflib import unified_diff
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from anyio_connect import _connection, _lifecycle
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
from support.states import (
    ASKING,
    CALLS,
    IN_FLIGHT,
    PAIRS,
    STARTS,
    STATES,
    facets,
    reachable,
)


def really_happens(state: State, event: Event) -> bool:
    """Whether _connection can report the event in this state."""
    match event:
        case Event.DIALLED | Event.DIAL_CANCELLED:
            return state.dial in (Dial.RUNNING, Dial.FAILED)
        case Event.DIAL_FAILED:
            return state.dial is Dial.RUNNING
        case Event.RECEIVE_DONE:
            return state.inbound is Inbound.RECEIVING
        case Event.SEND_DONE:
            return state.outbound in (Outbound.SENDING, Outbound.LAST, Outbound.FLUSHING)
        case Event.END_UNDONE:
            return state.outbound in (Outbound.ENDING, Outbound.FLUSHING)
        case Event.END_DONE:
            return state.dial is Dial.DONE and state.outbound in (
                Outbound.ENDING,
                Outbound.FLUSHING,
            )
        case Event.SEND_TORN:
            return state.dial is Dial.DONE and state.outbound in IN_FLIGHT
        case Event.PEER_EOF | Event.RESET_UNREAD:
            return state.dial is Dial.DONE and state.link is not Link.CLOSING
        case Event.RESET:
            return state.dial is Dial.DONE
        case Event.LOST:
            return state.dial is Dial.DONE and state.inbound is Inbound.RECEIVING
        case Event.FLUSHED:
            return state.link is Link.FLUSHING and state.outbound is not Outbound.FLUSHING
        case Event.SHUT | Event.CROWDED:
            return state.link is Link.CLOSING
        case Event.LATE:
            return state.link is Link.CLOSING or (
                state.link is Link.FLUSHING and state.outbound is Outbound.FLUSHING
            )
        case Event.FORCE:
            return state.link in (Link.FLUSHING, Link.CLOSING)
        case Event.ROOM:
            return state.link is Link.LINGERING
        case Event.DISOWN | Event.ABANDON:
            return state.link is Link.UPGRADED
        case Event.DIAL | Event.CANCEL | Event.CLOSE:
            return True
        case _:
            assert event in ASKING, (
                f"add to really_happens() the states in which {event} is reported"
            )
            return True


REAL = [
    (state, event)
    for state in reachable(really_happens)
    for event in Event
    if really_happens(state, event)
]


# --- the listing

LISTING = Path(__file__).with_name("LIFECYCLE.txt")

HEAD = """\
# What every event means in every state of a socket. tests/test_lifecycle.py writes this list, and
# fails if the tables do not agree with it.
#
# A state is given by its dial, link, inbound and outbound. Below it are the events that mean
# something there: "-> " the next state, with a dot for each part that stays, "? " the verdict,
# "! " the effects. A condition in brackets: only with that setting of allow_half_open or
# secure_transport.
"""

#: allow_half_open, and whether secure_transport is "starttls".
Setting = tuple[bool, bool]


def condition(where: set[Setting], there: set[Setting]) -> str:
    """The words for the settings ``where``, out of those that are ``there``."""
    for half_open, starttls in product((None, False, True), repeat=2):
        if where == {s for s in there if half_open in (None, s[0]) and starttls in (None, s[1])}:
            said = [(half_open, "half-open"), (starttls, "starttls")]
            words = [word if want else f"not {word}" for want, word in said if want is not None]
            return f"[{', '.join(words)}]" if words else ""
    raise AssertionError("no single condition describes these settings")


def answer(state: State, event: Event) -> str:
    after, verdict, effects = step(state, event)
    parts = []
    if after is not state:
        pairs = zip(facets(state), facets(after), strict=True)
        parts.append("-> " + " ".join("." if a is b else b.name for a, b in pairs))
    if verdict is not None:
        parts.append(f"? {verdict.name}")
    if effects:
        parts.append("! " + " ".join(effect.name for effect in effects))
    return "  ".join(parts)


def in_order(key: tuple[Enum, ...]) -> list[int]:
    return [facet.value for facet in key]


def listing() -> str:
    groups: dict[tuple[Enum, ...], list[State]] = {}
    for state in STATES:
        groups.setdefault(facets(state), []).append(state)
    every = {(state.half_open, state.starttls) for state in STARTS}
    lines = [HEAD]
    for key in sorted(groups, key=in_order):
        there = {(state.half_open, state.starttls) for state in groups[key]}
        names = " ".join(facet.name for facet in key)
        lines.append(f"{names}  {condition(there, every)}".rstrip())
        for event in Event:
            answers: dict[str, set[Setting]] = {}
            for state in groups[key]:
                means = answer(state, event)
                answers.setdefault(means, set()).add((state.half_open, state.starttls))
            for means in sorted(filter(None, answers)):
                when = condition(answers[means], there)
                lines.append(f"    {event.name:<15}{means}  {when}".rstrip())
        lines.append("")
    return "\n".join(lines)


HOW_TO_RENEW = """\
The tables of _lifecycle no longer mean what tests/LIFECYCLE.txt lists. What has changed:

{diff}

If that is what you want, write the list again from the root of the repository:

    PYTHONPATH=.:tests python tests/test_lifecycle.py

Then read `git diff tests/LIFECYCLE.txt`, state by state. Is each change intended? Is there a
new state that should not be possible, or is one missing? Does _connection carry out each new
verdict, and does each effect happen once? Add a test below for the rule that you changed.

Tell others of it:

- `python docs/made.py` updates the tables and the pictures in docs/. It needs words for a new
  event or verdict. If docs/semantics.md says anything else that is no longer true, change that.
- CHANGELOG.md: add an entry under "## [Unreleased]", in "### Fixed" if the old rule was a fault,
  and in "### Changed" if not. Say what users notice: which call, in which state of the socket,
  and what it does now. Add none only if no user can notice the change.
"""


def test_every_event_means_what_is_listed() -> None:
    listed = LISTING.read_text(encoding="utf-8")
    if listing() != listed:
        before, now = listed.splitlines(), listing().splitlines()
        diff = list(unified_diff(before, now, "listed", "now", lineterm="", n=1))
        shown = [*diff[:60], f"... and {len(diff) - 60} lines more"] if len(diff) > 60 else diff
        pytest.fail(HOW_TO_RENEW.format(diff="\n".join(shown)), pytrace=False)


# --- what holds everywhere


def test_the_state_space_is_explored() -> None:
    assert 300 < len(STATES) < 2000
    for facet in (Dial, Link, Inbound, Outbound):
        used = {getattr(state, facet.__name__.lower()) for state in STATES}
        assert used == set(facet), f"{facet.__name__} has members that no event leads to"


@pytest.mark.slow
def test_a_step_is_pure() -> None:
    for state, event in PAIRS:
        assert step(state, event) is step(state, event)
        assert _lifecycle._step(state, event) == step(state, event)


def test_states_are_interned() -> None:
    assert "steps" not in repr(STARTS[0])  # the steps, which lead to all other states
    keys = {(s.dial, s.link, s.inbound, s.outbound, s.half_open, s.starttls) for s in STATES}
    assert len(keys) == len(STATES)
    # So equality is identity, and a lookup in a dict costs as little as that of an int.
    kinds: list[Any] = [State, Dial, Event, Verdict]
    for looked_up in kinds:
        assert looked_up.__hash__ is object.__hash__
        assert looked_up.__eq__ is object.__eq__
    with pytest.raises(FrozenInstanceError):
        STARTS[0].dial = Dial.DONE  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


PLAIN = {
    "receiving": Event.RECEIVE,
    "received": Event.RECEIVE_DONE,
    "sending": Event.SEND,
    "sent": Event.SEND_DONE,
}


@pytest.mark.parametrize(("name", "event"), PLAIN.items())
def test_a_plain_step_is_what_the_tables_say(name: str, event: Event) -> None:
    found = 0
    for state in STATES:
        after = getattr(state, name)
        said = step(state, event)
        moved = {
            (getattr(state, facet), getattr(said.state, facet))
            for facet in ("dial", "link", "inbound", "outbound")
            if getattr(state, facet) is not getattr(said.state, facet)
        }
        plain = moved <= {
            (Inbound.OPEN, Inbound.RECEIVING),
            (Inbound.RECEIVING, Inbound.OPEN),
            (Outbound.OPEN, Outbound.SENDING),
            (Outbound.SENDING, Outbound.OPEN),
        }
        if plain and not said.effects and said.verdict in (None, Verdict.PROCEED):
            assert after is said.state
            found += 1
        else:
            assert after is None
    assert found


@pytest.mark.parametrize("half_open", [False, True])
def test_all_steps_of_an_open_connection_are_plain(half_open: bool) -> None:
    idle = initial(half_open=half_open, starttls=False)
    for event in (Event.DIAL, Event.DIALLED):
        idle = step(idle, event).state
    assert idle.receiving is not None
    assert idle.sending is not None
    both = idle.receiving.sending
    assert both is not None
    assert both is idle.sending.receiving
    assert both.received is idle.sending
    assert both.sent is idle.receiving
    assert idle.sending.sent is idle
    assert idle.receiving.received is idle


def test_exactly_the_asking_events_get_a_verdict() -> None:
    for state, event in PAIRS:
        assert (step(state, event).verdict is not None) == (event in ASKING), (state, event)


_V = Verdict
_LEAVE = {_V.PROCEED, _V.OPEN_FIRST, _V.CLOSED, _V.BROKEN, _V.FAILED}
_ENDING = _LEAVE | {_V.NOTHING_TO_DO}
_GIVING_AWAY = {
    *(_V.PROCEED, _V.CLOSED, _V.BROKEN, _V.FAILED),
    *(_V.UPGRADED_ALREADY, _V.DETACHED_ALREADY, _V.RECEIVE_IN_FLIGHT),
}

#: The verdicts that the tables give for each event that asks for permission. ``_connection``
#: expects no others: it treats any other as CLOSED.
ANSWERS: dict[Event, set[Verdict]] = {
    Event.RECEIVE: _LEAVE | {_V.BUSY, _V.AT_EOF},
    Event.SEND: _LEAVE | {_V.BUSY},
    Event.END: _ENDING | {_V.BUSY},
    Event.END_LAST: (_ENDING - {_V.CLOSED}) | {_V.WAIT},
    Event.ABORT: {_V.PROCEED, _V.NOTHING_TO_DO},
    Event.UPGRADE: _GIVING_AWAY | {_V.NOT_STARTTLS, _V.ENDED},
    Event.DETACH: _GIVING_AWAY | {_V.PENDING, _V.SEND_IN_FLIGHT},
}


@pytest.mark.parametrize("event", sorted(ASKING, key=repr), ids=repr)
def test_the_connection_expects_each_answer(event: Event) -> None:
    given = {step(state, event).verdict for state in STATES}
    new, gone = given - ANSWERS[event], ANSWERS[event] - given
    assert not new, (
        f"{event} is now answered with {new}: make _connection carry that out where it asks, "
        "describe it in docs/made.py if it is a new verdict, and add it to ANSWERS"
    )
    assert not gone, f"{event} is no longer answered with {gone}: remove that from ANSWERS"


def test_the_connection_reports_each_event_and_carries_out_each_effect() -> None:
    source = Path(_connection.__file__).read_text(encoding="utf-8")
    for kind in (Event, Effect):
        unused = {member for member in kind if not re.search(rf"\b{member}\b", source)}
        assert not unused, f"_connection does nothing with {kind.__name__} {unused}"


def test_asking_for_permission_has_no_effects() -> None:
    for state, event in PAIRS:
        if event in CALLS:
            assert step(state, event).effects == (), (state, event)


def test_a_refusal_changes_nothing() -> None:
    for state, event in PAIRS:
        after, verdict, effects = step(state, event)
        if verdict in {Verdict.PROCEED, Verdict.OPEN_FIRST}:
            continue
        if (
            verdict is Verdict.WAIT
        ):  # not a refusal: the end gets the turn after the call in flight
            assert after.outbound in {state.outbound, Outbound.LAST}
            assert after.outbound in IN_FLIGHT
            after = replace(after, outbound=state.outbound)
            assert (facets(after), effects) == (facets(state), ()), (state, event)
        elif verdict is not None:
            assert (after, effects) == (state, ()), (state, event)


@pytest.mark.parametrize(
    ("settled", "effects"),
    [
        (
            lambda s: s.dial in (Dial.DONE, Dial.FAILED),
            {Effect.RESOLVE_OPENED, Effect.REJECT_OPENED},
        ),
        (
            lambda s: s.link in (Link.CLOSED, Link.RESET, Link.UPGRADED, Link.DETACHED),
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
        if state.link in (Link.CLOSED, Link.UPGRADED, Link.DETACHED):
            assert after.link is state.link
        if state.link is Link.RESET:
            assert after.link is Link.RESET
        if state.dial in (Dial.DONE, Dial.FAILED):
            assert after.dial is state.dial
        if state.outbound in (Outbound.ENDED, Outbound.CLOSED):
            assert after.outbound in (Outbound.ENDED, Outbound.CLOSED)


def test_a_call_is_in_flight_before_the_connection_is_made() -> None:
    """Later calls find it in flight, as they do when the connection is made."""
    for state in STATES:
        if state.dial not in (Dial.IDLE, Dial.RUNNING) or state.link is not Link.OPEN:
            continue
        made = step(replace(state, dial=Dial.RUNNING), Event.DIALLED).state
        for event in CALLS:
            early, late = step(state, event), step(made, event)
            assert early.state.inbound is late.state.inbound
            assert early.state.outbound is late.state.outbound
            leave = late.verdict is Verdict.PROCEED
            assert early.verdict is (Verdict.OPEN_FIRST if leave else late.verdict)


def test_no_permission_without_a_connection() -> None:
    for state in STATES:
        for event in CALLS:
            if step(state, event).verdict is Verdict.PROCEED:
                assert state.dial is Dial.DONE
                # A broken connection may have unread data left, but permits nothing else.
                assert state.link is Link.OPEN or (
                    event is Event.RECEIVE and state.link is Link.RESET
                )


def test_only_one_call_is_in_flight_in_each_direction() -> None:
    for state in STATES:
        if state.dial is Dial.FAILED:
            continue
        if state.inbound is Inbound.RECEIVING:
            assert step(state, Event.RECEIVE).verdict is Verdict.BUSY, state
        if state.outbound in (Outbound.SENDING, Outbound.ENDING):
            assert step(state, Event.SEND).verdict is Verdict.BUSY, state
        if state.outbound in (Outbound.SENDING, Outbound.LAST, Outbound.ENDING):
            assert step(state, Event.END).verdict is Verdict.BUSY, state
            assert step(state, Event.END_LAST).verdict is Verdict.WAIT, state


def test_nothing_is_sent_after_the_end_that_waits_for_a_send() -> None:
    """writable.aclose() was called: the send in flight is finished, and then our end is sent."""
    for state in STATES:
        if state.outbound in (Outbound.LAST, Outbound.DUE) and state.dial is not Dial.FAILED:
            assert step(state, Event.SEND).verdict is Verdict.CLOSED
        if state.outbound is Outbound.DUE and state.dial is Dial.DONE:
            assert step(state, Event.END_LAST).verdict is Verdict.PROCEED


def test_a_closed_socket_is_not_dialled() -> None:
    for state, event in REAL:
        after, _, effects = step(state, event)
        if after.link is Link.CLOSED:
            assert after.dial in (Dial.DONE, Dial.FAILED), (state, event)
        if state.dial is Dial.RUNNING and after.dial is Dial.FAILED:
            assert (event is Event.DIAL_FAILED) or Effect.CANCEL_DIAL in effects, (state, event)


def test_a_receive_in_flight_is_woken_by_an_event_that_ends_it() -> None:
    """An event that ends a receive in flight wakes it, unless the receive reported that event."""
    own = {Event.RECEIVE_DONE, Event.PEER_EOF}
    for state, event in PAIRS:
        after, _, effects = step(state, event)
        if (
            state.inbound is Inbound.RECEIVING
            and after.inbound is not Inbound.RECEIVING
            and event not in own
        ):
            assert Effect.INTERRUPT_RECEIVE in effects, (state, event)


def test_the_transport_is_closed_once_and_not_too_early() -> None:
    closing = {Effect.ACLOSE, Effect.FINISH, Effect.LET_GO}
    for state, event in REAL:
        after, _, effects = step(state, event)
        if event in {Event.DISOWN, Event.ABANDON}:
            continue  # the transport belongs to another socket by then
        asked = closing & {*effects}
        begins = after.link is Link.CLOSING and state.link is not Link.CLOSING
        if state.link is not Link.CLOSING and after.link is not Link.CLOSED:
            assert bool(asked) == begins, (state, event)
        if asked - {
            Effect.LET_GO
        }:  # no send is in flight, none was cut short, and none may follow
            assert after.outbound in (Outbound.ENDED, Outbound.CLOSED), (state, event)
            assert state.outbound not in (Outbound.TORN, Outbound.BROKEN), (state, event)
        if after.link is Link.CLOSED and state.link is not Link.CLOSED and state.dial is Dial.DONE:
            over = {Effect.DROP, Effect.LET_GO}
            assert event is Event.SHUT or over & {*effects}, (state, event)


def test_after_a_torn_send_there_is_no_regular_end() -> None:
    for state, event in REAL:
        if state.outbound is Outbound.TORN:
            after, _, effects = step(state, event)
            assert after.outbound in (Outbound.TORN, Outbound.BROKEN, Outbound.CLOSED)
            if after.link is not state.link and after.link is not Link.UPGRADED:
                assert Effect.DROP in effects or event is Event.RESET_UNREAD, (state, event)


def test_without_room_a_socket_lingers_with_both_sides_ended() -> None:
    for state, event in REAL:
        after, _, effects = step(state, event)
        if event is Event.CROWDED:
            assert (after.link, effects) == (Link.LINGERING, ()), state
        if state.link is Link.LINGERING:
            assert state.outbound in (Outbound.ENDED, Outbound.CLOSED), state
            assert state.inbound not in (Inbound.OPEN, Inbound.RECEIVING), state
            wanted = {Event.ROOM: Effect.FINISH, Event.CLOSE: Effect.ACLOSE}.get(event)
            if wanted is None:
                assert after.link is Link.LINGERING, (state, event)
            else:
                assert (after.link, effects) == (Link.CLOSING, (wanted,)), (state, event)


def test_half_open_matters_only_after_the_peers_end() -> None:
    """A step after which the peer has not ended does not depend on the setting."""
    ended = (Inbound.EOF, Inbound.DISCARDED)
    there = {(facets(state), state.half_open, state.starttls): state for state in STATES}
    for state, event in PAIRS:
        twin = there.get((facets(state), not state.half_open, state.starttls))
        if twin is not None and step(state, event).state.inbound not in ended:
            assert answer(state, event) == answer(twin, event), (state, event)


def test_starttls_matters_only_to_an_upgrade() -> None:
    there = {(facets(state), state.half_open, state.starttls): state for state in STATES}
    for state, event in PAIRS:
        twin = there.get((facets(state), state.half_open, not state.starttls))
        if twin is not None and event is not Event.UPGRADE:
            assert answer(state, event) == answer(twin, event), (state, event)


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

# half_open, events -> link, inbound, outbound, effects of the last event
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
    "peer ends while a send is in flight, which succeeds": (
        False,
        [*OPEN, Event.SEND, Event.RECEIVE, Event.PEER_EOF, Event.SEND_DONE],
        Link.CLOSING,
        Inbound.EOF,
        Outbound.ENDED,
        {Effect.FINISH},
    ),
    "peer ends while a send is in flight, which is cut short": (
        False,
        [*OPEN, Event.SEND, Event.RECEIVE, Event.PEER_EOF, Event.SEND_TORN],
        Link.RESET,
        Inbound.EOF,
        Outbound.BROKEN,
        {Effect.REJECT_CLOSED, Effect.DROP},
    ),
    "both have ended, but there is no room": (
        False,
        [*OPEN, Event.RECEIVE, Event.PEER_EOF, Event.CROWDED],
        Link.LINGERING,
        Inbound.EOF,
        Outbound.ENDED,
        set(),
    ),
    "both have ended, and room comes free": (
        False,
        [*OPEN, Event.RECEIVE, Event.PEER_EOF, Event.CROWDED, Event.ROOM],
        Link.CLOSING,
        Inbound.EOF,
        Outbound.ENDED,
        {Effect.FINISH},
    ),
    "both have ended, and the room that comes free is enough": (
        False,
        [*OPEN, Event.RECEIVE, Event.PEER_EOF, Event.CROWDED, Event.ROOM, Event.SHUT],
        Link.CLOSED,
        Inbound.EOF,
        Outbound.ENDED,
        {Effect.RESOLVE_CLOSED},
    ),
    "close while there is no room": (
        False,
        [*OPEN, Event.RECEIVE, Event.PEER_EOF, Event.CROWDED, Event.CLOSE],
        Link.CLOSING,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.ACLOSE},
    ),
    "close while there is no room, cancelled": (
        False,
        [
            *OPEN,
            *(Event.RECEIVE, Event.PEER_EOF, Event.CROWDED, Event.CLOSE, Event.FORCE),
            Event.SHUT,
        ],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.RESOLVE_CLOSED},
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
    "close while a send is in flight, cancelled": (
        False,
        [*OPEN, Event.SEND, Event.CLOSE, Event.FORCE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.LET_GO, Effect.REJECT_CLOSED, Effect.DROP},
    ),
    "close while a send is in flight, which makes no progress": (
        False,
        [*OPEN, Event.SEND, Event.CLOSE, Event.LATE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.REJECT_CLOSED, Effect.DROP},
    ),
    "close, and the peer does not acknowledge": (
        False,
        [*OPEN, Event.CLOSE, Event.FLUSHED, Event.LATE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.REJECT_CLOSED, Effect.LET_GO},
    ),
    "close, cancelled while the peer has not acknowledged everything": (
        False,
        [*OPEN, Event.CLOSE, Event.FLUSHED, Event.FORCE],
        Link.CLOSING,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.LET_GO},
    ),
    "close, and a reset destroys sent data": (
        False,
        [*OPEN, Event.CLOSE, Event.FLUSHED, Event.RESET],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.REJECT_CLOSED, Effect.DROP},
    ),
    "close after a torn send": (
        False,
        [*OPEN, Event.SEND, Event.SEND_TORN, Event.CLOSE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.REJECT_CLOSED, Effect.DROP},
    ),
    "close before the dial": (
        False,
        [Event.CLOSE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.REJECT_OPENED, Effect.RESOLVE_CLOSED, Effect.LET_GO},
    ),
    "close during the dial": (
        False,
        [Event.DIAL, Event.CLOSE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.CANCEL_DIAL, Effect.REJECT_OPENED, Effect.RESOLVE_CLOSED},
    ),
    "close while a send waits for the connection": (
        False,
        [Event.SEND, Event.DIAL, Event.CLOSE],
        Link.FLUSHING,
        Inbound.CLOSED,
        Outbound.FLUSHING,
        set(),
    ),
    "close while a send waits for the connection, the send is cancelled": (
        False,
        [Event.SEND, Event.DIAL, Event.CLOSE, Event.SEND_DONE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.CANCEL_DIAL, Effect.REJECT_OPENED, Effect.RESOLVE_CLOSED},
    ),
    "close while a send waits for the connection, the close is cancelled": (
        False,
        [Event.SEND, Event.DIAL, Event.CLOSE, Event.FORCE],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {
            *(Effect.LET_GO, Effect.CANCEL_DIAL),
            *(Effect.REJECT_OPENED, Effect.RESOLVE_CLOSED),
        },
    ),
    "close while a send waits for the connection, the dial fails": (
        False,
        [Event.SEND, Event.DIAL, Event.CLOSE, Event.DIAL_FAILED],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.FLUSHING,
        {Effect.REJECT_OPENED, Effect.REJECT_CLOSED},
    ),
    "our end waits for a send": (
        False,
        [*OPEN, Event.SEND, Event.END_LAST, Event.SEND_DONE],
        Link.OPEN,
        Inbound.OPEN,
        Outbound.DUE,
        set(),
    ),
    "our end waits for a send, and the peer ends first": (
        False,
        [*OPEN, Event.SEND, Event.END_LAST, Event.RECEIVE, Event.PEER_EOF, Event.SEND_DONE],
        Link.CLOSING,
        Inbound.EOF,
        Outbound.ENDED,
        {Effect.FINISH},
    ),
    "upgrade while a send waits for the connection": (
        False,
        [Event.SEND, Event.UPGRADE],
        Link.UPGRADED,
        Inbound.CLOSED,
        Outbound.FLUSHING,
        {Effect.RESOLVE_CLOSED},
    ),
    "closed just before the dial succeeds": (
        False,
        [Event.DIAL, Event.CLOSE, Event.DIALLED],
        Link.CLOSED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.DISCARD},
    ),
    "dial cancelled, then made by the next task": (
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
    "reset with unread data, which is read to its end": (
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
        {Effect.ACLOSE},
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

for name, before in {
    "detach": OPEN,
    "detach once we have ended": [*OPEN, Event.END, Event.END_DONE],
    "detach once the peer has ended": [*OPEN, Event.RECEIVE, Event.PEER_EOF],
    "detach once we have stopped reading": [*OPEN, Event.CANCEL],
    "detach once we have stopped reading and the peer has ended": [
        *OPEN,
        Event.CANCEL,
        Event.PEER_EOF,
    ],
}.items():
    SCENARIOS[name] = (
        True,
        [*before, Event.DETACH],
        Link.DETACHED,
        Inbound.CLOSED,
        Outbound.CLOSED,
        {Effect.RESOLVE_CLOSED},
    )


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


# what happened before -> why detach() is refused
NOT_DETACHED: list[tuple[Verdict, list[Event]]] = [
    (Verdict.UPGRADED_ALREADY, [*OPEN, Event.UPGRADE]),
    (Verdict.UPGRADED_ALREADY, [Event.UPGRADE]),
    (Verdict.DETACHED_ALREADY, [*OPEN, Event.DETACH]),
    (Verdict.FAILED, [Event.DIAL, Event.DIAL_FAILED]),
    (Verdict.PENDING, []),
    (Verdict.PENDING, [Event.SEND]),
    (Verdict.PENDING, [Event.DIAL]),
    (Verdict.BROKEN, [*OPEN, Event.SEND, Event.SEND_TORN]),
    (Verdict.BROKEN, [*OPEN, Event.RESET_UNREAD]),
    (Verdict.CLOSED, [*OPEN, Event.CLOSE]),
    (Verdict.CLOSED, [*OPEN, Event.CANCEL, Event.END, Event.END_DONE]),
    (Verdict.RECEIVE_IN_FLIGHT, [*OPEN, Event.RECEIVE]),
    (Verdict.SEND_IN_FLIGHT, [*OPEN, Event.SEND]),
    (Verdict.SEND_IN_FLIGHT, [*OPEN, Event.END]),
    (Verdict.SEND_IN_FLIGHT, [*OPEN, Event.SEND, Event.END_LAST]),
    (Verdict.SEND_IN_FLIGHT, [*OPEN, Event.SEND, Event.END_LAST, Event.SEND_DONE]),
]


@pytest.mark.parametrize(("verdict", "events"), NOT_DETACHED)
def test_detach_refused(verdict: Verdict, events: list[Event]) -> None:
    state = initial(half_open=True, starttls=True)
    for event in events:
        state = step(state, event).state
    assert step(state, Event.DETACH).verdict is verdict


def test_a_detached_socket_does_nothing_any_more() -> None:
    for state, event in REAL:
        if state.link is Link.DETACHED:
            after, verdict, effects = step(state, event)
            assert (after, effects) == (state, ()), (state, event)
            assert verdict not in (Verdict.PROCEED, Verdict.OPEN_FIRST), (state, event)


if __name__ == "__main__":
    LISTING.write_text(listing(), encoding="utf-8")
