"""``max_connections``: a number of slots, given out in first-come order.

Nothing here belongs to an event loop for longer than a task waits in it, so that one
``Connector`` serves several loops, one after another or each in a thread of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

import anyio

from ._threads import from_any_thread


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
        self.returned: deque[Slot] = deque()  # what was let go of, and not yet taken back
        self.lock = threading.Lock()  # for free, queue, and what each Slot has

    def sweep(self) -> None:
        """Take back what was returned, and give it to those who wait.

        The garbage collector returns slots too, and may come at any moment, in the midst of
        this as well. So this waits for no lock: whoever has it comes here when done.
        """
        while self.returned and self.lock.acquire(blocking=False):
            try:
                self.take_back()
            finally:
                self.lock.release()

    def take_back(self) -> None:
        """Do that. The lock is held."""
        while self.returned:
            slot = self.returned.popleft()
            had, slot.has = slot.has, _Has.NOTHING
            if had is _Has.PLACE:
                self.queue.remove(slot)
            elif had is _Has.SLOT:
                self.free += 1
        while self.free and self.queue:
            slot = self.queue.popleft()
            try:
                slot.wake()
            except RuntimeError:  # its event loop is no more
                slot.has = _Has.NOTHING
            else:
                slot.has = _Has.SLOT
                self.free -= 1


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
        granted: anyio.Event | None = None
        with slots.lock:
            slots.take_back()
            if slots.free:
                slots.free -= 1
                self.has = _Has.SLOT
            else:
                granted = anyio.Event()
                self.wake = from_any_thread(granted.set)
                slots.queue.append(self)
                self.has = _Has.PLACE
        slots.sweep()
        if granted is not None:
            await granted.wait()

    def dialled(self) -> None:
        """The connection is made: keep the slot, unless the socket was closed meanwhile."""
        self._dialling = False
        if self._settled:
            self.release()

    def settled(self) -> None:
        """``closed`` has settled. A dial that is being given up lets go when that is done."""
        self._settled = True
        if not self._dialling:
            self.release()

    def release(self) -> None:
        """Let go of the slot, or of the place in the queue; of neither, where there is none."""
        self._dialling = False
        self.slots.returned.append(self)
        self.slots.sweep()

    def __del__(self) -> None:
        if self.has is _Has.SLOT:  # the socket was dropped without closing it
            self.release()
