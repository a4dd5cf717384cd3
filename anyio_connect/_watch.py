"""Wait for socket events that event loops do not report.

Those are a hang-up of the peer while unread data is left, and the acknowledgement of all that was
sent. All sockets of an event loop are watched by one epoll (a kqueue on BSD and macOS), and
the event loop waits for the epoll's own descriptor. This needs no background task: one of the
waiting tasks is the leader. It waits for the epoll, and passes events on to the other tasks, the
followers. When it leaves, a follower becomes the leader. The first :class:`Watch` opens the epoll,
and the last one closes it.
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

#: Events, with epoll's numbers. The kernel always reports those of the second line.
IN, OUT, RDHUP = 0x1, 0x4, 0x2000
ERR, HUP = 0x8, 0x10
_ALWAYS = ERR | HUP

#: After a failure for lack of descriptors or memory: how long to wait before the next attempt, in
#: seconds.
_PAUSE = 0.1


class _Poller(Protocol):
    """The interface to epoll or kqueue, edge-triggered: an event is reported once, as it occurs.

    Each call of :meth:`set` reports the events that have occurred before once more.
    """

    def fileno(self) -> int: ...

    def close(self) -> None: ...

    def set(self, fd: int, before: int | None, events: int) -> None:
        """Ask for ``events`` of a descriptor. ``before``: those it was asked for so far."""

    def remove(self, fd: int) -> None: ...

    def poll(self) -> list[tuple[int, int]]:
        """Return descriptors and their new events, without waiting."""
        ...


#: Whether all events can be watched. If not, only the peer's end and errors can.
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
        """Reports only the peer's end (RDHUP) and errors (ERR)."""

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
            # Received data and free space in the send buffer must not cause a wake-up, so the
            # low-water mark is out of their reach. EV_EOF is reported nevertheless.
            change = select.kevent(fd, kind, flags, select.KQ_NOTE_LOWAT, 2**31 - 1)
            self._kqueue.control([change], 0)

        def remove(self, fd: int) -> None:
            for kind in (select.KQ_FILTER_WRITE, select.KQ_FILTER_READ):
                with suppress(OSError):  # this filter was not added
                    self._change(fd, kind, select.KQ_EV_DELETE)

        def poll(self) -> list[tuple[int, int]]:
            found = []
            for event in self._kqueue.control(None, 256, 0):
                # Without an error, an EV_EOF of the write filter only reports our own half-close.
                if event.flags & select.KQ_EV_EOF and event.fflags:
                    found.append((event.ident, ERR))
                elif event.flags & select.KQ_EV_EOF and event.filter == select.KQ_FILTER_READ:
                    found.append((event.ident, RDHUP))
            return found

    _make_poller = _Kqueue

else:
    CAN_WATCH = False  # this system has neither epoll nor kqueue

    def _make_poller() -> _Poller:
        raise AssertionError("unreachable")


class Watch:
    """Watches one socket inside a ``with`` block, for one task.

    ``events`` are those to wait for. Errors (ERR) and the end of both directions (HUP) are always
    reported as well. Several tasks may watch a socket, each with its own :class:`Watch`.
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
        """Wait until at least one of the events has occurred, and return all that have.

        An event that occurred before the watch began is reported too. Each event is reported once,
        and again only if the kernel reports it again. There may be false alarms: an event is
        reported although nothing has changed.

        A pending cancellation is raised first. A cancelled call loses no event.

        :raises anyio.ClosedResourceError: this process closed the socket (:func:`unwatch`)
        """
        await checkpoint_if_cancelled()  # uvloop handles sockets before cancellations
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
        """Report that events have occurred, for this or another watch of the socket."""
        self._came |= events & self._events
        if self._came:
            self.wake()

    def close(self) -> None:
        """Report that the socket is about to be closed."""
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """Make :meth:`wait` check its condition again."""
        if self._wake is not None:
            self._wake.set()


def events_of(sock: socket.socket, events: int) -> int:
    """Return which of ``events`` have occurred already, and ERR and HUP if they have.

    0 if none has occurred, or if that cannot be known.
    """
    if not CAN_WATCH or sock.fileno() < 0:
        return 0
    try:
        poller = _make_poller()
    except OSError:  # out of descriptors or memory
        return 0
    try:
        poller.set(sock.fileno(), None, events)
        return reduce(or_, (found for _, found in poller.poll()), 0)
    except OSError:
        return 0
    finally:
        poller.close()


def unwatch(sock: socket.socket) -> None:
    """Stop watching a socket that is about to be closed, and wake the tasks that wait for it.

    This is necessary because a forked process may hold a copy of the socket. Then the epoll would
    go on to watch it, and report its events under a descriptor that a new socket may have by then.
    """
    watcher = _watcher.get(None) if _ever_watched else None
    if watcher is not None:
        watcher.close(sock.fileno())


class _Watcher:
    """The epoll or kqueue of one event loop, and its watches."""

    def __init__(self) -> None:
        self.led = False
        self._poller: _Poller | None = None
        self._watches: dict[int, list[Watch]] = {}
        self._asked: dict[int, int] = {}  # the events that the poller watches, by descriptor
        self._unasked: set[int] = set()  # descriptors whose registration failed: try again
        self._followers: dict[Watch, None] = {}  # in order of arrival
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
        # The poller is not told if fewer events are needed: it would report old events again.

    def close(self, fd: int) -> None:
        watches = self._watches.get(fd)
        if watches:
            for watch in watches:
                watch.close()
            if self._leading is not None:
                self._leading.cancel()  # one of these watches may be the leader's
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        del self._watches[fd]
        self._unasked.discard(fd)
        if self._asked.pop(fd, None) is not None and self._poller is not None:
            with suppress(OSError):  # other code has closed the descriptor
                self._poller.remove(fd)
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        # Not while there is a leader: when it stops waiting, the event loop unregisters the
        # poller's descriptor, which has to be open for that.
        if not self._watches and not self.led and self._poller is not None:
            poller, self._poller = self._poller, None
            with suppress(RuntimeError):  # the event loop was closed, and the task was collected
                anyio.notify_closing(poller.fileno())
            poller.close()

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
            # Out of descriptors or memory: the leader will try again.
            self._unasked.add(fd)
            if self._leading is not None:
                self._leading.cancel()
        else:
            self._asked[fd] = events
            self._unasked.discard(fd)

    def abandon(self) -> None:
        """In a forked child: close the copy of the parent's epoll, and forget all watches."""
        self._watches.clear()
        self._asked.clear()
        self._unasked.clear()
        poller, self._poller = self._poller, None
        if poller is not None:
            with suppress(OSError):  # a kqueue is not inherited
                poller.close()  # the parent's epoll keeps its registrations

    # --- waiting

    async def follow(self, watch: Watch, wake: anyio.Event) -> None:
        """Wait until the leader passes an event on to ``watch``, or leaves."""
        self._followers[watch] = None
        try:
            await wake.wait()
        finally:
            del self._followers[watch]

    async def lead(self, until: Callable[[], bool]) -> None:
        """Wait for the poller and pass its events on to the watches, until ``until()`` is true."""
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
        """If there is no leader, make the first follower the leader."""
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
        except OSError:  # out of memory
            await anyio.sleep(_PAUSE)

    def _collect(self) -> None:
        for fd, events in [] if self._poller is None else self._poller.poll():
            for watch in self._watches.get(fd, ()):
                watch.tell(events)


_watcher: RunVar[_Watcher] = RunVar("anyio_connect._watch._watcher")
_watchers: WeakSet[_Watcher] = WeakSet()


#: Whether any socket was ever watched. Until then, :func:`unwatch` has nothing to look up.
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
