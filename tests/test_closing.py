"""close(): data that send() accepted arrives, and no peer can make close() wait for ever."""

from __future__ import annotations

import errno
import logging
import math
import random
import select
import socket as stdlib
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from operator import attrgetter
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint

from anyio_connect import BrokenError, ClosedError, Socket, _linger, _watch, connect
from anyio_connect._keepalive import limit_of
from anyio_connect._linger import Patience, outstanding
from anyio_connect._readiness import Readiness, by_anyio
from anyio_connect._tcp import TCPTransport
from anyio_connect._transport import ForeignTransport
from support.peers import Peer, listening
from support.sockets import (
    BIG,
    Made,
    Slow,
    arrived,
    connected,
    dialled,
    needs_poll,
    opened_by,
    raw,
    settle,
    socket_over,
    use_up_the_turn,
)
from support.tls_peers import TLS12, TLS13, over_tcp, server_context
from support.turns import all_blocked

linux_only = pytest.mark.skipif(
    not hasattr(_linger, "fcntl"), reason="only Linux tells how much the peer has acknowledged"
)

#: A close_timeout that runs out in the test, in seconds.
SOON = 0.2


async def filled(socket: Socket, peer: Peer, size: int = 300_000) -> bytes:
    """Send more than the peer's kernel takes: the rest is in ours, unacknowledged."""
    data = random.Random(size).randbytes(size)
    await socket.send(data)
    assert outstanding(raw(socket)) > 0
    return data


async def taken(peer: Peer) -> None:
    """Wait until our kernel has all that the peer sent: data after close() causes a reset."""
    while outstanding(peer.sock):
        await checkpoint()


async def reset_arrived(sock: stdlib.socket) -> None:
    """Wait until our kernel has the peer's reset, without taking the error from it."""
    poll = select.poll()
    poll.register(sock, 0)
    while not poll.poll(0):
        await checkpoint()


async def large_send_buffer(socket: Socket) -> None:
    """Make our kernel accept much more than the peer's receive buffer holds."""
    raw(socket).setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 1 << 20)


@linux_only
async def test_sent_data_arrives_while_the_peer_still_sends() -> None:
    async with connected(receive_buffer=4096) as (socket, peer):
        await large_send_buffer(socket)
        data = await filled(socket, peer)
        got = b""

        async def read_and_talk() -> None:
            nonlocal got
            while chunk := await peer.receive(4096):
                got += chunk
                await peer.send(b"250 ok\n")

        async with anyio.create_task_group() as group:
            group.start_soon(read_and_talk)
            await socket.close()
        assert got == data
        assert socket.closed.result() is None


@linux_only
async def test_data_that_the_peer_sends_after_our_close_causes_no_reset() -> None:
    """Such data is a session ticket of TLS, or the answer to a QUIT."""
    async with connected(receive_buffer=4096) as (socket, peer):
        await large_send_buffer(socket)
        data = await filled(socket, peer)
        async with anyio.create_task_group() as group:
            group.start_soon(socket.close)
            await all_blocked()
            for _ in range(3):
                await peer.send(b"late")
                await checkpoint()
            assert await peer.receive_all() == data


async def test_close_does_not_wait_if_everything_was_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*_: object, **__: object) -> None:
        raise AssertionError("close() waits")

    monkeypatch.setattr("anyio_connect._tcp.wait_arrival", never)
    async with connected() as (socket, peer):
        await socket.send(b"hello")
        assert await peer.receive_exactly(5) == b"hello"
        while outstanding(raw(socket)):
            await checkpoint()
        await socket.close()
        assert await peer.receive_all() == b""


@linux_only
async def test_close_does_not_wait_if_the_kernel_cannot_tell_what_was_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ioctl(*_: object) -> bytes:
        raise OSError(errno.ENOTTY, "not here")

    async with connected() as (socket, peer):
        await socket.send(b"hello")
        monkeypatch.setattr("fcntl.ioctl", ioctl)
        await socket.close()
        assert socket.closed.result() is None
        assert await peer.receive_all() == b"hello"


