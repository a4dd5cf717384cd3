"""The semantics of a plain TCP socket: each row of the design's table, on each event loop."""

from __future__ import annotations

import gc
import select
import socket as stdlib
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import ByteReceiveStream, ByteSendStream, ByteStream, SocketAttribute

from anyio_connect import (
    BrokenError,
    ClosedError,
    ConnectTimeoutError,
    PendingError,
    RefusedError,
    ResolveError,
    Socket,
    SocketError,
    SocketInfo,
    connect,
)
from support.errors import is_copy
from support.peers import Peer, full, has_ipv6, listening, refusing_address
from support.sockets import Slow, arrived, connected, opened_by, raw, settle, socket_pair
from support.tls_peers import dial
from support.turns import all_blocked

#: More than both kernels' buffers hold: a send of it waits for the peer to read.
BIG = 64 * 1024 * 1024


async def blocked_send(socket: Socket, outcome: list[BaseException | None]) -> None:
    """Send more than fits; note how that ended."""
    try:
        await socket.send(bytes(BIG))
    except SocketError as exc:
        outcome.append(exc)
    else:
        outcome.append(None)


async def answered_and_reset(socket: Socket, peer: Peer) -> None:
    """Have the peer answer and hang up, with something of ours unread; its answer is here."""
    await socket.send(b"unread, so closing resets")
    arrived_at = select.poll()
    arrived_at.register(peer.sock, select.POLLIN)
    assert arrived_at.poll(5000)
    await peer.send(b"413 too large")
    peer.close()
    arrived(socket, select.POLLERR)


# --- opening


async def test_connect_returns_a_pending_socket_at_once() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        assert not socket.opened.done()
        assert not socket.closed.done()
        assert not socket.upgraded
        assert socket.secure_transport == "off"
        assert "pending" in repr(socket)
        listener.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.sock.accept()  # nobody has asked for the connection yet
        await socket.close()


def test_connect_needs_no_event_loop() -> None:
    socket = connect("127.0.0.1:1")
    with pytest.raises(PendingError):
        socket.opened.result()
    with pytest.raises(PendingError):
        socket.closed.exception()


async def test_opened_tells_the_addresses() -> None:
    async with listening() as listener, connect(listener.address) as socket:
        peer = await listener.accept()
        info = await socket.opened
        assert info == socket.opened.result()
        host, port = peer.sock.getpeername()
        assert info == SocketInfo(f"127.0.0.1:{listener.address[1]}", f"{host}:{port}", None)
        assert "open" in repr(socket)


async def test_what_is_told_does_not_change() -> None:
    async with connected() as (socket, _):
        info: Any = await socket.opened
        with pytest.raises(AttributeError):
            info.remote_address = "elsewhere"
        assert {info: 1}[await socket.opened] == 1


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_ipv6() -> None:
    async with listening("::1") as listener, connect(f"[::1]:{listener.address[1]}") as socket:
        info = await socket.opened
        assert info.remote_address == f"[::1]:{listener.address[1]}"
        assert info.local_address is not None
        assert info.local_address.startswith("[::1]:")


async def test_nodelay_is_set() -> None:
    async with connected() as (socket, _):
        assert raw(socket).getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY)


@pytest.mark.parametrize("use", ["receive", "send", "send_eof", "opened", "closed", "aenter"])
async def test_whoever_needs_the_connection_makes_it(use: str) -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "receive": socket.receive,
            "send": lambda: socket.send(b"x"),
            "send_eof": socket.send_eof,
            "opened": socket.opened._wait,
            "closed": socket.closed._wait,
            "aenter": socket.__aenter__,
        }
        async with anyio.create_task_group() as group:

            async def need() -> None:
                await ways[use]()

            group.start_soon(need)
            peer = await listener.accept()
            assert (await socket.opened).remote_address is not None
            await peer.send(b"data")
            peer.fin()
            if use != "receive":
                assert await socket.receive() == b"data"
                with pytest.raises(anyio.EndOfStream):
                    await socket.receive()
        await socket.close()


async def test_all_waiters_share_one_dial() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        infos = []

        async def wait() -> None:
            infos.append(await socket.opened)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(wait)
        assert len({id(info) for info in infos}) == 1
        await listener.accept()
        with pytest.raises(BlockingIOError):
            listener.sock.accept()
        await socket.close()


@pytest.mark.slow
async def test_a_cancelled_driver_hands_over_to_the_next_waiter() -> None:
    # A full backlog: Linux answers no more SYNs, so the dial stays under way.
    async with full() as listener:
        socket = connect(listener.address)
        driver = anyio.CancelScope()
        outcome: list[object] = []

        async def drive() -> None:
            with driver:
                await socket.opened
            outcome.append("cancelled")

        async def wait() -> None:
            outcome.append(await socket.opened)

        async with anyio.create_task_group() as group:
            group.start_soon(drive)
            await all_blocked()
            group.start_soon(wait)
            await all_blocked()
            driver.cancel()
            await all_blocked()
            assert outcome == ["cancelled"]
            assert not socket.opened.done()
            with anyio.fail_after(30):
                while len(outcome) < 2:
                    # Each place that is taken out of the backlog lets a next SYN in.
                    with anyio.move_on_after(0.1):
                        await listener.accept()
        assert isinstance(outcome[1], SocketInfo)
        await socket.close()


