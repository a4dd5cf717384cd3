"""pipe_to(): what the end of one side means for the other, and when it is noticed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.abc import ByteSendStream, ByteStream, SocketAttribute
from anyio.streams.stapled import StapledByteStream
from anyio.streams.tls import TLSStream

from anyio_connect import BrokenError, ClosedError, ConnectError, RefusedError, Socket, connect
from anyio_connect._lifecycle import Inbound, Outbound
from anyio_connect._transport import ForeignTransport
from support.peers import Peer, listening, refusing_address
from support.sockets import BIG, Slow, arrived, connected, opened_by, settle, socket_pair, stuck
from support.tls_peers import NAME, client_context, server_context
from support.turns import all_blocked

Act = Callable[[Socket, Peer], Awaitable[object]]


class Piping:
    """A pipe in its own task, and its result."""

    def __init__(self, source: Socket, destination: Any, **prevented: bool) -> None:
        self.source = source
        self.destination = destination
        self.prevented = prevented
        self.over = anyio.Event()
        self.error: BaseException | None = None

    async def __call__(self) -> None:
        try:
            await self.source.readable.pipe_to(self.destination, **self.prevented)
        except Exception as exc:  # noqa: BLE001  # wait() returns it
            self.error = exc
        self.over.set()

    async def wait(self) -> BaseException | None:
        with anyio.fail_after(5):
            await self.over.wait()
        return self.error


async def end(sink: Socket, _: Peer) -> None:
    await sink.send_eof()


async def end_gracefully(sink: Socket, _: Peer) -> None:
    await sink.writable.aclose()


async def close(sink: Socket, _: Peer) -> None:
    await sink.close()


async def close_by_force(sink: Socket, _: Peer) -> None:
    await anyio.aclose_forcefully(sink)


async def abort(sink: Socket, _: Peer) -> None:
    await sink.writable.abort()


async def hear_the_end(sink: Socket, receiver: Peer) -> None:
    """Receive the peer's end. Without ``allow_half_open``, that ends our side too."""
    receiver.fin()
    with pytest.raises(anyio.EndOfStream):
        await sink.receive()


async def hear_a_reset(sink: Socket, receiver: Peer) -> None:
    receiver.rst()
    with pytest.raises(BrokenError):
        await sink.receive()


async def watch_a_reset(sink: Socket, receiver: Peer) -> None:
    receiver.rst()
    assert isinstance(await settle(sink.closed), BrokenError)


#: Ways in which a destination may end, and the error of a send after that.
ENDS: list[tuple[Act, type[Exception]]] = [
    (end, ClosedError),
    (end_gracefully, ClosedError),
    (close, ClosedError),
    (close_by_force, ClosedError),
    (abort, BrokenError),
    (hear_the_end, ClosedError),
    (hear_a_reset, BrokenError),
    (watch_a_reset, BrokenError),
]
each_end = pytest.mark.parametrize(("act", "error"), ENDS, ids=[act.__name__ for act, _ in ENDS])


# --- the destination is over


@each_end
async def test_a_destination_that_is_over_is_noticed_at_once(
    act: Act, error: type[Exception]
) -> None:
    async with connected() as (source, sender), connected() as (sink, receiver):
        await act(sink, receiver)
        with anyio.fail_after(5), pytest.raises(error):
            await source.readable.pipe_to(sink)
        with pytest.raises(ClosedError):
            await source.receive()
        await source.send(b"the other half goes on")
        assert await sender.receive() == b"the other half goes on"


@each_end
async def test_a_destination_that_is_over_takes_nothing_from_the_source(
    act: Act, error: type[Exception]
) -> None:
    async with connected() as (source, sender), connected() as (sink, receiver):
        await sender.send(b"whole")
        arrived(source)
        await act(sink, receiver)
        with pytest.raises(error):
            await source.readable.pipe_to(sink, prevent_cancel=True)
        assert await source.receive() == b"whole"


@each_end
async def test_a_destination_that_ends_is_noticed_while_the_source_is_idle(
    act: Act, error: type[Exception]
) -> None:
    async with (
        connected() as (source, sender),
        connected() as (sink, receiver),
        anyio.create_task_group() as group,
    ):
        piping = Piping(source, sink.writable, prevent_cancel=True)
        group.start_soon(piping)
        await sender.send(b"before")
        assert await receiver.receive() == b"before"
        await all_blocked()
        await act(sink, receiver)
        assert isinstance(await piping.wait(), error)
        await sender.send(b"after")
        assert await source.receive() == b"after"


