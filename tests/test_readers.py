"""The epoll that asyncio loops share among many sockets. (On trio, these sockets just receive.)"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import socket as stdlib
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from weakref import ref

import anyio
import pytest
import trio
from anyio.abc import SocketAttribute

from anyio_connect import BrokenError, Socket, connect
from anyio_connect._readers import _AT_ONCE, Readers
from support import guards
from support.cycles import Local
from support.peers import Listener, Peer, listening
from support.sockets import BIG, arrived, raw
from support.turns import all_blocked, turns

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has epoll")


@pytest.fixture
def from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first socket already use the epoll."""
    monkeypatch.setattr("anyio_connect._readers._FEW", 0)


@asynccontextmanager
async def open_sockets(count: int) -> AsyncIterator[list[tuple[Socket, Peer]]]:
    async with listening() as listener:
        pairs: list[tuple[Socket, Peer]] = []
        try:
            pairs.extend([await pair(listener) for _ in range(count)])
            yield pairs
        finally:
            for socket, _ in pairs:
                await socket.close()


async def pair(listener: Listener) -> tuple[Socket, Peer]:
    socket = connect(listener.address)
    await socket.opened
    return socket, await listener.accept()


async def wait_once(*pairs: tuple[Socket, Peer]) -> None:
    """Let each socket wait for data, and get it: from then on, it is registered."""
    async with anyio.create_task_group() as group:
        for socket, _ in pairs:
            group.start_soon(receive, socket, b"x")
        await all_blocked()
        for _, peer in pairs:
            peer.sock.send(b"x")


async def receive(socket: Socket, expected: bytes) -> None:
    assert await socket.receive() == expected


def new_asyncio_loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def new_uvloop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop")
    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made


class Owner:
    """An object that is registered as the owner of a socket."""

    def __init__(self, sock: stdlib.socket) -> None:
        self.sock = sock


def epolls() -> int:
    """How many epolls this process has open."""
    links = (os.readlink(f"/proc/self/fd/{fd}") for fd in guards.open_fds())  # noqa: PTH115  # names no file
    return sum(link == "anon_inode:[eventpoll]" for link in links)


