"""Our own threads: they do not depend on the user's threads, and no exit waits for them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyio_connect import _threads
from anyio_connect._threads import NoThreadError, Threads


class Blocked:
    """Calls that block until the test lets them go on."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = threading.Semaphore(0)
        self._changed = threading.Condition()
        self._go_on = False

    def __call__(self) -> str:
        with self._changed:
            self.begun += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._go_on, 60)
        self.ended.release()
        return threading.current_thread().name

    def wait_begun(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.begun >= count, 60)

    def go_on(self) -> None:
        with self._changed:
            self._go_on = True
            self._changed.notify_all()


@contextmanager
def blocked() -> Iterator[Blocked]:
    call = Blocked()
    try:
        yield call
    finally:
        call.go_on()
        for _ in range(call.begun):  # so that the next test finds no thread of ours
            assert call.ended.acquire(timeout=60)


async def begun(call: Blocked, count: int) -> None:
    """Wait until so many calls have begun, letting other tasks run."""
    while call.begun < count:
        await checkpoint()


async def test_a_call_runs_in_a_daemon_thread_of_ours() -> None:
    threads = Threads("test", 2)
    thread = await threads.run(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert thread.name == "anyio_connect test"


async def test_the_traceback_of_an_error_has_no_frame_of_our_thread() -> None:
    threads = Threads("test", 1)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await threads.run(fail)
    # The traceback ends with the frame of the call, and has none of our thread's own frames.
    names = [entry.name for entry in caught.traceback]
    assert names[-1] == "fail"
    assert "run" in names[-3:]
    assert "_work" not in names

    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        await threads.run(stop)


async def test_more_calls_than_threads_take_turns_in_order() -> None:
    threads = Threads("test", 1)
    order: list[int] = []

    async def call(number: int) -> None:
        await threads.run(lambda: order.append(number))

    with blocked() as first:
        async with anyio.create_task_group() as group:
            group.start_soon(threads.run, first)
            await begun(first, 1)
            for number in range(20):
                group.start_soon(call, number)
                await checkpoint()
            for _ in range(10):
                await checkpoint()
            assert not order
            first.go_on()
    assert order == [*range(20)]


async def test_a_call_that_is_cancelled_in_the_queue_never_runs() -> None:
    threads = Threads("test", 1)
    ran: list[int] = []
    with blocked() as first:
        async with anyio.create_task_group() as group:
            group.start_soon(threads.run, first)
            await begun(first, 1)
            with anyio.move_on_after(0.01) as scope:
                await threads.run(lambda: ran.append(1))
            assert scope.cancelled_caught
            group.start_soon(threads.run, lambda: ran.append(2))
            first.go_on()
    assert ran == [2]


async def test_a_cancelled_call_is_abandoned_at_once() -> None:
    threads = Threads("test", 2)
    with blocked() as call:
        with anyio.move_on_after(0.01) as scope:
            await threads.run(call)
        assert scope.cancelled_caught
        assert await threads.run(lambda: 7) == 7


async def test_a_call_can_be_cancelled_at_any_moment() -> None:
    for switches in range(20):
        threads = Threads("test", 1)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def cancel(scope: anyio.CancelScope, switches: int) -> None:
                    for _ in range(switches):
                        await checkpoint()
                    scope.cancel()

                group.start_soon(cancel, scope, switches)
                assert await threads.run(lambda: 7) == 7
        assert await threads.run(lambda: 8) == 8  # its only thread is free again


async def test_when_all_threads_hang_a_call_fails_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_threads, "_HANGS_ABANDONED", 0)
    monkeypatch.setattr(_threads, "_HANGS", 3600)
    threads = Threads("test", 3)
    with blocked() as call:
        for _ in range(3):
            with anyio.move_on_after(0.01):
                await threads.run(call)
        with anyio.fail_after(10), pytest.raises(NoThreadError, match=r"all 3 .* test hang"):
            await threads.run(lambda: 7)
    while True:  # until a thread has returned from its call
        try:
            assert await threads.run(lambda: 7) == 7
        except NoThreadError:
            await anyio.sleep(0.001)
        else:
            break


