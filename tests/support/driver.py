"""Makes moves on a real socket and on its peer, and compares both with the model.

Nothing here sleeps. A step ends when three things are true. The kernel says that it has delivered
what the peer did. The events that the model expects have happened. And nothing changes for some
turns of the event loop, so that unexpected events have a chance to show up.
"""

from __future__ import annotations

import fcntl
import select
import socket as stdlib
import ssl
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import anyio
from anyio.abc import ByteStream, TaskGroup
from anyio.lowlevel import checkpoint

from anyio_connect import BrokenError, ClosedError, Socket, SocketFuture, connect
from anyio_connect._tcp import TCPTransport
from anyio_connect._tls import TLSTransport
from anyio_connect._transport import ForeignTransport
from support.model import BIG, Call, Model, Outcome
from support.peers import Listener, Peer, listening
from support.sockets import dialled
from support.tls_peers import NAME, Server, client_context, server_context

#: The size of both kernel buffers of a direction. Together far less than BIG: such a send waits.
BUFFER = 65536

#: How long an expected event may take, in seconds. Only a failure waits that long. While
#: Hypothesis looks for a simpler example of the failure, the limit is shorter.
PATIENCE = 5
PATIENCE_AFTER_FAILURE = 1

#: An unexpected event has to show up within this many turns of the event loop. The longest way
#: from an event of the kernel to the end of the call that it wakes takes six turns.
TURNS = 12

#: The kinds of connections.
Over: TypeAlias = ssl.TLSVersion | Literal["tcp", "wrapped"]

#: For what the model expects the peer to see, what it may see. A stream that is closed by force
#: may end in either way.
HOW_IT_ENDS: dict[str, tuple[str, ...]] = {
    "more": ("more",),
    "end": ("end",),
    "reset": ("reset",),
    "dropped": ("more", "end", "reset"),
}

ActName: TypeAlias = Literal["send", "fin", "rst", "close"]


@dataclass(frozen=True)
class Move:
    """One of our calls, or the cancellation of one, or an act of the peer."""

    number: int = 0
    call: Call | None = None
    cancelled: bool = False
    act: ActName | None = None
    data: bytes = b""

    def apply(self, model: Model) -> None:
        if self.call is not None and self.cancelled:
            model.call_cancelled(self.number, self.call)
        elif self.call is not None:
            model.call(self.number, self.call)
        elif self.cancelled:
            model.cancel(self.number)
        match self.act:
            case "send":
                model.peer_sends(self.data)
            case "fin":
                model.peer_ends()
            case "rst":
                model.peer_resets()
            case "close":
                model.peer_closes()
        model.follow()


def _as_expected(sock: stdlib.socket, wanted: int, amount: int) -> bool:
    return flags(sock) & wanted == wanted and unread(sock) == amount


