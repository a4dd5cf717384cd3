"""The demonstration: calls on a socket, run as they are shown, and what came of them."""

from __future__ import annotations

import ast
import inspect
import socket as stdlib
import struct
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream

from . import connect

#: Runs line by line. A line that begins with "! " must raise; text that is no code is a heading.
_SCRIPT = """\
connect() returns at once. The connection is made when somebody needs it.
>>> socket = connect(address)
>>> socket
>>> await socket.opened
>>> peer = await listener.accept()

Bytes, both ways.
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

A hang-up is noticed by who awaits `closed`, without reading.
>>> socket, peer = await pair()
>>> await peer.aclose()
>>> await socket.closed

A reset is an error, never an end.
>>> socket, peer = await pair()
>>> await reset(peer)
! await socket.receive()
>>> socket.closed

Errors say what happened to what; wrong addresses are refused before any I/O.
! await connect(nobody).opened
! connect("http://example.com/")
"""


async def demo() -> None:
    """Show what a socket does, against a peer on loopback in this process."""
    peers: list[SocketStream] = []
    (listener,) = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners
    address = ("127.0.0.1", listener.extra(SocketAttribute.local_port))
    with stdlib.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        nobody = free.getsockname()

    class Listener:
        async def accept(self) -> SocketStream:
            peers.append(await listener.accept())  # type: ignore[attr-defined]
            return peers[-1]

    async def pair(**options: Any) -> tuple[Any, SocketStream]:
        socket = connect(address, **options)
        await socket.opened
        return socket, await names["listener"].accept()

    names: dict[str, Any] = {
        "address": address,
        "connect": connect,
        "listener": Listener(),
        "nobody": nobody,
        "pair": pair,
        "reset": _reset,
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
        if "socket" in names:
            await names["socket"].close()
        await listener.aclose()


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
    except Exception as exc:
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
