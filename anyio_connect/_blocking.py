"""Run an asynchronous function for a thread that has no event loop. The thread waits for it."""

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

#: On Windows, a signal does not interrupt a wait. So a long wait consists of waits of this length,
#: in seconds.
_INTERRUPTIBLE = 0.5


def event_loop_runs() -> bool:
    """Whether an event loop is running in this thread. Waiting would block it."""
    import asyncio

    try:
        asyncio.get_running_loop()  # works in callbacks too, outside of tasks
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

    The function runs in a new event loop in a new thread. So the calling thread gets no event
    loop, and its signal handlers are not changed. The function's context (``contextvars``) is a
    copy of the calling thread's.

    A signal handler may raise an exception in the calling thread meanwhile, such as
    KeyboardInterrupt. Then the function is cancelled, and the exception is raised after it has
    ended. If the function returns a result nevertheless, ``drop`` is called with it.

    :raises NoThreadError: the system cannot start another thread
    :raises OSError: there are no descriptors for another event loop
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
    """Make AnyIO forget the running event loop: the context may be a copy of a task's."""
    with suppress(ImportError):  # AnyIO works without sniffio
        from sniffio import current_async_library_cvar

        current_async_library_cvar.set(None)


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that can wait for sockets. The default on Windows needs a thread."""
    import asyncio
    import selectors

    selector = selectors.DefaultSelector()
    try:
        return asyncio.SelectorEventLoop(selector)
    except BaseException:  # if there are no more descriptors, asyncio leaves the selector open
        selector.close()
        raise


class _Call(Generic[T]):
    """One call, its result, and the way to cancel it."""

    def __init__(self, function: Callable[[], Awaitable[T]], drop: Callable[[T], object]) -> None:
        self._function = function
        self._drop = drop
        self._made: list[T] = []
        self._error: BaseException | None = None
        self._lock = threading.Lock()  # protects the next two
        self._cancel: Callable[[], None] | None = None  # set once the call has begun
        self._given_up = False
        self.over = threading.Event()

    # --- in its own thread

    def run(self) -> None:
        try:
            anyio.run(self._main, backend="asyncio", backend_options={"loop_factory": _new_loop})
        except BaseException as exc:  # noqa: BLE001  # the event loop could not start
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
            except Exception as exc:  # noqa: BLE001  # result() raises it in the waiting thread
                # It must not pass through the event loop, whose frames and task would keep it
                # alive.
                self._error = exc

    # --- in the waiting thread

    def result(self) -> T:
        error, self._error = self._error, None
        if error is None:
            return self._made.pop()
        try:
            raise error
        finally:
            del error  # breaks the cycle of the error, its traceback and this frame

    def cancel(self) -> bool:
        """Cancel the call. Return False if it had not begun: then it never will."""
        with self._lock:
            self._given_up = True
            cancel = self._cancel
        if cancel is None:
            return False
        with suppress(RuntimeError):  # its event loop has ended
            cancel()
        return True

    def drop(self) -> None:
        """Call ``drop`` with the result, if there is one."""
        while self._made:
            self._drop(self._made.pop())
