"""keep_alive: the options of the kernel's socket, and that a vanished peer is noticed."""

from __future__ import annotations

import ctypes
import errno
import math
import socket as stdlib
import struct
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_connect import (
    BrokenError,
    Connector,
    Socket,
    SocketAddress,
    _dial,
    _keepalive,
    _route,
    connect,
    listen,
)
from anyio_connect._keepalive import limit_of, room_of
from anyio_connect._tcp import TCPTransport
from anyio_connect._transport import ForeignTransport
from support.peers import Listener, Peer, listening
from support.sockets import raw
from support.tls_peers import NAME, TLSPeer, client_context, server_context
from support.turns import all_blocked

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have other options")

TCP_OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")


def told(sock: Any) -> tuple[int, ...]:
    """The keepalive options of a socket: SO_KEEPALIVE, and those in TCP_OPTIONS."""
    on = sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_KEEPALIVE)
    found = (sock.getsockopt(stdlib.IPPROTO_TCP, getattr(stdlib, name)) for name in TCP_OPTIONS)
    return on, *found


def off() -> tuple[int, ...]:
    with stdlib.socket() as sock:
        return told(sock)


DEFAULT = (1, 60, 15, 4, 120_000)


# --- the options of the kernel's socket


@linux
@pytest.mark.parametrize(
    ("of_connector", "of_call", "expected"),
    [
        (None, None, DEFAULT),
        (None, 1, (1, 1, 15, 4, 61_000)),
        (None, 32767.0, (1, 32767, 15, 4, 32_827_000)),
        (None, math.inf, None),
        (30, None, (1, 30, 15, 4, 90_000)),
        (30, 7, (1, 7, 15, 4, 67_000)),
        (30, math.inf, None),
        (math.inf, None, None),
        (math.inf, 7, (1, 7, 15, 4, 67_000)),
    ],
)
async def test_the_options_are_set_before_the_socket_connects(
    of_connector: float | None,
    of_call: float | None,
    expected: tuple[int, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before: list[tuple[int, ...]] = []

    class Looking(stdlib.socket):
        def connect(self, address: Any, /) -> None:
            before.append(told(self))
            super().connect(address)

    async with listening() as listener:
        monkeypatch.setattr("anyio_connect._tcp_connect.socket.socket", Looking)
        connector = Connector(keep_alive=of_connector)
        async with connector.connect(listener.address, keep_alive=of_call) as socket:
            after = told(raw(socket))
    assert before == [after] == [expected or off()]


@linux
@pytest.mark.parametrize(("seconds", "expected"), [(None, DEFAULT), (5, None), (math.inf, None)])
async def test_the_options_are_set_on_accepted_sockets(
    seconds: float | None, expected: tuple[int, ...] | None
) -> None:
    seen: list[tuple[int, ...]] = []
    done = anyio.Event()

    async def handler(socket: Socket) -> None:
        async with socket:
            seen.append(told(raw(socket)))
        done.set()

    async with (
        await listen("127.0.0.1:0", keep_alive=seconds) as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, handler)
        async with connect(listener.addresses[0]):
            await done.wait()
        group.cancel_scope.cancel()
    if seconds == 5:
        expected = (1, 5, 15, 4, 65_000)
    assert seen == [expected or off()]


@pytest.mark.usefixtures("from_afar")
@linux
async def test_the_options_are_set_on_a_stream_of_anyio(monkeypatch: pytest.MonkeyPatch) -> None:
    """AnyIO connects on an event loop that cannot wait for sockets."""

    async def wait(_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("anyio.wait_writable", wait)
    async with listening() as listener:
        route = _route.Route(keep_alive=5)
        transport = await _dial.dial(route, _dial.Progress(_address(listener)))
        assert isinstance(transport, ForeignTransport)
        assert told(transport.extra(SocketAttribute.raw_socket)) == (1, 5, 15, 4, 65_000)
        await transport.aclose()


def _address(listener: Listener) -> Any:
    return SocketAddress(*listener.address)


@pytest.mark.parametrize("refused", ["SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_USER_TIMEOUT"])
async def test_an_option_that_the_system_refuses_is_left_out(
    refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(stdlib, refused, None)

    class Poor(stdlib.socket):
        def setsockopt(self, *args: Any) -> None:
            if args[1] == number:
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            super().setsockopt(*args)

    async with listening() as listener:
        monkeypatch.setattr("anyio_connect._tcp_connect.socket.socket", Poor)
        async with connect(listener.address) as socket:
            await socket.send(b"hello")
            assert await (await listener.accept()).receive() == b"hello"


# --- a peer that vanished

#: Classic BPF: BPF_RET | BPF_K with a length of 0, which drops the packet.
_DROP = struct.pack("=HBBI", 0x06, 0, 0, 0)
_SO_ATTACH_FILTER = 26


def vanish(peer: Peer) -> None:
    """From now on, the peer's kernel drops all packets, and does not answer."""
    program = ctypes.create_string_buffer(_DROP)
    filters = struct.pack("HP", 1, ctypes.addressof(program))
    try:
        peer.sock.setsockopt(stdlib.SOL_SOCKET, _SO_ATTACH_FILTER, filters)
    except OSError as exc:
        pytest.skip(f"this kernel drops no packets for us: {exc}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel probe every second, and wait for an acknowledgement for half a second."""
    monkeypatch.setattr(_keepalive, "_INTERVAL", 1)
    monkeypatch.setattr(_keepalive, "_limit", lambda _: LIMIT)


LIMIT = 500


def check_vanished(error: Exception | None) -> None:
    assert isinstance(error, BrokenError)
    assert str(error).endswith(
        ": the kernel found that the peer has stopped answering: Connection timed out"
    )
    assert isinstance(error.__cause__, TimeoutError)
    assert error.__cause__.errno == errno.ETIMEDOUT


@pytest.mark.slow
@linux
@pytest.mark.usefixtures("impatient")
async def test_a_peer_that_vanished_is_noticed() -> None:
    async def meets(listener: Listener, sends: bytes, receives: bool) -> None:
        socket = connect(listener.address, keep_alive=1)
        if sends:
            await socket.send(sends)
        if receives:
            with pytest.raises(BrokenError) as caught:
                await socket.receive()
            check_vanished(caught.value)
        with pytest.raises(BrokenError) as caught:
            await socket.closed
        check_vanished(caught.value)

    async with listening() as listener:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for sends in (b"", b"is anybody there?"):
                    for receives in (False, True):
                        group.start_soon(meets, listener, sends, receives)
                        vanish(await listener.accept())


@pytest.mark.slow
@linux
@pytest.mark.usefixtures("impatient")
async def test_a_peer_that_vanished_is_noticed_over_tls() -> None:
    async with listening() as listener:
        socket = connect(
            listener.address,
            keep_alive=1,
            secure_transport="on",
            sni=NAME,
            ssl_context=client_context(),
        )
        async with anyio.create_task_group() as group:
            group.start_soon(socket._connection.opened._wait)
            peer = await listener.accept()
            await TLSPeer(peer, server_context()).shake()
        vanish(peer)
        with anyio.fail_after(30):
            await socket.send(b"is anybody there?")
            with pytest.raises(BrokenError) as caught:
                await socket.receive()
        check_vanished(caught.value)


# --- a peer that does not read, but has not vanished


@pytest.mark.slow
@linux
@pytest.mark.usefixtures("impatient")
async def test_a_peer_without_room_may_stop_reading_for_longer_than_the_limit() -> None:
    """This holds whatever our side does meanwhile. Only time can show that."""
    acts: list[Callable[[Socket], Coroutine[Any, Any, Any]]] = [
        Socket.receive,
        lambda socket: socket.closed._wait(),
        lambda socket: socket.send(b"more"),
        Socket.send_eof,
        Socket.close,
    ]

    async with listening(receive_buffer=4096) as listener:
        pairs: list[tuple[Socket, Peer, int]] = []
        for _ in acts:
            socket = connect(listener.address, keep_alive=1, close_timeout=math.inf)
            await socket.opened
            peer = await listener.accept()
            assert limit_of(raw(socket)) == LIMIT
            pairs.append((socket, peer, _fill(socket)))
        async with anyio.create_task_group() as group:
            for act, (socket, _, _) in zip(acts, pairs, strict=True):
                group.start_soon(act, socket)
            await anyio.sleep(4 * LIMIT / 1000)
            for socket, peer, count in pairs:
                assert not socket.closed.done()
                with anyio.fail_after(30):
                    await peer.receive_exactly(count)
            group.cancel_scope.cancel()
        for socket, _, _ in pairs:
            await socket.close()


def _fill(socket: Socket) -> int:
    """Send until neither kernel has room; return how much that was."""
    transport = socket._connection.transport
    assert isinstance(transport, TCPTransport)
    sent = 0
    while count := transport.send_nowait(bytes(65536)):
        sent += count
    return sent


@linux
@pytest.mark.parametrize("at", [_keepalive._SND_WND, 1000], ids=["", "older kernel"])
async def test_the_limit_is_in_force_while_the_peer_has_room(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_keepalive, "_SND_WND", at)
    async with listening(receive_buffer=4096) as listener, connect(listener.address) as socket:
        peer = await listener.accept()

        async def while_receiving() -> int:
            async with anyio.create_task_group() as group:
                group.start_soon(socket.receive)
                await all_blocked()
                limit = limit_of(raw(socket))
                await peer.send(b"x")
            return limit

        await socket.send(b"hello")
        assert limit_of(raw(socket)) == 120_000
        count = _fill(socket)
        assert limit_of(raw(socket)) == 0
        assert await while_receiving() == 0
        await peer.receive_exactly(5 + count)
        assert await while_receiving() == 120_000
        # A value that other code sets is left alone.
        raw(socket).setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_USER_TIMEOUT, 7000)
        count = _fill(socket)
        assert await while_receiving() == limit_of(raw(socket)) == 7000
        await peer.receive_exactly(count)
        assert await while_receiving() == limit_of(raw(socket)) == 7000


@linux
async def test_the_room_of_a_peer_is_what_its_kernel_accepts() -> None:
    """The room in our own kernel's buffer does not count."""
    async with listening(receive_buffer=65536) as listener, connect(listener.address) as socket:
        peer = await listener.accept()
        room = room_of(raw(socket))
        assert room > 1000
        await socket.send(bytes(room))
        assert room_of(raw(socket)) >= 0
        count = room + _fill(socket)
        assert room_of(raw(socket)) < 0
        await peer.receive_exactly(count)
    assert room_of(raw(socket)) < 0  # it is closed


@linux
async def test_the_kernel_is_asked_for_the_room_only_when_the_last_answer_is_used_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []

    def look(sock: stdlib.socket) -> int:
        looks.append(room_of(sock))
        return 1000

    monkeypatch.setattr("anyio_connect._tcp.room_of", look)
    async with listening() as listener, connect(listener.address) as socket:
        await listener.accept()
        for _ in range(23):
            await socket.send(bytes(100))
        assert len(looks) == 3


@linux
@pytest.mark.parametrize("end", [Socket.send_eof, Socket.close])
async def test_an_end_needs_room_too(
    end: Callable[[Socket], Coroutine[Any, Any, None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def look(sock: stdlib.socket) -> int:
        looks.append(room_of(sock))
        return 0

    monkeypatch.setattr("anyio_connect._tcp.room_of", look)
    async with listening() as listener, connect(listener.address) as socket:
        await socket.send(b"x")
        await (await listener.accept()).receive()
        assert len(looks) == 1
        await end(socket)
        assert len(looks) == 2


@linux
async def test_a_limit_that_other_code_sets_while_ours_is_lifted_stays() -> None:
    async with listening(receive_buffer=4096) as listener, connect(listener.address) as socket:
        peer = await listener.accept()
        count = _fill(socket)
        raw(socket).setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_USER_TIMEOUT, 7000)
        await peer.receive_exactly(count)
        async with anyio.create_task_group() as group:
            group.start_soon(socket.receive)
            await all_blocked()
            assert limit_of(raw(socket)) == 7000
            await peer.send(b"x")


@linux
async def test_a_socket_that_is_given_away_does_not_keep_our_limit() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        await socket.opened
        with socket.detach() as sock:
            assert told(sock) == (1, 60, 15, 4, 0)
        socket = connect(listener.address)
        await socket.opened
        raw(socket).setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_USER_TIMEOUT, 7000)
        with socket.detach() as sock:
            assert told(sock) == (1, 60, 15, 4, 7000)


@linux
async def test_prepared_options_stay_on_a_socket_that_a_dialer_returned() -> None:
    """``prepare`` may change the keepalive options."""
    chosen = {"TCP_KEEPIDLE": 7, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 9, "TCP_USER_TIMEOUT": 7777}

    def prepare(sock: stdlib.socket) -> None:
        for name, value in chosen.items():
            sock.setsockopt(stdlib.IPPROTO_TCP, getattr(stdlib, name), value)

    async with listening() as listener:
        inner = Connector(prepare=prepare)

        async def dial(_: SocketAddress) -> Socket:
            return inner.connect(listener.address)

        async with Connector(dialer=dial).connect("made-up.example:1") as socket:
            assert told(raw(socket)) == (1, *chosen.values())
