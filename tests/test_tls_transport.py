"""TLS after its handshake: order, ends, cuts, and what each leaves behind."""

from __future__ import annotations

import random
import select
import socket
import ssl
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import cycle, pairwise
from typing import Any

import anyio
import pytest
import trio
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from anyio_connect import BrokenError, ClosedError, Socket, TLSError, _tls, connect
from anyio_connect._linger import outstanding
from anyio_connect._tls import TLSTransport, start_tls
from anyio_connect._transport import ForeignTransport
from support.peers import listening
from support.servers import serving
from support.sockets import Made, opened_by, settle, socket_over
from support.tls_peers import (
    NAME,
    TLS12,
    TLS13,
    RenegotiatingPeer,
    Server,
    TLSPeer,
    Wire,
    client_context,
    dial,
    forged,
    logging_secrets,
    over_tcp,
    server_context,
    shaken,
)
from support.turns import all_blocked

each_version = pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])

#: The most that one message may add to what waits to be sent, in bytes: what is sent at a time,
#: and a record more.
BOUND = 2 * 65536


async def cancelled(call: Callable[..., Coroutine[Any, Any, object]], *args: object) -> None:
    """Start a call, let it get as far as it can, and cancel it there."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, *args)
        await all_blocked()
        tasks.cancel_scope.cancel()


async def cancelled_at_once(call: Callable[..., Awaitable[object]], *args: object) -> bool:
    """Make a call in a scope that is cancelled already; return whether it took note."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await call(*args)
    return scope.cancelled_caught


async def receive_all(tls: TLSTransport, max_bytes: int = 65536) -> bytes:
    chunks = []
    with suppress(anyio.EndOfStream):
        while True:
            chunks.append(await tls.receive(max_bytes))
            assert 0 < len(chunks[-1]) <= max_bytes
    return b"".join(chunks)


# --- receiving


