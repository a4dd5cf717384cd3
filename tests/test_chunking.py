"""However bytes are cut up on their way, the same bytes arrive, both ways at once, to the end."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import chain, cycle, pairwise
from typing import Protocol, TypeAlias

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from anyio.streams.stapled import StapledByteStream
from anyio.streams.text import TextStream
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_connect import Socket
from anyio_connect._transport import ForeignTransport
from peers import Peer
from sockets import connected, socket_over
from tls_peers import TLS12, TLS13, TLSPeer, server_context
from tls_peers import over_tcp as over_tcp_tls

#: Each example makes a connection, and each test runs on every event loop: fewer will do.
fewer = settings(max_examples=settings().max_examples * 3 // 10)


# --- the other end


class Remote(Protocol):
    """The peer's side of a connection; ``b""`` is the end."""

    async def send(self, data: bytes) -> None: ...
    async def receive(self, max_bytes: int) -> bytes: ...
    async def fin(self) -> None: ...


class MemoryStream(ByteStream):
    """Bytes over AnyIO's object streams: one item is cut where less is asked for."""

    def __init__(
        self, sender: MemoryObjectSendStream[bytes], receiver: MemoryObjectReceiveStream[bytes]
    ) -> None:
        self.sender = sender
        self.receiver = receiver
        self.rest = b""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        item = self.rest or await self.receiver.receive()
        self.rest = item[max_bytes:]
        return item[:max_bytes]

    async def send(self, item: bytes) -> None:
        await self.sender.send(item)

    async def send_eof(self) -> None:
        await self.sender.aclose()

    async def aclose(self) -> None:
        self.sender.close()
        self.receiver.close()


class MemoryRemote:
    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream

    async def send(self, data: bytes) -> None:
        if data:
            await self.stream.send(data)

    async def receive(self, max_bytes: int) -> bytes:
        try:
            return await self.stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""

    async def fin(self) -> None:
        self.stream.sender.close()


class TCPRemote:
    def __init__(self, peer: Peer) -> None:
        self.send = peer.send
        self.receive = peer.receive
        self.peer = peer

    async def fin(self) -> None:
        self.peer.fin()


Connected: TypeAlias = AsyncIterator[tuple[Socket, Remote]]
Over: TypeAlias = Callable[..., AbstractAsyncContextManager[tuple[Socket, Remote]]]


@asynccontextmanager
async def over_tcp(*, half_open: bool) -> Connected:
    # Small kernel buffers, so that sends wait and what arrives is cut up some more.
    async with connected(half_open=half_open, receive_buffer=16384) as (socket, peer):
        yield socket, TCPRemote(peer)


@asynccontextmanager
async def over_memory(*, half_open: bool) -> Connected:
    to_us, from_them = anyio.create_memory_object_stream[bytes](1)
    to_them, from_us = anyio.create_memory_object_stream[bytes](0)
    theirs = MemoryStream(to_us, from_us)
    transport = ForeignTransport(MemoryStream(to_them, from_them))
    async with theirs, socket_over(transport, half_open=half_open) as socket:
        yield socket, MemoryRemote(theirs)


class TLSRemote:
    def __init__(self, peer: TLSPeer) -> None:
        self.peer = peer
        self.rest = b""

    async def send(self, data: bytes) -> None:
        if data:
            await self.peer.send(data)

    async def receive(self, max_bytes: int) -> bytes:
        data = self.rest or await self.peer.receive()
        self.rest = data[max_bytes:]
        return data[:max_bytes]

    async def fin(self) -> None:
        await self.peer.peer.send(self.peer.server.close_notify())
        self.peer.peer.fin()


@asynccontextmanager
async def over_tls(version: ssl.TLSVersion, *, half_open: bool) -> Connected:
    async with (
        over_tcp_tls(server_context(version), buffers=16384) as (transport, peer),
        socket_over(transport, half_open=half_open) as socket,
    ):
        yield socket, TLSRemote(peer)


over = pytest.mark.parametrize(
    "over",
    [over_tcp, over_memory, partial(over_tls, TLS12), partial(over_tls, TLS13)],
    ids=["tcp", "memory", "tls-1.2", "tls-1.3"],
)


# --- cutting up

#: Where to cut, as fractions of the whole.
CUTS = st.lists(st.floats(0, 1), max_size=10)

#: How many bytes to ask for each time, begun again when used up.
SIZES = st.lists(
    st.one_of(st.integers(1, 9), st.sampled_from([100, 4096, 65536])), min_size=1, max_size=5
)


