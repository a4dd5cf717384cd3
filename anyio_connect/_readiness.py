"""Wait until a socket is ready, and let other tasks run if there is no need to wait.

To wait, AnyIO registers the socket with the event loop. When the socket is ready, AnyIO
unregisters it and wakes the task, which tries again. On asyncio, this takes several times as long
as the socket call itself. So there, this module uses the event loop directly: a socket stays
registered from one receive to the next, and the loop's callback receives the data.

Every call is a checkpoint: it raises a pending cancellation. If it need not wait, the event loop
determines whether other tasks run as well. On trio they run at each call, as trio's users expect.
On asyncio they run after a number of calls or bytes (``_BUDGET``), counted over all tasks: there,
a turn of the event loop costs more than a small send, and asyncio's own streams do not yield at
all.
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
from ._readers import Readers, add_to_loop, remove_from_loop
from ._watch import CAN_WATCH_ALL, IN, OUT, Watch

if TYPE_CHECKING:  # imported only if asyncio is the event loop
    import asyncio

#: How much all tasks of an asyncio loop together may do before one of them has to yield, in bytes.
#: A call costs _CALL and the bytes that it moves, so this is at most sixteen calls.
_BUDGET = 1 << 20
_CALL = 1 << 16

#: How long to wait between attempts, in seconds, if there is no other way to wait for a socket.
_RETRY = 0.01


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
            return _AsyncioLoop(cancellation_due(token.backend_class))
    elif hasattr(loop, "run_sync_soon"):
        return _TrioLoop()
    return _OtherLoop()


#: The number of no descriptor.
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
    """An event loop of asyncio, of uvloop, or with the same interface."""

    native = True

    def __init__(self, is_due: IsDue) -> None:
        import asyncio

        self._running = asyncio.get_running_loop
        self._is_due = is_due
        self._budget = _Budget()
        self._readers = Readers(_on_readable)

    def may_go_on(self, amount: int) -> bool:
        return self._budget.allows(amount) and not self._is_due(self._running())

    def readiness(self, sock: socket.socket) -> Readiness:
        return LoopReadiness(sock, self._running(), self._is_due, self._budget, self._readers)


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
        self._notify_closing(self._sock)
        if self._closes_at_once or not self._waiting:
            self._sock.close()

    def detach(self) -> None:
        self._closed = self._stopped = True
        with suppress(RuntimeError):  # the event loop has ended
            self._notify_closing(self._sock)  # removes it from the selector

    def close_dropped(self) -> None:
        self._sock.close()


#: How often a process was forked from the one that imported this module, down to this process.
_forks = 0


def _in_child() -> None:
    global _forks  # noqa: PLW0603
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class _Budget:
    """How much may still be done on an asyncio loop before a task has to yield, in bytes."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = _BUDGET

    def allows(self, amount: int) -> bool:
        """Charge a call that moves about ``amount`` bytes; return whether it need not yield."""
        self.left -= _CALL + amount
        if self.left > 0:
            return True
        self.left = _BUDGET
        return False


