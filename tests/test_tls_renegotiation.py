"""Renegotiation, which TLS 1.2 still has: either side may ask for it at any time."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint
from OpenSSL import SSL

from anyio_connect import BrokenError, ClosedError, _tls
from anyio_connect._tls import TLSTransport
from anyio_connect._tls_handshake import start_tls
from support.peers import listening
from support.sockets import Made, opened_by, socket_over
from support.tls_acts import cancelled
from support.tls_peers import (
    NAME,
    RenegotiatingPeer,
    client_context,
    dial,
)
from support.turns import all_blocked


@asynccontextmanager
async def renegotiable(**options: Any) -> AsyncIterator[tuple[RenegotiatingPeer, TLSTransport]]:
    """A server that can ask for a new handshake, and a client whose context allows it."""
    async with listening() as listener:
        transport = dial(listener.address)
        try:
            peer = RenegotiatingPeer(await listener.accept())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(peer.shake)
                tls = await start_tls(
                    transport,
                    where="x",
                    server_hostname=NAME,
                    context=client_context(),
                    **options,
                )
            yield peer, tls
        finally:
            await transport.abort()


async def test_a_renegotiation() -> None:
    """Only TLS 1.2 has it, and only if the user's context allows it."""
    ours, theirs = random.Random(11).randbytes(400_000), random.Random(12).randbytes(400_000)
    async with renegotiable() as (peer, tls):
        before = tls._engine.get_channel_binding()
        received, said = b"", b""
        asked = anyio.Event()

        async def serve() -> None:
            nonlocal received
            await peer.send(theirs[:1000])
            await peer.ask()
            await peer.send(theirs[1000:2000])
            while len(received) < len(ours):
                received += await peer.receive()
            await peer.send(theirs[2000:])

        async def read() -> None:
            nonlocal said
            while len(said) < len(theirs):
                said += await tls.receive()
                if len(said) > 1000:
                    asked.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            tasks.start_soon(read)
            for n in range(0, 300_000, 20_000):
                await tls.send(ours[n : n + 20_000])
            await asked.wait()
            await tls.send(ours[300_000:])
        assert received == ours
        assert said == theirs
        assert tls._engine.get_channel_binding() != before


@asynccontextmanager
async def renegotiating(**options: Any) -> AsyncIterator[tuple[RenegotiatingPeer, TLSTransport]]:
    """A server that has asked for a new handshake, and a client that has begun it."""
    async with renegotiable(**options) as (peer, tls):
        await peer.ask()
        transport = tls._transport
        await anyio.wait_readable(transport.extra(SocketAttribute.raw_socket))
        # Answer the server's HelloRequest. This does not use receive(), which might also take
        # what the server says next.
        hello = transport.receive_nowait(100)
        assert hello is not None
        tls._incoming.write(hello)
        assert tls._take(100) is None
        yield peer, tls


async def receives(peer: RenegotiatingPeer, data: bytes, answer: bytes = b"") -> None:
    """Check that the peer receives ``data``, and have it send ``answer``."""
    received = b""
    while len(received) < len(data):
        received += await peer.receive()
    assert received == data
    if answer:
        await peer.send(answer)


async def test_a_task_that_sends_and_then_receives_renegotiates_by_itself() -> None:
    async with renegotiating() as (peer, tls):
        before = tls._engine.get_channel_binding()
        await peer.send(b"said meanwhile")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receives, peer, b"two\n", b"answer")
            await tls.send(b"two\n")
            received = b""
            while len(received) < len(b"said meanwhileanswer"):
                received += await tls.receive()
        assert received == b"said meanwhileanswer"
        assert tls._engine.get_channel_binding() != before


@pytest.mark.parametrize("first", ["send", "receive"])
async def test_a_renegotiation_with_a_task_for_each_direction(first: str) -> None:
    """Each task gets its own data, whichever of them reads for the engine."""
    received: list[bytes] = []
    async with renegotiating() as (peer, tls):

        async def send() -> None:
            await tls.send(b"two\n")

        async def read() -> None:
            received.append(await tls.receive())

        async with anyio.create_task_group() as tasks:
            for call in (send, read) if first == "send" else (read, send):
                tasks.start_soon(call)
                await all_blocked()
            await receives(peer, b"two\n", b"answer")
        assert received == [b"answer"]


@pytest.mark.parametrize("receiving", [False, True])
async def test_a_send_cancelled_in_mid_renegotiation_has_not_begun(receiving: bool) -> None:
    received: list[bytes] = []
    async with renegotiating() as (peer, tls), anyio.create_task_group() as tasks:

        async def read() -> None:
            received.append(await tls.receive())

        if receiving:
            tasks.start_soon(read)
        await cancelled(tls.send, b"never")
        assert not tls.torn
        if not receiving:
            tasks.start_soon(read)
        tasks.start_soon(tls.send, b"next")
        await receives(peer, b"next", b"answer")
    assert received == [b"answer"]


async def test_a_receive_cancelled_in_mid_renegotiation_lets_the_send_read() -> None:
    async with renegotiating() as (peer, tls), anyio.create_task_group() as tasks:
        tasks.start_soon(partial(cancelled, tls.receive))
        await checkpoint()
        tasks.start_soon(tls.send, b"two")
        await receives(peer, b"two")


