"""Waits for what event loops do not offer: a hang-up without reading, or all acknowledged.

All sockets of an event loop are watched through one epoll (kqueue on BSD and macOS), which is
itself waited for through the event loop. There is no task for that: one of the tasks that wait
for an event leads. It waits for the epoll, and tells the others what has come for them; when it
leaves, another takes over. The first :class:`Watch` opens the epoll, the last one closes it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from operator import or_
from types import TracebackType
from typing import Protocol
from weakref import WeakSet

import anyio
from anyio.lowlevel import RunVar, checkpoint_if_cancelled

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

#: Events, by epoll's numbers. Those of the second line come whether they are asked for or not.
IN, OUT, RDHUP = 0x1, 0x4, 0x2000
ERR, HUP = 0x8, 0x10
_ALWAYS = ERR | HUP

#: How long to wait before something is tried again for which there was no descriptor or no
#: memory, in seconds.
_PAUSE = 0.1


class _Poller(Protocol):
    """What asks the kernel. Each event is reported once, when it comes (edge-triggered).

    An event that is there already is reported after each :meth:`set`.
    """

    def fileno(self) -> int: ...

    def close(self) -> None: ...

    def set(self, fd: int, before: int | None, events: int) -> None:
        """Ask for ``events`` of a descriptor. ``before``: what was asked for until now."""

    def remove(self, fd: int) -> None: ...

    def poll(self) -> list[tuple[int, int]]:
        """Descriptors and events that have come, without waiting."""
        ...


#: Whether all events can be watched, or ends and errors only.
CAN_WATCH_ALL = sys.platform == "linux"

if sys.platform == "linux":
    CAN_WATCH = True

    class _Epoll:
        def __init__(self) -> None:
            self._epoll = select.epoll()
            self.fileno = self._epoll.fileno
            self.close = self._epoll.close
            self.remove = self._epoll.unregister

        def set(self, fd: int, before: int | None, events: int) -> None:
            change = self._epoll.register if before is None else self._epoll.modify
            change(fd, events | select.EPOLLET)

        def poll(self) -> list[tuple[int, int]]:
            return self._epoll.poll(0)

    _make_poller: type[_Poller] = _Epoll

elif sys.platform == "darwin" or sys.platform.startswith("freebsd"):
    CAN_WATCH = True

    class _Kqueue:
        """Tells of the peer's end (RDHUP) and of errors (ERR) only."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()
            self.fileno = self._kqueue.fileno
            self.close = self._kqueue.close

        def set(self, fd: int, before: int | None, events: int) -> None:
            self._change(fd, select.KQ_FILTER_WRITE, select.KQ_EV_ADD | select.KQ_EV_CLEAR)
            if events & RDHUP:
                self._change(fd, select.KQ_FILTER_READ, select.KQ_EV_ADD | select.KQ_EV_CLEAR)
            elif before is not None and before & RDHUP:
                self._change(fd, select.KQ_FILTER_READ, select.KQ_EV_DELETE)

        def _change(self, fd: int, kind: int, flags: int) -> None:
            # NOTE_LOWAT keeps data, and room, from waking us: only EV_EOF passes a mark that
            # cannot be reached.
            change = select.kevent(fd, kind, flags, select.KQ_NOTE_LOWAT, 2**31 - 1)
            self._kqueue.control([change], 0)

        def remove(self, fd: int) -> None:
            for kind in (select.KQ_FILTER_WRITE, select.KQ_FILTER_READ):
                with suppress(OSError):  # not asked for
                    self._change(fd, kind, select.KQ_EV_DELETE)

        def poll(self) -> list[tuple[int, int]]:
            found = []
            for event in self._kqueue.control(None, 256, 0):
                # Without an error, the end of the sending side is our own, and no news.
                if event.flags & select.KQ_EV_EOF and event.fflags:
                    found.append((event.ident, ERR))
                elif event.flags & select.KQ_EV_EOF and event.filter == select.KQ_FILTER_READ:
                    found.append((event.ident, RDHUP))
            return found

    _make_poller = _Kqueue

