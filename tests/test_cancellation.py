"""Every operation, cancelled at each of its checkpoints in turn.

Each cancelled operation ends, and leaves the socket in a defined state. Data that was not returned
can still be received. The peer never gets anything after an incomplete message, not even a
regular end.
"""

from __future__ import annotations

import select
import socket as stdlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import anyio
import pytest
from anyio.abc import ByteSendStream, ByteStream, TaskGroup
from anyio.lowlevel import checkpoint

from anyio_connect import (
    AddressPolicy,
    BrokenError,
    ClosedError,
    Connector,
    DelimiterNotFoundError,
    IncompleteReadError,
    Socket,
    SocketAddress,
    SocketError,
    TLSError,
    _lookup,
    _tcp_connect,
    connect,
    listen,
)
from anyio_connect._lifecycle import Outbound
from anyio_connect._slots import Slots
from anyio_connect.testing import Network
from support.cancelling import CancelAt, Moment
from support.peers import Listener, Peer, listening, refusing_address
from support.sockets import raw, use_up_the_turn, wait_for
from support.tls_peers import NAME, TLS12, TLS13, TLSPeer, client_context, server_context

#: Each kernel buffer, in bytes.
BUFFER = 32768
#: What our side sends in an operation: in one piece, or in many while the peer reads.
SMALL, BIG = b"small message", bytes(range(256)) * 2048
#: What our side sends after that.
NEXT = b"and the next"
#: What the peer sends.
SAID = b"what the peer says"

How: TypeAlias = Literal["end", "cut", "reset", "never began"]


# --- the peer


@dataclass
class Far:
    """The peer. It serves every connection, and records what arrived and how that ended."""

    listener: Listener
    context: ssl.SSLContext | None
    says: bytes = b""
    ends: bool = False
    clear: int = 0  # how many bytes come before TLS
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
            await peer.receive_exactly(self.clear)
            if self.context is not None:
                tls = TLSPeer(peer, self.context)
                await tls.shake()
                # close_notify() would lose the data that arrived with the end of the handshake.
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
            with suppress(OSError):  # already reset: receive() will raise that
                peer.fin()

    async def finish(self) -> None:
        """Wait until every connection is over."""
        while True:
            knocking, _, _ = select.select([self.listener.sock], [], [], 0)
            if not knocking and len(self.got) == self.served:
                return
            await checkpoint()


class Sink(ByteSendStream):
    """A destination that is not a socket."""

    def __init__(self) -> None:
        self.got = b""
        self.ended: Literal["not", "gracefully", "by force", "in this direction"] = "not"

    async def send(self, item: bytes) -> None:
        await checkpoint()
        self.got += item

    async def aclose(self) -> None:
        self.ended = "by force"
        await checkpoint()
        self.ended = "gracefully"


