"""start_tls(): when it is allowed, and what becomes of the plain socket and its connection."""

from __future__ import annotations

import socket as stdlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.streams.tls import TLSAttribute, TLSStream

from anyio_connect import (
    BrokenError,
    ClosedError,
    Connector,
    ConnectTimeoutError,
    InvalidOptionError,
    RefusedError,
    Socket,
    SocketError,
    StartTLSError,
    TLSError,
    connect,
)
from anyio_connect._lifecycle import REFUSALS, Event, Verdict
from anyio_connect._refusals import WHY_NO_DETACH, WHY_NO_UPGRADE
from support import tls_peers
from support.errors import is_copy
from support.peers import Listener, Peer, listening, refusing_address
from support.sockets import BIG, Slow, arrived, dialled, opened_by, raw, settle
from support.tls_peers import certificate, client_context
from support.turns import all_blocked


def server_context(*names: str) -> ssl.SSLContext:
    context = tls_peers.server_context(cert=certificate(*(names or ("127.0.0.1",))))
    context.num_tickets = 2  # sent without a request, as most servers do
    context.set_alpn_protocols(["smtp"])
    return context


@asynccontextmanager
async def plain(**options: Any) -> AsyncIterator[tuple[Socket, Peer, Listener]]:
    """An open socket that may be upgraded, and its scripted peer."""
    settings: dict[str, Any] = {"secure_transport": "starttls", "ssl_context": client_context()}
    async with listening() as listener:
        socket = connect(listener.address, **{**settings, **options})
        try:
            await socket.opened
            yield socket, await listener.accept(), listener
        finally:
            await socket.close()


async def shake(
    peer: Peer, *names: str, server_context: Callable[..., ssl.SSLContext] = server_context
) -> TLSStream:
    """Make the server's end of a handshake; closing that stream closes the peer's socket."""
    # AnyIO takes the descriptor over, so it gets one of its own.
    stream = await anyio.abc.SocketStream.from_socket(peer.sock.dup())
    peer.close()
    return await TLSStream.wrap(stream, server_side=True, ssl_context=server_context(*names))


async def upgraded(socket: Socket, peer: Peer, *names: str, **options: Any) -> tuple[Any, Any]:
    secure = socket.start_tls(**options)
    streams: list[TLSStream] = []

    async def serve() -> None:
        streams.append(await shake(peer, *names))

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        await secure.opened
    return secure, streams[0]


async def test_upgrade() -> None:
    async with plain() as (socket, peer, _):
        await socket.send(b"STARTTLS")
        assert await peer.receive() == b"STARTTLS"
        assert not socket.upgraded
        secure, stream = await upgraded(socket, peer)
        async with secure:
            assert socket.upgraded
            assert socket.secure_transport == "starttls"
            assert socket.closed.result() is None
            assert secure.secure_transport == "on"
            assert not secure.upgraded
            assert secure.opened is not socket.opened
            for call in (socket.receive(), socket.send(b"x"), socket.send_eof()):
                with pytest.raises(ClosedError, match="use the socket that it returned"):
                    await call
            await socket.close()  # does nothing: the connection belongs to the new socket
            await secure.send(b"in secret")
            assert await stream.receive() == b"in secret"
            assert secure.extra(TLSAttribute.tls_version) == "TLSv1.3"
        await anyio.aclose_forcefully(stream)


async def test_arguments_override_those_of_connect() -> None:
    async with plain(ssl_context=ssl.create_default_context()) as (socket, peer, _):
        secure, stream = await upgraded(
            socket,
            peer,
            "right.example",
            expected_server_hostname="right.example",
            ssl_context=client_context(),
        )
        assert (await secure.opened).alpn is None
        await secure.close()
        await anyio.aclose_forcefully(stream)


async def test_none_means_not_given() -> None:
    none = dict.fromkeys(("expected_server_hostname", "ssl_context", "alpn"))
    async with plain(sni="sni.example", alpn=None, connect_timeout=None) as (socket, peer, _):
        secure, stream = await upgraded(socket, peer, "sni.example", **none)
        await secure.opened
        await secure.close()
        await anyio.aclose_forcefully(stream)


@pytest.mark.parametrize("option", ["sni", "expected_server_hostname"])
async def test_a_name_that_is_not_ascii_is_verified_as_idna(option: str) -> None:
    name = {option: "B\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example"}
    of_connect, of_start_tls = (name, {}) if option == "sni" else ({}, name)
    async with plain(**of_connect) as (socket, peer, _):
        secure, stream = await upgraded(socket, peer, "xn--bcher-kva.example", **of_start_tls)
        await secure.opened
        await secure.close()
        await anyio.aclose_forcefully(stream)