class LoopReadiness:
    """Waits through asyncio's event loops directly, including uvloop's."""

    __slots__ = (
        "__weakref__",
        "_budget",
        "_closed",
        "_fd",
        "_forks",
        "_is_due",
        "_loop",
        "_reader",
        "_readers",
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
        readers: Readers[_Registered],
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._forks = _forks
        self._loop = loop
        self._is_due = is_due
        self._stopped = False
        self._closed = False
        # The loop or _readers keep these objects alive while the socket is registered. (For
        # reading, the socket stays registered while no task waits.) A dead reference means that
        # other code has replaced our callback in the loop, or that uvloop has stopped watching a
        # socket after an error.
        self._reader: ref[_Registered] | None = None
        self._writer: ref[_Registered] | None = None
        self.reading: asyncio.Future[None] | None = None  # _on_readable() sets its result
        self._writing: asyncio.Future[None] | None = None
        self._scopes: dict[int, anyio.CancelScope] = {}  # tasks in _wait_elsewhere(), by event
        self.attempt: Attempt | None = None
        self._budget = budget
        self._readers = readers

    def may_go_on(self, amount: int) -> bool:
        return self._budget.allows(amount) and not self._is_due(self._loop)

    def charge(self, amount: int) -> None:
        self._budget.left -= amount

    def enter(self) -> Awaitable[None]:
        return checkpoint()

    # This returns the loop's future itself: a coroutine around it would cost time in each wait.

    def readable(self, attempt: Attempt) -> Awaitable[None]:
        if self._stopped:
            raise anyio.ClosedResourceError
        if self._reader is None:
            self._reader = self._register_reader()
        self.attempt = attempt
        future = self.reading = self._loop.create_future()
        return future if self._reader() is not None else self._wait_elsewhere(IN)

    def after_reading(self) -> bool:
        self.reading = self.attempt = None
        self._budget.left = _BUDGET  # other tasks have run during the wait
        return not (self._stopped or self._is_due(self._loop))

    async def refuse_reading(self) -> None:
        await checkpoint_if_cancelled()  # the wait did not raise it: it was too late or too early
        raise anyio.ClosedResourceError

    def unregister(self) -> None:
        registered = self._live(self._reader)
        if registered is not None:
            self._reader = None
            if not self._readers.remove(self._loop, self._fd, registered):
                self._loop.remove_reader(self._fd)

    async def writable(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        future = self._writing = self._loop.create_future()
        try:
            if self._writer is None:
                self._writer = self._register(
                    self._loop.add_writer, _on_writable, _Registered(self._sock, ref(self))
                )
            if self._writer() is None:
                await self._wait_elsewhere(OUT)
            else:
                await future
        finally:
            if self._writing is future:  # otherwise another task waits since a cancellation
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

    # The loop gets a weak reference to this object, so that an unclosed socket can be collected.
    # But it keeps the kernel's socket alive: no new socket may get the same number while it is
    # registered.

    def _register_reader(self) -> ref[_Registered]:
        registered = _Registered(self._sock, ref(self))
        if self._readers.add(self._loop, self._fd, registered):
            return ref(registered)
        return self._register(self._loop.add_reader, _on_readable, registered)

    def _register(
        self, add: Callable[..., object], callback: _Callback, registered: _Registered
    ) -> ref[_Registered]:
        add_to_loop(self._loop, add, self._fd, callback, registered)
        return ref(registered, partial(_on_lost, registered.ready))

    def on_lost(self) -> None:
        # Other code has registered its own callback for this socket, which replaced ours. Make the
        # waiting tasks try again: then they call _wait_elsewhere().
        _wake(self.reading)
        _wake(self._writing)

    def _unregister_writer(self) -> None:
        if self._live(self._writer) is not None:
            self._writer = None
            self._loop.remove_writer(self._fd)

    async def _wait_elsewhere(self, event: int) -> None:
        """Wait without the event loop's callbacks, which other code uses for this socket."""
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
            # After a cancellation, another task may be waiting already.
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
        self._closed = self._stopped = True
        self._forget()()
        _wake(self.reading)
        _wake(self._writing)
        for scope in self._scopes.values():
            scope.cancel()
        self._sock.close()

    def detach(self) -> None:
        self._closed = self._stopped = True
        self._forget()()

    def close_dropped(self) -> None:
        unregister = self._forget()
        if unregister is not _nothing and not self._in_own_loop():
            with suppress(RuntimeError):  # the loop is closed, and has no registrations
                self._loop.call_soon_threadsafe(_close_dropped, unregister, self._sock)
                return
        unregister()
        self._sock.close()

    def _forget(self) -> Callable[[], None]:
        """Forget our registrations; return the function that removes them from the loop."""
        reader, writer = self._reader, self._writer
        self._reader = self._writer = None
        if (reader is None and writer is None) or self._forks != _forks:
            return _nothing
        registered = None if reader is None else reader()
        return partial(_clear, self._readers, self._loop, self._fd, registered)

    def _live(self, registered: ref[_Registered] | None) -> _Registered | None:
        # After a fork, the loop's epoll is shared with the parent process, and must not be
        # changed.
        return None if registered is None or self._forks != _forks else registered()

    def _in_own_loop(self) -> bool:
        import asyncio

        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def __del__(self) -> None:
        if (
            self._live(self._reader) is not None
        ):  # the transport was collected before a connection had it
            self.close_dropped()


def _nothing() -> None:
    """Remove nothing."""


def _clear(
    readers: Readers[_Registered],
    loop: asyncio.AbstractEventLoop,
    fd: int,
    registered: _Registered | None,
) -> None:
    readers.remove(loop, fd, registered)
    remove_from_loop(loop, fd)


def _close_dropped(unregister: Callable[[], None], sock: socket.socket) -> None:
    unregister()
    sock.close()


class _Registered:
    """An object that is kept exactly as long as a socket is registered with the event loop."""

    __slots__ = ("__weakref__", "_sock", "ready")

    def __init__(self, sock: socket.socket, ready: ref[LoopReadiness]) -> None:
        self._sock = sock
        self.ready = ready


_Callback: TypeAlias = Callable[[_Registered], None]


def _on_readable(registered: _Registered) -> None:
    ready = registered.ready()
    if ready is None:
        return
    future, attempt = ready.reading, ready.attempt
    if future is None or attempt is None:
        # Data has arrived and no task waits for it. The loop would report it again and again.
        ready.unregister()
    elif not future.done() and attempt():
        future.set_result(None)


def _on_writable(registered: _Registered) -> None:
    ready = registered.ready()
    if ready is not None:
        ready.on_writable()


def _on_lost(weakly: ref[LoopReadiness], _: ref[_Registered]) -> None:
    ready = weakly()
    if ready is not None:
        ready.on_lost()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        with suppress(RuntimeError):  # the loop is closed, and its tasks have ended
            future.set_result(None)
