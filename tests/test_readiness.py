"""How a socket waits, and how calls that need not wait share the event loop."""

from __future__ import annotations

import asyncio
import math
import select
import socket as stdlib
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import groupby
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import pytest
import trio
import trio.testing
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint, current_token

from anyio_connect import (
    WORKERS,
    BrokenError,
    ClosedError,
    Connector,
    Socket,
    SocketError,
    connect,
)
from anyio_connect._cancellation import IsDue, by_deadline, cancellation_due
from anyio_connect._on_asyncio import _CALL, LoopReadiness
from anyio_connect._readiness import TaskReadiness, _find_out, _OtherLoop
from anyio_connect._tcp import TCPTransport
from support.peers import Peer, listening
from support.sockets import (
    arrived,
    connected,
    dialled,
    needs_poll,
    once_waited,
    raw,
    use_up_the_turn,
)
from support.turns import all_blocked

#: The most calls in a row that may be counted for one task. The limit is 16, but a call of
#: another task in between counts only when it is done.
IN_A_ROW = 2 * 16


def transport_of(socket: Socket) -> TCPTransport:
    transport = socket._connection.transport
    assert isinstance(transport, TCPTransport)
    return transport


def small_buffers(socket: Socket, peer: Peer) -> None:
    raw(socket).setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 4096)
    peer.sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_RCVBUF, 4096)


# --- fairness


async def longest_row(*calls: Callable[[], Awaitable[object]], times: int) -> int:
    """Make each call in a task of its own, until one task has made it ``times`` times.

    Returns the most calls that a task has made in a row.
    """
    order: list[int] = []

    async def make(number: int, call: Callable[[], Awaitable[object]]) -> None:
        for _ in range(times):
            await call()
            order.append(number)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for number, call in enumerate(calls):
            group.start_soon(make, number, call)
    assert {*order} == {*range(len(calls))}
    return max(len([*row]) for _, row in groupby(order))


async def test_two_tasks_that_never_wait_share_the_loop() -> None:
    """The data for one task is here already, and there is room for what the other sends."""
    async with connected() as (one, feeder), connected() as (two, _):
        await feeder.send(bytes(20_000))
        arrived(one)
        assert await one.receive(1)  # from here on, the transport knows that there is more
        receive, send = partial(one.receive, 1), partial(two.send, b"x")
        assert await longest_row(receive, send, times=200) <= IN_A_ROW


async def test_one_task_with_many_sockets_shares_the_loop_too() -> None:
    async with connected() as (one, _), connected() as (two, _), connected() as (three, _):
        turn = iter([one, two, three] * 200)

        async def many() -> None:
            await next(turn).send(b"x")

        assert await longest_row(many, partial(anyio.sleep, 0), times=200) <= IN_A_ROW


async def test_calls_that_move_much_data_give_way_sooner() -> None:
    """It does not matter how much room the kernel has. On trio, each call gives way."""
    async with connected() as (socket, _):
        ready = transport_of(socket)._ready
        if isinstance(ready, LoopReadiness):
            for amount, most in ((1, 16), (1 << 16, 8), (1 << 19, 2)):
                use_up_the_turn()
                assert not ready.may_go_on(1)
                calls = 1  # the call that gives way
                while ready.may_go_on(amount):
                    calls += 1
                assert calls <= most


async def test_a_receive_is_charged_for_the_data_that_it_got() -> None:
    async with connected() as (socket, peer):
        transport, at_least = transport_of(socket), 100_000
        async with anyio.create_task_group() as group:
            group.start_soon(peer.send, bytes(2 * at_least))
            await all_blocked()
            arrived(socket)
            while len(raw(socket).recv(2 * at_least, stdlib.MSG_PEEK)) < at_least:
                await checkpoint()
        transport._drained = False  # so that the receive asks the kernel at once
        ready = transport._ready
        if isinstance(ready, LoopReadiness):
            use_up_the_turn()
            assert not ready.may_go_on(1)
            before = ready._budget.left
            got = transport.start_receive(2 * at_least)
            assert isinstance(got, bytes)
            assert len(got) >= at_least
            assert before - ready._budget.left >= len(got) + _CALL


def _spoil(_: stdlib.socket) -> None:
    raise OSError("no such device")