async def test_a_context_brings_its_own_protocols() -> None:
    async with (
        listening() as listener,
        connect(listener.address, secure_transport="starttls", alpn=["x"]) as socket,
    ):
        context = client_context()
        context.set_alpn_protocols(["smtp"])
        secure, stream = await upgraded(socket, await listener.accept(), ssl_context=context)
        assert (await secure.opened).alpn == "smtp"
        await secure.close()
        await anyio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    "arguments",
    [
        {"expected_server_hostname": ""},
        {"expected_server_hostname": 5},
        {"alpn": "smtp"},
        {"ssl_context": object()},
        {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
        {"alpn": ["smtp"]},  # refused because connect() was given an ssl_context
    ],
)
async def test_bad_arguments_change_nothing(arguments: Any) -> None:
    async with plain() as (socket, peer, _):
        with pytest.raises(InvalidOptionError):
            socket.start_tls(**arguments)
        assert not socket.upgraded
        await socket.send(b"still plain")
        assert await peer.receive() == b"still plain"


def lax_context(how: str) -> ssl.SSLContext:
    """A context that checks no names."""
    context = client_context()
    context.check_hostname = False
    if how == "no certificate":
        context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("how", ["no names", "no certificate"])
@pytest.mark.parametrize("of", ["connect", "start_tls"])
async def test_an_expected_name_is_refused_with_a_context_that_checks_no_names(
    how: str, of: str
) -> None:
    given: dict[str, Any] = {"ssl_context": lax_context(how)}
    async with plain(**(given if of == "connect" else {})) as (socket, peer, _):
        with pytest.raises(InvalidOptionError, match="an ssl_context that checks no names"):
            socket.start_tls(
                expected_server_hostname="bank.example", **(given if of == "start_tls" else {})
            )
        await socket.send(b"still plain")
        assert await peer.receive() == b"still plain"


async def test_with_a_context_that_checks_no_names_sni_is_sent() -> None:
    asked: list[Any] = []

    def asking() -> ssl.SSLContext:
        context = server_context("other.example")
        context.sni_callback = lambda engine, name, context: asked.append(name)
        return context

    lax = lax_context("no names")
    async with plain(sni="virtual.example", ssl_context=lax) as (socket, peer, _):
        secure = socket.start_tls()
        async with anyio.create_task_group() as group:
            group.start_soon(settle, secure.opened)
            stream = await shake(peer, server_context=asking)
        assert secure.opened.exception() is None
        await secure.close()
        await anyio.aclose_forcefully(stream)
    assert asked == ["virtual.example"]


async def test_an_expected_name_that_contradicts_sni_is_refused() -> None:
    async with plain(sni="one.example") as (socket, peer, _):
        with pytest.raises(InvalidOptionError, match=r"contradicts sni='one\.example'"):
            socket.start_tls(expected_server_hostname="two.example")
        secure, stream = await upgraded(
            socket, peer, "one.example", expected_server_hostname="ONE.example."
        )
        await secure.opened
        await secure.close()
        await anyio.aclose_forcefully(stream)


# --- refused


@pytest.mark.parametrize("mode", ["off", "on"])
def test_refused_unless_secure_transport_is_starttls(mode: Any) -> None:
    socket = connect("127.0.0.1:9", secure_transport=mode)
    with pytest.raises(StartTLSError, match="secure_transport='starttls'"):
        socket.start_tls()


async def test_refused_while_a_receive_is_in_flight() -> None:
    async with plain() as (socket, peer, _), anyio.create_task_group() as group:
        group.start_soon(socket.receive)
        await all_blocked()
        with pytest.raises(StartTLSError, match="receive is in flight"):
            socket.start_tls()
        await peer.send(b"x")


async def test_refused_while_a_receive_waits_for_the_connection() -> None:
    async with listening() as listener, anyio.create_task_group() as group:
        opener = Slow(dialled(listener))
        opener.stop.set()
        socket = opened_by(opener, starttls=True)
        group.start_soon(receive_nothing, socket)
        await all_blocked()
        with pytest.raises(StartTLSError, match="while a receive is in flight"):
            socket.start_tls()
        assert not socket.upgraded
        await socket.close()


async def receive_nothing(socket: Socket) -> None:
    with pytest.raises(ClosedError):
        await socket.receive()


async def test_refused_twice() -> None:
    async with plain() as (socket, _, _):
        secure = socket.start_tls()
        with pytest.raises(StartTLSError, match="already"):
            socket.start_tls()
        await secure.close()


