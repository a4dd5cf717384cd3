"""Socket.wrap(): a socket over AnyIO's streams, another socket, or a stream that misbehaves."""

from __future__ import annotations

import socket as stdlib
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint
from anyio.streams.stapled import StapledByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from anyio_connect import (
    BrokenError,
    ClosedError,
    ConnectTimeoutError,
    HalfCloseError,
    IncompleteReadError,
    InvalidOptionError,
    RefusedError,
    Socket,
    SocketError,
    SocketInfo,
    StartTLSError,
    TLSError,
    connect,
)
from support.cancelling import CancelAt, Moment
from support.peers import listening, refusing_address
from support.remotes import MemoryStream
from support.sockets import arrived, settle, socket_pair, wait_for
from support.tls_peers import NAME, TLSPeer, client_context, server_context
from support.turns import all_blocked

#: More than the buffers between two streams hold.
BIG = bytes(range(256)) * 40_000

#: How many items a memory stream holds.
ITEMS = 8

Pair: TypeAlias = AbstractAsyncContextManager[tuple[ByteStream, ByteStream]]


# --- streams of many kinds, each with its other end


@asynccontextmanager
async def tcp(_: Path) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, accepting(listener) as accepted:
        port = listener.extra(SocketAttribute.local_port)
        async with await anyio.connect_tcp("127.0.0.1", port) as ours, await accepted() as theirs:
            yield ours, theirs


@asynccontextmanager
async def unix(path: Path) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    listener = await anyio.create_unix_listener(path / "s")
    async with (
        listener,
        accepting(listener) as accepted,
        await anyio.connect_unix(path / "s") as ours,
        await accepted() as theirs,
    ):
        yield ours, theirs


@asynccontextmanager
async def accepting(listener: Any) -> AsyncIterator[Callable[[], Awaitable[ByteStream]]]:
    """A function that waits for a connection to ``listener``, and returns it."""
    came: list[ByteStream] = []
    here, done = anyio.Event(), anyio.Event()

    async def keep(stream: ByteStream) -> None:
        came.append(stream)
        here.set()
        await done.wait()

    async def get() -> ByteStream:
        await here.wait()
        return came[0]

    async with anyio.create_task_group() as group:
        group.start_soon(listener.serve, keep)
        try:
            yield get
        finally:
            done.set()
            group.cancel_scope.cancel()


@asynccontextmanager
async def stapled(_: Path) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        yield StapledByteStream(ours.writable, ours.readable), theirs


@asynccontextmanager
async def memory(_: Path) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    to_us, from_them = anyio.create_memory_object_stream[bytes](ITEMS)
    to_them, from_us = anyio.create_memory_object_stream[bytes](ITEMS)
    async with MemoryStream(to_them, from_them) as ours, MemoryStream(to_us, from_us) as theirs:
        yield ours, theirs


@asynccontextmanager
async def tls(path: Path) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    """Two ends of AnyIO's TLS."""
    async with unix(path) as (ours, theirs), anyio.create_task_group() as group:
        client, server = client_context(), server_context()
        for context in (client, server):
            context.set_alpn_protocols(["one/1"])
        far: list[ByteStream] = []

        async def serve() -> None:
            far.append(
                await TLSStream.wrap(
                    theirs, server_side=True, ssl_context=server, standard_compatible=False
                )
            )

        group.start_soon(serve)
        near = await TLSStream.wrap(
            ours, hostname=NAME, ssl_context=client, standard_compatible=False
        )
        yield near, await first_of(far)


async def first_of(streams: list[ByteStream]) -> ByteStream:
    """The first stream, once there is one."""
    while not streams:
        await checkpoint()
    return streams[0]


@asynccontextmanager
async def sockets(_: Path) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        yield ours, theirs


KINDS = [tcp, unix, stapled, memory, tls, sockets]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
Kind: TypeAlias = Callable[[Path], Pair]
if sys.platform == "win32":
    pytest.skip("some of these need Unix sockets", allow_module_level=True)


