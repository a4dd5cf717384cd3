"""``Socket.detach()`` gives the kernel's socket to other code: complete, and not watched."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import socket as stdlib
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import anyio
import anyio.to_thread
import pytest
import trio
from anyio.abc import SocketAttribute, TaskGroup
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from anyio_connect import (
    BrokenError,
    ClosedError,
    ConnectError,
    Connector,
    DetachError,
    Socket,
    SocketError,
    StartTLSError,
    connect,
    listen,
)
from anyio_connect._tcp import TCPTransport
from anyio_connect._transport import ForeignTransport
from support.peers import Peer, listening
from support.sockets import arrived, connected, once_waited, raw, settle, socket_over, socket_pair
from support.tls_peers import NAME, TLSPeer, client_context, server_context
from support.turns import all_blocked

PATTERN = bytes(range(1, 251)) * 40


async def receive_all(sock: stdlib.socket) -> bytes:
    """Everything up to the end, received without the package."""
    return await Peer(sock).receive_all()


def check_usable(sock: stdlib.socket, peer: Peer) -> None:
    """Check that the socket does not block, and works with the peer in both directions."""
    assert sock.gettimeout() == 0
    assert sock.getpeername() == peer.sock.getsockname()
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    sock.sendall(b"ping")
    select.select([peer.sock], [], [], 10)
    assert peer.sock.recv(10) == b"ping"
    peer.sock.sendall(b"pong")
    select.select([sock], [], [], 10)
    assert sock.recv(10) == b"pong"


async def test_detach_returns_the_kernels_socket_which_works() -> None:
    async with connected() as (socket, peer):
        fd = raw(socket).fileno()
        with socket.detach() as sock:
            assert type(sock) is stdlib.socket
            assert sock.fileno() == fd
            assert (sock.family, sock.type) == (stdlib.AF_INET, stdlib.SOCK_STREAM)
            check_usable(sock, peer)
        assert await peer.receive_all() == b""


async def test_after_detach_the_socket_is_closed() -> None:
    async with connected(half_open=True) as (socket, peer):
        with socket.detach() as sock:
            assert socket.closed.done()
            assert socket.closed.exception() is None
            assert not socket.upgraded
            assert "detached" in repr(socket)
            calls: list[Any] = [socket.receive, lambda: socket.send(b"x"), socket.send_eof]
            for call in calls:
                with pytest.raises(ClosedError, match=r"detach\(\) was called: use the socket"):
                    await call()
            await socket.writable.aclose()
            await socket.writable.abort()
            await socket.readable.aclose()
            await socket.close()
            with pytest.raises(StartTLSError):
                socket.start_tls()
            with pytest.raises(DetachError, match="already"):
                socket.detach()
            check_usable(sock, peer)


async def test_after_detach_the_socket_has_no_descriptor() -> None:
    async with connected() as (socket, peer):
        before = socket.extra(SocketAttribute.raw_socket)
        with socket.detach():
            assert before.fileno() == -1
            assert socket.extra(SocketAttribute.raw_socket).fileno() == -1
            assert socket.extra(SocketAttribute.remote_address) == peer.sock.getsockname()
            assert socket.extra(SocketAttribute.family) == stdlib.AF_INET


async def test_the_standard_library_warns_if_the_detached_socket_is_dropped() -> None:
    async with connected() as (socket, peer):
        sock = socket.detach()
        with pytest.warns(ResourceWarning, match="unclosed <socket"):
            del sock
        assert await peer.receive_all() == b""


async def test_dropping_the_socket_after_detach_does_not_close_or_warn() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        await socket.opened
        peer = await listener.accept()
        with socket.detach() as sock, warnings.catch_warnings():
            warnings.simplefilter("error")
            del socket
            gc.collect()
            check_usable(sock, peer)


async def test_detach_wakes_a_task_that_awaits_closed() -> None:
    async with connected() as (socket, peer), anyio.create_task_group() as group:
        group.start_soon(settle, socket.closed)
        await all_blocked()
        with socket.detach() as sock:
            with anyio.fail_after(10):
                assert await settle(socket.closed) is None
            check_usable(sock, peer)


async def test_detach_after_the_event_loop_has_ended() -> None:
    """The socket is made in another event loop, and detached by code that runs in none."""
    async with listening() as listener:
        opened: list[Socket] = []

        async def make() -> None:
            socket = connect(listener.address)
            await socket.opened
            await once_waited(socket, await listener.accept())
            opened.append(socket)

        def run() -> None:
            backend: Literal["trio", "asyncio"] = "trio" if in_trio else "asyncio"
            anyio.run(make, backend=backend)
            with opened[0].detach() as sock:
                check_usable(sock, listener.peers[0])

        in_trio = trio.lowlevel.in_trio_run()
        await anyio.to_thread.run_sync(run)


# --- refused

State: TypeAlias = Callable[[Socket, Peer, TaskGroup], Any]


async def receiving(socket: Socket, peer: Peer, group: TaskGroup) -> None:
    group.start_soon(suppressing, socket.receive)
    await all_blocked()


async def sending(socket: Socket, peer: Peer, group: TaskGroup) -> None:
    group.start_soon(suppressing, lambda: socket.send(bytes(64 * 1024 * 1024)))
    await all_blocked()


async def torn(socket: Socket, peer: Peer, group: TaskGroup) -> None:
    with anyio.CancelScope() as scope, suppress(SocketError):
        group.start_soon(cancel_later, scope)
        await socket.send(bytes(64 * 1024 * 1024))


async def reset(socket: Socket, peer: Peer, group: TaskGroup) -> None:
    peer.rst()
    assert isinstance(await settle(socket.closed), BrokenError)


async def closed(socket: Socket, peer: Peer, group: TaskGroup) -> None:
    await socket.close()


async def suppressing(call: Callable[[], Any]) -> None:
    with suppress(SocketError, anyio.EndOfStream):
        await call()


async def cancel_later(scope: anyio.CancelScope) -> None:
    await all_blocked()
    scope.cancel()


REFUSED: list[tuple[State, type[SocketError], str]] = [
    (receiving, DetachError, "a receive is in flight"),
    (sending, DetachError, "a send, or the end of our side, is in flight"),
    (torn, BrokenError, "a send was cut short"),
    (reset, BrokenError, "reset"),
    (closed, DetachError, r"detach\(\) was called on a closed socket"),
]


@pytest.mark.parametrize(
    ("bring", "error", "why"), REFUSED, ids=[bring.__name__ for bring, _, _ in REFUSED]
)
async def test_refused(bring: State, error: type[SocketError], why: str) -> None:
    async with (
        connected(half_open=True, receive_buffer=4096) as (socket, peer),
        anyio.create_task_group() as group,
    ):
        await bring(socket, peer, group)
        before = socket._connection.state
        with pytest.raises(error, match=why):
            socket.detach()
        assert socket._connection.state is before
        group.cancel_scope.cancel()


async def test_refused_during_a_pipe() -> None:
    async with connected() as (socket, _), anyio.create_task_group() as group:
        other, theirs = await socket_pair()
        async with other, theirs:
            group.start_soon(socket.readable.pipe_to, other.writable)
            await all_blocked()
            with pytest.raises(DetachError, match="a receive is in flight"):
                socket.detach()
            group.cancel_scope.cancel()


async def test_a_pipe_into_the_socket_ends() -> None:
    """No send is in flight at that moment, and the pipe cannot send any more."""
    async with connected() as (socket, peer):
        source, theirs = await socket_pair()
        async with source, theirs, anyio.create_task_group() as group:
            raised: list[SocketError] = []

            async def pipe() -> None:
                try:
                    await source.readable.pipe_to(socket.writable)
                except ClosedError as exc:
                    raised.append(exc)

            group.start_soon(pipe)
            await theirs.send(b"before")
            assert await peer.receive_exactly(6) == b"before"
            await all_blocked()
            with socket.detach() as sock:
                await all_blocked()
                assert "detach() was called" in str(raised[0])
                check_usable(sock, peer)


async def test_refused_before_the_connection_is_made() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        with pytest.raises(DetachError, match=r"await socket\.opened"):
            socket.detach()
        async with socket:
            peer = await listener.accept()
            with socket.detach() as sock:
                check_usable(sock, peer)


async def test_a_socket_that_failed_to_connect_raises_its_error() -> None:
    socket = connect("name.invalid:1")
    with pytest.raises(ConnectError):
        await socket.opened
    with pytest.raises(ConnectError, match="cannot resolve"):
        socket.detach()


async def test_refused_over_tls() -> None:
    async with listening() as listener, anyio.create_task_group() as group:
        socket = connect(
            listener.address, secure_transport="on", sni=NAME, ssl_context=client_context()
        )
        with pytest.raises(DetachError, match=r"await socket\.opened"):
            socket.detach()
        group.start_soon(suppressing, lambda: settle(socket.opened))
        tls = TLSPeer(await listener.accept(), server_context())
        await tls.shake()
        await socket.opened
        with pytest.raises(DetachError, match="cannot be detached: it uses TLS"):
            socket.detach()
        await socket.send(b"still works")
        assert await tls.receive() == b"still works"
        await socket.close()


async def test_refused_once_start_tls_was_called() -> None:
    async with listening() as listener:
        plain = connect(listener.address, secure_transport="starttls")
        await plain.opened
        secure = plain.start_tls()
        with pytest.raises(DetachError, match=r"after start_tls\(\)"):
            plain.detach()
        await secure.close()


async def test_before_start_tls_a_socket_may_be_detached() -> None:
    async with listening() as listener:
        plain = connect(listener.address, secure_transport="starttls")
        await plain.opened
        with plain.detach() as sock:
            check_usable(sock, await listener.accept())


async def test_refused_over_a_foreign_stream() -> None:
    async with listening() as listener:
        host, port = listener.address
        stream = await anyio.connect_tcp(host, port)
        async with socket_over(ForeignTransport(stream)) as socket:
            with pytest.raises(DetachError, match=f"but a {type(stream).__name__}"):
                socket.detach()
            await socket.send(b"still works")
            assert await (await listener.accept()).receive() == b"still works"


async def test_refused_over_a_wrapped_socket() -> None:
    """The wrapped socket has the kernel's socket: only that one can be detached."""
    async with connected() as (inner, peer), Socket.wrap(inner) as socket:
        with pytest.raises(DetachError, match="but a Socket"):
            socket.detach()
        await socket.send(b"still works")
        assert await peer.receive() == b"still works"


