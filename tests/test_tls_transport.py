"""TLS after its handshake: receiving, sending, and both at once."""

from __future__ import annotations

import random
import select
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import cycle, pairwise

import anyio
import pytest
import trio
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_connect import BrokenError, ClosedError, TLSError
from anyio_connect._tls import TLSTransport
from anyio_connect._tls_handshake import start_tls
from anyio_connect._transport import ForeignTransport
from support.peers import listening
from support.servers import serving
from support.sockets import needs_poll, settle, socket_over
from support.tls_acts import cancelled, cancelled_at_once, each_version, receive_all
from support.tls_peers import (
    NAME,
    TLS12,
    TLS13,
    TLSPeer,
    client_context,
    dial,
    forged,
    logging_secrets,
    over_tcp,
    server_context,
    shaken,
)
from support.turns import all_blocked

#: The most ciphertext, in bytes, that may wait to be sent because of one message.
BOUND = 2 * 65536


# --- receiving


# Everything is drawn before the test begins: the exception with which Hypothesis stops an example
# would stop the event loop.
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
async def test_any_pieces_of_ciphertext_give_the_same_data(
    version: ssl.TLSVersion,
    messages: list[bytes],
    long: bool,
    cuts: list[float],
    steps: list[tuple[str, int]],
) -> None:
    """The data depends neither on the pieces nor on how much each receive asks for.

    Some receives are cancelled, and some do not wait. Neither may lose data.
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
    """A receive returns the records that are here, up to one that is not full, or its limit."""
    tls, wire, server = shaken(version)
    data = random.Random(3).randbytes(5 * 16384 + 100)
    wire.arrive(server.encrypt(data), server.encrypt(b"more"))
    assert await tls.receive(1 << 18) == data
    assert await tls.receive(1 << 18) == b"more"
    wire.arrive(server.encrypt(data[:40_000]))
    assert await tls.receive(20_000) == data[:20_000]
    assert await tls.receive(20_000) == data[20_000 : 2 * 16384]  # the rest of a record
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
async def test_data_that_is_decrypted_already_is_received_without_waiting(
    version: ssl.TLSVersion,
) -> None:
    tls, wire, server = shaken(version)
    wire.arrive(server.encrypt(b"here"))
    assert tls.unread()
    with anyio.fail_after(5):
        assert await tls.receive() == b"here"


@pytest.mark.parametrize("max_bytes", [2**31 - 1, 2**31, 2**40])
async def test_a_receive_may_ask_for_any_amount(max_bytes: int) -> None:
    tls, wire, server = shaken(TLS13)
    wire.arrive(server.encrypt(b"x"))
    assert await tls.receive(max_bytes) == b"x"
    assert wire.asked <= 1 << 20  # asking the kernel for more would first allocate that memory


async def test_nothing_is_received_after_stop_receiving() -> None:
    async with over_tcp(server_context(TLS13)) as (tls, peer):
        await peer.send(b"decrypted already")
        assert await tls.receive(1) == b"d"
        tls.stop_receiving()
        with pytest.raises(anyio.ClosedResourceError):
            await tls.receive()


async def test_leave_is_that_of_the_transport_below() -> None:
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


async def test_no_more_ciphertext_is_taken_than_is_needed() -> None:
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
async def test_a_receive_lets_other_tasks_run(version: ssl.TLSVersion) -> None:
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
async def test_a_long_send_lets_other_tasks_run(version: ssl.TLSVersion) -> None:
    """It does so although there is always room."""
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


async def test_ciphertext_that_finds_no_room_is_kept_and_goes_out_first() -> None:
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


async def test_send_nowait_sends_nothing_in_the_middle_of_a_send() -> None:
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


async def test_send_nowait_fails_after_our_end() -> None:
    tls, _, _ = shaken(TLS13)
    await tls.send_eof()
    with pytest.raises(anyio.ClosedResourceError):
        tls.send_nowait(b"data")


# --- both directions at once


@pytest.mark.slow
@each_version
async def test_full_duplex_with_small_windows(version: ssl.TLSVersion) -> None:
    """The peer first sends everything and then reads everything, which needs full duplex."""
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


async def test_the_answer_to_a_key_update_waits_behind_a_send_in_flight() -> None:
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
    # OpenSSL makes the answer to a KeyUpdate when the next one comes in, or before it writes.
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
    # This holds even after ten bytes of the answer: the rest of the answer goes out first.
    assert not tls.torn
    wire.make_room()
    await tls.send(b"next")
    assert server.decrypt(wire.take()) == b"next"


async def test_a_send_cancelled_while_an_answer_goes_out_tears_the_connection() -> None:
    """Only the transport below knows how much of the answer it has sent."""
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
    assert most <= BOUND + 100 * 27  # and the answers to one arrival
    with pytest.raises(anyio.BrokenResourceError, match="KeyUpdate"):
        await tls.receive()


@pytest.mark.slow
async def test_nothing_piles_up_behind_a_send_that_was_cut_short() -> None:
    tls, wire, _, forger = forged()
    wire.make_room(0)
    await cancelled(tls.send, b"x")
    for _ in range(20):
        wire.arrive(*(forger.key_update(answer=True) for _ in range(100)))
        wire.arrive(forger.encrypt(b"x"))
        assert await tls.receive() == b"x"
    assert tls._outgoing.pending + len(tls._unsent) < 1000


class Counting:
    """Counts the ciphertext that an engine is given in one turn of the event loop."""

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
async def test_key_updates_do_not_keep_the_event_loop_busy_for_long(
    max_bytes: int, between: bytes
) -> None:
    """AnyIO's stream decrypts 65536 bytes in a turn. Here, it may be twice as much."""
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
async def test_a_flood_without_data_lets_other_tasks_run() -> None:
    """The peer sends records without data, as fast as we read."""
    tls, wire, _, forger = forged()
    ran = False

    class Flood(deque[bytes]):
        """Never empty until another task has run."""

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


