"""``anyio_connect.testing``: a network in memory, as users see it."""

from __future__ import annotations

import errno
import logging
import math
import socket as stdlib
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import anyio
import pytest
import trio.testing
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSListener, TLSStream
from hypothesis import given
from hypothesis import strategies as st

from anyio_connect import (
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    BrokenError,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    DetachError,
    InvalidAddressError,
    InvalidOptionError,
    ListenError,
    RefusedError,
    ResolveError,
    Socket,
    SocketAddress,
)
from anyio_connect.testing import Network
from support import guards
from support.connectors import VALUES
from support.servers import send_back
from support.sockets import settle
from support.tls_peers import NAME, TLS13, client_context, server_context
from support.turns import all_blocked

DB = "db.example:5432"


async def pair(
    network: Network, *, half_open: bool = True, **options: Any
) -> tuple[Socket, Socket]:
    """Two open sockets, connected with each other."""
    async with network.listen(DB, allow_half_open=half_open) as listener:
        ours = network.connector().connect(DB, allow_half_open=half_open, **options)
        await ours.opened
        return ours, await listener.accept()


# --- connections


async def test_there_and_back() -> None:
    await there_and_back(Network())


async def there_and_back(network: Network) -> None:
    async with network.listen(DB) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, send_back)
        async with network.connector().connect(DB) as socket:
            info = await socket.opened
            assert [info.remote_address] == listener.addresses
            await socket.send(b"hello")
            assert await socket.receive() == b"hello"
            await socket.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await socket.receive()
            await socket.closed
        group.cancel_scope.cancel()


async def test_both_ends_know_the_same_addresses() -> None:
    ours, theirs = await pair(Network())
    one, two = ours.opened.result(), theirs.opened.result()
    assert (one.remote_address, one.local_address) == (two.local_address, two.remote_address)
    assert ours.extra(SocketAttribute.remote_port) == 5432
    assert ours.extra(SocketAttribute.family) == stdlib.AF_INET
    with pytest.raises(anyio.TypedAttributeLookupError):
        ours.extra(SocketAttribute.raw_socket)
    with pytest.raises(DetachError, match="a connection in memory"):
        ours.detach()
    await ours.close()
    await theirs.close()


async def test_no_descriptor_is_opened() -> None:
    if not guards.CAN_LIST_FDS:
        pytest.skip("descriptors cannot be listed here")
    before = guards.open_fds()
    ours, theirs = await pair(Network())
    async with anyio.create_task_group() as group:
        group.start_soon(settle, ours.closed)
        await all_blocked()
        assert guards.open_fds() == before
        await theirs.close()
        await ours.close()


@pytest.mark.parametrize("half_open", [False, True])
async def test_half_close(half_open: bool) -> None:
    ours, theirs = await pair(Network(), half_open=half_open)
    await theirs.send(b"before")
    await theirs.send_eof()
    assert await ours.receive() == b"before"
    with pytest.raises(anyio.EndOfStream):
        await ours.receive()
    if half_open:
        await ours.send(b"after")
        assert await theirs.receive() == b"after"
        await ours.close()
    await ours.closed
    with pytest.raises(anyio.EndOfStream):
        await theirs.receive()
    await theirs.closed


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_reset(waiting: bool) -> None:
    ours, theirs = await pair(Network())
    await theirs.send(b"last words")
    if waiting:
        assert await ours.receive() == b"last words"
        async with anyio.create_task_group() as group:

            async def receive() -> None:
                with pytest.raises(BrokenError, match="Connection reset by peer"):
                    await ours.receive()

            group.start_soon(receive)
            await all_blocked()
            await theirs.writable.abort()
    else:
        await theirs.writable.abort()
        assert await ours.receive() == b"last words"
        with pytest.raises(BrokenError):
            await ours.receive()
    assert isinstance(await settle(ours.closed), BrokenError)
    with pytest.raises(BrokenError):
        await ours.send(b"x")


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_closed_notices_what_the_peer_does(how: str) -> None:
    ours, theirs = await pair(Network(), half_open=False)
    async with anyio.create_task_group() as group:
        group.start_soon(settle, ours.closed)
        await all_blocked()
        assert not ours.closed.done()
        await (theirs.close() if how == "end" else theirs.writable.abort())
    assert (ours.closed.exception() is None) == (how == "end")
    await ours.close()


