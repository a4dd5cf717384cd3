"""``max_connections``: a number of slots, given out in first-come order.

Nothing here belongs to an event loop for longer than a task waits in it, so that one
``Connector`` serves several loops, one after another or each in a thread of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import anyio
from anyio.lowlevel import current_token


class _Has(Enum):
    NOTHING = auto()
    PLACE = auto()  #: in the queue
    SLOT = auto()


class Slots:
    """How many connections may still be made, and who waits for one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.free = limit
        self.queue: deque[Slot] = deque()  # empty while a slot is free
        self.lock = threading.Lock()
        #: Slots of sockets that were dropped without closing them.
        self.dropped: deque[None] = deque()

    def grant(self) -> None:
        """Give what is free to those who wait. The lock is held."""
        while self.free and self.queue:
            slot = self.queue.popleft()
            slot.has = _Has.SLOT
            self.free -= 1
            try:
                slot.wake()
            except RuntimeError:  # its event loop is no more
                slot.has = _Has.NOTHING
                self.free += 1

    def sweep(self) -> None:
        """Take back what was dropped.

        The garbage collector may come at any moment, in the midst of the code above too. So it
        takes no lock that somebody has; whoever has it comes here afterwards.
        """
        while self.dropped and self.lock.acquire(blocking=False):
            try:
                while self.dropped:
                    self.dropped.pop()
                    self.free += 1
                self.grant()
            finally:
                self.lock.release()


class Slot:
    """One socket's place in the queue, then its slot, from its dial until ``closed`` settles."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.has = _Has.NOTHING
        self.wake: Callable[[], None]
        self._dialling = False
        self._settled = False

    async def acquire(self) -> None:
        """Wait for a slot. Cancelled, the place in the queue is lost."""
        self._dialling = True
        slots = self.slots
        with slots.lock:
            if slots.free:
                slots.free -= 1
                self.has = _Has.SLOT
        if self.has is _Has.NOTHING:
            granted = anyio.Event()
            self.wake = _from_any_thread(granted.set)
            with slots.lock:
                slots.queue.append(self)
                self.has = _Has.PLACE
                slots.grant()  # one may have come free in between
            await granted.wait()
        slots.sweep()

    def dialled(self) -> None:
        """The connection is made: keep the slot, unless the socket was closed meanwhile."""
        self._dialling = False
        if self._settled:
            self.release()

    def settled(self) -> None:
        """``closed`` has settled. A dial that is being given up releases the slot itself."""
        self._settled = True
        if not self._dialling or self.has is _Has.PLACE:
            self.release()

    def release(self) -> None:
        """Let go of the slot, or of the place in the queue."""
        self._dialling = False
        slots = self.slots
        with slots.lock:
            had, self.has = self.has, _Has.NOTHING
            if had is _Has.PLACE:
                slots.queue.remove(self)
            elif had is _Has.SLOT:
                slots.free += 1
                slots.grant()
        slots.sweep()

    def __del__(self) -> None:
        if self.has is _Has.SLOT:
            self.slots.dropped.append(None)
            self.slots.sweep()


def _from_any_thread(callback: Callable[[], None]) -> Callable[[], None]:
    """``callback``, to be run soon by the event loop that runs now."""
    loop: Any = current_token().native_token
    schedule = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    return lambda: schedule(callback)