OPENING: dict[str, Callable[[], Awaitable[object]]] = {
    "refused by the policy": lambda: Connector(WORKERS).connect("127.0.0.1:9").opened,
    "spoiled": lambda: Connector(prepare=_spoil).connect("127.0.0.1:9").opened,
    "spoiled, a socket": lambda: Connector(prepare=_spoil).connect_socket("127.0.0.1:9"),
    "resolved": lambda: Connector().resolve("127.0.0.1", 9),
    "not resolved": lambda: Connector(WORKERS).resolve("127.0.0.1", 9),
}


@pytest.mark.parametrize("how", OPENING)
async def test_opening_that_succeeds_or_fails_at_once_lets_other_tasks_run(how: str) -> None:
    """Otherwise a task that tries again and again would block all others, and its own timeout."""

    async def try_it() -> None:
        with suppress(SocketError):
            await OPENING[how]()

    assert await longest_row(try_it, partial(anyio.sleep, 0), times=100) <= IN_A_ROW


async def test_wrapping_lets_other_tasks_run() -> None:
    wrapped = [Socket.wrap(Still()) for _ in range(100)]
    turn = iter(wrapped)

    async def opened() -> None:
        await next(turn).opened

    assert await longest_row(opened, partial(anyio.sleep, 0), times=100) <= IN_A_ROW
    for socket in wrapped:
        await socket.close()


class Still(ByteStream):
    """A stream that does nothing."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        raise anyio.EndOfStream

    async def send(self, item: bytes) -> None: ...

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("name", ["receive", "send"])
async def test_trio_gives_way_each_time(name: str) -> None:
    async with connected() as (socket, peer):
        if not trio.lowlevel.in_trio_run():
            return
        await peer.send(bytes(100))
        arrived(socket)
        await socket.receive(1)
        for _ in range(5):
            with trio.testing.assert_checkpoints():
                await (socket.receive(1) if name == "receive" else socket.send(b"x"))


async def test_a_cancellation_that_is_due_is_raised_each_time() -> None:
    """It is raised although the call before has just given way, and this one need not."""
    async with connected() as (socket, peer):
        await peer.send(bytes(100))
        arrived(socket)
        await socket.receive(1)
        use_up_the_turn()
        await socket.send(b"x")
        with anyio.CancelScope() as scope:
            scope.cancel()
            for call in (partial(socket.send, b"never"), partial(socket.receive, 1)) * 3:
                with pytest.raises(anyio.get_cancelled_exc_class()):
                    await call()
        assert len(await socket.receive()) == 99
        await socket.send_eof()
        assert await peer.receive_all() == b"x"


async def test_a_receive_that_begins_cancelled_leaves_data_that_arrives_in_its_turn() -> None:
    async with connected() as (socket, peer):
        await once_waited(socket, peer)
        scope = anyio.CancelScope()
        scope.cancel()

        async def receive() -> None:
            with scope:
                await socket.receive()
                pytest.fail("data came before the cancellation")

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            peer.sock.send(b"second")
            arrived(socket)
        assert scope.cancelled_caught
        assert await socket.receive() == b"second"


async def test_a_receive_that_begins_cancelled_leaves_data_that_the_loop_has_not_reported() -> (
    None
):
    async with connected() as (socket, peer):
        await once_waited(socket, peer)
        with anyio.CancelScope() as scope:
            peer.sock.send(b"second")
            arrived(socket)
            await checkpoint()  # this task is ready before the loop looks at sockets
            scope.cancel()
            await socket.receive()
            pytest.fail("data came before the cancellation")
        assert await socket.receive() == b"second"


async def test_a_cancellation_comes_before_data_for_a_task_that_was_woken() -> None:
    """In the same turn, another task receives something, and cancels this task."""
    async with connected() as (socket, peer), connected() as (other, hint):
        scope = anyio.CancelScope()
        got: list[bytes] = []

        async def receive() -> None:
            with scope:
                got.append(await socket.receive())

        async def cancel() -> None:
            await other.receive()
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            group.start_soon(cancel)
            await all_blocked()
            hint.sock.send(b"x")
            peer.sock.send(b"data")
            arrived(socket)
            arrived(other)
        # Nothing is lost, whichever task ran first.
        assert got == ([] if scope.cancelled_caught else [b"data"])
        if not got:
            assert await socket.receive() == b"data"


# --- whether a cancellation is due


def on_asyncio() -> tuple[Any, asyncio.AbstractEventLoop] | None:
    """AnyIO's backend and the loop; None on trio, which raises a cancellation by itself."""
    token = current_token()
    loop = token.native_token
    return (token.backend_class, loop) if isinstance(loop, asyncio.AbstractEventLoop) else None


