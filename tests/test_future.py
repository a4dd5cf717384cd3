"""SocketFuture by itself: the tests settle it, or drive it with a function of their own."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, get_origin

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_connect import ClosedError, PendingError, SocketError, SocketFuture
from anyio_connect._future import Outcome, T
from support.errors import is_copy
from support.turns import all_blocked, turns


class Driver:
    """Drives a future: settles it with ``result`` after ``go`` is set, and counts its runs."""

    def __init__(self) -> None:
        self.outcome: Outcome[str] = Outcome()
        self.future = self.outcome.future(self)
        self.go = anyio.Event()
        self.started = 0
        self.cancelled = 0
        self.task: int | None = None  # the task that drives the future, or did so last
        self.result: str | SocketError = "result"

    async def __call__(self) -> None:
        self.started += 1
        self.task = anyio.get_current_task().id
        try:
            await self.go.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        self.settle()

    def settle(self) -> None:
        if isinstance(self.result, SocketError):
            self.outcome.reject(self.result)
        else:
            self.outcome.resolve(self.result)


async def never() -> None:
    raise AssertionError("nothing is left to do")


def resolved(value: T) -> SocketFuture[T]:
    outcome: Outcome[T] = Outcome()
    outcome.resolve(value)
    return outcome.future(never)


def rejected(error: SocketError) -> SocketFuture[Any]:
    outcome: Outcome[Any] = Outcome()
    outcome.reject(error)
    return outcome.future(never)


async def keep(outcomes: list[object], what: Awaitable[object]) -> None:
    try:
        outcomes.append(await what)
    except SocketError as exc:
        outcomes.append(exc)


# --- not awaited


def test_pending() -> None:
    future = Driver().future
    assert not future.done()
    with pytest.raises(PendingError, match=r"not settled yet: await it, or check done\(\) first"):
        future.result()
    with pytest.raises(PendingError):
        future.exception()


@pytest.mark.parametrize("value", ["value", None, 0, ValueError("is a value, not a failure")])
def test_resolved(value: object) -> None:
    future = resolved(value)
    assert future.done()
    assert future.exception() is None
    assert future.result() is value


def test_rejected() -> None:
    error = ClosedError("why")
    future = rejected(error)
    assert future.done()
    assert is_copy(future.exception(), error)
    with pytest.raises(ClosedError) as raised:
        future.result()
    assert is_copy(raised.value, error)


def test_repr() -> None:
    assert repr(Driver().future) == "<SocketFuture pending>"
    assert repr(resolved("value")) == "<SocketFuture done: 'value'>"
    assert repr(rejected(ClosedError("why"))) == "<SocketFuture failed: ClosedError('why')>"


def test_a_future_is_generic_at_run_time() -> None:
    assert get_origin(SocketFuture[int]) is SocketFuture


def test_a_future_has_no_public_method_that_settles_it() -> None:
    public = {name for name in dir(SocketFuture) if not name.startswith("_")}
    assert public == {"done", "exception", "result"}


# --- awaited


async def test_nothing_runs_until_the_future_is_awaited() -> None:
    driver = Driver()
    await turns()
    assert driver.started == 0


async def test_awaiting_a_future_drives_it() -> None:
    driver = Driver()
    driver.go.set()
    assert await driver.future == "result"
    assert driver.started == 1
    assert driver.future.done()


async def test_a_future_may_be_awaited_again() -> None:
    driver = Driver()
    driver.go.set()
    assert [await driver.future, await driver.future] == ["result", "result"]
    assert driver.started == 1


async def test_a_failure_is_raised_each_time() -> None:
    driver = Driver()
    driver.go.set()
    driver.result = error = ClosedError("why")
    for _ in range(2):
        with pytest.raises(ClosedError) as raised:
            await driver.future
        assert is_copy(raised.value, error)
    assert driver.started == 1


async def test_one_task_drives_and_all_get_the_result() -> None:
    driver = Driver()
    outcomes: list[object] = []
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(keep, outcomes, driver.future)
        with anyio.fail_after(5):
            await all_blocked()  # so no task polls
        assert (driver.started, outcomes) == (1, [])
        driver.go.set()
    assert outcomes == ["result"] * 5
    assert driver.started == 1


async def test_all_waiting_tasks_get_equal_failures() -> None:
    """Each task gets an object of its own, with its own traceback and notes."""
    driver = Driver()
    driver.result = error = ClosedError("why")
    outcomes: list[object] = []
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(keep, outcomes, driver.future)
        await turns()
        driver.go.set()
    assert len({id(outcome) for outcome in outcomes}) == 3
    for outcome in outcomes:
        assert isinstance(outcome, ClosedError)
        assert is_copy(outcome, error)


async def test_waiting_tasks_go_on_as_soon_as_the_future_is_settled() -> None:
    # They do not wait for the driver: close() settles `closed` while a task still watches it.
    driver = Driver()
    outcomes: list[object] = []
    async with anyio.create_task_group() as group:
        group.start_soon(keep, [], driver.future)
        await turns()
        group.start_soon(keep, outcomes, driver.future)
        await turns()
        driver.settle()
        await turns()
        assert outcomes == ["result"]
        driver.go.set()


async def test_a_driver_that_returns_too_early_is_run_again() -> None:
    runs = 0

    async def drive() -> None:
        nonlocal runs
        runs += 1
        await checkpoint()
        if runs == 3:
            outcome.resolve("result")

    outcome: Outcome[str] = Outcome()
    future = outcome.future(drive)
    assert await future == "result"
    assert runs == 3


async def test_another_exception_of_the_driver_settles_nothing() -> None:
    # A KeyboardInterrupt or a bug is raised in the driving task, and the next task may try.
    runs = 0

    async def drive() -> None:
        nonlocal runs
        runs += 1
        await checkpoint()
        if runs == 1:
            raise ZeroDivisionError
        outcome.resolve("result")

    outcome: Outcome[str] = Outcome()
    future = outcome.future(drive)
    with pytest.raises(ZeroDivisionError):
        await future
    assert not future.done()
    assert await future == "result"


# --- cancelled


@pytest.mark.parametrize(
    "future", [resolved("value"), rejected(ClosedError("why"))], ids=["resolved", "rejected"]
)
async def test_awaiting_a_settled_future_is_a_checkpoint(future: SocketFuture[Any]) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await future
    assert scope.cancelled_caught

    others: list[bool] = []

    async def other() -> None:
        others.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        # Twice, because trio runs the tasks of one turn in any order.
        await keep([], future)
        await keep([], future)
        assert others == [True]


async def test_after_a_cancelled_driver_the_next_task_drives() -> None:
    driver = Driver()
    outcomes: list[object] = []
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(cancel_later, scope)
            await driver.future
        assert scope.cancelled_caught
        assert (driver.started, driver.cancelled) == (1, 1)
        assert not driver.future.done()
        with pytest.raises(PendingError):
            driver.future.exception()

        group.start_soon(keep, outcomes, driver.future)
        await turns()
        assert driver.started == 2
        driver.go.set()
    assert outcomes == ["result"]


async def cancel_later(scope: anyio.CancelScope) -> None:
    await turns()
    scope.cancel()


async def test_each_cancelled_driver_is_replaced_by_a_waiter() -> None:
    driver = Driver()
    outcomes: list[object] = []
    scopes: dict[int, anyio.CancelScope] = {}

    async def wait() -> None:
        with anyio.CancelScope() as scope:
            scopes[anyio.get_current_task().id] = scope
            await keep(outcomes, driver.future)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(wait)
        for count in range(1, 4):
            await turns()
            assert (driver.started, driver.cancelled) == (count, count - 1)
            assert driver.task is not None
            scopes[driver.task].cancel()
        await turns()
        driver.go.set()
    assert outcomes == ["result"]
    assert driver.started == 4


async def test_cancelling_a_waiter_changes_nothing() -> None:
    driver = Driver()
    outcomes: list[object] = []
    async with anyio.create_task_group() as group:
        group.start_soon(keep, outcomes, driver.future)
        await turns()
        with anyio.CancelScope() as scope:
            group.start_soon(cancel_later, scope)
            await driver.future
        assert scope.cancelled_caught
        assert (driver.started, driver.cancelled) == (1, 0)
        assert not driver.future.done()
        driver.go.set()
    assert outcomes == ["result"]


@pytest.mark.parametrize("result", ["result", ClosedError("closed")])
async def test_a_cancellation_that_is_due_comes_before_any_result(
    result: str | SocketError,
) -> None:
    driver = Driver()
    driver.result = result
    outcomes: list[object] = []
    scopes = [anyio.CancelScope(), anyio.CancelScope()]

    async def wait(scope: anyio.CancelScope) -> None:
        with scope:
            await keep(outcomes, driver.future)

    async with anyio.create_task_group() as group:
        for scope in scopes:
            group.start_soon(wait, scope)
            await turns()
        driver.settle()  # wakes the second task, in the turn in which it is cancelled
        for scope in scopes:
            scope.cancel()
    assert all(scope.cancelled_caught for scope in scopes)
    assert not outcomes
    assert driver.future.done()


async def test_a_waiter_with_a_time_limit() -> None:
    driver = Driver()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.01):
            await driver.future
    assert driver.cancelled == 1
    driver.go.set()
    assert await driver.future == "result"


async def test_the_traceback_of_a_failure_does_not_grow() -> None:
    future = rejected(ClosedError("why"))
    depths = set()
    for _ in range(3):
        with pytest.raises(ClosedError) as raised:
            await future
        depths.add(len(raised.traceback))
    assert len(depths) == 1