async def test_a_send_waits_for_a_peer_that_does_not_read() -> None:
    ours, theirs = await pair(Network(buffer_size=1000))
    data = bytes(range(256)) * 100
    async with anyio.create_task_group() as group:

        async def send() -> None:
            await ours.send(data)
            await ours.send_eof()

        group.start_soon(send)
        await all_blocked()
        assert await theirs.receive(500) == data[:500]
        assert data[500:] == b"".join([chunk async for chunk in theirs.readable])
    await ours.close()
    await theirs.close()


@pytest.mark.slow
@given(
    latency=st.sampled_from([0, 1e-6, 1e-4]),
    buffer_size=st.integers(1, 1000),
    sizes=st.lists(st.integers(1, 300), max_size=5),
    most=st.integers(1, 400),
    silent=st.booleans(),
)
async def test_what_is_sent_arrives_whole_and_in_order(
    latency: float, buffer_size: int, sizes: list[int], most: int, silent: bool
) -> None:
    """Both ways at once, on two connections."""
    network = Network(latency=latency, buffer_size=buffer_size)
    data = [bytes((number + size) % 256 for number in range(size)) for size in sizes]
    arrived: list[bytes] = []

    async def send(socket: Socket) -> None:
        for message in data:
            await socket.send(message)
        await socket.send_eof()

    async def receive(socket: Socket) -> None:
        came = b""
        with suppress(anyio.EndOfStream):
            while True:
                came += await socket.receive(most)
        arrived.append(came)

    async with network.listen("b.example:1", allow_half_open=True) as listener:
        other = network.connector().connect("b.example:1", allow_half_open=True)
        await other.opened
        sockets = [other, await listener.accept(), *await pair(network)]
    async with anyio.create_task_group() as group:
        with network.silence(DB) if silent else nullcontext():
            for socket in sockets:
                group.start_soon(send, socket)
                group.start_soon(receive, socket)
            await checkpoint()
    assert arrived == [b"".join(data)] * 4
    for socket in sockets:
        await socket.closed


async def test_a_cancelled_send_leads_to_a_reset() -> None:
    ours, theirs = await pair(Network(buffer_size=1000))
    async with anyio.create_task_group() as group:
        group.start_soon(ours.send, bytes(5000))
        await all_blocked()
        group.cancel_scope.cancel()
    with pytest.raises(BrokenError, match="cut short"):
        await ours.send(b"x")
    await ours.close()
    assert isinstance(await settle(theirs.closed), BrokenError)
    await theirs.close()


async def test_close_waits_until_the_peer_has_received_everything() -> None:
    ours, theirs = await pair(Network(buffer_size=1000))
    await ours.send(bytes(2000))  # half of it is in the buffer of the peer
    async with anyio.create_task_group() as group:
        group.start_soon(ours.close)
        await all_blocked()
        assert not ours.closed.done()
        assert len(b"".join([chunk async for chunk in theirs.readable])) == 2000
    assert ours.closed.exception() is None
    await theirs.close()


async def test_close_gives_up_on_a_peer_that_takes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours, theirs = await pair(Network(buffer_size=1000), close_timeout=0.05)
    await ours.send(bytes(1500))
    with caplog.at_level(logging.WARNING, "anyio_connect"):
        await ours.close()
    with pytest.raises(BrokenError, match="not acknowledged 500 bytes"):
        await ours.closed
    assert "close() gave up" in caplog.text
    await theirs.close()


async def test_a_socket_that_is_garbage_collected_ends_the_connection() -> None:
    ours, theirs = await pair(Network(), half_open=False)
    with pytest.warns(ResourceWarning, match=r"unclosed connection to db\.example:5432"):
        del ours
    with pytest.raises(anyio.EndOfStream):
        await theirs.receive()
    await theirs.closed