# All is drawn before the test begins: what Hypothesis stops an example with would stop the loop.
@settings(max_examples=settings().max_examples * 6 // 10)
@given(
    version=st.sampled_from([TLS12, TLS13]),
    messages=st.lists(st.binary(min_size=1, max_size=300), max_size=6),
    long=st.booleans(),
    cuts=st.lists(st.floats(0, 1), max_size=30),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["wait", "nowait", "cancelled at once"]),
            st.sampled_from([1, 7, 100, 65536]),
        ),
        min_size=1,
    ),
)
async def test_any_pieces_say_the_same(
    version: ssl.TLSVersion,
    messages: list[bytes],
    long: bool,
    cuts: list[float],
    steps: list[tuple[str, int]],
) -> None:
    """However the ciphertext is cut, and however much is asked for at a time.

    Now and then a receive is cancelled, or does not wait; neither may lose anything.
    """
    tls, wire, server = shaken(version)
    messages += [random.Random(1).randbytes(40_000)] * long
    stream = b"".join(map(server.encrypt, messages)) + server.close_notify()
    at = sorted(int(cut * len(stream)) for cut in cuts)
    pieces = [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)], strict=True)]
    received: list[bytes] = []
    for how, wanted in cycle([*steps, ("wait", 100)]):
        max_bytes = max(wanted, len(stream) // 40)
        if pieces and not wire.arriving:
            wire.arrive(pieces.pop(0))
        if how == "wait":
            await cancelled(receive_into, tls, max_bytes, received)
        elif how == "cancelled at once":
            assert await cancelled_at_once(tls.receive, max_bytes)
        else:
            try:
                received.append(tls.receive_nowait(max_bytes) or b"")
            except anyio.EndOfStream:
                received.append(END)
        if received[-1:] == [END]:
            break
    assert b"".join(received[:-1]) == b"".join(messages)


END = b"(the end)"


async def receive_into(tls: TLSTransport, max_bytes: int, received: list[bytes]) -> None:
    try:
        received.append(await tls.receive(max_bytes))
    except anyio.EndOfStream:
        received.append(END)


@each_version
async def test_single_bytes(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    for byte in server.encrypt(b"first") + server.encrypt(b"second") + server.close_notify():
        wire.arrive(bytes([byte]))
    assert await receive_all(tls) == b"firstsecond"


@each_version
async def test_receive_nowait(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    assert tls.receive_nowait(10) is None
    record = server.encrypt(b"abcdef")
    wire.arrive(record[:-1])
    assert tls.receive_nowait(10) is None
    wire.arrive(record[-1:])
    assert tls.receive_nowait(4) == b"abcd"
    assert tls.receive_nowait(4) == b"ef"
    assert tls.receive_nowait(4) is None
    wire.arrive(server.close_notify())
    for _ in range(2):
        with pytest.raises(anyio.EndOfStream):
            tls.receive_nowait(4)


@each_version
async def test_full_records_are_received_together(version: ssl.TLSVersion) -> None:
    """As many as were asked for, and are here; one that is not full ends what is said."""
    tls, wire, server = shaken(version)
    data = random.Random(3).randbytes(5 * 16384 + 100)
    wire.arrive(server.encrypt(data), server.encrypt(b"more"))
    assert await tls.receive(1 << 18) == data
    assert await tls.receive(1 << 18) == b"more"
    wire.arrive(server.encrypt(data[:40_000]))
    assert await tls.receive(20_000) == data[:20_000]
    assert await tls.receive(20_000) == data[20_000 : 2 * 16384]  # what is left of a record
    assert await tls.receive() == data[2 * 16384 : 40_000]
    wire.arrive(server.encrypt(data[: 4 * 16384 - 1]))
    assert await tls.receive(40_000) == data[:40_000]
    assert await tls.receive(40_000) == data[40_000 : 3 * 16384]
    assert await tls.receive() == data[3 * 16384 : 4 * 16384 - 1]
    wire.arrive(server.encrypt(data[: 2 * 16384]) + server.close_notify())
    assert await tls.receive() == data[: 2 * 16384]
    with pytest.raises(anyio.EndOfStream):
        await tls.receive()


@each_version
async def test_what_was_decrypted_before_is_received_without_more(
    version: ssl.TLSVersion,
) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.encrypt(b"here"))
    assert tls.unread()
    with anyio.fail_after(5):
        assert await tls.receive() == b"here"


@pytest.mark.parametrize("max_bytes", [2**31 - 1, 2**31, 2**40])
async def test_more_may_be_asked_for_than_there_can_be(max_bytes: int) -> None:
    tls, wire, server = shaken(TLS13)
    wire.arrive(server.encrypt(b"x"))
    assert await tls.receive(max_bytes) == b"x"
    assert wire.asked <= 1 << 20  # a kernel asked for more would first be given the memory


async def test_nothing_is_received_after_it_was_stopped() -> None:
    async with over_tcp(server_context(TLS13)) as (tls, peer):
        await peer.send(b"decrypted already")
        assert await tls.receive(1) == b"d"
        tls.stop_receiving()
        with pytest.raises(anyio.ClosedResourceError):
            await tls.receive()


async def test_it_gives_way_as_what_is_below_does() -> None:
    async with over_tcp(server_context(TLS13)) as (tls, _):
        assert tls.leave is tls._transport.leave


async def test_a_socket_whose_end_was_cancelled_is_torn() -> None:
    tls, wire, _ = shaken(TLS13)
    socket = socket_over(tls, half_open=True)
    await socket.opened
    wire.make_room(0)
    await cancelled(socket.send_eof)
    for call in (socket.send_eof, partial(socket.send, b"more")):
        with pytest.raises(BrokenError, match="cut short"):
            await call()
    with anyio.fail_after(5):
        await socket.close()
    assert wire.calls == ["abort"]


async def test_ciphertext_is_taken_only_where_it_is_wanted() -> None:
    tls, wire, server = shaken(TLS13)
    wire.arrive(*(server.encrypt(bytes(10_000)) for _ in range(100)))
    for _ in range(10):
        await tls.receive()
    assert len(wire.arriving) >= 85
    assert tls._incoming.pending <= 65536


@each_version
async def test_a_receive_in_a_cancelled_scope_takes_nothing(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.encrypt(b"kept"))
    assert await cancelled_at_once(tls.receive)
    assert await tls.receive() == b"kept"


@each_version
async def test_a_receive_lets_others_run(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.encrypt(bytes(100)))
    ran = []
    async with anyio.create_task_group() as tasks:

        async def other() -> None:
            ran.append(True)

        tasks.start_soon(other)
        for _ in range(10):
            await tls.receive(1)
        assert ran


# --- the end of what the peer sends


@each_version
async def test_close_notify_is_the_end_and_stays_it(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.encrypt(b"last") + server.close_notify())
    assert await tls.receive() == b"last"
    for _ in range(3):
        with pytest.raises(anyio.EndOfStream):
            await tls.receive()
    # RFC 8446 6.1: our side is open still.
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
    # From Python 3.10 on OpenSSL 3, this is what users' contexts have by default.
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
    """What can be received, and what comes then, which has to stay so."""
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
    """At each byte of two records."""
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
            await tls.send(b"more")  # our side is open still
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
async def test_an_end_is_one_exactly_where_a_record_ends(
    version: ssl.TLSVersion,
    messages: list[bytes],
    long: bool,
    cut: float,
    notify: bool,
    cuts: list[float],
) -> None:
    """However the ciphertext is cut into pieces; with close_notify it is one anyway."""
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
async def test_a_socket_takes_a_bare_end_for_what_it_was_told(
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
            assert await peer.receive_all() == b""  # we said close_notify
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
async def test_what_is_no_record_breaks_the_session_and_the_peer_is_told(
    version: ssl.TLSVersion,
) -> None:
    tls, wire, server = shaken(version)
    bad = bytearray(server.encrypt(b"forged"))
    bad[-1] ^= 1
    wire.arrive(server.encrypt(b"")[:0] + bytes(bad), ends=anyio.EndOfStream())
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
async def test_data_before_what_is_no_record_is_had_first(version: ssl.TLSVersion) -> None:
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
    """A socket whose peer has said some data and then by an alert why it hangs up."""
    server = server_context(TLS13)
    server.verify_mode = ssl.CERT_REQUIRED
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
            while outstanding(peer.peer.sock):  # our kernel does not have it all
                await checkpoint()
            peer.peer.rst()
            poll = select.poll()
            poll.register(raw, select.POLLRDHUP)
            assert poll.poll(5000)
            yield socket


WANTED = "the peer wants a client certificate"


@pytest.mark.parametrize("first", ["send", "send_eof", "receive", "closed"])
@pytest.mark.parametrize("size", [0, 60_000])
async def test_an_alert_is_read_before_a_reset_is_told(first: str, size: int) -> None:
    """Also where data lies before it, which is received first."""
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


async def test_a_bare_end_is_read_before_a_reset_is_told() -> None:
    """The peer ends without close_notify, and then resets."""
    async with over_tcp(server_context(TLS13)) as (tls, peer):
        socket = socket_over(tls, half_open=True)
        await socket.opened
        peer.peer.sock.close()
        await socket.send(b"x")  # which is answered by a reset
        poll = select.poll()
        poll.register(tls.extra(SocketAttribute.raw_socket), 0)
        assert poll.poll(5000)
        with pytest.raises(BrokenError, match="truncated"):
            await socket.send(b"x")
        with pytest.raises(BrokenError, match="truncated"):
            await socket.closed


@pytest.mark.slow
async def test_last_words_without_end_let_others_run() -> None:
    """What the kernel still holds may be megabytes of what is no data."""
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
    assert turns >= 4  # about eight; trio's order takes or gives one
    with pytest.raises(anyio.BrokenResourceError, match=WANTED):
        await tls.receive()


# --- sending


@pytest.mark.slow
@each_version
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_a_large_send_needs_little_memory(
    version: ssl.TLSVersion, kind: Callable[[bytes], bytes]
) -> None:
    tls, wire, server = shaken(version)
    data = random.Random(2).randbytes(3_000_001)
    most = 0
    pending = tls._outgoing
    send = wire.send

    async def watched(item: bytes | bytearray | memoryview) -> None:
        nonlocal most
        most = max(most, len(item) + pending.pending)
        await send(item)

    wire.send = watched  # type: ignore[method-assign]
    await tls.send(kind(data))
    assert most <= BOUND
    assert server.decrypt(wire.take()) == data
    assert not tls.torn


@each_version
async def test_records_are_full(version: ssl.TLSVersion) -> None:
    tls, wire, _ = shaken(version)
    await tls.send(bytes(1_000_000))
    sent, records = wire.take(), 0
    while sent:
        assert sent[0] == 23
        sent = sent[5 + int.from_bytes(sent[3:5], "big") :]
        records += 1
    assert records <= 1_000_000 // 16384 + 1


async def test_items_of_larger_elements() -> None:
    tls, wire, server = shaken(TLS13)
    await tls.send(memoryview(bytes(range(200)) * 400).cast("I"))
    assert server.decrypt(wire.take()) == bytes(range(200)) * 400


@each_version
async def test_a_long_send_lets_others_run(version: ssl.TLSVersion) -> None:
    """Also where there is always room."""
    tls, wire, _ = shaken(version)
    seen = [0]

    async def look() -> None:
        while True:
            seen.append(len(wire.sent))
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        await tls.send(bytes(1 << 22))
        seen.append(len(wire.sent))
        tasks.cancel_scope.cancel()
    assert max(b - a for a, b in pairwise(seen)) < 2 * BOUND


@each_version
async def test_an_empty_send_is_no_record_and_a_checkpoint(version: ssl.TLSVersion) -> None:
    tls, wire, _ = shaken(version)
    await tls.send(b"")
    assert wire.take() == b""
    assert await cancelled_at_once(tls.send, b"")
    assert not tls.torn


async def test_what_finds_no_room_at_once_is_kept_and_goes_out_first() -> None:
    tls, wire, server = shaken(TLS13)
    assert tls.send_nowait(b"") == 0
    assert wire.take() == b""
    assert tls.send_nowait(memoryview(b"one, ")) == 5
    assert server.decrypt(wire.take()) == b"one, "
    wire.room = 10
    assert tls.send_nowait(b"two, ") == 5
    assert tls.send_nowait(b"three, ") == 7
    ciphertext = wire.take()
    assert len(ciphertext) == 10
    wire.make_room()
    await tls.send(b"four")
    assert server.decrypt(ciphertext + wire.take()) == b"two, three, four"


async def test_nothing_is_sent_at_once_into_the_midst_of_a_send() -> None:
    tls, wire, server = shaken(TLS13)
    wire.room = 10
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tls.send, b"one")
        await all_blocked()
        assert tls.send_nowait(b"two") == 0
        wire.make_room()
    assert server.decrypt(wire.take()) == b"one"
    wire.room = 10
    await cancelled(tls.send, b"three")
    wire.make_room()
    assert tls.send_nowait(b"four") == 0
    assert len(wire.take()) == 10


async def test_nothing_is_sent_at_once_when_our_side_has_ended() -> None:
    tls, _, _ = shaken(TLS13)
    await tls.send_eof()
    with pytest.raises(anyio.ClosedResourceError):
        tls.send_nowait(b"data")


# --- TLS in TLS: through a proxy that is spoken to over TLS, to a target over TLS


def nested() -> tuple[TLSTransport, Wire, Callable[[], bytes], Server, Server]:
    """The transport, the wire, what the inner server gets, the outer server, and the inner."""
    outer, wire, front = shaken(TLS13)
    tls, _, back = shaken(TLS13, over=outer)

    def arrived() -> bytes:
        return back.decrypt(front.decrypt(wire.take()))

    return tls, wire, arrived, front, back


async def test_data_goes_through_both() -> None:
    tls, wire, arrived, front, back = nested()
    await tls.send(b"there")
    assert arrived() == b"there"
    wire.arrive(front.encrypt(back.encrypt(b"and back")))
    assert await tls.receive() == b"and back"
    big = bytes(300_000)
    await tls.send(big)
    assert arrived() == big


@pytest.mark.parametrize("room", [0, 10, 60, 1000])
async def test_both_are_ended_as_soon_as_there_is_room(room: int) -> None:
    tls, wire, arrived, front, back = nested()
    wire.make_room(room)
    finished = await tls.finish()
    assert finished == (room == 1000)
    while not finished:
        with anyio.move_on_after(0.01):
            await tls.wait_room()
        wire.make_room()
        finished = await tls.finish()
    assert wire.calls == ["finish"]
    assert arrived() == b""
    assert (front.ended, back.ended) == (True, True)


async def test_a_half_close_ends_the_inner_one_alone() -> None:
    tls, wire, arrived, front, back = nested()
    await tls.send_eof()
    assert arrived() == b""
    assert (front.ended, back.ended) == (False, True)
    wire.arrive(front.encrypt(back.encrypt(b"still")))
    assert await tls.receive() == b"still"
    wire.arrive(front.encrypt(back.close_notify()))
    with pytest.raises(anyio.EndOfStream):
        await tls.receive()


async def test_a_half_close_for_which_there_is_room_is_done_even_if_cancelled() -> None:
    tls, _, arrived, _, back = nested()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await tls.send_eof()
    assert not tls.torn
    assert arrived() == b""
    assert back.ended


async def test_nothing_follows_a_send_that_was_cut_short_in_the_outer_one() -> None:
    """Not even with the receiving of something else."""
    tls, wire, _, front, back = nested()
    wire.make_room(10)
    await cancelled(tls.send, b"a piece of it")
    wire.make_room()
    wire.arrive(front.encrypt(back.encrypt(b"still")))
    assert await tls.receive() == b"still"
    assert len(wire.take()) == 10


async def test_a_half_close_waits_for_room_in_the_outer_one() -> None:
    tls, wire, arrived, _, back = nested()
    ended = False

    async def end() -> None:
        nonlocal ended
        await tls.send_eof()
        ended = True

    wire.make_room(10)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        await all_blocked()
        first = wire.take()
        assert len(first) == 10
        assert not ended
        wire.make_room()
    wire.sent[:0] = first
    assert arrived() == b""
    assert back.ended


async def test_a_send_waits_until_the_outer_one_has_sent_it() -> None:
    tls, wire, arrived, _, _ = nested()
    wire.make_room(10)
    await cancelled(tls.send, b"a piece of it")
    assert tls.torn
    wire.make_room()
    with pytest.raises(anyio.BrokenResourceError):
        await tls.send(b"next")
    assert arrived() == b""


@pytest.mark.parametrize("room", [10, float("inf")])
async def test_let_go_ends_both_or_drops_the_connection(room: float) -> None:
    tls, wire, arrived, front, back = nested()
    wire.make_room(room)
    await tls.let_go()
    assert wire.calls == ["abort"]  # which is how this wire lets go
    assert arrived() == b""
    assert (front.ended, back.ended) == (room > 10, room > 10)


async def test_an_alert_goes_out_through_the_outer_one() -> None:
    outer, wire, front = shaken(TLS13)
    back = Server(server_context())
    async with anyio.create_task_group() as tasks:

        async def shake() -> None:
            with pytest.raises(TLSError, match=r"not for 'other\.example'"):
                await start_tls(
                    outer,
                    where="the peer",
                    server_hostname="other.example",
                    context=client_context(),
                )

        tasks.start_soon(shake)
        await all_blocked()
        back.incoming.write(front.decrypt(wire.take()))
        back.shake()
        wire.arrive(front.encrypt(back.outgoing.read()))
    back.incoming.write(front.decrypt(wire.take()))
    with pytest.raises(ssl.SSLError, match=r"BAD_CERTIFICATE|CERTIFICATE_UNKNOWN"):
        back.shake()


@each_version
async def test_a_send_that_had_not_begun_may_be_cancelled(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    assert await cancelled_at_once(tls.send, b"never")
    assert not tls.torn
    await tls.send(b"next")
    assert server.decrypt(wire.take()) == b"next"


@each_version
@pytest.mark.parametrize("room", [0, 1, 20, 16384, 70_000, 200_000])
async def test_a_cancelled_send_lets_no_other_follow(version: ssl.TLSVersion, room: int) -> None:
    tls, wire, server = shaken(version)
    wire.make_room(room)
    await cancelled(tls.send, bytes(300_000))
    assert tls.torn
    assert len(wire.take()) == room
    wire.make_room()
    with pytest.raises(anyio.BrokenResourceError, match="cut short"):
        await tls.send(b"x")
    with pytest.raises(anyio.BrokenResourceError, match="cut short"):
        await tls.send(b"")
    with pytest.raises(anyio.BrokenResourceError, match="cut short"):
        await tls.send_eof()
    assert wire.take() == b""
    # Reading goes on, to a clean end.
    wire.arrive(server.encrypt(b"still here") + server.close_notify())
    assert await receive_all(tls) == b"still here"
    assert wire.take() == b""
    await tls.aclose()
    assert wire.calls == ["abort"]


async def test_a_cancelled_short_send_lets_no_other_follow() -> None:
    # All of it is in the record layer, but none of it may ever go out.
    tls, wire, _ = shaken(TLS13)
    wire.make_room(0)
    await cancelled(tls.send, b"short")
    assert tls.torn
    wire.make_room()
    with pytest.raises(anyio.BrokenResourceError, match="cut short"):
        await tls.finish()
    assert wire.take() == b""
    assert wire.calls == ["abort"]


async def test_an_end_that_is_cancelled_half_way_cuts_a_message() -> None:
    tls, wire, _ = shaken(TLS13)
    socket = opened_by(Made(tls), half_open=True)
    await socket.opened
    wire.make_room(3)
    await cancelled(socket.send_eof)
    for call in (socket.send_eof, partial(socket.send, b"x")):
        with pytest.raises(BrokenError, match="cut short"):
            await call()
    await socket.close()
    assert "cut short" in str(socket.closed.exception())


async def test_a_socket_tells_that_closing_it_dropped_a_message_that_was_cut() -> None:
    tls, wire, _ = shaken(TLS13)
    socket = opened_by(Made(tls))
    await socket.opened
    wire.make_room(0)
    await cancelled(tls.send, b"short")  # of which the socket's own state says nothing
    await socket.close()
    assert "cut short" in str(socket.closed.exception())
    assert set(wire.calls) == {"abort"}


@each_version
async def test_send_after_the_transport_broke(version: ssl.TLSVersion) -> None:
    async with over_tcp(server_context(version)) as (tls, peer):
        peer.peer.rst()
        select.select([tls.extra(SocketAttribute.raw_socket)], [], [], 5)
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError):
                await tls.send(b"x")


# --- both directions at once


@pytest.mark.slow
@each_version
async def test_full_duplex_with_small_windows(version: ssl.TLSVersion) -> None:
    """The peer first sends all, then reads all: only true full duplex gets through."""
    ours, theirs = random.Random(3).randbytes(1_500_000), random.Random(4).randbytes(1_500_000)
    async with over_tcp(server_context(version), buffers=4096) as (tls, peer):

        async def serve() -> None:
            await peer.send(theirs)
            await peer.peer.send(peer.server.close_notify())
            assert await peer.receive_all() == ours

        async def send() -> None:
            for n in range(0, len(ours), 500_000):
                await tls.send(ours[n : n + 500_000])
            await tls.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            tasks.start_soon(send)
            assert await receive_all(tls) == theirs


async def test_the_answer_to_a_key_update_waits_behind_what_is_being_sent() -> None:
    tls, wire, server, forger = forged()
    wire.make_room(100)
    data = bytes(range(256)) * 2000
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tls.send, data)
        await all_blocked()
        for n in range(10):
            wire.arrive(forger.key_update(answer=n % 2 == 0) + forger.encrypt(b"%d" % n))
            # The sender is stuck, but the receiver is not.
            assert await tls.receive() == b"%d" % n
        wire.make_room()
    assert server.decrypt(wire.take()) == data
    await tls.send(b"on")
    assert server.decrypt(wire.take()) == b"on"


async def test_the_answer_to_a_key_update_goes_out_by_itself() -> None:
    tls, wire, server, forger = forged()
    # OpenSSL makes the answer to one as the next comes in, or before it writes.
    wire.arrive(forger.key_update(answer=True) + forger.key_update(answer=True))
    assert tls.receive_nowait(1) is None
    assert len(answer := wire.take()) == 27
    assert server.decrypt(answer) == b""
    await tls.send(b"y")
    assert server.decrypt(wire.take()) == b"y"


@pytest.mark.parametrize("room", [0, 10])
async def test_the_answer_to_a_key_update_waits_for_room(room: int) -> None:
    tls, wire, server, forger = forged()
    wire.make_room(room)
    wire.arrive(forger.key_update(answer=True) + forger.encrypt(b"x"))
    assert await tls.receive() == b"x"
    wire.make_room()
    await tls.send(b"y")
    assert server.decrypt(wire.take()) == b"y"


async def test_an_answer_that_waits_for_room_goes_out_with_the_next_receive() -> None:
    tls, wire, server, forger = forged()
    wire.make_room(10)
    wire.arrive(forger.key_update(answer=True) + forger.key_update(answer=True))
    assert tls.receive_nowait(1) is None
    assert len(wire.sent) == 10
    wire.make_room()
    wire.arrive(forger.encrypt(b"y"))
    assert await tls.receive() == b"y"
    assert len(wire.sent) == 27
    assert server.decrypt(wire.take()) == b""


@pytest.mark.parametrize("room", [0, 10])
async def test_a_send_cancelled_behind_an_answer_has_not_begun(room: int) -> None:
    tls, wire, server, forger = forged()
    wire.make_room(0)
    wire.arrive(forger.key_update(answer=True) + forger.key_update(answer=True))
    assert tls.receive_nowait(1) is None
    assert len(tls._unsent) == 27
    wire.make_room(room)
    await cancelled(tls.send, b"never")
    # Also where ten bytes of the answer are out: the rest of it goes out first.
    assert not tls.torn
    wire.make_room()
    await tls.send(b"next")
    assert server.decrypt(wire.take()) == b"next"


async def test_a_send_cancelled_while_an_answer_is_cut_tears_it() -> None:
    """What the transport below had sent of it, only that knows."""
    tls, wire, _, forger = forged()
    wire.make_room(0)
    wire.arrive(forger.key_update(answer=True) + forger.key_update(answer=True))
    assert tls.receive_nowait(1) is None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tls.send, b"never")
        await all_blocked()
        wire.make_room(10)
        await all_blocked()
        tasks.cancel_scope.cancel()
    assert tls.torn
    wire.make_room()
    with pytest.raises(anyio.BrokenResourceError, match="cut short"):
        await tls.send(b"next")