@each_end
async def test_the_remaining_pipe_of_several_notices_the_end(
    act: Act, error: type[Exception]
) -> None:
    """It does so although the pipes that began before and after it are over."""
    async with (
        connected() as (one, peer_of_one),
        connected() as (two, _),
        connected() as (three, peer_of_three),
        connected() as (sink, receiver),
        anyio.create_task_group() as group,
    ):
        pipes = [Piping(source, sink.writable, prevent_close=True) for source in (one, two, three)]
        for pipe in pipes:
            group.start_soon(pipe)
            await all_blocked()
        for peer, pipe in ((peer_of_one, pipes[0]), (peer_of_three, pipes[2])):
            peer.fin()
            assert await pipe.wait() is None
        await act(sink, receiver)
        assert isinstance(await pipes[1].wait(), error)


@each_end
async def test_data_that_arrives_in_the_turn_of_the_end_can_still_be_received(
    act: Act, error: type[Exception]
) -> None:
    async with (
        connected() as (source, sender),
        connected() as (sink, receiver),
        anyio.create_task_group() as group,
    ):
        piping = Piping(source, sink.writable, prevent_cancel=True)
        group.start_soon(piping)
        await all_blocked()
        await act(sink, receiver)
        sender.sock.send(b"no turn of the loop in between")
        assert isinstance(await piping.wait(), error)
        assert await source.receive() == b"no turn of the loop in between"


@pytest.mark.parametrize("first", ["end", "data"])
async def test_data_that_arrives_together_with_the_end_is_not_lost(first: str) -> None:
    """The event loop wakes two tasks in one turn: the pipe, and the one that receives the end."""
    async with (
        connected() as (source, sender),
        connected() as (sink, receiver),
        anyio.create_task_group() as group,
    ):

        async def hear() -> None:
            with pytest.raises(anyio.EndOfStream):
                await sink.receive()

        piping = Piping(source, sink, prevent_cancel=True)
        group.start_soon(piping)
        group.start_soon(hear)
        await all_blocked()
        if first == "data":
            sender.sock.send(b"precious")
        receiver.fin()
        if first == "end":
            sender.sock.send(b"precious")
        assert isinstance(await piping.wait(), ClosedError)
        got = await receiver.receive_all()
        if not got:
            got = await source.receive()
        assert got == b"precious"


async def test_closing_the_destination_lets_the_current_chunk_arrive() -> None:
    async with (
        connected() as (source, sender),
        connected() as (sink, receiver),
        anyio.create_task_group() as group,
    ):
        piping = Piping(source, sink)
        group.start_soon(piping)
        group.start_soon(sender.send, bytes(BIG))
        await stuck(sink)
        group.start_soon(sink.close)
        await all_blocked()
        assert not piping.over.is_set()
        got = await receiver.receive_all()
        assert got
        assert isinstance(await piping.wait(), ClosedError)
        assert source._connection.state.inbound is Inbound.CANCELLED
        group.cancel_scope.cancel()


async def test_a_destination_that_cannot_be_connected() -> None:
    async with connected() as (source, sender), anyio.create_task_group() as group:
        sink = connect(refusing_address())
        piping = Piping(source, sink, prevent_cancel=True)
        group.start_soon(piping)
        await all_blocked()
        with pytest.raises(RefusedError):
            await sink.opened
        assert isinstance(await piping.wait(), RefusedError)
        await sender.send(b"x")
        assert await source.receive() == b"x"


async def test_a_destination_whose_end_waits_for_the_connection_is_over() -> None:
    opener = Slow(ForeignTransport(TwoWays()))
    async with connected() as (source, sender), anyio.create_task_group() as group:
        sink = opened_by(opener)
        piping = Piping(source, sink, prevent_cancel=True)
        group.start_soon(piping)
        await all_blocked()
        group.start_soon(sink.send_eof)
        assert isinstance(await piping.wait(), ClosedError)
        assert sink._connection.state.outbound is Outbound.ENDING
        await sender.send(b"x")
        assert await source.receive() == b"x"
        opener.stop.set()
        group.cancel_scope.cancel()


async def test_two_pipes_into_one_destination_both_notice_its_end() -> None:
    async with (
        connected() as (one, _),
        connected() as (other, _),
        connected() as (sink, _),
        anyio.create_task_group() as group,
    ):
        pipes = [Piping(source, sink) for source in (one, other)]
        for piping in pipes:
            group.start_soon(piping)
        await all_blocked()
        await sink.send_eof()
        for piping in pipes:
            assert isinstance(await piping.wait(), ClosedError)