else:
    CAN_WATCH = False  # nothing to watch with

    def _make_poller() -> _Poller:
        raise AssertionError("unreachable")


class Watch:
    """Watches one socket, as a context manager, for as long as a task wants to know of it.

    ``events`` are those to wait for. Errors (ERR) and the end of both directions (HUP) come in any
    case. Any number of tasks may watch a socket, each with a :class:`Watch` of its own.
    """

    __slots__ = ("_came", "_closed", "_events", "_fd", "_wake", "_watcher")

    def __init__(self, sock: socket.socket, events: int) -> None:
        self._fd = sock.fileno()
        self._events = events | _ALWAYS
        self._came = 0
        self._closed = self._fd < 0
        self._wake: anyio.Event | None = None
        self._watcher = _running_watcher()

    @property
    def events(self) -> int:
        return self._events

    def __enter__(self) -> Self:
        if not self._closed:
            self._watcher.add(self._fd, self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self._watcher.remove(self._fd, self)

    async def wait(self) -> int:
        """Wait until one of the events comes; return those that are there.

        An event that is there when the watch begins counts as one that comes. It is then told
        once, and again only when something new comes. There may be false alarms: an event that is
        told although nothing has changed.

        A cancellation that is due is raised first. Cancelling it loses no event.

        :raises anyio.ClosedResourceError: the socket was closed here (:func:`unwatch`)
        """
        await checkpoint_if_cancelled()  # uvloop looks at sockets before that
        watcher = self._watcher
        try:
            while not self._over():
                if watcher.led:
                    self._wake = anyio.Event()
                    await watcher.follow(self, self._wake)
                else:
                    await watcher.lead(self._over)
        finally:
            self._wake = None
            watcher.hand_over()
        if self._closed:
            raise anyio.ClosedResourceError
        came, self._came = self._came, 0
        return came

    def _over(self) -> bool:
        return bool(self._came) or self._closed

    def tell(self, events: int) -> None:
        """Some events have come, for this or another watch of the socket."""
        self._came |= events & self._events
        if self._came:
            self.wake()

    def close(self) -> None:
        """The socket is about to be closed."""
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """Have :meth:`wait` look again."""
        if self._wake is not None:
            self._wake.set()


def events_of(sock: socket.socket, events: int) -> int:
    """Which of ``events`` are there already; errors (ERR) and HUP in any case. None if unknown."""
    if not CAN_WATCH or sock.fileno() < 0:
        return 0
    try:
        poller = _make_poller()
    except OSError:  # no descriptor, or no memory
        return 0
    try:
        poller.set(sock.fileno(), None, events)
        return reduce(or_, (found for _, found in poller.poll()), 0)
    except OSError:
        return 0
    finally:
        poller.close()


def unwatch(sock: socket.socket) -> None:
    """Stop watching a socket that is about to be closed. Tasks that wait for it are woken.

    Otherwise, if a forked process still had the socket, it would go on to be watched, under a
    number that another socket has by then.
    """
    watcher = _watcher.get(None) if _ever_watched else None
    if watcher is not None:
        watcher.close(sock.fileno())


class _Watcher:
    """The epoll or kqueue of an event loop, and the watches that wait for it."""

    def __init__(self) -> None:
        self.led = False
        self._poller: _Poller | None = None
        self._watches: dict[int, list[Watch]] = {}
        self._asked: dict[int, int] = {}  # what the poller was asked for, for each descriptor
        self._unasked: set[int] = set()  # what it could not be asked, and still has to be
        self._followers: dict[Watch, None] = {}  # in the order in which they came
        self._leading: anyio.CancelScope | None = None

    # --- watches

    def add(self, fd: int, watch: Watch) -> None:
        self._watches.setdefault(fd, []).append(watch)
        self._ask(fd)

    def remove(self, fd: int, watch: Watch) -> None:
        watches = self._watches.get(fd, [])
        if watch not in watches:
            return  # the socket was closed, or this is a forked process
        watches.remove(watch)
        if not watches:
            self._forget(fd)
        # Nothing is asked anew for fewer events: that would report those that are there again.

    def close(self, fd: int) -> None:
        watches = self._watches.get(fd)
        if watches:
            for watch in watches:
                watch.close()
            if self._leading is not None:
                self._leading.cancel()  # it may be one of these that leads
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        del self._watches[fd]
        self._unasked.discard(fd)
        if self._asked.pop(fd, None) is not None and self._poller is not None:
            with suppress(OSError):  # other code has closed it
                self._poller.remove(fd)
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        # Not while a task waits for it: event loops unregister the number when that leaves.
        if not self._watches and not self.led and self._poller is not None:
            anyio.notify_closing(self._poller.fileno())
            self._poller.close()
            self._poller = None

    def _ask(self, fd: int) -> None:
        events = 0
        for watch in self._watches[fd]:
            events |= watch.events
        try:
            if self._poller is None:
                self._poller = _make_poller()
            self._poller.set(fd, self._asked.get(fd), events)
        except OSError as exc:
            if exc.errno == errno.EBADF:
                return  # other code has closed the socket without telling us
            # No descriptor, or no memory: the leader will try again.
            self._unasked.add(fd)
            if self._leading is not None:
                self._leading.cancel()
        else:
            self._asked[fd] = events
            self._unasked.discard(fd)

    def abandon(self) -> None:
        """Let go of an epoll that belongs to the process that this one was forked from."""
        self._watches.clear()
        self._asked.clear()
        self._unasked.clear()
        poller, self._poller = self._poller, None
        if poller is not None:
            with suppress(OSError):  # a kqueue is not inherited
                poller.close()  # which takes nothing out of it

    # --- waiting

    async def follow(self, watch: Watch, wake: anyio.Event) -> None:
        """Wait until the leader has something for ``watch``, or leaves."""
        self._followers[watch] = None
        try:
            await wake.wait()
        finally:
            del self._followers[watch]

    async def lead(self, until: Callable[[], bool]) -> None:
        """Wait for the poller and tell each watch what has come, until ``until`` is true."""
        self.led = True
        try:
            while not until():
                with anyio.CancelScope() as self._leading:
                    await self._wait()
                self._leading = None
                for fd in self._unasked.copy():
                    self._ask(fd)
                self._collect()
        finally:
            self._leading = None
            self.led = False
            self._close_if_idle()

    def hand_over(self) -> None:
        """Have another waiting task lead, if there is one."""
        if not self.led and self._followers:
            next(iter(self._followers)).wake()

    async def _wait(self) -> None:
        if self._poller is None:
            await anyio.sleep(_PAUSE)
        elif self._unasked:
            with anyio.move_on_after(_PAUSE):
                await self._readable()
        else:
            await self._readable()

    async def _readable(self) -> None:
        assert self._poller is not None
        try:
            await anyio.wait_readable(self._poller.fileno())
        except OSError:  # there is no memory to wait with
            await anyio.sleep(_PAUSE)

    def _collect(self) -> None:
        for fd, events in [] if self._poller is None else self._poller.poll():
            for watch in self._watches.get(fd, ()):
                watch.tell(events)


_watcher: RunVar[_Watcher] = RunVar("anyio_connect._watch._watcher")
_watchers: WeakSet[_Watcher] = WeakSet()


#: Whether anything was ever watched. If not, no loop need be asked for its watcher.
_ever_watched = False


def _running_watcher() -> _Watcher:
    global _ever_watched  # noqa: PLW0603
    watcher = _watcher.get(None)
    if watcher is None:
        _ever_watched = True
        watcher = _Watcher()
        _watcher.set(watcher)
        _watchers.add(watcher)
    return watcher


def _in_child() -> None:
    for watcher in list(_watchers):
        watcher.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