@pytest.mark.slow
async def test_a_peer_that_wants_answers_and_reads_none_is_given_up() -> None:
    tls, wire, _, forger = forged()
    wire.make_room(0)
    most = 0
    for _ in range(100):  # twice as many answers as may wait
        wire.arrive(b"".join(forger.key_update(answer=True) for _ in range(100)))
        wire.arrive(forger.encrypt(b"x"))
        with suppress(anyio.BrokenResourceError):
            assert await tls.receive() == b"x"
        most = max(most, tls._outgoing.pending + len(tls._unsent))
    assert most <= BOUND + 100 * 27  # one arrival's answers more
    with pytest.raises(anyio.BrokenResourceError, match="KeyUpdate"):
        await tls.receive()


@pytest.mark.slow
async def test_nothing_piles_up_behind_a_cut_send() -> None:
    tls, wire, _, forger = forged()
    wire.make_room(0)
    await cancelled(tls.send, b"x")
    for _ in range(20):
        wire.arrive(*(forger.key_update(answer=True) for _ in range(100)))
        wire.arrive(forger.encrypt(b"x"))
        assert await tls.receive() == b"x"
    assert tls._outgoing.pending + len(tls._unsent) < 1000


class Counting:
    """The ciphertext that an engine is given, and how much of it in one turn of the event loop."""

    def __init__(self, bio: ssl.MemoryBIO) -> None:
        self.bio = bio
        self.now = self.most = 0

    def write(self, data: memoryview) -> int:
        self.now += len(data)
        self.most = max(self.most, self.now)
        return self.bio.write(data)

    @property
    def pending(self) -> int:
        return self.bio.pending


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes", [1, 65536, 1 << 20])
@pytest.mark.parametrize("between", [b"", b"x"], ids=["", "with data between"])
async def test_key_updates_keep_the_event_loop_no_longer_than_others_do(
    max_bytes: int, between: bytes
) -> None:
    """AnyIO's stream works through 65536 bytes at a time."""
    tls, wire, _, forger = forged()
    updates = [
        b"".join(forger.key_update(answer=False) for _ in range(500)) + forger.encrypt(between)
        for _ in range(12)
    ]
    wire.arrive(b"".join(updates) + forger.encrypt(b"end"))
    wire.gives_way = False
    tls._incoming = counting = Counting(tls._incoming)  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]

    async def count() -> None:
        while True:
            counting.now = 0
            await checkpoint()

    received = b""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        await checkpoint()
        while not received.endswith(b"end"):
            received += await tls.receive(max_bytes)
        tasks.cancel_scope.cancel()
    assert received == between * 12 + b"end"
    # In trio's random order, two turns may come between two counts.
    turns = 2 if trio.lowlevel.in_trio_run() else 1
    assert 0 < counting.most <= turns * 2 * 65536


