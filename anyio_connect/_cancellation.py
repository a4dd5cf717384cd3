"""Whether a cancellation is due in the running task of an asyncio loop.

That is asked before each call that need not wait, and after each wait. AnyIO's public answer,
``current_effective_deadline()``, compares the deadlines of all scopes on its way, and takes longer
than the socket call. So its scopes are read here, and nowhere else: no other module uses a private
name of AnyIO. Where the names are others, the public answer serves.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import asyncio

#: Asked with the loop that most likely runs.
IsDue: TypeAlias = "Callable[[asyncio.AbstractEventLoop], bool]"

#: What is read of a scope: whether it was cancelled, whether it shields from those around it, and
#: the scope around it.
_OF_A_SCOPE = ("_cancel_called", "_shield", "_parent_scope")


@cache
def cancellation_due(backend: Any) -> IsDue:
    """The quickest way to ask, of AnyIO's backend for asyncio."""
    module = sys.modules.get(backend.__module__)
    return _by_scopes(module) or by_deadline(backend)


def by_deadline(backend: Any) -> IsDue:
    """The public way."""

    def is_due(_: asyncio.AbstractEventLoop) -> bool:
        deadline: float = backend.current_effective_deadline()
        return deadline == -math.inf

    return is_due


def _by_scopes(module: Any) -> IsDue | None:
    """The quick way; None if AnyIO keeps its scopes in another way than it is known to."""
    import asyncio

    def running_task() -> asyncio.Task[Any] | None:
        """That of another loop, which a socket is used in after all."""
        try:
            return current_task()
        except RuntimeError:  # which is not asyncio's
            return None

    states: Any = getattr(module, "_task_states", None)
    known = (
        isinstance(states, WeakKeyDictionary)
        and hasattr(getattr(module, "TaskState", None), "cancel_scope")
        and all(hasattr(getattr(module, "CancelScope", None), name) for name in _OF_A_SCOPE)
    )
    if not known:
        return None
    state_of = states.get
    current_task = asyncio.current_task

    def is_due(loop: asyncio.AbstractEventLoop) -> bool:
        task = current_task(loop) or running_task()
        state = None if task is None else state_of(task)
        if state is None:  # AnyIO has had nothing to do with this task
            return False
        scope = state.cancel_scope
        while scope is not None:
            if scope._cancel_called:  # noqa: SLF001  # see the head of this module
                return True
            if scope._shield:  # noqa: SLF001
                return False
            scope = scope._parent_scope  # noqa: SLF001
        return False

    return is_due
