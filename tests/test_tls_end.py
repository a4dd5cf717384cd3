"""TLS: the end of what each side sends, closing, and why a connection broke."""

from __future__ import annotations

import random
import select
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_connect import BrokenError, ClosedError, Socket, connect
from anyio_connect._linger import outstanding
from anyio_connect._tls import TLSTransport
from support.peers import listening
from support.sockets import needs_poll, settle, socket_over
from support.tls_acts import cancelled, cancelled_at_once, each_version, receive_all
from support.tls_peers import (
    NAME,
    TLS12,
    TLS13,
    Server,
    TLSPeer,
    Wire,
    client_context,
    forged,
    logging_secrets,
    over_tcp,
    server_context,
    shaken,
)
from support.turns import all_blocked

# --- the end of what the peer sends


@each_version
async def test_close_notify_is_the_end_and_stays_the_end(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.encrypt(b"last") + server.close_notify())
    assert await tls.receive() == b"last"
    for _ in range(3):
        with pytest.raises(anyio.EndOfStream):
            await tls.receive()
    # RFC 8446 6.1: our side is still open.
    await tls.send(b"more")
    assert server.decrypt(wire.take()) == b"more"
    assert not server.ended


@each_version
@pytest.mark.parametrize("ignores", [False, True], ids=["", "ignore-eof"])
@pytest.mark.parametrize("cut", ["between-records", "in-a-record"])
async def test_an_end_without_close_notify_is_an_error_and_stays_one(
    version: ssl.TLSVersion, ignores: bool, cut: str
) -> None:
    context = client_context()
    # Since Python 3.10 with OpenSSL 3, the contexts of users have this option by default.
    ignore = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0x80)
    context.options = context.options | ignore if ignores else context.options & ~ignore
    tls, wire, server = shaken(version, client=context)
    whole = server.encrypt(b"whole")
    half = server.encrypt(b"half")[:-3] if cut == "in-a-record" else b""
    wire.arrive(whole + half, ends=anyio.EndOfStream())
    assert await tls.receive() == b"whole"
    for _ in range(3):
        with pytest.raises(anyio.BrokenResourceError, match="truncated") as caught:
            await tls.receive()
        assert isinstance(caught.value.__cause__, ssl.SSLEOFError)
    with pytest.raises(anyio.BrokenResourceError, match="truncated"):
        tls.receive_nowait(1)
    with pytest.raises(anyio.BrokenResourceError, match="truncated"):
        await tls.send(b"x")
    with pytest.raises(anyio.BrokenResourceError, match="truncated"):
        await tls.send_eof()
    assert wire.take() == b""


# --- with require_close_notify=False


async def _all_before_the_end(tls: TLSTransport) -> tuple[bytes, str]:
    """Receive everything; return the data, and how it ended, which has to stay so."""
    data, how = b"", ""
    while not how:
        try:
            data += await tls.receive()
        except anyio.EndOfStream:
            how = "end"
        except anyio.BrokenResourceError as exc:
            how = f"{type(exc.__cause__).__name__}: {exc}"
    error = anyio.EndOfStream if how == "end" else anyio.BrokenResourceError
    with pytest.raises(error):
        await tls.receive()
    with pytest.raises(error):
        tls.receive_nowait(1)
    if how == "end":
        assert not tls.unread()
    else:
        with pytest.raises(error):
            tls.unread()
    return data, how


CUT = (
    "SSLEOFError: the peer ended the connection in the middle of a TLS record: what it sent was "
    "truncated"
)


@pytest.mark.slow
@each_version
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_an_end_between_records_is_an_end_and_any_other_is_an_error(
    version: ssl.TLSVersion, size: int
) -> None:
    """The connection ends after each byte of two records in turn."""
    _, _, server = shaken(version)
    borders = {0: b""}
    stream = b""
    for data in (b"one", b"two"):
        stream += server.encrypt(data)
        borders[len(stream)] = borders[max(borders)] + data
    for cut in range(len(stream) + 1):
        tls, wire, server = shaken(version, require_close_notify=False)
        cipher = (server.encrypt(b"one") + server.encrypt(b"two"))[:cut]
        pieces = [cipher[at : at + size] for at in range(0, cut, size)]
        wire.arrive(*pieces, ends=anyio.EndOfStream())
        data, how = await _all_before_the_end(tls)
        assert data == borders[max(border for border in borders if border <= cut)]
        if cut in borders:
            assert how == "end"
            await tls.send(b"more")  # our side is still open
            assert server.decrypt(wire.take()) == b"more"
        else:
            assert how == CUT
            with pytest.raises(anyio.BrokenResourceError, match="in the middle of a TLS record"):
                await tls.send(b"more")


