"""The demonstration: calls on a socket, run as they are shown, and what came of them."""

from __future__ import annotations

import ast
import inspect
import socket as stdlib
import ssl
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from . import Socket, SocketError, TLSError, connect

#: The script, which runs line by line. Code begins with ">>> ", or with "! " if it has to fail.
_SCRIPT = """\
connect() returns at once. The connection is made when a task needs it.
>>> socket = connect(address)
>>> socket
>>> await socket.opened
>>> peer = await listener.accept()

Bytes, in both directions.
>>> await socket.send(b"hello")
>>> await peer.receive()
>>> await peer.send(b"hello yourself")
>>> await socket.receive()

Half-close: we end our side, the peer sees it, and we read on until it ends too.
>>> await socket.send_eof()
! await peer.receive()
>>> await peer.send(b"still talking")
>>> await socket.receive()
>>> await peer.send_eof()
! await socket.receive()
>>> await socket.closed
>>> socket

The peer ends first. By default that ends our side too ...
>>> socket, peer = await pair()
>>> await peer.send_eof()
! await socket.receive()
>>> socket.closed
! await socket.send(b"too late")

... and with allow_half_open=True it does not.
>>> socket, peer = await pair(allow_half_open=True)
>>> await peer.send_eof()
! await socket.receive()
>>> await socket.send(b"in good time")
>>> await peer.receive()
>>> await socket.close()

A task that awaits `closed` notices a hang-up, without reading.
>>> socket, peer = await pair()
>>> await peer.aclose()
>>> await socket.closed

A reset is an error, never an end.
>>> socket, peer = await pair()
>>> await reset(peer)
! await socket.receive()
>>> socket.closed

STARTTLS: plain first, then TLS on the same connection.
>>> socket = connect(address, secure_transport="starttls", ssl_context=trusting)
>>> await socket.send(b"STARTTLS?")
>>> peer = await listener.accept()
>>> await peer.receive()
>>> await peer.send(b"go ahead")
>>> await socket.receive()
>>> secure = socket.start_tls()
>>> peer = await handshake(secure, peer)
>>> socket, secure
>>> await secure.opened
>>> await secure.send(b"in secret")
>>> await peer.receive()

Half-close over TLS: close_notify goes out, and reading goes on.
>>> await secure.send_eof()
! await peer.receive()
>>> await peer.send(b"still talking, in secret")
>>> await secure.receive()
>>> await secure.close()

A handshake that fails says why.
! await tls_pair()
! await tls_pair(ssl_context=trusting, sni="other.example")

Errors name the address and the reason. Wrong addresses are refused before any I/O.
! await connect(nobody).opened
! connect("http://example.com/")
"""

