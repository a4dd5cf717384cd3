"""Runs an asynchronous function for a thread that has no event loop, and has that wait for it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import current_token

from ._threads import NoThreadError, from_any_thread

T = TypeVar("T")


def event_loop_runs() -> bool:
    """Whether an event loop runs in this thread, and would stand still."""
    import asyncio

    try:
        asyncio.get_running_loop()  # also in a callback, which is in no task
    except RuntimeError:
        pass
    else:
        return True
    try:
        current_token()
    except RuntimeError:
        return False
    return True


def wait_for(function: Callable[[], Awaitable[T]], drop: Callable[[T], object]) -> T:
    """Return what ``function`` returns, or raise what it raises.

    It runs in an event loop of its own, in a thread of its own: this thread gets no event loop,
    and none of its signal handlers is changed. The context (``contextvars``) is a copy of this
    one's.

    What is raised here meanwhile, by a signal handler as a rule (KeyboardInterrupt), cancels it,
    and is raised when it has ended. If it has made something by then, ``drop`` is called with it.

    :raises NoThreadError: the system starts no more threads
    """
    call = _Call(function, drop)
    context = copy_context()
    context.run(_forget_event_loop)
    thread = threading.Thread(
        target=context.run, args=(call.run,), name="anyio_connect connect", daemon=True
    )
    try:
        try:
            thread.start()
        except RuntimeError as exc:
            raise NoThreadError(str(exc)) from exc
        call.over.wait()
        thread.join()
        return call.result()
    except BaseException:
        if call.cancel():
            call.over.wait()
            thread.join()
        call.drop()
        raise


def _forget_event_loop() -> None:
    """Have AnyIO know of no event loop: this context may be that of a task."""
    with suppress(ImportError):  # AnyIO can do without
        from sniffio import current_async_library_cvar

        current_async_library_cvar.set(None)


class _Call(Generic[T]):
    """One call, what came of it, and how to cancel it."""

    def __init__(self, function: Callable[[], Awaitable[T]], drop: Callable[[T], object]) -> None:
        self._function = function
        self._drop = drop
        self._made: list[T] = []
        self._error: BaseException | None = None
        self._lock = threading.Lock()  # for the two below
        self._cancel: Callable[[], None] | None = None  # once it has begun
        self._given_up = False
        self.over = threading.Event()

    # --- in its own thread

    def run(self) -> None:
        import asyncio

        # Not the default one: on Windows it waits for sockets in yet another thread.
        options = {"loop_factory": asyncio.SelectorEventLoop}
        try:
            anyio.run(self._main, backend="asyncio", backend_options=options)
        except BaseException as exc:  # noqa: BLE001  # it is raised in the thread that waits
            traceback = exc.__traceback__
            self._error = exc.with_traceback(traceback and traceback.tb_next)
            del traceback
        finally:
            self.over.set()

    async def _main(self) -> None:
        with anyio.CancelScope() as scope:
            with self._lock:
                if self._given_up:
                    return
                self._cancel = from_any_thread(scope.cancel)
            self._made.append(await self._function())

    # --- in the thread that waits

    def result(self) -> T:
        error, self._error = self._error, None
        if error is None:
            return self._made.pop()
        try:
            raise error
        finally:
            del error  # whose traceback has this frame

    def cancel(self) -> bool:
        """Have it end; False: it had not begun, and will not."""
        with self._lock:
            self._given_up = True
            cancel = self._cancel
        if cancel is None:
            return False
        with suppress(RuntimeError):  # its event loop has ended
            cancel()
        return True

    def drop(self) -> None:
        """Nobody wants what came of it."""
        while self._made:
            self._drop(self._made.pop())
