"""A scenario as data, and the list of all scenarios. steps.py explains the steps."""

from __future__ import annotations

from dataclasses import dataclass

from conformance.steps import Step, parse

#: More bytes than both kernels hold: such a send waits until the peer reads.
FLOOD = 1 << 24


@dataclass(frozen=True)
class Scenario:
    name: str
    #: A description in one line.
    intent: str
    steps: tuple[Step, ...]


#: The end of a scenario's name for each value of ``allowHalfOpen``.
MODES = {"": "", ", half-open": "half-open"}

SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, intent: str, steps: str) -> None:
    assert name not in SCENARIOS, name
    SCENARIOS[name] = Scenario(name, intent, parse(steps.replace("FLOOD", str(FLOOD))))