async def test_refused_after_the_kernel_has_reported_a_reset() -> None:
    """The code that gets the socket would take the reset for the peer's end."""
    async with listening() as listener:
        sock = stdlib.create_connection(listener.address)
        sock.setblocking(False)
        error = OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        async with socket_over(TCPTransport(sock, error=error)) as socket:
            with pytest.raises(BrokenError, match="the connection broke while detaching: Conn"):
                socket.detach()
            assert not socket.closed.done()


async def test_refused_with_bytes_read_ahead() -> None:
    if trio.lowlevel.in_trio_run():
        return  # on trio, no callback reads ahead
    async with connected() as (socket, peer):
        transport = socket._connection.transport
        assert isinstance(transport, TCPTransport)
        task = asyncio.ensure_future(socket.receive(4))
        await all_blocked()
        await peer.send(b"precious")
        while not transport.held:
            await checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(DetachError, match="while 4 bytes that the peer sent are held here"):
            socket.detach()
        assert await socket.receive(3) == b"pre"
        with pytest.raises(DetachError, match="while 1 bytes"):
            socket.detach()
        assert await socket.receive() == b"c"
        peer.fin()
        with socket.detach() as sock:
            assert await receive_all(sock) == b"ious"


async def test_refused_with_data_read_after_a_delimiter() -> None:
    async with connected() as (socket, peer):
        await peer.send(b"a line\nand more")
        arrived(socket)
        assert await socket.receive_until(b"\n", 100) == b"a line"
        with pytest.raises(DetachError, match="while 8 bytes that the peer sent are held here"):
            socket.detach()
        assert await socket.receive_exactly(8) == b"and more"
        with socket.detach() as sock:
            check_usable(sock, peer)