async def test_a_chain_carries_data_and_its_ends() -> None:
    async with (
        connected(half_open=True) as (first, sender),
        connected(half_open=True) as (middle, echo),
        connected(half_open=True) as (last, receiver),
        anyio.create_task_group() as group,
    ):
        pipes = [Piping(first, middle), Piping(middle, last)]
        for piping in pipes:
            group.start_soon(piping)
        await sender.send(b"one")
        await echo.send(await echo.receive())
        assert await receiver.receive() == b"one"
        sender.fin()
        assert await echo.receive() == b""
        echo.fin()
        assert await receiver.receive() == b""
        assert [await piping.wait() for piping in pipes] == [None, None]


async def test_the_end_of_a_chain_is_noticed_link_by_link() -> None:
    async with (
        connected() as (first, sender),
        connected() as (last, _),
        anyio.create_task_group() as group,
    ):
        one, other = await socket_pair()
        async with one, other:
            pipes = [Piping(first, one), Piping(other, last)]
            for piping in pipes:
                group.start_soon(piping)
            await all_blocked()
            await last.close()
            assert isinstance(await pipes[1].wait(), ClosedError)
            await other.close()
            await sender.send(b"x")  # TCP reports that the peer has closed only after a send
            await settle(one.closed)
            await sender.send(b"x")
            assert isinstance(await pipes[0].wait(), (ClosedError, BrokenError))


async def test_a_destination_that_another_task_sends_to_takes_nothing() -> None:
    async with (
        connected() as (source, sender),
        connected(receive_buffer=4096) as (sink, _),
        anyio.create_task_group() as group,
    ):
        await sender.send(b"whole")
        arrived(source)
        group.start_soon(sink.send, bytes(BIG))
        await all_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await source.readable.pipe_to(sink)
        assert await source.receive() == b"whole"
        group.cancel_scope.cancel()


async def test_a_failed_source_does_not_abort_the_send_of_another_task() -> None:
    async with (
        connected() as (source, sender),
        connected() as (sink, receiver),
        anyio.create_task_group() as group,
    ):
        await hear_a_reset(source, sender)
        group.start_soon(sink.send, bytes(BIG))
        await all_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await source.readable.pipe_to(sink)
        assert len(await receiver.receive_exactly(BIG)) == BIG


async def test_pipe_to_is_a_checkpoint_even_if_there_is_nothing_to_do() -> None:
    async with connected() as (source, _), connected() as (sink, _):
        await sink.send_eof()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await source.readable.pipe_to(sink, prevent_cancel=True)
        assert scope.cancelled_caught


# --- the source is over


async def cancel(source: Socket, _: Peer) -> None:
    await source.readable.aclose()


async def fin(_: Socket, sender: Peer) -> None:
    sender.fin()


async def fin_and_cancel(source: Socket, sender: Peer) -> None:
    sender.fin()
    await source.readable.aclose()


async def cancel_and_end(source: Socket, _: Peer) -> None:
    await source.readable.aclose()
    await source.send_eof()


async def hear_and_cancel(source: Socket, sender: Peer) -> None:
    await hear_the_end(source, sender)
    await source.readable.aclose()


each_close = pytest.mark.parametrize(
    "act", [cancel, fin, fin_and_cancel, cancel_and_end, hear_and_cancel]
)


@each_close
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_source_that_was_closed_ends_the_destination(act: Act, when: str) -> None:
    async with (
        connected() as (source, sender),
        connected() as (sink, receiver),
        anyio.create_task_group() as group,
    ):
        await sink.send(b"before")
        piping = Piping(source, sink)
        if when == "before":
            await act(source, sender)
        group.start_soon(piping)
        await all_blocked()
        if when == "meanwhile" and act is not hear_and_cancel:  # then the pipe receives the end
            await act(source, sender)
        elif when == "meanwhile":
            sender.fin()
        assert await piping.wait() is None
        assert await receiver.receive_all() == b"before"
        await receiver.send(b"only that half")
        assert await sink.receive() == b"only that half"


@each_close
async def test_prevent_close_leaves_the_destination_open(act: Act) -> None:
    async with connected() as (source, sender), connected() as (sink, receiver):
        await act(source, sender)
        await source.readable.pipe_to(sink, prevent_close=True)
        await sink.send(b"goes on")
        assert await receiver.receive() == b"goes on"


