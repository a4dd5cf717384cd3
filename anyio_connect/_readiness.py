"""How a task waits for its socket to be ready, and lets others run where it need not wait.

AnyIO's way to wait is to register the socket with the event loop, unregister it when it is
ready, wake the task, and have that try again. On asyncio all this takes several times as long as
the socket call that it is for. So there the loop's own means are used: a socket stays registered
from one receive to the next, and what has arrived is taken in the loop's callback.

Every call is a checkpoint in that a cancellation that is due is raised. Whether it also lets other
tasks run where it has nothing to wait for, is up to the loop: on trio each time, as trio's users
expect; on asyncio after so many calls or bytes in a row (``_BUDGET``), whoever makes them. There a
turn of the loop costs more than a small send, and asyncio's own streams never give way at all.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from weakref import ref

import anyio
from anyio.lowlevel import RunVar, checkpoint, checkpoint_if_cancelled, current_token

from ._cancellation import IsDue, cancellation_due
from ._watch import CAN_WATCH_ALL, IN, OUT, Watch

if TYPE_CHECKING:  # which event loop there is, is decided when it runs
    import asyncio

#: How much all tasks of an asyncio loop together may do before one has to let others run, in
#: bytes: sixteen calls, or fewer that move much.
_BUDGET = 1 << 20
_CALL = 1 << 16

#: How often to look, in seconds, if there is no other way to wait for a socket.
_RETRY = 0.01


Attempt: TypeAlias = Callable[[], bool]
Pause: TypeAlias = Callable[[], Awaitable[None]]


class Readiness(Protocol):
    """Waits for one socket. One task at a time waits for each direction."""

    @property
    def waits_first(self) -> bool:
        """Whether it tells of what came before the wait began.

        If not, a task has to try to receive just before, and be a checkpoint itself.
        """
        ...

    def may_go_on(self, amount: int) -> bool:
        """Whether a call that moves about ``amount`` bytes may be made at once.

        False: others are to run, or a cancellation is due. Then :meth:`enter` comes before the
        call. If there is a :attr:`leave`, it comes after a call that did not have to wait.
        """
        ...

    def charge(self, amount: int) -> None:
        """Count bytes that a call has moved beyond what :meth:`may_go_on` was told."""

    async def enter(self) -> None:
        """Be a checkpoint, of which :attr:`leave` may be the half that lets others run."""

    @property
    def leave(self) -> Pause | None:
        """Lets others run after a call. Raises nothing: what was done is done.

        The peer is at work by then, which makes a round trip shorter.
        """

    def readable(self, attempt: Attempt) -> Awaitable[None]:
        """What to await until there is something to receive, or an end, or an error.

        ``attempt`` may be called then, outside of any task, until it returns True. What it took
        stays with it where :meth:`after_reading` raises.

        :raises anyio.ClosedResourceError: :meth:`stop_reading` or :meth:`close` was called
        """
        ...

    def after_reading(self) -> bool:
        """Called once that was awaited, however it ended. False: await :meth:`refuse_reading`."""
        ...

    async def refuse_reading(self) -> None:
        """Raise the cancellation that is due by now, or an error as :meth:`readable` does."""

    async def writable(self) -> None:
        """Wait until there is room to send, or an error.

        :raises anyio.ClosedResourceError: :meth:`close` was called
        """

    def stop_reading(self) -> None:
        """Have :meth:`readable` raise, now and ever after."""

    def resume_reading(self) -> None:
        """Take :meth:`stop_reading` back, once :meth:`readable` has returned."""

    def detach(self) -> None:
        """Let go of the socket, which is another's from now on. No task waits for it.

        Also once the event loop has ended.
        """

    def close_dropped(self) -> None:
        """Close the socket, for which no task waits any more. In any thread, in no task."""

    def close(self) -> None:
        """Close the socket and wake whoever waits for it.

        At once, unless its number must stay taken until those tasks have run.
        """


def readiness(sock: socket.socket) -> Readiness:
    """The best way to wait for a non-blocking socket on the running event loop."""
    return here().readiness(sock)


class Loop(Protocol):
    """What is to be known of an event loop, found out once. It does not keep the loop alive."""

    #: Whether sockets are waited for by the loop's own means, and not by AnyIO's.
    native: bool

    def may_go_on(self, amount: int) -> bool:
        """As :meth:`Readiness.may_go_on`, for a call that has no socket yet."""
        ...

    def readiness(self, sock: socket.socket) -> Readiness: ...


_loop: RunVar[Loop] = RunVar("anyio_connect._readiness._loop")


def here() -> Loop:
    """The running event loop."""
    loop = _loop.get(None)
    if loop is None:
        loop = _find_out()
        _loop.set(loop)
    return loop


def _find_out() -> Loop:
    token = current_token()
    loop: Any = token.native_token
    # The loop itself is asked which it is. What sys.modules has under a name need not be complete,
    # or the real thing; but what runs has been imported in full.
    if hasattr(loop, "remove_reader"):
        # Whether it can be done at all shows when it is tried: one of Windows' loops cannot.
        with suppress(NotImplementedError):
            loop.remove_reader(_NO_DESCRIPTOR)
            return _AsyncioLoop(cancellation_due(token.backend_class))
    elif hasattr(loop, "run_sync_soon"):
        return _TrioLoop()
    return _OtherLoop()


#: A number that no descriptor has.
_NO_DESCRIPTOR = (1 << 31) - 1


class _OtherLoop:
    native = False

    def may_go_on(self, amount: int) -> bool:
        return False

    def readiness(self, sock: socket.socket) -> Readiness:
        return by_anyio(sock)


class _TrioLoop:
    native = True

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


class _AsyncioLoop:
    """asyncio's own, uvloop's, and what is like them."""

    native = True

    def __init__(self, is_due: IsDue) -> None:
        import asyncio

        self._running = asyncio.get_running_loop
        self._is_due = is_due
        self._budget = _Budget()

    def may_go_on(self, amount: int) -> bool:
        return self._budget.allows(amount) and not self._is_due(self._running())

    def readiness(self, sock: socket.socket) -> Readiness:
        return LoopReadiness(sock, self._running(), self._is_due, self._budget)


async def until_readable(ready: Readiness) -> None:
    """Wait until there is something to read, and leave it there.

    :raises anyio.ClosedResourceError: as of :meth:`Readiness.readable`
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
    """What can be had on any event loop."""
    return TaskReadiness(
        sock,
        anyio.wait_readable,
        anyio.wait_writable,
        anyio.notify_closing,
        anyio.ClosedResourceError,
        checkpoint_if_cancelled,
    )


