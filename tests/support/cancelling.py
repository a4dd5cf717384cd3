"""Cancels a call at any one of its checkpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Literal, TypeAlias

import anyio
import pytest

Moment: TypeAlias = Literal["before", "after"]


class CancelAt(Awaitable[Any]):
    """Runs a coroutine and cancels a scope at its n-th suspension; if n is 0, before it begins.

    It cancels before the suspension, or after it, when the awaited event has happened but the
    coroutine has not run yet. After the cancellation was raised in the coroutine, the coroutine
    may end only with that exception.
    """

    def __init__(
        self, number: int, moment: Moment, scope: anyio.CancelScope, call: Coroutine[Any, Any, Any]
    ) -> None:
        self.number = number
        self.moment = moment
        self.scope = scope
        self.call = call
        self.count = 0
        self.raised = False  # whether the cancellation was raised in the coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[], Any] = partial(self.call.send, None)
        cancelled = anyio.get_cancelled_exc_class()
        if not self.number:
            self.scope.cancel()
        while True:
            try:
                wanted = resume()
            except StopIteration as stop:
                assert not self.raised, "the cancellation was swallowed"
                return stop.value
            except Exception:
                if self.raised:
                    pytest.fail("the cancellation became another exception")
                raise
            except cancelled:
                self.raised = True  # trio does not throw it into a wait for tasks
                raise
            self.count += 1
            if self.count == self.number and self.moment == "before":
                self.scope.cancel()
            try:
                value = yield wanted
            except BaseException as exc:  # noqa: BLE001  # it is passed to the call
                resume = partial(self.call.throw, exc)
                error: object = exc
            else:
                resume = partial(self.call.send, value)
                error = getattr(value, "error", None)  # trio passes it in this form
            # Other cancellations are those of inner scopes.
            self.raised |= self.scope.cancel_called and isinstance(error, cancelled)
            if self.count == self.number and self.moment == "after":
                self.scope.cancel()