async def test_a_cancelled_dial_leaves_the_socket_pending_and_usable() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await socket.opened
        assert scope.cancelled_caught
        assert not socket.opened.done()
        assert not socket.closed.done()
        await socket.opened
        await socket.close()


async def test_task_group_connects_at_once() -> None:
    async with listening() as listener:
        async with anyio.create_task_group() as group:
            socket = connect(listener.address, task_group=group)
            await listener.accept()
        assert socket.opened.done()
        await socket.close()


async def test_task_group_is_not_cancelled_by_a_failure() -> None:
    async with anyio.create_task_group() as group:
        socket = connect(refusing_address(), task_group=group)
        with pytest.raises(RefusedError):
            await socket.opened
        await anyio.lowlevel.checkpoint()  # would raise if the group were cancelled


# --- failing to open


async def test_refused() -> None:
    host, port = refusing_address()
    socket = connect((host, port))
    with pytest.raises(RefusedError, match=rf"^cannot connect to {host}:{port}: ") as caught:
        await socket.opened
    error = caught.value
    assert isinstance(error, ConnectionRefusedError)
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert error.errno == error.__cause__.errno
    assert error.code == "refused"
    assert len(error.attempts) == 1
    # Everything else raises the same error.
    for call in (
        socket.receive,
        socket.send_eof,
        lambda: socket.send(b"x"),
        socket.__aenter__,
        socket.closed._wait,
    ):
        with pytest.raises(RefusedError) as again:
            await call()
        assert is_copy(again.value, error)
    await socket.close()
    assert is_copy(socket.closed.exception(), error)
    assert "failed" in repr(socket)


async def test_an_unobserved_failure_is_silent() -> None:
    async with anyio.create_task_group() as group:
        connect(refusing_address(), task_group=group)
    gc.collect()  # a complaint from a finalizer would be an error here


async def test_an_error_does_not_collect_tracebacks() -> None:
    socket = connect(refusing_address())
    depths = []
    for _ in range(3):
        with pytest.raises(RefusedError) as caught:
            await socket.opened
        depths.append(len(caught.traceback))
    assert depths[1] == depths[2]


async def test_unresolvable() -> None:
    socket = connect("host.invalid:80")
    with pytest.raises(ResolveError, match=r"cannot resolve 'host\.invalid'") as caught:
        await socket.opened
    assert isinstance(caught.value, stdlib.gaierror)
    assert isinstance(caught.value.__cause__, stdlib.gaierror)
    assert "HTTP client" in "".join(vars(caught.value)["__notes__"])


async def test_connect_timeout() -> None:
    async with full() as listener:
        socket = connect(listener.address, connect_timeout=0.05)
        with pytest.raises(ConnectTimeoutError, match=r"no connection within 0\.05 seconds"):
            await socket.opened
        assert isinstance(socket.opened.exception(), TimeoutError)
        await socket.close()


# --- the peer ends


async def test_peer_ends_in_default_mode() -> None:
    async with connected() as (socket, peer):
        await peer.send(b"last words")
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        assert await socket.receive() == b"last words"
        assert not socket.closed.done()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        assert socket.closed.done()
        assert await settle(socket.closed) is None
        assert await peer.receive_all() == b""
        with pytest.raises(ClosedError, match="cannot send"):
            await socket.send(b"x")
        with pytest.raises(ClosedError):
            await socket.send(b"")
        with pytest.raises(anyio.EndOfStream):  # the end stays the end
            await socket.receive()
        await socket.send_eof()  # a second end does nothing
        await socket.writable.aclose()
        assert raw(socket).fileno() == -1


async def test_an_empty_send_sends_nothing_and_breaks_nothing() -> None:
    """Over TLS as well, where nothing is no record: see test_tls_transport.py."""
    async with connected() as (socket, peer):
        await peer.send(b"last words")
        peer.rst()
        arrived(socket, select.POLLERR)
        await socket.send(b"")
        assert not socket.closed.done()
        assert await socket.receive() == b"last words"
        with pytest.raises(BrokenError):
            await socket.receive()


async def test_peer_ends_in_half_open_mode() -> None:
    async with connected(half_open=True) as (socket, peer):
        peer.fin()
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await socket.receive()
        assert not socket.closed.done()
        await socket.send(b"still here")
        await socket.send_eof()
        assert socket.closed.done()
        assert await peer.receive_all() == b"still here"
        assert await settle(socket.closed) is None


async def test_peer_ends_while_a_send_is_in_flight() -> None:
    async with connected() as (socket, peer):
        outcome: list[BaseException | None] = []
        async with anyio.create_task_group() as group:
            group.start_soon(blocked_send, socket, outcome)
            await all_blocked()
            peer.fin()
            with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
                await socket.receive()  # at once: the send does not hold it up
            assert not socket.closed.done()
            assert len(await peer.receive_all()) == BIG
        assert outcome == [None]
        assert socket.closed.result() is None
        with pytest.raises(ClosedError):
            await socket.send(b"x")