# --- what the detached socket has


async def test_data_that_was_not_received_is_received_from_the_detached_socket() -> None:
    async with connected() as (socket, peer):
        await peer.send(b"HEAD and the rest")
        arrived(socket)
        assert await socket.receive(4) == b"HEAD"
        peer.fin()
        with socket.detach() as sock:
            assert await receive_all(sock) == b" and the rest"


async def test_directions_that_have_ended_stay_ended() -> None:
    async with connected(half_open=True) as (socket, peer):
        await socket.send(b"all of it")
        await socket.send_eof()
        await peer.send(b"answer")
        with socket.detach() as sock:
            assert await peer.receive_all() == b"all of it"
            peer.fin()
            assert await receive_all(sock) == b"answer"
    async with connected(half_open=True) as (socket, peer):
        peer.fin()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        with socket.detach() as sock:
            assert sock.recv(1) == b""
            sock.sendall(b"answer")
        assert await peer.receive_all() == b"answer"


async def test_detach_after_readable_was_closed() -> None:
    async with connected() as (socket, peer):
        await socket.readable.aclose()
        with socket.detach() as sock:
            check_usable(sock, peer)


async def test_detach_of_a_socket_that_a_listener_accepted() -> None:
    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        given: list[stdlib.socket] = []
        done = anyio.Event()

        async def handle(socket: Socket) -> None:
            given.append(socket.detach())
            done.set()

        group.start_soon(listener.serve, handle)
        async with connect(listener.addresses[0]) as socket:
            await done.wait()
            with given[0] as sock:
                sock.send(b"hello")
                assert await socket.receive() == b"hello"
        group.cancel_scope.cancel()


