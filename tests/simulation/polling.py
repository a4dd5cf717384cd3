"""``select.epoll`` on the simulated network, level- and edge-triggered, one-shot, and nested."""

from __future__ import annotations

import errno
import select
from typing import Protocol

from typing_extensions import Self

from anyio_connect._memory_tcp import error

from .network import FIRST_FD, Deadlock, Network, Pollable

_ALWAYS = select.EPOLLERR | select.EPOLLHUP
_FLAGS = select.EPOLLET | select.EPOLLONESHOT
#: After this many turns of the loop without progress of time, it would go on for ever.
_MOST_TURNS = 20_000
#: The timeout with which trio waits if no deadline is set, in seconds.
_FOR_EVER = 86_400


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class _Watched:
    """One entry: the kernel's epitem."""

    __slots__ = ("edge", "once", "pending", "thing", "wanted")

    def __init__(self, thing: Pollable | None, mask: int) -> None:
        self.thing = thing
        self.arm(mask)

    def arm(self, mask: int) -> None:
        self.wanted = (mask & ~_FLAGS) | _ALWAYS
        self.edge = bool(mask & select.EPOLLET)
        self.once = bool(mask & select.EPOLLONESHOT)
        self.pending = True  # the kernel checks at once when an entry is made or changed

    def found(self) -> int:
        if self.thing is None or not self.wanted or (self.edge and not self.pending):
            return 0
        return self.thing.flags() & self.wanted

    def reported(self) -> None:
        self.pending = False
        if self.once:
            self.wanted = 0


class Epoll:
    """The ``select.epoll()`` of the package, which may poll it but never wait in it."""

    def __init__(self, network: Network) -> None:
        self.watchers: list[Epoll] = []
        self._network = network
        self._watched: dict[int, _Watched] = {}
        self._fd = network.open(self)
        self.closed = False

    def fileno(self) -> int:
        self._check()
        return self._fd

    def register(self, fd: int | HasFileno, eventmask: int = select.EPOLLIN) -> None:
        number = self._number(fd)
        # A real descriptor is a self-pipe of an event loop. No data arrives there.
        thing = self._network.thing(number) if number >= FIRST_FD else None
        if number in self._watched:
            raise error(errno.EEXIST)
        self._watched[number] = _Watched(thing, eventmask)
        if thing is not None and self not in thing.watchers:
            thing.watchers.append(self)
        self._network.wake(self, select.EPOLLIN)

    def modify(self, fd: int | HasFileno, eventmask: int) -> None:
        self._entry(fd).arm(eventmask)
        self._network.wake(self, select.EPOLLIN)

    def unregister(self, fd: int | HasFileno) -> None:
        self._entry(fd)
        number = self._number(fd)
        thing = self._watched.pop(number).thing
        if thing is not None:
            thing.watchers.remove(self)

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        self._check()
        found = self._collect(maxevents)
        if not found and timeout != 0:
            raise AssertionError("the package waits in an epoll, which blocks the event loop")
        return found

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            for watched in self._watched.values():
                if watched.thing is not None:
                    watched.thing.watchers.remove(self)
            self._watched.clear()
            self._network.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- called by the network

    def flags(self) -> int:
        return select.EPOLLIN if any(w.found() for w in self._watched.values()) else 0

    def woken(self, thing: Pollable, key: int) -> None:
        for watched in self._watched.values():
            if watched.thing is thing and watched.wanted and (not key or key & watched.wanted):
                watched.pending = True
                self._network.wake(self, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        self._watched.pop(fd, None)

    # --- helpers

    def _number(self, fd: int | HasFileno) -> int:
        self._check()
        number = fd if isinstance(fd, int) else fd.fileno()
        if number < 0:
            raise ValueError(f"file descriptor cannot be a negative integer ({number})")
        return number

    def _entry(self, fd: int | HasFileno) -> _Watched:
        number = self._number(fd)
        if number >= FIRST_FD:
            self._network.thing(number)
        try:
            return self._watched[number]
        except KeyError:
            raise error(errno.ENOENT) from None

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed epoll object")

    def _collect(self, most: int) -> list[tuple[int, int]]:
        found = [(fd, mask) for fd, w in self._watched.items() if (mask := w.found())]
        if len(found) > 1:
            self._network.random.shuffle(found)
        if most > 0:
            del found[most:]
        for fd, _ in found:
            self._watched[fd].reported()
        return found


class Driver(Epoll):
    """The epoll in which an event loop waits. Meanwhile, time passes and events happen."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._turns = 0
        self._last = -1.0

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        network = self._network
        self._turns = self._turns + 1 if network.now == self._last else 0
        self._last = network.now
        if self._turns > _MOST_TURNS:
            raise Deadlock("the event loop turns again and again while time stands still")
        network.run_due()
        found = self._collect(maxevents)
        if found or timeout == 0:
            return found
        for_ever = timeout is None or timeout < 0 or timeout >= _FOR_EVER
        end = float("inf") if timeout is None or for_ever else network.now + timeout
        while True:
            due = network.next_due()
            if due is None or due > end:
                if for_ever:
                    raise Deadlock("every task waits, and no event is due")
                network.now = end
                return []
            network.now = due
            network.run_due()
            if found := self._collect(maxevents):
                return found
