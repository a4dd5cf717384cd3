"""Checks for every test: it ends in time, and it leaves nothing behind.

conftest.py applies these to the tests. test_conftest.py shows that they find what they should.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from inspect import iscoroutinefunction
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import pytest
import trio

#: How long objects that are already ending may take to go, in seconds: a worker thread whose
#: lookup was given up, or a task that was just cancelled.
GRACE = 0.5

#: How much longer a Hypothesis test may run after an example has failed, in seconds. In this time
#: it looks for a simpler example. Four times the limit is less than ``faulthandler_timeout``,
#: which ends the run.
SHRINK_LIMIT = 20


# --- descriptors

FD_DIR = "/proc/self/fd"

#: Only Linux lists a process's descriptors where the process itself can read it.
CAN_LIST_FDS = sys.platform == "linux"

#: What each descriptor refers to: the device and the inode, which are unique to a socket or pipe.
Descriptors: TypeAlias = dict[int, tuple[int, int]]


def open_fds() -> Descriptors:
    """Each open descriptor. This runs twice for each test, so it has to be fast."""
    fds: Descriptors = {}
    for name in os.listdir(FD_DIR):  # noqa: PTH208 - pathlib is slower
        # The list includes the descriptor that was used to read it, which is closed now.
        with suppress(OSError):
            stat = os.fstat(int(name))
            fds[int(name)] = (stat.st_dev, stat.st_ino)
    return fds


def leaked_fds(before: Descriptors) -> str:
    """Say which descriptors were opened since ``before`` and never closed; empty if none.

    A descriptor that only the garbage collector closes was not closed either. A collection is
    slow, so it is done only to tell these two cases apart.
    """
    give_up = time.monotonic() + GRACE
    while (leaked := _new_fds(before)) and _workers() and time.monotonic() < give_up:
        time.sleep(0.01)
    if not leaked:
        return ""
    what = {fd: os.readlink(f"{FD_DIR}/{fd}") for fd in leaked}  # noqa: PTH115
    gc.collect()
    still = _new_fds(before)
    return "descriptors were left open:" + "".join(
        f"\n  {fd} -> {what[fd]}"
        + ("" if fd in still else ", until the garbage collector closed it")
        for fd in sorted(leaked)
    )


def _new_fds(before: Descriptors) -> Descriptors:
    return {fd: what for fd, what in open_fds().items() if before.get(fd) != what}


def _workers() -> bool:
    return threading.active_count() > 1


# --- tasks

if TYPE_CHECKING:
    Task: TypeAlias = asyncio.Task[Any] | trio.lowlevel.Task


def all_tasks() -> set[Task]:
    """Every unfinished task of the running event loop."""
    if not trio.lowlevel.in_trio_run():
        return {*asyncio.all_tasks()}
    root = trio.lowlevel.current_root_task()
    return set() if root is None else {*_family(root)}


def _family(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _family(child)


async def leaked_tasks(before: set[Task]) -> str:
    """Say which tasks were started since ``before`` and still run; empty if none.

    On asyncio, AnyIO's test runner starts its own task for each fixture and test. Such a task is
    not a leak: it runs the same code as a task that existed before.
    """
    harness = {_code(task) for task in before}
    give_up = time.monotonic() + GRACE
    while True:
        leaked = [task for task in all_tasks() - before if _code(task) not in harness]
        if not leaked:
            return ""
        if time.monotonic() > give_up:
            return "tasks were left running:\n" + describe_tasks(leaked)
        await anyio.sleep(0.001)


def describe_tasks(tasks: Iterable[Task]) -> str:
    """Name each task, and say where it waits."""
    return "\n".join(
        f"{_name(task)}:\n"
        + "".join(traceback.StackSummary.extract(_await_chain(_coro(task))).format())
        for task in tasks
    )


def _name(task: Task) -> str:
    return task.get_name() if isinstance(task, asyncio.Task) else task.name


def _coro(task: Task) -> Any:
    return task.get_coro() if isinstance(task, asyncio.Task) else task.coro


def _code(task: Task) -> object:
    return getattr(_coro(task), "cr_code", task)


def _await_chain(awaited: Any) -> Iterator[tuple[FrameType, int]]:
    """The frames of a suspended coroutine and all that it awaits, the outermost first."""
    while awaited is not None:
        for kind, then in (("cr", "cr_await"), ("ag", "ag_await"), ("gi", "gi_yieldfrom")):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                yield frame, frame.f_lineno
                awaited = getattr(awaited, then)
                break
        else:
            return


# --- time


def with_time_limit(
    seconds: float, test: Callable[..., Awaitable[None]]
) -> Callable[..., Awaitable[None]]:
    """Make an asynchronous test fail after ``seconds``, and say where each task waits.

    The limit cancels the test, so its own clean-up runs, and the next test is not affected. If a
    test shields itself, or blocks the thread, pytest's ``faulthandler_timeout`` ends it.
    """

    @wraps(test)
    async def limited(*args: Any, **kwargs: Any) -> None:
        late = ""

        def expire() -> None:
            nonlocal late
            late = f"the test took more than {seconds:g} seconds; the tasks were\n"
            late += describe_tasks(all_tasks())
            scope.cancel()

        with anyio.CancelScope() as scope, _call_later(seconds, expire):
            await test(*args, **kwargs)
        if late:
            pytest.fail(late, pytrace=False)

    return limited


def with_shrink_limit(test: Callable[..., Any], example_limit: float) -> Callable[..., Any]:
    """Bound what Hypothesis does once an example of ``test`` has failed: see SHRINK_LIMIT.

    Hypothesis then tries simpler examples, maybe hundreds, and each may take the full time of an
    example. After SHRINK_LIMIT, only examples that have failed before run, so that Hypothesis can
    show the simplest of them at the end; all others pass at once. No example may take longer than
    SHRINK_LIMIT either. So the total is about four times SHRINK_LIMIT: the limit itself, an
    example that began within it, and the example that is shown, which runs twice.

    ``example_limit`` is how long an example of an asynchronous test may take before that, in
    seconds.
    """
    failed: set[str] = set()
    since = 0.0

    def is_due(arguments: object) -> bool:
        return not failed or time.monotonic() - since < SHRINK_LIMIT or repr(arguments) in failed

    def keep(arguments: object) -> None:
        nonlocal since
        since = since if failed else time.monotonic()
        failed.add(repr(arguments))

    if not iscoroutinefunction(test):

        @wraps(test)
        def bounded(*args: Any, **kwargs: Any) -> None:
            if is_due((args, kwargs)):
                try:
                    test(*args, **kwargs)
                except BaseException:
                    keep((args, kwargs))
                    raise

        return bounded

    @wraps(test)
    async def bounded_async(*args: Any, **kwargs: Any) -> None:
        if is_due((args, kwargs)):
            limit = min(example_limit, SHRINK_LIMIT) if failed else example_limit
            try:
                await with_time_limit(limit, test)(*args, **kwargs)
            except BaseException:
                keep((args, kwargs))
                raise

    return bounded_async


@contextmanager
def _call_later(seconds: float, callback: Callable[[], None]) -> Iterator[None]:
    if trio.lowlevel.in_trio_run():
        timer = trio.CancelScope()

        async def run_timer() -> None:
            with timer:
                await trio.sleep(seconds)
                callback()

        trio.lowlevel.spawn_system_task(run_timer)
        cancel: Callable[[], None] = timer.cancel
    else:
        cancel = asyncio.get_running_loop().call_later(seconds, callback).cancel
    try:
        yield
    finally:
        cancel()
