"""Connections of every kind for tests: over TCP, TLS and AnyIO's memory streams.

Each yields an open or pending socket, and the peer's side of its connection.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol, TypeAlias

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from anyio_connect import Socket
from anyio_connect._transport import ForeignTransport
from support.peers import Peer
from support.sockets import connected, socket_over
from support.tls_peers import TLS12, TLS13, TLSPeer, server_context
from support.tls_peers import over_tcp as over_tcp_tls


class Remote(Protocol):
    """The peer's side of a connection; ``b""`` is the end."""

    async def send(self, data: bytes) -> None: ...
    async def receive(self, max_bytes: int) -> bytes: ...
    async def fin(self) -> None: ...


class MemoryStream(ByteStream):
    """Bytes over AnyIO's object streams. An item is cut if a receive wants less."""

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
    # Small kernel buffers, so that sends wait and data arrives in more pieces.
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


#: Runs a test over each of them.
over = pytest.mark.parametrize(
    "over",
    [over_tcp, over_memory, partial(over_tls, TLS12), partial(over_tls, TLS13)],
    ids=["tcp", "memory", "tls-1.2", "tls-1.3"],
)