async def test_refused_when_closed_or_ended() -> None:
    async with plain() as (socket, _, _):
        await socket.send_eof()
        with pytest.raises(StartTLSError, match="one of them has ended"):
            socket.start_tls()
        await socket.close()
        with pytest.raises(StartTLSError, match="closed socket"):
            socket.start_tls()


async def test_refused_when_broken_or_never_made() -> None:
    async with plain() as (socket, peer, _):
        peer.rst()
        with pytest.raises(BrokenError):
            await socket.receive()
        with pytest.raises(BrokenError):
            socket.start_tls()
    socket = connect(refusing_address(), secure_transport="starttls")
    with pytest.raises(RefusedError):
        await socket.opened
    with pytest.raises(RefusedError):
        socket.start_tls()


# --- what goes over the wire


@pytest.mark.slow
async def test_a_send_in_flight_goes_out_before_the_handshake() -> None:
    async with plain() as (socket, peer, _), anyio.create_task_group() as group:
        group.start_soon(socket.send, b"p" * BIG)
        await all_blocked()
        secure = socket.start_tls()
        group.start_soon(_fails, secure)
        await all_blocked()
        assert await peer.receive_exactly(BIG) == b"p" * BIG
        assert (await peer.receive_exactly(1)) == b"\x16"  # a handshake record
        peer.close()


@pytest.mark.slow
async def test_a_cancelled_close_of_the_plain_socket_does_not_cut_its_send_short() -> None:
    async with plain() as (socket, peer, _), anyio.create_task_group() as group:
        group.start_soon(socket.send, b"p" * BIG)
        await all_blocked()
        secure = socket.start_tls()
        group.start_soon(_fails, secure)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await socket.close()
        assert scope.cancelled_caught
        assert await peer.receive_exactly(BIG) == b"p" * BIG
        assert (await peer.receive_exactly(1)) == b"\x16"  # a handshake record
        peer.close()


async def _fails(socket: Socket) -> None:
    with pytest.raises(SocketError):
        await socket.opened


async def test_a_send_that_waits_for_the_connection_goes_out_before_the_handshake() -> None:
    async with listening() as listener, anyio.create_task_group() as group:
        opener = Slow(dialled(listener))
        socket = opened_by(opener, starttls=True)
        group.start_soon(socket.send, b"HELLO")
        await all_blocked()
        secure = socket.start_tls()
        group.start_soon(handshake_fails, secure)
        opener.go_on.set()
        peer = await listener.accept()
        assert await peer.receive_exactly(6) == b"HELLO\x16"  # and then a ClientHello
        peer.close()


async def handshake_fails(secure: Socket) -> None:
    with pytest.raises(TLSError):
        await secure.opened


async def test_close_of_the_plain_socket_does_not_wait_for_the_dial() -> None:
    async with listening() as listener, anyio.create_task_group() as group:
        opener = Slow(dialled(listener))
        opener.stop.set()
        socket = opened_by(opener, starttls=True)
        group.start_soon(fails_to_open, socket)
        await all_blocked()
        secure = socket.start_tls()
        assert socket.closed.result() is None
        await socket.close()
        assert not socket.opened.done()  # the dial goes on for the new socket
        await secure.close()
        assert opener.discarded


async def fails_to_open(socket: Socket) -> None:
    with pytest.raises(ClosedError):
        await socket.opened


@pytest.mark.parametrize("when", ["with the go-ahead", "in the kernel", "later"])
async def test_data_in_the_clear_is_never_received(when: str) -> None:
    async with plain() as (socket, peer, _):
        injected = b"250 injected\r\n"
        await peer.send(b"S" + (injected if when == "with the go-ahead" else b""))
        assert await socket.receive(1) == b"S"
        if when == "in the kernel":
            await peer.send(injected)
        secure = socket.start_tls()
        async with anyio.create_task_group() as group:

            async def receive() -> None:
                with pytest.raises(TLSError, match="sent data in the clear"):
                    await secure.receive()

            group.start_soon(receive)
            if when == "later":
                await all_blocked()
                await peer.send(injected)
        error = secure.opened.exception()
        assert isinstance(error, TLSError)
        assert is_copy(secure.closed.exception(), error)
        with pytest.raises(TLSError):
            await secure.send(b"password")
        with pytest.raises(StartTLSError):
            socket.start_tls()
        sent = await peer.receive_all()
        assert sent[:1] == b"\x16"
        assert b"password" not in sent


