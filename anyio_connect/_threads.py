"""Threads of our own, for calls that block: resolving names, building a TLS context.

AnyIO's worker threads and those of the event loop will not do: the user's own work may have taken
all of them, and may itself be waiting for a connection. Ours are daemon threads. So neither the
end of an event loop nor that of the process waits for a call that hangs, as ``getaddrinfo()`` does
as long as a DNS server is silent.
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

#: After how many seconds a call counts as hanging: if its task was cancelled, and if not.
_HANGS_ABANDONED = 1.0
_HANGS = 5.0


class NoThreadError(Exception):
    """No thread is free for a call. The message says why."""


def from_any_thread(callback: Callable[[], object]) -> Callable[[], None]:
    """Return a function that makes the event loop that runs now call ``callback`` soon.

    The function may be called in any thread. It raises RuntimeError if that loop has ended.
    """
    loop: Any = current_token().native_token
    # Look at what the object can do, not at the modules that are imported: sys.modules may have a
    # "trio" that another thread has only begun to import.
    schedule = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    return lambda: schedule(callback)


class Threads:
    """Runs blocking calls, each in a thread, at most ``limit`` of them at a time.

    Further calls wait for their turn, in order. If all threads hang, they fail. An object of this
    class may serve several event loops at the same time.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.limit = limit
        self._name = name
        self._begin_anew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        """Forget all calls. A forked child has its parent's lock, but none of its threads."""
        self._lock = threading.Lock()  # for the two below
        self._running: dict[_Call[Any], None] = {}
        self._queue: OrderedDict[_Call[Any], None] = OrderedDict()  # empty unless all run

    async def run(self, function: Callable[[], T]) -> T:
        """Return what ``function`` returns, or raise what it raises.

        If this is cancelled, it returns at once. A call that has begun goes on in its thread, and
        its result is dropped.

        :raises NoThreadError: all threads hang, or the system starts no more of them
        """
        done = anyio.Event()
        call = _Call(function, from_any_thread(done.set))
        try:
            self._enter(call)
            while call.began is None:  # it is in the queue
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
        # The youngest first: as a rule it does not hang, which settles the question.
        if all(call.hangs(now) for call in reversed(self._running)):
            raise NoThreadError(f"all {self.limit} threads that {self._name} hang")

    def _leave(self, call: _Call[Any]) -> None:
        """No task waits for ``call`` any more."""
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
    """One call, what came of it, and how to wake the task that waits for it."""

    __slots__ = ("_error", "_function", "_value", "_wake", "began")

    def __init__(self, function: Callable[[], T], wake: Callable[[], None]) -> None:
        self._function = function
        self._wake: Callable[[], None] | None = wake
        self._value: T
        self._error: BaseException | None = None
        self.began: float | None = None  # when a thread took it

    def hangs(self, now: float) -> bool:
        assert self.began is not None
        return now - self.began >= (_HANGS if self._wake is not None else _HANGS_ABANDONED)

    def abandon(self) -> None:
        self._wake = None  # and so no longer keeps the event loop alive

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as exc:  # noqa: BLE001  # it is raised in the task
            traceback = exc.__traceback__
            self._error = exc.with_traceback(traceback and traceback.tb_next)
            del traceback

    def tell(self) -> None:
        wake = self._wake
        if wake is not None:
            with suppress(RuntimeError):  # the event loop has ended, and so has the task
                wake()

    def result(self) -> T:
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error  # or its traceback would keep this frame, and this frame the error