async def test_a_source_that_was_closed_before_it_was_connected() -> None:
    async with connected() as (sink, receiver):
        source = connect(refusing_address())
        await source.readable.aclose()
        await source.readable.pipe_to(sink, prevent_close=True)
        await source.close()
        with pytest.raises(ClosedError, match="before the connection was made"):
            await source.readable.pipe_to(sink)
        with pytest.raises(ConnectionResetError):
            await receiver.receive_all()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_source_whose_socket_was_closed_is_cut_off(when: str) -> None:
    """The rest of the data is lost, so the destination must not end as if it were complete."""
    async with (
        connected() as (source, _),
        connected() as (sink, receiver),
        anyio.create_task_group() as group,
    ):
        piping = Piping(source, sink)
        if when == "before":
            await source.close()
        group.start_soon(piping)
        await all_blocked()
        if when == "meanwhile":
            await source.close()
        assert isinstance(await piping.wait(), ClosedError)
        with pytest.raises(ConnectionResetError):
            await receiver.receive_all()


async def test_a_source_that_start_tls_took_over_is_cut_off() -> None:
    async with (
        listening() as listener,
        connected() as (sink, receiver),
        connect(listener.address, secure_transport="starttls") as plain,
    ):
        secure = plain.start_tls()
        with pytest.raises(ClosedError, match="use the socket that it returned"):
            await plain.readable.pipe_to(sink)
        with pytest.raises(ConnectionResetError):
            await receiver.receive_all()
        await secure.close()


# --- both are over: WHATWG's order


@pytest.mark.parametrize(
    ("of_source", "of_sink", "raised"),
    [
        (hear_a_reset, end, "source"),
        (hear_a_reset, abort, "source"),
        (hear_the_end, abort, "sink"),
        (hear_the_end, end, None),
        (cancel, close, None),
        (cancel, abort, "sink"),
    ],
)
async def test_which_of_two_ends_counts(of_source: Act, of_sink: Act, raised: str | None) -> None:
    async with connected() as (source, sender), connected() as (sink, receiver):
        await of_source(source, sender)
        await of_sink(sink, receiver)
        if raised is None:
            await source.readable.pipe_to(sink)
            return
        with pytest.raises(BrokenError) as caught:
            await source.readable.pipe_to(sink)
        failed = source if raised == "source" else sink
        error = failed.closed.exception()
        assert error is not None
        assert str(caught.value) == str(error)


# --- a socket into itself


@pytest.mark.parametrize("half_open", [False, True])
async def test_piping_into_itself_is_an_echo(half_open: bool) -> None:
    async with connected(half_open=half_open) as (socket, peer):
        await peer.send(b"said")
        peer.fin()
        await socket.readable.pipe_to(socket)
        assert await peer.receive_all() == b"said"
        assert await settle(socket.closed) is None


@pytest.mark.parametrize("half_open", [False, True])
@pytest.mark.parametrize(
    ("act", "error"),
    [
        (fin, None),
        (close, ClosedError),
        (cancel, None),
        (end, ClosedError),
        (abort, BrokenError),
        (hear_a_reset, BrokenError),
    ],
)
async def test_an_idle_echo_notices_its_end(
    act: Act, error: type[Exception] | None, half_open: bool
) -> None:
    async with connected(half_open=half_open) as (socket, peer):
        piping = Piping(socket, socket)
        async with anyio.create_task_group() as group:
            group.start_soon(piping)
            await all_blocked()
            if act is hear_a_reset:
                peer.rst()
            else:
                await act(socket, peer)
            raised = await piping.wait()
        assert raised is None if error is None else isinstance(raised, error)


# --- other streams as destination


class Sink(ByteSendStream):
    """A stream in one direction, which keeps what was sent, and whether it was closed."""

    def __init__(self) -> None:
        self.got = b""
        self.closed = False

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self.got += item

    async def aclose(self) -> None:
        self.closed = True
        await anyio.lowlevel.checkpoint()


class Refusing(Sink):
    """A stream that raises the errors given by the test."""

    def __init__(self, error: BaseException, *, closing: BaseException | None = None) -> None:
        super().__init__()
        self.error = error
        self.closing = closing

    async def send(self, item: bytes) -> None:
        raise self.error

    async def aclose(self) -> None:
        self.closed = True
        if self.closing is not None:
            raise self.closing


