"""Every operation, cancelled at each of its checkpoints in turn.

Whatever it was doing: it ends; the socket is in a state that says what can be done; data that was
not returned can still be received; and the peer never gets a piece of a message with anything
behind it, not even a clean end.
"""

from __future__ import annotations

import socket as stdlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import anyio
import pytest
from anyio.abc import ByteSendStream, TaskGroup
from anyio.lowlevel import checkpoint

from anyio_connect import ClosedError, Socket, SocketError, TLSError, connect
from anyio_connect._lifecycle import Outbound
from peers import Listener, Peer, listening
from sockets import raw, use_up_the_turn
from tls_peers import NAME, TLS12, TLS13, TLSPeer, client_context, server_context

#: Each kernel buffer, in bytes.
BUFFER = 32768
#: What our side sends in an operation: at once, or in many pieces, as the peer reads.
SMALL, BIG = b"small message", bytes(range(256)) * 2048
#: What it sends behind that.
NEXT = b"and the next"
#: What the peer says.
SAID = b"what the peer says"

How: TypeAlias = Literal["end", "cut", "reset", "never began"]
Moment: TypeAlias = Literal["before", "after"]


# --- cancelling


class CancelAt(Awaitable[Any]):
    """Runs a coroutine and cancels a scope at its n-th suspension.

    Before it, or after it: when what was waited for has come, but was not acted upon yet.
    """

    def __init__(
        self, number: int, moment: Moment, scope: anyio.CancelScope, call: Coroutine[Any, Any, Any]
    ) -> None:
        self.number = number
        self.moment = moment
        self.scope = scope
        self.call = call
        self.count = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[], Any] = partial(self.call.send, None)
        while True:
            try:
                wanted = resume()
            except StopIteration as stop:
                return stop.value
            self.count += 1
            if self.count == self.number and self.moment == "before":
                self.scope.cancel()
            try:
                value = yield wanted
            except BaseException as exc:  # noqa: BLE001  # the call is to have it
                resume = partial(self.call.throw, exc)
            else:
                resume = partial(self.call.send, value)
            if self.count == self.number and self.moment == "after":
                self.scope.cancel()


# --- the peer


@dataclass
class Far:
    """Serves every connection there is, and keeps what each got and how that ended."""

    listener: Listener
    context: ssl.SSLContext | None
    says: bytes = b""
    ends: bool = False
    got: list[tuple[bytes, How]] = field(default_factory=list)
    served: int = 0

    async def serve(self, group: TaskGroup) -> None:
        while True:
            peer = await self.listener.accept()
            self.served += 1
            group.start_soon(self.serve_one, peer)

    async def serve_one(self, peer: Peer) -> None:
        how: How = "never began"
        data = bytearray()
        try:
            tls = None
            if self.context is not None:
                tls = TLSPeer(peer, self.context)
                await tls.shake()
                # What came with the end of the handshake would be lost to close_notify().
                data += tls.server.decrypt(b"")
            how = "cut"
            await self.say(peer, tls)
            receive = peer.receive if tls is None else tls.receive
            while chunk := await receive():
                data += chunk
            how = "end"
        except (ConnectionResetError, BrokenPipeError):
            how = "reset" if how != "never began" else how
        except (anyio.EndOfStream, ssl.SSLError):
            pass
        finally:
            peer.close()
            self.got.append((bytes(data), how))

    async def say(self, peer: Peer, tls: TLSPeer | None) -> None:
        if self.says:
            await (peer.send(self.says) if tls is None else tls.send(self.says))
        if self.ends:
            if tls is not None:
                await peer.send(tls.server.close_notify())
            with suppress(OSError):  # reset by then, as receiving will tell
                peer.fin()

    async def finish(self) -> None:
        """Wait until every connection is over."""
        while True:
            with suppress(BlockingIOError):
                self.listener.sock.accept()[0].close()  # one that nobody will ask for
                continue
            if len(self.got) == self.served:
                return
            await checkpoint()


