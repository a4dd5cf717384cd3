"""The package's own threads, for calls that block: resolving names, building a TLS context.

The worker threads of AnyIO and of the event loop cannot be used: the user's own work may occupy
all of them, and may itself be waiting for a connection. The threads here are daemon threads. So
neither the end of an event loop nor the end of the process waits for a call that hangs.
``getaddrinfo()`` hangs for as long as a DNS server does not answer.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import current_token

T = TypeVar("T")

#: After how many seconds a call counts as hanging: after its task was cancelled, and otherwise.
_HANGS_ABANDONED = 1.0
_HANGS = 5.0


class NoThreadError(Exception):
    """No thread is available for a call. The message says why."""


def from_any_thread(callback: Callable[[], object]) -> Callable[[], None]:
    """Return a function that makes the running event loop call ``callback`` soon.

    The function may be called in any thread. It raises RuntimeError if that loop has ended.
    """
    loop: Any = current_token().native_token
    # Look at the methods of the loop, not at sys.modules: that may contain a "trio" which another
    # thread is still importing.
    schedule = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    return lambda: schedule(callback)


class Threads:
    """Runs blocking calls, each in a thread, at most ``limit`` of them at a time.

    Further calls wait in a queue. If all threads hang, the waiting calls fail. One object may
    serve several event loops at the same time.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.limit = limit
        self._name = name
        self._begin_anew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        """Forget all calls. A forked child has its parent's lock, but none of its threads."""
        self._lock = threading.Lock()  # protects the next two
        self._running: dict[_Call[Any], None] = {}
        self._queue: OrderedDict[_Call[Any], None] = OrderedDict()  # empty while a thread is free

    async def run(self, function: Callable[[], T]) -> T:
        """Return what ``function`` returns, or raise what it raises.

        If this is cancelled, it ends at once. A call that has begun goes on in its thread, and its
        result is discarded.

        :raises NoThreadError: all threads hang, or the system cannot start another one
        """
        done = anyio.Event()
        call = _Call(function, from_any_thread(done.set))
        try:
            self._enter(call)
            while call.began is None:  # the call is in the queue
                with anyio.move_on_after(_HANGS):
                    await done.wait()
                self._look_again(call)
            await done.wait()
        finally:
            self._leave(call)
        return call.result()

    def _enter(self, call: _Call[Any]) -> None:
        with self._lock:
            if len(self._running) >= self.limit:
                self._refuse_if_all_hang()
                self._queue[call] = None
                return
            thread = threading.Thread(
                target=self._work, args=(call,), name=f"anyio_connect {self._name}", daemon=True
            )
            call.began = time.monotonic()
            try:
                thread.start()
            except RuntimeError as exc:
                raise NoThreadError(str(exc)) from exc
            self._running[call] = None

    def _look_again(self, call: _Call[Any]) -> None:
        with self._lock:
            if call.began is None:
                self._refuse_if_all_hang()

    def _refuse_if_all_hang(self) -> None:
        now = time.monotonic()
        # The most recent call first: it usually does not hang, and then the others do not matter.
        if all(call.hangs(now) for call in reversed(self._running)):
            raise NoThreadError(f"all {self.limit} threads that {self._name} hang")

    def _leave(self, call: _Call[Any]) -> None:
        """Give up ``call``: its task does not wait for it any more."""
        call.abandon()
        with self._lock:
            self._queue.pop(call, None)

    # --- in a thread

    def _work(self, call: _Call[Any]) -> None:
        following: _Call[Any] | None = call
        while following is not None:
            call = following
            call.run()
            following = self._next(call)
            call.tell()

    def _next(self, done: _Call[Any]) -> _Call[Any] | None:
        with self._lock:
            self._running.pop(done, None)
            if not self._queue:
                return None
            call, _ = self._queue.popitem(last=False)
            call.began = time.monotonic()
            self._running[call] = None
            return call


class _Call(Generic[T]):
    """One call, its result, and the function that wakes the waiting task."""

    __slots__ = ("_error", "_function", "_value", "_wake", "began")

    def __init__(self, function: Callable[[], T], wake: Callable[[], None]) -> None:
        self._function = function
        self._wake: Callable[[], None] | None = wake
        self._value: T
        self._error: BaseException | None = None
        self.began: float | None = None  # the time when a thread started it

    def hangs(self, now: float) -> bool:
        assert self.began is not None
        return now - self.began >= (_HANGS if self._wake is not None else _HANGS_ABANDONED)

    def abandon(self) -> None:
        self._wake = None  # it would keep the event loop alive

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as exc:  # noqa: BLE001  # result() raises it in the task
            traceback = exc.__traceback__
            self._error = exc.with_traceback(traceback and traceback.tb_next)
            del traceback

    def tell(self) -> None:
        wake = self._wake
        if wake is not None:
            with suppress(RuntimeError):  # the event loop has ended, and the task with it
                wake()

    def result(self) -> T:
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error  # breaks the cycle of the error, its traceback and this frame
