"""Sockets for tests: over any transport, and in connected pairs."""

from __future__ import annotations

import select
import socket as stdlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_connect import Socket, SocketAddress, SocketError, SocketFuture, SocketInfo, connect
from anyio_connect._lifecycle import Outbound
from anyio_connect._on_asyncio import AsyncioLoop
from anyio_connect._opener import Opener
from anyio_connect._options import Options
from anyio_connect._readiness import here
from anyio_connect._target import Target, info_of
from anyio_connect._tcp import TCPTransport
from anyio_connect._tls import TLSTransport
from anyio_connect._transport import Transport
from support.peers import Listener, Peer, listening, under_way
from support.turns import all_blocked

#: More data than both kernels' buffers hold: such a send waits until the peer reads.
BIG = 64 * 1024 * 1024


class Made(Opener):
    """An opener whose connection exists already."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.discarded = False

    async def open(self) -> tuple[Transport, SocketInfo]:
        return self.transport, info_of(self.transport)

    def close_dropped(self) -> bool:
        return self.transport.close_dropped()

    async def discard(self, *, aborted: bool = False) -> None:
        self.discarded = True
        await self.transport.abort()


class Slow(Made):
    """Makes the connection, or ends after a cancellation, when the test says so."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.go_on = anyio.Event()
        self.stop = anyio.Event()
        self.error: SocketError | None = None  # the error with which it then fails

    async def open(self) -> tuple[Transport, SocketInfo]:
        try:
            await self.go_on.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.stop.wait()
            raise
        if self.error is not None:
            raise self.error
        return await super().open()


def opened_by(
    opener: Made, *, half_open: bool = False, starttls: bool = False, close_timeout: float = 5
) -> Socket:
    options = Options("starttls" if starttls else "off", half_open, close_timeout=close_timeout)
    return Socket(opener, Target(SocketAddress("test", 1), options), None)


def dialled(listener: Listener) -> TCPTransport:
    """A connection to the listener, without a socket of the package."""
    sock = stdlib.create_connection(listener.address)
    sock.setblocking(False)
    return TCPTransport(sock)


def socket_over(transport: Transport, *, half_open: bool = False) -> Socket:
    """A pending socket over an existing transport."""
    return opened_by(Made(transport), half_open=half_open)


@asynccontextmanager
async def connected(
    *, half_open: bool = False, receive_buffer: int | None = None
) -> AsyncIterator[tuple[Socket, Peer]]:
    """An open socket and the scripted peer it is connected to."""
    async with listening(receive_buffer=receive_buffer) as listener:
        socket = connect(listener.address, allow_half_open=half_open)
        try:
            await socket.opened
            yield socket, await listener.accept()
        finally:
            await socket.close()


async def socket_pair() -> tuple[Socket, Socket]:
    """Two open half-open sockets, connected with each other over loopback."""
    listener = Listener()
    try:
        ours = connect(listener.address, allow_half_open=True)
        await ours.opened
        peer = await listener.accept()
        listener.peers.clear()
    finally:
        listener.close()
    theirs = socket_over(TCPTransport(peer.sock), half_open=True)
    await theirs.opened
    return ours, theirs


def raw(socket: Socket) -> stdlib.socket:
    """The kernel's socket of an open socket."""
    return _tcp(socket)._sock


def _tcp(socket: Socket) -> TCPTransport:
    transport = socket._connection.transport
    if isinstance(transport, TLSTransport):
        transport = transport._transport
    assert isinstance(transport, TCPTransport)
    return transport


def use_up_the_turn() -> None:
    """Make the next call let other tasks run, even if it need not wait."""
    loop = here()
    if isinstance(loop, AsyncioLoop):
        loop._budget.left = 0


def arrived(socket: Socket, events: int | None = None) -> None:
    """Wait until the kernel holds what a peer did: data, or one of these events of ``poll()``.

    They are an end (POLLRDHUP) and a reset (POLLERR). Tests that use them are marked
    ``needs_poll``.
    """
    if events is None:
        assert select.select([raw(socket)], [], [], 5)[0], "nothing arrived within 5 seconds"
        return
    poll = select.poll()
    poll.register(raw(socket), events)
    found = poll.poll(5000)
    assert found, "nothing arrived within 5 seconds"
    assert found[0][1] & events


#: Ends and resets can only be received on other systems, or are reported in another way.
needs_poll = pytest.mark.skipif(
    not hasattr(select, "POLLRDHUP"),
    reason="only Linux's poll() reports an end or a reset that has arrived and is not received",
)


async def stuck(socket: Socket) -> None:
    """Wait until a send is in flight, and neither kernel accepts more of it."""
    sock, quiet = raw(socket), 0
    while quiet < 50:
        await checkpoint()
        sending = socket._connection.state.outbound is Outbound.SENDING
        has_room = bool(select.select([], [sock], [], 0)[1])
        quiet = quiet + 1 if sending and not has_room and not under_way(sock) else 0


async def wait_for(socket: Socket) -> None:
    """Await ``opened``. This is for a task of its own."""
    await socket.opened


async def blocked_send(socket: Socket, outcome: list[BaseException | None]) -> None:
    """Send more than fits, and record how that ended."""
    try:
        await socket.send(bytes(BIG))
    except SocketError as exc:
        outcome.append(exc)
    else:
        outcome.append(None)


async def settle(future: SocketFuture[Any]) -> SocketError | None:
    """Wait for ``closed``; return the error with which it failed."""
    with anyio.fail_after(5), suppress(SocketError):
        await future
    return future.exception()


async def once_waited(socket: Socket, peer: Peer) -> None:
    """Let a receive wait once. From then on, asyncio's event loop has the socket registered."""
    async with anyio.create_task_group() as group:
        group.start_soon(socket.receive)
        await all_blocked()
        await peer.send(b"first")