@pytest.mark.parametrize("half_open", [False, True])
async def test_we_end_first(half_open: bool) -> None:
    async with connected(half_open=half_open) as (socket, peer):
        await socket.send(b"question")
        await socket.send_eof()
        await socket.send_eof()
        await socket.writable.aclose()
        assert await peer.receive_all() == b"question"
        with pytest.raises(ClosedError):
            await socket.send(b"x")
        await peer.send(b"answer")
        assert await socket.receive() == b"answer"
        assert not socket.closed.done()
        peer.fin()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        assert await settle(socket.closed) is None


async def test_unread_end_stays_unnoticed_by_the_data_path() -> None:
    async with connected() as (socket, peer):
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        await socket.send(b"sent all the same")
        assert not socket.closed.done()
        assert await peer.receive() == b"sent all the same"


# --- closed watches


async def test_closed_notices_an_end_without_reading() -> None:
    async with connected() as (socket, peer):
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                with anyio.fail_after(5):
                    await socket.closed

            group.start_soon(watch)
            await all_blocked()
            peer.fin()
        assert await peer.receive_all() == b""
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()


async def test_closed_waits_until_buffered_data_is_read() -> None:
    async with connected() as (socket, peer):
        await peer.send(b"abc")
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await socket.closed

            group.start_soon(watch)
            await all_blocked()
            for byte in (b"a", b"b"):
                assert await socket.receive(1) == byte
                await all_blocked()
                assert not socket.closed.done()
            assert await socket.receive() == b"c"
            with anyio.fail_after(5):
                await socket.closed  # without a receive that says so
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()


async def test_closed_takes_no_data() -> None:
    async with connected() as (socket, peer):
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await socket.closed

            group.start_soon(watch)
            await all_blocked()
            for number in range(20):
                await peer.send(b"%d" % number)
                assert await socket.receive() == b"%d" % number
                await socket.send(b"x")
            assert not socket.closed.done()
            group.cancel_scope.cancel()
        assert not socket.closed.done()


async def test_closed_in_half_open_mode_needs_both_ends() -> None:
    async with connected(half_open=True) as (socket, peer), anyio.create_task_group() as group:

        async def watch() -> None:
            await socket.closed

        group.start_soon(watch)
        await all_blocked()
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        await all_blocked()
        assert not socket.closed.done()
        await socket.send(b"x")
        assert not socket.closed.done()
        await socket.send_eof()
        with anyio.fail_after(5):
            await socket.closed


async def test_a_reset_after_the_end_in_half_open_mode_is_noticed() -> None:
    async with connected(half_open=True) as (socket, peer):
        peer.fin()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                assert isinstance(await settle(socket.closed), BrokenError)

            group.start_soon(watch)
            await all_blocked()
            peer.rst()
        with pytest.raises(BrokenError):
            await socket.send(b"x")
        with pytest.raises(anyio.EndOfStream):  # what the peer said before, it said
            await socket.receive()


async def test_a_cancelled_watcher_hands_over() -> None:
    async with connected() as (socket, peer):
        first = anyio.CancelScope()

        async def watch(scope: anyio.CancelScope) -> None:
            with scope:
                await socket.closed

        async with anyio.create_task_group() as group:
            group.start_soon(watch, first)
            await all_blocked()
            group.start_soon(watch, anyio.CancelScope())
            await all_blocked()
            first.cancel()
            await all_blocked()
            peer.fin()
            with anyio.fail_after(5):
                await socket.closed


# --- resets


async def test_reset_while_receiving() -> None:
    async with connected() as (socket, peer):
        async with anyio.create_task_group() as group:

            async def receive() -> None:
                with pytest.raises(BrokenError, match="while receiving") as caught:
                    await socket.receive()
                assert isinstance(caught.value.__cause__, ConnectionResetError)
                assert isinstance(caught.value, anyio.BrokenResourceError)

            group.start_soon(receive)
            await all_blocked()
            peer.rst()
        error = await settle(socket.closed)
        assert isinstance(error, BrokenError)
        for call in (socket.receive, socket.send_eof, lambda: socket.send(b"x")):
            with pytest.raises(BrokenError):
                await call()
        await socket.writable.aclose()
        await socket.close()
        assert is_copy(socket.closed.exception(), error)
        with pytest.raises(ClosedError):  # after close() it is closed first of all
            await socket.receive()


async def test_reset_while_sending() -> None:
    async with connected() as (socket, peer):
        outcome: list[BaseException | None] = []
        async with anyio.create_task_group() as group:
            group.start_soon(blocked_send, socket, outcome)
            await all_blocked()
            peer.rst()
        assert isinstance(outcome[0], BrokenError)
        assert is_copy(await settle(socket.closed), outcome[0])
        with pytest.raises(BrokenError):
            await socket.receive()


