"""The tables of the lifecycle, changed in every small way: LIFECYCLE.txt has to differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

import pytest

from anyio_connect import _lifecycle
from anyio_connect._lifecycle import (
    JOINT,
    REFUSALS,
    TABLES,
    Effect,
    Event,
    State,
    step,
)
from support.states import (
    PAIRS,
    facets,
    other,
)


class Change(NamedTuple):
    """A change of one word in a table."""

    name: str
    make: Callable[[pytest.MonkeyPatch], None]
    #: Where the change may show: in this event, at this value of this facet; or where this rule is
    #: asked.
    event: Event | None = None
    facet: str | None = None
    value: Enum | None = None
    rule: int | None = None
    instead: tuple[_lifecycle.Rule, ...] = ()

    def may_show(self) -> list[tuple[State, Event]]:
        if self.rule is None:
            return pairs_by_event()[self.event, self.facet, self.value]
        return [
            pair
            for state, fitting, pairs in asked_of_rules()
            if self.rule_shows(self.rule, state, fitting)
            for pair in pairs
        ]

    def rule_shows(self, number: int, state: State, fitting: list[int]) -> bool:
        """Whether the first rule that fits does something else after the change."""
        if fitting and fitting[0] < number:
            return False
        rules = [rule for rule in self.instead if _lifecycle._fits(state, rule.when)]
        rules += [JOINT[i] for i in fitting if i != number]
        now = (rules[0].then, rules[0].effects) if rules else None
        return now != ((JOINT[fitting[0]].then, JOINT[fitting[0]].effects) if fitting else None)


@cache
def pairs_by_event() -> dict[tuple[object, ...], list[tuple[State, Event]]]:
    """The pairs of each event, and of each event with each value of each facet."""
    found: dict[tuple[object, ...], list[tuple[State, Event]]] = {}
    for state, event in PAIRS:
        keys = [(event, None, None), *((event, facet, getattr(state, facet)) for facet in TABLES)]
        for key in keys:
            found.setdefault(key, []).append((state, event))
    return found


@cache
def asked_of_rules() -> list[tuple[State, list[int], list[tuple[State, Event]]]]:
    """Each state for which a rule is looked up, with its fitting rules and the pairs before it."""
    found: dict[object, tuple[State, list[int], list[tuple[State, Event]]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for pair in PAIRS:

            def keep(state: State, pair: tuple[State, Event] = pair, **moved: Any) -> State:
                after = replace(state, **moved)
                key = (*facets(after), after.half_open, after.starttls)
                if key not in found:
                    rules = enumerate(JOINT)
                    fitting = [i for i, rule in rules if _lifecycle._fits(after, rule.when)]
                    found[key] = (after, fitting, [])
                found[key][2].append(pair)
                return after

            patch.setattr(_lifecycle, "replace", keep)
            _lifecycle._step(*pair)
    return [*found.values()]


def changed_entries() -> Iterator[Change]:
    for facet, table in TABLES.items():
        for value, entries in table.items():
            for event, entry in entries.items():
                target, *words = entry if isinstance(entry, tuple) else (entry,)
                new: dict[str, Any] = {"deleted": None}
                new |= {f"-> {t}": (t, *words) for t in other(target)}
                for i, word in enumerate(words):
                    rest = [*words[:i], *words[i + 1 :]]
                    new[f"without {word}"] = (target, *rest)
                    new |= {f"{word} is {w}": (target, *rest, w) for w in other(word)}
                for what, replacement in new.items():

                    def change(
                        patch: pytest.MonkeyPatch,
                        entries: dict[Event, Any] = entries,
                        event: Event = event,
                        replacement: Any = replacement,
                    ) -> None:
                        if replacement is None:
                            patch.delitem(entries, event)
                        else:
                            patch.setitem(entries, event, replacement)

                    yield Change(f"{facet} {value} {event}: {what}", change, event, facet, value)


def changed_conditions(when: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for facet, values in when.items():
        yield f"without {facet}", {f: v for f, v in when.items() if f != facet}
        for value in values:
            if len(values) > 1:
                rest = tuple(v for v in values if v is not value)
                yield f"without {facet} {value}", {**when, facet: rest}
        more = other(values[0]) if isinstance(values[0], Enum) else iter((not values[0],))
        for value in more:
            if value not in values:
                yield f"with {facet} {value}", {**when, facet: (*values, value)}


def changed_rules() -> Iterator[Change]:
    for number, rule in enumerate(JOINT):
        new: dict[str, tuple[_lifecycle.Rule, ...]] = {"deleted": ()}
        for what, when in changed_conditions(rule.when):
            new[f"when {what}"] = (rule._replace(when=when),)
        for facet, target in rule.then.items():
            then = {f: v for f, v in rule.then.items() if f != facet}
            new[f"then without {facet}"] = (rule._replace(then=then),)
            assert isinstance(target, Enum)
            for value in other(target):
                then = {**rule.then, facet: value}
                new[f"then {facet} {value}"] = (rule._replace(then=then),)
        for i, effect in enumerate(rule.effects):
            rest = [*rule.effects[:i], *rule.effects[i + 1 :]]
            new[f"without {effect}"] = (rule._replace(effects=(*rest,)),)
            for word in other(effect):
                assert isinstance(word, Effect)
                new[f"{effect} is {word}"] = (rule._replace(effects=(*rest, word)),)
        for what, instead in new.items():
            rules = (*JOINT[:number], *instead, *JOINT[number + 1 :])

            def change(
                patch: pytest.MonkeyPatch, rules: tuple[_lifecycle.Rule, ...] = rules
            ) -> None:
                patch.setattr(_lifecycle, "JOINT", rules)

            yield Change(f"rule {number}: {what}", change, rule=number, instead=instead)


def changed_refusals() -> Iterator[Change]:
    for event, refusals in REFUSALS.items():
        for number, (when, verdict) in enumerate(refusals):
            new: dict[str, Any] = {"deleted": ()}
            new |= {f"when {w}": ((c, verdict),) for w, c in changed_conditions(when)}
            new |= {f"{verdict} is {v}": ((when, v),) for v in other(verdict)}
            for what, instead in new.items():
                changed = (*refusals[:number], *instead, *refusals[number + 1 :])

                def change(
                    patch: pytest.MonkeyPatch, event: Event = event, changed: Any = changed
                ) -> None:
                    patch.setitem(REFUSALS, event, changed)

                yield Change(f"refusal {number} of {event}: {what}", change, event=event)


def shows(change: Change) -> bool:
    """Whether some reachable state answers differently, so that the listing would show it."""
    left = 0

    def replace_unless_for_ever(state: State, **moved: Any) -> State:
        nonlocal left
        left -= 1
        if not left:
            raise RecursionError
        return replace(state, **moved)

    pairs = change.may_show()
    with pytest.MonkeyPatch.context() as patch:
        change.make(patch)
        patch.setattr(_lifecycle, "replace", replace_unless_for_ever)
        for state, event in pairs:
            left = 20
            try:
                if _lifecycle._step(state, event) != step(state, event):
                    return True
            except (RecursionError, KeyError):
                return True
    return False


#: Changes that make no difference, each with the reason.
HARMLESS = {
    "rule 1: then outbound Outbound.BROKEN": "rule 9 turns BROKEN into CLOSED",
    "rule 2: then outbound Outbound.BROKEN": "the same",
    "rule 8: then outbound Outbound.BROKEN": "rule 9 turns BROKEN into CLOSED",
    "outbound Outbound.FLUSHING Event.ABORT: -> Outbound.CLOSED": "rule 9 makes CLOSED of BROKEN",
}


@pytest.mark.slow
def test_no_change_of_the_tables_goes_unseen() -> None:
    """``nox -s mutants`` cannot change tables."""
    for state, event in PAIRS:
        step(state, event)  # keeps the result, before anything is changed
    changes = [*changed_entries(), *changed_rules(), *changed_refusals()]
    assert len(changes) > 1000
    harmless = {change.name for change in changes if not shows(change)}
    # A rule that also fits states that do not exist makes no difference either.
    harmless = {name for name in harmless if "when with " not in name}
    assert harmless == {*HARMLESS}, (
        "a change that only the first set has makes no difference: leave that word out of the "
        "tables, or add the change to HARMLESS, with the reason"
    )
