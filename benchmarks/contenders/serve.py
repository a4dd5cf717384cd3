"""A contender's process: does the work that it is told on standard input, a line of JSON each."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.services import allow_many_sockets
from benchmarks.work import ROWS, Cost, Order, Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Run = Callable[[Callable[[], Coroutine[Any, Any, Cost]]], Cost]

#: Each is imported in its own processes only, whose memory is measured.
TOOLS = {
    ("blocking", False): "blocking:Blocking",
    ("streams", False): "streams:Streams",
    ("sock", False): "loop_sockets:LoopSockets",
    ("protocol", False): "protocol:BareProtocol",
    ("anyio", False): "anyio_streams:AnyIOOnAsyncio",
    ("anyio_connect", False): "ours:OursOnAsyncio",
    ("trio", True): "trio_streams:Trio",
    ("sock", True): "trio_sockets:TrioSockets",
    ("anyio", True): "anyio_streams:AnyIOOnTrio",
    ("anyio_connect", True): "ours:OursOnTrio",
}


def tool(name: str, loop: str, authority: str) -> Tool:
    module, _, kind = TOOLS[name, loop == "trio"].partition(":")
    made: Tool = getattr(import_module(f"benchmarks.contenders.{module}"), kind)(authority)
    return made


def runner(loop: str) -> Run:
    if loop == "trio":
        import trio

        return trio.run
    if loop == "uvloop":
        import uvloop

        factory: Any = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop

    def run(call: Callable[[], Coroutine[Any, Any, Cost]]) -> Cost:
        # Not asyncio.Runner, which Python 3.10 does not have.
        event_loop = factory()
        try:
            found: Cost = event_loop.run_until_complete(call())
            event_loop.run_until_complete(event_loop.shutdown_default_executor())
            return found
        finally:
            event_loop.close()

    return run


def keep_memory() -> None:
    """Have malloc reuse large pieces of memory, as it does in a process that runs for long.

    malloc asks the system for each piece that is larger than any piece freed before. Without this,
    a contender that receives 256 KiB at a time would pay for that.
    """
    bytearray(24 << 20)


def main(name: str, loop: str, authority: str, core: str) -> None:
    allow_many_sockets()
    keep_memory()
    made, run = tool(name, loop, authority), runner(loop)
    if core and sys.platform == "linux":  # only now: all that are started import on all cores
        os.sched_setaffinity(0, {int(core)})
    print("null", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        work = ROWS[asked.pop("row")].run
        gc.collect()
        print(json.dumps(run(partial(work, made, Order(**asked)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
