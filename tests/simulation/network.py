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


class Deadlock(BaseException):  # so that no `except Exception` catches it
    """Every task waits, and no event is due; or tasks run for ever while time stands still."""


class Pollable(Protocol):
    """An object with a descriptor."""

    #: The epolls that watch it, in the order in which they began.
    watchers: list[Epoll]

    def flags(self) -> int:
        """The EPOLL... flags that are true now."""
        ...


class Network:
    """The world of a history. Nothing in it depends on real time, addresses or hashes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.log: list[tuple[object, ...]] = []
        self.hosts: dict[tuple[str, int], Host[End]] = {}
        self.unreachable: set[tuple[str, int]] = set()  # without a route: the error comes at once
        self.ends: list[End] = []  # every end of every connection that ever was
        self.most_descriptors: float = float("inf")  #: at a time; then EMFILE
        self.dropped = 0  #: sockets that were not closed
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
        """Give it the lowest free number, as the kernel does. So numbers are used again."""
        if len(self._things) >= self.most_descriptors:
            raise error(errno.EMFILE)
        fd = FIRST_FD
        while fd in self._things:
            fd += 1
        self._things[fd] = thing
        return fd

    def close(self, fd: int) -> None:
        """Free the number again. No epoll watches the object any longer."""
        thing = self._things.pop(fd)
        for epoll in [*thing.watchers]:
            epoll.forget(fd)
        thing.watchers.clear()

    def replace(self, fd: int, thing: Pollable) -> Pollable:
        """Give the descriptor to another object; return the one that had it."""
        before, self._things[fd] = self._things[fd], thing
        return before

    def thing(self, fd: int) -> Pollable:
        """The object with that descriptor.

        :raises OSError: none has it
        """
        try:
            return self._things[fd]
        except KeyError:
            raise error(errno.EBADF) from None

    def opened(self) -> list[int]:
        """The descriptors that are open."""
        return sorted(self._things)

    def wake(self, thing: Pollable, key: int) -> None:
        """Tell the epolls that watch ``thing``. ``key``: the flags that have changed, 0 for
        any."""
        for epoll in thing.watchers:
            epoll.woken(thing, key)

    # --- addresses

    def port(self) -> int:
        """A free port, as the kernel would choose it."""
        self._ports += 1
        return self._ports
