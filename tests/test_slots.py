"""``Connector(max_connections=)``: waiting for a slot, getting it, giving it back."""

from __future__ import annotations

import math
import os
import select
import socket as stdlib
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from anyio_connect import (
    BrokenError,
    ClosedError,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    RefusedError,
    Socket,
    SocketError,
    _lookup,
)
from anyio_connect._connection import Connection
from anyio_connect._linger import outstanding
from anyio_connect._slots import Slot, Slots
from support.peers import Listener, Peer, listening, refusing_address
from support.sockets import arrived, needs_poll, raw, settle
from support.spying import slots
from support.tls_peers import NAME, TLSPeer, client_context, server_context
from support.turns import all_blocked, turns


async def test_the_connect_timeout_of_the_connector_ends_the_wait_for_a_slot() -> None:
    async with crowd(1) as (_, address):
        connector = Connector(connect_timeout=0.05, max_connections=1)
        async with connector.connect(address) as first:
            without = connector.connect(address, connect_timeout=math.inf)
            async with anyio.create_task_group() as group:
                group.start_soon(waits, without)
                await turns()
                with pytest.raises(ConnectTimeoutError, match=r"within 0\.05 seconds"):
                    await connector.connect(address).opened  # behind the other in the queue
                assert not without.opened.done()
                await first.close()
            assert without.opened.exception() is None
            await without.close()


# --- max_connections


@asynccontextmanager
async def crowd(limit: int) -> AsyncIterator[tuple[Connector, tuple[str, int]]]:
    """A connector and a peer; afterwards, every slot must have come back."""
    connector = Connector(max_connections=limit)
    async with listening() as listener:
        yield connector, listener.address
    assert slots(connector).free == limit
    assert not slots(connector).queue


async def test_connections_are_made_in_the_order_in_which_they_were_needed() -> None:
    opened: list[int] = []

    async def use(number: int, socket: Socket) -> None:
        async with socket:
            opened.append(number)
            await turns(3)

    async with crowd(1) as (connector, address):
        sockets = [connector.connect(address) for _ in range(5)]
        async with anyio.create_task_group() as group:
            for number, socket in [*enumerate(sockets)][::-1]:
                group.start_soon(use, number, socket)
                await turns()
    assert opened == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_there_are_never_more_than_max_connections(limit: int) -> None:
    now = most = 0

    async def use(socket: Socket) -> None:
        nonlocal now, most
        async with socket:
            now += 1
            most = max(most, now)
            await turns(3)
            now -= 1

    async with crowd(limit) as (connector, address), anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(use, connector.connect(address))
    assert most == limit


async def waits(socket: Socket) -> None:
    with anyio.fail_after(10), suppress(SocketError):
        await socket.opened


async def test_a_slot_comes_back_however_a_connection_ends() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)

        async def end_by(how: str, socket: Socket) -> None:
            peer = await listener.accept()
            if how == "close":
                await socket.close()
            elif how == "peer":
                peer.fin()
                with pytest.raises(anyio.EndOfStream):
                    await socket.receive()
            elif how == "reset":
                peer.rst()
                await settle(socket.closed)
            elif how == "abort":
                await socket.writable.abort()
            elif how == "both":
                await socket.readable.aclose()
                await socket.send_eof()
            elif how == "cancelled":
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await socket.close()

        for how in ("close", "peer", "reset", "abort", "both", "cancelled"):
            socket = connector.connect(listener.address)
            await socket.opened
            assert slots(connector).free == 0
            async with anyio.create_task_group() as group:
                next_one = connector.connect(listener.address)
                group.start_soon(waits, next_one)
                await turns()
                assert not next_one.opened.done()
                await end_by(how, socket)
            assert next_one.opened.exception() is None
            await listener.accept()
            await next_one.close()
            assert slots(connector).free == 1, how


async def test_a_slot_comes_back_when_a_dial_fails() -> None:
    async with crowd(1) as (connector, address):
        with pytest.raises(RefusedError):
            await connector.connect(refusing_address()).opened
        async with connector.connect(address):
            pass
        no_tls = connector.connect(address, secure_transport="on", connect_timeout=0.05)
        with pytest.raises(ConnectError):
            await no_tls.opened