async def answers(*ways: IsDue) -> list[bool]:
    """What each way answers for a task in cancel scopes of many kinds."""
    loop = asyncio.get_running_loop()
    found: list[bool] = []

    def look() -> None:
        found.extend(way(loop) for way in ways)

    async def ask() -> None:
        look()

    await ask()
    with anyio.CancelScope() as outer, anyio.CancelScope():
        await ask()
        with anyio.CancelScope(shield=True) as shield, anyio.CancelScope() as inner:
            outer.cancel()
            await ask()  # the shield keeps the cancellation off
            shield.shield = False
            await ask()
            shield.shield = True
            inner.cancel()
            await ask()
        await ask()
    await ask()
    with anyio.CancelScope(deadline=-math.inf):
        await ask()
    with anyio.CancelScope(deadline=math.inf):
        await ask()
    ran_callback = anyio.Event()
    loop.call_soon(look)  # in no task
    loop.call_soon(ran_callback.set)
    await ran_callback.wait()

    async def unknown_to_anyio() -> None:
        look()

    await asyncio.ensure_future(unknown_to_anyio())
    return found


EXPECTED = [False, False, False, True, True, True, False, True, False, False, False]


async def test_each_way_finds_a_cancellation_that_is_due() -> None:
    if (here := on_asyncio()) is not None:
        backend, _ = here
        both = cancellation_due(backend), by_deadline(backend)
        assert await answers(*both) == [due for due in EXPECTED for _ in both]


async def test_anyio_has_the_private_names_that_we_know() -> None:
    """If not, calls take a microsecond longer, and ``_cancellation`` needs the new names."""
    if (here := on_asyncio()) is not None:
        backend, _ = here
        assert cancellation_due(backend).__qualname__ != by_deadline(backend).__qualname__


class Elsewhere:
    """A backend of AnyIO that has other private names."""

    @staticmethod
    def current_effective_deadline() -> float:
        return -math.inf


KNOWN = {
    "_task_states": WeakKeyDictionary[Any, Any](),
    "TaskState": SimpleNamespace(cancel_scope=None),
    "CancelScope": SimpleNamespace(_cancel_called=0, _shield=0, _parent_scope=0),
}


@pytest.mark.parametrize(
    "changed",
    [
        {"_task_states": {}},
        {"TaskState": SimpleNamespace()},
        {"CancelScope": SimpleNamespace(_cancel_called=0, _shield=0)},
        dict.fromkeys(KNOWN),
        None,
    ],
)
def test_other_private_names_of_anyio_do_no_harm(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any] | None
) -> None:
    """``changed`` replaces names in AnyIO's module; None means that there is no such module."""
    backend = type("Backend", (Elsewhere,), {"__module__": "anyio_of_tomorrow"})
    module: Any = SimpleNamespace(**KNOWN | (changed or {}))
    if changed is not None:
        monkeypatch.setitem(sys.modules, "anyio_of_tomorrow", module)
    loop = asyncio.new_event_loop()
    try:
        assert cancellation_due(backend)(loop)  # the answer of the public function
        vars(module).update(KNOWN)
        monkeypatch.setitem(sys.modules, "anyio_of_tomorrow", module)
        cancellation_due.cache_clear()
        assert not cancellation_due(backend)(loop)
    finally:
        loop.close()
        cancellation_due.cache_clear()


def test_a_due_cancellation_is_found_in_a_second_event_loop() -> None:
    async def open_it(port: int) -> Socket:
        socket = connect(("127.0.0.1", port))
        await socket.opened
        return socket

    async def be_cancelled(socket: Socket) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await socket.receive(1)
        assert scope.cancelled_caught
        assert await socket.receive() == b"all of it"
        await socket.close()

    with stdlib.create_server(("127.0.0.1", 0)) as listener:
        socket = asyncio.run(open_it(listener.getsockname()[1]))
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"all of it")
            arrived(socket)
            transport_of(socket)._drained = False  # as if more had come than was asked for
            asyncio.run(be_cancelled(socket))