def unread(sock: stdlib.socket) -> int:
    """How many bytes can be read at once."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


def flags(sock: stdlib.socket) -> int:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return next((found for _, found in poll.poll(0)), 0)


def until(arrived: Callable[[], bool]) -> None:
    """Wait for the kernel. This blocks the event loop."""
    give_up = time.monotonic() + PATIENCE
    while not arrived():
        assert time.monotonic() < give_up, "the kernel did not deliver"


def a_record(sock: stdlib.socket) -> bytes:
    """Read one TLS record, so that the data after it stays in the kernel."""
    head = sock.recv(5, stdlib.MSG_PEEK)
    length = 5 + int.from_bytes(head[3:], "big")
    return sock.recv(length) if len(head) == 5 and unread(sock) >= length else b""


class Driver:
    """Makes the moves on the real socket, in the event loop."""

    patience: ClassVar[float] = PATIENCE

    def __init__(self, listener: Listener, group: TaskGroup, **options: Any) -> None:
        self.listener = listener
        self.group = group
        self.socket = self.make(**options)
        self.peer: Peer | None = None
        self.peer_was_told = False  # the kernel has told it how the connection ended
        self.limited = False  # whether our kernel buffer was made small
        self.scopes: dict[int, anyio.CancelScope] = {}
        self.outcomes: dict[int, Outcome] = {}

    def make(self, **options: Any) -> Socket:
        return connect(self.listener.address, **options)

    # --- our calls

    def start(self, move: Move) -> None:
        assert move.call is not None
        scope = self.scopes[move.number] = anyio.CancelScope()
        if move.cancelled:
            scope.cancel()
        self.group.start_soon(self.run, move.number, move.call, scope)

    async def run(self, number: int, call: Call, scope: anyio.CancelScope) -> None:
        outcome: Outcome = "cancelled"
        with scope:
            try:
                received = await operation(self.socket, call)
            except anyio.EndOfStream:
                outcome = "eof"
            except anyio.BusyResourceError:
                outcome = "busy"
            except ClosedError:
                outcome = "closed"
            except BrokenError:
                outcome = "broken"
            else:
                outcome = received if isinstance(received, bytes) else "ok"
        self.outcomes[number] = outcome

    # --- the peer

    @property
    def ours(self) -> stdlib.socket | None:
        """The kernel's socket under ours, while it is open."""
        transport = self.socket._connection.transport
        if isinstance(transport, TLSTransport):
            transport = transport._transport
        if isinstance(transport, ForeignTransport):
            assert isinstance(transport._stream, Plain)
            transport = transport._stream.transport
        assert transport is None or isinstance(transport, TCPTransport)
        return None if transport is None or transport._sock.fileno() == -1 else transport._sock

    def accept(self) -> Peer | None:
        """The peer, when its part of making the connection is done."""
        try:
            return Peer(self.listener.sock.accept()[0])
        except BlockingIOError:
            return None

    def say(self, peer: Peer, data: bytes) -> int:
        """Send a little; return how many bytes this is for the kernel."""
        return peer.sock.send(data)

    def take_leave(self, peer: Peer) -> int:
        """Announce the end, without FIN; return the same as :meth:`say`."""
        return 0

    def leaves_unread(self, peer: Peer) -> bool:
        """Whether data is lost if the peer closes now, so that its kernel sends a reset."""
        return unread(peer.sock) > 0

    async def read(self, count: int) -> bytes:
        """Read a part of the available data."""
        assert self.peer is not None
        return await self.peer.receive(count)

    async def receive(self, peer: Peer) -> bytes:
        """The next data; b"" at the end."""
        return await peer.receive()

    def act(self, act: ActName, data: bytes) -> None:
        """Do the peer's act, and wait until it has arrived, before the event loop can run."""
        assert self.peer is not None
        ours = self.ours
        lost = False
        here = unread(ours) if ours else 0
        match act:
            case "send":
                here += self.say(self.peer, data)
            case "fin":
                here += self.take_leave(self.peer)
                with suppress(OSError) if ours is None else nullcontext():
                    self.peer.fin()  # unless our kernel has reset it already
            case "rst":
                self.peer.rst()
                lost = True
            case "close":
                lost = self.leaves_unread(self.peer)
                if not lost:
                    here += self.take_leave(self.peer)
                self.peer.close()
        if ours is not None:
            wanted = select.POLLHUP if lost else 0 if act == "send" else select.POLLRDHUP
            until(partial(_as_expected, ours, wanted, here))

    async def read_all(self, models: list[Model], before: int) -> list[Model]:
        """Read everything and the end; return the models that expect exactly that.

        ``before`` is how much the peer had read before this call.
        """
        assert self.peer is not None
        whole, then = len(models[0].sent) - before, models[0].then
        data, found = b"", "more"
        with anyio.fail_after(self.patience):
            while found == "more" and (then != "more" or len(data) < whole):
                try:
                    chunk = await self.receive(self.peer)
                except ConnectionResetError:
                    found = "reset"
                else:
                    data += chunk
                    found = found if chunk else "end"
        self.peer_was_told = found != "more"
        agreeing = []
        for model in models:
            sent, all_of_it = model.sent[before:], (model.sent + model.piece)[before:]
            if (
                found in HOW_IT_ENDS[model.then]
                and data.startswith(sent)
                and all_of_it.startswith(data)
            ):
                agreeing.append(model)
            model.taken = before + len(data)
        assert agreeing, f"the peer got {len(data)} bytes, then {found}: {models[0]}"
        return agreeing

    # --- comparing

    async def step(self, move: Move, expected: list[Model]) -> list[Model]:
        """Make the move; return the models that predicted what happened."""
        if move.call is not None:
            self.start(move)
        elif move.cancelled:
            self.scopes[move.number].cancel()
        elif move.act is not None:
            self.act(move.act, move.data)
        return await self.agree(expected)

    async def agree(self, expected: list[Model]) -> list[Model]:
        """Wait until the result is what some models expect, and does not change any more."""
        give_up = time.monotonic() + self.patience
        quiet = 0
        while quiet < TURNS and time.monotonic() < give_up:
            quiet = quiet + 1 if any(not [*self.differences(m)] for m in expected) else 0
            await checkpoint()
        differences = [[*self.differences(model)] for model in expected]
        agreeing = [m for m, found in zip(expected, differences, strict=True) if not found]
        if not agreeing:
            type(self).patience = PATIENCE_AFTER_FAILURE
        assert agreeing, "\nor: ".join("; ".join(found) for found in differences)
        for model in agreeing:
            for number, outcome in self.outcomes.items():
                if isinstance(outcome, bytes) and model.outcomes[number] != outcome:
                    model.received(number, outcome)
        return agreeing

    def differences(self, model: Model) -> Iterator[str]:
        if self.peer is None:
            self.peer = self.accept()
            if self.peer is not None:
                self.listener.peers.append(self.peer)
            elif model.made:
                yield "no client has connected"
                return
        for number in self.scopes:
            found, wanted = self.outcomes.get(number), model.outcomes.get(number)
            if isinstance(found, bytes) and isinstance(wanted, bytes):
                if not found or not wanted.startswith(found):
                    yield f"call {number} got {found!r}, not the beginning of {wanted!r}"
            elif found != wanted:
                yield f"call {number} {found or 'waits'!r}, not {wanted or 'waits'!r}"
        yield from self.different_futures(model)
        if model.made and self.peer is not None:
            yield from self.different_kernel(model, self.peer.sock)

    def different_futures(self, model: Model) -> Iterator[str]:
        opened = "resolved" if model.made else model.failed
        if (found := settled(self.socket.opened)) != opened:
            yield f"opened {found}, not {opened}"
        closed = "broken" if model.over == "rejected" else model.over
        found = settled(self.socket.closed)
        if found != closed and (found or not model.lingers):
            yield f"closed {found}, not {closed}"

    def different_kernel(self, model: Model, peer: stdlib.socket) -> Iterator[str]:
        ours = self.ours
        if ours is not None and not self.limited:
            ours.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, BUFFER)
            self.limited = True
        if model.released not in (None, ours is None):
            yield f"our kernel socket is {ours}"
        if ours is not None and model.reset and not flags(ours) & select.POLLHUP:
            yield "the reset has not arrived"
        if model.peer == "gone":
            return
        yield from self.different_outbox(model, unread(peer))
        if not self.peer_was_told:
            then = "more"
            if flags(peer) & select.POLLRDHUP:
                then = "reset" if flags(peer) & select.POLLERR else "end"
            if then not in self.ends_shown(model):
                yield f"the peer sees {then}, not {model.then}"

    def different_outbox(self, model: Model, amount: int) -> Iterator[str]:
        low, high = max(0, len(model.sent) - model.taken), len(model.coming)
        if not low <= amount <= high:
            yield f"the peer has {amount} bytes to read, not {low} to {high}"

    def ends_shown(self, model: Model) -> tuple[str, ...]:
        """The states of our side that the peer's kernel may show."""
        return HOW_IT_ENDS[model.then]


