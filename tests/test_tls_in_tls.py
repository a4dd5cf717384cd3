"""TLS in TLS: TLS to a target, through a proxy with a TLS connection of its own."""

from __future__ import annotations

import select
import ssl
from collections.abc import Callable
from functools import partial

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_connect import BrokenError, TLSError
from anyio_connect._tls import TLSTransport
from anyio_connect._tls_handshake import start_tls
from support.sockets import Made, opened_by
from support.tls_acts import cancelled, cancelled_at_once, each_version, receive_all
from support.tls_peers import (
    TLS13,
    Server,
    Wire,
    client_context,
    over_tcp,
    server_context,
    shaken,
)
from support.turns import all_blocked


def nested() -> tuple[TLSTransport, Wire, Callable[[], bytes], Server, Server]:
    """The transport, the wire, what the inner server gets, the outer server, and the inner."""
    outer, wire, front = shaken(TLS13)
    tls, _, back = shaken(TLS13, over=outer)

    def arrived() -> bytes:
        return back.decrypt(front.decrypt(wire.take()))

    return tls, wire, arrived, front, back


async def test_data_goes_through_both_layers() -> None:
    tls, wire, arrived, front, back = nested()
    await tls.send(b"there")
    assert arrived() == b"there"
    wire.arrive(front.encrypt(back.encrypt(b"and back")))
    assert await tls.receive() == b"and back"
    big = bytes(300_000)
    await tls.send(big)
    assert arrived() == big


@pytest.mark.parametrize("room", [0, 10, 60, 1000])
async def test_both_layers_are_ended_as_soon_as_there_is_room(room: int) -> None:
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


async def test_a_half_close_ends_only_the_inner_layer() -> None:
    tls, wire, arrived, front, back = nested()
    await tls.send_eof()
    assert arrived() == b""
    assert (front.ended, back.ended) == (False, True)
    wire.arrive(front.encrypt(back.encrypt(b"still")))
    assert await tls.receive() == b"still"
    wire.arrive(front.encrypt(back.close_notify()))
    with pytest.raises(anyio.EndOfStream):
        await tls.receive()


async def test_a_cancelled_half_close_goes_out_if_there_is_room() -> None:
    tls, _, arrived, _, back = nested()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await tls.send_eof()
    assert not tls.torn
    assert arrived() == b""
    assert back.ended


async def test_nothing_follows_a_send_that_was_cut_short_in_the_outer_layer() -> None:
    """Nothing goes out with a later receive either."""
    tls, wire, _, front, back = nested()
    wire.make_room(10)
    await cancelled(tls.send, b"a piece of it")
    wire.make_room()
    wire.arrive(front.encrypt(back.encrypt(b"still")))
    assert await tls.receive() == b"still"
    assert len(wire.take()) == 10


async def test_a_half_close_waits_for_room_in_the_outer_layer() -> None:
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


async def test_a_send_waits_until_the_outer_layer_has_sent_it() -> None:
    tls, wire, arrived, _, _ = nested()
    wire.make_room(10)
    await cancelled(tls.send, b"a piece of it")
    assert tls.torn
    wire.make_room()
    with pytest.raises(anyio.BrokenResourceError):
        await tls.send(b"next")
    assert arrived() == b""


@pytest.mark.parametrize("room", [10, float("inf")])
async def test_let_go_ends_both_layers_or_drops_the_connection(room: float) -> None:
    tls, wire, arrived, front, back = nested()
    wire.make_room(room)
    await tls.let_go()
    assert wire.calls == ["abort"]  # the wire lets go by an abort
    assert arrived() == b""
    assert (front.ended, back.ended) == (room > 10, room > 10)


async def test_an_alert_goes_out_through_the_outer_layer() -> None:
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
async def test_a_send_that_is_cancelled_before_it_begins_changes_nothing(
    version: ssl.TLSVersion,
) -> None:
    tls, wire, server = shaken(version)
    assert await cancelled_at_once(tls.send, b"never")
    assert not tls.torn
    await tls.send(b"next")
    assert server.decrypt(wire.take()) == b"next"


@each_version
@pytest.mark.parametrize("room", [0, 1, 20, 16384, 70_000, 200_000])
async def test_nothing_may_follow_a_cancelled_send(version: ssl.TLSVersion, room: int) -> None:
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


async def test_nothing_may_follow_a_cancelled_short_send() -> None:
    # OpenSSL has encrypted all of it, but none of it may ever go out.
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


async def test_closed_reports_that_closing_dropped_a_message_that_was_cut_short() -> None:
    tls, wire, _ = shaken(TLS13)
    socket = opened_by(Made(tls))
    await socket.opened
    wire.make_room(0)
    await cancelled(tls.send, b"short")  # the socket's own state does not show this
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