class TwoWays(Sink, ByteStream):
    """A destination that is not a socket, and has the other direction too."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        raise AssertionError("a pipe does not receive from its destination")

    async def send_eof(self) -> None:
        await checkpoint()
        self.ended = "in this direction"


@dataclass
class Scene:
    """What an operation starts with, and what it leaves behind."""

    socket: Socket
    far: Far
    target: Socket  # another socket, for pipe_to()
    sink: Sink = field(default_factory=Sink)
    received: bytes = b""
    cancelled: bool = False  # the operation raised the cancellation
    followed: bool = False  # NEXT was sent


@asynccontextmanager
async def world(
    version: ssl.TLSVersion | None, operation: Operation
) -> AsyncIterator[tuple[Scene, TaskGroup]]:
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
        scene = Scene(
            connect(listener.address, **options), far, connect(listener.address, **options)
        )
        try:
            yield scene, group
        finally:
            await scene.socket.close()
            await scene.target.close()
            group.cancel_scope.cancel()


# --- the operations


async def opened(scene: Scene) -> None:
    await scene.socket.opened


async def async_with(scene: Scene) -> None:
    async with scene.socket:
        await checkpoint()


async def receive(scene: Scene) -> None:
    scene.received = await scene.socket.receive()


async def receive_byte_by_byte(scene: Scene) -> None:
    scene.received = await scene.socket.receive(1)


async def receive_into(scene: Scene) -> None:
    buffer = bytearray(7)
    scene.received = bytes(buffer[: await scene.socket.receive_into(buffer)])


async def receive_exactly(scene: Scene) -> None:
    scene.received = await scene.socket.receive_exactly(len(SAID))


async def receive_until(scene: Scene) -> None:
    """Twice: the second call gets what the first has read ahead."""
    scene.received += await scene.socket.receive_until(b" ", 100) + b" "
    scene.received += await scene.socket.receive_until(b" ", 100) + b" "


async def receive_what_never_comes(scene: Scene) -> None:
    with pytest.raises(IncompleteReadError):
        await scene.socket.receive_exactly(len(SAID) + 1)
    with pytest.raises(DelimiterNotFoundError):
        await scene.socket.receive_until(b"\n", len(SAID))
    with pytest.raises(IncompleteReadError):
        await scene.socket.receive_until(b"\n", 100)


async def iterate(scene: Scene) -> None:
    async for chunk in scene.socket.readable:
        scene.received += chunk


async def receive_the_end(scene: Scene) -> None:
    with pytest.raises(anyio.EndOfStream):
        await scene.socket.receive()


async def send(scene: Scene) -> None:
    await scene.socket.send(SMALL)


async def send_nothing(scene: Scene) -> None:
    await scene.socket.send(b"")


async def send_much(scene: Scene) -> None:
    await scene.socket.send(BIG)


async def send_eof(scene: Scene) -> None:
    await scene.socket.send_eof()


async def end(scene: Scene) -> None:
    await scene.socket.writable.aclose()


async def stop(scene: Scene) -> None:
    await scene.socket.readable.aclose()


async def abort(scene: Scene) -> None:
    await scene.socket.writable.abort("no more")


async def close(scene: Scene) -> None:
    await scene.socket.close()


async def watch(scene: Scene) -> None:
    await scene.socket.closed


async def end_and_watch(scene: Scene) -> None:
    await scene.socket.send_eof()
    await scene.socket.closed


async def pipe_to_a_stream(scene: Scene) -> None:
    await scene.socket.readable.pipe_to(scene.sink)


async def pipe_to_a_socket(scene: Scene) -> None:
    await scene.socket.readable.pipe_to(scene.target)


async def pipe_to_a_two_way_stream(scene: Scene) -> None:
    scene.sink = TwoWays()
    await scene.socket.readable.pipe_to(scene.sink)


async def pipe_from_a_closed_stream(scene: Scene) -> None:
    await scene.target.opened
    await scene.socket.readable.aclose()
    await scene.socket.readable.pipe_to(scene.target)


async def pipe_to_an_ended_target(scene: Scene) -> None:
    await scene.target.send_eof()
    with pytest.raises(ClosedError):
        await scene.socket.readable.pipe_to(scene.target, prevent_cancel=True)


async def pipe_to_a_target_that_ends(scene: Scene) -> None:
    await scene.target.opened
    async with anyio.create_task_group() as group:
        group.start_soon(end_a_little_later, scene.target)
        with pytest.raises(ClosedError):
            await scene.socket.readable.pipe_to(scene.target, prevent_cancel=True)


async def end_a_little_later(socket: Socket) -> None:
    for _ in range(3):
        await checkpoint()
    await socket.send_eof()


async def send_whatever_comes_of_it(socket: Socket) -> None:
    with suppress(SocketError):
        await socket.send(BIG)


# --- what each operation has to leave behind, as its docstring says


async def usable(scene: Scene) -> None:
    """The socket can still send and receive; it connects first if it is still pending."""
    assert not scene.socket.closed.done()
    await scene.socket.send(NEXT)
    scene.followed = True
    await reading_goes_on(scene)


async def reading_goes_on(scene: Scene) -> None:
    while len(scene.received) < len(scene.far.says):
        scene.received += await scene.socket.receive()
    assert scene.received == scene.far.says
    if scene.far.ends:
        with pytest.raises(anyio.EndOfStream):
            await scene.socket.receive()


async def nothing_or_all_was_sent(scene: Scene) -> None:
    await usable(scene)
    await scene.socket.close()
    await scene.far.finish()
    assert scene.far.got[-1] == (SMALL * (not scene.cancelled) + NEXT, "end")


async def nothing_or_all_or_a_piece_was_sent(scene: Scene) -> None:
    if scene.socket._connection.state.outbound is not Outbound.TORN:
        await usable(scene)
        await scene.socket.close()
        await scene.far.finish()
        assert scene.far.got[-1] == (BIG * (not scene.cancelled) + NEXT, "end")
        return
    assert scene.cancelled
    with pytest.raises(BrokenError, match="cut short"):
        await scene.socket.send(NEXT)
    await reading_goes_on(scene)
    await scene.socket.close()
    await scene.far.finish()
    data, how = scene.far.got[-1]
    assert how != "end"
    assert len(data) < len(BIG)
    assert data or scene.far.context is not None  # a piece of a TLS record gives no data


async def ended(scene: Scene) -> None:
    """Our side has ended, and nothing else has."""
    assert not scene.socket.closed.done()
    with pytest.raises(ClosedError):
        await scene.socket.send(NEXT)
    await reading_goes_on(scene)
    await scene.socket.close()
    await scene.far.finish()
    assert scene.far.got[-1][1] == "end"


async def ended_unless_cancelled(scene: Scene) -> None:
    await (usable if scene.cancelled else ended)(scene)


async def ended_or_aborted(scene: Scene) -> None:
    """Our side is never left open: the caller has no other way to end it."""
    outbound = scene.socket._connection.state.outbound
    if not scene.cancelled or outbound is Outbound.ENDED:
        await ended(scene)
    else:
        await aborted(scene)


async def aborted(scene: Scene) -> None:
    assert isinstance(scene.socket.closed.exception(), BrokenError)
    with pytest.raises(BrokenError):
        await scene.socket.send(NEXT)
    with pytest.raises(BrokenError):
        await scene.socket.receive()
    await scene.far.finish()
    # A connection that was given up before it was open may end without data.
    made = scene.socket.opened.exception() is None
    assert all(how != "end" or not (made or data) for data, how in scene.far.got)


async def stopped(scene: Scene) -> None:
    with pytest.raises(ClosedError):
        await scene.socket.receive()
    await scene.socket.send(NEXT)
    scene.followed = True


async def closed(scene: Scene) -> None:
    assert scene.socket.closed.exception() is None
    await over(scene)


async def closed_or_cut(scene: Scene) -> None:
    """The call has waited for a send. If the call was cancelled, the send was cut short."""
    assert scene.socket.closed.exception() is None or scene.cancelled
    await over(scene)


async def over(scene: Scene) -> None:
    with pytest.raises(ClosedError):
        await scene.socket.send(NEXT)
    with pytest.raises(ClosedError):
        await scene.socket.receive()


async def at_the_end(scene: Scene) -> None:
    """The peer has ended, which in the default mode ends our side too."""
    with pytest.raises(anyio.EndOfStream):
        await scene.socket.receive()
    assert scene.socket.closed.exception() is None
    with pytest.raises(ClosedError):
        await scene.socket.send(NEXT)


async def over_in_the_end(scene: Scene) -> None:
    """After a cancellation, ``closed`` can be awaited again."""
    if scene.socket._connection.state.outbound is Outbound.OPEN:
        assert scene.cancelled
        if scene.socket.opened.done():
            assert not scene.socket.closed.done()
        if scene.socket._connection._state.half_open:
            await scene.socket.send_eof()
    await scene.socket.closed
    assert scene.socket.closed.exception() is None


async def the_stream_too(scene: Scene) -> None:
    assert scene.sink.ended == ("by force" if scene.cancelled else "gracefully")
    with pytest.raises((ClosedError, anyio.EndOfStream)) as caught:
        await scene.socket.receive()
    # The end was reached if the pipe was not cancelled, and only if it has sent everything.
    assert caught.type is ClosedError or scene.sink.got == SAID
    assert caught.type is anyio.EndOfStream or scene.cancelled
    await scene.socket.send(NEXT)
    scene.followed = True


async def the_other_way_is_left(scene: Scene) -> None:
    """A pipe cancelled while it ends the stream has sent all data, and leaves the stream open."""
    if not scene.cancelled:
        assert (scene.sink.got, scene.sink.ended) == (SAID, "in this direction")
    elif scene.sink.ended != "by force":
        assert scene.sink.got == SAID
    with pytest.raises((ClosedError, anyio.EndOfStream)):
        await scene.socket.receive()
    await scene.socket.send(NEXT)
    scene.followed = True


async def the_target_was_ended(scene: Scene) -> None:
    if not scene.cancelled:
        assert scene.target._connection.state.outbound is Outbound.ENDED
        await stopped(scene)


async def the_target_too(scene: Scene) -> None:
    with pytest.raises((ClosedError, anyio.EndOfStream)) as caught:
        await scene.socket.receive()
    await scene.socket.send(NEXT)
    scene.followed = True
    whole = scene.target._connection.state.outbound is Outbound.ENDED
    if whole:
        assert caught.type is anyio.EndOfStream
    else:
        assert scene.cancelled
        assert isinstance(scene.target.closed.exception(), BrokenError)
    await scene.target.close()
    await scene.socket.close()
    await scene.far.finish()
    theirs = [(data, how) for data, how in scene.far.got if not data.endswith(NEXT)]
    if whole:
        assert (SAID, "end") in theirs
    else:
        made = scene.target.opened.exception() is None
        ends = [data for data, how in theirs if how == "end"]
        assert not any(ends) if not made else not ends, "a piece ended like a whole message"


@dataclass(frozen=True)
class Operation:
    run: Callable[[Scene], Coroutine[Any, Any, Any]]
    leaves: Callable[[Scene], Awaitable[None]]
    begins_open: bool = True
    sends: bytes = b""
    says: bytes = SAID
    ends: bool = False
    half_open: bool = True
    behind_a_send: bool = False  # another task is sending BIG


OPERATIONS = [
    Operation(opened, usable, begins_open=False),
    Operation(async_with, closed, begins_open=False),
    Operation(receive, usable),
    Operation(receive_byte_by_byte, usable),
    Operation(receive_into, usable),
    Operation(receive_into, usable, begins_open=False),
    Operation(receive_exactly, usable),
    Operation(receive_exactly, usable, begins_open=False),
    Operation(receive_until, usable),
    Operation(receive_until, usable, begins_open=False),
    Operation(receive_what_never_comes, usable, ends=True),
    Operation(receive, usable, begins_open=False),
    Operation(iterate, usable, ends=True),
    Operation(iterate, usable, ends=True, begins_open=False),
    Operation(receive_the_end, usable, says=b"", ends=True),
    Operation(receive_the_end, at_the_end, says=b"", ends=True, half_open=False),
    Operation(send, nothing_or_all_was_sent, sends=SMALL),
    Operation(send, nothing_or_all_was_sent, begins_open=False, sends=SMALL),
    Operation(send_nothing, usable),
    Operation(send_nothing, usable, begins_open=False),
    Operation(send_much, nothing_or_all_or_a_piece_was_sent, sends=BIG),
    Operation(send_eof, ended_unless_cancelled),
    Operation(send_eof, ended_unless_cancelled, begins_open=False),
    Operation(end, ended),
    Operation(end, ended_or_aborted, begins_open=False),
    Operation(end, ended_or_aborted, behind_a_send=True, sends=BIG),
    Operation(stop, stopped),
    Operation(stop, stopped, begins_open=False),
    Operation(abort, aborted),
    Operation(abort, aborted, begins_open=False),
    Operation(abort, aborted, behind_a_send=True, sends=BIG),
    Operation(close, closed),
    Operation(close, closed, begins_open=False),
    Operation(close, closed_or_cut, behind_a_send=True, sends=BIG),
    Operation(watch, over_in_the_end, says=b"", ends=True, half_open=False),
    Operation(watch, over_in_the_end, says=b"", ends=True, half_open=False, begins_open=False),
    Operation(end_and_watch, over_in_the_end, says=b"", ends=True),
    Operation(pipe_to_a_stream, the_stream_too, ends=True),
    Operation(pipe_to_a_socket, the_target_too, ends=True),
    Operation(pipe_to_a_two_way_stream, the_other_way_is_left, ends=True),
    Operation(pipe_from_a_closed_stream, the_target_was_ended),
    Operation(pipe_to_an_ended_target, usable),
    Operation(pipe_to_a_target_that_ends, usable, says=b""),
]


def name(operation: Operation) -> str:
    said = {
        "pending": not operation.begins_open,
        "not-half-open": not operation.half_open,
        "behind-a-send": operation.behind_a_send,
    }
    return "-".join([operation.run.__name__, *(word for word, holds in said.items() if holds)])


# --- the sweep


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("version", [None, TLS12, TLS13], ids=["tcp", "tls-1.2", "tls-1.3"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=name)
async def test_cancelled_at_every_checkpoint(
    operation: Operation,
    version: ssl.TLSVersion | None,
    moment: Moment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await sweep(operation, version, moment)
    if not operation.begins_open:  # on loopback, there was no wait for the connection
        monkeypatch.setattr(_tcp_connect, "connected", lambda *_: None)
        await sweep(operation, version, moment)


async def sweep(operation: Operation, version: ssl.TLSVersion | None, moment: Moment) -> None:
    number = -1
    while True:
        number += 1
        async with world(version, operation) as (scene, group):
            socket = scene.socket
            if operation.begins_open:
                await socket.opened
                raw(socket).setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, BUFFER)
            if operation.behind_a_send:
                group.start_soon(send_whatever_comes_of_it, socket)
                while socket._connection.state.outbound is not Outbound.SENDING:
                    await checkpoint()
            use_up_the_turn()
            with anyio.CancelScope() as scope:
                call = CancelAt(number, moment, scope, operation.run(scene))
                try:
                    await call
                finally:
                    scene.cancelled = call.raised
                await checkpoint()  # raises a cancellation that the call did not raise
            assert scope.cancelled_caught == scope.cancel_called
            with anyio.fail_after(5):
                await operation.leaves(scene)
                await check_what_the_peer_got(operation, scene)
        if not scope.cancel_called:
            break
    assert number > 1, "the operation has no checkpoint"


async def check_what_the_peer_got(operation: Operation, scene: Scene) -> None:
    await scene.socket.close()
    assert scene.socket.opened.done()
    assert scene.socket.closed.done()
    await scene.target.close()
    await scene.far.finish()
    for data, how in scene.far.got:
        whole = operation.sends, NEXT, operation.sends + NEXT, SAID
        if how == "end":
            assert data in (b"", *whole), f"a regular end after {len(data)} bytes"
        else:
            assert any(each.startswith(data) for each in whole), f"{len(data)} bytes"
    if scene.followed:
        assert any(data.endswith(NEXT) for data, _ in scene.far.got)


# --- start_tls()


@pytest.mark.slow
@pytest.mark.parametrize("behind_a_send", [False, True])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("version", [TLS12, TLS13], ids=["tls-1.2", "tls-1.3"])
async def test_start_tls_cancelled_at_every_checkpoint(
    version: ssl.TLSVersion, moment: Moment, behind_a_send: bool
) -> None:
    """A handshake that has not begun can be made later. One that was cancelled has failed."""
    number, failed, waited = -1, 0, 0
    while True:
        number += 1
        async with (
            listening(receive_buffer=BUFFER) as listener,
            anyio.create_task_group() as group,
        ):
            far = Far(listener, server_context(version), clear=len(BIG) * behind_a_send)
            group.start_soon(far.serve, group)
            plain = connect(
                listener.address,
                secure_transport="starttls",
                sni=NAME,
                ssl_context=client_context(),
            )
            await plain.opened
            if behind_a_send:
                raw(plain).setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, BUFFER)
                group.start_soon(plain.send, BIG)
                while plain._connection.state.outbound is not Outbound.SENDING:
                    await checkpoint()
            secure = plain.start_tls()
            with anyio.CancelScope() as scope:
                call = CancelAt(number, moment, scope, wait_for(secure))
                try:
                    await call
                finally:
                    before_the_handshake = (
                        call.raised and plain._connection.state.outbound is Outbound.FLUSHING
                    )
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
                if before_the_handshake:
                    waited += 1
                    assert sent
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
    assert bool(waited) == behind_a_send


# --- a socket over another


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_opening_a_wrapped_socket_cancelled_at_every_checkpoint(moment: Moment) -> None:
    """The wrapped socket is pending or open, and both can be used."""
    connector = Connector(AddressPolicy(allow=["127.0.0.0/8"]))  # to judge has checkpoints
    number = -1
    while True:
        number += 1
        async with listening() as listener, anyio.create_task_group() as group:
            far = Far(listener, None, says=SAID)
            group.start_soon(far.serve, group)
            inner = connector.connect(listener.address)
            outer = Socket.wrap(inner)
            with anyio.CancelScope() as scope:
                await CancelAt(number, moment, scope, wait_for(outer))
                await checkpoint()
            with anyio.fail_after(5):
                assert not inner.closed.done()
                await outer.send(NEXT)
                assert await outer.receive_exactly(len(SAID)) == SAID
                await outer.close()
                assert inner.closed.done()
                await far.finish()
            assert far.got[-1] == (NEXT, "end")
            assert all(not data for data, _ in far.got[:-1])
            group.cancel_scope.cancel()
        if not scope.cancel_called:
            break
    assert number > 1


# --- a slot of a connector


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_waiting_for_a_slot_cancelled_at_every_checkpoint(moment: Moment) -> None:
    """The socket leaves the queue, or passes the slot on, and can still be opened later."""
    number = -1
    while True:
        number += 1
        async with listening() as listener, anyio.create_task_group() as group:
            far = Far(listener, None, says=SAID)
            group.start_soon(far.serve, group)
            connector = Connector(max_connections=1)
            slots: Slots = vars(connector)["_slots"]
            holder, second, third = (connector.connect(listener.address) for _ in range(3))
            await holder.opened
            group.start_soon(close_once, holder, slots)
            with anyio.CancelScope() as scope:
                await CancelAt(number, moment, scope, wait_for(second))
                await checkpoint()
            with anyio.fail_after(5):
                await holder.close()
                if not second.opened.done():
                    async with third:
                        await third.send(NEXT)
                await second.send(NEXT)
                await second.close()
                await third.close()
                assert slots.free == 1
                assert not slots.queue
            group.cancel_scope.cancel()
        if not scope.cancel_called:
            break
    assert number > 1


async def close_once(holder: Socket, slots: Slots) -> None:
    """Close the holder of the slot as soon as another socket waits for it."""
    while not slots.queue:
        await checkpoint()
    await holder.close()


# --- connect_socket()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("queued", [False, True], ids=["at once", "queued"])
@pytest.mark.parametrize("raced", [False, True], ids=["one address", "raced"])
async def test_connect_socket_cancelled_at_every_checkpoint(
    raced: bool, queued: bool, moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call returns the socket, or keeps neither the descriptor nor the slot."""

    async def two_addresses(host: str, port: int) -> list[Any]:
        await checkpoint()
        found = [refusing_address(), listener.address]
        return [(stdlib.AF_INET, stdlib.SOCK_STREAM, 6, "", address) for address in found]

    monkeypatch.setattr(_lookup, "getaddrinfo", two_addresses)
    policy = AddressPolicy(allow=["127.0.0.0/8"])
    number, returned = -1, 0
    while True:
        number += 1
        async with listening() as listener, anyio.create_task_group() as group:
            connector = Connector(policy, max_connections=1)
            slots: Slots = vars(connector)["_slots"]
            if queued:
                holder = connector.connect(listener.address)
                await holder.opened
                group.start_soon(close_once, holder, slots)
            made: list[stdlib.socket] = []
            address = ("host.test", 1) if raced else listener.address
            with anyio.CancelScope() as scope:
                call = connector.connect_socket(address)
                made.append(await CancelAt(number, moment, scope, call))
                await checkpoint()
            # A due cancellation is raised, even if the connection was made.
            assert scope.cancelled_caught == scope.cancel_called != bool(made)
            if queued:
                await holder.close()
            assert slots.free == 1 - len(made)
            assert not slots.queue
            for sock in made:
                returned += 1
                sock.close()
            with anyio.fail_after(5):
                (await connector.connect_socket(listener.address)).close()
            assert slots.free == 1
            group.cancel_scope.cancel()
        if not scope.cancel_called:
            break
    assert number > 1
    assert returned


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("judged", [False, True], ids=["name", "address"])
async def test_a_dialer_cancelled_at_every_checkpoint(judged: bool, moment: Moment) -> None:
    """A cancelled dial leaves no stream open, and the next call dials again."""
    number, shielded = -1, 3
    policy = AddressPolicy(refuse_loops=judged)
    while True:
        number += 1
        streams: list[TwoWays] = []

        async def dial(address: SocketAddress, made: list[TwoWays] = streams) -> ByteStream:
            await checkpoint()
            stream = TwoWays()
            made.append(stream)
            with anyio.CancelScope(shield=True):
                for _ in range(shielded):
                    await checkpoint()
            return stream

        connector = Connector(policy, max_connections=1, dialer=dial)
        socket = connector.connect("192.0.2.1:1")
        with anyio.CancelScope() as scope:
            await CancelAt(number, moment, scope, wait_for(socket))
            await checkpoint()
        given_up = streams[:]
        with anyio.fail_after(5):
            await socket.opened  # this dials again, unless the connection was made
        if given_up != streams:
            assert all(stream.ended == "by force" for stream in given_up)
        assert [stream.ended for stream in streams[-1:]] == ["not"]
        await socket.close()
        assert [stream.ended for stream in streams[-1:]] == ["gracefully"]
        if not scope.cancel_called:
            break
    assert given_up == streams
    assert number > shielded + 1