async def receive_all(stream: ByteStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


# --- what works as with any other socket


@pytest.mark.slow
@each_kind
async def test_all_arrives_both_ways_and_the_peer_sees_the_end(kind: Kind, tmp_path: Path) -> None:
    async with kind(tmp_path) as (stream, theirs):
        socket = Socket.wrap(stream, allow_half_open=True)
        received: list[bytes] = []

        async def they_answer() -> None:
            received.append(await receive_some(theirs, len(BIG)))
            await theirs.send(b"line\n" + BIG)

        async with socket, anyio.create_task_group() as group:
            group.start_soon(they_answer)
            await socket.send(BIG)
            assert await socket.receive_until(b"\n", 10) == b"line"
            assert await socket.receive_exactly(len(BIG)) == BIG
        assert received == [BIG]
        assert socket.closed.result() is None
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await theirs.receive()
        with pytest.raises(ClosedError):
            await socket.send(b"x")


async def receive_some(stream: ByteStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive()
    return data


@each_kind
async def test_the_peers_end_is_ours_too(kind: Kind, tmp_path: Path) -> None:
    async with kind(tmp_path) as (stream, theirs):
        socket = Socket.wrap(stream)
        await theirs.send(b"the last words")
        await theirs.aclose()
        assert await socket.receive_exactly(14) == b"the last words"
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await socket.receive()
        assert await settle(socket.closed) is None
        with pytest.raises(ClosedError):
            await socket.send(b"x")
        await socket.close()


@each_kind
async def test_our_end_goes_out_alone_or_not_at_all(kind: Kind, tmp_path: Path) -> None:
    async with kind(tmp_path) as (stream, theirs):
        socket = Socket.wrap(stream, allow_half_open=True)
        await socket.send(b"all")
        if kind is tls:
            for end in (socket.send_eof, socket.writable.aclose):
                with pytest.raises(
                    HalfCloseError, match=r"alone: end both by close\(\)"
                ) as caught:
                    await end()
                assert isinstance(caught.value.__cause__, NotImplementedError)
            assert not socket.closed.done()
            await socket.send(b" of it")
        else:
            await socket.send_eof()
            with pytest.raises(ClosedError):
                await socket.send(b"x")
        assert await theirs.receive(3) == b"all"
        await theirs.send(b"the answer")
        assert await socket.receive_exactly(10) == b"the answer"
        await socket.close()
        assert socket.closed.result() is None


async def test_a_pipe_into_a_stream_that_cannot_half_close_is_an_error(tmp_path: Path) -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs, tls(tmp_path) as (stream, far):
        socket = Socket.wrap(stream, allow_half_open=True)
        await theirs.send(b"everything")
        await theirs.send_eof()
        with pytest.raises(HalfCloseError):
            await ours.readable.pipe_to(socket)
        assert await far.receive() == b"everything"
        await socket.close()


@each_kind
async def test_a_receive_that_waits_is_woken(kind: Kind, tmp_path: Path) -> None:
    async with kind(tmp_path) as (stream, _), anyio.create_task_group() as group:
        socket = Socket.wrap(stream)

        async def read() -> None:
            with pytest.raises(ClosedError):
                await socket.receive()

        group.start_soon(read)
        await all_blocked()
        assert socket.is_readable()  # a second receive would raise
        await socket.close()


@each_kind
async def test_a_receive_that_is_cancelled_loses_nothing(kind: Kind, tmp_path: Path) -> None:
    async with kind(tmp_path) as (stream, theirs):
        socket = Socket.wrap(stream)
        async with anyio.create_task_group() as group:
            group.start_soon(socket.receive_exactly, 100)
            await all_blocked()
            await theirs.send(b"kept")
            while not socket._connection._kept:
                await checkpoint()
            group.cancel_scope.cancel()
        assert await socket.receive() == b"kept"
        await socket.close()


@each_kind
async def test_aborting_closes_both_futures_and_the_stream(kind: Kind, tmp_path: Path) -> None:
    async with kind(tmp_path) as (stream, theirs):
        socket = Socket.wrap(stream)
        await socket.opened
        await socket.writable.abort("no more")
        assert isinstance(socket.closed.exception(), BrokenError)
        for call in (socket.receive, partial(socket.send, b"x")):
            with pytest.raises(BrokenError):
                await call()
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await theirs.receive()


@each_kind
@pytest.mark.parametrize("opened", [False, True], ids=["pending", "open"])
async def test_a_cancelled_close_closes(kind: Kind, tmp_path: Path, opened: bool) -> None:
    async with kind(tmp_path) as (stream, theirs):
        socket = Socket.wrap(stream)
        if opened:
            await socket.send(b"x")
        for _ in range(2):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await socket.close()
            assert scope.cancelled_caught
            assert socket.closed.result() is None
        await socket.close()
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                assert await theirs.receive() == b"x"


# --- SocketInfo and attributes


async def test_info_of_tcp(tmp_path: Path) -> None:
    async with tcp(tmp_path) as (stream, theirs):
        ours = f"127.0.0.1:{stream.extra(SocketAttribute.local_port)}"
        peer = f"127.0.0.1:{stream.extra(SocketAttribute.remote_port)}"
        async with Socket.wrap(stream) as socket:
            assert socket.opened.result() == SocketInfo(peer, ours, None)
            assert socket.extra(SocketAttribute.remote_port) == int(peer.rpartition(":")[2])
            assert repr(socket) == f"<Socket {peer} open secure_transport='off'>"
        await theirs.aclose()


async def test_info_of_other_streams(tmp_path: Path) -> None:
    async with unix(tmp_path) as (stream, _), Socket.wrap(stream) as socket:
        assert socket.opened.result() == SocketInfo(None, None, None)
        assert repr(socket) == f"<Socket {tmp_path}/s open secure_transport='off'>"
    async with memory(tmp_path) as (stream, _), Socket.wrap(stream) as socket:
        assert socket.opened.result() == SocketInfo(None, None, None)
        assert "a MemoryStream" in repr(socket)


async def test_info_of_tls(tmp_path: Path) -> None:
    async with tls(tmp_path) as (stream, _), Socket.wrap(stream) as socket:
        assert socket.opened.result().alpn == "one/1"
        assert socket.extra(TLSAttribute.alpn_protocol) == "one/1"


# --- TLS over a wrapped stream


@asynccontextmanager
async def serving_tls(theirs: ByteStream) -> AsyncIterator[list[ByteStream]]:
    """Have the other end make the handshake as a server."""
    made: list[ByteStream] = []

    async def shake() -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, ssl.SSLError):
            made.append(
                await TLSStream.wrap(theirs, server_side=True, ssl_context=server_context())
            )

    async with anyio.create_task_group() as group:
        group.start_soon(shake)
        yield made


def on(**options: Any) -> dict[str, Any]:
    return {"secure_transport": "on", "ssl_context": client_context(), "sni": NAME, **options}


@pytest.mark.slow
@each_kind
async def test_tls_over_a_stream_of_any_kind(kind: Kind, tmp_path: Path) -> None:
    """Over AnyIO's TLS it is TLS in TLS. Half-close works, even over a stream that has none."""
    async with kind(tmp_path) as (stream, theirs), serving_tls(theirs) as far:
        async with Socket.wrap(stream, **on(allow_half_open=True)) as socket:
            server = await first_of(far)
            assert socket.extra(TLSAttribute.tls_version) == "TLSv1.3"
            async with anyio.create_task_group() as group:
                group.start_soon(socket.send, BIG)
                assert await receive_some(server, len(BIG)) == BIG
            await server.send(b"the answer")
            assert await socket.receive_exactly(10) == b"the answer"
            await socket.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await server.receive()
        assert socket.closed.result() is None


async def test_tls_in_tls_between_our_sockets() -> None:
    async with listening() as listener, anyio.create_task_group() as group:
        inner = connect(listener.address, **on())
        outer = Socket.wrap(inner, **on())
        assert not inner.opened.done()

        async def serve() -> None:
            first = TLSPeer(await listener.accept(), server_context())
            await first.shake()
            within = Inner(first)
            second = await TLSStream.wrap(
                within, server_side=True, ssl_context=server_context(), standard_compatible=False
            )
            assert await second.receive() == b"twice encrypted"
            await second.send(b"as is this")

        group.start_soon(serve)
        await outer.send(b"twice encrypted")  # makes both connections
        assert inner.opened.done()
        assert await outer.receive_exactly(10) == b"as is this"
        assert outer.opened.result() == inner.opened.result()
        await outer.close()
        assert outer.closed.result() is None
        assert inner.closed.result() is None


class Inner(ByteStream):
    """The data of a scripted TLS peer, as a stream for the inner TLS."""

    def __init__(self, peer: TLSPeer) -> None:
        self.peer = peer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self.peer.receive()
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        await self.peer.send(item)

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.peer.peer.close()


async def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    async with unix(tmp_path) as (stream, theirs), serving_tls(theirs):
        socket = Socket.wrap(stream, **on(sni="other.example"))
        with pytest.raises(TLSError, match=f"not for 'other.example' but for '{NAME}'"):
            await socket.opened
        assert isinstance(socket.closed.exception(), TLSError)
        await socket.close()


async def test_a_context_that_checks_no_names_needs_no_name(tmp_path: Path) -> None:
    context = client_context()
    context.check_hostname = False
    async with unix(tmp_path) as (stream, theirs), serving_tls(theirs):
        socket = Socket.wrap(stream, **on(sni=None, ssl_context=context))
        await socket.opened
        assert socket.secure_transport == "on"
        await socket.close()


async def test_start_tls_over_a_stream(tmp_path: Path) -> None:
    async with unix(tmp_path) as (stream, theirs):
        plain = Socket.wrap(stream, secure_transport="starttls", ssl_context=client_context())
        await plain.send(b"STARTTLS\n")
        assert await theirs.receive() == b"STARTTLS\n"
        await theirs.send(b"go\nmore")
        assert await plain.receive_until(b"\n", 10) == b"go"
        with pytest.raises(InvalidOptionError, match="expected_server_hostname is missing"):
            plain.start_tls()
        with pytest.raises(StartTLSError, match="4 bytes"):
            plain.start_tls(expected_server_hostname=NAME)
        assert await plain.receive() == b"more"
        async with serving_tls(theirs) as far:
            secure = plain.start_tls(expected_server_hostname=NAME)
            await secure.send(b"in secret")
            assert await (await first_of(far)).receive() == b"in secret"
            await secure.close()
        assert plain.upgraded


async def test_a_handshake_that_gets_no_answer_times_out(tmp_path: Path) -> None:
    async with memory(tmp_path) as (stream, _):
        socket = Socket.wrap(stream, **on(connect_timeout=0.01))
        with pytest.raises(ConnectTimeoutError, match=r"did not finish within 0\.01 s"):
            await socket.receive()
        assert isinstance(socket.closed.exception(), ConnectTimeoutError)
        assert socket.is_readable()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", [memory, sockets], ids=lambda kind: kind.__name__)
async def test_a_handshake_cancelled_at_every_checkpoint(
    kind: Kind, tmp_path: Path, moment: Moment
) -> None:
    number, failed, made = -1, 0, 0
    while True:
        number += 1
        async with kind(tmp_path) as (stream, theirs), serving_tls(theirs):
            socket = Socket.wrap(stream, **on())
            with anyio.CancelScope() as scope:
                await CancelAt(number, moment, scope, wait_for(socket))
                await checkpoint()
            try:
                await socket.opened
                await socket.send(b"x")
                made += 1
            except TLSError:
                failed += 1
                for future in (socket.opened, socket.closed):
                    assert "was cancelled part-way" in str(future.exception())
            await socket.close()
            assert socket.closed.done()
            await theirs.aclose()
        if not scope.cancel_called:
            break
    assert number > 1
    assert failed
    assert made


# --- over another socket


async def test_closing_the_outer_socket_closes_the_inner_one() -> None:
    ours, theirs = await socket_pair()
    async with theirs:
        outer = Socket.wrap(ours, allow_half_open=True)
        await outer.send(b"all of it")
        await outer.close()
        assert ours.closed.result() is None
        assert await receive_all(theirs) == b"all of it"


async def test_closing_before_opening_dials_nothing() -> None:
    inner = connect(refusing_address())
    outer = Socket.wrap(inner)
    await outer.close()
    assert isinstance(outer.opened.exception(), ClosedError)
    assert isinstance(inner.opened.exception(), ClosedError)
    assert inner.closed.result() is None


async def test_a_pending_socket_that_cannot_be_opened() -> None:
    inner = connect(refusing_address())
    outer = Socket.wrap(inner)
    with pytest.raises(RefusedError):
        await outer.receive()
    for socket in (inner, outer):
        assert isinstance(socket.opened.exception(), RefusedError)
        assert isinstance(socket.closed.exception(), RefusedError)


async def test_a_pending_socket_that_is_not_opened_in_time() -> None:
    async with listening() as listener:
        inner = connect(listener.address, **on())  # its handshake gets no answer
        outer = Socket.wrap(inner, connect_timeout=0.01)
        with pytest.raises(ConnectTimeoutError, match=r"not open within 0\.01 s"):
            await outer.opened
        assert inner.closed.done()


async def test_what_the_inner_socket_has_read_ahead_comes_first() -> None:
    ours, theirs = await socket_pair()
    async with theirs:
        await theirs.send(b"line\nrest")
        assert await ours.receive_until(b"\n", 10) == b"line"
        async with Socket.wrap(ours) as outer:
            assert outer.is_readable()
            assert await outer.receive() == b"rest"
            assert not outer.is_readable()
            await theirs.send(b"more")
            arrived(ours)
            assert outer.is_readable()
            assert await outer.receive() == b"more"


async def test_aborting_the_outer_socket_resets_the_connection() -> None:
    async with listening() as listener:
        inner = connect(listener.address)
        outer = Socket.wrap(inner)
        await outer.send(b"a piece")
        peer = await listener.accept()
        assert await peer.receive_exactly(7) == b"a piece"
        await outer.writable.abort()
        with pytest.raises(ConnectionResetError):
            await peer.receive()
        assert isinstance(inner.closed.exception(), BrokenError)


async def test_a_send_cancelled_before_anything_went_out_is_not_torn() -> None:
    ours, theirs = await socket_pair()
    async with theirs, Socket.wrap(ours, allow_half_open=True) as outer:
        await outer.opened
        with anyio.CancelScope() as scope:
            scope.cancel()
            await outer.send(b"never")
        await outer.send(b"whole")
        assert await theirs.receive() == b"whole"


@pytest.mark.slow
async def test_a_send_that_was_refused_is_not_torn() -> None:
    """It is refused because another task uses the inner socket."""
    ours, theirs = await socket_pair()
    big = bytes(1 << 26)
    async with theirs, Socket.wrap(ours, allow_half_open=True) as outer:
        async with anyio.create_task_group() as group:
            group.start_soon(ours.send, big)
            await all_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await outer.send(b"x")
            await theirs.receive_exactly(len(big))
        await outer.send(b"whole")
        assert await theirs.receive() == b"whole"


@pytest.mark.slow
@each_kind
async def test_a_send_that_was_cut_short_is_torn(kind: Kind, tmp_path: Path) -> None:
    async with kind(tmp_path) as (stream, theirs):
        socket = Socket.wrap(stream, allow_half_open=True)
        await socket.opened
        async with anyio.create_task_group() as group:
            for _ in range(ITEMS if kind is memory else 0):  # an item may have any size
                await socket.send(b"first")
            group.start_soon(socket.send, bytes(1 << 26))
            await all_blocked()
            group.cancel_scope.cancel()
        with pytest.raises(BrokenError, match="cut short"):
            await socket.send(b"behind it")
        await socket.close()
        assert isinstance(socket.closed.exception(), BrokenError)
        got = b""
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                got += await theirs.receive()
        assert b"behind it" not in got


# --- streams that misbehave


class Odd(ByteStream):
    """A stream of which each method returns or raises what the test says."""

    def __init__(self, **does: Any) -> None:
        self.does = does
        self.calls: list[str] = []

    def do(self, name: str) -> Any:
        self.calls.append(name)
        what = self.does.get(name)
        if isinstance(what, list):
            what = what.pop(0)
        if isinstance(what, BaseException):
            raise what
        return what

    async def receive(self, max_bytes: int = 65536) -> bytes:
        found: bytes = self.do("receive")
        return found

    async def send(self, item: bytes) -> None:
        self.do("send")

    async def send_eof(self) -> None:
        self.do("send_eof")

    async def aclose(self) -> None:
        self.do("aclose")

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        self.do("extra_attributes")
        return {}


ERRORS = [KeyError("so"), OSError(5, "so"), RuntimeError("so"), UnicodeError("so")]
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@each_error
@pytest.mark.parametrize("call", ["receive", "receive_exactly", "send", "send_eof"])
async def test_an_error_of_the_stream_becomes_a_broken_error(call: str, error: Exception) -> None:
    socket = Socket.wrap(Odd(receive=error, send=error, send_eof=error, aclose=error))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "receive": socket.receive,
        "receive_exactly": partial(socket.receive_exactly, 9),
        "send": partial(socket.send, b"x"),
        "send_eof": socket.send_eof,
    }
    with pytest.raises(BrokenError, match="so") as caught:
        await calls[call]()
    assert type(caught.value.__cause__) is type(error)
    assert isinstance(await settle(socket.closed), BrokenError)
    await socket.close()