@pytest.mark.slow
async def test_a_flood_without_data_lets_others_run() -> None:
    """A peer that sends, as fast as we read, what is no data."""
    tls, wire, _, forger = forged()
    ran = False

    class Flood(deque[bytes]):
        """Never empty, until others have run."""

        taken = 0

        def __bool__(self) -> bool:
            return not ran and self.taken < 500

        def popleft(self) -> bytes:
            self.taken += 1
            return forger.key_update(answer=False)

        def appendleft(self, data: bytes) -> None:
            raise AssertionError

    wire.arriving = flood = Flood()

    async def other() -> None:
        nonlocal ran
        await checkpoint()
        ran = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        with anyio.move_on_after(0.5):
            await tls.receive()
    assert flood.taken < 100


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
    """Undecrypted data at SSLObject.unwrap() is otherwise lost, and the session with it."""
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
async def test_send_eof_after_the_peers(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.encrypt(b"last") + server.close_notify())
    assert await tls.receive(1) == b"l"  # the end is here too, and not seen yet
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
    # An answer after close_notify lies unread in the peer's buffer when it closes: that makes
    # its kernel send a reset, which can take the peer's last words with it.
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


async def test_a_key_update_that_is_half_here_at_our_end() -> None:
    tls, wire, _, forger = forged()
    update = forger.key_update(answer=True)
    wire.arrive(update[:9])
    assert tls.receive_nowait(1) is None
    await tls.send_eof()
    wire.arrive(update[9:] + forger.encrypt(b"x"))
    assert await tls.receive() == b"x"


