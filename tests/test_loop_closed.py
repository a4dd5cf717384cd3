"""An event loop that is closed while a task waits for a socket: what later calls do.

``asyncio.run()`` and trio cancel all tasks first. A loop of asyncio may be closed without that.
"""

from __future__ import annotations

import asyncio
import gc
import select
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import pytest
import trio

from anyio_connect import BrokenError, ClosedError, Socket, _watch, connect
from conftest import BACKENDS
from support.names import Names
from support.peers import Listener
from support.remotes import MemoryStream
from support.sockets import BIG, arrived, blocked_send, needs_poll
from support.turns import all_blocked

NewLoop = Callable[[], asyncio.AbstractEventLoop]


#: Not the names of the backends: the mutants are tried without the tests that have those.
NAMES = {"asyncio": "stdlib", "asyncio-eager": "eager", "uvloop": "libuv"}


@pytest.fixture(
    params=[
        pytest.param(*param.values, id=NAMES[str(param.id)], marks=param.marks)
        for param in BACKENDS
        if param.id in NAMES
    ]
)
def new_loop(request: pytest.FixtureRequest) -> Iterator[NewLoop]:
    """Make a loop of asyncio or of uvloop."""
    yield request.param[1].get("loop_factory", asyncio.new_event_loop)
    gc.collect()  # loops have cycles


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener(receive_buffer=4096)
    yield listener
    for peer in listener.peers:
        peer.sock.close()
    listener.sock.close()


Call = Callable[[Socket], Awaitable[object]]


async def receive(socket: Socket) -> None:
    await socket.receive()


async def send(socket: Socket) -> None:
    await socket.send(bytes(BIG))


async def end(socket: Socket) -> None:
    await socket.writable.aclose()


async def opened(socket: Socket) -> None:
    await socket.opened


async def closed(socket: Socket) -> None:
    await socket.closed


async def close(socket: Socket) -> None:
    await socket.close()


async def close_unacknowledged(socket: Socket) -> None:
    await socket.send(bytes(300_000))
    await socket.close()


@contextmanager
def left_waiting(socket: Socket, *calls: Call, new_loop: NewLoop) -> Iterator[Callable[[], None]]:
    """Let a task wait in each of these calls, and close its event loop.

    Yields a function that frees the tasks, as the garbage collector does sooner or later.
    """
    loop, tasks = new_loop(), list[asyncio.Task[object]]()
    watchers: list[Any] = []

    async def begin() -> None:
        if opened not in calls:
            await socket.opened
        for call in calls:
            coroutine: Any = call(socket)
            tasks.append(asyncio.get_running_loop().create_task(coroutine))
            await all_blocked()
        watchers.append(_watch._watcher.get(None))

    def free() -> None:
        while tasks:
            task: Any = tasks.pop()
            task._log_destroy_pending = False
            with suppress(RuntimeError):  # AnyIO's scopes complain
                task.get_coro().close()

    loop.run_until_complete(begin())
    loop.close()
    del loop
    assert not any(task.done() for task in tasks)
    yield free
    free()
    assert all(watcher is None or watcher._poller is None for watcher in watchers)


def run(new_loop: NewLoop, call: Coroutine[Any, Any, None]) -> None:
    """Run a call in a new event loop. It may not wait for long."""

    async def limited() -> None:
        with anyio.fail_after(10):
            await call

    loop = new_loop()
    try:
        loop.run_until_complete(limited())
    finally:
        loop.close()


WAITING = [
    pytest.param((receive,), id="receive"),
    pytest.param((send,), id="send"),
    pytest.param((send, end), id="end after a send"),
    pytest.param((send, close), id="close after a send"),
    pytest.param((receive, send, closed), id="all"),
    pytest.param(
        (close_unacknowledged,),
        id="close",
        marks=pytest.mark.skipif(
            sys.platform != "linux", reason="only on Linux close() waits for the acknowledgement"
        ),
    ),
]
each_waiting = pytest.mark.parametrize("calls", WAITING)


@each_waiting
@pytest.mark.parametrize("last", ["close", "abort", "writable.aclose", "aclose_forcefully"])
def test_the_socket_can_be_closed(
    last: str, calls: tuple[Call, ...], new_loop: NewLoop, listener: Listener
) -> None:
    async def end_it() -> None:
        match last:
            case "close":
                await socket.close()
            case "abort":
                await socket.writable.abort()
            case "writable.aclose":
                await socket.writable.aclose()
            case _:
                await anyio.aclose_forcefully(socket)
        await socket.close()
        assert socket.closed.done()

    socket = connect(listener.address)
    with left_waiting(socket, *calls, new_loop=new_loop):
        run(new_loop, end_it())


@pytest.mark.parametrize(
    "calls", [(receive,), (send,), (receive, send, closed)], ids=["receive", "send", "all"]
)
def test_the_socket_can_be_closed_after_the_tasks_were_collected(
    calls: tuple[Call, ...], new_loop: NewLoop, listener: Listener
) -> None:
    async def end_it() -> None:
        await socket.close()
        assert socket.closed.done()

    socket = connect(listener.address)
    with left_waiting(socket, *calls, new_loop=new_loop) as free:
        free()
        run(new_loop, end_it())