class Plain(ByteStream):
    """A stream that can only do what AnyIO requires of each stream."""

    def __init__(self, transport: TCPTransport) -> None:
        self.transport = transport

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.transport.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self.transport.send(item)

    async def send_eof(self) -> None:
        await self.transport.send_eof()

    async def aclose(self) -> None:
        await self.transport.aclose()


class WrappedDriver(Driver):
    """The same over a wrapped stream, which reports little about its state."""

    def make(self, **options: Any) -> Socket:
        return Socket.wrap(Plain(dialled(self.listener)), **options)


class TLSDriver(Driver):
    """The same over TLS, where unread data and our end show only after decryption."""

    def __init__(
        self, listener: Listener, group: TaskGroup, version: ssl.TLSVersion, **options: Any
    ) -> None:
        super().__init__(
            listener,
            group,
            secure_transport="on",
            sni=NAME,
            ssl_context=client_context(),
            **options,
        )
        self.context = server_context(version)
        self.server = Server(self.context)
        self.shaking: Peer | None = None
        #: The length of the record of an alert. No message that is sent here has the same length.
        self.alert = 24 if version is ssl.TLSVersion.TLSv1_3 else 31
        self.ended = False  # whether the peer has ended its side
        self.too_late = False  # so that our kernel answers with a reset

    def accept(self) -> Peer | None:
        newest = super().accept()
        if newest is not None:  # an earlier attempt was cancelled
            self.listener.peers.append(newest)
            self.shaking, self.server = newest, Server(self.context)
        if self.shaking is None:
            return None
        with suppress(OSError):  # it was cancelled nevertheless
            self.server.incoming.write(a_record(self.shaking.sock))
        done = self.server.shake()
        if said := self.server.outgoing.read():
            with suppress(OSError):
                self.shaking.sock.send(said)
        return self.shaking if done else None

    def say(self, peer: Peer, data: bytes) -> int:
        return peer.sock.send(self.server.encrypt(data))

    def take_leave(self, peer: Peer) -> int:
        if self.ended:  # a second call would send it again
            return 0
        self.ended = True
        self.too_late = self.ours is None
        with suppress(OSError):  # our side is closed
            return peer.sock.send(self.server.close_notify())
        return 0

    def leaves_unread(self, peer: Peer) -> bool:
        if unread(peer.sock) == self.alert:  # only our close_notify, so no data is lost
            self.server.decrypt(peer.sock.recv(self.alert))
        return super().leaves_unread(peer)

    async def read(self, count: int) -> bytes:
        assert self.peer is not None
        data = b""
        while not data and unread(self.peer.sock):
            data = self.server.decrypt(await self.peer.receive(16384))
        return data

    async def receive(self, peer: Peer) -> bytes:
        data = b""
        while not data and not self.server.ended:
            ciphertext = await peer.receive()
            if not ciphertext:
                raise AssertionError("the connection ended without close_notify")
            data = self.server.decrypt(ciphertext)
        if not data and flags(peer.sock) & select.POLLERR and not self.too_late:
            raise ConnectionResetError  # after close_notify
        return data

    def different_outbox(self, model: Model, amount: int) -> Iterator[str]:
        low = len(model.sent) - model.taken
        if amount < low and len(model.sent) < BIG:  # otherwise a part of a record was taken
            yield f"the peer has {amount} bytes to read, not {low}"

    def ends_shown(self, model: Model) -> tuple[str, ...]:
        late = ("reset",) * self.too_late
        return ("more", "end", *late) if model.then == "end" else (model.then, *late)