# --- a network in memory


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_dialling_in_memory_cancelled_at_every_checkpoint(moment: Moment) -> None:
    """The cancelled dial has ended, and the next call dials again."""
    number = -1
    while True:
        number += 1
        network = Network(latency=1e-6)
        async with network.listen("h.example:1") as listener:
            socket = network.connector().connect("h.example:1")
            with anyio.CancelScope() as scope:
                await CancelAt(number, moment, scope, wait_for(socket))
                await checkpoint()
            with anyio.fail_after(5):
                await socket.send(NEXT)
                given_up = 0
                accepted = await listener.accept()
                while await what_came(accepted) != NEXT:
                    given_up += 1
                    accepted = await listener.accept()
                assert given_up <= 1
                await accepted.close()
                await socket.close()
        if not scope.cancel_called:
            break
    assert not given_up
    assert number > 1


async def what_came(socket: Socket) -> bytes:
    """The first data, or nothing if the peer has ended."""
    try:
        return await socket.receive()
    except (anyio.EndOfStream, BrokenError):
        await socket.close()
        return b""


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_accepting_in_memory_cancelled_at_every_checkpoint(moment: Moment) -> None:
    """The call returns the connection, or leaves it for the next call."""
    number = -1
    while True:
        number += 1
        network = Network(latency=1e-6)
        async with network.listen("h.example:1") as listener, anyio.create_task_group() as group:
            socket = network.connector().connect("h.example:1", task_group=group)
            accepted = None
            with anyio.CancelScope() as scope:
                accepted = await CancelAt(number, moment, scope, listener.accept())
                await checkpoint()
            with anyio.fail_after(5):
                if accepted is None:
                    accepted = await listener.accept()
                await socket.send(NEXT)
                assert await accepted.receive() == NEXT
                await accepted.close()
                await socket.close()
        if not scope.cancel_called:
            break
    assert number > 1


