"""receive_exactly(), receive_until(), receive_into() and is_readable(), and what they keep."""

from __future__ import annotations

import array
import gc
import select
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_connect import (
    BrokenError,
    ClosedError,
    DelimiterNotFoundError,
    IncompleteReadError,
    RefusedError,
    Socket,
    StartTLSError,
    connect,
)
from support.cancelling import CancelAt
from support.peers import listening, refusing_address
from support.remotes import Over, over
from support.sockets import (
    Slow,
    arrived,
    connected,
    dialled,
    needs_poll,
    opened_by,
    settle,
    socket_over,
    socket_pair,
)
from support.tls_peers import (
    NAME,
    TLS12,
    TLS13,
    RenegotiatingPeer,
    client_context,
    over_tcp,
    server_context,
    shaken,
)
from support.turns import all_blocked

Act: TypeAlias = Callable[[Socket], Awaitable[Any]]

#: Each example makes a connection, and each test runs on every event loop: fewer are enough.
fewer = settings(max_examples=settings().max_examples * 3 // 10)


def kept(socket: Socket) -> int:
    """How many bytes were taken from the transport and are not received yet."""
    return len(socket._connection._kept)


# --- against a model


@dataclass(frozen=True)
class Read:
    """A call. It may first be made and cancelled at some checkpoint, and then once more."""

    kind: str
    count: int
    delimiter: bytes = b""
    cancelled_at: int | None = None
    after: bool = False

    async def make(self, socket: Socket) -> bytes:
        if self.kind == "into":
            buffer = bytearray(max(1, self.count))
            return bytes(buffer[: await socket.receive_into(buffer)])
        if self.kind == "exactly":
            return await socket.receive_exactly(self.count)
        if self.kind == "until":
            return await socket.receive_until(self.delimiter, self.count + len(self.delimiter))
        return await socket.receive(max(1, self.count))

    def check(self, left: bytes, outcome: bytes | type[Exception]) -> int:
        """Check the outcome against the data that is left; return how much the call took."""
        if self.kind == "exactly":
            whole = len(left) >= self.count
            assert outcome == (left[: self.count] if whole else IncompleteReadError)
            return self.count if whole else 0
        if self.kind == "until":
            most = self.count + len(self.delimiter)
            at = left.find(self.delimiter, 0, most)
            if at >= 0:
                assert outcome == left[:at]
                return at + len(self.delimiter)
            missing = DelimiterNotFoundError if len(left) >= most else IncompleteReadError
            assert outcome is missing
            return 0
        if not left:
            assert outcome is anyio.EndOfStream
            return 0
        assert isinstance(outcome, bytes)
        assert outcome
        assert outcome == left[: max(1, self.count)][: len(outcome)]
        return len(outcome)


READS = st.builds(
    Read,
    st.sampled_from(["receive", "into", "exactly", "until", "until"]),
    st.one_of(st.integers(0, 8), st.sampled_from([64, 70_000])),
    st.sampled_from([b"\n", b"\r\n", b"aab", b"ab" * 40]),
    st.one_of(st.none(), st.none(), st.integers(0, 4)),
    st.booleans(),
)
#: Pieces made of the bytes of the delimiters, and some that are longer than one read takes.
PIECES = st.lists(
    st.one_of(
        st.text("ab\r\n", max_size=12).map(str.encode),
        st.builds(lambda piece: piece * 30_000, st.sampled_from([b"abc", b"\na"])),
    ),
    max_size=8,
)


@over
@given(pieces=PIECES, reads=st.lists(READS, max_size=12))
@fewer
async def test_reads_of_every_kind_can_be_mixed(
    over: Over, pieces: list[bytes], reads: list[Read]
) -> None:
    left = b"".join(pieces)
    async with over(half_open=True) as (socket, remote), anyio.create_task_group() as group:

        async def they_send() -> None:
            for piece in pieces:
                await remote.send(piece)
            await remote.fin()

        group.start_soon(they_send)
        for read in [*reads, Read("receive", 70_000)]:
            if read.cancelled_at is not None:
                left = left[await cancelled(socket, read, left) :]
            most = max(kept(socket), read.count + len(read.delimiter))
            outcome: bytes | type[Exception]
            try:
                outcome = await read.make(socket)
            except (anyio.EndOfStream, IncompleteReadError, DelimiterNotFoundError) as exc:
                outcome = type(exc)
            left = left[read.check(left, outcome) :]
            assert kept(socket) <= min(most, len(left))
        rest = b""
        while left[len(rest) :]:
            rest += await socket.receive()
        assert rest == left
        for call in (socket.receive, partial(socket.receive_into, bytearray(1))):
            with pytest.raises(anyio.EndOfStream):
                await call()
        with pytest.raises(IncompleteReadError, match="after 0 of 1 bytes"):
            await socket.receive_exactly(1)
        assert await socket.receive_exactly(0) == b""


async def cancelled(socket: Socket, read: Read, left: bytes) -> int:
    """Make the call and cancel it; return how much it took, if it completed nevertheless."""
    taken = 0
    with anyio.CancelScope() as scope:
        moment: Any = "after" if read.after else "before"
        assert read.cancelled_at is not None
        call = CancelAt(read.cancelled_at, moment, scope, read.make(socket))
        try:
            taken = read.check(left, await call)
        except (anyio.EndOfStream, IncompleteReadError, DelimiterNotFoundError) as exc:
            read.check(left, type(exc))
    return taken


# --- what is read ahead


async def test_only_receive_until_reads_ahead() -> None:
    async with connected(half_open=True) as (socket, peer):
        await peer.send(b"0123456789\nrest")
        arrived(socket)
        assert await socket.receive_exactly(2) == b"01"
        assert await socket.receive(2) == b"23"
        assert kept(socket) == 0
        assert await socket.receive_until(b"\n", 100) == b"456789"
        assert kept(socket) == len("rest")
        assert await socket.receive_exactly(1) == b"r"
        buffer = bytearray(b"....")
        assert await socket.receive_into(memoryview(buffer)[1:3]) == 2
        assert buffer == b".es."
        assert await socket.receive() == b"t"


async def test_no_more_than_max_bytes_is_read_ahead() -> None:
    async with connected(half_open=True) as (socket, peer):
        await peer.send(b"12345678\n" + bytes(1000))
        arrived(socket)
        for _ in range(2):
            with pytest.raises(DelimiterNotFoundError, match="within the first 8 bytes"):
                await socket.receive_until(b"\n", 8)
            assert kept(socket) == 8
        assert await socket.receive_until(b"\n", 9) == b"12345678"
        assert kept(socket) == 0


async def test_a_delimiter_that_ends_behind_max_bytes_is_not_found_even_if_it_is_kept() -> None:
    async with connected(half_open=True) as (socket, peer):
        await peer.send(b"a\n12345678\r\n")
        arrived(socket)
        assert await socket.receive_until(b"\n", 100) == b"a"
        assert kept(socket) == 10
        with pytest.raises(DelimiterNotFoundError):
            await socket.receive_until(b"\r\n", 9)
        assert await socket.receive_until(b"\r\n", 10) == b"12345678"


@needs_poll
async def test_the_end_comes_after_what_was_read_ahead() -> None:
    """The peer's end does not end our side any earlier."""
    async with connected(half_open=False) as (socket, peer):
        await peer.send(b"line\nrest")
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        assert await socket.receive_until(b"\n", 100) == b"line"
        async with anyio.create_task_group() as group:
            group.start_soon(settle, socket.closed)
            await all_blocked()
            assert not socket.closed.done()
            await socket.send(b"still open")
            assert await socket.receive() == b"rest"
            with pytest.raises(anyio.EndOfStream):
                await socket.receive()
        assert await peer.receive_all() == b"still open"
        assert socket.closed.result() is None


@needs_poll
async def test_closed_settles_once_what_was_read_ahead_is_received() -> None:
    async with connected(half_open=False) as (socket, peer):
        await peer.send(b"line\nrest")
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        assert await socket.receive_until(b"\n", 100) == b"line"
        async with anyio.create_task_group() as group:
            group.start_soon(settle, socket.closed)
            await all_blocked()
            assert await socket.receive() == b"rest"
        assert socket.closed.result() is None  # although no call has received the end


@needs_poll
@pytest.mark.parametrize("how", ["exactly", "until"])
async def test_data_before_the_end_is_kept_by_an_incomplete_read(how: str) -> None:
    async with connected(half_open=False) as (socket, peer):
        await peer.send(b"short")
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        for _ in range(2):
            with pytest.raises(IncompleteReadError, match=r"after 5 .*: receive\(\)") as caught:
                await CALLS[how](socket)
            assert isinstance(caught.value, anyio.IncompleteRead)
            assert isinstance(caught.value.__cause__, anyio.EndOfStream)
        await socket.send(b"an answer")  # no call has raised EndOfStream yet
        assert await socket.receive() == b"short"
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        assert await peer.receive_all() == b"an answer"


@pytest.mark.parametrize("how", ["exactly", "until"])
async def test_data_before_a_reset_is_kept_by_an_incomplete_read(how: str) -> None:
    async with connected(half_open=True) as (socket, peer):
        async with anyio.create_task_group() as group:
            broken: list[BaseException] = []

            async def read() -> None:
                try:
                    await CALLS[how](socket)
                except BrokenError as exc:
                    broken.append(exc)

            group.start_soon(read)
            await peer.send(b"short")
            while not kept(socket):
                await checkpoint()
            peer.rst()
        (error,) = broken
        assert isinstance(error.__cause__, ConnectionResetError)
        assert isinstance(socket.closed.exception(), BrokenError)
        with pytest.raises(BrokenError):
            await socket.send(b"x")
        assert socket.is_readable()
        assert await socket.receive_exactly(2) == b"sh"
        assert await socket.receive() == b"ort"
        for _ in range(2):
            with pytest.raises(BrokenError):
                await socket.receive()


@pytest.mark.parametrize("version", [TLS12, TLS13])
async def test_a_connection_that_was_cut_off_is_dropped_although_data_is_kept(
    version: Any,
) -> None:
    """Its slot is free by then, so the connection must not go on."""
    async with over_tcp(server_context(version)) as (transport, peer):
        socket = socket_over(transport, half_open=True)
        await peer.send(b"short")
        peer.peer.fin()
        with pytest.raises(BrokenError, match="close_notify"):
            await socket.receive_until(b"\n", 100)
        with pytest.raises(ConnectionResetError):
            await peer.peer.receive_all()
        assert await socket.receive() == b"short"
        for _ in range(2):
            with pytest.raises(BrokenError, match="close_notify"):
                await socket.receive()


@needs_poll
async def test_a_send_that_finds_a_reset_loses_no_kept_data() -> None:
    async with connected(half_open=True) as (socket, peer):
        await peer.send(b"line\nrest")
        arrived(socket)
        assert await socket.receive_until(b"\n", 100) == b"line"
        peer.rst()
        arrived(socket, select.POLLERR)
        with pytest.raises(BrokenError):
            await socket.send(b"x")
        assert await socket.receive() == b"rest"
        with pytest.raises(BrokenError):
            await socket.receive()


@needs_poll
async def test_closed_reports_a_reset_and_loses_no_kept_data() -> None:
    async with connected(half_open=True) as (socket, peer):
        await peer.send(b"line\nrest")
        arrived(socket)
        assert await socket.receive_until(b"\n", 100) == b"line"
        peer.rst()
        arrived(socket, select.POLLERR)
        assert isinstance(await settle(socket.closed), BrokenError)
        assert await socket.receive() == b"rest"
        with pytest.raises(BrokenError):
            await socket.receive()


@needs_poll
async def test_a_pipe_begins_with_what_was_read_ahead() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs, connected() as (source, sender):
        await sender.send(b"line\nrest")
        sender.fin()
        arrived(source, select.POLLRDHUP)
        assert await source.receive_until(b"\n", 100) == b"line"
        await source.readable.pipe_to(ours)
        assert await theirs.receive_exactly(4) == b"rest"
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()


@needs_poll
async def test_iterating_begins_with_what_was_read_ahead() -> None:
    async with connected() as (socket, peer):
        await peer.send(b"line\nrest")
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        assert await socket.receive_until(b"\n", 100) == b"line"
        assert [chunk async for chunk in socket.readable] == [b"rest"]


async def test_start_tls_refuses_while_anything_is_kept() -> None:
    async with listening() as listener:
        socket = connect(listener.address, secure_transport="starttls")
        async with socket:
            peer = await listener.accept()
            await peer.send(b"220 ready\r\n250 injected\r\n")
            arrived(socket)
            assert await socket.receive_until(b"\r\n", 512) == b"220 ready"
            with pytest.raises(StartTLSError, match="14 bytes that came without TLS"):
                socket.start_tls()
            assert not socket.upgraded
            assert await socket.receive_until(b"\r\n", 512) == b"250 injected"
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(peer.send, b"half")
                    call = CancelAt(2, "before", scope, socket.receive_exactly(100))
                    await call
            assert kept(socket) == 4
            with pytest.raises(StartTLSError):
                socket.start_tls()


async def test_closing_the_reading_half_discards_what_is_kept() -> None:
    async with connected(half_open=True) as (socket, peer):
        await peer.send(b"line\nrest")
        arrived(socket)
        assert await socket.receive_until(b"\n", 100) == b"line"
        assert kept(socket) == 4
        await socket.readable.aclose()
        assert kept(socket) == 0
        with pytest.raises(ClosedError):
            await socket.receive()


@pytest.mark.parametrize("call", ["receive", "into", "exactly", "until", "nothing"])
async def test_receiving_what_is_kept_is_a_checkpoint(call: str) -> None:
    """A cancellation that is due is raised before anything is taken."""
    calls: dict[str, Act] = {**CALLS, "nothing": lambda socket: socket.receive_exactly(0)}
    async with connected(half_open=True) as (socket, peer):
        await peer.send(b"line\n12345678\n")
        arrived(socket)
        assert await socket.receive_until(b"\n", 100) == b"line"
        if call == "nothing":
            assert await socket.receive() == b"12345678\n"
        before = kept(socket)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await calls[call](socket)
        assert scope.cancelled_caught
        assert kept(socket) == before
        assert await calls[call](socket) in (b"12345678\n", 9, b"12345678", b"")


# --- one receive at a time

CALLS: dict[str, Act] = {
    "receive": lambda socket: socket.receive(),
    "into": lambda socket: socket.receive_into(bytearray(9)),
    "exactly": lambda socket: socket.receive_exactly(9),
    "until": lambda socket: socket.receive_until(b"\n", 9),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.mark.parametrize("first", ["exactly", "until"])
@each_call
async def test_a_second_receive_is_refused_while_one_is_in_flight(first: str, call: Act) -> None:
    """It is also refused after a part of the data for the first one has arrived."""
    async with connected() as (socket, peer), anyio.create_task_group() as group:
        received: list[bytes] = []
        done = anyio.Event()

        async def read() -> None:
            received.append(await CALLS[first](socket))
            done.set()

        group.start_soon(read)
        for come, piece in ((2, b"01"), (5, b"234")):
            await peer.send(piece)
            while kept(socket) < come:
                await checkpoint()
            with pytest.raises(anyio.BusyResourceError):
                await call(socket)
        await peer.send(b"5678" if first == "exactly" else b"\n5678")
        await done.wait()
        assert received == [b"012345678" if first == "exactly" else b"01234"]


@each_call
@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda socket: socket.close(), ClosedError),
        (lambda socket: socket.readable.aclose(), ClosedError),
        (lambda socket: socket.writable.abort(), BrokenError),
    ],
    ids=["close", "aclose", "abort"],
)
@over
async def test_a_receive_in_flight_is_woken(
    over: Over, act: Act, error: type[Exception], call: Act
) -> None:
    async with over(half_open=True) as (socket, remote), anyio.create_task_group() as group:
        await socket.opened

        async def read() -> None:
            with pytest.raises(error):
                await call(socket)

        if call in (CALLS["exactly"], CALLS["until"]):
            await remote.send(b"part")
        group.start_soon(read)
        await all_blocked()
        await act(socket)
        await all_blocked()
        assert kept(socket) == 0
        with pytest.raises(error):
            await call(socket)