async def test_reset_while_watching() -> None:
    async with connected() as (socket, peer), anyio.create_task_group() as group:

        async def watch() -> None:
            error = await settle(socket.closed)
            assert isinstance(error, BrokenError)
            assert isinstance(error.__cause__, ConnectionResetError)

        group.start_soon(watch)
        await all_blocked()
        peer.rst()


async def test_what_came_before_a_reset_can_be_read() -> None:
    """A server that answers and hangs up while we still send: its answer is not lost."""
    async with connected() as (socket, peer):
        await answered_and_reset(socket, peer)
        with pytest.raises(BrokenError):
            await socket.send(b"more")
        assert isinstance(await settle(socket.closed), BrokenError)
        assert await socket.receive() == b"413 too large"
        with pytest.raises(BrokenError):  # and a reset is no end
            await socket.receive()


async def test_a_lost_send_lets_go_where_nothing_is_unread() -> None:
    """Nobody has to read or close before the descriptor is free."""
    async with connected(half_open=True) as (socket, peer):
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        peer.close()

        async def send_on() -> None:  # until the reset that the first one provokes is here
            while True:
                await socket.send(b"x")

        with pytest.raises(BrokenError) as caught:
            await send_on()
        assert is_copy(socket.closed.exception(), caught.value)
        assert raw(socket).fileno() == -1


async def test_it_is_the_first_error_that_is_told() -> None:
    async with connected() as (socket, peer):
        await answered_and_reset(socket, peer)
        with pytest.raises(BrokenError, match="sending") as sending:
            await socket.send(b"more")
        assert await socket.receive() == b"413 too large"
        for call in (socket.receive, partial(socket.send, b"more")):
            with pytest.raises(BrokenError) as caught:
                await call()
            assert is_copy(caught.value, sending.value)
        assert is_copy(socket.closed.exception(), sending.value)


async def test_closed_notices_an_end_that_nobody_wants_to_read() -> None:
    async with connected() as (socket, peer), anyio.create_task_group() as group:

        async def watch() -> None:
            assert await settle(socket.closed) is None

        await socket.readable.aclose()
        group.start_soon(watch)
        await all_blocked()
        assert not socket.closed.done()
        peer.fin()


async def test_closed_notices_a_reset_where_nobody_wants_to_read() -> None:
    async with connected(half_open=True) as (socket, peer), anyio.create_task_group() as group:

        async def watch() -> None:
            assert isinstance(await settle(socket.closed), BrokenError)

        await socket.readable.aclose()
        group.start_soon(watch)
        await all_blocked()
        peer.rst()


async def test_a_watched_reset_leaves_unread_data_too() -> None:
    async with connected() as (socket, peer):
        await peer.send(b"answer")
        arrived(socket)
        peer.rst()
        assert isinstance(await settle(socket.closed), BrokenError)
        assert await socket.receive() == b"answer"
        with pytest.raises(BrokenError):
            await socket.receive()
        assert raw(socket).fileno() == -1


# --- close()


async def test_close() -> None:
    async with connected() as (socket, peer):
        await socket.send(b"bye")
        await socket.close()
        await socket.close()
        await socket.aclose()
        assert await peer.receive_all() == b"bye"
        assert socket.closed.result() is None
        for call in (socket.receive, socket.send_eof, lambda: socket.send(b"x")):
            with pytest.raises(ClosedError):
                await call()
        await socket.readable.aclose()
        await socket.writable.aclose()
        await socket.writable.abort()
        assert socket.closed.result() is None


async def test_close_wakes_a_receive_and_lets_a_send_finish() -> None:
    async with connected() as (socket, peer):
        outcome: list[BaseException | None] = []
        async with anyio.create_task_group() as group:

            async def receive() -> None:
                with pytest.raises(ClosedError):
                    await socket.receive()
                outcome.append(ClosedError())

            group.start_soon(blocked_send, socket, outcome)
            group.start_soon(receive)
            await all_blocked()
            group.start_soon(socket.close)
            await all_blocked()
            assert len(outcome) == 1  # the receive, at once
            assert not socket.closed.done()
            with pytest.raises(ClosedError):
                await socket.send(b"too late")
            with pytest.raises(ClosedError):
                await socket.send_eof()
            assert len(await peer.receive_all()) == BIG
        assert outcome[1] is None
        assert socket.closed.result() is None


async def test_cancelled_close_is_forced() -> None:
    async with connected() as (socket, peer):
        outcome: list[BaseException | None] = []
        async with anyio.create_task_group() as group:
            group.start_soon(blocked_send, socket, outcome)
            await all_blocked()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await socket.close()
            assert scope.cancelled_caught
            with pytest.raises(BrokenError, match="cancelled while a send was in flight"):
                socket.closed.result()
        assert isinstance(outcome[0], ClosedError)
        with pytest.raises(ConnectionResetError):  # a piece is not passed off as the whole
            await peer.receive_all()


async def test_cancelled_close_with_nothing_in_flight_is_graceful() -> None:
    async with connected() as (socket, peer):
        await socket.send(b"all of it")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await socket.close()
        assert socket.closed.result() is None
        assert await peer.receive_all() == b"all of it"