@each_version
@pytest.mark.parametrize("room", [0, 10])
async def test_a_cancelled_send_eof_is_a_cut(version: ssl.TLSVersion, room: int) -> None:
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


async def test_send_eof_in_a_session_that_is_lost() -> None:
    tls, wire, server = shaken(TLS13)
    bad = bytearray(server.encrypt(b"forged"))
    bad[-1] ^= 1
    record = server.encrypt(b"good")
    wire.arrive(record)
    tls._incoming.write(b"\x17\x03\x03\x00\x20" + bytes(32))  # here, and not looked at yet
    with pytest.raises(anyio.BrokenResourceError):
        await tls.send_eof()


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
    with pytest.raises(StopIteration) as stop:  # it ran through without once giving up control
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
    """Whoever closes then cuts a message: no clean end may follow it."""

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


# --- watching


async def test_a_hang_up_is_the_transports() -> None:
    tls, wire, _ = shaken(TLS13)
    wire.hangup.set()
    assert isinstance(await tls.wait_hangup(after_eof=True), ConnectionResetError)
    await tls.wait_hangup(after_eof=False)
    assert wire.calls == ["wait_hangup(True)", "wait_hangup(False)"]


@each_version
async def test_what_is_unread_before_the_end(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    data = random.Random(6).randbytes(100_000)
    wire.arrive(server.encrypt(data), server.close_notify(), ends=anyio.EndOfStream())
    for _ in range(3):
        assert tls.unread()
    assert len(wire.arriving) > 1  # it looks no further than it needs to
    assert await receive_all(tls, 1000) == data
    assert not tls.unread()


@each_version
async def test_nothing_is_unread_before_the_end(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.close_notify(), ends=anyio.EndOfStream())
    assert not tls.unread()
    assert not tls.unread()
    with pytest.raises(anyio.EndOfStream):
        await tls.receive()


@each_version
async def test_nothing_is_unread_before_a_truncation(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.encrypt(b"half")[:-1], ends=anyio.EndOfStream())
    for _ in range(2):
        with pytest.raises(anyio.BrokenResourceError, match="truncated"):
            tls.unread()


async def test_something_may_yet_come() -> None:
    tls, _, _ = shaken(TLS13)
    assert tls.unread()


@each_version
async def test_unread_keeps_the_order_of_much_that_was_decrypted(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    data = random.Random(7).randbytes(150_000)
    stream = server.encrypt(data)
    wire.arrive(stream[:16_000], stream[16_000:80_000], stream[80_000:], server.close_notify())
    assert tls.receive_nowait(1) == data[:1]
    # Decrypted by our end and not asked for yet, with more behind it.
    await tls.send_eof()
    assert len(tls._decrypted) > 60_000
    assert tls.unread()
    assert (data[:1] + await receive_all(tls) == data) is True  # no difference is to be shown


@each_version
@pytest.mark.parametrize("clean", [True, False], ids=["clean", "truncated"])
async def test_unread_while_a_receive_waits(version: ssl.TLSVersion, clean: bool) -> None:
    """What it takes from under the receive is the receive's, and so is the end behind it."""
    async with over_tcp(server_context(version)) as (tls, peer):
        received = b""
        error: BaseException | None = None

        async def read() -> None:
            nonlocal received, error
            try:
                while True:
                    received += await tls.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
                error = exc

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await all_blocked()
            poll = select.poll()
            poll.register(tls.extra(SocketAttribute.raw_socket), select.POLLRDHUP)
            blocking = peer.peer.sock
            blocking.send(peer.server.encrypt(b"last words"))
            if clean:
                blocking.send(peer.server.close_notify())
            peer.peer.fin()
            assert poll.poll(5000)
            assert tls.unread()  # before the receive gets to run
    assert received == b"last words"
    assert isinstance(error, anyio.EndOfStream if clean else anyio.BrokenResourceError)


# --- over other streams


@each_version
async def test_over_a_foreign_stream(version: ssl.TLSVersion) -> None:
    """Any byte stream will do, though it can do nothing without waiting."""
    async with listening() as listener:
        stream = await anyio.connect_tcp(*listener.address)
        peer = TLSPeer(await listener.accept(), server_context(version))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.shake)
            tls = await start_tls(
                ForeignTransport(stream),
                where="x",
                server_hostname=NAME,
                context=client_context(),
            )

        async def serve() -> None:
            assert await peer.receive_all() == b"x" * 100_000
            await peer.send(b"answer")
            await peer.peer.send(peer.server.close_notify())
            assert await peer.peer.receive() == b""

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            await tls.send(b"x" * 100_000)
            await tls.send_eof()
            assert await receive_all(tls) == b"answer"
            await tls.aclose()


@each_version
async def test_close_over_a_foreign_stream(version: ssl.TLSVersion) -> None:
    async with listening() as listener:
        stream = await anyio.connect_tcp(*listener.address)
        peer = TLSPeer(await listener.accept(), server_context(version))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.shake)
            tls = await start_tls(
                ForeignTransport(stream), where="x", server_hostname=NAME, context=client_context()
            )
        socket = socket_over(tls)
        await socket.opened
        await socket.send(b"all of it")
        await socket.close()
        assert socket.closed.exception() is None
        assert await peer.receive_all() == b"all of it"


