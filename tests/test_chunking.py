"""Bytes arrive unchanged, both ways at once, in whatever pieces the network delivers them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from itertools import chain, cycle, pairwise

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.stapled import StapledByteStream
from anyio.streams.text import TextStream
from hypothesis import given, settings
from hypothesis import strategies as st

from support.remotes import Over, over

#: Each example makes a connection, and each test runs on every event loop: fewer are enough.
fewer = settings(max_examples=settings().max_examples * 3 // 10)


# --- cutting up

#: Where to cut, as fractions of the whole.
CUTS = st.lists(st.floats(0, 1), max_size=10)

#: How many bytes to ask for in each call. The list is repeated.
SIZES = st.lists(
    st.one_of(st.integers(1, 9), st.sampled_from([100, 4096, 65536])), min_size=1, max_size=5
)


def repeating(length: int) -> bytes:
    """Bytes with a period of 251, of which no buffer size is a multiple."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]


#: Mostly short. Hypothesis chooses only the bytes of short payloads, because its data is limited.
PAYLOADS = st.one_of(st.binary(max_size=50), st.builds(repeating, st.integers(0, 120_000)))


def cut(data: bytes, cuts: Iterable[float]) -> list[bytes]:
    """The data in pieces. Two cuts in one place make an empty piece."""
    places = sorted(round(fraction * len(data)) for fraction in cuts)
    return [data[a:b] for a, b in pairwise([0, *places, len(data)])]


async def send_all(send: Callable[[bytes], Awaitable[None]], pieces: list[bytes]) -> None:
    for piece in pieces:
        await send(piece)


async def receive_all(receive: Callable[[int], Awaitable[bytes]], sizes: list[int]) -> bytes:
    """Everything up to the end, which is EndOfStream, or no data from a remote."""
    data = bytearray()
    # Small sizes are used for the beginning only: a large payload would take too many calls.
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


@pytest.mark.slow
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
            if not half_open:  # the peer's end ends our side too: it must not come early
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


@pytest.mark.slow
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


@pytest.mark.slow
@over
@given(
    messages=st.lists(st.one_of(st.binary(max_size=30), st.just(repeating(5000)))),
    cuts=CUTS,
)
@fewer
async def test_buffered(over: Over, messages: list[bytes], cuts: list[float]) -> None:
    """A line with its length comes before each message, in both directions."""
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


@pytest.mark.slow
@over
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
@given(texts=st.lists(st.text(max_size=50), max_size=8), cuts=CUTS)
@fewer
async def test_text(over: Over, encoding: str, texts: list[str], cuts: list[float]) -> None:
    """A cut may go through the middle of a character."""
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
