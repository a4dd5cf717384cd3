"""docs/semantics.md: each call does what the tables say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, TaskGroup

import anyio_connect
from anyio_connect import ConnectError, DetachError, Socket, connect, listen
from anyio_connect.testing import Network
from support.pages import ROOT, table
from support.turns import all_blocked

SECTION = (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8")
SECTION = SECTION.partition("\n## What each call does in which state\n")[2].partition("\n## ")[0]
TABLES = SECTION.split("<!-- made: ")[1:]
CELLS = [
    (row[0], call.strip("` "), cell)
    for part in TABLES
    for head in [next(line for line in part.splitlines() if line.startswith("| the socket"))]
    for row in table(part)
    for call, cell in zip(head.strip("|").split(" | ")[1:], row[1:], strict=True)
]

HERE = "here.example:1"
BUFFER = 100


class Pair:
    """A socket, and its peer, which says hello first."""

    #: Lets the call that is in flight complete.
    complete: Callable[[], Awaitable[object]]

    def __init__(self, group: TaskGroup) -> None:
        self.group = group
        self.sockets: list[Socket] = []
        self.network = Network(buffer_size=BUFFER)
        self.listener = self.network.listen(HERE, allow_half_open=True)

    def connect(self, **options: Any) -> None:
        connector = self.network.connector()
        self.ours = connector.connect(HERE, secure_transport="starttls", **options)
        self.sockets.append(self.ours)

    async def close(self) -> None:
        """Drop all sockets, and end all tasks."""
        for socket in self.sockets:
            await anyio.aclose_forcefully(socket)
        self.group.cancel_scope.cancel()  # greet() waits if no client has connected

    async def open(self, **options: Any) -> None:
        self.connect(**options)
        self.group.start_soon(self.greet)
        await self.ours.opened
        await all_blocked()

    async def greet(self) -> None:
        self.theirs = await self.listener.accept()
        self.sockets.append(self.theirs)
        await self.theirs.send(b"hello")

    async def start(self, call: Callable[[], Awaitable[object]]) -> None:
        """Put a call in flight, in a task of its own."""

        async def run() -> None:
            with suppress(anyio_connect.SocketError):
                await call()

        self.group.start_soon(run)
        await all_blocked()


async def pending(pair: Pair) -> None:
    pair.connect()
    pair.group.start_soon(pair.greet)


async def opened(pair: Pair) -> None:
    await pair.open()


async def receiving(pair: Pair) -> None:
    await pair.open()
    await pair.ours.receive()
    await pair.start(pair.ours.receive)


async def sending(pair: Pair) -> None:
    await pair.open()
    await pair.start(lambda: pair.ours.send(bytes(5 * BUFFER)))
    pair.complete = lambda: pair.theirs.receive_exactly(5 * BUFFER)


class HeldEnd(ByteStream):
    """A stream whose send_eof() waits until the test says so."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.released = anyio.Event()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self.stream.send(item)

    async def send_eof(self) -> None:
        await self.released.wait()
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()


async def ending(pair: Pair) -> None:
    await pair.open()
    stream = HeldEnd(pair.ours)
    pair.ours = Socket.wrap(stream, secure_transport="starttls")
    pair.sockets.append(pair.ours)
    await pair.start(pair.ours.send_eof)

    async def complete() -> None:
        stream.released.set()

    pair.complete = complete


async def peer_ended(pair: Pair, **options: Any) -> None:
    await pair.open(**options)
    await pair.theirs.send_eof()
    await pair.ours.receive()
    with pytest.raises(anyio.EndOfStream):
        await pair.ours.receive()


async def peer_ended_half_open(pair: Pair) -> None:
    await peer_ended(pair, allow_half_open=True)


async def we_ended(pair: Pair) -> None:
    await pair.open()
    await pair.ours.send_eof()


async def stopped_reading(pair: Pair) -> None:
    await pair.open()
    await pair.ours.readable.aclose()


