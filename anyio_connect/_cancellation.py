"""Find out whether a cancellation is pending in the running task of an asyncio loop.

This is needed before each call that need not wait, and after each wait. AnyIO's public function,
``current_effective_deadline()``, compares the deadlines of all scopes, and takes longer than the
socket call. So this module reads private attributes of AnyIO's cancel scopes. No other module uses
private names of AnyIO. If AnyIO does not have these names, the public function is used.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    import asyncio

#: Whether a cancellation is pending. The argument is the loop that is probably running.
IsDue: TypeAlias = "Callable[[asyncio.AbstractEventLoop], bool]"

#: The attributes of a scope that are read: whether it was cancelled, whether it is shielded from
#: the scopes around it, and the next scope around it.
_OF_A_SCOPE = ("_cancel_called", "_shield", "_parent_scope")


@cache
def cancellation_due(backend: Any) -> IsDue:
    """Return the fastest function that works with AnyIO's backend for asyncio."""
    module = sys.modules.get(backend.__module__)
    return _by_scopes(module) or by_deadline(backend)


def by_deadline(backend: Any) -> IsDue:
    """Return a function that uses AnyIO's public interface."""

    def is_due(_: asyncio.AbstractEventLoop) -> bool:
        deadline: float = backend.current_effective_deadline()
        return deadline == -math.inf

    return is_due


def _by_scopes(module: Any) -> IsDue | None:
    """Return a function that reads AnyIO's scopes; None if AnyIO lacks the expected names."""
    import asyncio

    def running_task() -> asyncio.Task[Any] | None:
        """The task of the loop that is really running, if it is another one."""
        try:
            return current_task()
        except RuntimeError:  # no asyncio loop is running
            return None

    states: Any = getattr(module, "_task_states", None)
    # The dict inside of the WeakKeyDictionary, whose own get() is a slow Python function.
    by_ref: Any = getattr(states, "data", None)
    known = (
        isinstance(states, WeakKeyDictionary)
        and isinstance(by_ref, dict)
        and hasattr(getattr(module, "TaskState", None), "cancel_scope")
        and all(hasattr(getattr(module, "CancelScope", None), name) for name in _OF_A_SCOPE)
    )
    if not known:
        return None
    state_of = by_ref.get
    current_task = asyncio.current_task

    def is_due(loop: asyncio.AbstractEventLoop) -> bool:
        task = current_task(loop) or running_task()
        state = None if task is None else state_of(ref(task))
        if state is None:  # AnyIO does not know this task, so it is in no cancel scope
            return False
        scope = state.cancel_scope
        while scope is not None:
            if scope._cancel_called:  # noqa: SLF001  # see the docstring of this module
                return True
            if scope._shield:  # noqa: SLF001
                return False
            scope = scope._parent_scope  # noqa: SLF001
        return False

    return is_due