async def test_a_waiting_call_fails_once_all_threads_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_threads, "_HANGS", 0.05)
    threads = Threads("test", 1)
    with blocked() as call:
        async with anyio.create_task_group() as group:
            group.start_soon(threads.run, call)
            await begun(call, 1)
            with pytest.raises(NoThreadError, match="hang"):
                await threads.run(lambda: 7)
            call.go_on()


async def test_many_short_calls_are_no_hang() -> None:
    threads = Threads("test", 4)
    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(threads.run, lambda: time.sleep(0.001))


async def test_a_system_that_starts_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    threads = Threads("test", 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        with pytest.raises(NoThreadError, match="can't start new thread"):
            await threads.run(lambda: 7)
    assert await threads.run(lambda: 7) == 7


def test_the_end_of_a_loop_does_not_wait_for_a_call_that_hangs(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    """The result that comes after the end of the loop is not an error."""
    name, options = anyio_backend
    threads = Threads("test", 2)

    async def main(call: Blocked) -> None:
        with anyio.move_on_after(0.01):
            await threads.run(call)

    with blocked() as call:
        anyio.run(main, call, backend=name, backend_options=options)
        call.wait_begun(1)

        async def left_behind() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(threads.run, call)
                await begun(call, 2)
                raise SystemExit

        with pytest.raises(BaseException):  # noqa: B017  # on trio, in an exception group
            anyio.run(left_behind, backend=name, backend_options=options)

    async def again() -> None:
        assert await threads.run(lambda: 7) == 7

    anyio.run(again, backend=name, backend_options=options)


def test_several_loops_at_once_get_their_own_results(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    name, options = anyio_backend
    threads = Threads("test", 2)
    got: list[int] = []

    async def main(number: int) -> None:
        for _ in range(20):
            assert await threads.run(lambda: number) == number
        got.append(number)

    def loop(number: int) -> None:
        anyio.run(main, number, backend=name, backend_options=options)

    loops = [threading.Thread(target=loop, args=(number,)) for number in range(4)]
    for each in loops:
        each.start()
    for each in loops:
        each.join(60)
    assert sorted(got) == [0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_all_its_threads() -> None:
    threads = Threads("test", 1)

    async def main(call: Blocked) -> None:
        with anyio.move_on_after(0.01):
            await threads.run(call)

    async def in_child() -> None:
        with anyio.fail_after(30):
            assert await threads.run(lambda: 7) == 7

    with blocked() as call:
        anyio.run(main, call)
        call.wait_begun(1)
        with threads._lock:  # as if another thread held it at this moment
            child = os.fork()
            if child == 0:
                try:
                    anyio.run(in_child)
                except BaseException:  # noqa: BLE001
                    os._exit(1)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.slow
def test_the_end_of_the_process_does_not_wait_for_a_lookup() -> None:
    program = """if True:
        import socket, threading, anyio
        from anyio_connect import SocketError, connect

        begun, real = threading.Event(), socket.getaddrinfo

        def silent(*args, flags=0, **options):
            if flags:  # the address as a number, which takes no DNS
                return real(*args, flags=flags, **options)
            begun.set()
            threading.Event().wait()

        async def main():
            socket.getaddrinfo = silent
            try:
                await connect("name.example:80", connect_timeout=0.01).opened
            except SocketError as error:
                assert begun.wait(30)
                print(type(error).__name__)

        for backend in "asyncio", "trio":
            anyio.run(main, backend=backend)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["ConnectTimeoutError"] * 2


async def test_a_call_does_not_wait_for_the_users_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anyio.to_thread.current_default_thread_limiter(), "total_tokens", 1)
    with blocked() as busy:
        async with anyio.create_task_group() as group:

            async def block() -> None:
                await anyio.to_thread.run_sync(busy)

            group.start_soon(block)
            await begun(busy, 1)
            assert await Threads("test", 1).run(lambda: 7) == 7
            busy.go_on()
