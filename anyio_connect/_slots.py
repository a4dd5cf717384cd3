"""``max_connections``: a number of slots, given out in first-come order.

Nothing here belongs to an event loop for longer than a task waits in it, so that one
``Connector`` serves several loops, one after another or each in a thread of its own.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias
from weakref import WeakKeyDictionary, WeakSet, ref

import anyio
from anyio.lowlevel import checkpoint, current_token

from ._threads import from_any_thread

#: What a holder of a slot is asked to do: notice whether its connection is over. It waits for
#: nothing. None: the holder is no more.
Look: TypeAlias = Callable[[], Awaitable[None]]

#: How many holders are looked at before others get to run.
_AT_A_TIME = 100
#: Looking at all holders, again and again, takes no more than one part in so many of the time.
_SHARE = 10


class _Looks:
    """How often the holders in one event loop were looked at, and when they may be again."""

    __slots__ = ("begun", "not_before")

    def __init__(self) -> None:
        self.begun = 0
        self.not_before = float("-inf")


class Slots:
    """How many connections may still be made, and which sockets wait for their turn.

    Another thread may fork in the midst of anything in here. So each fact stands in one place, and
    each step by itself leaves the child something that is right.
    """

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.queue: OrderedDict[Slot, None] = OrderedDict()  # empty while a slot is free
        # Weakly, and by their id: a slot must not keep its socket alive. A socket that was dropped
        # gives its slot back.
        self.holders: dict[int, ref[Slot]] = {}
        self.returned: deque[Slot] = deque()  # what was let go of, and not yet taken back
        # For queue and holders.
        self.lock: threading.Lock = threading.Lock()
        self.looks: WeakKeyDictionary[object, _Looks] = WeakKeyDictionary()  # by event loop
        _all.add(self)

    @property
    def free(self) -> int:
        return self.limit - len(self.holders)

    def sweep(self) -> None:
        """Take back what was returned, and give it to those who wait.

        The garbage collector returns slots too, and may run at any moment, also in the midst of
        this. So this does not wait for the lock: its holder calls this after releasing it.
        """
        while self.returned and self.lock.acquire(blocking=False):
            try:
                self.take_back()
            finally:
                self.lock.release()

    def take_back(self) -> None:
        """Do that. The lock is held."""
        while self.returned:
            slot = self.returned[0]
            self.queue.pop(slot, None)
            self.holders.pop(id(slot), None)
            self.returned.popleft()  # last: a child that is forked before does it again
        while self.free and self.queue:
            slot, _ = self.queue.popitem(last=False)
            with suppress(RuntimeError):  # its event loop is no more
                slot.wake()
                self.give(slot)

    def give(self, slot: Slot) -> None:
        """Give a slot that is free. The lock is held."""
        self.holders[id(slot)] = ref(slot)

    async def look(self, granted: anyio.Event) -> None:
        """Have the holders in this event loop notice that their connections are over, if so.

        Nothing else might: a connection is watched only while a task awaits its ``closed``. One
        look serves all that were in the queue when it began.
        """
        loop = current_token().native_token
        looks = self.looks.setdefault(loop, _Looks())
        before = looks.begun
        with anyio.move_on_after(max(0, looks.not_before - anyio.current_time())):
            await granted.wait()
        if granted.is_set() or looks.begun != before:
            return
        looks.begun += 1
        began = anyio.current_time()
        with self.lock:
            holders = [*self.holders.values()]
        self.sweep()  # of what was returned while the lock was taken
        for number, weakly in enumerate(holders, 1):
            slot = weakly()
            if slot is not None and slot.loop() is loop:
                look = slot.look()
                if look is not None:
                    await look()
            if not number % _AT_A_TIME:
                await checkpoint()
        now = anyio.current_time()
        looks.not_before = now + (now - began) * _SHARE

    def begin_anew(self) -> None:
        """Begin anew in a forked child: no task waits, and no other thread has the lock."""
        self.lock = threading.Lock()
        self.queue.clear()
        # What other threads were dialling, nobody goes on with here.
        for key, weakly in [*self.holders.items()]:
            holder = weakly()
            if holder is not None and holder.is_dialled_elsewhere():
                del self.holders[key]


class Slot:
    """One socket's place in the queue, then its slot, from its dial until ``closed`` settles."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.wake: Callable[[], None]
        self.loop: Callable[[], object]  # in which it was acquired, if that still exists
        self.look: Callable[[], Look | None] = lambda: None
        self._dialling = False
        self._thread = 0  # that dials
        self._settled = False

    def is_dialled_elsewhere(self) -> bool:
        """Whether it is another thread that makes the connection just now."""
        return self._dialling and self._thread != threading.get_ident()

    def follow(self, look: Callable[[], Look | None]) -> None:
        """Be held by that connection from now on. ``look``: a weak reference to its method."""
        self.look = look

    async def acquire(self) -> None:
        """Wait for a slot. Cancelled, the place in the queue is lost."""
        self._dialling = True
        self._thread = threading.get_ident()
        slots = self.slots
        granted: anyio.Event | None = None
        self.loop = ref(current_token().native_token)
        with slots.lock:
            slots.take_back()
            if slots.free:
                slots.give(self)
            else:
                granted = anyio.Event()
                self.wake = from_any_thread(granted.set)
                slots.queue[self] = None
        slots.sweep()
        if granted is not None:
            await slots.look(granted)
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
        """Let go of the slot, or of the place in the queue. Without either, do nothing."""
        self._dialling = False
        self.slots.returned.append(self)
        self.slots.sweep()

    def __del__(self) -> None:
        if id(self) in self.slots.holders:  # the socket was dropped without closing it
            self.release()


_all: WeakSet[Slots] = WeakSet()


def _after_fork() -> None:
    for slots in [*_all]:
        slots.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
