"""Wait until a socket is ready, and let other tasks run if there is no need to wait.

To wait, AnyIO registers the socket with the event loop. When the socket is ready, AnyIO
unregisters it and wakes the task, which tries again. On asyncio, this takes several times as long
as the socket call itself. So there, :mod:`._on_asyncio` uses the event loop directly: a socket
stays registered from one receive to the next, and the loop's callback receives the data.

Every call is a checkpoint: it raises a pending cancellation. If it need not wait, the event loop
determines whether other tasks run as well. On trio they run at each call, as trio's users expect.
On asyncio they run after a number of calls or bytes, counted over all tasks: there,
a turn of the event loop costs more than a small send, and asyncio's own streams do not yield at
all.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, TypeAlias
from weakref import ref

import anyio
from anyio.lowlevel import RunVar, checkpoint, checkpoint_if_cancelled, current_token

from ._cancellation import cancellation_due
from ._waking import Home

Attempt: TypeAlias = Callable[[], bool]
Pause: TypeAlias = Callable[[], Awaitable[None]]


class Readiness(Protocol):
    """Waits for one socket. At most one task waits for each direction at a time."""

    @property
    def waits_first(self) -> bool:
        """Whether a receive may wait without asking the kernel, if data is unlikely.

        Not if :meth:`readable` misses data that arrived before the call, nor if each wait
        registers the socket again, which costs more than asking. The task then has to try to
        receive just before the call, and be a checkpoint itself.
        """
        ...

    def may_go_on(self, amount: int) -> bool:
        """Whether a call that moves about ``amount`` bytes may do without a checkpoint.

        If not, other tasks have to run or a cancellation is pending. Then the caller awaits
        :meth:`enter` before the call, and :attr:`leave`, if any, after a call that did not wait.
        """
        ...

    def charge(self, amount: int) -> None:
        """Count ``amount`` bytes that a call has moved in excess of the amount announced."""

    def enter(self) -> Awaitable[None]:
        """Be a checkpoint, or its first half if there is a :attr:`leave`.

        The first half raises a pending cancellation, and :attr:`leave` lets other tasks run.
        """
        ...

    @property
    def leave(self) -> Pause | None:
        """The function that lets other tasks run after a call, or None.

        It raises nothing, because the call has taken effect. Yielding after a send, and not before
        it, makes a round trip shorter: the peer works at the same time.
        """

    def readable(self, attempt: Attempt) -> Awaitable[None]:
        """Return an awaitable that waits for data, the peer's end, or an error.

        When one of them arrives, ``attempt`` may be called outside of any task, until it returns
        True. ``attempt`` has to keep the data that it takes, because the task may be cancelled.

        :raises anyio.ClosedResourceError: :meth:`stop_reading` or :meth:`close` was called
        """
        ...

    def after_reading(self) -> bool:
        """Has to be called after that wait, even if it raised.

        If it returns False, the caller has to await :meth:`refuse_reading`.
        """
        ...

    async def refuse_reading(self) -> None:
        """Raise the pending cancellation, or the error of :meth:`readable`."""

    async def writable(self) -> None:
        """Wait until there is room to send, or an error.

        :raises anyio.ClosedResourceError: :meth:`close` was called
        """

    def stop_reading(self) -> None:
        """Make a :meth:`readable` in flight, and every later one, raise an error."""

    def resume_reading(self) -> None:
        """Undo :meth:`stop_reading`, after the :meth:`readable` in flight has returned."""

    def detach(self) -> None:
        """Stop using the socket, which other code uses from now on. No task waits for it.

        This works even after the event loop has ended.
        """

    def close_dropped(self) -> None:
        """Close the socket, for which no task waits. May be called in any thread."""

    def close(self) -> None:
        """Close the socket, and wake the tasks that wait for it.

        The descriptor is closed at once, unless those tasks still use its number.
        """


def readiness(sock: socket.socket) -> Readiness:
    """Return the best way to wait for a non-blocking socket on the running event loop."""
    return here().readiness(sock)


class Loop(Protocol):
    """The facts about an event loop, determined once. It does not keep the loop alive."""

    #: Whether this module waits for sockets through the loop itself, and not through AnyIO.
    native: bool

    #: The event loop itself.
    home: Home

    def may_go_on(self, amount: int) -> bool:
        """Like :meth:`Readiness.may_go_on`, for a call that has no socket yet."""
        ...

    def readiness(self, sock: socket.socket) -> Readiness: ...


_loop: RunVar[Loop] = RunVar("anyio_connect._readiness._loop")


def here() -> Loop:
    """The facts about the running event loop."""
    loop = _loop.get(None)
    if loop is None:
        loop = _find_out()
        loop.home = ref(current_token().native_token)
        _loop.set(loop)
    return loop


def _find_out() -> Loop:
    token = current_token()
    loop: Any = token.native_token
    # Look at the methods of the loop. sys.modules is no guide: it may contain partly imported or
    # replaced modules. The module of the running loop is imported completely.
    if hasattr(loop, "remove_reader"):
        # Only a call shows whether this is supported: asyncio's proactor loop on Windows raises.
        with suppress(NotImplementedError):
            loop.remove_reader(_NO_DESCRIPTOR)
            from ._on_asyncio import AsyncioLoop  # here, because it imports asyncio

            return AsyncioLoop(cancellation_due(token.backend_class))
    elif hasattr(loop, "run_sync_soon"):
        return _TrioLoop()
    return _OtherLoop()


#: The number of no descriptor.
_NO_DESCRIPTOR = (1 << 31) - 1


class _OtherLoop:
    native = False
    home: Home

    def may_go_on(self, amount: int) -> bool:
        return False

    def readiness(self, sock: socket.socket) -> Readiness:
        return by_anyio(sock)


class _TrioLoop:
    native = True
    home: Home

    def __init__(self) -> None:
        import trio
        from trio import lowlevel as low

        self._low = low
        self._closing_error = trio.ClosedResourceError

    def may_go_on(self, amount: int) -> bool:
        return False

    def readiness(self, sock: socket.socket) -> Readiness:
        low = self._low
        return TaskReadiness(
            sock,
            low.wait_readable,
            low.wait_writable,
            low.notify_closing,
            self._closing_error,
            low.checkpoint_if_cancelled,
            (low.checkpoint_if_cancelled, low.cancel_shielded_checkpoint),
            closes_at_once=True,
        )


async def until_readable(ready: Readiness) -> None:
    """Wait until there is something to read, without reading it.

    :raises anyio.ClosedResourceError: for the same reasons as :meth:`Readiness.readable`
    """
    try:
        await ready.readable(_try_again)
    finally:
        may_go_on = ready.after_reading()
    if not may_go_on:
        await ready.refuse_reading()


def _try_again() -> bool:
    return True


def by_anyio(sock: socket.socket) -> TaskReadiness:
    """The way to wait that works on any event loop."""
    return TaskReadiness(
        sock,
        anyio.wait_readable,
        anyio.wait_writable,
        anyio.notify_closing,
        anyio.ClosedResourceError,
        checkpoint_if_cancelled,
    )


class TaskReadiness:
    """The task waits, and then tries: used on trio, and through AnyIO on any event loop."""

    __slots__ = (
        "_closed",
        "_closes_at_once",
        "_closing_error",
        "_notify_closing",
        "_pause",
        "_raise_if_cancelled",
        "_sock",
        "_stopped",
        "_wait_readable",
        "_wait_writable",
        "_waiting",
        "leave",
    )

    waits_first = False

    def __init__(
        self,
        sock: socket.socket,
        wait_readable: Callable[[socket.socket], Awaitable[None]],
        wait_writable: Callable[[socket.socket], Awaitable[None]],
        notify_closing: Callable[[socket.socket], None],
        closing_error: type[Exception],
        raise_if_cancelled: Pause,
        pauses: tuple[Pause, Pause | None] = (checkpoint, None),
        *,
        closes_at_once: bool = False,
    ) -> None:
        # closes_at_once: tasks that notify_closing() has woken do not use the descriptor again.
        self._sock = sock
        self._closes_at_once = closes_at_once
        self._wait_readable = wait_readable
        self._wait_writable = wait_writable
        self._notify_closing = notify_closing
        self._closing_error = closing_error
        self._raise_if_cancelled = raise_if_cancelled
        self._pause, self.leave = pauses
        self._stopped = False
        self._closed = False
        self._waiting = 0  # tasks that wait for this descriptor

    def may_go_on(self, amount: int) -> bool:
        return False

    def charge(self, amount: int) -> None:
        pass  # other tasks run at each call

    def enter(self) -> Awaitable[None]:
        return self._pause()

    async def readable(self, attempt: Attempt) -> None:
        if self._stopped:
            raise anyio.ClosedResourceError
        self._waiting += 1
        try:
            await self._wait_readable(self._sock)
        except self._closing_error:
            pass
        finally:
            self._left()
        # The task may be cancelled after it was woken and before it runs.
        await self._raise_if_cancelled()
        if self._stopped:
            raise anyio.ClosedResourceError

    def after_reading(self) -> bool:
        return True  # the wait itself raises

    async def refuse_reading(self) -> None:
        raise AssertionError("unreachable")

    async def writable(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        self._waiting += 1
        try:
            await self._wait_writable(self._sock)
        except self._closing_error:
            pass  # stop_reading() wakes the sending task as well: let it try again
        finally:
            self._left()
        await self._raise_if_cancelled()
        if self._closed:
            raise anyio.ClosedResourceError

    def _left(self) -> None:
        # On asyncio, a task that AnyIO's notify_closing() has woken unregisters the *number* of
        # the descriptor again when it runs. No new socket may have that number by then, so the
        # last of these tasks closes the descriptor.
        self._waiting -= 1
        if self._closed and not self._waiting:
            self._sock.close()

    def stop_reading(self) -> None:
        self._stopped = True
        if self._waiting:
            self._notify_closing(self._sock)

    def resume_reading(self) -> None:
        self._stopped = self._closed

    def close(self) -> None:
        self._closed = self._stopped = True
        # Wake the waiting tasks before a new descriptor can have the same number.
        with suppress(RuntimeError):  # the event loop has ended, and no task waits
            self._notify_closing(self._sock)
        if self._closes_at_once or not self._waiting:
            self._sock.close()

    def detach(self) -> None:
        self._closed = self._stopped = True
        with suppress(RuntimeError):  # the event loop has ended
            self._notify_closing(self._sock)  # removes it from the selector

    def close_dropped(self) -> None:
        self._sock.close()
