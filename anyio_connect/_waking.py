"""Wake waiting tasks, which never run again if their event loop was closed.

``asyncio.run()`` cancels all tasks and lets them end. So does trio. But a loop of asyncio can also
be closed by hand while tasks wait. To wake such a task, asyncio would call the closed loop, which
raises RuntimeError.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeAlias
from weakref import ref

import anyio

#: An event loop, which this does not keep alive.
Home: TypeAlias = "ref[Any]"


def is_closed(home: Home) -> bool:
    """Whether an event loop was closed, so that its tasks never run again."""
    loop = home()
    return loop is None or (hasattr(loop, "is_closed") and loop.is_closed())


def wake(event: anyio.Event) -> None:
    """Set an event for which tasks of one event loop may wait."""
    with suppress(RuntimeError):  # the loop is closed
        event.set()


def cancel(scope: anyio.CancelScope) -> None:
    """Cancel a scope in which a task may wait."""
    with suppress(RuntimeError):  # its event loop is closed
        scope.cancel()
