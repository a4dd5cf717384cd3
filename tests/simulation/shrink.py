"""Finds a shorter history with the same fault, and prints histories."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

from .plan import Plan, Route, Step, Subject
from .run import execute
from .world import World

T = TypeVar("T", Plan, Subject, Route, Step)


def shrink(plan: Plan, scheduler: str, fault: str, seconds: float = 30.0) -> Plan:
    """Drop steps and simplify the rest, as long as ``fault`` stays.

    Stops after ``seconds``. The result has the fault even then.
    """
    give_up = time.monotonic() + seconds

    def fails(candidate: Plan) -> bool:
        return fault in execute(candidate, scheduler).faults

    if not fails(plan):
        raise ValueError(f"this history has no fault {fault!r}")
    while True:
        before = plan
        for candidates in (_shorter, _simpler):
            plan = _improve(plan, candidates, fails, give_up)
        if plan == before or time.monotonic() > give_up:
            return plan


def _improve(
    plan: Plan,
    candidates: Callable[[Plan], Iterator[Plan]],
    fails: Callable[[Plan], bool],
    give_up: float,
) -> Plan:
    improved = True
    while improved:
        improved = False
        for candidate in candidates(plan):
            if time.monotonic() > give_up:
                return plan
            if fails(candidate):
                plan, improved = candidate, True
                break
    return plan


def _shorter(plan: Plan) -> Iterator[Plan]:
    """The plan without some of the steps; at first without many at once."""
    size = len(plan.steps)
    while size := size // 2:
        for at in range(0, len(plan.steps), size):
            yield replace(plan, steps=plan.steps[:at] + plan.steps[at + size :])


def _simpler(plan: Plan) -> Iterator[Plan]:
    """The plan with one value set to its default."""
    yield from _with_defaults(plan, Plan(), ("seed", "subjects", "steps"))
    for number, subject in enumerate(plan.subjects):
        changed = [*_with_defaults(subject, Subject(), ("routes",))]
        for at, route in enumerate(subject.routes):
            rest = subject.routes[:at], subject.routes[at + 1 :]
            if len(subject.routes) > 1:
                changed.append(replace(subject, routes=(*rest[0], *rest[1])))
            changed += [
                replace(subject, routes=(*rest[0], simple, *rest[1]))
                for simple in _with_defaults(route, Route())
            ]
        for simple_subject in changed:
            subjects = list(plan.subjects)
            subjects[number] = simple_subject
            yield replace(plan, subjects=tuple(subjects))
    for number, step in enumerate(plan.steps):
        for simple_step in _with_defaults(step, Step(0, ""), ("number", "kind", "who")):
            steps = list(plan.steps)
            steps[number] = simple_step
            yield replace(plan, steps=tuple(steps))


def _with_defaults(value: T, default: T, keep: tuple[str, ...] = ()) -> Iterator[T]:
    for field in fields(value):
        simple = getattr(default, field.name)
        if field.name not in (*keep, "profile") and getattr(value, field.name) != simple:
            yield replace(value, **{field.name: simple})


# --- printing


def code(value: object) -> str:
    """A plan as Python code, without values that are defaults."""
    if isinstance(value, tuple):
        return f"({', '.join(map(code, value))}{',' if len(value) == 1 else ''})"
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    given = [
        f"{field.name}={code(now)}"
        for field in fields(value)
        if (now := getattr(value, field.name)) != field.default
    ]
    return f"{type(value).__name__}({', '.join(given)})"


def story(plan: Plan, world: World) -> str:
    """The history, its events and its faults, for people to read."""
    lines = [f"seed {plan.seed}, {plan.profile}, {world.scheduler}"]
    settings = replace(plan, subjects=(), steps=())
    lines.append(f"  {code(settings)}")
    lines += [f"  {code(subject)}" for subject in plan.subjects]
    lines += ["steps:", *(f"  {code(step)}" for step in plan.steps)]
    lines.append("log:")
    lines += _events(world)
    lines.append("faults:")
    lines += [f"  {fault}" for fault in dict.fromkeys(world.faults)] or ["  none"]
    return "\n".join(lines)


def _events(world: World) -> Iterator[str]:
    """The log, with consecutive segments to the same end on one line."""
    flow: tuple[str, int, int] | None = None  # the end, segments, bytes
    for when, *what in [*world.network.log, (0.0,)]:
        if flow is not None and what[:2] != [flow[0], "gets"]:
            yield f"              {flow[0]} gets {flow[2]} bytes in {flow[1]} segments"
            flow = None
        if len(what) == 3 and what[1] == "gets" and isinstance(what[2], int):
            _, count, size = flow or ("", 0, 0)
            flow = str(what[0]), count + 1, size + what[2]
        elif what:
            yield f"  {when:10.6f}  {' '.join(map(str, what))}"


def command(scheduler: str, seed: int) -> str:
    """The command that replays the history, in any process."""
    return f"PYTHONPATH=tests python -m simulation replay {scheduler} {seed} --shrink"