async def test_a_cancelled_task_and_a_closed_socket_leave_the_queue() -> None:
    async with crowd(1) as (connector, address):
        first, second, third, fourth = (connector.connect(address) for _ in range(4))
        await first.opened
        scope = anyio.CancelScope()

        async def give_up() -> None:
            with scope:
                await second.opened

        async with anyio.create_task_group() as group:
            group.start_soon(give_up)
            await turns()
            group.start_soon(waits, third)
            await turns()
            group.start_soon(waits, fourth)
            await turns()
            assert len(slots(connector).queue) == 3
            scope.cancel()
            await turns()
            assert len(slots(connector).queue) == 2
            await third.close()
            assert len(slots(connector).queue) == 1
            assert isinstance(third.opened.exception(), ClosedError)
            await first.close()
        assert fourth.opened.exception() is None
        await fourth.close()
        async with second:  # it lost its place in the queue, but it can still be opened
            pass


async def test_a_task_that_takes_over_the_dial_queues_at_the_end() -> None:
    opened: list[str] = []

    async def use(name: str, socket: Socket) -> None:
        async with socket:
            opened.append(name)

    async def drive(socket: Socket, scope: anyio.CancelScope) -> None:
        with scope:
            await socket.opened

    async with crowd(1) as (connector, address):
        first, one, two = (connector.connect(address) for _ in range(3))
        await first.opened
        driver = anyio.CancelScope()
        async with anyio.create_task_group() as group:
            group.start_soon(drive, one, driver)
            await turns()
            group.start_soon(use, "one", one)
            await turns()
            group.start_soon(use, "two", two)
            await turns()
            driver.cancel()
            await turns()
            assert len(slots(connector).queue) == 2
            await first.close()
    assert opened == ["two", "one"]


async def test_the_slot_of_a_cancelled_task_goes_to_the_next_task() -> None:
    for switches in range(12):
        async with crowd(1) as (connector, address):
            first, second, third = (connector.connect(address) for _ in range(3))
            await first.opened
            async with anyio.create_task_group() as group:
                async with anyio.create_task_group() as given_up:
                    given_up.start_soon(waits, second)
                    await turns()
                    group.start_soon(waits, third)
                    await turns()
                    await first.close()
                    await turns(switches)
                    given_up.cancel_scope.cancel()
                await second.close()
            assert third.opened.exception() is None
            await third.close()


async def test_an_abandoned_dial_keeps_its_slot_until_it_has_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connector = Connector(max_connections=1)
    torn_down = anyio.Event()

    async def getaddrinfo(*_: object, **__: object) -> list[Any]:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await torn_down.wait()
        raise AssertionError

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
    socket = connector.connect("host.test:1")
    async with anyio.create_task_group() as group:
        group.start_soon(waits, socket)
        await turns()
        group.start_soon(socket.close)
        await turns()
        assert socket.closed.done()
        assert slots(connector).free == 0
        torn_down.set()
    assert slots(connector).free == 1


async def test_a_dial_that_succeeds_after_closed_has_settled_returns_its_slot() -> None:
    pool = Slots(1)
    slot = Slot(pool)
    await slot.acquire()
    slot.settled()
    assert pool.free == 0
    slot.dialled()
    assert pool.free == 1


async def test_the_wait_for_a_slot_counts_as_connecting() -> None:
    async with crowd(1) as (connector, address):
        async with connector.connect(address):
            late = connector.connect(address, connect_timeout=0.02)
            with pytest.raises(ConnectTimeoutError, match="no slot came free within"):
                await late.opened
        assert isinstance(late.closed.exception(), ConnectTimeoutError)


async def test_start_tls_keeps_the_slot() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        plain = connector.connect(listener.address, secure_transport="starttls")
        await plain.opened
        peer = await listener.accept()
        secure = plain.start_tls()
        assert plain.closed.done()
        assert slots(connector).free == 0
        peer.rst()
        with pytest.raises(SocketError):
            await secure.opened
        assert slots(connector).free == 1

        for begun in (False, True):
            plain = connector.connect(listener.address, secure_transport="starttls")
            if begun:
                await plain.opened
            await plain.start_tls().close()
            assert slots(connector).free == 1

        # A start_tls() that raises changes nothing.
        plain = connector.connect(listener.address, secure_transport="starttls")
        async with plain:
            await plain.send_eof()
            with pytest.raises(RuntimeError):
                plain.start_tls()
            assert slots(connector).free == 0
        assert slots(connector).free == 1


async def test_a_socket_that_is_garbage_collected_returns_its_slot() -> None:
    async with crowd(1) as (connector, address):
        with pytest.warns(ResourceWarning, match="^unclosed connection to"):
            await connector.connect(address).opened
        assert slots(connector).free == 1
        async with connector.connect(address):
            assert slots(connector).free == 0


