"""The futures of a socket: settled by the socket, driven by whoever waits for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._copies import fresh
from ._errors import PendingError, SocketError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class SocketFuture(Generic[T_co]):
    """What ``socket.opened`` and ``socket.closed`` are: a result to come, read-only.

    It may be awaited any number of times, by any task. There is no background task behind it:
    the first task to await it does what has to be done, the others wait for that. When that
    task is cancelled, nothing is settled, and one of the others takes over: it begins anew, with
    a ``connect_timeout`` of its own and the last place in the queue of ``max_connections``. A
    failure that nobody awaits is silent.

    Awaiting it is a checkpoint, even where it has settled already. Cancelling the wait settles
    nothing for anybody else.
    """

    __slots__ = ("_drive", "_driven", "_error", "_settled", "_value", "_wake")

    def __init__(self, drive: Callable[[], Awaitable[None]]) -> None:
        # Made by sockets only. ``drive`` returns when the future has settled, or may have.
        self._drive = drive
        self._driven = False
        self._settled = False
        self._error: SocketError | None = None
        self._value: T_co  # once it has settled without a failure
        self._wake: anyio.Event | None = None

    def __await__(self) -> Generator[object, None, T_co]:
        return self._wait().__await__()

    def done(self) -> bool:
        """Whether there is a result or a failure."""
        return self._settled

    def result(self) -> T_co:
        """The result, at once.

        :raises SocketError: what the future failed with
        :raises PendingError: it has not settled yet
        """
        self._check_settled()
        if self._error is not None:
            raise fresh(self._error)
        return self._value

    def exception(self) -> SocketError | None:
        """What the future failed with, at once; None if it has a result.

        Each call returns an error of its own, and so does each that raises it: equal ones, with
        a traceback and notes for each task, and not the same.

        :raises PendingError: it has not settled yet
        """
        self._check_settled()
        return None if self._error is None else fresh(self._error)

    def _check_settled(self) -> None:
        if not self._settled:
            raise PendingError("the future has not settled yet: await it, or ask done() first")

    def __repr__(self) -> str:
        if not self._settled:
            state = "pending"
        elif self._error is not None:
            state = f"failed: {self._error!r}"
        else:
            state = f"done: {self._value!r}"
        return f"<SocketFuture {state}>"

    async def _wait(self) -> T_co:
        if self._settled:
            await checkpoint()
            return self.result()
        while not self._settled:
            if self._driven:
                if self._wake is None:
                    self._wake = anyio.Event()
                await self._wake.wait()
                continue
            self._driven = True
            try:
                await self._drive()
            finally:
                self._driven = False
                self._wake_all()
        # It may have settled in the very turn in which the task was cancelled, and asyncio then
        # delivers no cancellation by itself. One that is due is raised, whatever came of this.
        await checkpoint_if_cancelled()
        return self.result()

    def _wake_all(self) -> None:
        if self._wake is not None:
            self._wake.set()
            self._wake = None

    def _resolve(self: SocketFuture[T], value: T) -> None:
        self._value = value
        self._settle()

    def _reject(self, error: SocketError) -> None:
        self._error = fresh(error)
        self._settle()

    def _settle(self) -> None:
        self._settled = True
        self._drive = _nothing  # no longer keeps the connection alive
        self._wake_all()


async def _nothing() -> None: ...