async def test_two_tasks_close() -> None:
    async with connected() as (socket, peer):
        outcome: list[BaseException | None] = []
        async with anyio.create_task_group() as group:
            group.start_soon(blocked_send, socket, outcome)
            await all_blocked()
            group.start_soon(socket.close)
            group.start_soon(socket.close)
            await all_blocked()
            assert not socket.closed.done()
            await peer.receive_all()
        assert outcome == [None]


async def test_close_with_unread_data_still_delivers_what_was_sent() -> None:
    async with connected() as (socket, peer):
        await peer.send(bytes(100_000))
        arrived(socket)
        await socket.send(b"last words")
        await socket.close()
        assert await peer.receive_all() == b"last words"


async def test_close_before_open_does_not_dial() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        await socket.close()
        assert socket.closed.result() is None
        with pytest.raises(ClosedError, match="before the connection was made"):
            await socket.opened
        with pytest.raises(ClosedError):
            await socket.send(b"x")
        with pytest.raises(BlockingIOError):
            listener.sock.accept()


async def test_close_during_the_dial_stops_it() -> None:
    async with full() as listener:
        socket = connect(listener.address)

        async def open_() -> None:
            with pytest.raises(ClosedError):
                await socket.opened

        async with anyio.create_task_group() as group:
            group.start_soon(open_)
            await all_blocked()
            with anyio.fail_after(5):
                await socket.close()
            assert socket.closed.result() is None


async def test_close_during_the_dial_returns_when_nothing_is_left_of_it() -> None:
    async with listening() as listener:
        opener = Slow(dial(listener.address))
        socket = opened_by(opener)
        closed = False

        async def open_() -> None:
            with pytest.raises(ClosedError):
                await socket.opened

        async def close() -> None:
            nonlocal closed
            await socket.close()
            closed = True

        async with anyio.create_task_group() as group:
            group.start_soon(open_)
            await all_blocked()
            group.start_soon(close)
            await all_blocked()
            assert not closed
            opener.stop.set()
        assert closed
        assert opener.discarded


async def test_close_while_another_task_watches() -> None:
    async with connected() as (socket, _), anyio.create_task_group() as group:

        async def watch() -> None:
            await socket.closed

        group.start_soon(watch)
        await all_blocked()
        await socket.close()


async def test_reset_while_close_flushes() -> None:
    async with connected() as (socket, peer):
        outcome: list[BaseException | None] = []
        async with anyio.create_task_group() as group:
            group.start_soon(blocked_send, socket, outcome)
            await all_blocked()
            group.start_soon(socket.close)
            await all_blocked()
            peer.rst()
        assert isinstance(outcome[0], BrokenError)  # which was there before close()
        assert isinstance(await settle(socket.closed), BrokenError)
        for call in (socket.receive(), socket.send(b"x"), socket.send_eof()):
            with pytest.raises(ClosedError):
                await call


async def test_async_with_closes_after_an_error() -> None:
    async with listening() as listener:
        with pytest.raises(KeyError):
            async with connect(listener.address) as socket:
                raise KeyError
        assert socket.closed.result() is None


async def test_async_with_cancelled_on_entry_closes() -> None:
    async with listening() as listener, anyio.create_task_group() as group:
        socket = connect(listener.address, task_group=group)
        await socket.opened
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with socket:
                pytest.fail("entered although cancelled")
        assert scope.cancelled_caught
        assert socket.closed.result() is None


# --- each half by itself


async def test_readable_aclose() -> None:
    async with connected() as (socket, peer):
        async with anyio.create_task_group() as group:

            async def receive() -> None:
                with pytest.raises(ClosedError):
                    await socket.receive()

            group.start_soon(receive)
            await all_blocked()
            await socket.readable.aclose()
        await socket.readable.aclose()
        with pytest.raises(ClosedError, match="cannot receive"):
            await socket.receive()
        await socket.send(b"writing lives on")
        assert await peer.receive() == b"writing lives on"
        assert not socket.closed.done()
        await socket.send_eof()
        assert socket.closed.result() is None


async def test_writable_aclose_waits_for_a_send() -> None:
    async with connected() as (socket, peer):
        outcome: list[BaseException | None] = []
        async with anyio.create_task_group() as group:
            group.start_soon(blocked_send, socket, outcome)
            await all_blocked()
            group.start_soon(socket.writable.aclose)
            await all_blocked()
            assert len(await peer.receive_all()) == BIG
        assert outcome == [None]
        await peer.send(b"reading goes on")
        assert await socket.receive() == b"reading goes on"


@pytest.mark.slow
async def test_writable_aclose_waits_for_a_send_that_has_to_connect_first() -> None:
    async with listening(receive_buffer=16384) as listener:
        opener = Slow(dial(listener.address))
        socket = opened_by(opener)
        outcome: list[BaseException | None] = []
        async with anyio.create_task_group() as group:
            group.start_soon(blocked_send, socket, outcome)
            await all_blocked()
            group.start_soon(socket.writable.aclose)
            await all_blocked()
            opener.go_on.set()
            peer = await listener.accept()
            assert len(await peer.receive_all()) == BIG
        assert outcome == [None]
        await socket.close()