async def torn(pair: Pair) -> None:
    await pair.open()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def cancel() -> None:
                await all_blocked()
                scope.cancel()

            group.start_soon(cancel)
            await pair.ours.send(bytes(5 * BUFFER))


async def reset(pair: Pair) -> None:
    await pair.open()
    await pair.ours.receive()
    await pair.theirs.writable.abort()
    with pytest.raises(anyio_connect.BrokenError):
        await pair.ours.receive()


async def reset_unread(pair: Pair) -> None:
    await pair.open()
    await pair.ours.receive_until(b"h", 10)  # this reads ahead
    await pair.theirs.writable.abort()
    with pytest.raises(anyio_connect.BrokenError):
        await pair.ours.send(b"x")


async def closed(pair: Pair) -> None:
    await pair.open()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pair.ours.close()


async def failed(pair: Pair) -> None:
    await pair.listener.aclose()
    pair.connect()
    with pytest.raises(ConnectError):
        await pair.ours.opened


async def upgraded(pair: Pair) -> None:
    await pair.open()
    pair.sockets.append(pair.ours.start_tls(expected_server_hostname="here.example"))


async def detached(pair: Pair) -> None:
    # In memory there is nothing to detach.
    async with await listen("127.0.0.1:0") as listener:
        pair.ours = connect(listener.addresses[0], secure_transport="starttls")
        await pair.ours.opened
        pair.ours.detach().close()


SITUATIONS = {
    "pending: no connection yet": pending,
    "open": opened,
    "open, a receive is in flight": receiving,
    "open, a send is in flight": sending,
    "open, `send_eof()` is in flight: our end is on its way": ending,
    "the peer has ended": peer_ended,
    "the peer has ended, `allow_half_open=True`": peer_ended_half_open,
    "we have ended: `send_eof()`": we_ended,
    "we stopped reading: `readable.aclose()`": stopped_reading,
    "a send was cut short": torn,
    "reset": reset,
    "reset, with data left to read": reset_unread,
    "closed": closed,
    "it could not be made": failed,
    "after `start_tls()`": upgraded,
    "after `detach()`": detached,
}


async def do(ours: Socket, call: str) -> None:
    match call:
        case "receive()":
            await ours.receive()
        case "send()":
            await ours.send(b"x")
        case "send_eof()":
            await ours.send_eof()
        case "writable.aclose()":
            await ours.writable.aclose()
        case "writable.abort()":
            await ours.writable.abort()
        case "start_tls()":
            await ours.start_tls(expected_server_hostname="here.example").close()
        case "detach()":
            ours.detach()
        case _:
            raise AssertionError(f"add {call} here")


def test_each_situation_is_tried() -> None:
    assert {situation for situation, *_ in CELLS} == SITUATIONS.keys()
    assert len({call for _, call, _ in CELLS}) == 7


@pytest.mark.parametrize(("situation", "call", "cell"), CELLS)
async def test_a_call_does_what_the_table_says(situation: str, call: str, cell: str) -> None:
    async with anyio.create_task_group() as group:
        pair = Pair(group)
        try:
            await SITUATIONS[situation](pair)
            if cell.startswith("waits"):
                await pair.start(lambda: do(pair.ours, call))
                await pair.complete()
                with pytest.raises(anyio.EndOfStream):
                    await pair.theirs.receive()
            elif cell == "the error of `opened`":
                with pytest.raises(ConnectError):
                    await do(pair.ours, call)
            elif cell.startswith("`"):
                name = cell.strip("`")
                with pytest.raises(getattr(anyio_connect, name, None) or getattr(anyio, name)):
                    await do(pair.ours, call)
            elif call == "detach()":  # allowed, but in memory there is no descriptor
                with pytest.raises(DetachError, match="cannot be detached"):
                    await do(pair.ours, call)
            else:
                await do(pair.ours, call)
            if cell == "resets the connection":
                with pytest.raises(anyio_connect.BrokenError):
                    await pair.theirs.receive_exactly(10 * BUFFER)
        finally:
            await pair.close()