async def test_the_peers_end_is_received_after_a_send_that_met_a_reset() -> None:
    """The send waits for room, and uvloop stops watching a socket that has an error."""
    async with listening() as listener:
        transport = dialled(listener)
        (await listener.accept()).close()
        with pytest.raises(anyio.BrokenResourceError):
            await transport.send(bytes(10_000_000))
        with pytest.raises(anyio.EndOfStream):
            await transport.receive()
        await transport.aclose()


# --- waiting


async def test_a_cancelled_wait_for_room_does_not_disturb_a_later_wait() -> None:
    async with connected(receive_buffer=4096) as (socket, peer):
        small_buffers(socket, peer)
        ready = transport_of(socket)._ready
        while transport_of(socket).send_nowait(b"x" * 65536):
            pass
        first = anyio.CancelScope()

        async def wait_in_vain() -> None:
            with first:
                await ready.writable()

        async with anyio.create_task_group() as group:
            group.start_soon(wait_in_vain)
            await all_blocked()
            first.cancel()
            group.start_soon(peer.receive_all)
            with anyio.fail_after(10):
                await ready.writable()
            await socket.close()


async def test_data_for_a_natively_cancelled_task_goes_to_the_next_receive() -> None:
    """``Task.cancel()`` may come after the data and before the task runs; AnyIO's may not."""
    if trio.lowlevel.in_trio_run():
        return  # trio has no native cancellation
    async with connected() as (socket, peer):
        transport = transport_of(socket)
        task = asyncio.ensure_future(socket.receive(4))
        await all_blocked()
        await peer.send(b"precious")
        while not transport._arrived:
            await checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport.unread()
        assert await socket.receive(3) == b"pre"
        assert await socket.receive() == b"c"
        assert await socket.receive() == b"ious"


async def readable(sock: stdlib.socket) -> None:
    await anyio.wait_readable(sock)


async def test_other_code_can_wait_for_the_kernels_socket() -> None:
    """It can, although the last receive has left the socket registered with the event loop."""
    async with connected() as (socket, peer):
        async with anyio.create_task_group() as group:
            group.start_soon(peer.send, b"one")
            assert await socket.receive() == b"one"
        shared = socket.extra(SocketAttribute.raw_socket)
        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(readable, shared)
                await all_blocked()
                await peer.send(b"two")
            assert await socket.receive() == b"two"
            async with anyio.create_task_group() as group:
                group.start_soon(socket.receive)
                await all_blocked()
                await peer.send(b"three")


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    return None if trio.lowlevel.in_trio_run() else asyncio.get_running_loop()


async def test_looking_at_the_kernels_socket_costs_nothing_afterwards() -> None:
    """The socket stays registered with the event loop, like any other."""
    async with connected() as (socket, peer):
        sock = socket.extra(SocketAttribute.raw_socket)
        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(peer.send, b"x")
                assert await socket.receive() == b"x"
        assert sock is raw(socket)
        ready = transport_of(socket)._ready
        if isinstance(ready, LoopReadiness):
            assert ready._live(ready._reader) is not None


async def test_other_code_may_register_the_socket_while_a_task_receives() -> None:
    """The loop then reports to that code alone. We notice it, wait otherwise, and lose nothing."""
    async with connected() as (socket, peer):
        loop = asyncio_loop()
        if loop is None:
            return  # trio refuses a second waiting task
        number = socket.extra(SocketAttribute.raw_socket).fileno()
        told = anyio.Event()
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await socket.receive())

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await all_blocked()
            loop.add_reader(number, told.set)
            await all_blocked()
            await peer.send(b"one")
            with anyio.fail_after(10):
                await told.wait()
        assert received == [b"one"]
        # Later receives do not replace that registration either.
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await all_blocked()
            await peer.send(b"two")
        assert received == [b"one", b"two"]
        assert loop.remove_reader(number) is not False  # uvloop does not say
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await all_blocked()
            await peer.send(b"three")
        assert received[2:] == [b"three"]