async def test_a_receive_that_is_stopped_in_mid_renegotiation_lets_the_send_read() -> None:
    async with renegotiating() as (peer, tls), anyio.create_task_group() as tasks:

        async def read() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await tls.receive()

        for call in (read, partial(tls.send, b"two")):
            tasks.start_soon(call)
            await all_blocked()
        tls.stop_receiving()
        await receives(peer, b"two")
        await read()


async def test_a_receive_that_waits_for_a_send_that_reads_can_be_stopped() -> None:
    async with renegotiating() as (peer, tls), anyio.create_task_group() as tasks:

        async def read() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await tls.receive()
            stopped.set()

        stopped = anyio.Event()
        for call in (partial(tls.send, b"two"), read):
            tasks.start_soon(call)
            await all_blocked()
        tls.stop_receiving()
        await stopped.wait()
        await receives(peer, b"two")


async def test_a_send_that_reads_keeps_no_more_than_it_must(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest stays in the kernel until a task receives."""
    monkeypatch.setattr(_tls, "_MAX_KEPT", 0)
    async with renegotiating() as (peer, tls), anyio.create_task_group() as tasks:
        tasks.start_soon(tls.send, b"two")
        await peer.send(bytes(1000))
        while not tls._decrypted:
            await all_blocked()
        await peer.send(bytes(500))
        await all_blocked()
        assert len(tls._decrypted) == 1000
        tasks.start_soon(receives, peer, b"two")
        assert await tls.receive() == bytes(1000)  # now the send reads the rest
    assert tls._decrypted == bytes(500)


async def test_the_peer_ends_in_mid_renegotiation() -> None:
    async with renegotiating() as (peer, tls):
        with suppress(SSL.Error):
            peer.engine.shutdown()
        await peer._flush()
        for call in (partial(tls.send, b"two"), tls.send_eof):
            with pytest.raises(anyio.BrokenResourceError, match="negotiated again"):
                await call()


async def test_a_bare_end_in_mid_renegotiation_is_an_error() -> None:
    async with renegotiating(require_close_notify=False) as (peer, tls):
        peer.peer.fin()
        for call in (partial(tls.send, b"two"), tls.send_eof):
            with pytest.raises(anyio.BrokenResourceError, match="negotiated again"):
                await call()
        with pytest.raises(anyio.BrokenResourceError, match="negotiated again"):
            await tls.receive()


async def test_a_send_in_mid_renegotiation_reports_that_it_fails() -> None:
    async with renegotiating() as (_, tls):
        tls._incoming.write(b"this is no record of TLS")
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await tls.send(b"two\n")
            assert isinstance(caught.value.__cause__, ssl.SSLError)


@pytest.mark.parametrize("end", [TLSTransport.send_eof, TLSTransport.aclose])
async def test_an_end_in_mid_renegotiation_completes_it_first(
    end: Callable[[TLSTransport], Coroutine[Any, Any, None]],
) -> None:
    async with renegotiating() as (peer, tls), anyio.create_task_group() as tasks:
        tasks.start_soon(end, tls)
        assert await peer.receive() == b""  # close_notify: a bare end would have raised


async def test_an_end_in_mid_renegotiation_leaves_the_data_to_a_receive() -> None:
    async with renegotiating() as (peer, tls), anyio.create_task_group() as tasks:
        await peer.send(b"the end\n")
        tasks.start_soon(tls.send_eof)
        assert await peer.receive() == b""
        assert await tls.receive() == b"the end\n"


async def test_finish_in_mid_renegotiation_takes_several_steps() -> None:
    async with renegotiating() as (peer, tls), anyio.create_task_group() as tasks:
        ended = anyio.Event()

        async def serve() -> None:
            assert await peer.receive() == b""  # close_notify: a bare end would have raised
            ended.set()
            peer.peer.close()

        tasks.start_soon(serve)
        assert not await tls.finish()
        while not await tls.finish():
            await tls.wait_room()
        await ended.wait()


async def test_close_in_mid_renegotiation_completes_it_first() -> None:
    async with renegotiating() as (peer, tls):
        socket = socket_over(tls)
        await socket.opened
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(socket.close)
            assert await peer.receive() == b""
            peer.peer.close()
        assert socket.closed.exception() is None


async def test_close_in_mid_renegotiation_with_a_receive_and_a_send_in_flight() -> None:
    async with renegotiating() as (peer, tls):
        socket = socket_over(tls)
        await socket.opened
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                with pytest.raises(ClosedError):
                    await socket.receive()

            for call in (read, partial(socket.send, b"two"), socket.close):
                tasks.start_soon(call)
                await all_blocked()
            await receives(peer, b"two")
            assert await peer.receive() == b""
            peer.peer.close()
        assert socket.closed.exception() is None


@pytest.mark.slow
async def test_close_gives_up_on_a_peer_that_does_not_complete_a_renegotiation() -> None:
    async with renegotiating() as (_, tls):
        socket = opened_by(Made(tls), close_timeout=0.2)
        await socket.opened
        await socket.close()
        with pytest.raises(BrokenError, match="gave up waiting for the peer"):
            await socket.closed


async def test_letting_go_in_mid_renegotiation_is_no_clean_end() -> None:
    """OpenSSL cannot write close_notify there, so the connection is reset."""
    async with renegotiating() as (peer, tls):
        assert not await tls.let_go()
        with pytest.raises(ConnectionResetError):
            await peer.receive()


async def test_an_abort_ends_a_wait_in_mid_renegotiation() -> None:
    async with renegotiating() as (_, tls):

        async def send() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await tls.send(b"two\n")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await all_blocked()
            await tls.abort()
