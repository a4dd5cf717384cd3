"""The futures of a socket. The socket settles them; the tasks that await them do the work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Generic, TypeAlias, TypeVar
from weakref import ref

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._copies import fresh
from ._errors import PendingError, SocketError
from ._waking import wake

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


#: A function that works until the future has settled. It may return early: then it is called
#: again. It returns True if the last thing it did was to check for a pending cancellation.
Drive: TypeAlias = Callable[[], Awaitable[bool | None]]

#: A function that calls :meth:`Outcome.forget_tasks` if the tasks that wait never run again,
#: because their event loop was closed.
Forget: TypeAlias = Callable[[], Awaitable[None]]


async def _nothing() -> None: ...


class SocketFuture(Generic[T_co]):
    """The type of ``socket.opened`` and ``socket.closed``: a read-only result to wait for.

    It may be awaited any number of times, by any task. It has no background task: the first task
    that awaits it does the work, and other tasks wait for that task. If that task is cancelled,
    the future does not settle, and one of the other tasks takes over. That task starts from the
    beginning, with a full ``connect_timeout`` and the last place in the queue of
    ``max_connections``. A failure that no task awaits is not reported.

    Awaiting it is a checkpoint, even if it has settled already. A pending cancellation comes
    first: it is raised even if the future has settled before, or settles in the same turn of the
    event loop. Cancelling one waiting task changes nothing for the others.
    """

    __slots__ = ("__weakref__", "_drive", "_forget", "_outcome")

    def __init__(self, outcome: Outcome[T_co], drive: Drive, forget: Forget) -> None:
        # Only Outcome.future() calls this.
        self._outcome = outcome
        self._drive = drive
        self._forget = forget

    def __await__(self) -> Generator[object, None, T_co]:
        return self._wait().__await__()

    def done(self) -> bool:
        """Whether the future has settled, with a result or with a failure."""
        return self._outcome.settled

    def result(self) -> T_co:
        """Return the result, without waiting.

        :raises SocketError: the future has failed with this error
        :raises PendingError: it has not settled yet
        """
        self._check_settled()
        return self._outcome.get()

    def exception(self) -> SocketError | None:
        """Return the error that the future failed with, without waiting; None if it has a result.

        Each call returns a new copy of the error. Awaiting the future and :meth:`result` raise
        new copies too, so that each task has a traceback and notes of its own.

        :raises PendingError: it has not settled yet
        """
        self._check_settled()
        return self._outcome.exception()

    def _check_settled(self) -> None:
        if not self._outcome.settled:
            raise PendingError("the future has not settled yet: await it, or check done() first")

    def __repr__(self) -> str:
        return f"<SocketFuture {self._outcome}>"

    async def _wait(self) -> T_co:
        outcome = self._outcome
        if outcome.settled:
            await checkpoint()
            return outcome.get()
        if not await outcome.settle_by(self._drive, self._forget):
            # If the future settles in the same turn in which the task is cancelled, asyncio does
            # not deliver the cancellation by itself. So raise it here.
            await checkpoint_if_cancelled()
        return outcome.get()


class Outcome(Generic[T]):
    """The result of a future. The connection keeps this; users have the :class:`SocketFuture`.

    Until it settles, the future refers to the connection that drives it. The connection refers to
    the future only weakly: a cycle would leave both to the garbage collector.
    """

    __slots__ = ("_driver", "_error", "_future", "_value", "_wake", "settled")

    def __init__(self) -> None:
        self.settled: bool = False
        self._driver: object | None = None  # stands for the task that drives the future
        self._error: SocketError | None = None
        self._value: T  # set if it has settled without a failure
        self._wake: anyio.Event | None = None
        self._future: ref[SocketFuture[T]] | None = None

    def future(self, drive: Drive, forget: Forget = _nothing) -> SocketFuture[T]:
        """The future for users. It is the same object as long as a reference to it exists."""
        future = self._future() if self._future is not None else None
        if future is None:
            if self.settled:
                drive = forget = _nothing
            future = SocketFuture(self, drive, forget)
            self._future = ref(future)
        return future

    def get(self) -> T:
        """Return the result, or raise the failure. It must have settled."""
        if self._error is not None:
            raise fresh(self._error)
        return self._value

    def exception(self) -> SocketError | None:
        return None if self._error is None else fresh(self._error)

    async def settle_by(self, drive: Drive, forget: Forget) -> bool:
        """Wait until it has settled: call ``drive``, or wait for the task that called it.

        Returns True if the last thing it did was to check for a pending cancellation.
        """
        has_looked = False
        while not self.settled:
            if self._driver is not None:
                await forget()
                if self._driver is None or self.settled:
                    continue
                if self._wake is None:
                    self._wake = anyio.Event()
                await self._wake.wait()
                has_looked = False
                continue
            driver = self._driver = object()
            try:
                has_looked = bool(await drive())
            finally:
                if self._driver is driver:  # otherwise this task was forgotten
                    self._driver = None
                    self._wake_all()
        return has_looked

    def forget_tasks(self) -> None:
        """Forget the tasks that wait: they never run again."""
        self._driver = self._wake = None

    def _wake_all(self) -> None:
        if self._wake is not None:
            wake(self._wake)
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
            # The future need not keep the connection alive any longer. (A method to do this would
            # be public.)
            future._drive = future._forget = _nothing  # noqa: SLF001
        self._wake_all()

    def __str__(self) -> str:
        if not self.settled:
            return "pending"
        if self._error is not None:
            return f"failed: {self._error!r}"
        return f"done: {self._value!r}"