def repeating(length: int) -> bytes:
    """With a period that no buffer size is a multiple of."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]


#: Mostly short. Hypothesis chooses the bytes of short ones only, of which it has so many to give.
PAYLOADS = st.one_of(st.binary(max_size=50), st.builds(repeating, st.integers(0, 120_000)))


def cut(data: bytes, cuts: Iterable[float]) -> list[bytes]:
    """All of it, in pieces; two cuts in one place make an empty one."""
    places = sorted(round(fraction * len(data)) for fraction in cuts)
    return [data[a:b] for a, b in pairwise([0, *places, len(data)])]


async def send_all(send: Callable[[bytes], Awaitable[None]], pieces: list[bytes]) -> None:
    for piece in pieces:
        await send(piece)


async def receive_all(receive: Callable[[int], Awaitable[bytes]], sizes: list[int]) -> bytes:
    """Everything up to the end, which is EndOfStream or, from a remote, nothing."""
    data = bytearray()
    # Not byte by byte through a large payload: small sizes serve for its beginning.
    for size in chain(sizes * 5, cycle([max(*sizes, 4096)])):
        try:
            chunk = await receive(size)
        except anyio.EndOfStream:
            break
        if not chunk:
            break
        assert len(chunk) <= size
        data += chunk
    return bytes(data)


# --- both ways at once


@over
@pytest.mark.parametrize("stapled", [False, True], ids=["socket", "stapled"])
@given(
    half_open=st.booleans(),
    ours=PAYLOADS,
    theirs=PAYLOADS,
    our_cuts=CUTS,
    their_cuts=CUTS,
    our_sizes=SIZES,
    their_sizes=SIZES,
)
@fewer
async def test_duplex(
    over: Over,
    stapled: bool,
    half_open: bool,
    ours: bytes,
    theirs: bytes,
    our_cuts: list[float],
    their_cuts: list[float],
    our_sizes: list[int],
    their_sizes: list[int],
) -> None:
    received: dict[str, bytes] = {}
    async with over(half_open=half_open) as (socket, remote):
        stream: ByteStream = socket
        if stapled:
            stream = StapledByteStream(socket.writable, socket.readable)
        all_here = anyio.Event()

        async def we_send() -> None:
            await send_all(stream.send, cut(ours, our_cuts))
            await stream.send_eof()

        async def we_receive() -> None:
            received["theirs"] = await receive_all(stream.receive, our_sizes)

        async def they_send() -> None:
            await send_all(remote.send, cut(theirs, their_cuts))
            if not half_open:  # where the peer's end is ours too, it must not come too early
                await all_here.wait()
            await remote.fin()

        async def they_receive() -> None:
            received["ours"] = await receive_all(remote.receive, their_sizes)
            all_here.set()

        async with anyio.create_task_group() as group:
            for task in (we_send, we_receive, they_send, they_receive):
                group.start_soon(task)
        assert received == {"ours": ours, "theirs": theirs}
        assert socket.closed.result() is None
        await stream.aclose()


@over
@given(theirs=PAYLOADS, cuts=CUTS)
@fewer
async def test_iteration(over: Over, theirs: bytes, cuts: list[float]) -> None:
    async with over(half_open=False) as (socket, remote):
        async with anyio.create_task_group() as group:

            async def they_send() -> None:
                await send_all(remote.send, cut(theirs, cuts))
                await remote.fin()

            group.start_soon(they_send)
            assert b"".join([chunk async for chunk in socket]) == theirs
        assert socket.closed.result() is None


# --- under AnyIO's streams


@over
@given(
    messages=st.lists(st.one_of(st.binary(max_size=30), st.just(repeating(5000)))),
    cuts=CUTS,
)
@fewer
async def test_buffered(over: Over, messages: list[bytes], cuts: list[float]) -> None:
    """Each message goes with its length in a line before it, there and back."""
    whole = b"".join(b"%d\r\n%b" % (len(message), message) for message in messages)
    async with over(half_open=True) as (socket, remote):
        stream = BufferedByteStream(socket)
        received: list[bytes] = []

        async def they_send() -> None:
            await send_all(remote.send, cut(whole, cuts))
            await remote.fin()

        async def they_receive() -> None:
            received.append(await receive_all(remote.receive, [65536]))

        async with anyio.create_task_group() as group:
            group.start_soon(they_send)
            group.start_soon(they_receive)
            for message in messages:
                length = int(await stream.receive_until(b"\r\n", 10))
                found = await stream.receive_exactly(length) if length else b""
                assert found == message
                await stream.send(b"%d\r\n" % length)
                await stream.send(found)
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            await stream.send_eof()
        assert received == [whole]
        assert socket.closed.result() is None


@over
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
@given(texts=st.lists(st.text(max_size=50), max_size=8), cuts=CUTS)
@fewer
async def test_text(over: Over, encoding: str, texts: list[str], cuts: list[float]) -> None:
    """A cut may well go through the middle of a character."""
    whole = "".join(texts).encode(encoding)
    async with over(half_open=True) as (socket, remote):
        stream = TextStream(socket, encoding=encoding)
        received: list[bytes] = []

        async def they_send() -> None:
            await send_all(remote.send, cut(whole, cuts))
            await remote.fin()

        async def they_receive() -> None:
            received.append(await receive_all(remote.receive, [65536]))

        async def we_send() -> None:
            for text in texts:
                await stream.send(text)
            await stream.send_eof()

        async with anyio.create_task_group() as group:
            for task in (they_send, they_receive, we_send):
                group.start_soon(task)
            assert "".join([text async for text in stream]) == "".join(texts)
        assert received[0].decode(encoding) == "".join(texts)
        assert socket.closed.result() is None
