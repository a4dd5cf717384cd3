"""``max_connections``: a limited number of slots, given out in first-come order.

One ``Connector`` may serve several event loops, one after another or each in a thread of its own.
So nothing here belongs to an event loop, except while a task of that loop waits for a slot.
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

#: The method of a connection that checks, without waiting, whether the connection is over. None
#: stands for a connection that no longer exists.
Look: TypeAlias = Callable[[], Awaitable[None]]

#: How many connections are checked before other tasks get to run.
_AT_A_TIME = 100
#: After checking all connections, wait this many times as long as that took before checking them
#: again. So checks never take more than about a tenth of the time.
_SHARE = 10


class _Looks:
    """How often the connections of one event loop were checked, and when they may be again."""

    __slots__ = ("begun", "not_before")

    def __init__(self) -> None:
        self.begun = 0
        self.not_before = float("-inf")


class Slots:
    """How many connections may still be made, and which sockets wait for a slot.

    Another thread may fork the process in the middle of any method here. So each fact is stored in
    one place only, and the data is consistent after every single step.
    """

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.queue: OrderedDict[Slot, None] = OrderedDict()  # empty while a slot is free
        # Weak references, keyed by id: this must not keep a socket alive. A socket that is
        # collected without being closed gives its slot back.
        self.holders: dict[int, ref[Slot]] = {}
        self.returned: deque[Slot] = deque()  # released, and still in holders or in the queue
        # Protects queue and holders.
        self.lock: threading.Lock = threading.Lock()
        self.looks: WeakKeyDictionary[object, _Looks] = WeakKeyDictionary()  # by event loop
        _all.add(self)

    @property
    def free(self) -> int:
        return self.limit - len(self.holders)

    def sweep(self) -> None:
        """Take back the released slots, and give them to the waiting tasks.

        The garbage collector releases slots too. It may run at any moment, even inside this
        method. So this method never waits for the lock: every holder of the lock calls this
        method after it has released the lock.
        """
        while self.returned and self.lock.acquire(blocking=False):
            try:
                self.take_back()
            finally:
                self.lock.release()

    def take_back(self) -> None:
        """Do the work of :meth:`sweep`. The caller holds the lock."""
        while self.returned:
            slot = self.returned[0]
            self.queue.pop(slot, None)
            self.holders.pop(id(slot), None)
            self.returned.popleft()  # last: a child forked before this line repeats all three
        while self.free and self.queue:
            slot, _ = self.queue.popitem(last=False)
            with suppress(RuntimeError):  # its event loop is closed
                slot.wake()
                self.give(slot)

    def give(self, slot: Slot) -> None:
        """Record that ``slot`` holds one of the free slots. The caller holds the lock."""
        self.holders[id(slot)] = ref(slot)

    async def look(self, granted: anyio.Event) -> None:
        """Check which connections in this event loop are over, so that they release their slots.

        A connection is watched only while a task awaits its ``closed``. Without this check, the
        end of any other connection might never be noticed. One check serves all tasks that were
        in the queue when it began.
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
        self.sweep()  # slots may have been released while this task held the lock
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
        """Reset this in a forked child, where no task waits and no other thread has the lock."""
        self.lock = threading.Lock()
        self.queue.clear()
        # The other threads do not exist here, so the connections they were making will never be
        # finished.
        for key, weakly in [*self.holders.items()]:
            holder = weakly()
            if holder is not None and holder.is_dialled_elsewhere():
                del self.holders[key]


class Slot:
    """The place of one socket in the queue, and then its slot.

    The socket keeps it from the start of its dial until its ``closed`` settles.
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.wake: Callable[[], None]
        self.loop: Callable[[], object]  # the event loop it was acquired in; a weak reference
        self.look: Callable[[], Look | None] = lambda: None
        self._dialling = False
        self._thread = 0  # the thread that makes the connection
        self._settled = False

    def is_dialled_elsewhere(self) -> bool:
        """Whether another thread is making the connection at the moment."""
        return self._dialling and self._thread != threading.get_ident()

    def follow(self, look: Callable[[], Look | None]) -> None:
        """Remember how to check the connection. ``look``: a weak reference to its method."""
        self.look = look

    async def acquire(self) -> None:
        """Wait for a slot.

        The caller must call :meth:`release` if this is cancelled; its place in the queue is lost.
        """
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
        """Keep the slot for the connection that was made, unless the socket was closed since."""
        self._dialling = False
        if self._settled:
            self.release()

    def settled(self) -> None:
        """Release the slot, because ``closed`` has settled; while a dial runs, leave it for later.

        Such a dial is being given up. It calls :meth:`dialled` or :meth:`release` at its end.
        """
        self._settled = True
        if not self._dialling:
            self.release()

    def release(self) -> None:
        """Give up the slot or the place in the queue. Without either, this does nothing."""
        self._dialling = False
        self.slots.returned.append(self)
        self.slots.sweep()

    def __del__(self) -> None:
        if id(self) in self.slots.holders:  # the socket was collected without being closed
            self.release()


_all: WeakSet[Slots] = WeakSet()


def _after_fork() -> None:
    for slots in [*_all]:
        slots.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
