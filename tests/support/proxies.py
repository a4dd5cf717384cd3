"""A proxy that does exactly what a test tells it to.

It shares no code with the package. It records the requests, and connects to no target: after its
answer, the script acts as the target.
"""

from __future__ import annotations

import base64
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import anyio
import pytest

from anyio_connect import AddressPolicy, ConnectError, Connector, Socket, SocketInfo
from support.peers import Listener, Peer, listening
from support.tls_peers import TLSPeer, client_context, server_context

#: The answers of an HTTP proxy and of a SOCKS5 proxy when the tunnel is ready.
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
SUCCEEDED = bytes([5, 0, 0, 1, 127, 0, 0, 1, 4, 56])

#: The answer of an HTTP proxy that refuses.
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
FORBIDDEN = b"HTTP/1.1 403 Filtered\r\n\r\n"

#: A part of all passwords of these tests, and of nothing else.
SECRET = "hunter2"
CREDENTIALS = f"user:{SECRET}@"

#: A policy that judges addresses, and allows all but one.
JUDGE = AddressPolicy(deny=["10.0.0.1"])
PORTS = AddressPolicy(deny_ports=[25])


class Line:
    """The connection to a client, over TCP or over TLS."""

    def __init__(self, peer: Peer, tls: TLSPeer | None) -> None:
        self.peer = peer
        self.tls = tls
        self._ahead = b""

    async def send(self, data: bytes) -> None:
        await (self.peer.send(data) if self.tls is None else self.tls.send(data))

    async def receive(self) -> bytes:
        """The next data; b"" at the end."""
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        return await (self.peer.receive() if self.tls is None else self.tls.receive())

    async def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = await self.receive()
            if not chunk:
                raise anyio.EndOfStream
            data += chunk
        self._ahead = data[count:]
        return data[:count]

    async def until(self, end: bytes) -> bytes:
        data = b""
        while end not in data:
            data += await self.exactly(1)
        return data

    async def receive_all(self) -> bytes:
        data = b""
        while chunk := await self.receive():
            data += chunk
        return data


class Inner:
    """The connection to a client inside the TLS of a proxy, for a target that speaks TLS too."""

    def __init__(self, line: Line) -> None:
        self.line = line

    async def send(self, data: bytes) -> None:
        if data:
            await self.line.send(data)

    async def receive(self) -> bytes:
        return await self.line.receive()


class Proxy:
    """Serves each connection with a script, and records what it received."""

    def __init__(self, listener: Listener, script: Script, context: ssl.SSLContext | None) -> None:
        self.listener = listener
        self.port = listener.address[1]
        self.script = script
        self.context = context
        self.asked: list[str] = []  # the targets, "host:port", as they were received
        self.heads: list[bytes] = []  # of HTTP
        self.said: list[tuple[bytes, ...]] = []  # of SOCKS5: methods, user, password
        self.served = 0

    def url(self, scheme: str, credentials: str = "") -> str:
        return f"{scheme}://{credentials}127.0.0.1:{self.port}"

    async def serve(self) -> None:
        async with anyio.create_task_group() as group:
            while True:
                peer = await self.listener.accept()
                self.served += 1
                group.start_soon(self._serve_one, peer)

    async def _serve_one(self, peer: Peer) -> None:
        # A cancelled client hangs up at any point.
        with suppress(OSError, anyio.EndOfStream):
            tls = None
            if self.context is not None:
                tls = TLSPeer(peer, self.context)
                await tls.shake()
            await self.script(self, Line(peer, tls))
        peer.close()


#: Serves one connection of a proxy.
Script: TypeAlias = Callable[[Proxy, Line], Awaitable[None]]


@asynccontextmanager
async def proxying(script: Script, *, over_tls: bool = False) -> AsyncIterator[Proxy]:
    context = server_context() if over_tls else None
    async with listening() as listener, anyio.create_task_group() as group:
        proxy = Proxy(listener, script, context)
        group.start_soon(proxy.serve)
        yield proxy
        group.cancel_scope.cancel()


# --- scripts, and parts of them


