"""Letting other tasks run."""

from __future__ import annotations

import asyncio
from typing import Any

import trio
import trio.testing
from anyio.lowlevel import checkpoint


async def turns(count: int = 10) -> None:
    """Let other tasks run, usually until they wait."""
    for _ in range(count):
        await checkpoint()


async def all_blocked() -> None:
    """Wait until every other task waits, like ``anyio.wait_all_tasks_blocked()``.

    On asyncio, that function sleeps for a tenth of a second if a task has not run yet, which is
    usually so when a test calls it. The kernel may still be delivering data afterwards.
    """
    if trio.lowlevel.in_trio_run():
        await trio.testing.wait_all_tasks_blocked()
        return
    quiet = 0
    while quiet < 2:  # in between, the loop polls for ready descriptors and runs callbacks
        await checkpoint()
        this = asyncio.current_task()
        blocked = all(_is_blocked(task) for task in asyncio.all_tasks() if task is not this)
        quiet = quiet + 1 if blocked else 0


def _is_blocked(task: Any) -> bool:
    waits_for = task._fut_waiter
    return waits_for is not None and not waits_for.done()