async def test_a_pending_socket_may_be_upgraded() -> None:
    async with listening() as listener:
        socket = connect(
            listener.address, secure_transport="starttls", ssl_context=client_context()
        )
        secure = socket.start_tls()
        assert socket.upgraded
        assert not socket.opened.done()
        streams = []

        async def serve() -> None:
            streams.append(await shake(await listener.accept()))

        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            await secure.opened
        assert socket.opened.result().remote_address is not None
        await secure.close()
        await anyio.aclose_forcefully(streams[0])


async def test_a_failure_to_connect_fails_the_upgrade() -> None:
    socket = connect(refusing_address(), secure_transport="starttls")
    secure = socket.start_tls()
    with pytest.raises(RefusedError) as caught:
        await secure.opened
    assert is_copy(secure.closed.exception(), caught.value)
    assert is_copy(socket.opened.exception(), caught.value)
    assert socket.closed.result() is None


async def test_connect_timeout_limits_the_handshake() -> None:
    async with plain(connect_timeout=0.1) as (socket, _, _):
        secure = socket.start_tls()
        with pytest.raises(ConnectTimeoutError) as caught:
            await secure.opened
        assert str(caught.value).startswith(
            f"no TLS with {socket.opened.result().remote_address}: "
            "the handshake did not finish within 0.1 seconds: the peer may not speak TLS"
        )
        assert "pass a longer connect_timeout" in str(caught.value)
        assert is_copy(secure.closed.exception(), caught.value)


@pytest.mark.slow
async def test_a_flush_that_takes_too_long_fails_like_a_handshake() -> None:
    """connect_timeout limits it too: a peer that reads nothing would block it for ever."""
    async with listening(receive_buffer=4096) as listener:
        connector = Connector(max_connections=1)
        socket = connector.connect(
            listener.address, secure_transport="starttls", connect_timeout=0.2
        )
        await socket.opened
        async with anyio.create_task_group() as group:

            async def send() -> None:
                with pytest.raises(SocketError):
                    await socket.send(bytes(10_000_000))

            group.start_soon(send)
            await all_blocked()
            secure = socket.start_tls()
            with pytest.raises(ConnectTimeoutError, match="sent before did not go out within"):
                await secure.opened
            assert isinstance(secure.closed.exception(), ConnectTimeoutError)
        async with connector.connect(listener.address):  # its slot is free
            pass


# --- given up


async def test_a_cancelled_handshake_gives_its_slot_back() -> None:
    async with listening() as listener:
        connector = Connector(max_connections=1)
        socket = connector.connect(listener.address, secure_transport="starttls")
        await socket.opened
        peer = await listener.accept()
        async with anyio.create_task_group() as group:
            group.start_soon(socket.start_tls().send, b"hello")
            assert (await peer.receive_exactly(1)) == b"\x16"
            await all_blocked()
            group.cancel_scope.cancel()
        with pytest.raises(ConnectionResetError):
            await peer.receive_all()
        with anyio.fail_after(10):
            async with connector.connect(listener.address):
                pass


async def test_a_handshake_cancelled_part_way_settles_both_futures() -> None:
    async with plain() as (socket, peer, _):
        secure = socket.start_tls()
        async with anyio.create_task_group() as group:
            group.start_soon(secure.opened._wait)
            assert (await peer.receive_exactly(1)) == b"\x16"
            await all_blocked()
            group.cancel_scope.cancel()
        # The handshake cannot be tried again: its connection is gone.
        for future in (secure.opened, secure.closed):
            assert future.done()
            with pytest.raises(TLSError, match="cancelled part-way"):
                await future
        with pytest.raises(ConnectionResetError):
            await peer.receive_all()


@pytest.mark.parametrize("after", ["nothing", "plain opened"])
async def test_closed_before_the_handshake(after: str) -> None:
    async with listening() as listener:
        socket = connect(listener.address, secure_transport="starttls")
        if after == "plain opened":
            await socket.send(b"last words in the clear")
        secure = socket.start_tls()
        await secure.close()
        assert secure.closed.result() is None
        with pytest.raises(ClosedError):
            await secure.opened
        if after == "plain opened":
            peer = await listener.accept()
            assert await peer.receive_all() == b"last words in the clear"
        else:
            with pytest.raises(ClosedError):
                await socket.opened  # no socket is left that could close a connection made now
            with pytest.raises(BlockingIOError):
                listener.sock.accept()


async def test_an_abort_before_the_handshake_resets_the_connection() -> None:
    async with plain() as (socket, peer, _):
        secure = socket.start_tls()
        await secure.writable.abort()
        assert isinstance(secure.closed.exception(), BrokenError)
        with pytest.raises(ConnectionResetError):
            await peer.receive_all()


