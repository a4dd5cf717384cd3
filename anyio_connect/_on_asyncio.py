"""Wait for sockets through asyncio's event loops directly, including uvloop's.

A socket stays registered from one receive to the next, with the event loop or with one epoll for
many sockets (:mod:`._readers`). The callback receives the data for the waiting task.

This module is imported only if asyncio is the event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeAlias
from weakref import ref

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._cancellation import IsDue
from ._readers import Readers, add_to_loop, remove_from_loop
from ._waking import Home
from ._watch import CAN_WATCH_ALL, IN, OUT, Watch

#: How much all tasks of an asyncio loop together may do before one of them has to yield, in bytes.
#: A call costs _CALL and the bytes that it moves, so this is at most sixteen calls.
_BUDGET = 1 << 20
_CALL = 1 << 16

#: How long to wait between attempts, in seconds, if there is no other way to wait for a socket.
_RETRY = 0.01


class AsyncioLoop:
    """An event loop of asyncio, of uvloop, or with the same interface."""

    native = True
    home: Home

    def __init__(self, is_due: IsDue) -> None:
        self._running = asyncio.get_running_loop
        self._is_due = is_due
        self._budget = _Budget()
        self._readers = Readers(_on_readable)

    def may_go_on(self, amount: int) -> bool:
        return self._budget.allows(amount) and not self._is_due(self._running())

    def readiness(self, sock: socket.socket) -> LoopReadiness:
        return LoopReadiness(sock, self._running(), self._is_due, self._budget, self._readers)


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
        self.attempt: Callable[[], bool] | None = None
        self._budget = budget
        self._readers = readers

    def may_go_on(self, amount: int) -> bool:
        return self._budget.allows(amount) and not self._is_due(self._loop)

    def charge(self, amount: int) -> None:
        self._budget.left -= amount

    def enter(self) -> Awaitable[None]:
        return checkpoint()

    # This returns the loop's future itself: a coroutine around it would cost time in each wait.

    def readable(self, attempt: Callable[[], bool]) -> Awaitable[None]:
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
            if not self._readers.remove(self._loop, self._fd, self._sock):
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
        if not self._loop.is_closed() and self._readers.add(self._loop, self._fd, registered):
            return _followed(registered)
        try:
            return self._register(self._loop.add_reader, _on_readable, registered)
        except BaseException:
            self._readers.remove(self._loop, self._fd, self._sock)
            raise

    def _register(
        self, add: Callable[..., object], callback: _Callback, registered: _Registered
    ) -> ref[_Registered]:
        if not self._loop.is_closed():  # otherwise the reference dies, and we wait elsewhere
            add_to_loop(self._loop, add, self._fd, callback, registered)
        return _followed(registered)

    def on_lost(self) -> None:
        # Other code has registered its own callback for this socket, which replaced ours. Or it
        # has closed the socket, and a new socket has got the number. Make the waiting tasks try
        # again: then they call _wait_elsewhere(), or meet the error.
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
        return partial(_clear, self._readers, self._loop, self._fd, self._sock)

    def _live(self, registered: ref[_Registered] | None) -> _Registered | None:
        # After a fork, the loop's epoll is shared with the parent process, and must not be
        # changed.
        return None if registered is None or self._forks != _forks else registered()

    def _in_own_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def __del__(self) -> None:
        # Not _live(): the garbage collector may have cleared the weak reference.
        if self._reader is not None and self._forks == _forks:
            self.close_dropped()  # the transport was collected before a connection had it


def _nothing() -> None:
    """Remove nothing."""


def _clear(
    readers: Readers[_Registered],
    loop: asyncio.AbstractEventLoop,
    fd: int,
    sock: socket.socket,
) -> None:
    readers.remove(loop, fd, sock)
    if not readers.has_got(fd):
        remove_from_loop(loop, fd)


def _close_dropped(unregister: Callable[[], None], sock: socket.socket) -> None:
    unregister()
    sock.close()


class _Registered:
    """An object that is kept exactly as long as a socket is registered with the event loop."""

    __slots__ = ("__weakref__", "ready", "sock")

    def __init__(self, sock: socket.socket, ready: ref[LoopReadiness]) -> None:
        self.sock = sock
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
    elif not future.done():
        try:
            is_over = attempt()
        except Exception:  # noqa: BLE001  # the task tries again, and meets the error itself
            is_over = True
        if is_over:
            future.set_result(None)


def _on_writable(registered: _Registered) -> None:
    ready = registered.ready()
    if ready is not None:
        ready.on_writable()


def _followed(registered: _Registered) -> ref[_Registered]:
    return ref(registered, partial(_on_lost, registered.ready))


def _on_lost(weakly: ref[LoopReadiness], _: ref[_Registered]) -> None:
    ready = weakly()
    if ready is not None:
        ready.on_lost()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        with suppress(RuntimeError):  # the loop is closed, and its tasks have ended
            future.set_result(None)