@pytest.mark.slow
@settings(max_examples=40)
@given(
    version=st.sampled_from([TLS12, TLS13]),
    messages=st.lists(st.binary(min_size=1, max_size=300), max_size=6),
    long=st.booleans(),
    cut=st.floats(0, 1),
    notify=st.booleans(),
    cuts=st.lists(st.floats(0, 1), max_size=30),
)
async def test_an_end_is_regular_exactly_where_a_record_ends(
    version: ssl.TLSVersion,
    messages: list[bytes],
    long: bool,
    cut: float,
    notify: bool,
    cuts: list[float],
) -> None:
    """This holds for all pieces of ciphertext. With close_notify, the end is always regular."""
    tls, wire, server = shaken(version, require_close_notify=False)
    messages += [random.Random(1).randbytes(40_000)] * long
    records = [server.encrypt(message) for message in messages]
    stream = b"".join(records)
    end = len(stream) if notify else int(cut * len(stream))
    borders = [0]
    while borders[-1] < len(stream):  # of records: a long message has several
        length = int.from_bytes(stream[borders[-1] + 3 : borders[-1] + 5], "big")
        borders.append(borders[-1] + 5 + length)
    stream = stream[:end] + (server.close_notify() if notify else b"")
    at = sorted(int(place * len(stream)) for place in cuts)
    pieces = [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)], strict=True)]
    wire.arrive(*pieces, ends=anyio.EndOfStream())
    data, how = await _all_before_the_end(tls)
    assert b"".join(messages).startswith(data)
    assert (how == "end") == (end in borders)
    if notify:
        assert data == b"".join(messages)


@pytest.mark.parametrize("waits", ["receive", "closed"])
@pytest.mark.parametrize("how", ["on", "starttls"])
@pytest.mark.parametrize("required", [None, True, False])
async def test_require_close_notify_decides_what_a_bare_end_means(
    required: bool | None, how: Any, waits: str
) -> None:
    async with listening() as listener:
        socket = connect(
            listener.address,
            secure_transport=how,
            sni=NAME,
            ssl_context=client_context(),
            require_close_notify=required,
        )
        if how == "starttls":
            await socket.opened
            socket = socket.start_tls()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(socket._connection.opened._wait)
            peer = TLSPeer(await listener.accept(), server_context())
            await peer.shake()
        await peer.send(b"last")
        assert await socket.receive() == b"last"
        peer.peer.fin()
        if required is False:
            if waits == "receive":
                with pytest.raises(anyio.EndOfStream):
                    await socket.receive()
            assert await settle(socket.closed) is None
            assert await peer.receive_all() == b""  # we sent close_notify
        else:
            if waits == "receive":
                with pytest.raises(BrokenError, match="without TLS close_notify"):
                    await socket.receive()
            error = await settle(socket.closed)
            assert isinstance(error, BrokenError)
            assert "without TLS close_notify" in str(error)


@each_version
async def test_a_reset_is_passed_on(version: ssl.TLSVersion) -> None:
    async with over_tcp(server_context(version)) as (tls, peer):
        await peer.send(b"before")
        assert await tls.receive() == b"before"
        peer.peer.rst()
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await tls.receive()
            assert isinstance(caught.value.__cause__, ConnectionResetError)


@each_version
async def test_a_bad_record_breaks_the_session_and_the_peer_gets_an_alert(
    version: ssl.TLSVersion,
) -> None:
    tls, wire, server = shaken(version)
    bad = bytearray(server.encrypt(b"forged"))
    bad[-1] ^= 1
    wire.arrive(bytes(bad), ends=anyio.EndOfStream())
    for _ in range(3):
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await tls.receive()
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        assert "MAC" in (caught.value.__cause__.reason or "")
    with pytest.raises(ssl.SSLError, match=r"(?i)alert bad record mac"):
        server.decrypt(wire.take())
    with pytest.raises(anyio.BrokenResourceError):
        await tls.send(b"x")
    await tls.aclose()
    assert wire.calls == ["aclose"]
    assert wire.take() == b""