def test_a_socket_that_is_garbage_collected_after_its_event_loop(anyio_backend: Any) -> None:
    sockets: list[Socket] = []

    async def main() -> None:
        sockets.extend(await pair(Network()))

    name, options = anyio_backend
    anyio.run(main, backend=name, backend_options=options)
    with pytest.warns(ResourceWarning, match="unclosed connection"):
        sockets.clear()


# --- TLS


async def test_tls() -> None:
    network = Network()

    async def greet(stream: ByteStream) -> None:
        async with stream:
            await stream.send(b"ready")
            with suppress(anyio.EndOfStream):
                await stream.receive()

    async with network.listen((NAME, 443)) as listener, anyio.create_task_group() as group:
        group.start_soon(TLSListener(listener, server_context(TLS13)).serve, greet)
        connector = network.connector(Connector(ssl_context=client_context()))
        async with connector.connect((NAME, 443), secure_transport="on") as socket:
            assert await socket.receive() == b"ready"
        group.cancel_scope.cancel()


async def test_start_tls() -> None:
    network = Network()
    async with network.listen((NAME, 25)) as listener, anyio.create_task_group() as group:

        async def serve(socket: Socket) -> None:
            assert await socket.receive(8) == b"STARTTLS"
            await socket.send(b"S")
            async with await TLSStream.wrap(
                socket, server_side=True, ssl_context=server_context(TLS13)
            ) as stream:
                await stream.send(await stream.receive())

        group.start_soon(listener.serve, serve)
        connector = network.connector(Connector(ssl_context=client_context()))
        plain = connector.connect((NAME, 25), secure_transport="starttls")
        await plain.send(b"STARTTLS")
        assert await plain.receive(1) == b"S"
        async with plain.start_tls() as socket:
            await socket.send(b"secret")
            assert await socket.receive() == b"secret"
        group.cancel_scope.cancel()


# --- what goes wrong


async def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(ResolveError, match=r"no\.example:1: the name has no address") as caught:
        await Network().connector().connect("no.example:1").opened
    assert caught.value.errno == stdlib.EAI_NONAME
    assert isinstance(caught.value.__cause__, stdlib.gaierror)


async def test_a_port_where_nothing_listens() -> None:
    network = Network()
    network.add_host("DB.example.")
    for address in (DB, "192.0.2.9:1", "localhost:1"):
        with pytest.raises(RefusedError, match="nothing is listening there"):
            await network.connector().connect(address).opened


async def test_fail_makes_dials_fail() -> None:
    network = Network()
    async with network.listen(DB):
        failure = OSError(errno.EHOSTUNREACH, "no route")
        network.fail(DB, failure)
        for _ in range(2):
            with pytest.raises(ConnectError, match="host unreachable") as caught:
                await network.connector().connect(DB).opened
            assert caught.value.errno == errno.EHOSTUNREACH
        # Neither the given error nor the kept copy holds the frames of the tasks that got it.
        kept = [*network._failing.values()]
        assert [error.__traceback__ for error in (failure, *kept)] == [None, None]
        network.fail(DB, None)
        async with network.connector().connect(DB):
            pass
    network.fail("other.example:1", ConnectionRefusedError())
    with pytest.raises(RefusedError):
        await network.connector().connect("other.example:1").opened


async def test_silence_while_dialling() -> None:
    network = Network()
    async with network.listen(DB) as listener:
        connector = network.connector()
        with network.silence(DB):
            with pytest.raises(ConnectTimeoutError):
                await connector.connect(DB, connect_timeout=0.01).opened
            async with anyio.create_task_group() as group:
                late = connector.connect(DB, task_group=group)
                await all_blocked()
                assert not late.opened.done()
                group.cancel_scope.cancel()
        async with connector.connect(DB) as socket:
            await socket.send(b"x")
            accepted = await listener.accept()
            assert await accepted.receive() == b"x"
            await accepted.close()


async def test_a_dial_in_silence_gets_its_answer_after_it() -> None:
    network = Network()
    async with network.listen(DB), anyio.create_task_group() as group:
        with network.silence(DB):
            socket = network.connector().connect(DB, task_group=group)
            await all_blocked()
            assert not socket.opened.done()
        await socket.opened
        await socket.close()