@pytest.mark.slow
@linux_only
async def test_close_gives_up_on_a_peer_that_acknowledges_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listening(receive_buffer=4096) as listener:
        socket = connect(listener.address, close_timeout=SOON)
        await socket.opened
        peer = await listener.accept()
        await large_send_buffer(socket)
        data = await filled(socket, peer)
        with caplog.at_level(logging.WARNING, logger="anyio_connect"):
            await socket.close()
        with pytest.raises(BrokenError, match=r"not acknowledged [1-9]\d* bytes") as caught:
            await socket.closed
        assert "0.2 seconds (close_timeout)" in str(caught.value)
        assert f"127.0.0.1:{listener.address[1]}: close() gave up" in caplog.text
        # The kernel still delivers everything if the peer reads it later.
        assert await peer.receive_all() == data


@linux_only
async def test_close_waits_for_a_slow_peer() -> None:
    """The time starts again with each byte that is acknowledged."""
    now = 0.0
    taken = 0
    steps = 0

    async def step() -> None:
        nonlocal steps, taken
        steps += 1
        if steps < 20:
            taken += 1
        await anyio.sleep_forever()

    class Clock:
        def __call__(self) -> float:
            nonlocal now
            now += 2.0
            return now

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio, "current_time", Clock())
        patch.setattr(_linger, "_LOOKS", 1e9)  # the next look follows at once
        patience = Patience(5.0, lambda: taken)
        tries = 0
        while await patience.wait(step):
            tries += 1
    assert tries == steps + taken  # wait() returns after each step and each progress
    assert 20 <= steps <= 23  # one step for each progress, and then 5 seconds


async def test_patience_without_a_limit() -> None:
    patience = Patience(math.inf, lambda: None)
    assert await patience.wait(checkpoint)


async def test_endless_progress_lets_other_tasks_run() -> None:
    moves = 0
    ran = anyio.Event()

    def progress() -> int:
        nonlocal moves
        moves += 1
        return moves

    async def run() -> None:
        ran.set()

    patience = Patience(5.0, progress)
    async with anyio.create_task_group() as group:
        group.start_soon(run)
        for _ in range(100):
            assert await patience.wait(anyio.sleep_forever)
        assert ran.is_set()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await patience.wait(anyio.sleep_forever)
        assert scope.cancelled_caught


@pytest.mark.slow
async def test_close_gives_up_a_blocked_send() -> None:
    outcome: list[BaseException] = []
    async with listening(receive_buffer=4096) as listener:
        socket = connect(listener.address, close_timeout=SOON)
        await socket.opened
        peer = await listener.accept()

        async def send() -> None:
            with pytest.raises(ClosedError) as caught:
                await socket.send(bytes(BIG))
            outcome.append(caught.value)

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await all_blocked()
            await socket.close()
        assert len(outcome) == 1
        with pytest.raises(BrokenError, match="gave up a send in flight"):
            await socket.closed
        with pytest.raises(ConnectionResetError):  # a piece must not look like the whole
            await peer.receive_all()


@pytest.mark.slow
async def test_close_gives_up_a_send_that_waits_for_the_connection() -> None:
    async with listening() as listener:
        opener = Slow(dialled(listener))
        opener.stop.set()
        socket = opened_by(opener, close_timeout=SOON)

        async def send() -> None:
            with pytest.raises(ClosedError):
                await socket.send(b"never")

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await all_blocked()
            await socket.close()
        assert opener.discarded
        assert isinstance(socket.opened.exception(), ClosedError)
        assert socket.closed.result() is None