@each_error
async def test_an_error_while_closing_rejects_closed(error: Exception) -> None:
    socket = Socket.wrap(Odd(aclose=error))
    await socket.opened
    await socket.close()
    failure = socket.closed.exception()
    assert isinstance(failure, BrokenError)
    assert type(failure.__cause__) is type(error)


@each_error
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_an_error_while_the_stream_is_dropped_is_not_raised(
    error: Exception, secure: bool
) -> None:
    stream = Odd(receive=error, send=error, aclose=error, extra_attributes=error)
    options = on() if secure else {}
    socket = Socket.wrap(stream, **options)
    if secure:
        with pytest.raises(TLSError):
            await socket.opened
    else:
        assert await socket.opened == SocketInfo(None, None, None)
        await socket.writable.abort()
    assert isinstance(socket.closed.exception(), SocketError)
    assert "aclose" in stream.calls


class Silent(Odd):
    """A stream whose peer never sends anything."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        self.do("receive")
        await anyio.sleep_forever()
        raise AssertionError("unreachable")


@pytest.mark.parametrize("first", ["wrap", "start_tls"])
@pytest.mark.parametrize("how", ["no TLS", "end", "error", "late", "cancelled"])
async def test_a_failed_handshake_closes_the_stream_once(how: str, first: str) -> None:
    received = {"no TLS": b"no TLS", "end": anyio.EndOfStream(), "error": OSError(5, "so")}
    stream = Odd(receive=received[how]) if how in received else Silent()
    limit = 0.01 if how == "late" else 60
    if first == "wrap":
        socket = Socket.wrap(stream, **on(connect_timeout=limit))
    else:
        plain = Socket.wrap(stream, **on(connect_timeout=limit, secure_transport="starttls"))
        await plain.opened
        socket = plain.start_tls()
    async with anyio.create_task_group() as group:
        group.start_soon(settle, socket.opened)
        if how == "cancelled":
            await all_blocked()
            group.cancel_scope.cancel()
    await socket.close()
    assert isinstance(socket.closed.exception(), SocketError)
    assert stream.calls.count("aclose") == 1


async def test_an_end_of_stream_while_sending_breaks_the_connection() -> None:
    socket = Socket.wrap(Odd(send=anyio.EndOfStream()))
    with pytest.raises(BrokenError, match="the peer has ended"):
        await socket.send(b"x")
    await socket.close()


@pytest.mark.parametrize(("nothing", "why"), [(b"", "received nothing"), ("text", "bytes-like")])
@pytest.mark.parametrize("call", ["receive", "receive_exactly", "receive_until"])
async def test_a_stream_that_returns_nothing_or_text_breaks_the_connection(
    nothing: Any, why: str, call: str
) -> None:
    socket = Socket.wrap(Odd(receive=[b"data", nothing]))
    assert await socket.receive_exactly(4) == b"data"
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "receive": socket.receive,
        "receive_exactly": partial(socket.receive_exactly, 9),
        "receive_until": partial(socket.receive_until, b"\n", 9),
    }
    for _ in range(2):
        with pytest.raises(BrokenError, match=why):
            await calls[call]()
    await socket.close()


async def test_more_than_was_asked_for_is_kept() -> None:
    stream = Odd(receive=[b"0123456789", bytearray(b"ab"), anyio.EndOfStream()])
    socket = Socket.wrap(stream)
    assert await socket.receive(3) == b"012"
    assert socket.is_readable()
    assert await socket.receive_exactly(4) == b"3456"
    assert await socket.receive() == b"789"
    assert not socket.is_readable()
    assert await socket.receive_exactly(2) == b"ab"
    for _ in range(2):
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
    assert stream.calls.count("receive") == 3  # after the end, the stream is not asked again
    await socket.close()


async def test_an_end_is_final_whatever_comes_after_it() -> None:
    socket = Socket.wrap(Odd(receive=[b"data", anyio.EndOfStream(), b"late"]))
    with pytest.raises(IncompleteReadError):
        await socket.receive_exactly(9)
    assert await socket.receive() == b"data"
    with pytest.raises(anyio.EndOfStream):
        await socket.receive()
    await socket.close()


async def test_a_stream_that_never_waits_lets_other_tasks_run_and_can_be_cancelled() -> None:
    socket = Socket.wrap(Odd(receive=b"x"))
    others = 0

    async def other() -> None:
        nonlocal others
        others += 1

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        for _ in range(100):
            assert await socket.receive() == b"x"
            await socket.send(b"x")
    assert others
    for call in (socket.receive, partial(socket.send, b"x")):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
    await socket.send(b"nothing was cut")
    await socket.close()
    assert socket.closed.result() is None


@pytest.mark.parametrize("how", ["exactly", "until"])
async def test_a_read_does_not_return_the_rest_after_aclose(how: str) -> None:
    """aclose() has discarded the first data, but the stream receives the rest all the same."""
    go_on = anyio.Event()

    class Stubborn(Odd):
        async def receive(self, max_bytes: int = 65536) -> bytes:
            if "receive" not in self.calls:
                return await super().receive(max_bytes)
            with anyio.CancelScope(shield=True):
                await go_on.wait()
            return b"line\n"

    socket = Socket.wrap(Stubborn(receive=b"first"))

    async def read() -> None:
        with pytest.raises(ClosedError):
            await (
                socket.receive_exactly(10) if how == "exactly" else socket.receive_until(b"\n", 99)
            )

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await all_blocked()
        assert socket._connection._kept == b"first"
        await socket.readable.aclose()
        go_on.set()
    assert not socket._connection._kept
    await socket.close()


async def test_close_gives_up_on_a_stream_that_never_closes() -> None:
    class Endless(Odd):
        async def aclose(self) -> None:
            await anyio.sleep_forever()

    socket = Socket.wrap(Endless(), close_timeout=0.01)
    await socket.opened
    await socket.close()
    assert isinstance(socket.closed.exception(), BrokenError)


# --- bad arguments


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"secure_transport": "on"}, "sni is missing"),
        ({"secure_transport": "on", "ssl_context": client_context()}, "sni is missing"),
        ({"sni": NAME}, "has no effect with secure_transport='off'"),
        ({"keep_alive": 60}, "keep_alive=60 has no effect on a stream"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"secureTransport": "on"}, "did you mean 'secure_transport'"),
        ({"task_group": None}, "unknown option"),
    ],
    ids=("on", "on with a context", "off with sni", "keep_alive", "timeout", "name", "task_group"),
)
def test_bad_options_leave_the_stream_alone(options: dict[str, Any], why: str) -> None:
    stream = Odd()
    with pytest.raises(InvalidOptionError, match=why):
        Socket.wrap(stream, **options)
    assert not stream.calls


@pytest.mark.parametrize("stream", [None, "127.0.0.1:80", 5, stdlib.socket], ids=repr)
def test_an_object_that_is_no_stream_is_refused(stream: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"must be an anyio\.abc\.ByteStream"):
        Socket.wrap(stream)


def test_none_means_not_given() -> None:
    socket = Socket.wrap(Odd(), keep_alive=None, sni=None, secure_transport=None)
    assert socket.secure_transport == "off"


async def test_one_half_of_a_socket_is_refused(tmp_path: Path) -> None:
    async with unix(tmp_path) as (stream, _):
        half: Any = Socket.wrap(stream).readable
        with pytest.raises(InvalidOptionError, match="of two halves"):
            Socket.wrap(half)