class Failing(ByteStream):
    """A stream that fails in a way of its own."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await checkpoint()
        raise self.error

    async def send(self, item: bytes) -> None:
        await checkpoint()
        raise self.error

    async def send_eof(self) -> None:
        raise self.error

    async def aclose(self) -> None:
        await checkpoint()
        raise self.error


@pytest.mark.parametrize("error", [KeyError("so"), OSError(5, "so")], ids=repr)
@pytest.mark.parametrize("call", ["receive", "send", "send_eof"])
async def test_whatever_a_foreign_stream_raises_breaks_the_connection(
    call: str, error: Exception
) -> None:
    socket = socket_over(ForeignTransport(Failing(error)))
    await socket.opened
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "receive": socket.receive,
        "send": partial(socket.send, b"x"),
        "send_eof": socket.send_eof,
    }
    with pytest.raises(BrokenError, match="so") as caught:
        await calls[call]()
    assert type(caught.value.__cause__) is type(error)
    assert isinstance(await settle(socket.closed), BrokenError)


async def test_whatever_a_foreign_stream_raises_fails_the_handshake() -> None:
    with pytest.raises(TLSError, match="during the handshake") as caught:
        await start_tls(
            ForeignTransport(Failing(KeyError("so"))),
            where="x",
            server_hostname=NAME,
            context=client_context(),
        )
    assert isinstance(caught.value.__cause__, KeyError)


# --- other implementations


@each_version
@pytest.mark.parametrize("first", ["ours", "theirs"])
async def test_half_close_with_the_standard_library(version: ssl.TLSVersion, first: str) -> None:
    context = server_context(version)
    context.num_tickets = 2
    data = random.Random(8).randbytes(300_000)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            received = b""
            if first == "theirs":
                secure.sendall(data)
                secure.unwrap()  # waits for our close_notify
                return
            while chunk := secure.recv(65536):
                received += chunk
            secure.sendall(received)
            with suppress(OSError):
                secure.unwrap()

    with serving(serve) as address:
        host, _, port = address.partition(":")
        tls = await start_tls(
            dial((host, int(port))), where=address, server_hostname=NAME, context=client_context()
        )
        if first == "ours":
            await tls.send(data)
            await tls.send_eof()
            assert await receive_all(tls) == data
        else:
            assert await receive_all(tls) == data
            await tls.send_eof()
        await tls.aclose()


@pytest.mark.slow
async def test_key_updates_while_both_sides_send_all_they_can() -> None:
    """With little room in the kernel, so that all parts wait for each other all the time."""
    ours, theirs = random.Random(9).randbytes(2_000_000), random.Random(10).randbytes(2_000_000)
    received = bytearray()
    context = client_context(TLS13)
    with logging_secrets(context) as forger_of:
        async with over_tcp(server_context(TLS13), context=context, buffers=8192) as (tls, peer):
            forger = forger_of(peer.server)

            async def they_send() -> None:
                for n in range(0, len(theirs), 5000):
                    update = forger.key_update(answer=True)
                    await peer.peer.send(update + forger.encrypt(theirs[n : n + 5000]))
                await peer.peer.send(forger.close_notify())

            async def they_receive() -> None:
                # Each of our answers has to lie between the right two records.
                received.extend(await peer.receive_all())

            async def send() -> None:
                for n in range(0, len(ours), 100_000):
                    await tls.send(ours[n : n + 100_000])
                await tls.send_eof()

            async with anyio.create_task_group() as tasks:
                for call in (they_send, they_receive, send):
                    tasks.start_soon(call)
                assert await receive_all(tls) == theirs
    assert received == ours


# --- renegotiation


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
    """Of TLS 1.2, and only where the user's context allows it."""
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
    """A server that has asked for it, and a client that has begun it."""
    async with renegotiable(**options) as (peer, tls):
        await peer.ask()
        transport = tls._transport
        await anyio.wait_readable(transport.extra(SocketAttribute.raw_socket))
        # The server's HelloRequest, which is answered. Not by receive(), which might be in time
        # for what the server says next as well.
        hello = transport.receive_nowait(100)
        assert hello is not None
        tls._incoming.write(hello)
        assert tls._take(100) is None
        yield peer, tls