@asynccontextmanager
async def world(
    version: ssl.TLSVersion | None, operation: Operation
) -> AsyncIterator[tuple[Socket, Far]]:
    options: dict[str, Any] = {"allow_half_open": operation.half_open}
    if version is not None:
        options |= {"secure_transport": "on", "sni": NAME, "ssl_context": client_context()}
    async with (
        listening(receive_buffer=BUFFER) as listener,
        anyio.create_task_group() as group,
    ):
        context = None if version is None else server_context(version)
        far = Far(listener, context, operation.says, operation.ends)
        group.start_soon(far.serve, group)
        socket = connect(listener.address, **options)
        try:
            yield socket, far
        finally:
            await socket.close()
            group.cancel_scope.cancel()


# --- the operations


@dataclass(frozen=True)
class Operation:
    run: Callable[[Socket], Coroutine[Any, Any, Any]]
    begins_open: bool = True
    sends: bytes = b""
    says: bytes = b""
    ends: bool = False
    half_open: bool = True
    behind_a_send: bool = False  # of another task, of BIG
    closes: bool = False  # cancelled or not


async def opened(socket: Socket) -> None:
    await socket.opened


async def async_with(socket: Socket) -> None:
    async with socket:
        await checkpoint()


async def receive(socket: Socket) -> bytes:
    return await socket.receive()


async def receive_byte_by_byte(socket: Socket) -> bytes:
    return await socket.receive(1)


async def receive_the_end(socket: Socket) -> None:
    with pytest.raises(anyio.EndOfStream):
        await socket.receive()


async def send(socket: Socket) -> None:
    await socket.send(SMALL)


async def send_nothing(socket: Socket) -> None:
    await socket.send(b"")


async def send_much(socket: Socket) -> None:
    await socket.send(BIG)


async def send_eof(socket: Socket) -> None:
    await socket.send_eof()


async def end(socket: Socket) -> None:
    await socket.writable.aclose()


async def stop(socket: Socket) -> None:
    await socket.readable.aclose()


async def abort(socket: Socket) -> None:
    await socket.writable.abort("no more")


async def close(socket: Socket) -> None:
    await socket.close()


async def send_whatever_comes_of_it(socket: Socket) -> None:
    with suppress(SocketError):
        await socket.send(BIG)


async def closed(socket: Socket) -> None:
    await socket.closed


async def end_and_watch(socket: Socket) -> None:
    await socket.send_eof()
    await socket.closed


class Sink(ByteSendStream):
    async def send(self, item: bytes) -> None:
        await checkpoint()

    async def aclose(self) -> None:
        await checkpoint()


async def pipe_to(socket: Socket) -> None:
    await socket.readable.pipe_to(Sink())


OPERATIONS = [
    Operation(opened, begins_open=False),
    Operation(async_with, begins_open=False, closes=True),
    Operation(receive, says=SAID),
    Operation(receive_byte_by_byte, says=SAID),
    Operation(receive, begins_open=False, says=SAID),
    Operation(receive_the_end, ends=True),
    Operation(receive_the_end, ends=True, half_open=False),
    Operation(send, sends=SMALL),
    Operation(send, begins_open=False, sends=SMALL),
    Operation(send_nothing),
    Operation(send_much, sends=BIG),
    Operation(send_eof),
    Operation(end),
    Operation(end, begins_open=False),
    Operation(end, behind_a_send=True, sends=BIG),
    Operation(stop, says=SAID),
    Operation(abort),
    Operation(close, says=SAID, closes=True),
    Operation(close, begins_open=False, closes=True),
    Operation(close, behind_a_send=True, sends=BIG, closes=True),
    Operation(end_and_watch, ends=True),
    Operation(closed, ends=True, half_open=False),
    Operation(pipe_to, says=SAID, ends=True),
]


def name(operation: Operation) -> str:
    said = {
        "pending": not operation.begins_open,
        "not-half-open": not operation.half_open,
        "behind-a-send": operation.behind_a_send,
    }
    return "-".join([operation.run.__name__, *(word for word, holds in said.items() if holds)])