def test_several_event_loops_at_once(anyio_backend: Any) -> None:
    name, options = anyio_backend
    connector = Connector(max_connections=2)
    held, go = threading.Barrier(3), threading.Event()
    done: list[int] = []

    async def main(number: int, address: tuple[str, int]) -> None:
        for turn in range(20):
            async with connector.connect(address):
                if turn == 0 and number < 2:
                    held.wait(10)
                    go.wait(10)
                await turns(2)
        done.append(number)

    def run(number: int) -> None:
        anyio.run(main, number, address, backend=name, backend_options=options)

    with stdlib.create_server(("127.0.0.1", 0), backlog=128) as server:
        address = server.getsockname()
        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        held.wait(10)  # both slots are taken
        threads.append(threading.Thread(target=run, args=(2,)))
        threads[2].start()
        while not slots(connector).queue:
            pass
        go.set()
        for thread in threads:
            thread.join(30)
    assert sorted(done) == [0, 1, 2]
    assert slots(connector).free == 2


def test_a_waiting_slot_of_a_loop_that_has_ended_is_passed_over(anyio_backend: Any) -> None:
    """In practice, only a loop that was stopped by force leaves a slot waiting in the queue."""
    name, options = anyio_backend
    pool = Slots(1)
    first, abandoned, next_one = Slot(pool), Slot(pool), Slot(pool)

    async def wait() -> None:
        await first.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(abandoned.acquire)
            await turns()
            assert [*pool.queue] == [abandoned]
            group.cancel_scope.cancel()

    anyio.run(wait, backend=name, backend_options=options)
    assert [*pool.queue] == [abandoned]

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(next_one.acquire)
            await turns()
            first.release()

    anyio.run(main, backend=name, backend_options=options)
    assert [*pool.holders] == [id(next_one)]
    assert not pool.queue
    next_one.release()
    assert pool.free == 1


def test_a_cancelled_wait_leaves_nothing_for_the_next_event_loop(anyio_backend: Any) -> None:
    """In two event loops, one after the other, a wait for a slot is cancelled."""
    name, options = anyio_backend
    connector = Connector(max_connections=1)

    async def leave(address: tuple[str, int]) -> None:
        async with connector.connect(address):
            with anyio.move_on_after(0.01):
                await connector.connect(address).opened

    with stdlib.create_server(("127.0.0.1", 0), backlog=128) as server:
        for _ in range(2):
            anyio.run(leave, server.getsockname(), backend=name, backend_options=options)
    assert slots(connector).free == 1
    assert not slots(connector).queue


# --- holders whose ``closed`` no task awaits


@asynccontextmanager
async def held(
    count: int, **options: Any
) -> AsyncIterator[tuple[Connector, list[tuple[Socket, Peer]], Listener]]:
    """All slots of a connector are taken by open sockets, each with its peer."""
    connector = Connector(max_connections=count)
    async with listening() as listener:
        pairs: list[tuple[Socket, Peer]] = []
        try:
            for _ in range(count):
                socket = connector.connect(listener.address, **options)
                await socket.opened
                pairs.append((socket, await listener.accept()))
            yield connector, pairs, listener
        finally:
            for socket, _ in pairs:
                await socket.writable.abort()
                await socket.close()


@needs_poll
async def test_a_holder_whose_closed_was_awaited_for_a_while_is_looked_at() -> None:
    async with held(1) as (connector, [(socket, peer)], listener):
        async with anyio.create_task_group() as group:
            group.start_soon(socket._connection.closed._wait)
            await all_blocked()
            group.cancel_scope.cancel()
        peer.rst()
        arrived(socket, select.POLLERR)
        with anyio.fail_after(10):
            async with connector.connect(listener.address):
                assert isinstance(socket.closed.exception(), BrokenError)


@pytest.mark.parametrize("half_open", [False, True])
async def test_a_holder_that_has_stopped_reading_keeps_its_slot(half_open: bool) -> None:
    async with held(1, allow_half_open=half_open) as (connector, [(socket, peer)], listener):
        await socket.readable.aclose()
        late = connector.connect(listener.address)
        async with anyio.create_task_group() as group:
            group.start_soon(waits, late)
            await turns()
            assert slots(connector).queue
            assert not socket.closed.done()
            await socket.send(b"still here")
            assert await peer.receive() == b"still here"
            group.cancel_scope.cancel()
        await late.close()


