"""The states that a socket can reach, and the events that can happen in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum

from anyio_connect._lifecycle import (
    Event,
    Outbound,
    State,
    initial,
    step,
)

#: Events that ask for permission to receive, to send or to end.
CALLS = {Event.RECEIVE, Event.SEND, Event.END, Event.END_LAST}
ASKING = {*CALLS, Event.ABORT, Event.UPGRADE, Event.DETACH}
IN_FLIGHT = (Outbound.SENDING, Outbound.LAST, Outbound.ENDING, Outbound.FLUSHING)
STARTS = [initial(half_open=h, starttls=s) for h in (False, True) for s in (False, True)]


def reachable(happens: Callable[[State, Event], bool]) -> set[State]:
    seen: set[State] = set()
    todo = list(STARTS)
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo += [step(state, event).state for event in Event if happens(state, event)]
    return seen


STATES = reachable(lambda state, event: True)
PAIRS = [(state, event) for state in STATES for event in Event]


def facets(state: State) -> tuple[Enum, ...]:
    return state.dial, state.link, state.inbound, state.outbound


def other(member: Enum) -> Iterator[Enum]:
    return (each for each in type(member) if each is not member)