async def test_other_code_may_register_the_socket_while_a_task_sends() -> None:
    async with connected(receive_buffer=4096) as (socket, peer):
        loop = asyncio_loop()
        if loop is None:
            return
        small_buffers(socket, peer)
        number = raw(socket).fileno()
        told = anyio.Event()
        data = bytes(100_000)
        async with anyio.create_task_group() as group:
            group.start_soon(socket.send, data)
            await all_blocked()
            loop.add_writer(number, told.set)
            with anyio.fail_after(20):
                assert await peer.receive_exactly(len(data)) == data
        assert told.is_set()
        assert loop.remove_writer(number) is not False  # uvloop does not say


@pytest.mark.parametrize("how", ["close", "stop reading", "cancel"])
async def test_a_task_that_waits_by_other_means_can_be_woken(how: str) -> None:
    async with connected(half_open=True) as (socket, peer):
        loop = asyncio_loop()
        if loop is None:
            return
        number = raw(socket).fileno()
        scope = anyio.CancelScope()

        async def receive() -> None:
            with scope:
                if how == "cancel":
                    await socket.receive()
                else:
                    with pytest.raises(ClosedError):
                        await socket.receive()

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await all_blocked()
            loop.add_reader(number, int)
            await all_blocked()
            assert loop.remove_reader(number) is not False  # uvloop does not say
            if how == "close":
                await socket.close()
            elif how == "stop reading":
                await socket.readable.aclose()
            else:
                scope.cancel()
        if how != "close":
            await socket.send(b"x")
            assert await peer.receive() == b"x"


async def test_other_code_may_register_the_socket_where_data_cannot_be_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kqueue is asked for ends and errors only, and Windows has nothing like it."""
    if asyncio_loop() is None:
        return
    monkeypatch.setattr("anyio_connect._on_asyncio.CAN_WATCH_ALL", False)
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await socket.receive())

    async with connected() as (socket, peer), anyio.create_task_group() as group:
        group.start_soon(receive)
        await all_blocked()
        group.start_soon(readable, raw(socket))
        await all_blocked()
        with anyio.fail_after(10):
            await peer.send(b"data")
            while not got:
                await checkpoint()
    assert got == [b"data"]


async def test_data_that_is_left_does_not_keep_the_loop_busy() -> None:
    async with connected() as (socket, peer):
        async with anyio.create_task_group() as group:
            group.start_soon(socket.receive, 1)
            await all_blocked()
            await peer.send(b"more than one")
        # This would never return if the loop reported the data that is left again and again.
        await all_blocked()
        if not trio.lowlevel.in_trio_run():
            loop = asyncio.get_running_loop()
            await checkpoint()
            assert not loop.remove_reader(raw(socket).fileno())


@needs_poll
async def test_a_reset_that_came_while_no_task_waited_is_reported() -> None:
    """uvloop stops watching a socket that has an error, so a wait has to notice that."""
    async with connected() as (socket, peer):
        await once_waited(socket, peer)
        peer.rst()
        arrived(socket, select.POLLERR)
        await all_blocked()
        await checkpoint()
        for _ in range(2):
            with anyio.fail_after(10), pytest.raises(BrokenError):
                await socket.receive()


# --- whether to ask the kernel or to wait


class Asked:
    """The kernel's socket, and how often it was asked in vain."""

    def __init__(self, sock: stdlib.socket) -> None:
        self.sock = sock
        self.in_vain = 0

    def recv(self, most: int) -> bytes:
        try:
            return self.sock.recv(most)
        except BlockingIOError:
            self.in_vain += 1
            raise

    def recv_into(self, view: memoryview) -> int:
        try:
            return self.sock.recv_into(view)
        except BlockingIOError:
            self.in_vain += 1
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


async def take(socket: Socket, count: int, into: bool) -> bytes:
    if not into:
        return await socket.receive(count)
    buffer = bytearray(count)
    assert await socket.receive_into(buffer) == count
    return bytes(buffer)