# --- listening


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_listen_cancelled_at_every_checkpoint(moment: Moment) -> None:
    number = -1
    with stdlib.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
    while True:
        number += 1
        listener = None
        with anyio.CancelScope() as scope:
            # The address is free again: the last listener was closed.
            listener = await CancelAt(number, moment, scope, listen(address))
            await checkpoint()
        if listener is not None:
            await listener.aclose()
        if not scope.cancel_called:
            break
    assert listener is not None
    assert number > 1


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("whole", [True, False], ids=["serve", "accepting"])
async def test_serve_cancelled_at_every_checkpoint(whole: bool, moment: Moment) -> None:
    """No connection is lost: it was passed to the handler, or waits for the next serve()."""
    handled: list[Socket] = []

    async def handle(socket: Socket) -> None:
        handled.append(socket)
        async with socket:
            await socket.send(SAID)

    number, finished = -1, False
    while not finished:
        number += 1
        handled.clear()
        async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
            (sock,) = listener._sockets
            clients = [Peer(stdlib.create_connection(sock.getsockname())) for _ in range(2)]
            with anyio.CancelScope() as scope:
                # CancelAt does not see what serve() does in its tasks: _serve() is one of them.
                serve = (
                    listener.serve(handle, group)
                    if whole
                    else listener._serve(sock, handle, group)
                )
                call = CancelAt(number, moment, scope, serve)
                group.start_soon(cancel_at_last, scope, handled, len(clients))
                await call
            assert call.raised
            finished = call.count < number
            with anyio.fail_after(5):
                async with anyio.create_task_group() as again:
                    again.start_soon(listener.serve, handle, group)
                    for client in clients:
                        assert await client.receive_all() == SAID
                        client.close()
                    again.cancel_scope.cancel()
            assert len(handled) == len(clients)
            group.cancel_scope.cancel()
    assert number > 1


async def cancel_at_last(scope: anyio.CancelScope, handled: list[Socket], count: int) -> None:
    """Cancel when all connections were handled: serving does not end by itself."""
    while len(handled) < count:
        await checkpoint()
    for _ in range(10):
        await checkpoint()
    scope.cancel()