@pytest.mark.parametrize("how", ["exactly", "until"])
async def test_close_at_the_last_checkpoint_of_an_incomplete_read(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The close has discarded what was kept, so no error may say that it can be received."""
    async with connected(half_open=True) as (socket, peer):
        closed = False

        async def others_run() -> None:
            nonlocal closed
            if not closed:
                closed = True
                await socket.close()
            await checkpoint()

        await peer.send(b"part")
        peer.fin()
        monkeypatch.setattr("anyio_connect._connection.checkpoint", others_run)
        with pytest.raises(ClosedError):
            await CALLS[how](socket)
        assert closed


@each_call
async def test_a_call_makes_the_connection_or_says_why_it_cannot(call: Act) -> None:
    async with listening() as listener, connect(listener.address) as other:
        peer = await listener.accept()
        peer.fin()
        await other.closed
        async with anyio.create_task_group() as group:
            socket = connect(listener.address)

            async def serve() -> None:
                await (await listener.accept()).send(b"01234567\n")

            group.start_soon(serve)
            assert await call(socket)
        await socket.close()
    socket = connect(refusing_address())
    for _ in range(2):
        with pytest.raises(RefusedError):
            await call(socket)


# --- bad arguments


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        (lambda s: s.receive_exactly(-1), ValueError, "nbytes must be at least 0, not -1"),
        (lambda s: s.receive_exactly(1.0), TypeError, "nbytes must be an int, not float"),
        (lambda s: s.receive_until(b"", 1), ValueError, "delimiter must have at least 1 byte"),
        (lambda s: s.receive_until(b"\r\n", 1), ValueError, "at most max_bytes=1, but has 2"),
        (lambda s: s.receive_until(b"\n", 0), ValueError, "max_bytes must be at least 1"),
        (lambda s: s.receive_until(b"\n", None), TypeError, "max_bytes must be an int"),
        (lambda s: s.receive_until("\n", 1), TypeError, "bytes, not str: encode it first"),
        (lambda s: s.receive_until(10, 1), TypeError, "delimiter must be bytes, not int"),
        (lambda s: s.receive_into(b"bytes"), TypeError, "not a read-only bytes"),
        (lambda s: s.receive_into(bytearray()), ValueError, "room for at least 1 byte"),
        (lambda s: s.receive_into(memoryview(bytearray(9))[::2]), TypeError, "a strided"),
        (lambda s: s.receive_into(5), TypeError, "not int"),
        (lambda s: s.receive_into("text"), TypeError, "not str"),
    ],
)
async def test_bad_input_raises_before_anything_is_done(
    call: Act, error: type[Exception], why: str
) -> None:
    socket = connect(refusing_address())
    with pytest.raises(error, match=why):
        await call(socket)
    assert not socket.opened.done()
    await socket.close()


# --- receive_into()


@over
async def test_receive_into_any_memory(over: Over) -> None:
    async with over(half_open=True) as (socket, remote):
        await socket.opened
        numbers = array.array("I", bytes(8))
        async with anyio.create_task_group() as group:
            group.start_soon(remote.send, b"\1\2\3\4\5\6\7\x08")
            received = 0
            while received < 8:
                view = memoryview(numbers).cast("B")[received:]
                received += await socket.receive_into(view)
        assert numbers.tobytes() == b"\1\2\3\4\5\6\7\x08"
        async with anyio.create_task_group() as group:
            group.start_soon(remote.send, b"!")
            assert await socket.receive_into(memoryview(numbers).cast("B", (2, 4))) == 1
        assert numbers.tobytes()[:2] == b"!\2"


@over
async def test_receive_into_does_not_hold_on_to_the_memory(over: Over) -> None:
    async with over(half_open=True) as (socket, remote), anyio.create_task_group() as group:
        await socket.opened
        buffer = bytearray(4)
        group.start_soon(remote.send, b"abc")
        await socket.receive_into(buffer)
        buffer.append(0)  # this raises BufferError while the memory is in use
        with anyio.CancelScope() as scope:
            scope.cancel()
            await socket.receive_into(buffer)
        buffer.append(0)
        group.start_soon(remote.fin)
        with pytest.raises(anyio.EndOfStream) as caught:
            await socket.receive_into(buffer)
        buffer.append(0)
        assert caught.value.__traceback__ is not None
        never_begun = socket.receive_into(buffer)  # as in a task that is cancelled before it runs
        never_begun.close()
        buffer.append(0)


@pytest.mark.parametrize("version", [TLS12, TLS13])
async def test_receive_into_takes_many_records_at_once(version: Any) -> None:
    tls, wire, server = shaken(version)
    data = bytes(range(256)) * 300
    wire.arrive(b"".join(server.encrypt(data[at : at + 16384]) for at in range(0, 76800, 16384)))
    buffer = bytearray(len(data))
    view = memoryview(buffer)
    count = await tls.receive_into(view)
    assert count > 16384
    while count < len(data):
        count += await tls.receive_into(view[count:])
    assert buffer == data


# --- is_readable()


@needs_poll
async def test_is_readable_over_tcp() -> None:
    async with connected(half_open=True) as (socket, peer):
        assert not socket.is_readable()
        await peer.send(b"x")
        arrived(socket)
        assert socket.is_readable()
        assert socket.readable.is_readable()
        assert await socket.receive() == b"x"
        assert not socket.is_readable()
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        assert socket.is_readable()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        assert socket.is_readable()


@needs_poll
async def test_is_readable_finds_a_reset_and_leaves_its_error_to_receive() -> None:
    async with connected(half_open=True) as (socket, peer):
        peer.rst()
        arrived(socket, select.POLLERR)
        for _ in range(2):
            assert socket.is_readable()
        with pytest.raises(BrokenError) as caught:
            await socket.receive()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert socket.is_readable()


@pytest.mark.parametrize("version", [TLS12, TLS13])
async def test_is_readable_over_tls_means_data(version: Any) -> None:
    context = server_context(version)
    context.num_tickets = 0
    async with over_tcp(context) as (transport, peer):
        socket = socket_over(transport, half_open=True)
        async with socket:
            assert not socket.is_readable()
            record = peer.server.encrypt(b"a record")
            await peer.peer.send(record[:-1])
            arrived(socket)
            assert not socket.is_readable()  # the record is incomplete
            await peer.peer.send(record[-1:])
            arrived(socket)
            for _ in range(2):
                assert socket.is_readable()
            assert await socket.receive(2) == b"a "
            assert socket.is_readable()
            assert await socket.receive() == b"record"
            assert not socket.is_readable()
            await peer.peer.send(peer.server.close_notify())
            arrived(socket)
            assert socket.is_readable()
            with pytest.raises(anyio.EndOfStream):
                await socket.receive()


async def test_is_readable_does_not_take_what_a_send_waits_for() -> None:
    """When the peer renegotiates, a send has to receive before it can go on."""
    async with listening() as listener, anyio.create_task_group() as group:
        context = client_context(TLS12)
        socket = connect(listener.address, secure_transport="on", sni=NAME, ssl_context=context)
        peer: list[RenegotiatingPeer] = []

        async def serve() -> None:
            peer.append(RenegotiatingPeer(await listener.accept()))
            await peer[0].shake()

        group.start_soon(serve)
        await socket.opened
        await all_blocked()
        await peer[0].ask()
        arrived(socket)
        group.start_soon(socket.send, b"behind it")
        await all_blocked()
        assert socket._connection.transport is not None
        for _ in range(3):
            assert not socket.is_readable()
            await all_blocked()
        assert await peer[0].receive() == b"behind it"
        await socket.writable.abort()  # close() would wait for the renegotiation


async def test_is_readable_takes_nothing_while_another_task_reads() -> None:
    tls, wire, server = shaken(TLS12)
    wire.arrive(server.encrypt(b"data"))
    tls._reading = True  # as while a send has to receive
    assert not tls.is_readable()
    assert wire.arriving
    tls._reading = False
    assert tls.is_readable()
    assert await tls.receive() == b"data"


async def test_is_readable_of_what_is_kept() -> None:
    async with connected(half_open=True) as (socket, peer):
        await peer.send(b"line\nrest")
        arrived(socket)
        assert await socket.receive_until(b"\n", 100) == b"line"
        assert socket.is_readable()
        assert await socket.receive() == b"rest"
        assert not socket.is_readable()


async def test_is_readable_before_opening_and_after_closing() -> None:
    async with listening() as listener:
        opener = Slow(dialled(listener))
        opener.stop.set()
        socket = opened_by(opener)
        assert not socket.is_readable()
        async with anyio.create_task_group() as group:
            group.start_soon(settle, socket.opened)
            await all_blocked()
            assert not socket.is_readable()
            opener.go_on.set()
        assert not socket.is_readable()
        async with anyio.create_task_group() as group:
            group.start_soon(socket.receive)
            await all_blocked()
            assert socket.is_readable()  # a second receive would raise at once
            with pytest.raises(anyio.BusyResourceError):
                await socket.receive()
            group.cancel_scope.cancel()
        assert not socket.is_readable()
        await socket.readable.aclose()
        assert socket.is_readable()
        await socket.close()
        assert socket.is_readable()
    refused = connect(refusing_address())
    with pytest.raises(RefusedError):
        await refused.opened
    assert refused.is_readable()


async def test_a_receive_does_not_wait_for_what_is_readable(anyio_backend_name: str) -> None:
    """If a receive took everything, the next one waits first, but not after is_readable()."""
    async with connected(half_open=True) as (socket, peer):
        for _ in range(3):
            await peer.send(b"x")
            arrived(socket)
            assert socket.is_readable()
            call = CancelAt(99, "before", anyio.CancelScope(), socket.receive())
            assert await call == b"x"
            assert call.count <= (2 if anyio_backend_name == "trio" else 0)


# --- nothing is kept alive


@needs_poll
async def test_an_incomplete_read_leaves_no_cycle() -> None:
    async with connected(half_open=True) as (socket, peer):
        peer.fin()
        arrived(socket, select.POLLRDHUP)
        gc.collect()
        gc.disable()
        try:
            for call in (CALLS["exactly"], CALLS["until"]):
                with suppress(IncompleteReadError):
                    await call(socket)
            assert gc.collect() == 0
        finally:
            gc.enable()