async def test_silence_on_a_connection() -> None:
    """In silence nothing arrives, not even an end. Afterwards everything does, in order."""
    network = Network()
    ours, theirs = await pair(network)
    with network.silence(DB), network.silence(DB):
        await theirs.send(b"one")
        await theirs.send(b"two")
        await theirs.send_eof()
        async with anyio.create_task_group() as group:
            for call in (ours.receive, theirs.receive):
                group.start_soon(call)
            await ours.send(b"three")
            await all_blocked()
            group.cancel_scope.cancel()
    assert b"".join([data async for data in ours.readable]) == b"onetwo"
    assert await theirs.receive() == b"three"
    await ours.close()
    await theirs.close()


async def test_close_in_silence_gives_up() -> None:
    network = Network()
    ours, theirs = await pair(network, close_timeout=0.01)
    with network.silence(DB):
        await ours.send(b"lost?")
        await ours.close()
        assert isinstance(ours.closed.exception(), BrokenError)
    assert await theirs.receive() == b"lost?"  # the kernel in memory went on sending it
    await theirs.close()


# --- time


def in_no_time(main: Callable[[], Awaitable[None]]) -> None:
    """Run ``main`` on trio, with a clock that jumps to the next deadline."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    anyio.run(main, backend="trio", backend_options={"clock": clock})


def test_latency_follows_the_clock_of_the_event_loop() -> None:
    async def main() -> None:
        network = Network(latency=100)
        async with network.listen(DB) as listener, anyio.create_task_group() as group:
            began = anyio.current_time()
            ours = network.connector().connect(DB, task_group=group)
            theirs = await listener.accept()
            assert anyio.current_time() - began == pytest.approx(300)
            await ours.opened
            assert network.latency == 100
            await theirs.send(b"x")
            began = anyio.current_time()
            assert await ours.receive() == b"x"
            assert anyio.current_time() - began == pytest.approx(100)
            await theirs.send_eof()
            await ours.send_eof()
            await ours.closed
            assert anyio.current_time() - began == pytest.approx(200)
            with pytest.raises(ConnectTimeoutError):
                await network.connector().connect(DB, connect_timeout=199).opened
            network.latency = 0
            async with network.connector().connect(DB, connect_timeout=1):
                pass
            await theirs.close()

    in_no_time(main)


async def test_latency_in_real_time() -> None:
    network = Network(latency=0.005)
    began = anyio.current_time()
    ours, theirs = await pair(network)
    assert anyio.current_time() - began >= 0.01
    async with anyio.create_task_group() as group:
        group.start_soon(settle, theirs.closed)  # waits while nothing is under way
        await all_blocked()
        await ours.send(b"x")
        assert await theirs.receive() == b"x"
        await ours.close()
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()
        await theirs.close()
    assert anyio.current_time() - began >= 0.02


async def test_the_first_to_answer_wins_the_race() -> None:
    network = Network()
    network.add_host("db.example", "10.0.0.1", "10.0.0.2")
    policy = AddressPolicy(allow=["10.0.0.0/8"])
    like = Connector(policy, happy_eyeballs_delay=0.001)
    async with network.listen("10.0.0.1:1"), network.listen("10.0.0.2:1"):
        with network.silence("10.0.0.1:1"):
            async with network.connector(like).connect("db.example:1") as socket:
                assert (await socket.opened).remote_address == "10.0.0.2:1"


# --- names and policies


async def test_a_name_without_a_given_address_gets_a_public_one() -> None:
    network = Network()
    async with network.listen("api.example:443"):
        async with network.connector(policy=WORKERS).connect("api.example:443"):
            pass
        async with network.connector(Connector(WORKERS)).connect("api.example:443"):
            pass


async def test_what_a_policy_forbids() -> None:
    network = Network()
    network.add_host("inside.example", "10.0.0.5", "fe80::1%1")
    network.add_host("both.example", "10.0.0.5", "2606:4700::1")
    async with (
        network.listen("inside.example:443"),
        network.listen("both.example:444") as listener,
    ):
        connector = network.connector(policy=WORKERS)
        with pytest.raises(AddressNotAllowedError, match=r"10\.0\.0\.5"):
            await connector.connect("inside.example:443").opened
        for host in ("inside.example", "fe80::1", "fe80::1%1"):
            async with network.connector().connect((host, 443)):
                pass
        async with connector.connect("both.example:444") as socket:
            assert (await socket.opened).remote_address == "[2606:4700::1]:444"
        assert listener.addresses == ["10.0.0.5:444", "[2606:4700::1]:444"]
        assert listener.extra(SocketAttribute.local_address) == ("10.0.0.5", 444)
    with pytest.raises(ResolveError):
        await connector.connect("no.example:443").opened
    assert await connector.resolve("both.example", 443) == ["2606:4700::1"]
    assert await network.connector().resolve("inside.example", 443) == ["10.0.0.5", "fe80::1"]


async def test_each_address_of_a_name_is_tried() -> None:
    network = Network()
    network.add_host("db.example", "10.0.0.1", "10.0.0.2")
    async with (
        network.listen("10.0.0.2:1"),
        network.connector().connect("db.example:1") as socket,
    ):
        assert (await socket.opened).remote_address == "10.0.0.2:1"
    with pytest.raises(RefusedError):
        await network.connector().connect("db.example:1").opened


async def test_each_name_has_an_address_of_its_own() -> None:
    network = Network()
    seen: set[str] = set()
    for number in range(300):
        network.add_host(f"h{number}.example")
        (ip,) = await network.resolve(f"h{number}.example", 1)
        assert WORKERS.refusal(ip, 443) is None
        seen.add(ip)
    assert len(seen) == 300


async def test_a_name_keeps_its_addresses_until_it_is_given_others() -> None:
    network = Network()
    async with network.listen("db.example:1"):
        before = await network.resolve("db.example", 1)
        network.add_host("db.example")
        assert await network.resolve("db.example", 1) == before
        network.add_host("db.example", "10.0.0.1", "10.0.0.1", "10.0.0.2")
        assert await network.resolve("db.example", 1) == ["10.0.0.1", "10.0.0.2"]
        with pytest.raises(RefusedError):
            await network.connector().connect("db.example:1").opened
        async with network.listen("db.example:1") as listener:
            assert listener.addresses == ["10.0.0.1:1", "10.0.0.2:1"]
        async with network.connector().connect((before[0], 1)):
            pass


async def test_the_network_is_a_dialer_and_a_resolver() -> None:
    network = Network()
    async with network.listen(DB) as listener:
        stream = await network.dial(SocketAddress("db.example", 5432))
        accepted = await listener.accept()
        await stream.send(b"x")
        assert await accepted.receive() == b"x"
        await stream.aclose()
        await accepted.close()
        with pytest.raises(ConnectionRefusedError):
            await network.dial(SocketAddress("db.example", 1))
        with pytest.raises(stdlib.gaierror):
            await network.resolve("no.example", 1)
        assert await network.resolve("::0001", 1) == ["::1"]


def test_a_connector_takes_the_rules_of_another() -> None:
    context = client_context()
    like = Connector(
        WORKERS,
        max_connections=3,
        ssl_context=context,
        local_host="192.0.2.1",
        happy_eyeballs_delay=1,
        connect_timeout=7,
        prepare=print,
        resolver=Network().resolve,
    )
    network = Network()
    same = network.connector(like)
    assert (same.policy, same.max_connections) == (WORKERS, 3)
    assert (same.ssl_context, same.connect_timeout) == (context, 7)
    assert (same.local_host, same.prepare, same.happy_eyeballs_delay) == (None, None, 1)
    assert same.resolver == network.resolve
    ports = AddressPolicy(deny_ports=[25])
    assert network.connector(like, policy=ports).policy is ports
    assert network.connector(like, policy=ports).happy_eyeballs_delay == 0.25
    assert network.connector().dialer == network.dial


#: Values that the network has itself, or that apply only if the policy judges addresses.
OWN = {"dialer", "resolver", "happy_eyeballs_delay"}


@pytest.mark.parametrize("name", VALUES)
def test_a_connector_takes_each_value_or_says_that_it_does_not(name: str) -> None:
    like = Connector(**{name: VALUES[name]})
    kept = getattr(Network().connector(like), name) == VALUES[name]
    words = str(Network.connector.__doc__).partition("apply to real networks only")[2]
    dropped = f"``{name}``" in words.partition(")")[0]
    assert kept or dropped or name in OWN, (
        f"if {name} has no effect in memory, say it in the docstring of Network.connector()"
    )
    assert not (kept and dropped), f"Network.connector() says that it does not take {name}"


async def test_max_connections_counts() -> None:
    network = Network()
    async with network.listen(DB):
        connector = network.connector(Connector(max_connections=1))
        async with connector.connect(DB):
            with pytest.raises(ConnectTimeoutError, match="no slot"):
                await connector.connect(DB, connect_timeout=0.01).opened
        async with connector.connect(DB):
            pass


# --- listeners


async def test_port_0_means_a_free_port() -> None:
    network = Network()
    async with network.listen("h.example:0") as one, network.listen("h.example:0") as two:
        ports = [listener.extra(SocketAttribute.local_port) for listener in (one, two)]
        assert ports[0] != ports[1]
        for port in ports:
            async with network.connector().connect(("h.example", port)):
                pass


async def test_an_address_that_is_taken() -> None:
    network = Network()
    async with network.listen(DB):
        with pytest.raises(ListenError, match="another socket listens there") as caught:
            network.listen(DB)
        assert caught.value.errno == errno.EADDRINUSE
    async with network.listen(DB):
        pass


@pytest.mark.parametrize("address", ["0.0.0.0:80", "[::]:80"])
def test_a_wildcard_address_is_refused(address: str) -> None:
    with pytest.raises(ListenError, match="write the host that clients connect to"):
        Network().listen(address)


async def test_closing_refuses_and_resets() -> None:
    network = Network()
    listener = network.listen(DB)
    socket = network.connector().connect(DB)
    await socket.opened
    for _ in range(2):
        await listener.aclose()
    with pytest.raises(RefusedError):
        await network.connector().connect(DB).opened
    with pytest.raises(BrokenError):
        await socket.receive()
    for call in (listener.accept, partial(listener.serve, send_back)):
        with pytest.raises(anyio.ClosedResourceError):
            await call()


async def test_closing_wakes_the_task_that_accepts() -> None:
    listener = Network().listen(DB)

    async def accept() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await listener.accept()

    async with anyio.create_task_group() as group:
        group.start_soon(accept)
        await all_blocked()
        await listener.aclose()


def test_a_connection_that_comes_after_closing_is_reset() -> None:
    """The client's side is open before its last packet reaches the listener."""

    async def main() -> None:
        network = Network(latency=1)
        listener = network.listen(DB)
        socket = network.connector().connect(DB)
        await socket.opened
        await listener.aclose()
        with pytest.raises(BrokenError):
            await socket.receive()

    in_no_time(main)


