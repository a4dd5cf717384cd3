"""Watching for events that event loops do not offer, all through one descriptor."""

from __future__ import annotations

import errno
import random
import select
import socket as stdlib
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_connect import Socket, SocketError, connect
from anyio_connect import _watch as watching
from anyio_connect._watch import CAN_WATCH, ERR, IN, OUT, RDHUP, Watch, unwatch
from support import guards
from support.peers import Peer, listening
from support.sockets import arrived, connected, needs_poll
from support.turns import all_blocked

pytestmark = pytest.mark.skipif(not CAN_WATCH, reason="this system has neither epoll nor kqueue")
epoll_only = pytest.mark.skipif(not hasattr(select, "epoll"), reason="kqueue reports only ends")


@contextmanager
def pair() -> Iterator[tuple[stdlib.socket, stdlib.socket]]:
    with stdlib.create_server(("127.0.0.1", 0)) as server:
        ours = stdlib.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@asynccontextmanager
async def many(count: int) -> AsyncIterator[list[tuple[Socket, Peer]]]:
    async with listening() as listener:
        pairs = []
        for _ in range(count):
            socket = connect(listener.address, allow_half_open=True)
            await socket.opened
            pairs.append((socket, await listener.accept()))
        try:
            yield pairs
        finally:
            for socket, _ in pairs:
                await socket.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until the condition is true."""
    with anyio.fail_after(20):
        while not condition():
            await checkpoint()


async def settled() -> None:
    with anyio.fail_after(10):
        await all_blocked()


# --- one watch


async def test_an_event_that_is_there_already_is_reported_at_once() -> None:
    with pair() as (ours, theirs):
        theirs.shutdown(stdlib.SHUT_WR)
        with Watch(ours, RDHUP) as watch, anyio.fail_after(10):
            assert await watch.wait() & RDHUP
        with Watch(ours, RDHUP) as watch, anyio.fail_after(10):
            assert await watch.wait() & RDHUP


async def test_an_event_is_reported_once() -> None:
    with pair() as (ours, theirs), Watch(ours, RDHUP) as watch:
        theirs.shutdown(stdlib.SHUT_WR)
        with anyio.fail_after(10):
            assert await watch.wait() & RDHUP
        async with anyio.create_task_group() as group:
            group.start_soon(watch.wait)
            await settled()
            group.cancel_scope.cancel()


async def test_a_cancelled_wait_loses_no_event() -> None:
    with pair() as (ours, theirs), Watch(ours, RDHUP) as watch:
        theirs.shutdown(stdlib.SHUT_WR)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await watch.wait()
        with anyio.fail_after(10):
            assert await watch.wait() & RDHUP


async def test_a_reset_is_reported_to_every_watch() -> None:
    for events in (0, RDHUP):
        with pair() as (ours, theirs), Watch(ours, events) as watch:
            linger = struct.pack("ii", 1, 0)
            theirs.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, linger)
            theirs.close()
            with anyio.fail_after(10):
                assert await watch.wait() & ERR


async def test_data_does_not_wake_a_task_that_waits_for_an_end() -> None:
    with pair() as (ours, theirs), Watch(ours, RDHUP) as watch:
        seen = []

        async def wait() -> None:
            seen.append(await watch.wait())

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            for _ in range(3):
                theirs.send(b"data")
                await settled()
                assert not seen
            theirs.shutdown(stdlib.SHUT_WR)
        assert seen[0] & RDHUP


@epoll_only
async def test_two_tasks_may_watch_one_socket_for_different_things() -> None:
    with pair() as (ours, theirs):
        seen: list[str] = []

        async def wait(name: str, events: int) -> None:
            with Watch(ours, events) as watch:
                assert await watch.wait() & events
            seen.append(name)

        async with anyio.create_task_group() as group:
            group.start_soon(wait, "end", RDHUP)
            await settled()
            group.start_soon(wait, "data", IN)
            await settled()
            theirs.send(b"data")
            await until(lambda: bool(seen))
            await settled()
            assert seen == ["data"]
            theirs.shutdown(stdlib.SHUT_WR)
        assert seen == ["data", "end"]


@epoll_only
async def test_the_acknowledgement_of_our_end_is_an_event() -> None:
    """A lingering close waits for this event: then all that we sent has arrived."""
    with pair() as (ours, theirs):
        ours.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 4096)
        with Watch(ours, OUT) as watch, anyio.fail_after(10):
            try:
                while True:
                    ours.send(bytes(65536))
            except BlockingIOError:
                pass
            ours.shutdown(stdlib.SHUT_WR)
            theirs.settimeout(10)
            async with anyio.create_task_group() as group:

                async def take() -> None:
                    while theirs.recv(65536):
                        await checkpoint()

                group.start_soon(take)
                while unacknowledged(ours):
                    await watch.wait()


def unacknowledged(sock: stdlib.socket) -> int:
    import fcntl
    import termios

    count: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return count


async def test_closing_a_socket_wakes_the_task_that_watches_it() -> None:
    """It may lead or not; the other tasks go on watching."""
    with pair() as (one, _), pair() as (two, _), pair() as (three, theirs):
        outcomes: list[object] = []

        async def wait(sock: stdlib.socket) -> None:
            with Watch(sock, RDHUP) as watch:
                try:
                    outcomes.append(await watch.wait())
                except anyio.ClosedResourceError:
                    outcomes.append("closed")

        async with anyio.create_task_group() as group:
            for sock in (one, two, three):
                group.start_soon(wait, sock)
                await settled()
            for count, sock in enumerate((one, two), 1):
                unwatch(sock)
                sock.close()
                await settled()
                assert outcomes == ["closed"] * count
            theirs.shutdown(stdlib.SHUT_WR)
        assert outcomes[2:] == [RDHUP]


async def test_a_closed_socket_cannot_be_watched() -> None:
    sock = stdlib.socket()
    sock.close()
    with Watch(sock, RDHUP) as watch, pytest.raises(anyio.ClosedResourceError):
        await watch.wait()


# --- one descriptor


@pytest.mark.skipif(not guards.CAN_LIST_FDS, reason="descriptors cannot be listed here")
async def test_any_number_of_sockets_cost_one_descriptor() -> None:
    async with many(100) as pairs, anyio.create_task_group() as group:
        before = guards.open_fds()
        for socket, _ in pairs:
            group.start_soon(partial(wait_closed, socket))
        await settled()
        assert len(guards.open_fds()) == len(before) + 1
        for _, peer in pairs:
            peer.rst()
        await until(lambda: all(socket.closed.done() for socket, _ in pairs))
    assert not watchers()


async def wait_closed(socket: Socket) -> None:
    with suppress(SocketError):
        await socket.closed


def watchers() -> list[Any]:
    """The watchers that have a poller now."""
    return [watcher for watcher in watching._watchers if watcher._poller is not None]


@pytest.mark.parametrize("seed", range(3))
async def test_the_leading_task_may_be_cancelled_at_any_time(seed: int) -> None:
    chance = random.Random(seed)
    async with many(90) as pairs, anyio.create_task_group() as group:
        scopes: dict[Socket, anyio.CancelScope] = {}

        async def watch(socket: Socket) -> None:
            with anyio.CancelScope() as scopes[socket]:
                await wait_closed(socket)

        for socket, _ in pairs:
            group.start_soon(watch, socket)
        await settled()
        cancelled = chance.sample(pairs, 30)
        ended = [one for one in pairs if one not in cancelled]
        chance.shuffle(ended)
        acts: list[Callable[[], None]] = [scopes[socket].cancel for socket, _ in cancelled]
        acts += [peer.rst for _, peer in ended]
        chance.shuffle(acts)
        for act in acts:
            act()
            if chance.random() < 0.3:
                await checkpoint()
            assert len(watchers()) <= 1
        await until(lambda: all(socket.closed.done() for socket, _ in ended))
        assert not any(socket.closed.done() for socket, _ in cancelled)
    assert not watchers()


async def test_the_leading_task_is_cancelled_again_and_again() -> None:
    """The leading task is always the first of those that are left."""
    async with many(8) as pairs, anyio.create_task_group() as group:
        scopes = [anyio.CancelScope() for _ in pairs]

        async def watch(socket: Socket, scope: anyio.CancelScope) -> None:
            with scope:
                await wait_closed(socket)

        for (socket, _), scope in zip(pairs, scopes, strict=True):
            group.start_soon(watch, socket, scope)
            await settled()
        for scope in scopes[:-1]:
            scope.cancel()
        pairs[-1][1].rst()
        await until(pairs[-1][0].closed.done)


async def test_sockets_are_closed_while_they_are_watched() -> None:
    async with many(50) as pairs, anyio.create_task_group() as group:
        for socket, _ in pairs:
            group.start_soon(wait_closed, socket)
        await settled()
        for number, (socket, peer) in enumerate(pairs):
            if number % 3 == 0:
                await socket.close()
            elif number % 3 == 1:
                await socket.writable.abort()
            else:
                peer.rst()
    assert not watchers()


# --- several event loops


def test_each_event_loop_has_its_own_watcher(anyio_backend: Any) -> None:
    """One event loop ends while the others go on."""
    backend, options = anyio_backend
    everybody_watches = threading.Barrier(3)
    first_ended = threading.Event()
    failures: list[BaseException] = []

    async def watch(number: int) -> None:
        async with (
            connected(half_open=True) as (socket, peer),
            anyio.create_task_group() as group,
        ):
            group.start_soon(wait_closed, socket)
            await settled()
            await anyio.to_thread.run_sync(everybody_watches.wait, 10)
            if number:
                await anyio.to_thread.run_sync(first_ended.wait, 10)
            peer.rst()

    def run(number: int) -> None:
        try:
            anyio.run(watch, number, backend=backend, backend_options=options)
        except BaseException as exc:  # noqa: BLE001
            failures.append(exc)
        finally:
            if not number:
                first_ended.set()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures


# --- no descriptor, no memory


class Scarce:
    """Lets pollers fail to open, or to take sockets, until the test makes ``scarce`` False."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, *, opens: bool) -> None:
        self.number = number
        self.scarce = True
        self.refused = 0
        self._make = watching._make_poller
        self._opens = opens
        monkeypatch.setattr(watching, "_make_poller", self.make)
        monkeypatch.setattr(watching, "_PAUSE", 0.001)

    def make(self) -> Any:
        if not self._opens:
            self.refuse()
        poller: Any = self._make()
        take = poller.set

        def set_(*args: Any) -> None:
            self.refuse()
            take(*args)

        poller.set = set_
        return poller

    def refuse(self) -> None:
        if self.scarce:
            self.refused += 1
            raise OSError(self.number, "scarce")


