"""Runs an asynchronous function for a thread that has no event loop, which waits for it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio
from anyio.lowlevel import current_token

from ._threads import NoThreadError, from_any_thread

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

#: Windows does not interrupt a wait. So a long wait is made of several, each of so many seconds.
_INTERRUPTIBLE = 0.5


def event_loop_runs() -> bool:
    """Whether an event loop runs in this thread, and would stand still."""
    import asyncio

    try:
        asyncio.get_running_loop()  # which works in callbacks too, where there is no task
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

    If something is raised in this thread meanwhile, as a rule KeyboardInterrupt by a signal
    handler, the function is cancelled, and that is raised when it has ended. If the function has
    returned something nevertheless, ``drop`` is called with it.

    :raises NoThreadError: the system starts no more threads
    :raises OSError: it has no descriptors for another event loop
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
        while not call.over.wait(_INTERRUPTIBLE):
            pass
        thread.join()
        return call.result()
    except BaseException:
        if call.cancel():
            call.over.wait()
            thread.join()
        call.drop()
        raise


def _forget_event_loop() -> None:
    """Make AnyIO forget which event loop runs: this context may be a copy of a task's."""
    with suppress(ImportError):  # AnyIO works without sniffio
        from sniffio import current_async_library_cvar

        current_async_library_cvar.set(None)


def _new_loop() -> asyncio.AbstractEventLoop:
    """A loop that waits for sockets by itself, on Windows too, where the default uses a thread."""
    import asyncio
    import selectors

    selector = selectors.DefaultSelector()
    try:
        return asyncio.SelectorEventLoop(selector)
    except BaseException:  # asyncio leaves the selector open if there is no descriptor for more
        selector.close()
        raise


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
        try:
            anyio.run(self._main, backend="asyncio", backend_options={"loop_factory": _new_loop})
        except BaseException as exc:  # noqa: BLE001  # the event loop did not begin
            self._error = exc
        finally:
            self.over.set()

    async def _main(self) -> None:
        with anyio.CancelScope() as scope:
            with self._lock:
                if self._given_up:
                    return
                self._cancel = from_any_thread(scope.cancel)
            try:
                self._made.append(await self._function())
            except Exception as exc:  # noqa: BLE001  # it is raised in the thread that waits
                # Not raised through the event loop, whose frames and task would keep it alive.
                self._error = exc

    # --- in the thread that waits

    def result(self) -> T:
        error, self._error = self._error, None
        if error is None:
            return self._made.pop()
        try:
            raise error
        finally:
            del error  # or its traceback would keep this frame, and this frame the error

    def cancel(self) -> bool:
        """Cancel the call; return False if it had not begun, and now never will."""
        with self._lock:
            self._given_up = True
            cancel = self._cancel
        if cancel is None:
            return False
        with suppress(RuntimeError):  # its event loop has ended
            cancel()
        return True

    def drop(self) -> None:
        """Drop the result, which nobody wants any more."""
        while self._made:
            self._drop(self._made.pop())