async def test_a_lingering_holder_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TLS has ended both directions, but the peer has not acknowledged everything yet."""
    async with held(1, secure_transport="starttls", ssl_context=client_context(), sni=NAME) as (
        connector,
        [(plain, peer)],
        listener,
    ):
        secure = plain.start_tls()
        async with anyio.create_task_group() as group:
            group.start_soon(waits, secure)
            tls = TLSPeer(peer, server_context())
            await tls.shake()
        with monkeypatch.context() as patch:
            patch.setattr("anyio_connect._tcp.outstanding", lambda _: 1)
            await peer.send(tls.server.close_notify())
            with pytest.raises(anyio.EndOfStream):
                await secure.receive()
            assert not secure.closed.done()
        while outstanding(raw(secure)):
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(10):
            async with connector.connect(listener.address):
                assert secure.closed.result() is None


async def test_a_slot_that_is_returned_while_the_holders_are_listed_is_granted() -> None:
    """The garbage collector or another thread may return a slot while the lock is taken."""

    class Holders(dict[int, Any]):
        def values(self) -> Any:
            first.release()
            return super().values()

    pool = Slots(1)
    first, second = Slot(pool), Slot(pool)
    await first.acquire()
    pool.holders = Holders(pool.holders)
    with anyio.fail_after(10):
        await second.acquire()
    second.release()
    assert pool.free == 1


@needs_poll
@pytest.mark.parametrize("how", ["reset", "end", "reset behind data"])
async def test_a_task_that_queues_finds_holders_that_are_over(how: str) -> None:
    async with held(3) as (connector, pairs, listener):
        socket, peer = pairs[1]
        if how == "reset behind data":
            await peer.send(b"unread")
            arrived(socket)
        if how == "end":
            peer.fin()
            arrived(socket, select.POLLRDHUP)
        else:
            peer.rst()
            arrived(socket, select.POLLERR)
        assert not socket.closed.done()
        with anyio.fail_after(10):
            async with connector.connect(listener.address):
                assert socket.closed.done()
                assert isinstance(socket.closed.exception(), BrokenError) == (how != "end")
        if how == "reset behind data":
            assert await socket.receive() == b"unread"
        assert not pairs[0][0].closed.done()
        assert not pairs[2][0].closed.done()


@needs_poll
async def test_a_holder_that_can_still_be_used_keeps_its_slot() -> None:
    """One has unread data before the peer's end. In the other, only one direction has ended."""
    async with held(2, allow_half_open=True) as (connector, pairs, listener):
        (one, sends), (other, ends) = pairs
        await sends.send(b"unread")
        sends.fin()
        ends.fin()
        for socket, _ in pairs:
            arrived(socket, select.POLLRDHUP)
        late = connector.connect(listener.address, connect_timeout=0.05)
        with pytest.raises(ConnectTimeoutError, match="no slot"):
            await late.opened
        assert await one.receive() == b"unread"
        assert not one.closed.done()
        await other.send(b"still")
        assert await ends.receive() == b"still"


@needs_poll
async def test_a_holder_whose_descriptor_was_closed_by_hand_does_not_stop_the_search() -> None:
    async with held(2) as (connector, pairs, listener):
        raw(pairs[0][0]).close()
        pairs[1][1].rst()
        arrived(pairs[1][0], select.POLLERR)
        with anyio.fail_after(10):
            async with connector.connect(listener.address):
                pass


@needs_poll
async def test_after_start_tls_the_new_socket_is_looked_at() -> None:
    async with held(1, secure_transport="starttls", ssl_context=client_context(), sni=NAME) as (
        connector,
        [(plain, peer)],
        listener,
    ):
        secure = plain.start_tls()
        async with anyio.create_task_group() as group:
            group.start_soon(waits, secure)
            await TLSPeer(peer, server_context()).shake()
        peer.rst()
        arrived(secure, select.POLLERR)
        with anyio.fail_after(10):
            async with connector.connect(listener.address):
                assert isinstance(secure.closed.exception(), BrokenError)


@needs_poll
async def test_a_holder_that_waits_for_its_handshake_is_looked_at() -> None:
    async with held(2, secure_transport="starttls") as (connector, pairs, listener):
        secure, other = (plain.start_tls() for plain, _ in pairs)
        pairs[0][1].rst()
        arrived(pairs[0][0], select.POLLERR)
        with anyio.fail_after(10):
            async with connector.connect(listener.address):
                for future in (secure.opened, secure.closed):
                    assert isinstance(future.exception(), BrokenError)
        assert not other.opened.done()
        await other.close()


