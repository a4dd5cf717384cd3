"""Virtual time and the calls due in it, descriptors, listeners, and a log."""

from __future__ import annotations

import errno
import heapq
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from anyio_connect._memory_tcp import Host, error

if TYPE_CHECKING:
    from .polling import Epoll
    from .tcp import End

#: Simulated descriptors begin here, so that none is mistaken for a real one.
FIRST_FD = 1_000_000


class Deadlock(BaseException):  # no `except Exception` may take it for something else
    """Every task waits, and nothing will ever happen; or tasks run, and time stands still."""


class Pollable(Protocol):
    """What has a descriptor."""

    #: The epolls that watch it, in the order in which they began to.
    watchers: list[Epoll]

    def flags(self) -> int:
        """The EPOLL... flags that are true of it now."""
        ...


class Network:
    """All that a history happens in. Nothing in it depends on real time, addresses or hashes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.log: list[tuple[object, ...]] = []
        self.hosts: dict[tuple[str, int], Host[End]] = {}
        self.unreachable: set[tuple[str, int]] = set()  # no way there: said at once
        self.ends: list[End] = []  # every end of every connection that ever was
        self.most_descriptors: float = float("inf")  #: that may be open at once: EMFILE
        self.dropped = 0  #: sockets that nobody closed
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._things: dict[int, Pollable] = {}
        self._ports = 40_000

    # --- time

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        """Call ``what`` at that time. Calls with the same time run in the order of ``at()``."""
        self._count += 1
        heapq.heappush(self._due, (when, self._count, what, args))

    def later(self, delay: float, what: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay, what, *args)

    def next_due(self) -> float | None:
        return self._due[0][0] if self._due else None

    def run_due(self) -> None:
        while self._due and self._due[0][0] <= self.now:
            _, _, what, args = heapq.heappop(self._due)
            what(*args)

    def note(self, *what: object) -> None:
        self.log.append((round(self.now, 6), *what))

    # --- descriptors

    def open(self, thing: Pollable) -> int:
        """Give it the lowest number that is free, as the kernel does: numbers are used again."""
        if len(self._things) >= self.most_descriptors:
            raise error(errno.EMFILE)
        fd = FIRST_FD
        while fd in self._things:
            fd += 1
        self._things[fd] = thing
        return fd

    def close(self, fd: int) -> None:
        """The number is free again, and no epoll watches the thing any more."""
        thing = self._things.pop(fd)
        for epoll in [*thing.watchers]:
            epoll.forget(fd)
        thing.watchers.clear()

    def replace(self, fd: int, thing: Pollable) -> Pollable:
        """Another thing has that descriptor from now on; return the one that had it."""
        before, self._things[fd] = self._things[fd], thing
        return before

    def thing(self, fd: int) -> Pollable:
        """What has that descriptor.

        :raises OSError: nothing has it
        """
        try:
            return self._things[fd]
        except KeyError:
            raise error(errno.EBADF) from None

    def opened(self) -> list[int]:
        """The descriptors that are open."""
        return sorted(self._things)

    def wake(self, thing: Pollable, key: int) -> None:
        """Tell those who watch ``thing``; ``key``: which flags it is about, 0 for any."""
        for epoll in thing.watchers:
            epoll.woken(thing, key)

    # --- addresses

    def port(self) -> int:
        """A port that the kernel chooses."""
        self._ports += 1
        return self._ports