def in_a_thread(call: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    return run


def on_trio() -> bool:
    return trio.lowlevel.in_trio_run()


async def test_many_sockets_that_are_ready_at_once_all_get_their_data() -> None:
    count = 2 * _AT_ONCE + 20
    async with open_sockets(count) as pairs:
        for round_ in range(3):
            async with anyio.create_task_group() as group:
                for number, (socket, _) in enumerate(pairs):
                    group.start_soon(receive, socket, b"%d.%d" % (number, round_))
                await all_blocked()
                for number, (_, peer) in enumerate(pairs):
                    peer.sock.send(b"%d.%d" % (number, round_))
                for socket, _ in pairs:
                    arrived(socket)


async def test_one_epoll_is_opened_for_many_sockets_and_closed_after_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("anyio_connect._readers._FEW", 4)
    before = epolls()
    async with open_sockets(7) as pairs:
        await wait_once(*pairs[:4])
        assert epolls() == before
        await wait_once(*pairs[4:])
        assert epolls() == before + (not on_trio())
        await wait_once(*pairs)
        for socket, _ in pairs[1:]:
            await socket.close()
        # The epoll stays open as long as one socket is registered.
        assert epolls() == before + (not on_trio())
        await wait_once(pairs[0])
        await pairs[0][0].close()
        assert epolls() == before


@pytest.mark.parametrize("many", [4, 5])
async def test_closed_sockets_do_not_count(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_connect._readers._FEW", 4)
    before = epolls()
    async with open_sockets(many) as pairs:
        await wait_once(*pairs)
    async with open_sockets(4) as pairs:
        await wait_once(*pairs)
        assert epolls() == before


async def test_the_epoll_takes_over_the_sockets_whose_tasks_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("anyio_connect._readers._FEW", 2)
    async with open_sockets(3) as pairs, anyio.create_task_group() as group:
        for number, (socket, _) in enumerate(pairs):
            group.start_soon(receive, socket, b"%d" % number)
            await all_blocked()
        if not on_trio():
            loop = asyncio.get_running_loop()
            assert not any(loop.remove_reader(raw(socket).fileno()) for socket, _ in pairs)
        for number, (_, peer) in enumerate(pairs):
            peer.sock.send(b"%d" % number)


async def test_the_epoll_leaves_a_number_to_other_code_that_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if on_trio():
        return  # trio refuses a second waiting task
    monkeypatch.setattr("anyio_connect._readers._FEW", 1)
    loop = asyncio.get_running_loop()
    async with open_sockets(2) as [(socket, peer), other]:
        number = socket.extra(SocketAttribute.raw_socket).fileno()
        await wait_once((socket, peer))
        told = anyio.Event()
        loop.add_reader(number, told.set)
        await wait_once(other)
        peer.sock.send(b"x")
        await told.wait()
        assert loop.remove_reader(number) is not False  # uvloop does not say
        assert await socket.receive() == b"x"


@pytest.mark.usefixtures("from_the_first")
async def test_data_that_no_task_waits_for_does_not_keep_the_loop_busy() -> None:
    async with open_sockets(2) as pairs:
        await wait_once(*pairs)
        before = epolls()
        for socket, peer in pairs:
            peer.sock.send(b"later")
            arrived(socket)
        await all_blocked()  # the event loop reports the data, and no task receives it
        assert epolls() == before - (not on_trio())
        for socket, _ in pairs:
            assert await socket.receive() == b"later"


@pytest.mark.usefixtures("from_the_first")
async def test_a_reset_that_comes_while_a_task_waits_is_reported() -> None:
    async with open_sockets(1) as [(socket, peer)], anyio.create_task_group() as group:
        group.start_soon(_reset, peer)
        for _ in range(2):
            with pytest.raises(BrokenError):
                await socket.receive()


async def _reset(peer: Peer) -> None:
    await all_blocked()
    peer.rst()


@pytest.mark.usefixtures("from_the_first")
async def test_a_cancelled_receive_leaves_its_data_to_the_next() -> None:
    async with open_sockets(1) as [(socket, peer)]:
        for _ in range(3):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(_cancel, scope, socket, peer)
                    await socket.receive()
            assert await socket.receive() == b"data"


async def _cancel(scope: anyio.CancelScope, socket: Socket, peer: Peer) -> None:
    await all_blocked()
    scope.cancel()
    peer.sock.send(b"data")
    arrived(socket)


@pytest.mark.usefixtures("from_the_first", "no_collector")
async def test_a_dropped_socket_is_unregistered_in_any_thread() -> None:
    before = epolls()
    for in_thread in (False, True):
        async with listening() as listener:
            box = [await pair(listener)]
            await wait_once(*box)
            drop = in_a_thread(box.clear) if in_thread else box.clear
            with pytest.warns(ResourceWarning, match="^unclosed connection"):
                drop()
            await all_blocked()
            assert epolls() == before


@pytest.mark.usefixtures("from_the_first", "no_collector")
async def test_the_epoll_does_not_keep_the_context_of_a_task() -> None:
    variable: ContextVar[Local] = ContextVar("variable")
    async with open_sockets(2) as [first, second]:
        local = Local()
        variable.set(local)
        dies = ref(local)
        await wait_once(first)
        variable.set(Local())
        del local
        await wait_once(second)
        await first[0].close()
        assert dies() is None


@pytest.mark.usefixtures("from_the_first")
@pytest.mark.parametrize("what", ["epoll", "register"])
async def test_without_an_epoll_the_event_loop_serves_all(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may open no more descriptors, or the user may register no more with epolls."""

    class Full:
        def __init__(self) -> None:
            if what == "epoll":
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            self._epoll = epoll()
            self.fileno, self.poll, self.close = (
                self._epoll.fileno,
                self._epoll.poll,
                self._epoll.close,
            )

        def register(self, fd: int, events: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    epoll = select.epoll
    async with open_sockets(2) as pairs:
        with monkeypatch.context() as patched:
            patched.setattr("anyio_connect._readers.select.epoll", Full)
            await wait_once(*pairs)
        await wait_once(*pairs)


@pytest.mark.parametrize("waited", [False, True])
@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_socket_can_be_used_after_its_event_loop_is_closed(
    kind: str, few: int, waited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another event loop, as on trio."""
    monkeypatch.setattr("anyio_connect._readers._FEW", few)
    make = new_asyncio_loop if kind == "asyncio" else new_uvloop
    before = epolls()

    async def begin() -> tuple[Socket, Peer]:
        async with listening() as listener:
            socket, peer = await pair(listener)
            listener.peers.clear()
        if waited:
            await wait_once((socket, peer))
        return socket, peer

    async def go_on() -> None:
        for _ in range(2):
            await wait_once((socket, peer))
        data = bytes(BIG)
        async with anyio.create_task_group() as group:
            group.start_soon(socket.send, data)
            await all_blocked()
            assert len(await peer.receive_exactly(BIG)) == BIG
        peer.sock.close()
        await socket.close()

    first, second = make(), make()
    try:
        socket, peer = first.run_until_complete(begin())
        first.close()
        second.run_until_complete(go_on())
    finally:
        first.close()
        second.close()
    assert epolls() == before


# --- other code and the numbers of sockets


@pytest.mark.parametrize("few", [0, 8])
async def test_a_receive_ends_if_other_code_closes_the_socket_and_a_new_one_gets_its_number(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyio_connect._readers._FEW", few)
    if on_trio():
        return  # trio asks to be told before
    async with listening() as listener, anyio.create_task_group() as group:
        old, _ = await pair(listener)
        async with old:
            group.start_soon(fail, old)
            await all_blocked()
            number = raw(old).fileno()
            raw(old).close()
            new, peer = await pair(listener)
            assert raw(new).fileno() == number  # the kernel gives the lowest free number
            async with new:
                await wait_once((new, peer))
                await old.close()
                await wait_once((new, peer))


async def fail(socket: Socket) -> None:
    with pytest.raises(BrokenError):
        await socket.receive()


async def test_the_epoll_may_get_the_number_of_a_socket_that_other_code_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("anyio_connect._readers._FEW", 1)
    if on_trio():
        return
    async with open_sockets(1) as [(other, other_peer)]:
        async with listening() as listener:
            old, peer = await pair(listener)
            await wait_once((old, peer))
            raw(old).close()
            await wait_once((other, other_peer))  # opens the epoll, which gets the number
            await old.close()
        await wait_once((other, other_peer))


@pytest.mark.usefixtures("from_the_first")
async def test_an_epoll_that_select_cannot_watch_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loop that uses select() serves descriptors up to a number, and the epoll comes later."""
    before = epolls()
    async with open_sockets(1) as [one]:
        number = raw(one[0]).fileno()
        monkeypatch.setattr("anyio_connect._readers._FD_SETSIZE", number + 1)
        lower = [os.dup(number)]
        while lower[-1] < number:  # so that the epoll gets none of these
            lower.append(os.dup(number))
        await wait_once(one)
        assert epolls() == before
        for copy in lower:
            os.close(copy)


class WithoutMemory:
    """A socket whose receives fail until there is memory again."""

    def __init__(self, sock: stdlib.socket) -> None:
        self.sock = sock
        self.has_memory = False

    def recv(self, size: int) -> bytes:
        if not self.has_memory:
            raise MemoryError
        return self.sock.recv(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@pytest.mark.parametrize("few", [0, 8])
async def test_a_receive_that_meets_an_unexpected_error_raises_it_and_disturbs_no_other(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyio_connect._readers._FEW", few)

    async def fail() -> None:
        with pytest.raises(MemoryError):
            await socket.receive()

    async with open_sockets(2) as [(socket, peer), other]:
        await wait_once((socket, peer), other)
        transport: Any = socket._connection.transport
        transport._sock = poor = WithoutMemory(transport._sock)
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            group.start_soon(receive, other[0], b"x")
            await all_blocked()
            peer.sock.send(b"y")
            other[1].sock.send(b"x")
        poor.has_memory = True
        assert await socket.receive() == b"y"


# --- the epoll alone


@pytest.mark.usefixtures("from_the_first")
async def test_a_socket_that_was_removed_in_the_same_turn_is_not_reported() -> None:
    if on_trio():
        return
    loop = asyncio.get_running_loop()
    told: list[Owner] = []

    def tell(owner: Owner) -> None:
        told.append(owner)
        for other, _ in pairs:
            readers.remove(loop, other.fileno(), other)

    readers = Readers(tell)
    pairs = [stdlib.socketpair() for _ in range(3)]
    before = epolls()
    for one, peer in pairs:
        assert readers.add(loop, one.fileno(), Owner(one))
        peer.send(b"x")
    await turns()
    assert len(told) == 1  # the first one has removed the others
    assert epolls() == before
    for one, peer in pairs:
        one.close()
        peer.close()


@pytest.mark.usefixtures("from_the_first")
async def test_a_number_that_other_code_has_closed_belongs_to_the_new_socket() -> None:
    """The old owner of the number does not unregister its new owner."""
    if on_trio():
        return
    loop = asyncio.get_running_loop()
    told: list[Owner] = []
    readers = Readers(told.append)
    (one, peer), (new, new_peer) = stdlib.socketpair(), stdlib.socketpair()
    number, old_owner, new_owner = one.fileno(), Owner(one), Owner(new)
    assert readers.add(loop, number, old_owner)
    os.dup2(new.fileno(), number)  # this closes the old socket, and ``readers`` does not notice
    assert readers.add(loop, number, new_owner)
    assert not readers.remove(loop, number, one)
    new_peer.send(b"x")
    await turns()
    assert {*told} == {new_owner}
    os.close(one.detach())
    assert readers.remove(loop, number, new)
    for sock in (peer, new, new_peer):
        sock.close()


# --- the garbage collector


@pytest.mark.parametrize("few", [0, 8])
async def test_a_socket_that_the_garbage_collector_finds_is_unregistered(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It clears the weak references of what it collects, even those to objects that stay."""
    monkeypatch.setattr("anyio_connect._readers._FEW", few)
    before = epolls()
    async with listening() as listener:
        socket, peer = await pair(listener)
        await wait_once((socket, peer))
        copy = os.dup(raw(socket).fileno())  # so that the kernel does not unregister it itself
        cycle: list[object] = [socket]
        cycle.append(cycle)
        del cycle, socket
        with pytest.warns(ResourceWarning, match="^unclosed connection"):
            gc.collect()
        assert epolls() == before
        os.close(copy)


@pytest.mark.parametrize("few", [0, 1])
@pytest.mark.usefixtures("no_collector")
async def test_the_garbage_collector_may_run_while_a_socket_is_registered(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyio_connect._readers._FEW", few)

    class Epoll:
        def __init__(self) -> None:
            self._epoll = epoll()
            self.fileno, self.poll, self.close, self.unregister = (
                self._epoll.fileno,
                self._epoll.poll,
                self._epoll.close,
                self._epoll.unregister,
            )

        def register(self, fd: int, events: int) -> None:
            gc.collect()
            self._epoll.register(fd, events)

    epoll = select.epoll
    monkeypatch.setattr("anyio_connect._readers.select.epoll", Epoll)
    async with open_sockets(1) as [second]:
        async with listening() as listener:
            first = await pair(listener)
            await wait_once(first)
            cycle: list[object] = [first[0]]
            cycle.append(cycle)
            del cycle, first
            with pytest.warns(ResourceWarning, match="^unclosed connection"):  # noqa: PT031
                await wait_once(second)
                gc.collect()
        await wait_once(second)
