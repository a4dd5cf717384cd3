"""The command line: see the package's docstring."""

from __future__ import annotations

import argparse
import gc
import logging
import random
import sys
import time
from collections import Counter

from .known import unknown
from .plan import plan
from .run import execute
from .schedulers import SCHEDULERS
from .shrink import code, command, shrink, story


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run many histories, and print the faults")
    run.add_argument("scheduler", choices=(*SCHEDULERS, "all"), nargs="?", default="all")
    run.add_argument("--seed", type=int, help="the first seed; random by default")
    run.add_argument("--count", type=int, default=5000)
    run.add_argument("--first", action="store_true", help="stop at the first unknown fault")
    replay = commands.add_parser("replay", help="run one history, and print it")
    replay.add_argument("scheduler", choices=SCHEDULERS)
    replay.add_argument("seed", type=int)
    replay.add_argument("--shrink", action="store_true", help="print a shorter history")
    replay.add_argument("--fault", help="the fault to keep; by default the first")
    replay.add_argument("--code", action="store_true", help="print only the plan, as Python")
    hunt = commands.add_parser("hunt", help="find the faults of broken.py")
    hunt.add_argument("numbers", type=int, nargs="*", help="only these")
    hunt.add_argument("--seconds", type=float, default=60.0, help="of CPU time for each")
    given = parser.parse_args(arguments)
    logging.getLogger("anyio_connect").addHandler(logging.NullHandler())  # without log lines
    if given.command == "run":
        names = SCHEDULERS if given.scheduler == "all" else (given.scheduler,)
        seed = random.randrange(1_000_000_000) if given.seed is None else given.seed
        found = [_run(name, seed, given.count, stop=given.first) for name in names]
        return int(any(found))
    if given.command == "replay":
        return _replay(given)
    from .hunt import hunt_all

    return int(not hunt_all(given.numbers, given.seconds))


def _run(scheduler: str, first: int, count: int, *, stop: bool) -> bool:
    """Run ``count`` histories; return whether there was a fault that is not known."""
    found: Counter[str] = Counter()
    seeds: dict[str, list[int]] = {}
    gc.disable()
    began, used = time.perf_counter(), time.process_time()
    ran = 0
    for seed in range(first, first + count):
        faults = execute(plan(seed), scheduler).faults
        ran += 1
        for fault in dict.fromkeys(faults):
            found[fault] += 1
            seeds.setdefault(fault, []).append(seed)
        if seed % 50 == 0:
            gc.collect()
        if stop and unknown(faults):
            break
    gc.enable()
    took, used = time.perf_counter() - began, time.process_time() - used
    print(
        f"{scheduler}: {ran} histories from seed {first} in {took:.1f} s, "
        f"{ran / used * 60:.0f} a minute of processor time"
    )
    for fault, times in found.most_common():
        word = "" if unknown([fault]) else " (known)"
        print(f"  {times:5} {fault}{word}: {command(scheduler, seeds[fault][0])}")
    return bool(unknown([*found]))


def _replay(given: argparse.Namespace) -> int:
    history = plan(given.seed)
    world = execute(history, given.scheduler)
    fault = given.fault or next(iter(unknown(world.faults) or world.faults), None)
    if given.shrink and fault is not None:
        history = shrink(history, given.scheduler, fault)
        world = execute(history, given.scheduler)
    print(code(history) if given.code else story(history, world))
    return int(bool(world.faults))


if __name__ == "__main__":
    sys.exit(main())