# --- no event loop watches the detached socket


async def test_the_event_loop_does_not_watch_the_detached_socket() -> None:
    """Neither an earlier receive nor a task that awaits ``closed`` leaves it registered."""
    async with connected() as (socket, peer), anyio.create_task_group() as group:
        await once_waited(socket, peer)
        group.start_soon(settle, socket.closed)
        await all_blocked()
        assert is_watched(raw(socket).fileno()) or sys.platform != "linux"
        with socket.detach() as sock:
            assert not is_watched(sock.fileno())
            check_usable(sock, peer)


def is_watched(fd: int) -> bool:
    """Whether an epoll of this process has the descriptor."""
    if sys.platform != "linux":
        return False
    needle = f"tfd: {fd:>8} "
    found = False
    for info in Path("/proc/self/fdinfo").iterdir():
        with suppress(OSError):  # the descriptor of the listing itself
            found |= needle in info.read_text(encoding="ascii")
    return found


async def test_another_event_loop_can_use_the_detached_socket() -> None:
    """It runs in a thread, while this event loop goes on."""
    async with connected() as (socket, peer):
        await once_waited(socket, peer)
        sock = socket.detach()

        async def talk() -> bytes:
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(b"from another loop")
            writer.write_eof()
            try:
                return await reader.read()
            finally:
                writer.close()
                await writer.wait_closed()

        said: list[bytes] = []

        async def run() -> None:
            said.append(await anyio.to_thread.run_sync(lambda: asyncio.run(talk())))

        async with anyio.create_task_group() as threads:
            threads.start_soon(run)
            assert await peer.receive_all() == b"from another loop"
            await peer.send(b"answer")
            peer.fin()
        assert said == [b"answer"]