async def receives(peer: RenegotiatingPeer, data: bytes, answer: bytes = b"") -> None:
    """The peer gets all of that, and answers."""
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
    """Whichever reads for the engine, each gets what is its own."""
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
    """What is more waits in the kernel until somebody receives."""
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
        assert await tls.receive() == bytes(1000)  # and the send reads the rest
    assert tls._decrypted == bytes(500)


async def test_the_peer_ends_in_mid_renegotiation() -> None:
    async with renegotiating() as (peer, tls):
        with suppress(SSL.Error):
            peer.engine.shutdown()
        await peer._flush()
        for call in (partial(tls.send, b"two"), tls.send_eof):
            with pytest.raises(anyio.BrokenResourceError, match="negotiated again"):
                await call()


async def test_a_bare_end_in_mid_renegotiation_is_the_peers() -> None:
    async with renegotiating(require_close_notify=False) as (peer, tls):
        peer.peer.fin()
        for call in (partial(tls.send, b"two"), tls.send_eof):
            with pytest.raises(anyio.BrokenResourceError, match="negotiated again"):
                await call()
        with pytest.raises(anyio.BrokenResourceError, match="negotiated again"):
            await tls.receive()


async def test_a_send_in_mid_renegotiation_may_be_what_finds_that_it_fails() -> None:
    async with renegotiating() as (_, tls):
        tls._incoming.write(b"this is no record of TLS")
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await tls.send(b"two\n")
            assert isinstance(caught.value.__cause__, ssl.SSLError)


