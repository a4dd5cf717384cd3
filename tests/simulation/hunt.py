"""Puts each fault of ``broken.py`` in, and shows that random histories find it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio_connect

from .broken import BROKEN, Broken
from .schedulers import SCHEDULERS

_TESTS = Path(__file__).parent.parent


def hunt_all(numbers: list[int], seconds: float) -> bool:
    """Hunt these, or all of them; return whether each was found in time."""
    chosen = [(n, b) for n, b in enumerate(BROKEN) if not numbers or n in numbers]
    found = [_hunt(number, broken, seconds) for number, broken in chosen]
    return all(found)


def _hunt(number: int, broken: Broken, seconds: float) -> bool:
    began = time.monotonic()
    scheduler, output = hunt(broken, seconds)
    took = time.monotonic() - began
    result = f"found on {scheduler} in {took:.1f} s: {output}" if scheduler else "NOT FOUND"
    print(f"{number} ({broken.part}) {broken.what}: {result}", flush=True)
    return bool(scheduler)


def hunt(broken: Broken, seconds: float) -> tuple[str | None, str]:
    """Run histories with that fault in a copy of the package, on each scheduler in turn.

    Returns the scheduler on which it showed, and as what.
    """
    output = ""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, anyio_connect.__name__)
        shutil.copytree(
            Path(anyio_connect.__file__).parent,
            package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        broken.put_into(package)
        paths = [folder, str(_TESTS), *(path for path in sys.path if path)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        give_up = time.monotonic() + seconds
        count, seed = 250, 0
        while time.monotonic() < give_up:
            for scheduler in broken.schedulers or SCHEDULERS:
                command = [sys.executable, "-m", "simulation", "run", scheduler, "--first"]
                command += [f"--seed={seed}", f"--count={count}"]
                try:
                    done = subprocess.run(
                        command,
                        env=env,
                        cwd=folder,
                        capture_output=True,
                        text=True,
                        timeout=max(1.0, give_up - time.monotonic()),
                        check=False,
                    )
                except subprocess.TimeoutExpired:
                    return None, "nothing in time"
                output = done.stdout + done.stderr
                if done.returncode and not done.stdout:
                    raise RuntimeError(f"with {broken.what!r} nothing can be run:\n{output}")
                if done.returncode:
                    lines = [line for line in output.splitlines() if "(known)" not in line]
                    return scheduler, lines[-1].strip()
            seed += count
            count *= 2
    return None, output