async def test_a_connection_that_is_reset_before_a_task_runs_has_been_made() -> None:
    network = Network()
    listener = network.listen(DB)
    async with anyio.create_task_group() as group:
        with network.silence(DB):
            socket = network.connector().connect(DB, task_group=group)
            await all_blocked()
        await listener.aclose()  # before any other task runs
    assert socket.opened.exception() is None
    with pytest.raises(BrokenError):
        await socket.receive()


async def test_a_due_cancellation_comes_before_data() -> None:
    ours, theirs = await pair(Network())
    received: list[bytes] = []

    async def receive() -> None:
        with scope:
            received.append(await ours.receive())

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        await all_blocked()
        await theirs.send(b"x")  # arrives in the turn of the cancellation
        scope.cancel()
    assert not received
    assert scope.cancelled_caught
    assert await ours.receive() == b"x"
    await ours.close()
    await theirs.close()


async def test_a_due_cancellation_comes_before_a_connection() -> None:
    network = Network()
    async with network.listen(DB) as listener, anyio.create_task_group() as group:
        accepted: list[Socket] = []

        async def accept() -> None:
            with scope:
                accepted.append(await listener.accept())

        scope = anyio.CancelScope()
        with network.silence(DB):
            socket = network.connector().connect(DB, task_group=group)
            group.start_soon(accept)
            await all_blocked()
        scope.cancel()  # in the turn in which the connection arrives
        await all_blocked()
        assert not accepted
        assert scope.cancelled_caught
        await (await listener.accept()).close()
        await socket.close()