async def test_streams_of_this_event_loop_can_use_the_detached_socket() -> None:
    async with connected() as (socket, peer):
        await peer.send(b"first")
        assert await socket.receive() == b"first"
        sock = socket.detach()
        if trio.lowlevel.in_trio_run():
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            await stream.send_all(b"ping")
            assert await peer.receive_exactly(4) == b"ping"
            await peer.send(b"pong")
            assert await stream.receive_some() == b"pong"
            await stream.aclose()
        else:
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(b"ping")
            assert await peer.receive_exactly(4) == b"ping"
            await peer.send(b"pong")
            assert await reader.read(10) == b"pong"
            writer.close()
            await writer.wait_closed()
        assert await peer.receive_all() == b""


# --- slots


async def test_the_detached_socket_holds_the_slot() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        socket = connector.connect(listener.address)
        await socket.opened
        sock = socket.detach()
        await socket.close()
        async with anyio.create_task_group() as group:
            second = connector.connect(listener.address, task_group=group)
            await all_blocked()
            assert not second.opened.done()
            sock.close()
            with anyio.fail_after(10):
                await second.opened
        await second.close()


# --- no byte is lost

Way: TypeAlias = Literal["some", "into", "exactly"]
Act: TypeAlias = (
    tuple[Literal["peer"], int]
    | tuple[Literal["receive"], int]
    | tuple[Literal["cancelled"], Way, int, int, int, bool]
)
ACTS: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.just("peer"), st.integers(1, 300)),
    st.tuples(st.just("receive"), st.integers(1, 200)),
    st.tuples(
        st.just("cancelled"),
        st.sampled_from(get_args(Way)),
        st.integers(1, 200),  # how much the receive asks for
        st.integers(0, 300),  # how much the peer sends meanwhile
        st.integers(0, 4),  # how many turns of the loop before the cancellation
        st.booleans(),  # whether asyncio's Task.cancel() is used
    ),
)


class Reading:
    """A socket and its peer, what the peer has sent, and what the socket has received."""

    def __init__(self, socket: Socket, peer: Peer) -> None:
        self.socket = socket
        self.peer = peer
        self.sent = 0
        self.got = b""

    def say(self, size: int) -> None:
        size = min(size, len(PATTERN) - self.sent)
        if size:
            self.peer.sock.sendall(PATTERN[self.sent : self.sent + size])
            self.sent += size
            arrived(self.socket)

    async def take(self, act: Act) -> None:
        if act[0] == "peer":
            self.say(act[1])
        elif act[0] == "receive":
            if self.sent > len(self.got):
                self.got += await self.socket.receive(act[1])
        else:
            await self.cancelled(*act[1:])

    async def receive(self, way: Way, most: int) -> bytes:
        if way == "into":
            buffer = bytearray(most)
            return bytes(buffer[: await self.socket.receive_into(buffer)])
        if way == "exactly":
            return await self.socket.receive_exactly(most)
        return await self.socket.receive(most)

    async def cancelled(self, way: Way, most: int, size: int, turns: int, native: bool) -> None:
        tasks: list[Any] = []

        async def receive() -> None:
            if not trio.lowlevel.in_trio_run():
                tasks.append(asyncio.current_task())
            with scope, suppress(asyncio.CancelledError):
                self.got += await self.receive(way, most)

        scope = anyio.CancelScope()
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await all_blocked()
            self.say(size)
            for _ in range(turns):
                await checkpoint()
            if native and tasks:
                tasks[0].cancel()
            else:
                scope.cancel()


@pytest.mark.slow
@given(acts=st.lists(ACTS, max_size=8), rest=st.integers(0, 300))
async def test_no_byte_is_lost(acts: list[Act], rest: int) -> None:
    async with connected(half_open=True) as (socket, peer):
        reading = Reading(socket, peer)
        for act in acts:
            await reading.take(act)
        while held := socket._connection.held:
            with pytest.raises(DetachError, match=f"while {held} bytes"):
                socket.detach()
            reading.got += await socket.receive()
        with socket.detach() as sock:
            peer.sock.sendall(PATTERN[reading.sent : reading.sent + rest])
            peer.fin()
            got = reading.got + await receive_all(sock)
        assert got == PATTERN[: reading.sent + rest]