async def test_data_in_the_clear_does_not_keep_the_connection_open() -> None:
    async with plain() as (socket, peer, _):
        await peer.send(b"nobody reads this")
        arrived(socket)
        ours = raw(socket)
        secure = socket.start_tls()
        await secure.close()
        assert ours.fileno() == -1
        assert await peer.receive_all() == b""


async def test_start_tls_settles_closed_while_the_dial_goes_on() -> None:
    async with listening() as listener, anyio.create_task_group() as group:
        opener = Slow(dialled(listener))
        opener.stop.set()
        socket = opened_by(opener, starttls=True)
        group.start_soon(fails_to_open, socket)
        await all_blocked()
        over = anyio.Event()

        async def watch() -> None:
            await socket.closed
            over.set()

        group.start_soon(watch)
        await all_blocked()
        secure = socket.start_tls()
        await over.wait()
        await secure.close()


async def test_closed_during_the_handshake() -> None:
    async with plain() as (socket, peer, _), anyio.create_task_group() as group:
        secure = socket.start_tls()
        group.start_soon(_fails, secure)
        await peer.receive_exactly(1)
        await all_blocked()
        await secure.close()
        assert secure.closed.result() is None
        with pytest.raises(ConnectionResetError):
            await peer.receive_all()


async def test_closed_while_its_dial_is_cancelled() -> None:
    """The close and the cancellation come at once, during a send; no descriptor stays open."""
    async with plain() as (socket, _, _), anyio.create_task_group() as group:

        async def send() -> None:
            with pytest.raises(SocketError):
                await socket.send(bytes(BIG))

        group.start_soon(send)
        await all_blocked()
        secure = socket.start_tls()
        async with anyio.create_task_group() as dial:
            dial.start_soon(secure.opened._wait)
            await all_blocked()
            dial.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await secure.close()
        await all_blocked()
        assert raw(socket).fileno() == -1


async def test_aborted_in_the_turn_in_which_the_handshake_goes_on() -> None:
    async with plain() as (socket, peer, _), anyio.create_task_group() as group:
        secure = socket.start_tls()
        ours, theirs = stdlib.socketpair()

        async def wait() -> None:
            with pytest.raises(BrokenError, match="aborted on our side"):
                await secure.opened

        async def abort() -> None:
            await anyio.wait_readable(ours)
            await secure.writable.abort()

        with ours, theirs:
            ours.setblocking(False)
            group.start_soon(wait)
            group.start_soon(abort)
            await peer.receive_exactly(1)
            await all_blocked()
            theirs.send(b"x")  # both in the same turn of the event loop
            peer.sock.send(b"\x16\x03\x03\x00")
            with anyio.fail_after(5), pytest.raises(SocketError):
                await secure.closed


async def test_a_send_that_is_cut_short_fails_the_upgrade() -> None:
    async with plain() as (socket, _, _), anyio.create_task_group() as group:
        errors: list[BaseException] = []

        async def note(future: Any) -> None:
            with pytest.raises(BrokenError, match="a send was cut short") as caught:
                await future
            errors.append(caught.value)

        async with anyio.create_task_group() as sending:
            sending.start_soon(socket.send, bytes(BIG))
            await all_blocked()
            secure = socket.start_tls()
            group.start_soon(note, secure.opened)
            await all_blocked()
            sending.cancel_scope.cancel()
        await note(secure.closed)
    assert len(errors) == 2


async def test_a_send_that_breaks_fails_the_upgrade_with_the_same_cause() -> None:
    async with plain() as (socket, peer, _), anyio.create_task_group() as group:
        errors: list[BaseException] = []

        async def note(call: Any) -> None:
            with pytest.raises(BrokenError, match="while sending") as caught:
                await call()
            errors.append(caught.value)

        group.start_soon(note, lambda: socket.send(bytes(BIG)))
        await all_blocked()
        secure = socket.start_tls()
        group.start_soon(note, secure.opened._wait)
        await all_blocked()
        peer.rst()
        with pytest.raises(BrokenError):
            await secure.closed
    assert len(errors) == 2
    assert all(isinstance(error.__cause__, ConnectionResetError) for error in errors)


# --- messages


@pytest.mark.parametrize(
    ("event", "words"), [(Event.UPGRADE, WHY_NO_UPGRADE), (Event.DETACH, WHY_NO_DETACH)]
)
def test_each_refusal_has_words(event: Event, words: dict[Verdict, str]) -> None:
    told_otherwise = {Verdict.FAILED, Verdict.BROKEN}
    assert words.keys() == {verdict for _, verdict in REFUSALS[event]} - told_otherwise