async def test_a_network_works_in_one_event_loop_after_another() -> None:
    network = Network(latency=0.001)

    def elsewhere() -> None:
        for backend in ("asyncio", "trio"):
            anyio.run(there_and_back, network, backend=backend)

    await anyio.to_thread.run_sync(elsewhere)
    await there_and_back(network)


async def test_a_client_that_resets_before_it_is_accepted() -> None:
    network = Network()
    async with network.listen(DB) as listener:
        socket = network.connector().connect(DB)
        await socket.send(b"last words")
        await socket.writable.abort()
        accepted = await listener.accept()
        assert await accepted.receive() == b"last words"
        with pytest.raises(BrokenError):
            await accepted.receive()


async def test_a_client_that_resets_ends_only_its_own_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = Network()
    async with network.listen(DB) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, send_back)
        with caplog.at_level(logging.WARNING, "anyio_connect"):
            socket = network.connector().connect(DB)
            await socket.opened
            await all_blocked()
            await socket.writable.abort()
            await all_blocked()
        assert "the handler of 192.0.2.1:" in caplog.text
        async with network.connector().connect(DB) as socket:
            await socket.send(b"x")
            assert await socket.receive() == b"x"
        group.cancel_scope.cancel()


async def test_serve_in_a_given_task_group() -> None:
    network = Network()
    listener = network.listen(DB)
    async with anyio.create_task_group() as group:

        async def serve() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await listener.serve(send_back, group)

        group.start_soon(serve)
        async with network.connector().connect(DB) as socket:
            await socket.send(b"1")
            assert await socket.receive() == b"1"
            with pytest.raises(anyio.BusyResourceError):
                await listener.serve(send_back)
            await listener.aclose()
            await socket.send(b"2")
            assert await socket.receive() == b"2"