#: The peer's certificate and its key. The key is no secret: nothing else uses it.
_CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgrjmP0CNuq31VCuOl
zcB5qU88g5Lq/EK/CVIvBFk3tQWhRANCAASkVbUOxh3ucVYSG832iZpG+D+6qLh1
TOsgxB574qJeQarGVtPYOA3z3dKEnQxERqWdK/gRXl+TAKu5zZy7oIt5
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBnTCCAUSgAwIBAgIBATAKBggqhkjOPQQDAjAdMRswGQYDVQQDDBJhbnlpb19j
b25uZWN0IGRlbW8wIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMB0x
GzAZBgNVBAMMEmFueWlvX2Nvbm5lY3QgZGVtbzBZMBMGByqGSM49AgEGCCqGSM49
AwEHA0IABKRVtQ7GHe5xVhIbzfaJmkb4P7qouHVM6yDEHnviol5BqsZW09g4DfPd
0oSdDERGpZ0r+BFeX5MAq7nNnLugi3mjczBxMA8GA1UdEwEB/wQFMAMBAf8wDgYD
VR0PAQH/BAQDAgKEMBMGA1UdJQQMMAoGCCsGAQUFBwMBMBoGA1UdEQQTMBGCCWxv
Y2FsaG9zdIcEfwAAATAdBgNVHQ4EFgQUIIiyw6PIchLPuSJU+Q9UtNYFOrIwCgYI
KoZIzj0EAwIDRwAwRAIgP0LGACEr0ACpg1qzkM0IUKub8y2Sj+FJ2OuC2z9JQS8C
IFos1CHaxQ+uxLLhU9aDiWtlNnhYFIDsI3ka8PaF5XtZ
-----END CERTIFICATE-----
"""


async def demo() -> None:
    """Show what a socket does, against a peer on loopback in this process."""
    peers: list[SocketStream] = []
    (listener,) = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners
    address = ("127.0.0.1", listener.extra(SocketAttribute.local_port))
    with stdlib.socket() as free:  # a port that nothing listens on
        free.bind(("127.0.0.1", 0))
        nobody = free.getsockname()

    class Listener:
        async def accept(self) -> SocketStream:
            accepting: Any = listener  # AnyIO's interface of listeners has no accept()
            peers.append(await accepting.accept())
            return peers[-1]

    async def pair(**options: Any) -> tuple[Any, SocketStream]:
        socket = connect(address, **options)
        await socket.opened
        return socket, await names["listener"].accept()

    serving, trusting = _contexts()

    async def handshake(socket: Socket, peer: SocketStream | None = None) -> TLSStream:
        """Make both ends of a handshake, in two tasks; return the peer's end."""
        made: list[TLSStream] = []

        async def serve() -> None:
            stream = peer or await names["listener"].accept()
            with suppress(OSError, anyio.BrokenResourceError):  # the other end's error is better
                made.append(await TLSStream.wrap(stream, server_side=True, ssl_context=serving))

        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            with suppress(TLSError):
                await socket.opened
        socket.opened.result()
        return made[0]

    async def tls_pair(**options: Any) -> tuple[Socket, TLSStream]:
        socket = connect(address, secure_transport="on", **options)
        return socket, await handshake(socket)

    names: dict[str, Any] = {
        "address": address,
        "connect": connect,
        "handshake": handshake,
        "listener": Listener(),
        "nobody": nobody,
        "pair": pair,
        "reset": _reset,
        "tls_pair": tls_pair,
        "trusting": trusting,
    }
    try:
        for line in _SCRIPT.splitlines():
            if line.startswith((">>> ", "! ")):
                await _run(line.partition(" ")[2], names, raises=line.startswith("!"))
            else:
                print(line)
    finally:
        for peer in peers:
            await peer.aclose()
        for name in ("socket", "secure"):
            if name in names:
                await names[name].close()
        await listener.aclose()


def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A context for a server that has the demo's certificate, and one that trusts it."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with tempfile.TemporaryDirectory() as directory:  # load_cert_chain() reads only files
        path = Path(directory) / "demo.pem"
        path.write_text(_CERTIFICATE, encoding="ascii")
        serving.load_cert_chain(path)
        return serving, ssl.create_default_context(cafile=str(path))


async def _run(source: str, names: dict[str, Any], *, raises: bool) -> None:
    print(f"    >>> {source}")
    try:
        mode = "eval"
        ast.parse(source, mode=mode)
    except SyntaxError:
        mode = "exec"  # a statement
    code = compile(source, "<demo>", mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    try:
        result = eval(code, names)  # noqa: S307  # our own script, and what is shown is what runs
        if code.co_flags & inspect.CO_COROUTINE:
            result = await result
    except (SocketError, anyio.EndOfStream) as exc:
        if not raises:
            raise
        print(f"    {type(exc).__name__}{': ' if str(exc) else ''}{exc}")
    else:
        if raises:
            raise AssertionError(f"{source} should have failed")
        if result is not None:
            print(f"    {result!r}")


async def _reset(peer: SocketStream) -> None:
    """Close so that RST is sent: SO_LINGER with a time of 0."""
    raw = peer.extra(SocketAttribute.raw_socket)
    raw.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, struct.pack("ii", 1, 0))
    await peer.aclose()
