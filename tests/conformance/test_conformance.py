"""Runs each scenario here and on Workers, against the same peer, and compares the outcomes.

All differences are in DIFFERENCES.md, with their reasons. A test fails if a difference is not
listed there, or if a listed difference no longer exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from conformance import ledger
from conformance.ledger import Difference
from conformance.run import Traces
from conformance.scenarios import SCENARIOS
from conformance.steps import PENDING
from support.peers import has_ipv6

PAGE = Path(__file__).parents[2] / "docs" / "workers.md"
LISTED = [difference for section in ledger.read().values() for difference in section]


def compared(traces: Traces) -> list[tuple[str, str, str]]:
    """Each step that both traces have, with its outcome here and in Workers."""
    here, workers = traces.here["asyncio"].outcomes, traces.workers.outcomes
    return [(step, here[step], workers[step]) for step in here if step in workers]


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, traces: Mapping[str, Traces]) -> None:
    if "::" in name and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    trace = traces[name]
    here, workers = trace.here["asyncio"], trace.workers
    assert here.outcomes == trace.here["trio"].outcomes, "asyncio and trio differ"

    # If only one of them continues, the other has refused the address or an option.
    if here.outcomes.keys() != workers.outcomes.keys():
        refused = min(here, workers, key=lambda each: len(each.outcomes))
        assert "throws" in refused.outcomes.values(), "a step is missing"

    steps = {step.name: step for step in SCENARIOS[name].steps}
    found = []
    for step, ours, theirs in compared(trace):
        print(f"{step}: {ours} {here.details.get(step, '')}")  # noqa: T201 - shown by pytest
        print(f"    Workers: {theirs} {workers.details.get(step, '')}")  # noqa: T201 - likewise
        for outcome in (ours, theirs):
            assert not outcome.startswith("failed:"), f"{step}: {outcome}"
        if steps[step].quiet:
            # A short wait is enough to show that a step waits, but not that it waits for ever.
            assert ours == theirs == PENDING, f"{step!r} has to wait in vain in both"
        else:
            assert not ours == theirs == PENDING, f"both wait: write 'quiet', not {step!r}"
        if ours != theirs:
            found.append(Difference(name, step, ours, theirs))

    listed = [difference for difference in LISTED if difference.scenario == name]
    new = [difference.row for difference in found if difference not in listed]
    gone = [difference.row for difference in listed if difference not in found]
    where = f"tests/conformance/{ledger.LEDGER.name}"
    why = f"differs, and is not listed in {where}. If it has to differ, add a row with the reason:"
    assert not new, "\n".join([why, *new])
    why = (
        f"no longer differs, or differs in another way. Remove it from {where}, or change its row:"
    )
    assert not gone, "\n".join([why, *gone])


def test_each_difference_is_listed_once_and_is_of_a_scenario() -> None:
    places = [(difference.scenario, difference.step) for difference in LISTED]
    assert len(set(places)) == len(places)
    there = {(name, step.name) for name, each in SCENARIOS.items() for step in each.steps}
    assert not set(places) - there
    assert all(difference.here != difference.workers for difference in LISTED)


def test_the_page_has_the_numbers(traces: Mapping[str, Traces]) -> None:
    if traces.keys() != SCENARIOS.keys():
        pytest.skip("not all scenarios were run")
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback, which some scenarios are about")
    steps = [step for trace in traces.values() for step in compared(trace)]
    same = sum(ours == theirs for _, ours, theirs in steps)
    said = " ".join(PAGE.read_text(encoding="utf-8").split())
    for wanted in (
        f" {len(SCENARIOS)} scenarios of {len(steps)} steps are run here and on workerd",
        f" {same} steps are the same, and {len(steps) - same} differ",
    ):
        assert wanted in said