async def test_the_sockets_of_a_listener_have_its_options() -> None:
    network = Network()
    async with (
        network.listen(DB, allow_half_open=True, close_timeout=math.inf) as listener,
        network.connector().connect(DB, allow_half_open=True) as ours,
    ):
        theirs = await listener.accept()
        await ours.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()
        await theirs.send(b"still")
        assert await ours.receive() == b"still"
        assert theirs._target.options.close_timeout == math.inf
        await theirs.close()


# --- bad input


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"latency": -1}, "latency: -1: must be a number of seconds, 0 or more"),
        ({"latency": math.inf}, "0 or more"),
        ({"latency": math.nan}, "0 or more"),
        ({"latency": True}, "0 or more"),
        ({"latency": 10**400}, "0 or more"),
        ({"latency": "1"}, "0 or more"),
        ({"buffer_size": 0}, "buffer_size"),
        ({"buffer_size": 1.5}, "buffer_size"),
    ],
)
def test_a_bad_value_is_an_error(values: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        Network(**values)
    assert why in str(caught.value)


def test_bad_addresses_are_errors() -> None:
    network = Network()
    with pytest.raises(InvalidAddressError):
        network.listen("no port")
    with pytest.raises(InvalidAddressError, match="write an IP address"):
        network.add_host("h.example", "other.example")
    with pytest.raises(InvalidAddressError):
        network.add_host("http://h.example")
    with pytest.raises(InvalidAddressError), network.silence("no port"):
        pass
    with pytest.raises(InvalidOptionError, match="must be an OSError, or None"):
        network.fail(DB, ValueError())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidOptionError):
        network.listen(DB, close_timeout=-1)


def test_importing_the_module_imports_little_else() -> None:
    program = """if True:
        import sys
        import anyio, anyio.abc, anyio.lowlevel, typing_extensions
        before = set(sys.modules)
        import anyio_connect.testing
        foreign = {name.partition(".")[0] for name in set(sys.modules) - before}
        assert foreign - sys.stdlib_module_names <= {"anyio", "anyio_connect"}, foreign
        assert not {"pytest", "_pytest", "trio", "asyncio", "hypothesis"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", program], check=True)
