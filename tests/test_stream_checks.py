"""The contract of an AnyIO byte stream, checked on sockets, on every event loop.

These checks do for AnyIO's streams what ``trio.testing.check_half_closeable_stream()`` does for
trio's (see test_trio_checks.py).
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.abc import ByteStream

from anyio_connect import Socket
from support.sockets import socket_pair
from support.tls_peers import TLS12, TLS13, tls_socket_pair
from support.turns import all_blocked

Call: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]

#: More than the kernel holds between two sockets.
MORE_THAN_FITS = bytes(1 << 24)


@pytest.fixture(
    params=[socket_pair, partial(tls_socket_pair, TLS12), partial(tls_socket_pair, TLS13)],
    ids=["tcp", "tls-1.2", "tls-1.3"],
)
def connected(request: pytest.FixtureRequest) -> Any:
    """A function that makes a pair of streams, and drops both at the end."""
    make: Callable[[], Awaitable[tuple[Socket, Socket]]] = request.param

    @asynccontextmanager
    async def pair(*, flipped: bool = False) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
        ours, theirs = await make()
        try:
            yield (theirs, ours) if flipped else (ours, theirs)
        finally:
            await anyio.aclose_forcefully(ours)
            await anyio.aclose_forcefully(theirs)

    return pair


Pair: TypeAlias = Callable[..., Any]
both_ways = pytest.mark.parametrize("flipped", [False, True], ids=["there", "back"])


async def both(one: Call, other: Call) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(one)
        group.start_soon(other)


def raising(expected: type[BaseException], call: Callable[..., Any], *args: object) -> Call:
    async def run() -> None:
        with pytest.raises(expected):
            await call(*args)

    return run


async def assert_checkpoint(call: Call) -> None:
    """Check that a call can be cancelled and lets other tasks run, even if it need not wait.

    It need not let them run each time, but within a hundred calls in a row.
    """
    with anyio.CancelScope() as scope:
        scope.cancel()
        await call()
    assert scope.cancelled_caught
    others = 0

    async def other() -> None:
        nonlocal others
        others += 1

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        for _ in range(100):
            await call()
            if others:
                break
        assert others, "100 calls in a row let no other task run"


# --- one direction


@both_ways
async def test_bytes_arrive(connected: Pair, flipped: bool) -> None:
    async with connected(flipped=flipped) as (s, r):
        for item in (b"x", bytearray(b"1"), memoryview(b"2"), memoryview(bytearray(b"3"))):
            async with anyio.create_task_group() as group:
                group.start_soon(s.send, item)
                assert await r.receive(1) == bytes(item)
        await s.send(b"")  # does nothing
        await s.send(b"many")
        assert await r.receive(1) == b"m"
        assert await r.receive(2) == b"an"
        assert await r.receive() == b"y"


@both_ways
async def test_bad_arguments(connected: Pair, flipped: bool) -> None:
    async with connected(flipped=flipped) as (s, r):
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                await r.receive(wrong)
        with pytest.raises(TypeError):
            await r.receive(1.5)
        with pytest.raises(TypeError):
            await s.send("text")
        await s.send(b"as before")
        assert await r.receive() == b"as before"


@both_ways
async def test_every_call_is_a_checkpoint(connected: Pair, flipped: bool) -> None:
    async with connected(flipped=flipped) as (s, r):
        await s.send(bytes(1000))
        await assert_checkpoint(partial(r.receive, 1))
        await assert_checkpoint(partial(s.send, b"x"))
        await assert_checkpoint(partial(s.send, b""))
        await assert_checkpoint(s.send_eof)  # the first call is cancelled, but ends our side
        with suppress(anyio.EndOfStream):
            while True:
                await r.receive()
        await assert_checkpoint(raising(anyio.EndOfStream, r.receive))
        await assert_checkpoint(raising(anyio.ClosedResourceError, s.send, b"x"))
        await s.aclose()
        await assert_checkpoint(s.aclose)
        await assert_checkpoint(raising(anyio.ClosedResourceError, s.receive))


@both_ways
async def test_two_calls_at_once(connected: Pair, flipped: bool) -> None:
    async with connected(flipped=flipped) as (s, r), anyio.create_task_group() as group:
        group.start_soon(raising(anyio.ClosedResourceError, r.receive))
        await all_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await r.receive()
        await r.aclose()
    async with connected(flipped=flipped) as (s, r), anyio.create_task_group() as group:
        group.start_soon(s.send, MORE_THAN_FITS)
        await all_blocked()
        for call in (partial(s.send, b"x"), s.send_eof):
            with pytest.raises(anyio.BusyResourceError):
                await call()
        group.cancel_scope.cancel()


@both_ways
async def test_the_receiver_closes(connected: Pair, flipped: bool) -> None:
    """Sending then fails sooner or later, and keeps failing."""
    for close in (aclose, anyio.aclose_forcefully):
        async with connected(flipped=flipped) as (s, r):
            await both(raising(anyio.BrokenResourceError, flood, s), partial(close, r))
            with pytest.raises(anyio.BrokenResourceError):
                await s.send(b"x" * 100)
            with pytest.raises(anyio.ClosedResourceError):
                await r.receive()
            await r.aclose()
            await s.aclose()
            for data in (b"x", b""):
                with pytest.raises(anyio.ClosedResourceError):
                    await s.send(data)
            await s.aclose()


async def flood(stream: ByteStream) -> None:
    while True:
        await stream.send(b"x" * 100)


async def aclose(stream: ByteStream) -> None:
    await stream.aclose()


@both_ways
async def test_the_sender_closes(connected: Pair, flipped: bool) -> None:
    async with connected(flipped=flipped) as (s, r):
        await s.send(b"y")
        await s.aclose()
        assert await r.receive(1) == b"y"
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await r.receive(1)
    async with connected(flipped=flipped) as (s, r):
        await anyio.aclose_forcefully(s)
        with pytest.raises(anyio.ClosedResourceError):
            await s.send(b"123")
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await r.receive()


@both_ways
async def test_a_cancelled_close_closes(connected: Pair, flipped: bool) -> None:
    async with connected(flipped=flipped) as (s, r):
        for stream in (r, s):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await s.send(b"123")
        with pytest.raises(anyio.ClosedResourceError):
            await r.receive()


@both_ways
async def test_closing_wakes_waiting_tasks(connected: Pair, flipped: bool) -> None:
    async with connected(flipped=flipped) as (s, r), anyio.create_task_group() as group:
        group.start_soon(raising(anyio.ClosedResourceError, r.receive))
        await all_blocked()
        await anyio.aclose_forcefully(r)
    async with connected(flipped=flipped) as (s, r), anyio.create_task_group() as group:
        group.start_soon(raising(anyio.ClosedResourceError, s.send, MORE_THAN_FITS))
        await all_blocked()
        await anyio.aclose_forcefully(s)


@both_ways
async def test_a_cancelled_call_leaves_a_stream_that_works(connected: Pair, flipped: bool) -> None:
    async with connected(flipped=flipped) as (s, r):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await s.send(b"never")
        async with anyio.create_task_group() as group:
            group.start_soon(r.receive)
            await all_blocked()
            group.cancel_scope.cancel()
        await s.send(b"data")
        assert await r.receive() == b"data"
        await both(s.aclose, r.aclose)


# --- both directions


async def test_duplex(connected: Pair) -> None:
    data = random.Random(0).randbytes(1 << 20)
    async with connected() as (one, other):

        async def send(stream: ByteStream, data: bytes, seed: int) -> None:
            sizes, view = random.Random(seed), memoryview(data)
            while view:
                size = sizes.randint(1, 1 << 14)
                await stream.send(bytes(view[:size]))
                view = view[size:]

        async def receive(stream: ByteStream, data: bytes, seed: int) -> None:
            sizes, received = random.Random(seed), bytearray()
            while len(received) < len(data):
                received += await stream.receive(sizes.randint(1, 1 << 14))
            assert received == data

        async with anyio.create_task_group() as group:
            group.start_soon(send, one, data, 0)
            group.start_soon(send, other, data[::-1], 1)
            group.start_soon(receive, one, data[::-1], 2)
            group.start_soon(receive, other, data, 3)


# --- half-close


@both_ways
async def test_one_direction_ends(connected: Pair, flipped: bool) -> None:
    async with connected(flipped=flipped) as (one, other):
        for sender, receiver in ((one, other), (other, one)):
            await sender.send(b"x")
            await sender.send_eof()
            assert await receiver.receive(10) == b"x"
            with pytest.raises(anyio.EndOfStream):
                await receiver.receive(10)
            with pytest.raises(anyio.ClosedResourceError):
                await sender.send(b"y")
            if sender is one:
                await sender.send_eof()