@each_version
async def test_data_before_a_bad_record_is_received_first(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.encrypt(b"good") + b"\x17\x03\x03\x00\x20" + bytes(32))
    assert await tls.receive() == b"good"
    with pytest.raises(anyio.BrokenResourceError):
        await tls.receive()


async def test_the_peers_fatal_alert() -> None:
    tls, wire, _, forger = forged()
    wire.arrive(forger.alert(2, 80))
    for _ in range(2):
        with pytest.raises(anyio.BrokenResourceError, match="error of its own") as caught:
            await tls.receive()
        assert isinstance(caught.value.__cause__, ssl.SSLError)


# --- why the connection broke


@asynccontextmanager
async def refused_by_alert(*, data: bytes = b"") -> AsyncIterator[Socket]:
    """A socket whose peer has sent data, then an alert with its reason, and then a reset."""
    context = client_context(TLS13)
    with logging_secrets(context) as forger_of:
        async with over_tcp(server_context(TLS13), context=context) as (tls, peer):
            forger = forger_of(peer.server)
            socket = socket_over(tls, half_open=True)
            await socket.opened
            await socket.send(b"unread, so that the peer's kernel sends a reset when it closes")
            raw = tls.extra(SocketAttribute.raw_socket)
            size = len(data)
            said = b"".join(forger.encrypt(data[n : n + 16384]) for n in range(0, size, 16384))
            await peer.peer.send(said + forger.alert(2, 116))
            while outstanding(peer.peer.sock):  # until our kernel has everything
                await checkpoint()
            peer.peer.rst()
            poll = select.poll()
            poll.register(raw, select.POLLRDHUP)
            assert poll.poll(5000)
            yield socket


WANTED = "the peer wants a client certificate"


@needs_poll
@pytest.mark.parametrize("first", ["send", "send_eof", "receive", "closed"])
@pytest.mark.parametrize("size", [0, 60_000])
async def test_an_alert_is_read_before_a_reset_is_reported(first: str, size: int) -> None:
    """Data that came before the alert can still be received."""
    data = random.Random(13).randbytes(size)
    async with refused_by_alert(data=data) as socket:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "send": partial(socket.send, b"x"),
            "send_eof": socket.send_eof,
            "closed": lambda: socket.closed,
        }
        if first == "receive":
            calls = {"receive": socket.receive, **calls} if not size else calls
        else:
            calls = {first: calls[first], **calls}
        for name, call in calls.items():
            with pytest.raises(BrokenError, match=WANTED) as caught:
                await call()
            assert isinstance(caught.value.__cause__, ssl.SSLError), name
        received = b""
        while len(received) < size:
            received += await socket.receive()
        assert (received == data) is True
        with pytest.raises(BrokenError, match=WANTED):
            await socket.receive()


@needs_poll
async def test_a_bare_end_is_read_before_a_reset_is_reported() -> None:
    """The peer ends without close_notify, and then resets."""
    async with over_tcp(server_context(TLS13)) as (tls, peer):
        socket = socket_over(tls, half_open=True)
        await socket.opened
        peer.peer.sock.close()
        await socket.send(b"x")  # the peer's kernel answers with a reset
        poll = select.poll()
        poll.register(tls.extra(SocketAttribute.raw_socket), 0)
        assert poll.poll(5000)
        with pytest.raises(BrokenError, match="truncated"):
            await socket.send(b"x")
        with pytest.raises(BrokenError, match="truncated"):
            await socket.closed


@pytest.mark.slow
async def test_long_last_words_let_other_tasks_run() -> None:
    """The kernel may still hold megabytes of records that carry no data."""
    tls, wire, _, forger = forged()
    wire.arrive(*(forger.key_update(answer=False) * 1 for _ in range(24_000)))
    wire.arrive(forger.alert(2, 116), ends=anyio.EndOfStream())
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        await checkpoint()
        await tls._read_last_words()
        tasks.cancel_scope.cancel()
    assert turns >= 4  # about eight; trio's random order changes it by one
    with pytest.raises(anyio.BrokenResourceError, match=WANTED):
        await tls.receive()