@needs_poll
async def test_one_look_serves_all_tasks_that_queue_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0

    async def look(connection: Connection) -> None:
        nonlocal looks
        looks += 1
        await real(connection)

    real = Connection.look
    monkeypatch.setattr(Connection, "look", look)
    async with held(5) as (connector, pairs, listener), anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(connector.connect(listener.address)._connection.opened._wait)
        while looks < 5:
            await turns(1)
        await turns()
        # Each may have been looked at twice: the first look may begin before all tasks queue.
        assert looks <= 10
        pairs[0][1].rst()
        arrived(pairs[0][0], select.POLLERR)
        group.start_soon(waits, late := connector.connect(listener.address))
        while not pairs[0][0].closed.done():
            await turns(1)
        assert not late.opened.done()
        group.cancel_scope.cancel()


def test_holders_in_another_event_loop_are_not_looked_at(
    anyio_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket must not be used from a thread to which it does not belong."""
    name, options = anyio_backend
    connector = Connector(max_connections=2)
    held, over = threading.Event(), threading.Event()
    looked: list[Connection] = []

    async def look(connection: Connection) -> None:
        looked.append(connection)

    async def hold(address: tuple[str, int]) -> None:
        async with connector.connect(address):
            held.set()
            over.wait(60)

    async def main(address: tuple[str, int]) -> None:
        async with connector.connect(address) as socket:
            with pytest.raises(ConnectTimeoutError):
                await connector.connect(address, connect_timeout=0.05).opened
            assert looked == [socket._connection]

    def run(function: Any, address: tuple[str, int]) -> None:
        anyio.run(function, address, backend=name, backend_options=options)

    monkeypatch.setattr(Connection, "look", look)
    with stdlib.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        thread = threading.Thread(target=run, args=(hold, address))
        thread.start()
        try:
            assert held.wait(60)
            run(main, address)
        finally:
            over.set()
            thread.join(60)


@needs_poll
async def test_a_task_that_is_cancelled_while_it_looks_leaves_the_queue() -> None:
    for switches in range(8):
        async with held(2) as (connector, pairs, listener):
            pairs[0][1].rst()
            arrived(pairs[0][0], select.POLLERR)
            late = connector.connect(listener.address)
            async with anyio.create_task_group() as group:
                group.start_soon(waits, late)
                await turns(switches)
                group.cancel_scope.cancel()
            await late.close()
            assert not slots(connector).queue
            await pairs[0][0].close()
            assert slots(connector).free == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_an_empty_queue_and_a_free_lock() -> None:
    pool = Slots(2)
    dropped, kept, waiting = Slot(pool), Slot(pool), Slot(pool)

    async def child() -> None:
        with anyio.fail_after(30):
            dropped.release()
            await Slot(pool).acquire()

    def run_child() -> None:
        try:
            # In a new thread, because a loop is running in this one.
            thread = threading.Thread(target=anyio.run, args=(child,), daemon=True)
            thread.start()
            thread.join(30)
            os._exit(pool.free != 1 or len(pool.queue))
        finally:
            os._exit(1)

    async def main() -> int:
        await dropped.acquire()
        await kept.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(waiting.acquire)
            await turns()
            with pool.lock:  # as if another thread held it at this moment
                pid = os.fork()
                if not pid:
                    run_child()
            group.cancel_scope.cancel()
        return pid

    _, status = os.waitpid(anyio.run(main), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    waiting.release()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("act", ["acquire", "release"])
def test_a_child_that_is_forked_during_a_call_loses_no_slot(act: str) -> None:
    """The test forks at each line of the call: another thread may fork at any moment."""

    def take_slot(slot: Slot) -> None:
        with pytest.raises(StopIteration):
            slot.acquire().send(None)  # a slot is free, so it does not wait

    def child(pool: Slots, slot: Slot) -> None:
        sys.settrace(None)
        try:
            slot.release()
            os._exit(pool.free != 1)
        finally:
            os._exit(2)

    def fork_at(line: int) -> bool:
        """Fork at a line of the call, counted from 1; return whether there is such a line."""
        pool = Slots(1)
        slot = Slot(pool)
        if act == "release":
            take_slot(slot)
        lines = 0

        def trace(frame: Any, event: str, _: object) -> Any:
            nonlocal lines
            if frame.f_globals["__name__"] != Slots.__module__:
                return None
            lines += event == "line"
            if event == "line" and lines == line:
                if not (pid := os.fork()):
                    child(pool, slot)
                _, status = os.waitpid(pid, 0)
                assert os.waitstatus_to_exitcode(status) == 0, frame.f_lineno
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            slot.release() if act == "release" else take_slot(slot)
        finally:
            sys.settrace(before)
        return lines >= line

    async def main() -> int:
        line = 1
        while fork_at(line):
            line += 1
        return line

    assert anyio.run(main) > 10