@pytest.mark.parametrize("into", [False, True])
async def test_the_first_receive_does_not_wait_for_data_that_is_here(
    into: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected() as (socket, peer):
        await peer.send(b"hello")
        arrived(socket)
        transport: Any = transport_of(socket)
        monkeypatch.setattr(type(transport._ready), "readable", None)  # a wait would fail
        assert await take(socket, 5, into) == b"hello"


@pytest.mark.parametrize("into", [False, True])
async def test_the_kernel_is_rarely_asked_in_vain_for_answers_of_one_size(into: bool) -> None:
    """This is for asyncio. On trio a send gives way, and then the answer has probably arrived."""
    async with connected() as (socket, peer):
        transport: Any = transport_of(socket)
        asked = transport._sock = Asked(transport._sock)
        for _ in range(60):
            async with anyio.create_task_group() as group:
                group.start_soon(take, socket, 4, into)
                await all_blocked()
                await peer.send(b"four")
        if asyncio_loop() is not None:
            assert asked.in_vain <= 7  # after 0, 1, 3, 7, 15, 15 ... receives that waited first
        transport._sock = asked.sock


@pytest.mark.parametrize("into", [False, True])
async def test_the_kernel_is_soon_asked_again_if_data_is_here(
    monkeypatch: pytest.MonkeyPatch, into: bool
) -> None:
    async with connected() as (socket, peer):
        for _ in range(60):
            async with anyio.create_task_group() as group:
                group.start_soon(take, socket, 4, into)
                await all_blocked()
                await peer.send(b"four")
        await peer.send(b"four" * 100)
        arrived(socket)
        for _ in range(20):
            assert await take(socket, 4, into) == b"four"
        with monkeypatch.context() as patched:
            patched.setattr(LoopReadiness, "readable", pytest.fail)
            for _ in range(80):
                assert await take(socket, 4, into) == b"four"


async def test_a_wait_renews_the_budget() -> None:
    """All other tasks had their turn during the wait."""
    async with connected() as (socket, peer):
        ready = transport_of(socket)._ready
        if isinstance(ready, LoopReadiness):
            await once_waited(socket, peer)
            use_up_the_turn()
            await once_waited(socket, peer)
            assert all(ready.may_go_on(0) for _ in range(15))


@pytest.fixture
def by_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait by AnyIO's functions, as on an event loop that cannot wait for sockets."""
    monkeypatch.setattr("anyio_connect._readiness._find_out", _OtherLoop)


@pytest.mark.usefixtures("by_tasks")
async def test_sending_and_receiving_by_anyios_functions() -> None:
    async with connected(receive_buffer=4096) as (socket, peer):
        assert isinstance(transport_of(socket)._ready, TaskReadiness)
        small_buffers(socket, peer)
        data = bytes(100_000)
        async with anyio.create_task_group() as group:
            group.start_soon(socket.send, data)
            assert await peer.receive_exactly(len(data)) == data
        async with anyio.create_task_group() as group:
            group.start_soon(peer.send, b"back")
            assert await socket.receive() == b"back"


@pytest.mark.usefixtures("by_tasks")
async def test_stopping_to_read_does_not_disturb_a_send() -> None:
    """AnyIO wakes both tasks; the one that waits for room has to go on waiting."""
    async with connected(half_open=True, receive_buffer=4096) as (socket, peer):
        small_buffers(socket, peer)
        data = bytes(1_000_000)

        async def receive() -> None:
            with pytest.raises(ClosedError):
                await socket.receive()

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            group.start_soon(socket.send, data)
            await all_blocked()
            await socket.readable.aclose()
            assert await peer.receive_exactly(len(data)) == data


async def test_a_loop_that_cannot_wait_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise NotImplementedError

    async with connected() as (socket, _):
        monkeypatch.setattr(asyncio.SelectorEventLoop, "remove_reader", cannot)
        ready = _find_out().readiness(raw(socket))
        loop = None if trio.lowlevel.in_trio_run() else asyncio.get_running_loop()
        orderly = isinstance(loop, asyncio.SelectorEventLoop)
        assert isinstance(ready, LoopReadiness) == (loop is not None and not orderly)
        monkeypatch.undo()


@pytest.mark.parametrize("dropped", [False, True])
async def test_the_number_of_a_socket_that_was_reset_can_be_used_again(dropped: bool) -> None:
    """uvloop stops watching a socket that has an error, but keeps an entry for its number."""

    async def receive(socket: Socket) -> None:
        with pytest.raises(BrokenError):
            await socket.receive()

    async with listening() as listener:
        for _ in range(3):
            socket = connect(listener.address)
            await socket.opened
            peer = await listener.accept()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive, socket)
                await all_blocked()
                peer.rst()
            if dropped:
                transport_of(socket)._ready.close_dropped()
            await socket.close()
