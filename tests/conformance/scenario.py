"""A scenario, as data, and where all are kept. What its steps mean: steps.py."""

from __future__ import annotations

from dataclasses import dataclass

from conformance.steps import Step, parse

#: More than both kernels hold, in bytes: to send as much takes a peer that reads.
FLOOD = 1 << 24


@dataclass(frozen=True)
class Scenario:
    name: str
    #: What it is about, in a line.
    intent: str
    steps: tuple[Step, ...]


#: What a name says of ``allowHalfOpen``.
MODES = {"": "", ", half-open": "half-open"}

SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, intent: str, steps: str) -> None:
    assert name not in SCENARIOS, name
    SCENARIOS[name] = Scenario(name, intent, parse(steps.replace("FLOOD", str(FLOOD))))