async def operation(socket: Socket, call: Call) -> bytes | None:
    match call.kind:
        case "receive":
            return await socket.receive(call.max_bytes)
        case "send":
            await socket.send(call.data)
        case "send_eof":
            await socket.send_eof()
        case "end":
            await socket.writable.aclose()
        case "stop":
            await socket.readable.aclose()
        case "abort":
            await socket.writable.abort()
        case "close":
            await socket.close()
        case "watch":
            await socket.closed
    return None


def settled(future: SocketFuture[Any]) -> str | None:
    if not future.done():
        return None
    error = future.exception()
    if error is None:
        return "resolved"
    return {ClosedError: "closed", BrokenError: "broken"}.get(type(error), repr(error))


@asynccontextmanager
async def driving(over: Over, *, half_open: bool) -> AsyncIterator[Driver]:
    """Over TLS of that version, over TCP, or over a wrapped stream."""
    async with (
        listening(receive_buffer=BUFFER) as listener,
        anyio.create_task_group() as group,
    ):
        if isinstance(over, ssl.TLSVersion):
            driver: Driver = TLSDriver(listener, group, over, allow_half_open=half_open)
        else:
            kind = Driver if over == "tcp" else WrappedDriver
            driver = kind(listener, group, allow_half_open=half_open)
        try:
            yield driver
        finally:
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await driver.socket.close()
