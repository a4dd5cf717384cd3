"""Event loops that cannot wait for sockets, and beside libraries that are half imported."""

from __future__ import annotations

import errno
import sys
import types
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_connect import (
    ConnectError,
    Connector,
    RefusedError,
    Socket,
    connect,
)
from anyio_connect._transport import ForeignTransport
from support.names import LOOPBACK
from support.peers import listening, refusing_address


@pytest.mark.usefixtures("from_afar")
async def test_anyio_connects_if_the_event_loop_cannot_wait_for_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection is a stream of AnyIO then."""

    async def wait_writable(_: object) -> None:
        raise NotImplementedError

    async with listening() as listener:
        with monkeypatch.context() as patch:
            patch.setattr(anyio, "wait_writable", wait_writable)
            socket = connect(listener.address, allow_half_open=True)
            info = await socket.opened
        assert info.remote_address == "{}:{}".format(*listener.address)
        assert isinstance(socket._connection.transport, ForeignTransport)
        peer = await listener.accept()  # our first attempt, or AnyIO's
        if "{}:{}".format(*peer.sock.getpeername()) != info.local_address:
            peer = await listener.accept()
        await socket.send(b"ping")
        assert await peer.receive() == b"ping"
        await peer.send(b"pong")
        assert await socket.receive() == b"pong"
        await socket.send_eof()
        assert await peer.receive() == b""
        await peer.send(b"after our end")
        assert await socket.receive() == b"after our end"
        peer.fin()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        assert socket.closed.result() is None


class GroupError(Exception):
    """Like ExceptionGroup, which Python 3.10 does not have."""

    def __init__(self, *exceptions: Exception) -> None:
        super().__init__("multiple connection attempts failed")
        self.exceptions = exceptions


@pytest.mark.usefixtures("from_afar")
async def test_the_error_says_why_anyio_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_writable(_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(anyio, "wait_writable", wait_writable)
    with pytest.raises(RefusedError, match="connection refused") as caught:
        await connect(refusing_address()).opened
    assert caught.value.errno == errno.ECONNREFUSED

    unreachable = OSError(errno.ENETUNREACH, "unreachable")
    causes: list[tuple[Exception | None, str]] = [
        (unreachable, "no route"),
        (GroupError(unreachable), "no route"),
        (GroupError(GroupError(unreachable)), "no route"),
        (GroupError(ValueError()), "All connection attempts failed"),
        (None, "All connection attempts failed"),
    ]
    for cause, text in causes:

        async def connect_tcp(
            *_: object, cause: Exception | None = cause, **__: object
        ) -> anyio.abc.SocketStream:
            raise OSError("All connection attempts failed") from cause

        monkeypatch.setattr(anyio, "connect_tcp", connect_tcp)
        with pytest.raises(ConnectError, match=text):
            await connect(refusing_address()).opened


@pytest.mark.usefixtures("from_afar")
async def test_a_stream_that_no_longer_knows_its_peer_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AnyIO's stream asks the kernel, which has no answer after a reset."""

    async def wait_writable(_: object) -> None:
        raise NotImplementedError

    connect_tcp = anyio.connect_tcp
    streams: list[Any] = []

    async def forgetful(*args: Any, **options: Any) -> Any:
        stream = await connect_tcp(*args, **options)
        streams.append(stream)

        def forgotten() -> Any:
            raise OSError(errno.ENOTCONN, "not connected")

        attributes = {**stream.extra_attributes, SocketAttribute.remote_address: forgotten}
        patched = type("Forgetful", (type(stream),), {"extra_attributes": attributes})
        stream.__class__ = patched
        return stream

    async with listening() as listener:
        monkeypatch.setattr(anyio, "wait_writable", wait_writable)
        monkeypatch.setattr(anyio, "connect_tcp", forgetful)
        with pytest.raises(ConnectError, match="not connected") as caught:
            await Connector(LOOPBACK).connect(listener.address).opened
    assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(anyio.ClosedResourceError):
        await streams[0].receive()


# --- which event loop it is


@pytest.mark.parametrize("max_connections", [None, 1])
async def test_a_library_whose_import_has_only_begun_is_not_used(
    max_connections: int | None, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread imports it, or the module is a file of the user or a stub with that name."""
    other = "asyncio" if anyio_backend_name == "trio" else "trio"
    connector = Connector(max_connections=max_connections)
    async with listening() as listener:
        waiting = connector.connect(listener.address)
        async with (
            connector.connect(listener.address) as one,
            anyio.create_task_group() as group,
        ):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, other, types.ModuleType(other))
                if max_connections is None:
                    await waiting.opened
                else:
                    group.start_soon(waits, waiting)
                await one.send(b"1")
                peer = await listener.accept()
                assert await peer.receive() == b"1"
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
            await one.close()
        assert waiting.opened.exception() is None
        await waiting.close()


async def waits(socket: Socket) -> None:
    with anyio.fail_after(10):
        await socket.opened