async def test_cancelled_writable_aclose_drops_a_send() -> None:
    async with connected() as (socket, peer):
        outcome: list[BaseException | None] = []
        async with anyio.create_task_group() as group:
            group.start_soon(blocked_send, socket, outcome)
            await all_blocked()
            await anyio.aclose_forcefully(socket.writable)
        assert isinstance(outcome[0], BrokenError)
        with pytest.raises(ConnectionResetError):
            await peer.receive_all()


async def test_cancelled_writable_aclose_still_ends() -> None:
    async with connected() as (socket, peer):
        await socket.send(b"x")
        await anyio.aclose_forcefully(socket.writable)
        assert await peer.receive_all() == b"x"
        await peer.send(b"y")
        assert await socket.receive() == b"y"


@pytest.mark.parametrize("reason", [None, "no more", ValueError("bad row")])
async def test_abort(reason: object) -> None:
    async with connected() as (socket, peer):
        async with anyio.create_task_group() as group:

            async def receive() -> None:
                with pytest.raises(BrokenError, match="aborted on our side"):
                    await socket.receive()

            group.start_soon(receive)
            await all_blocked()
            await socket.writable.abort(reason)
        with pytest.raises(ConnectionResetError):
            await peer.receive_all()
        error = socket.closed.exception()
        assert isinstance(error, BrokenError)
        if isinstance(reason, Exception):
            assert is_copy(error.__cause__, reason)
        else:
            assert error.__cause__ is None
        assert str(reason) in str(error) or reason is None
        with pytest.raises(BrokenError) as caught:
            await socket.send(b"x")
        assert is_copy(caught.value, error)
        await socket.writable.abort()


async def test_abort_before_open() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        await socket.writable.abort("never mind")
        for future in (socket.opened, socket.closed):
            with pytest.raises(BrokenError, match="never mind"):
                await future
        with pytest.raises(BlockingIOError):
            listener.sock.accept()


async def test_abort_after_our_end_does_nothing() -> None:
    async with connected() as (socket, peer):
        await socket.send_eof()
        await socket.writable.abort("too late")
        await peer.send(b"x")
        assert await socket.receive() == b"x"


# --- cancelled calls


async def test_a_send_cancelled_part_way_breaks_the_writable_only() -> None:
    async with connected() as (socket, peer):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def cancel() -> None:
                    await all_blocked()
                    scope.cancel()

                group.start_soon(cancel)
                await socket.send(bytes(BIG))
        with pytest.raises(BrokenError, match="cut short"):
            await socket.send(b"x")
        with pytest.raises(BrokenError, match="cut short"):
            await socket.send_eof()
        assert not socket.closed.done()
        await peer.send(b"reading goes on")
        assert await socket.receive() == b"reading goes on"
        await socket.close()
        with pytest.raises(BrokenError, match="cut short"):
            socket.closed.result()
        with pytest.raises(ConnectionResetError):
            await peer.receive_all()


async def test_peer_ends_after_a_torn_send() -> None:
    async with connected() as (socket, peer):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def cancel() -> None:
                    await all_blocked()
                    scope.cancel()

                group.start_soon(cancel)
                await socket.send(bytes(BIG))
        peer.fin()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        assert isinstance(socket.closed.exception(), BrokenError)
        with pytest.raises(ConnectionResetError):
            await peer.receive_all()


async def test_a_send_cancelled_beforehand_has_done_nothing() -> None:
    async with connected() as (socket, peer):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await socket.send(b"never")
        await socket.send(b"sent")
        assert await peer.receive() == b"sent"


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with connected() as (socket, peer):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def cancel() -> None:
                    await all_blocked()
                    await peer.send(b"data")
                    arrived(socket)
                    scope.cancel()

                group.start_soon(cancel)
                data = await socket.receive()
                pytest.fail(f"cancelled, and yet it returned {data!r}")
        assert await socket.receive() == b"data"


# --- two tasks, and what is not bytes


async def test_busy() -> None:
    async with connected() as (socket, peer):
        outcome: list[BaseException | None] = []
        async with anyio.create_task_group() as group:
            group.start_soon(blocked_send, socket, outcome)
            group.start_soon(socket.receive)
            await all_blocked()
            with pytest.raises(anyio.BusyResourceError, match="receiving from"):
                await socket.receive()
            with pytest.raises(anyio.BusyResourceError, match="sending to"):
                await socket.send(b"x")
            with pytest.raises(anyio.BusyResourceError):
                await socket.send_eof()
            await peer.send(b"x")
            await peer.receive_exactly(BIG)
        assert outcome == [None]


async def test_full_duplex() -> None:
    ours, theirs = await socket_pair()
    data = bytes(range(256)) * 4096 * 8

    async def send(socket: Socket) -> None:
        await socket.send(data)
        await socket.send_eof()

    async def receive(socket: Socket) -> None:
        received = [chunk async for chunk in socket.readable]
        assert b"".join(received) == data

    async with anyio.create_task_group() as group:
        for socket in (ours, theirs):
            group.start_soon(send, socket)
            group.start_soon(receive, socket)
    assert ours.closed.result() is None
    assert theirs.closed.result() is None