class TaskReadiness:
    """A task waits, then tries: on trio, and by AnyIO's means on any event loop."""

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

    waits_first = True

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
        # closes_at_once: a task that notify_closing() woke does not use the number any more.
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
        pass  # others run at each call

    async def enter(self) -> None:
        await self._pause()

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
        # The cancellation may have come between the task's wake-up and its turn.
        await self._raise_if_cancelled()
        if self._stopped:
            raise anyio.ClosedResourceError

    def after_reading(self) -> bool:
        return True  # the wait itself has raised what there was

    async def refuse_reading(self) -> None:
        raise AssertionError("unreachable")

    async def writable(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        self._waiting += 1
        try:
            await self._wait_writable(self._sock)
        except self._closing_error:
            pass  # stop_reading() wakes the task that waits for room as well: let it try again
        finally:
            self._left()
        await self._raise_if_cancelled()
        if self._closed:
            raise anyio.ClosedResourceError

    def _left(self) -> None:
        # A waiter that AnyIO's notify_closing() has woken on asyncio, unregisters *the number*
        # once more when it runs. Keep the number taken until then: the last one out closes.
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
        # Wakes whoever waits for this descriptor before its number can be used anew.
        self._notify_closing(self._sock)
        if self._closes_at_once or not self._waiting:
            self._sock.close()

    def detach(self) -> None:
        self._closed = self._stopped = True
        with suppress(RuntimeError):  # the event loop has ended
            self._notify_closing(self._sock)  # which takes it out of the selector

    def close_dropped(self) -> None:
        self._sock.close()


#: How many forks lie between this process and the one that imported the module.
_forks = 0


def _in_child() -> None:
    global _forks  # noqa: PLW0603
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class _Budget:
    """What may still be done on an asyncio loop before a task has to let others run."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = _BUDGET

    def allows(self, amount: int) -> bool:
        """Whether a call that moves about ``amount`` bytes is still within it."""
        self.left -= _CALL + amount
        if self.left > 0:
            return True
        self.left = _BUDGET
        return False


class LoopReadiness:
    """By the means of asyncio's event loops, uvloop's among them."""

    __slots__ = (
        "__weakref__",
        "_budget",
        "_closed",
        "_fd",
        "_forks",
        "_is_due",
        "_loop",
        "_reader",
        "_scopes",
        "_sock",
        "_stopped",
        "_writer",
        "_writing",
        "attempt",
        "reading",
    )

    leave = None
    waits_first = True

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        is_due: IsDue,
        budget: _Budget,
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._forks = _forks
        self._loop = loop
        self._is_due = is_due
        self._stopped = False
        self._closed = False
        # What the loop keeps for as long as the socket is registered (for reading, also while no
        # task waits). A dead reference: other code was registered in our place, or it is uvloop,
        # which stops to watch a socket that had an error.
        self._reader: ref[_Registered] | None = None
        self._writer: ref[_Registered] | None = None
        self.reading: asyncio.Future[None] | None = None  # what _on_readable() has to wake
        self._writing: asyncio.Future[None] | None = None
        self._scopes: dict[int, anyio.CancelScope] = {}  # of tasks in _wait_elsewhere()
        self.attempt: Attempt | None = None
        self._budget = budget

    def may_go_on(self, amount: int) -> bool:
        return self._budget.allows(amount) and not self._is_due(self._loop)

    def charge(self, amount: int) -> None:
        self._budget.left -= amount

    async def enter(self) -> None:
        await checkpoint()

    # The future of the loop is awaited itself: a coroutine around it would be one more to come
    # through each time.

    def readable(self, attempt: Attempt) -> Awaitable[None]:
        if self._stopped:
            raise anyio.ClosedResourceError
        if self._reader is None:
            self._reader = self._register(self._loop.add_reader, _on_readable)
        self.attempt = attempt
        future = self.reading = self._loop.create_future()
        return future if self._reader() is not None else self._wait_elsewhere(IN)

    def after_reading(self) -> bool:
        self.reading = self.attempt = None
        self._budget.left = _BUDGET  # all the others have had a turn
        return not (self._stopped or self._is_due(self._loop))

    async def refuse_reading(self) -> None:
        await checkpoint_if_cancelled()  # it came too late to be raised by the wait, or before it
        raise anyio.ClosedResourceError

    def unregister(self) -> None:
        if self._is_registered():
            self._reader = None
            self._loop.remove_reader(self._fd)

    async def writable(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        future = self._writing = self._loop.create_future()
        try:
            if self._writer is None:
                self._writer = self._register(self._loop.add_writer, _on_writable)
            if self._writer() is None:
                await self._wait_elsewhere(OUT)
            else:
                await future
        finally:
            if self._writing is future:  # or another task waits since this one was cancelled
                self._writing = None
                self._unregister_writer()
        self._budget.left = _BUDGET
        if self._is_due(self._loop):
            await checkpoint_if_cancelled()
        if self._closed:
            raise anyio.ClosedResourceError

    def on_writable(self) -> None:
        _wake(self._writing)

    # --- registered with the event loop

    def _register(self, add: Callable[..., object], callback: _Callback) -> ref[_Registered]:
        # Weakly: the loop must not keep alive what was dropped without closing it. But it keeps
        # the kernel's socket, or another socket could get its number too early.
        weakly: ref[LoopReadiness] = ref(self)
        registered = _Registered(self._sock)
        try:
            add(self._fd, callback, weakly, registered)
        except RuntimeError:
            # After an error, uvloop keeps a closed handle under the number, which is in the way.
            _clear(self._loop, self._fd)
            add(self._fd, callback, weakly, registered)
        return ref(registered, partial(_on_lost, weakly))

    def on_lost(self) -> None:
        # Other code waits for the same socket by the loop's means, and was registered in our
        # place. Have the tasks that wait here try again: they then wait elsewhere.
        _wake(self.reading)
        _wake(self._writing)

    def _unregister_writer(self) -> None:
        if self._is_live(self._writer):
            self._writer = None
            self._loop.remove_writer(self._fd)

    async def _wait_elsewhere(self, event: int) -> None:
        """Wait by other means than the event loop's, which other code uses for this socket."""
        if not CAN_WATCH_ALL:
            await anyio.sleep(_RETRY)
            return
        scope = self._scopes[event] = anyio.CancelScope()
        try:
            with (
                scope,
                suppress(anyio.ClosedResourceError),
                Watch(self._sock, event) as watch,
            ):
                await watch.wait()
        finally:
            # Another task may wait since this one was cancelled.
            if self._scopes.get(event) is scope:
                del self._scopes[event]

    def stop_reading(self) -> None:
        self._stopped = True
        self.unregister()
        _wake(self.reading)
        if IN in self._scopes:
            self._scopes[IN].cancel()

    def resume_reading(self) -> None:
        self._stopped = self._closed

    def close(self) -> None:
        self._closed = True
        if self._forget():
            _clear(self._loop, self._fd)
        self.stop_reading()
        _wake(self._writing)
        if OUT in self._scopes:
            self._scopes[OUT].cancel()
        self._sock.close()

    def detach(self) -> None:
        self._closed = self._stopped = True
        if self._forget() and not self._loop.is_closed():
            _clear(self._loop, self._fd)

    def close_dropped(self) -> None:
        if self._forget():
            if not self._in_own_loop():
                with suppress(RuntimeError):  # the loop is closed, and has forgotten everything
                    self._loop.call_soon_threadsafe(
                        _close_dropped, self._loop, self._fd, self._sock
                    )
                    return
            else:
                _clear(self._loop, self._fd)
        self._sock.close()

    def _forget(self) -> bool:
        """Whether the loop may have something under our number; from now on, it has not."""
        was_registered = self._reader is not None or self._writer is not None
        self._reader = self._writer = None
        return was_registered and self._forks == _forks

    def _is_registered(self) -> bool:
        return self._is_live(self._reader)

    def _is_live(self, registered: ref[_Registered] | None) -> bool:
        # What the loop watches with is shared with the process that this one was forked from, and
        # not ours to change.
        return registered is not None and registered() is not None and self._forks == _forks

    def _in_own_loop(self) -> bool:
        import asyncio

        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def __del__(self) -> None:
        if self._is_registered():  # the transport was dropped before anybody had it
            self.close_dropped()


def _clear(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Leave nothing under a number that the next socket gets.

    After an error, uvloop forgets the callback, but keeps the handle, which is closed.
    """
    loop.remove_reader(fd)
    loop.remove_writer(fd)


def _close_dropped(loop: asyncio.AbstractEventLoop, fd: int, sock: socket.socket) -> None:
    _clear(loop, fd)
    sock.close()


class _Registered:
    """What an event loop keeps for as long as it watches a socket for us, and no longer."""

    __slots__ = ("__weakref__", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock


_Callback: TypeAlias = "Callable[[ref[LoopReadiness], _Registered], None]"


def _on_readable(weakly: ref[LoopReadiness], _: _Registered) -> None:
    ready = weakly()
    if ready is None:
        return
    future, attempt = ready.reading, ready.attempt
    if future is None or attempt is None:
        # More has come than a task waits for: without this, it would be reported for ever.
        ready.unregister()
    elif not future.done() and attempt():
        future.set_result(None)


def _on_writable(weakly: ref[LoopReadiness], _: _Registered) -> None:
    ready = weakly()
    if ready is not None:
        ready.on_writable()


def _on_lost(weakly: ref[LoopReadiness], _: ref[_Registered]) -> None:
    ready = weakly()
    if ready is not None:
        ready.on_lost()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        with suppress(RuntimeError):  # the loop is closed, and so no task waits any more
            future.set_result(None)