@needs_poll
@pytest.mark.parametrize(
    ("number", "opens"),
    [(errno.EMFILE, False), (errno.ENFILE, False), (errno.ENOSPC, True), (errno.ENOMEM, True)],
)
async def test_a_poller_that_fails_is_tried_again(
    number: int, opens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce = Scarce(monkeypatch, number, opens=opens)
    async with many(5) as pairs, anyio.create_task_group() as group:
        for socket, _ in pairs:
            group.start_soon(wait_closed, socket)
        await until(lambda: scarce.refused >= 20)
        for socket, peer in pairs:
            peer.rst()
            arrived(socket, select.POLLERR)
        assert not any(socket.closed.done() for socket, _ in pairs)
        scarce.scarce = False
        await until(lambda: all(socket.closed.done() for socket, _ in pairs))


async def test_a_socket_that_comes_when_memory_is_short_does_not_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scarce = Scarce(monkeypatch, errno.ENOSPC, opens=True)
    scarce.scarce = False
    async with (
        many(2) as ((one, peer_of_one), (two, peer_of_two)),
        anyio.create_task_group() as group,
    ):
        group.start_soon(wait_closed, one)
        await settled()
        scarce.scarce = True
        group.start_soon(wait_closed, two)
        await until(lambda: scarce.refused >= 3)
        scarce.scarce = False
        peer_of_two.rst()
        await until(two.closed.done)
        peer_of_one.rst()