# --- our end


@each_version
async def test_send_eof_is_close_notify_and_reading_goes_on(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    await tls.send(b"ask")
    await tls.send_eof()
    assert server.decrypt(wire.take()) == b"ask"
    assert server.ended
    await tls.send_eof()
    assert wire.take() == b""
    for item in (b"x", b""):
        with pytest.raises(anyio.ClosedResourceError):
            await tls.send(item)
    assert not tls.torn
    wire.arrive(server.encrypt(b"ans"), server.encrypt(b"wer"))
    assert await tls.receive() == b"ans"
    assert await tls.receive() == b"wer"
    wire.arrive(server.close_notify(), ends=anyio.EndOfStream())
    for _ in range(2):
        with pytest.raises(anyio.EndOfStream):
            await tls.receive()
    await tls.aclose()
    assert wire.take() == b""
    assert wire.calls == ["aclose"]


@each_version
@pytest.mark.parametrize("size", [10, 40_000])
async def test_send_eof_with_data_pending_loses_none(version: ssl.TLSVersion, size: int) -> None:
    """SSLObject.unwrap() alone would lose undecrypted data, and the session with it."""
    tls, wire, server = shaken(version)
    data = random.Random(5).randbytes(size)
    stream = server.encrypt(data[: size // 2]) + server.encrypt(data[size // 2 :])
    wire.arrive(stream[:-1])
    received = await tls.receive(1)
    await tls.send_eof()
    assert len(wire.sent) > 0
    assert tls.receive_nowait(1) == data[1:2]
    wire.arrive(stream[-1:] + server.encrypt(b"more"))
    server.decrypt(wire.take())
    assert server.ended
    wire.arrive(server.close_notify())
    received += data[1:2] + await receive_all(tls, 100)
    assert received == data + b"more"


@each_version
async def test_send_eof_after_the_peers_end(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.encrypt(b"last") + server.close_notify())
    assert await tls.receive(1) == b"l"  # the end has arrived too, but is not noticed yet
    await tls.send_eof()
    server.decrypt(wire.take())
    assert server.ended
    assert await receive_all(tls) == b"ast"


@each_version
async def test_truncation_after_our_end(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    await tls.send_eof()
    wire.arrive(server.encrypt(b"x"), ends=anyio.EndOfStream())
    assert await tls.receive() == b"x"
    with pytest.raises(anyio.BrokenResourceError, match="truncated"):
        await tls.receive()


async def test_key_updates_after_our_end_are_followed_and_not_answered() -> None:
    # An answer after close_notify would be unread when the peer closes. The peer's kernel would
    # then send a reset, which can destroy the peer's last words.
    tls, wire, server, forger = forged()
    await tls.send_eof()
    assert server.decrypt(wire.take()) == b""
    assert server.ended
    for n in range(5):
        wire.arrive(forger.key_update(answer=True) + forger.encrypt(b"%d" % n))
        assert await tls.receive() == b"%d" % n
    wire.arrive(forger.close_notify())
    with pytest.raises(anyio.EndOfStream):
        await tls.receive()
    await tls.aclose()
    assert wire.take() == b""


async def test_a_key_update_that_has_half_arrived_at_our_end() -> None:
    tls, wire, _, forger = forged()
    update = forger.key_update(answer=True)
    wire.arrive(update[:9])
    assert tls.receive_nowait(1) is None
    await tls.send_eof()
    wire.arrive(update[9:] + forger.encrypt(b"x"))
    assert await tls.receive() == b"x"


@each_version
@pytest.mark.parametrize("room", [0, 10])
async def test_a_cancelled_send_eof_cuts_a_message(version: ssl.TLSVersion, room: int) -> None:
    tls, wire, server = shaken(version)
    wire.make_room(room)
    await cancelled(tls.send_eof)
    assert tls.torn
    wire.make_room()
    wire.arrive(server.encrypt(b"x"))
    assert await tls.receive() == b"x"
    with pytest.raises(anyio.BrokenResourceError):
        await tls.send_eof()
    assert len(wire.take()) == room
    await tls.aclose()
    assert wire.calls == ["abort"]


async def test_send_eof_in_a_broken_session() -> None:
    tls, wire, server = shaken(TLS13)
    wire.arrive(server.encrypt(b"good"))
    tls._incoming.write(b"\x17\x03\x03\x00\x20" + bytes(32))  # arrived, but not decrypted yet
    with pytest.raises(anyio.BrokenResourceError):
        await tls.send_eof()


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems, close() discards nothing")
async def test_our_end_goes_out_although_both_windows_are_full() -> None:
    """What the peer sends is discarded. Otherwise each side would wait for the other to read."""
    async with over_tcp(server_context(TLS13), buffers=4096) as (tls, peer):
        full = 0
        while full < 3:
            full = 0 if tls._transport.send_nowait(bytes(65536)) else full + 1
            await anyio.sleep(0.02)  # loopback delivers with a delay

        async def talk_then_read() -> None:
            await peer.peer.send(bytes(2_000_000))
            await peer.peer.receive_all()
            peer.peer.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk_then_read)
            await all_blocked()
            while not await tls.finish():
                await tls.wait_room()


# --- closing


@each_version
async def test_aclose_says_close_notify_once(version: ssl.TLSVersion) -> None:
    async with over_tcp(server_context(version)) as (tls, peer):
        await tls.send(b"last")
        await tls.aclose()
        await tls.aclose()
        assert await peer.receive_all() == b"last"
        assert await peer.peer.receive() == b""
        assert peer.server.incoming.pending == 0


@each_version
async def test_aclose_and_finish_with_data_pending(version: ssl.TLSVersion) -> None:
    for close in (TLSTransport.aclose, TLSTransport.finish):
        tls, wire, server = shaken(version)
        wire.arrive(server.encrypt(bytes(40_000)))
        await tls.receive(1)
        await close(tls)
        server.decrypt(wire.take())
        assert server.ended
        assert wire.calls == [close.__name__]


@each_version
async def test_aclose_waits_for_room_and_not_for_the_peer(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    wire.make_room(3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tls.aclose)
        await all_blocked()
        assert wire.calls == []
        wire.make_room()
    assert wire.calls == ["aclose"]
    server.decrypt(wire.take())
    assert server.ended


@each_version
@pytest.mark.parametrize("room", [0, 3])
async def test_a_cancelled_aclose_drops_the_connection(version: ssl.TLSVersion, room: int) -> None:
    tls, wire, _ = shaken(version)
    wire.make_room(room)
    await cancelled(tls.aclose)
    assert wire.calls == ["abort"]
    assert len(wire.take()) == room


async def test_aclose_in_a_cancelled_scope_says_close_notify_where_there_is_room() -> None:
    tls, wire, server = shaken(TLS13)
    assert await cancelled_at_once(tls.aclose)
    server.decrypt(wire.take())
    assert server.ended


@each_version
@pytest.mark.parametrize("room", [0, 3, 10_000])
async def test_finish_never_waits(version: ssl.TLSVersion, room: int) -> None:
    tls, wire, server = shaken(version)
    wire.make_room(room)
    coroutine = tls.finish()
    with pytest.raises(StopIteration) as stop:  # it ended without giving up control
        coroutine.send(None)
    assert stop.value.value is (room == 10_000)
    sent = wire.take()
    if room < 10_000:  # what did not fit is kept for later
        assert wire.calls == []
        assert len(sent) == room
        async with anyio.create_task_group() as group:
            group.start_soon(tls.wait_room)
            await all_blocked()
            wire.make_room()
        assert await tls.finish()
        sent += wire.take()
    assert wire.calls == ["finish"]
    server.decrypt(sent)
    assert server.ended


@each_version
async def test_finish_with_a_full_window(version: ssl.TLSVersion) -> None:
    async with over_tcp(server_context(version), buffers=4096) as (tls, _):
        await cancelled(tls._transport.send, bytes(10_000_000))
        tls._transport.torn = False
        with anyio.fail_after(5):
            await tls.finish()


@each_version
async def test_close_while_a_send_is_stuck(version: ssl.TLSVersion) -> None:
    """The close cuts a message short, so no clean end may follow."""

    async def finish(tls: TLSTransport) -> None:
        with pytest.raises(anyio.BrokenResourceError, match="cut short"):
            await tls.finish()

    for close in (TLSTransport.aclose, finish):
        tls, wire, _ = shaken(version)
        wire.make_room(10)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tls.send, bytes(100))
            await all_blocked()
            await close(tls)
            assert wire.calls == ["abort"]
            assert len(wire.sent) == 10
            tasks.cancel_scope.cancel()


@each_version
async def test_abort(version: ssl.TLSVersion) -> None:
    tls, wire, _ = shaken(version)
    await tls.abort()
    assert wire.calls == ["abort"]
    assert wire.take() == b""


@each_version
async def test_closing_after_the_peer_is_gone(version: ssl.TLSVersion) -> None:
    async with over_tcp(server_context(version)) as (tls, peer):
        peer.peer.rst()
        select.select([tls.extra(SocketAttribute.raw_socket)], [], [], 5)
        await tls.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await tls.receive()


# --- no room for our end after the peer's end


@asynccontextmanager
async def lingering(version: ssl.TLSVersion) -> AsyncIterator[tuple[Socket, Wire, Server]]:
    """A socket whose peer has ended, and whose own end finds no room."""
    tls, wire, server = shaken(version)
    socket = socket_over(tls)
    await socket.send(b"all of it")
    wire.make_room(0)
    wire.arrive(server.close_notify())
    with pytest.raises(anyio.EndOfStream):
        await socket.receive()
    assert not socket.closed.done()
    assert wire.calls == []
    with pytest.raises(ClosedError):
        await socket.send(b"more")
    yield socket, wire, server
    assert socket.closed.done()
    await socket.close()


@each_version
async def test_a_task_that_awaits_closed_ends_our_side_when_there_is_room(
    version: ssl.TLSVersion,
) -> None:
    async with lingering(version) as (socket, wire, server):
        for room in (0, 5, 1000):  # at first, there is not enough
            with anyio.CancelScope() as scope:  # a cancelled wait changes nothing
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(settle, socket.closed)
                    await all_blocked()
                    wire.make_room(room)
                    await all_blocked()
                    scope.cancel()
            assert socket.closed.done() == (room == 1000)
        assert server.decrypt(wire.take()) == b"all of it"
        assert server.ended
        assert wire.calls == ["finish"]


@each_version
async def test_a_task_that_awaited_closed_before_ends_our_side_too(
    version: ssl.TLSVersion,
) -> None:
    """The task began to wait while the connection was open, and now waits for room."""
    tls, wire, server = shaken(version)
    socket = socket_over(tls)
    await socket.send(b"all of it")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(settle, socket.closed)
        await all_blocked()
        wire.make_room(0)
        wire.arrive(server.close_notify())
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        await all_blocked()
        assert not socket.closed.done()
        wire.make_room()
    assert socket.closed.result() is None
    server.decrypt(wire.take())
    assert server.ended


@each_version
async def test_close_ends_our_side_when_there_is_room(version: ssl.TLSVersion) -> None:
    async with lingering(version) as (socket, wire, server):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(settle, socket.closed)
            for _ in range(2):
                tasks.start_soon(socket.close)
            await all_blocked()
            assert not socket.closed.done()
            wire.make_room()
        assert server.decrypt(wire.take()) == b"all of it"
        assert server.ended


@each_version
async def test_a_cancelled_close_does_not_wait_for_room(version: ssl.TLSVersion) -> None:
    async with lingering(version) as (socket, wire, _):
        assert await cancelled_at_once(socket.close)
        assert {*wire.calls} == {"abort"}
        # The peer sees no close_notify, but a reset.
        with pytest.raises(BrokenError, match="before our end had gone out"):
            socket.closed.result()


@each_version
async def test_a_reset_ends_the_wait_for_room(
    version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lingering(version) as (socket, wire, _):

        def reset(_: object) -> int:
            raise anyio.BrokenResourceError

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(settle, socket.closed)
            await all_blocked()
            monkeypatch.setattr(wire, "send_nowait", reset)
            wire.make_room()
        assert socket.closed.done()
