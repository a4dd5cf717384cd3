"""How a socket ends: by its peer, by a reset, by ``close()``, and each direction by itself."""

from __future__ import annotations

import select
from functools import partial

import anyio
import pytest

from anyio_connect import (
    BrokenError,
    ClosedError,
    Socket,
    connect,
)
from support.errors import is_copy
from support.peers import Peer, full, listening
from support.sockets import (
    BIG,
    Slow,
    arrived,
    blocked_send,
    connected,
    needs_poll,
    opened_by,
    raw,
    settle,
)
from support.tls_peers import dial
from support.turns import all_blocked


async def answered_and_reset(socket: Socket, peer: Peer) -> None:
    """Have the peer answer and then reset, by closing with unread data; wait for both."""
    await socket.send(b"unread, so closing resets")
    arrived_at = select.poll()
    arrived_at.register(peer.sock, select.POLLIN)
    assert arrived_at.poll(5000)
    await peer.send(b"413 too large")
    peer.close()
    arrived(socket, select.POLLERR)


# --- the peer ends


@needs_poll
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
        with pytest.raises(anyio.EndOfStream):  # again: the end is final
            await socket.receive()
        await socket.send_eof()  # a second end does nothing
        await socket.writable.aclose()
        assert raw(socket).fileno() == -1


@needs_poll
async def test_an_empty_send_sends_nothing_and_breaks_nothing() -> None:
    """Over TLS, an empty send makes no record either: see test_tls_transport.py."""
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
                await socket.receive()  # at once: it does not wait for the send
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


@needs_poll
async def test_a_send_does_not_notice_the_peers_end() -> None:
    async with connected() as (socket, peer):
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        await socket.send(b"sent all the same")
        assert not socket.closed.done()
        assert await peer.receive() == b"sent all the same"


# --- what ``closed`` notices


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


@needs_poll
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
                await socket.closed  # although no receive has raised EndOfStream
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


@needs_poll
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
        with pytest.raises(anyio.EndOfStream):  # the peer's end came before the reset
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
        with pytest.raises(ClosedError):  # after close(), this is always the error
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


@needs_poll
async def test_data_before_a_reset_can_be_received() -> None:
    """A server that answers and hangs up while we still send: its answer is not lost."""
    async with connected() as (socket, peer):
        await answered_and_reset(socket, peer)
        with pytest.raises(BrokenError):
            await socket.send(b"more")
        assert isinstance(await settle(socket.closed), BrokenError)
        assert await socket.receive() == b"413 too large"
        with pytest.raises(BrokenError):  # a reset is not an end
            await socket.receive()


@needs_poll
async def test_a_failed_send_closes_the_descriptor_if_nothing_is_unread() -> None:
    """No other task has to receive or close for that."""
    async with connected(half_open=True) as (socket, peer):
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        peer.close()

        async def send_on() -> None:  # until the reset that answers the first send arrives
            while True:
                await socket.send(b"x")

        with pytest.raises(BrokenError) as caught:
            await send_on()
        assert is_copy(socket.closed.exception(), caught.value)
        assert raw(socket).fileno() == -1


@needs_poll
async def test_later_calls_raise_the_first_error() -> None:
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


async def test_closed_notices_an_end_after_we_stopped_reading() -> None:
    async with connected() as (socket, peer), anyio.create_task_group() as group:

        async def watch() -> None:
            assert await settle(socket.closed) is None

        await socket.readable.aclose()
        group.start_soon(watch)
        await all_blocked()
        assert not socket.closed.done()
        peer.fin()


async def test_closed_notices_a_reset_after_we_stopped_reading() -> None:
    async with connected(half_open=True) as (socket, peer), anyio.create_task_group() as group:

        async def watch() -> None:
            assert isinstance(await settle(socket.closed), BrokenError)

        await socket.readable.aclose()
        group.start_soon(watch)
        await all_blocked()
        peer.rst()


async def test_closed_notices_a_reset_and_leaves_the_unread_data() -> None:
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
            assert len(outcome) == 1  # of the receive, which ends at once
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
        with pytest.raises(ConnectionResetError):  # the peer cannot take a piece for the whole
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


async def test_close_during_the_dial_returns_when_the_dial_has_stopped() -> None:
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
        assert isinstance(outcome[0], BrokenError)  # the send began before close()
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
