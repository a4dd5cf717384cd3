"""Random histories on a simulated network, and whether that can be relied on.

See the package ``simulation``. Each run takes other seeds: what fails is told as a command that
replays it.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="what is simulated is Linux's TCP and epoll"
)
if sys.platform == "linux":
    from fnmatch import filter as matching

    from simulation.known import KNOWN, MENDED, Known, unknown
    from simulation.plan import Plan, Step, Subject, plan
    from simulation.run import execute
    from simulation.schedulers import SCHEDULERS
    from simulation.shrink import command, shrink, story
else:  # pragma: no cover
    KNOWN, MENDED, SCHEDULERS = (), (), ()

TESTS = Path(__file__).parent
#: How much processor time random histories may take on each scheduler, in seconds.
BUDGET = 4.0

on_each_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


@on_each_scheduler
def test_random_histories(scheduler: str) -> None:
    first = random.randrange(1_000_000_000)
    stop = time.process_time() + BUDGET
    seed = first
    while time.process_time() < stop:
        world = execute(plan(seed), scheduler)
        if found := unknown(world.faults):
            shorter = shrink(plan(seed), scheduler, found[0], seconds=20)
            pytest.fail(
                f"{found}; to see it again:\n{command(scheduler, seed)}\n"
                + story(shorter, execute(shorter, scheduler)),
                pytrace=False,
            )
        seed += 1
    assert seed > first + 20, "hardly any history was run"


@pytest.mark.parametrize(
    ("known", "scheduler"),
    [
        pytest.param(known, scheduler, id=f"{known.fault}: {known.why}-{scheduler}")
        for known in KNOWN
        for scheduler in known.schedulers
    ],
)
def test_known_faults_are_still_there(known: Known, scheduler: str) -> None:
    faults = execute(known.plan, scheduler).faults
    assert matching(faults, known.fault), "it is mended: move its history to MENDED in known.py"


@on_each_scheduler
@pytest.mark.parametrize("number", range(len(MENDED)))
def test_mended_faults_stay_away(number: int, scheduler: str) -> None:
    assert not unknown(execute(MENDED[number], scheduler).faults)


# --- a seed says it all


def digest(scheduler: str, seeds: range) -> str:
    """What happened in those histories, in a word."""
    logs = [execute(plan(seed), scheduler).network.log for seed in seeds]
    return hashlib.sha256(repr(logs).encode()).hexdigest()


@on_each_scheduler
def test_a_seed_gives_the_same_history_again(scheduler: str) -> None:
    first = random.randrange(1_000_000_000)
    seeds = range(first, first + 25)
    assert digest(scheduler, seeds) == digest(scheduler, seeds), first


@on_each_scheduler
def test_a_seed_gives_the_same_history_in_another_process(scheduler: str) -> None:
    first = random.randrange(1_000_000_000)
    seeds = range(first, first + 25)
    script = (
        "from test_simulation import digest\n"
        f"print(digest({scheduler!r}, range({seeds.start}, {seeds.stop})))"
    )
    paths = [str(TESTS), *(path for path in sys.path if path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "77"}
    other = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env=env
    )
    assert other.stdout.strip() == digest(scheduler, seeds), first


def test_a_history_in_which_nothing_is_wrong_has_no_fault() -> None:
    steps = (
        Step(0, "send", size=150_000),
        Step(1, "p.send", size=1000, seconds=0.5),
        Step(2, "receive"),
        Step(3, "p.fin", seconds=0.5),
        Step(4, "receive"),
        Step(5, "closed"),
    )
    for secure in ("off", "on"):
        history = Plan(0, "mixed", (Subject(secure=secure),), steps)
        for scheduler in SCHEDULERS:
            world = execute(history, scheduler)
            assert not world.faults
            assert {call.how for call in world.calls} <= {"ok", "EndOfStream"}