@pytest.mark.parametrize("item", ["text", None, 5, [1, 2], memoryview(b"abcd")[::2]])
async def test_only_bytes_can_be_sent(item: Any) -> None:
    async with connected() as (socket, peer):
        with pytest.raises(TypeError, match="bytes") as caught:
            await socket.send(item)
        assert ("encode it first" in str(caught.value)) is isinstance(item, str)
        await socket.send(b"and nothing was sent")
        await socket.send_eof()
        assert await peer.receive_all() == b"and nothing was sent"


async def test_bytes_like_can_be_sent() -> None:
    async with connected() as (socket, peer):
        buffer = bytearray(b"b")
        await socket.send(b"a")
        await socket.send(buffer)
        buffer.clear()  # nothing holds on to it
        await socket.send(memoryview(b"ccdd").cast("H"))
        await socket.send(b"")
        await socket.send_eof()
        assert await peer.receive_all() == b"abccdd"


@pytest.mark.parametrize(
    ("max_bytes", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)]
)
async def test_max_bytes(max_bytes: Any, error: type[Exception]) -> None:
    async with connected() as (socket, _):
        with pytest.raises(error, match="max_bytes"):
            await socket.receive(max_bytes)


# --- as AnyIO streams


async def test_types_and_attributes() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        assert isinstance(socket, ByteStream)
        assert isinstance(socket.readable, ByteReceiveStream)
        assert isinstance(socket.writable, ByteSendStream)
        assert socket.extra(SocketAttribute.remote_port, None) is None  # not open yet
        async with socket:
            for stream in (socket, socket.readable, socket.writable):
                assert stream.extra(SocketAttribute.remote_address) == listener.address
                assert stream.extra(SocketAttribute.remote_port) == listener.address[1]
                assert stream.extra(SocketAttribute.family) is stdlib.AF_INET
                local = raw(socket).getsockname()
                assert stream.extra(SocketAttribute.local_address) == local
                assert stream.extra(SocketAttribute.local_port) == local[1]
                assert stream.extra(SocketAttribute.raw_socket) is raw(socket)


def test_options_go_by_name() -> None:
    anything: Any = connect
    with pytest.raises(TypeError, match="positional"):
        anything("127.0.0.1:1", True)
    anything = connect("127.0.0.1:1", secure_transport="starttls")
    with pytest.raises(TypeError, match="positional"):
        anything.start_tls("example.com")
    with pytest.raises(TypeError, match="positional"):
        anything.readable.pipe_to(anything.writable, True)


def test_futures_and_streams_are_read_only() -> None:
    socket = connect("127.0.0.1:1")
    for name in ("readable", "writable", "opened", "closed", "upgraded", "secure_transport"):
        with pytest.raises(AttributeError):
            setattr(socket, name, None)


# --- pipe_to


class Unspeakable:
    def __str__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("red \x1b[31m\r\n", r"red \x1b[31m\r\n"),
        ("x" * 1000, "x...x"),
        (Unspeakable(), "Unspeakable"),
    ],
    ids=["escapes", "long", "unspeakable"],
)
async def test_the_reason_of_an_abort_is_fit_for_a_log(reason: object, told: str) -> None:
    async with connected() as (socket, _):
        await socket.writable.abort(reason)
        error = await settle(socket.closed)
        assert told in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 200


async def test_pipe_to_copies_and_ends() -> None:
    async with connected(half_open=True) as (source, sender), connected() as (sink, receiver):
        data = bytes(range(256)) * 40_000

        async with anyio.create_task_group() as group:

            async def feed() -> None:
                await sender.send(data)
                sender.fin()

            group.start_soon(feed)
            group.start_soon(source.readable.pipe_to, sink.writable)
            assert await receiver.receive_all() == data
        await receiver.send(b"only the writable was ended")
        assert await sink.receive() == b"only the writable was ended"


async def test_pipe_to_waits_for_a_slow_destination() -> None:
    async with (
        connected() as (source, sender),
        connected() as (sink, receiver),
        anyio.create_task_group() as group,
    ):
        group.start_soon(source.readable.pipe_to, sink.writable)
        sent = await sender.fill()
        sender.fin()
        assert len(await receiver.receive_all()) == sent


async def test_pipe_to_aborts_the_destination_when_the_source_fails() -> None:
    async with connected() as (source, sender), connected() as (sink, receiver):
        sender.rst()
        with pytest.raises(BrokenError) as caught:
            await source.readable.pipe_to(sink.writable)
        error = sink.closed.exception()
        assert isinstance(error, BrokenError)
        assert is_copy(error.__cause__, caught.value)
        with pytest.raises(ConnectionResetError):
            await receiver.receive_all()