# --- the sweep


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("version", [None, TLS12, TLS13], ids=["tcp", "tls-1.2", "tls-1.3"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=name)
async def test_cancelled_at_every_checkpoint(
    operation: Operation, version: ssl.TLSVersion | None, moment: Moment
) -> None:
    number = 0
    while True:
        number += 1
        async with (
            anyio.create_task_group() as group,
            world(version, operation) as (socket, far),
        ):
            if operation.begins_open:
                await socket.opened
                raw(socket).setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, BUFFER)
            if operation.behind_a_send:
                group.start_soon(send_whatever_comes_of_it, socket)
                while socket._connection.state.outbound is not Outbound.SENDING:
                    await checkpoint()
            if operation.begins_open:
                use_up_the_turn(socket)
            result = None
            with anyio.CancelScope() as scope:
                call = CancelAt(number, moment, scope, operation.run(socket))
                result = await call
                await checkpoint()  # it swallowed nothing: this is where it is raised at last
            assert scope.cancelled_caught == scope.cancel_called
            with anyio.fail_after(5):
                await check_what_is_left(operation, socket, far, result)
        if not scope.cancel_called:
            break
    assert number > 1, "not a single checkpoint"


async def check_what_is_left(
    operation: Operation, socket: Socket, far: Far, result: bytes | None
) -> None:
    if operation.run in (receive, receive_byte_by_byte):
        data = result or b""
        while len(data) < len(SAID):
            data += await socket.receive()
        assert data == SAID
    followed = False
    try:
        await socket.send(NEXT)
        followed = True
    except ClosedError:
        pass
    except anyio.BrokenResourceError:
        assert operation.sends or operation.run in (abort, end, send_eof, end_and_watch, pipe_to)
    if operation.closes:
        assert not followed
        assert socket.closed.done()
    await socket.close()
    assert socket.opened.done()
    assert socket.closed.done()
    await far.finish()
    for data, how in far.got:
        legal = {b"", operation.sends, NEXT, operation.sends + NEXT}
        if how == "end":
            assert data in legal, f"a clean end after {len(data)} bytes"
        else:
            pieces = operation.sends, NEXT, operation.sends + NEXT
            assert any(whole.startswith(data) for whole in pieces), f"{len(data)} bytes"
        torn = operation.sends.startswith(data) and data not in legal
        if torn:
            assert not followed, "something followed a piece"
    if followed:
        data, how = far.got[-1]
        assert data.endswith(NEXT)


# --- TLS in mid-connection


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("version", [TLS12, TLS13], ids=["tls-1.2", "tls-1.3"])
async def test_start_tls_cancelled_at_every_checkpoint(
    version: ssl.TLSVersion, moment: Moment
) -> None:
    """Before the handshake has begun it can be made later; after that it fails for good."""
    number, failed = 0, 0
    while True:
        number += 1
        async with listening() as listener, anyio.create_task_group() as group:
            far = Far(listener, server_context(version))
            group.start_soon(far.serve, group)
            plain = connect(
                listener.address,
                secure_transport="starttls",
                sni=NAME,
                ssl_context=client_context(),
            )
            await plain.opened
            secure = plain.start_tls()
            with anyio.CancelScope() as scope:
                await CancelAt(number, moment, scope, opened(secure))
                await checkpoint()
            with anyio.fail_after(5):
                sent = False
                try:
                    await secure.send(NEXT)
                    sent = True
                except TLSError:
                    failed += 1
                    assert isinstance(secure.opened.exception(), TLSError)
                    assert isinstance(secure.closed.exception(), TLSError)
                await secure.close()
                await far.finish()
            ((data, how),) = far.got
            assert data == NEXT * sent
            assert (how == "end") == sent
            group.cancel_scope.cancel()
        if not scope.cancel_called:
            break
    assert number > 1
    assert failed
