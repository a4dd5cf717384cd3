"""Puts each fault of ``broken.py`` into the code, and shows that random histories find it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio_connect

from .broken import BROKEN, Broken
from .known import unknown
from .plan import plan
from .run import execute
from .schedulers import SCHEDULERS

_TESTS = Path(__file__).parent.parent
#: How many histories one process runs before another scheduler has its turn.
_AT_ONCE = 400


def without_coverage() -> dict[str, str]:
    """The environment of a process that runs a broken copy. No report of it is kept."""
    return {name: value for name, value in os.environ.items() if "COVERAGE" not in name}


def hunt_all(numbers: list[int], seconds: float) -> bool:
    """Look for these faults, or for all; return whether each was found in time."""
    chosen = [(n, b) for n, b in enumerate(BROKEN) if not numbers or n in numbers]
    found = [_hunt(number, broken, seconds) for number, broken in chosen]
    return all(found)


def _hunt(number: int, broken: Broken, seconds: float) -> bool:
    began = _used()
    scheduler, output = hunt(broken, seconds)
    took = _used() - began
    result = f"found on {scheduler} in {took:.1f} s: {output}" if scheduler else "NOT FOUND"
    print(f"{number} ({broken.part}) {broken.what}: {result}", flush=True)
    return bool(scheduler)


def hunt(broken: Broken, seconds: float) -> tuple[str | None, str]:
    """Run histories with that fault in a copy of the package, on each scheduler in turn.

    They may take ``seconds`` of CPU time, which does not include other processes. Returns the
    scheduler that found the fault, and what it reported. A history that has a fault even without
    this one does not count.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, anyio_connect.__name__)
        shutil.copytree(
            Path(anyio_connect.__file__).parent,
            package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        broken.put_into(package)
        began = _used()
        seeds = dict.fromkeys(broken.schedulers or SCHEDULERS, 0)
        while (left := began + seconds - _used()) > 0:
            for scheduler, first in seeds.items():
                try:
                    seed, output = _run(folder, scheduler, first, left)
                except subprocess.TimeoutExpired:
                    return None, "nothing in time"
                seeds[scheduler] = seed + 1
                if output and not unknown(execute(plan(seed), scheduler).faults):
                    return scheduler, output
    return None, "nothing in time"


def _used() -> float:
    """The CPU time of the processes that were started here, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run(folder: str, scheduler: str, first: int, seconds: float) -> tuple[int, str]:
    """Run histories with the package in that directory; return the last seed and the faults."""
    paths = [folder, str(_TESTS), *(path for path in sys.path if path)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "simulation", "run", scheduler, "--first"),
            *(f"--seed={first}", f"--count={_AT_ONCE}"),
        ],
        env={**without_coverage(), "PYTHONPATH": os.pathsep.join(paths)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=max(10.0, 20 * seconds),
        check=False,
    )
    if not done.returncode:
        return first + _AT_ONCE - 1, ""
    lines = [line.strip() for line in done.stdout.splitlines()[1:] if "(known)" not in line]
    if not lines:
        raise RuntimeError(f"the histories do not run:\n{done.stdout}{done.stderr}")
    seed = lines[0].partition(f"replay {scheduler} ")[2].partition(" ")[0]
    return int(seed), lines[0]