async def hear_http(proxy: Proxy, line: Line) -> None:
    head = await line.until(b"\r\n\r\n")
    proxy.heads.append(head)
    method, target, version = head.split(b"\r\n")[0].decode().split(" ")
    assert (method, version) == ("CONNECT", "HTTP/1.1")
    proxy.asked.append(target)


async def hear_socks(proxy: Proxy, line: Line, *, wants_user: bool = False) -> None:
    version, count = await line.exactly(2)
    assert version == 5
    methods = await line.exactly(count)
    user = password = b""
    if wants_user:
        await line.send(b"\5\2")
        assert await line.exactly(1) == b"\1"
        user = await line.exactly((await line.exactly(1))[0])
        password = await line.exactly((await line.exactly(1))[0])
        await line.send(b"\1\0")
    else:
        await line.send(b"\5\0")
    proxy.said.append((methods, user, password))
    version, command, reserved, kind = await line.exactly(4)
    assert (version, command, reserved) == (5, 1, 0)
    if kind == 3:
        host = (await line.exactly((await line.exactly(1))[0])).decode()
    elif kind == 1:
        host = ".".join(map(str, await line.exactly(4)))
    else:
        assert kind == 4
        host = "[" + (await line.exactly(16)).hex(":", 2) + "]"
    port = int.from_bytes(await line.exactly(2), "big")
    proxy.asked.append(f"{host}:{port}")


def http(answer: bytes = ESTABLISHED) -> Script:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(answer)
        await echo(line)

    return script


def socks(answer: bytes = SUCCEEDED, *, wants_user: bool = False) -> Script:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_socks(proxy, line, wants_user=wants_user)
        await line.send(answer)
        await echo(line)

    return script


def says(data: bytes) -> Script:
    """Receive once, send ``data`` in any case, and hang up."""

    async def script(proxy: Proxy, line: Line) -> None:
        await line.receive()
        await line.send(data)

    return script


async def silent(proxy: Proxy, line: Line) -> None:
    await anyio.sleep_forever()


async def echo(line: Line) -> None:
    """Act as the target: send everything back, and end when the other side does."""
    while data := await line.receive():
        await line.send(data)


def in_turn(*answers: bytes) -> Script:
    """An HTTP proxy that gives each connection the next of these answers."""
    left = [*answers]

    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(left.pop(0))
        await echo(line)

    return script


async def target_over_tls(line: Line) -> None:
    """Act as a target that uses TLS: send everything back, and end when the client does."""
    tls = TLSPeer(line.peer, server_context())
    await tls.shake()
    while data := await tls.receive():
        await tls.send(data)
    await line.peer.send(tls.server.close_notify())
    line.peer.fin()


# --- clients


async def use(socket: Socket) -> SocketInfo:
    """Exchange data with a target that sends everything back, until both sides have ended."""
    async with socket:
        info = await socket.opened
        await socket.send(b"hello")
        assert await socket.receive_exactly(5) == b"hello"
        await socket.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
    return info


def told(error: BaseException | None) -> Iterator[str]:
    """All texts of an error, of its causes, of its context and of its attempts."""
    if error is not None:
        yield "".join(traceback.format_exception(error))
        yield repr(error)
        yield repr(vars(error))
        yield from told(error.__cause__)
        yield from told(error.__context__)
        for attempt in getattr(error, "attempts", ()):
            yield from told(attempt)


async def failing(
    script: Script, url: str, address: str = "db.example:5432", **options: Any
) -> ConnectError:
    """Fail to connect through a proxy that runs ``script``; return the error.

    The error must not contain the password. ``url`` is without a port.
    """
    scheme, _, rest = url.partition("://")
    over_tls = scheme == "https"
    context = client_context() if over_tls else None
    async with proxying(script, over_tls=over_tls) as proxy:
        connector = Connector(proxy=f"{scheme}://{rest}:{proxy.port}", ssl_context=context)
        with pytest.raises(ConnectError) as caught:
            await connector.connect(address, **options).opened
    token = base64.b64encode(f"user:{SECRET}".encode()).decode()
    for text in told(caught.value):
        assert SECRET not in text
        assert token not in text
    return caught.value