# --- watching


async def test_a_hang_up_is_that_of_the_transport_below() -> None:
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


async def test_unread_is_true_while_data_may_still_come() -> None:
    tls, _, _ = shaken(TLS13)
    assert tls.unread()


@each_version
async def test_unread_keeps_the_order_of_much_decrypted_data(version: ssl.TLSVersion) -> None:
    tls, wire, server = shaken(version)
    data = random.Random(7).randbytes(150_000)
    stream = server.encrypt(data)
    wire.arrive(stream[:16_000], stream[16_000:80_000], stream[80_000:], server.close_notify())
    assert tls.receive_nowait(1) == data[:1]
    # send_eof() decrypts data that no receive has asked for, with more behind it.
    await tls.send_eof()
    assert len(tls._decrypted) > 60_000
    assert tls.unread()
    assert (
        data[:1] + await receive_all(tls) == data
    ) is True  # pytest need not show the difference


@needs_poll
@each_version
@pytest.mark.parametrize("clean", [True, False], ids=["clean", "truncated"])
async def test_unread_while_a_receive_waits(version: ssl.TLSVersion, clean: bool) -> None:
    """The receive still gets the data that unread() decrypts, and the end behind the data."""
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
    """Any byte stream will do, although it can do nothing without waiting."""
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
    """A stream of which every call raises the given error."""

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
    """The kernel has little room, so all tasks wait for each other all the time."""
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


# --- an empty send


@needs_poll
@pytest.mark.parametrize("secure", [False, True], ids=["TCP", "TLS"])
@pytest.mark.parametrize("size", [0, 10])
async def test_an_empty_send_does_not_notice_a_reset_and_breaks_nothing(
    secure: bool, size: int
) -> None:
    """The peer has reset the connection. The data before the reset can still be received."""
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


async def test_start_send_sends_in_a_plain_call_if_there_is_room() -> None:
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