async def test_close_does_not_deadlock_with_a_peer_that_sends_before_it_reads() -> None:
    """Such a peer reads nothing until its data is received: close() discards that data."""
    async with connected(receive_buffer=4096) as (socket, peer):

        async def talk_then_read() -> None:
            await peer.send(bytes(BIG // 8))
            peer.fin()
            assert len(await peer.receive_all()) == BIG // 8

        async with anyio.create_task_group() as group:
            group.start_soon(talk_then_read)
            group.start_soon(socket.send, bytes(BIG // 8))
            await all_blocked()
            await socket.close()
        assert socket.closed.result() is None


class Endless(ByteStream):
    """A foreign stream whose aclose() never returns."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(self, item: bytes) -> None: ...

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None:
        await anyio.sleep_forever()


@pytest.mark.slow
async def test_close_gives_up_on_a_foreign_stream_that_never_closes() -> None:
    socket = opened_by(Made(ForeignTransport(Endless())), close_timeout=SOON)
    await socket.send(b"hello")
    await socket.close()
    with pytest.raises(BrokenError, match="gave up waiting for the peer"):
        await socket.closed


async def test_a_foreign_stream_is_closed() -> None:
    class Quick(Endless):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1
            await checkpoint()

    stream = Quick()
    socket = opened_by(Made(ForeignTransport(stream)))
    await socket.send(b"hello")
    await socket.close()
    assert socket.closed.result() is None
    assert stream.closed == 1


async def test_a_receive_that_close_overtakes_gets_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It must not get data that came after what close() has discarded."""
    async with connected() as (socket, peer):
        transport = socket._connection.transport
        assert isinstance(transport, TCPTransport)

        async def others_run(_: Readiness) -> None:
            transport.stop_receiving()
            await checkpoint()

        monkeypatch.setattr(type(transport._ready), "enter", others_run)
        await peer.send(b"behind what was thrown away")
        arrived(socket)
        transport._drained = False  # so that it asks the kernel before it waits
        use_up_the_turn()
        with pytest.raises(anyio.ClosedResourceError):
            await transport.receive(10)


@pytest.mark.parametrize("into", [False, True])
async def test_the_data_of_a_receive_that_is_stopped_before_it_returns_is_kept(into: bool) -> None:
    """It may be a part of a TLS record, which a send that goes on reading needs."""
    async with connected() as (socket, peer):
        ready = by_anyio(raw(socket))
        transport = TCPTransport(raw(socket), ready)

        async def others_run() -> None:
            transport.stop_receiving()

        await peer.send(b"in two parts")
        arrived(socket)
        transport._drained = False  # so that it asks the kernel before it waits
        ready.leave = others_run
        with pytest.raises(anyio.ClosedResourceError):
            await (
                transport.receive_into(memoryview(bytearray(6))) if into else transport.receive(6)
            )
        assert transport.held == 6
        ready.leave = None
        transport.resume_receiving()
        assert await transport.receive() + await transport.receive() == b"in two parts"


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("more", [b"", b"more"])
async def test_data_stays_in_order_if_other_code_receives_during_a_receive(
    into: bool, more: bytes
) -> None:
    """A failing send over TLS reads too: it has to get the data that the receive has taken."""
    async with connected() as (socket, peer):
        ready = by_anyio(raw(socket))
        transport = TCPTransport(raw(socket), ready)
        taken = []

        async def others_run() -> None:
            taken.append(transport.receive_nowait(3 if not more else 10))
            await peer.send(more)

        await peer.send(b"in order")
        arrived(socket)
        ready.leave = others_run
        if into:
            buffer = bytearray(10)
            data = bytes(buffer[: await transport.receive_into(memoryview(buffer))])
        else:
            data = await transport.receive(10)
        assert [*taken, data] == ([b"in order", b"more"] if more else [b"in ", b"order"])


@pytest.mark.parametrize("into", [False, True])
async def test_a_receive_does_not_report_the_end_after_a_close(into: bool) -> None:
    """The data before the end is incomplete: close() has discarded some."""
    async with connected() as (socket, peer):
        transport = socket._connection.transport
        assert isinstance(transport, TCPTransport)
        peer.fin()
        arrived(socket)
        transport._drained = False  # so that it asks the kernel before it waits
        transport.stop_receiving()
        with pytest.raises(anyio.ClosedResourceError):
            await (
                transport.receive_into(memoryview(bytearray(9))) if into else transport.receive()
            )


async def nothing(socket: Socket) -> None:
    pass


async def by_other_code(socket: Socket) -> None:
    socket.extra(SocketAttribute.raw_socket).send(b"x")


async def by_another_process(socket: Socket) -> None:
    """A forked process sends like this."""
    raw(socket).send(b"x")


@linux_only
@pytest.mark.parametrize(
    ("send", "forked", "asked"),
    [
        pytest.param(nothing, False, 0, id="nothing sent"),
        pytest.param(lambda socket: socket.send(b""), False, 0, id="nothing sent by a call"),
        pytest.param(lambda socket: socket.send(b"x"), False, 1, id="sent"),
        pytest.param(by_other_code, False, 1, id="sent by other code"),
        pytest.param(by_another_process, True, 1, id="sent by another process"),
    ],
)
async def test_the_kernel_is_asked_what_is_unacknowledged_only_if_something_was_sent(
    send: Callable[[Socket], Awaitable[None]],
    forked: bool,
    asked: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sockets = []

    def look(sock: stdlib.socket) -> int:
        sockets.append(sock)
        return 0

    monkeypatch.setattr("anyio_connect._tcp._has_forked", forked)
    async with connected() as (socket, _):
        await send(socket)
        monkeypatch.setattr("anyio_connect._tcp.outstanding", look)
        await socket.close()
    assert len(sockets) == asked


@linux_only
@pytest.mark.parametrize("forked", [False, True])
async def test_tcp_user_timeout_is_lifted_if_our_end_has_to_wait_for_room(
    forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process has sent nothing, but the peer has sent data, or another process has."""
    monkeypatch.setattr("anyio_connect._tcp._has_forked", forked)
    async with connected() as (socket, peer):
        if not forked:
            await peer.send(b"talk")
            arrived(socket)
        transport = socket._connection.transport
        assert isinstance(transport, TCPTransport)
        with monkeypatch.context() as patch:
            patch.setattr("anyio_connect._tcp.room_of", lambda _: -1)
            patch.setattr("anyio_connect._tcp.outstanding", lambda _: 1)
            assert not await transport.finish()
        assert not limit_of(raw(socket))


@linux_only
async def test_a_reset_that_loses_sent_data_is_reported() -> None:
    async with connected(receive_buffer=4096) as (socket, peer):
        await large_send_buffer(socket)
        await filled(socket, peer)
        async with anyio.create_task_group() as group:
            group.start_soon(socket.close)
            await all_blocked()
            peer.rst()
        with pytest.raises(BrokenError, match="while closing") as caught:
            await socket.closed
        assert isinstance(caught.value.__cause__, ConnectionResetError)


@needs_poll
@linux_only
@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("over_tls", [False, True])
async def test_a_reset_after_the_peers_end_that_loses_sent_data_is_reported(
    over_tls: bool, cancelled: bool
) -> None:
    """The kernel then reports EPIPE, and receives still report the end."""
    async with AsyncExitStack() as stack:
        if over_tls:
            pair = await stack.enter_async_context(over_tcp(server_context(TLS13)))
            socket, peer = socket_over(pair[0], half_open=True), pair[1].peer
            await peer.send(pair[1].server.close_notify())
        else:
            socket, peer = await stack.enter_async_context(connected(half_open=True))
        stack.push_async_callback(socket.close)
        peer.close()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        await socket.send(b"nobody is there to take it")
        await reset_arrived(raw(socket))
        with anyio.CancelScope() as scope:
            if cancelled:
                scope.cancel()
            await socket.close()
        with pytest.raises(BrokenError, match="while closing") as caught:
            await socket.closed
        assert isinstance(caught.value.__cause__, BrokenPipeError)


@needs_poll
@linux_only
async def test_a_start_tls_socket_is_closed_before_its_handshake_though_the_peer_has_reset() -> (
    None
):
    async with listening() as listener:
        socket = connect(listener.address, secure_transport="starttls")
        await socket.opened
        (await listener.accept()).close()
        await socket.send(b"nobody is there to take it")
        await reset_arrived(raw(socket))
        tls = socket.start_tls()
        await tls.close()
        with pytest.raises(ClosedError, match="before the connection was made"):
            await tls.opened


@needs_poll
async def test_before_our_end_is_sent_a_reset_that_loses_one_byte_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reset(stdlib.socket):
        def shutdown(self, how: int, /) -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr("anyio_connect._tcp.outstanding", lambda _: 1)
    async with listening() as listener:
        with stdlib.create_connection(listener.address) as made:
            sock = Reset(fileno=made.detach())
        sock.setblocking(False)
        transport = TCPTransport(sock)
        peer = await listener.accept()
        assert not await transport.finish()
        peer.rst()
        await reset_arrived(sock)
        with pytest.raises(anyio.BrokenResourceError):
            await transport.finish()


@linux_only
async def test_a_cancelled_close_leaves_the_rest_to_the_kernel() -> None:
    async with connected(receive_buffer=4096) as (socket, peer):
        await large_send_buffer(socket)
        data = await filled(socket, peer)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(socket.close)
                await all_blocked()
                scope.cancel()
        assert socket.closed.result() is None
        assert raw(socket).fileno() == -1
        assert await peer.receive_all() == data


@linux_only
@pytest.mark.parametrize("last", ["send_eof", "writable.aclose", "readable.aclose"])
async def test_a_call_that_closes_and_is_cancelled_leaves_the_rest_to_the_kernel(
    last: str,
) -> None:
    """The call that ends the second direction closes the socket, like close()."""
    async with connected(receive_buffer=4096) as (socket, peer):
        await large_send_buffer(socket)
        data = await filled(socket, peer)
        if last == "readable.aclose":
            await socket.send_eof()
        else:
            await socket.readable.aclose()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(attrgetter(last)(socket))
                await all_blocked()
                assert not socket.closed.done()
                scope.cancel()
        assert socket.closed.result() is None
        assert raw(socket).fileno() == -1
        assert await peer.receive_all() == data


@linux_only
async def test_each_of_several_closes_returns_when_the_socket_is_closed() -> None:
    async with connected(receive_buffer=4096) as (socket, peer):
        await large_send_buffer(socket)
        data = await filled(socket, peer)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(socket.close)
            group.start_soon(settle, socket.closed)
            await all_blocked()
            assert not socket.closed.done()
            assert await peer.receive_all() == data
        assert socket.closed.result() is None


@linux_only
async def test_cancelling_one_close_ends_the_others() -> None:
    async with listening(receive_buffer=4096) as listener:
        socket = connect(listener.address, close_timeout=400)
        await socket.opened
        peer = await listener.accept()
        await large_send_buffer(socket)
        await filled(socket, peer)
        returned = anyio.Event()

        async def close() -> None:
            await socket.close()
            returned.set()

        async with anyio.create_task_group() as group:
            group.start_soon(close)
            await all_blocked()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await socket.close()
            with anyio.fail_after(30):  # at once, and not at the next look, after 100 seconds
                await returned.wait()


@linux_only
async def test_a_socket_that_stopped_reading_is_closed_when_its_data_has_arrived() -> None:
    """Both directions have ended, but a reset could still destroy data on its way."""
    async with connected(half_open=True, receive_buffer=4096) as (socket, peer):
        await large_send_buffer(socket)
        data = await filled(socket, peer)
        await socket.readable.aclose()
        async with anyio.create_task_group() as group:
            group.start_soon(socket.send_eof)
            await all_blocked()
            assert not socket.closed.done()
            await peer.send(b"talks on")
            assert await peer.receive_all() == data
        assert socket.closed.result() is None


@linux_only
async def test_close_works_without_a_descriptor_to_watch_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left() -> Any:
        raise OSError(24, "Too many open files")

    async with connected(receive_buffer=4096) as (socket, peer):
        await large_send_buffer(socket)
        data = await filled(socket, peer)
        monkeypatch.setattr(_watch, "_make_poller", none_left)
        async with anyio.create_task_group() as group:
            group.start_soon(socket.close)
            assert await peer.receive_all() == data
        monkeypatch.undo()
        assert socket.closed.result() is None


@linux_only
async def test_a_reset_is_found_without_a_descriptor_to_watch_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left() -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(_linger, "_LOOKS", 1000)
    async with connected(receive_buffer=4096) as (socket, peer):
        await large_send_buffer(socket)
        await filled(socket, peer)
        monkeypatch.setattr(_watch, "_make_poller", none_left)
        async with anyio.create_task_group() as group:
            group.start_soon(socket.close)
            await all_blocked()
            peer.rst()
        monkeypatch.undo()
        with pytest.raises(BrokenError, match="while closing"):
            await socket.closed


async def test_on_other_systems_close_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_connect._tcp.outstanding", lambda _: 0)
    monkeypatch.setattr("anyio_connect._tcp.KNOWS_OUTSTANDING", False)
    monkeypatch.setattr(_linger, "CAN_WATCH_ALL", False)
    async with connected() as (socket, peer):
        await socket.send(b"all of it")
        await peer.send(b"unread")
        await taken(peer)
        await socket.close()
        assert socket.closed.result() is None
        assert await peer.receive_all() == b"all of it"


@pytest.mark.slow
@pytest.mark.parametrize("reads", [8, 128])
async def test_on_other_systems_close_receives_from_a_peer_that_sends_before_it_reads(
    reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, no event reports new data: without a time limit, nothing else would wake close().

    With few ``reads`` at a time, much is left when our data has been sent. If close() closed the
    socket then, the kernel would send a reset, and not all of our data would arrive.
    """
    monkeypatch.setattr("anyio_connect._tcp.outstanding", lambda _: 0)
    monkeypatch.setattr("anyio_connect._tcp.KNOWS_OUTSTANDING", False)
    monkeypatch.setattr("anyio_connect._tcp.DISCARD_READS", reads)
    monkeypatch.setattr(_linger, "CAN_WATCH_ALL", False)
    data = bytes(BIG // 8)
    async with listening(receive_buffer=4096) as listener:
        socket = connect(listener.address, close_timeout=math.inf)
        await socket.opened
        peer = await listener.accept()
        raw(socket).setsockopt(stdlib.SOL_SOCKET, stdlib.SO_RCVBUF, 8 << 20)
        async with anyio.create_task_group() as group:
            group.start_soon(socket.send, data)
            await all_blocked()
            group.start_soon(socket.close)
            with anyio.fail_after(30):
                await peer.send(bytes(BIG // 8))
                await taken(peer)
                assert await peer.receive_all() == data
        assert socket.closed.result() is None


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("half_open", [False, True])
async def test_a_peer_that_closes_after_its_close_notify_causes_no_error(
    version: ssl.TLSVersion, half_open: bool
) -> None:
    """It answers our close_notify with a reset, and nothing else is lost."""
    async with over_tcp(server_context(version)) as (transport, peer):
        socket = socket_over(transport, half_open=half_open)
        await peer.peer.send(peer.server.encrypt(b"bye") + peer.server.close_notify())
        peer.peer.close()
        assert await socket.receive() == b"bye"
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        await socket.close()
        await socket.closed


@pytest.mark.parametrize("sent", [b"", b"x"])
@pytest.mark.parametrize("first", ["close", "receive", "nothing"])
async def test_a_socket_whose_descriptor_other_code_has_closed_can_be_closed(
    first: str, sent: bytes
) -> None:
    async with connected() as (socket, _):
        await socket.send(sent)
        raw(socket).close()
        if first == "receive":
            with pytest.raises(BrokenError, match="Bad file descriptor"):
                await socket.receive()
        elif first == "close":
            await socket.close()
        with anyio.fail_after(10):
            await socket.close()
        assert socket.closed.done()
