"""A contender's process: does the work that it is told on standard input, a line of JSON each."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.work import WORKS, Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Run = Callable[[Callable[[], Coroutine[Any, Any, float]]], float]


def tool(name: str, authority: str) -> Tool:
    # Each is imported in its own processes only, whose memory is measured.
    if name == "blocking":
        from benchmarks.contenders.blocking import Blocking

        return Blocking(authority)
    if name == "streams":
        from benchmarks.contenders.streams import Streams

        return Streams(authority)
    if name == "anyio":
        from benchmarks.contenders.anyio_streams import AnyIO

        return AnyIO(authority)
    if name == "trio":
        from benchmarks.contenders.trio_streams import Trio

        return Trio(authority)
    from benchmarks.contenders.ours import Ours

    return Ours(authority)


def runner(loop: str) -> Run:
    if loop == "trio":
        import trio

        return trio.run
    if loop == "uvloop":
        import uvloop

        factory: Any = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop

    def run(call: Callable[[], Coroutine[Any, Any, float]]) -> float:
        # Not asyncio.Runner, which Python 3.10 does not have.
        event_loop = factory()
        try:
            found: float = event_loop.run_until_complete(call())
            event_loop.run_until_complete(event_loop.shutdown_default_executor())
            return found
        finally:
            event_loop.close()

    return run


def main(name: str, loop: str, authority: str) -> None:
    made, run = tool(name, authority), runner(loop)
    for line in sys.stdin:
        order = json.loads(line)
        work = WORKS[order["work"]].run
        gc.collect()
        result = run(partial(work, made, order["ports"], order["tls"], order["amount"]))
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