@pytest.mark.parametrize("end", [TLSTransport.send_eof, TLSTransport.aclose])
async def test_an_end_in_mid_renegotiation_gets_on_with_it_first(
    end: Callable[[TLSTransport], Coroutine[Any, Any, None]],
) -> None:
    async with renegotiating() as (peer, tls), anyio.create_task_group() as tasks:
        tasks.start_soon(end, tls)
        assert await peer.receive() == b""  # close_notify: a bare end would have raised


async def test_an_end_in_mid_renegotiation_leaves_what_is_received_to_a_receive() -> None:
    async with renegotiating() as (peer, tls), anyio.create_task_group() as tasks:
        await peer.send(b"the end\n")
        tasks.start_soon(tls.send_eof)
        assert await peer.receive() == b""
        assert await tls.receive() == b"the end\n"


async def test_to_finish_in_mid_renegotiation_takes_several_steps() -> None:
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


async def test_close_in_mid_renegotiation_gets_on_with_it_first() -> None:
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
async def test_close_gives_up_a_peer_that_does_not_get_on_with_a_renegotiation() -> None:
    async with renegotiating() as (_, tls):
        socket = opened_by(Made(tls), close_timeout=0.2)
        await socket.opened
        await socket.close()
        with pytest.raises(BrokenError, match="gave up waiting for the peer"):
            await socket.closed


async def test_letting_go_in_mid_renegotiation_is_no_clean_end() -> None:
    """OpenSSL can write no close_notify there, and what can be had without it is a reset."""
    async with renegotiating() as (peer, tls):
        assert not await tls.let_go()
        with pytest.raises(ConnectionResetError):
            await peer.receive()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere close() does not throw away")
async def test_our_end_finds_room_behind_a_peer_that_has_none_itself() -> None:
    """What it says is thrown away, or each would wait for the other to take something."""
    async with over_tcp(server_context(TLS13), buffers=4096) as (tls, peer):
        full = 0
        while full < 3:
            full = 0 if tls._transport.send_nowait(bytes(65536)) else full + 1
            await anyio.sleep(0.02)  # loopback moves it on in its own time

        async def talk_then_read() -> None:
            await peer.peer.send(bytes(2_000_000))
            await peer.peer.receive_all()
            peer.peer.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk_then_read)
            await all_blocked()
            while not await tls.finish():
                await tls.wait_room()


async def test_an_abort_ends_a_wait_in_mid_renegotiation() -> None:
    async with renegotiating() as (_, tls):

        async def send() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await tls.send(b"two\n")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await all_blocked()
            await tls.abort()


# --- no room for our end, where the peer has ended


@asynccontextmanager
async def lingering(version: ssl.TLSVersion) -> AsyncIterator[tuple[Socket, Wire, Server]]:
    """A socket that the peer's end is to close, whose own end finds no room."""
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
async def test_who_awaits_closed_ends_our_side_when_there_is_room(version: ssl.TLSVersion) -> None:
    async with lingering(version) as (socket, wire, server):
        for room in (0, 5, 1000):  # at first, there is not enough
            with anyio.CancelScope() as scope:  # which changes nothing
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
async def test_who_has_awaited_closed_before_ends_our_side_too(version: ssl.TLSVersion) -> None:
    """Begun while the connection was open, it turns to waiting for room."""
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
async def test_a_cancelled_close_waits_for_no_room(version: ssl.TLSVersion) -> None:
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


# --- an empty send


@pytest.mark.parametrize("secure", [False, True], ids=["TCP", "TLS"])
@pytest.mark.parametrize("size", [0, 10])
async def test_an_empty_send_asks_nobody_and_breaks_nothing(secure: bool, size: int) -> None:
    """The peer has reset the connection: what it had said can still be had, data or none."""
    async with over_tcp(server_context(TLS13)) as (tls, peer):
        socket = socket_over(tls if secure else tls._transport)
        await socket.opened
        if size:
            await (peer if secure else peer.peer).send(bytes(size))
        raw = tls.extra(SocketAttribute.raw_socket)
        peer.peer.rst()
        poll = select.poll()
        poll.register(raw, select.POLLRDHUP)
        assert poll.poll(5000)
        for item in (b"", bytearray(), memoryview(b"")):
            await socket.send(item)
        assert not socket.closed.done()
        if size:
            assert await socket.receive() == bytes(size)
        with pytest.raises(BrokenError):
            await socket.receive()


@pytest.mark.parametrize("secure", [False, True], ids=["TCP", "TLS"])
async def test_an_empty_send_is_a_checkpoint_and_sends_nothing(secure: bool) -> None:
    async with over_tcp(server_context(TLS13)) as (tls, peer):
        socket = socket_over(tls if secure else tls._transport)
        await socket.opened
        assert await cancelled_at_once(socket.send, b"")
        await socket.send(b"")
        await socket.close()
        with pytest.raises(ClosedError):
            await socket.send(b"")
        if secure:
            assert await peer.receive() == b""  # close_notify, and nothing before it
        else:
            assert await peer.peer.receive() == b""


async def test_what_need_not_wait_is_sent_in_a_plain_call() -> None:
    tls, wire, _, _ = forged()
    wire.gives_way = False
    assert tls.start_send(b"x") is None
    assert wire.take()
    wire.room = 0
    rest = tls.start_send(b"x")
    assert rest is not None
    with anyio.CancelScope() as scope:
        scope.cancel()
        await rest
    assert scope.cancelled_caught
    assert tls.torn
