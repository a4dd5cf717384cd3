"""The futures of a socket: settled by the socket, driven by whoever waits for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Generic, TypeAlias, TypeVar
from weakref import ref

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._copies import fresh
from ._errors import PendingError, SocketError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


#: What settles a future: it returns when the future has settled, or may have, and whether it has
#: then looked for a cancellation that is due.
Drive: TypeAlias = Callable[[], Awaitable[bool | None]]


class SocketFuture(Generic[T_co]):
    """What ``socket.opened`` and ``socket.closed`` are: a result to come, read-only.

    It may be awaited any number of times, by any task. There is no background task behind it:
    the first task to await it does what has to be done, the others wait for that. When that
    task is cancelled, nothing is settled, and one of the others takes over: it begins anew, with
    a ``connect_timeout`` of its own and the last place in the queue of ``max_connections``. A
    failure that nobody awaits is silent.

    Awaiting it is a checkpoint, even if it has settled already. A cancellation that is due
    wins: it is raised even if the future settles in the same turn of the event loop, or has
    settled before. Cancelling the wait settles nothing for anybody else.
    """

    __slots__ = ("__weakref__", "_drive", "_outcome")

    def __init__(self, outcome: Outcome[T_co], drive: Drive) -> None:
        # Made by Outcome only.
        self._outcome = outcome
        self._drive = drive

    def __await__(self) -> Generator[object, None, T_co]:
        return self._wait().__await__()

    def done(self) -> bool:
        """Whether there is a result or a failure."""
        return self._outcome.settled

    def result(self) -> T_co:
        """The result, at once.

        :raises SocketError: what the future failed with
        :raises PendingError: it has not settled yet
        """
        self._check_settled()
        return self._outcome.get()

    def exception(self) -> SocketError | None:
        """What the future failed with, at once; None if it has a result.

        Each call returns an error of its own, and so does each that raises it: equal ones, with
        a traceback and notes for each task, and not the same.

        :raises PendingError: it has not settled yet
        """
        self._check_settled()
        return self._outcome.exception()

    def _check_settled(self) -> None:
        if not self._outcome.settled:
            raise PendingError("the future has not settled yet: await it, or ask done() first")

    def __repr__(self) -> str:
        return f"<SocketFuture {self._outcome}>"

    async def _wait(self) -> T_co:
        outcome = self._outcome
        if outcome.settled:
            await checkpoint()
            return outcome.get()
        if not await outcome.settle_by(self._drive):
            # It may have settled in the very turn in which the task was cancelled, and asyncio
            # then delivers no cancellation by itself. One that is due is raised, whatever came of
            # this.
            await checkpoint_if_cancelled()
        return outcome.get()


class Outcome(Generic[T]):
    """The result of a future: the connection keeps this, and users the :class:`SocketFuture`.

    The future keeps whatever drives it alive, as long as it has not settled, and not the reverse:
    or a socket and its futures would only be freed by the garbage collector.
    """

    __slots__ = ("_driven", "_error", "_future", "_value", "_wake", "settled")

    def __init__(self) -> None:
        self.settled: bool = False
        self._driven = False
        self._error: SocketError | None = None
        self._value: T  # once it has settled without a failure
        self._wake: anyio.Event | None = None
        self._future: ref[SocketFuture[T]] | None = None

    def future(self, drive: Drive) -> SocketFuture[T]:
        """The future for users: the same as long as anybody has it."""
        future = self._future() if self._future is not None else None
        if future is None:
            future = SocketFuture(self, _nothing if self.settled else drive)
            self._future = ref(future)
        return future

    def get(self) -> T:
        """The result, if it has settled; raises the failure."""
        if self._error is not None:
            raise fresh(self._error)
        return self._value

    def exception(self) -> SocketError | None:
        return None if self._error is None else fresh(self._error)

    async def settle_by(self, drive: Drive) -> bool:
        """Wait until it has settled: drive it, or wait for the task that does.

        Returns whether it has ended with a look for a cancellation that is due.
        """
        has_looked = False
        while not self.settled:
            if self._driven:
                if self._wake is None:
                    self._wake = anyio.Event()
                await self._wake.wait()
                has_looked = False
                continue
            self._driven = True
            try:
                has_looked = bool(await drive())
            finally:
                self._driven = False
                self._wake_all()
        return has_looked

    def _wake_all(self) -> None:
        if self._wake is not None:
            self._wake.set()
            self._wake = None

    def resolve(self, value: T) -> None:
        self._value = value
        self._settle()

    def reject(self, error: SocketError) -> None:
        self._error = fresh(error)
        self._settle()

    def _settle(self) -> None:
        self.settled = True
        future = self._future() if self._future is not None else None
        if future is not None:
            # No longer keeps the connection alive. (Its setter would be public.)
            future._drive = _nothing  # noqa: SLF001
        self._wake_all()

    def __str__(self) -> str:
        if not self.settled:
            return "pending"
        if self._error is not None:
            return f"failed: {self._error!r}"
        return f"done: {self._value!r}"


async def _nothing() -> None: ...
