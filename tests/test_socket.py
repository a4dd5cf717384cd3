"""A plain TCP socket: opening, failing to open, cancelled calls, bad arguments, and pipes."""

from __future__ import annotations

import gc
import select
import socket as stdlib
import sys
from collections.abc import Awaitable, Callable
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
    SocketInfo,
    connect,
)
from support.errors import is_copy
from support.peers import full, has_ipv6, listening, refusing_address
from support.sockets import (
    BIG,
    arrived,
    blocked_send,
    connected,
    needs_poll,
    raw,
    settle,
    socket_pair,
)
from support.turns import all_blocked

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
            listener.sock.accept()  # no task has needed the connection yet
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


async def test_a_socket_info_cannot_be_changed() -> None:
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
async def test_a_call_that_needs_the_connection_makes_it(use: str) -> None:
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


async def test_all_waiting_tasks_share_one_dial() -> None:
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
    # The backlog is full: Linux does not answer the SYN, so the dial does not finish.
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
                    # Each accepted connection makes room in the backlog for another SYN.
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


@needs_poll
async def test_an_unobserved_failure_is_silent() -> None:
    async with anyio.create_task_group() as group:
        connect(refusing_address(), task_group=group)
    gc.collect()  # pytest makes a warning from a finalizer an error


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


# --- two tasks at once, and bad arguments


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
        buffer.clear()  # this raises BufferError while the memory is in use
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


def test_options_are_keyword_only() -> None:
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


@needs_poll
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


# --- descriptors and sizes


@pytest.mark.parametrize("direction", ["receive", "send"])
async def test_a_descriptor_is_closed_only_when_no_task_waits_for_it(direction: str) -> None:
    """If a task closes while another waits, a new socket with that number is not affected."""
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
        go = anyio.Event()
        ours, theirs = stdlib.socketpair()

        async def newcomer() -> None:
            await go.wait()
            # This takes the lowest free number, and waits for that socket in the same turn.
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
            theirs.send(b"x")


async def test_a_receive_may_ask_for_any_amount() -> None:
    async with connected() as (socket, peer):
        await peer.send(b"data")
        assert await socket.receive(sys.maxsize) == b"data"
        await peer.send(b"data")
        assert await socket.receive(1 << 70) == b"data"