class TwoWays(Sink, ByteStream):
    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.ended = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        raise AssertionError("a pipe does not receive from its destination")

    async def send_eof(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.ended = True


async def test_only_one_direction_of_a_two_way_stream_is_ended() -> None:
    async with connected() as (source, sender):
        sink = TwoWays()
        await sender.send(b"all")
        sender.fin()
        await source.readable.pipe_to(sink)
        assert (sink.got, sink.ended, sink.closed) == (b"all", True, False)


async def test_only_the_sending_half_of_a_stapled_stream_is_closed() -> None:
    async with connected() as (source, sender), connected() as (other, _):
        sink = Sink()
        sender.fin()
        await source.readable.pipe_to(StapledByteStream(sink, other.readable))
        assert sink.closed
        assert other._connection.state.inbound is Inbound.OPEN


async def test_only_one_direction_of_an_anyio_socket_stream_is_ended() -> None:
    async with (
        connected() as (source, sender),
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        done = anyio.Event()

        async def serve(stream: Any) -> None:
            async with stream:
                await source.readable.pipe_to(stream)
                assert await stream.receive() == b"after the end of the other direction"
                done.set()

        group.start_soon(listener.serve, serve)
        sender.fin()
        port = listener.extra(SocketAttribute.local_port)
        async with await anyio.connect_tcp("127.0.0.1", port) as client:
            with pytest.raises(anyio.EndOfStream):
                await client.receive()
            await client.send(b"after the end of the other direction")
            with anyio.fail_after(5):
                await done.wait()
        group.cancel_scope.cancel()


async def test_a_stream_that_cannot_be_ended_in_one_direction_stays_open() -> None:
    """AnyIO's TLSStream is such a stream."""
    ours, theirs = await socket_pair()
    async with ours, theirs, connected() as (source, sender), anyio.create_task_group() as group:
        got = b""
        all_came = anyio.Event()

        async def serve() -> None:
            nonlocal got
            stream = await TLSStream.wrap(theirs, server_side=True, ssl_context=server_context())
            while len(got) < len(b"whole, and more"):
                got += await stream.receive()
            all_came.set()

        group.start_soon(serve)
        sink = await TLSStream.wrap(ours, hostname=NAME, ssl_context=client_context())
        await sender.send(b"whole")
        sender.fin()
        with pytest.raises(BrokenError, match="pass prevent_close=True") as caught:
            await source.readable.pipe_to(sink)
        assert isinstance(caught.value.__cause__, NotImplementedError)
        await sink.send(b", and more")
        with anyio.fail_after(5):
            await all_came.wait()
        assert got == b"whole, and more"


async def test_the_error_of_another_streams_send_eof_is_raised_unchanged() -> None:
    error = ZeroDivisionError("of its own")
    async with connected() as (source, sender):
        sender.fin()
        with pytest.raises(ZeroDivisionError) as caught:
            await source.readable.pipe_to(TwoWays(error))
        assert caught.value is error


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), OSError(5, "no"), anyio.ClosedResourceError()], ids=repr
)
@pytest.mark.parametrize("prevented", [False, True])
async def test_the_error_of_another_streams_send_closes_the_source(
    error: Exception, prevented: bool
) -> None:
    async with connected() as (source, sender):
        await sender.send(b"x")
        with pytest.raises(type(error)) as caught:
            await source.readable.pipe_to(Refusing(error), prevent_cancel=prevented)
        assert caught.value is error
        state = source._connection.state
        assert state.inbound is (Inbound.OPEN if prevented else Inbound.CANCELLED)
        await source.send(b"the other half goes on")
        assert await sender.receive() == b"the other half goes on"


async def test_an_error_while_closing_by_force_does_not_hide_the_reason() -> None:
    async with connected() as (source, sender):
        sender.rst()
        sink = Refusing(ZeroDivisionError(), closing=LookupError())
        with pytest.raises(BrokenError, match="while receiving"):
            await source.readable.pipe_to(sink)
        assert sink.closed


async def test_a_stream_that_raises_when_closed_does_not_swallow_the_cancellation() -> None:
    async with connected() as (source, _):
        sink = Refusing(ZeroDivisionError(), closing=LookupError())
        async with anyio.create_task_group() as group:
            group.start_soon(source.readable.pipe_to, sink)
            await all_blocked()
            group.cancel_scope.cancel()
        assert sink.closed
        assert source._connection.state.inbound is Inbound.CANCELLED


# --- what is left behind


async def test_a_pipe_keeps_nothing_alive() -> None:
    """Its error does not keep the caller's frame, and its destination does not keep the pipe."""

    class Large:
        pass

    async with connected() as (source, _), connected() as (sink, _):
        await sink.send_eof()
        gc.disable()
        try:

            async def frame() -> weakref.ref[Large]:
                large = Large()
                try:
                    await source.readable.pipe_to(sink)
                except ClosedError:
                    return weakref.ref(large)
                raise AssertionError

            assert (await frame())() is None
        finally:
            gc.enable()
        assert not sink._connection._piped_here


async def test_the_error_says_why_the_destination_failed() -> None:
    async with connected() as (source, _):
        sink = connect(refusing_address())
        with pytest.raises(ConnectError):
            await sink.opened
        with pytest.raises(RefusedError, match="nothing is listening there"):
            await source.readable.pipe_to(sink)
