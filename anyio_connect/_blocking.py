"""Runs an asynchronous function for a thread that has no event loop, and has that wait for it."""

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

#: Windows does not interrupt a wait, so a long one is made of several, of so many seconds.
_INTERRUPTIBLE = 0.5


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
    """Have AnyIO know of no event loop: this context may be that of a task."""
    with suppress(ImportError):  # AnyIO can do without
        from sniffio import current_async_library_cvar

        current_async_library_cvar.set(None)


def _new_loop() -> asyncio.AbstractEventLoop:
    """An event loop of that kind also on Windows, whose own waits for sockets in yet a thread."""
    import asyncio
    import selectors

    selector = selectors.DefaultSelector()
    try:
        return asyncio.SelectorEventLoop(selector)
    except BaseException:  # asyncio leaves it open if it finds no descriptor for more
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