async def test_pipe_to_cancels_the_source_when_the_destination_fails() -> None:
    async with connected() as (source, sender), connected() as (sink, receiver):
        receiver.rst()
        arrived(sink, select.POLLERR)
        await sender.send(b"x")
        with pytest.raises(BrokenError):
            await source.readable.pipe_to(sink.writable)
        with pytest.raises(ClosedError):
            await source.receive()
        await source.send(b"the other half lives on")
        assert await sender.receive() == b"the other half lives on"


async def test_cancelled_pipe_to_ends_both() -> None:
    async with connected() as (source, _), connected() as (sink, receiver):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def cancel() -> None:
                    await all_blocked()
                    scope.cancel()

                group.start_soon(cancel)
                await source.readable.pipe_to(sink.writable)
        assert isinstance(sink.closed.exception(), BrokenError)
        with pytest.raises(ConnectionResetError):
            await receiver.receive_all()
        with pytest.raises(ClosedError):
            await source.receive()


async def test_pipe_to_prevent() -> None:
    async with connected(half_open=True) as (source, sender), connected() as (sink, receiver):
        await sender.send(b"one")
        sender.fin()
        await source.readable.pipe_to(sink.writable, prevent_close=True)
        await sink.send(b" two")
        assert await receiver.receive_exactly(7) == b"one two"
    async with connected() as (source, sender), connected() as (sink, receiver):
        sender.rst()
        with pytest.raises(BrokenError):
            await source.readable.pipe_to(sink.writable, prevent_abort=True)
        await sink.send(b"alive")
        assert await receiver.receive() == b"alive"
    async with connected() as (source, sender), connected() as (sink, _):
        await sender.send(b"x")
        await sink.send_eof()
        with pytest.raises(ClosedError):
            await source.readable.pipe_to(sink.writable, prevent_cancel=True)
        assert await source.receive() == b"x"


async def test_pipe_to_any_byte_stream() -> None:
    class Collect(ByteSendStream):
        def __init__(self) -> None:
            self.items: list[bytes] = []
            self.closed = False

        async def send(self, item: bytes) -> None:
            self.items.append(item)

        async def aclose(self) -> None:
            self.closed = True

    async with connected() as (source, sender):
        await sender.send(b"abc")
        sender.fin()
        collect = Collect()
        await source.readable.pipe_to(collect)
        assert b"".join(collect.items) == b"abc"
        assert collect.closed
    async with connected() as (source, sender):
        sender.rst()
        collect = Collect()
        with pytest.raises(BrokenError):
            await source.readable.pipe_to(collect)
        assert collect.closed


async def test_pipe_to_a_socket_means_its_writable() -> None:
    async with connected() as (source, sender), connected() as (sink, receiver):
        await sender.send(b"whole")
        sender.fin()
        await source.readable.pipe_to(sink)
        assert await receiver.receive_all() == b"whole"
        await receiver.send(b"only that half has ended")
        assert await sink.receive() == b"only that half has ended"
    async with connected() as (source, sender), connected() as (sink, receiver):
        await sender.send(b"a piece")
        arrived(source)
        sender.rst()
        with pytest.raises(BrokenError):
            await source.readable.pipe_to(sink)
        with pytest.raises(ConnectionResetError):
            await receiver.receive_all()


async def test_pipe_to_leaves_alone_what_another_task_uses() -> None:
    async with connected() as (source, sender), connected() as (sink, receiver):
        async with anyio.create_task_group() as group:
            group.start_soon(source.receive)
            await all_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await source.readable.pipe_to(sink.writable)
            await sender.send(b"x")
        await sink.send(b"not aborted")
        assert await receiver.receive() == b"not aborted"


# --- what goes on in between


@pytest.mark.parametrize("direction", ["receive", "send"])
async def test_a_descriptor_is_free_only_when_nobody_waits_for_it(direction: str) -> None:
    """Who closes while another waits must not hand the number to a newcomer who waits too."""
    async with connected() as (socket, _), anyio.create_task_group() as group:
        outcome: list[BaseException | None] = []

        async def receive() -> None:
            with pytest.raises(BrokenError):
                await socket.receive()

        if direction == "receive":
            group.start_soon(receive)
        else:
            group.start_soon(blocked_send, socket, outcome)
        await all_blocked()
        number = raw(socket).fileno()

        go = anyio.Event()
        ours, theirs = stdlib.socketpair()

        async def newcomer() -> None:
            await go.wait()
            # Takes the lowest number that is free, then waits for it in the same turn.
            with stdlib.socket(fileno=ours.detach()) as taken:
                copy = taken.dup()
            copy.setblocking(False)
            with copy:
                with anyio.fail_after(5):
                    await anyio.wait_readable(copy)
                assert copy.recv(1) == b"x"

        async def drop() -> None:
            await go.wait()
            await socket.writable.abort()

        with theirs:
            group.start_soon(drop)
            group.start_soon(newcomer)
            await all_blocked()
            go.set()
            await all_blocked()
            assert number >= 0
            theirs.send(b"x")


async def test_a_receive_may_ask_for_any_amount() -> None:
    async with connected() as (socket, peer):
        await peer.send(b"data")
        assert await socket.receive(sys.maxsize) == b"data"
        await peer.send(b"data")
        assert await socket.receive(1 << 70) == b"data"