@each_waiting
def test_a_call_that_would_wait_for_that_task_raises_an_error(
    calls: tuple[Call, ...], new_loop: NewLoop, listener: Listener
) -> None:
    async def use() -> None:
        error = BrokenError if calls[-1] in (receive, send, closed) else ClosedError
        with pytest.raises(error):
            await calls[0](socket)
        with pytest.raises(BrokenError, match="event loop was closed while a task waited"):
            await socket.closed
        await socket.close()

    socket = connect(listener.address)
    with left_waiting(socket, *calls, new_loop=new_loop):
        run(new_loop, use())


@pytest.mark.parametrize("call", [opened, closed, receive, send, close], ids=lambda f: f.__name__)
def test_a_socket_that_was_being_opened_fails(call: Call, new_loop: NewLoop, names: Names) -> None:
    async def use() -> None:
        if call is close:
            await socket.close()
        else:
            with pytest.raises(BrokenError, match="event loop was closed while a task waited"):
                await call(socket)
        for future in (socket.opened, socket.closed):
            assert isinstance(future.exception(), BrokenError)

    names["host.test"] = "silence"
    socket = connect("host.test:1")
    with left_waiting(socket, opened, new_loop=new_loop):
        run(new_loop, use())


def test_a_socket_for_whose_end_a_task_waited_goes_on(
    new_loop: NewLoop, listener: Listener
) -> None:
    async def use() -> None:
        peer = await listener.accept()
        await socket.send(b"hello")
        assert await peer.receive() == b"hello"
        peer.close()
        await socket.closed
        await socket.close()

    socket = connect(listener.address)
    with left_waiting(socket, closed, new_loop=new_loop):
        run(new_loop, use())


def test_tasks_that_are_collected_later_do_not_disturb_others(
    new_loop: NewLoop, listener: Listener
) -> None:
    async def use() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(closed, socket)
            await all_blocked()
            free()
            group.start_soon(closed, socket)
            await all_blocked()
            await socket.close()

    socket = connect(listener.address)
    with left_waiting(socket, closed, new_loop=new_loop) as free:
        run(new_loop, use())


@needs_poll
def test_a_reset_is_reported_though_a_task_waited_for_the_end(
    new_loop: NewLoop, listener: Listener
) -> None:
    async def use() -> None:
        (await listener.accept()).rst()
        arrived(socket, select.POLLERR)
        with pytest.raises(BrokenError, match="reset"):
            await socket.send(b"x")
        await socket.close()

    socket = connect(listener.address)
    with left_waiting(socket, closed, new_loop=new_loop):
        run(new_loop, use())


@contextmanager
def over_memory() -> Iterator[Socket]:
    to_us, from_them = anyio.create_memory_object_stream[bytes]()
    to_them, from_us = anyio.create_memory_object_stream[bytes]()
    with to_us, from_us:
        yield Socket.wrap(MemoryStream(to_them, from_them))


@pytest.mark.parametrize("call", [receive, send], ids=["receive", "send"])
def test_a_socket_over_another_stream_can_be_closed(call: Call, new_loop: NewLoop) -> None:
    async def use() -> None:
        await socket.close()
        assert isinstance(socket.closed.exception(), BrokenError)

    with over_memory() as socket, left_waiting(socket, call, new_loop=new_loop):
        run(new_loop, use())


def test_calls_in_the_new_event_loop_are_not_forgotten(new_loop: NewLoop) -> None:
    async def use() -> None:
        await socket.readable.aclose()
        async with anyio.create_task_group() as group:
            group.start_soon(blocked_send, socket, outcome)
            await all_blocked()
            await socket.readable.aclose()
            assert not socket.closed.done()
            await socket.writable.abort("enough")
        assert "enough" in str(outcome[0])

    outcome: list[BaseException | None] = []
    with over_memory() as socket, left_waiting(socket, closed, new_loop=new_loop):
        run(new_loop, use())


def test_trio_cancels_the_tasks_first(listener: Listener) -> None:
    async def leave() -> None:
        await socket.opened
        async with trio.open_nursery() as nursery:
            for call in (receive, send, closed):
                nursery.start_soon(call, socket)
            await all_blocked()
            nursery.cancel_scope.cancel()

    async def use() -> None:
        with pytest.raises(BrokenError, match="cut short"):
            await socket.send(b"x")
        await socket.close()

    socket = connect(listener.address)
    trio.run(leave)
    trio.run(use)
    assert isinstance(socket.closed.exception(), BrokenError)


def test_a_socket_that_was_used_on_trio_can_be_closed_on_asyncio(listener: Listener) -> None:
    socket = connect(listener.address)

    async def use() -> None:
        await socket.opened
        await socket.send(b"x")

    trio.run(use)
    asyncio.run(socket.close())
    assert socket.closed.exception() is None
