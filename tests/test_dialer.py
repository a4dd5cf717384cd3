"""``Connector(dialer=)``: a function of the user makes the connections of ``connect()``."""

from __future__ import annotations

import errno
import math
import socket as stdlib
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
import pytest
from anyio.abc import ByteReceiveStream, ByteStream

from anyio_connect import (
    UNRESTRICTED,
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    BrokenError,
    ClosedError,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    Dialer,
    InvalidOptionError,
    RefusedError,
    ResolveError,
    Socket,
    SocketAddress,
    SocketError,
    TLSError,
    _dial_errors,
    connect,
)
from support.connectors import NAMES, VALUES
from support.errors import is_copy
from support.names import Names
from support.peers import listening, refusing_address
from support.sockets import arrived, raw
from support.tls_peers import NAME, TLS13, TLSPeer, client_context, server_context
from support.turns import all_blocked

#: Judges addresses, and allows all but one.
JUDGE = AddressPolicy(deny=["10.0.0.1"])
PORTS = AddressPolicy(deny_ports=[25])


class Stream(ByteStream):
    """A stream that leads nowhere, and records whether it was closed."""

    def __init__(self) -> None:
        self.closed = anyio.Event()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(self, item: bytes) -> None: ...

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None:
        self.closed.set()


class Asked:
    """A dialer that records each address, and then calls ``then``."""

    def __init__(self, then: Callable[[SocketAddress], Awaitable[ByteStream]]) -> None:
        self.then = then
        self.addresses: list[SocketAddress] = []

    async def __call__(self, address: SocketAddress, /) -> ByteStream:
        self.addresses.append(address)
        return await self.then(address)


def raising(error: BaseException) -> Dialer:
    async def dial(address: SocketAddress) -> ByteStream:
        raise error

    return dial


async def nowhere(address: SocketAddress) -> ByteStream:
    return Stream()


async def for_ever(address: SocketAddress) -> ByteStream:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


# --- what a dialer is given


@pytest.mark.parametrize("policy", [UNRESTRICTED, PORTS, UNRESTRICTED & PORTS])
async def test_a_dialer_is_given_the_name_if_no_address_is_judged(policy: AddressPolicy) -> None:
    dialer = Asked(nowhere)
    async with Connector(policy, dialer=dialer).connect("DB.Example:5432") as socket:
        assert (await socket.opened).remote_address is None
    assert dialer.addresses == [SocketAddress("db.example", 5432)]
    assert isinstance(dialer.addresses[0], SocketAddress)


class Own(AddressPolicy):
    """A class of the user, which may judge addresses too."""


@pytest.mark.parametrize(
    "policy",
    [
        JUDGE,
        Own(),
        PORTS & JUDGE,
        AddressPolicy(allow=["192.0.2.0/24"]),
        AddressPolicy(refuse_loops=True),
    ],
    ids=str,
)
async def test_a_dialer_is_given_the_address_if_addresses_are_judged(
    policy: AddressPolicy, names: Names
) -> None:
    names["db.example"] = ["192.0.2.7"]
    dialer = Asked(nowhere)
    async with Connector(policy, dialer=dialer).connect("db.example:5432"):
        pass
    assert dialer.addresses == [SocketAddress("192.0.2.7", 5432)]


async def test_a_forbidden_address_is_not_dialled(names: Names) -> None:
    names["db.example"] = ["10.0.0.1"]
    names["both.example"] = ["10.0.0.1", "192.0.2.7", "::ffff:10.0.0.1", "2001:db8::1"]
    dialer = Asked(nowhere)
    connector = Connector(JUDGE & PORTS, dialer=dialer)
    for address in ("db.example:80", "10.0.0.1:80", "both.example:25"):
        with pytest.raises(AddressNotAllowedError):
            await connector.connect(address).opened
    assert not dialer.addresses
    async with connector.connect("both.example:80"):
        pass
    assert dialer.addresses == [SocketAddress("192.0.2.7", 80)]


async def test_the_addresses_are_raced(names: Names) -> None:
    """The first and the second never answer. They are cancelled when the third is connected."""
    names["db.example"] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    cancelled: list[str] = []

    async def dial(address: SocketAddress) -> ByteStream:
        if address.hostname == "192.0.2.3":
            return Stream()
        try:
            return await for_ever(address)
        finally:
            cancelled.append(address.hostname)

    dialer = Asked(dial)
    connector = Connector(JUDGE, dialer=dialer, happy_eyeballs_delay=0.001)
    async with connector.connect("db.example:1"):
        assert [address.hostname for address in dialer.addresses] == names["db.example"]
        assert sorted(cancelled) == ["192.0.2.1", "192.0.2.2"]


async def test_the_next_address_is_tried_when_one_fails(names: Names) -> None:
    names["db.example"] = ["192.0.2.1", "192.0.2.2"]

    async def dial(address: SocketAddress) -> ByteStream:
        if address.hostname == "192.0.2.1":
            raise OSError(errno.ECONNREFUSED, "no")
        return Stream()

    connector = Connector(JUDGE, dialer=dial, happy_eyeballs_delay=math.inf)
    async with connector.connect("db.example:1") as socket:
        await socket.send(b"x")


# --- what a dialer raises


@pytest.mark.parametrize(
    ("error", "kind", "number", "why"),
    [
        (OSError(errno.ECONNREFUSED, "no"), RefusedError, errno.ECONNREFUSED, "nothing is listen"),
        (ConnectionRefusedError(), RefusedError, errno.ECONNREFUSED, "connection refused"),
        (OSError(errno.ETIMEDOUT, "x"), ConnectTimeoutError, errno.ETIMEDOUT, "no answer"),
        (TimeoutError(), ConnectTimeoutError, errno.ETIMEDOUT, "within the time limit of the"),
        (OSError(errno.ENETUNREACH, "x"), ConnectError, errno.ENETUNREACH, "network unreachable"),
        (OSError(errno.EHOSTUNREACH, "x"), ConnectError, errno.EHOSTUNREACH, "host unreachable"),
        (
            stdlib.gaierror(stdlib.EAI_NONAME, "unknown"),
            ResolveError,
            stdlib.EAI_NONAME,
            "the name has no address: unknown",
        ),
        (OSError(errno.EIO, "I/O error"), ConnectError, errno.EIO, "raised OSError: I/O error"),
        (OSError("by hand"), ConnectError, None, "dialer raised OSError: by hand"),
        (KeyError("host"), ConnectError, None, "the Connector's dialer raised KeyError: 'host'"),
        (anyio.EndOfStream(), ConnectError, None, "the Connector's dialer raised EndOfStream"),
        (anyio.BrokenResourceError(), ConnectError, None, "raised BrokenResourceError"),
        (StopIteration(), ConnectError, None, "dialer raised RuntimeError: coroutine raised Stop"),
    ],
    ids=repr,
)
async def test_errors_of_a_dialer_are_reported_like_those_of_the_system(
    error: Exception, kind: type[ConnectError], number: int | None, why: str
) -> None:
    socket = Connector(dialer=raising(error)).connect("db.example:5432")
    with pytest.raises(SocketError) as caught:
        await socket.opened
    assert type(caught.value) is kind
    told: Any = caught.value
    assert str(told).startswith("cannot connect to db.example:5432: ")
    assert str(told).count("db.example") == 1
    assert why in str(told)
    assert told.errno == number
    assert type(told.attempts[0]) is kind
    if not isinstance(error, StopIteration):
        assert is_copy(told.__cause__, error)
    assert type(socket.closed.exception()) is kind


async def test_a_long_message_with_escapes_is_quoted_short_and_printable() -> None:
    socket = Connector(dialer=raising(ValueError("\x1b[2J" * 500))).connect("db.example:1")
    with pytest.raises(ConnectError) as caught:
        await socket.opened
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


async def test_what_anyio_raises_for_a_refused_connection() -> None:
    """Only its cause has an errno."""
    host, port = refusing_address()

    async def dial(address: SocketAddress) -> ByteStream:
        return await anyio.connect_tcp(host, port)

    with pytest.raises(RefusedError) as caught:
        await Connector(dialer=dial).connect("db.example:1").opened
    assert caught.value.errno == errno.ECONNREFUSED
    assert str(caught.value.__cause__) == "All connection attempts failed"


def test_the_docstring_says_which_errors_of_the_system_have_a_class() -> None:
    assert Dialer.__doc__ is not None
    for number, (kind, _) in _dial_errors._KINDS.items():
        code = errno.errorcode[number]
        told = kind is ConnectError or (
            f"``{code}``" in Dialer.__doc__ and f":class:`{kind.__name__}`" in Dialer.__doc__
        )
        assert told, f"say in the docstring of Dialer that {code} becomes {kind.__name__}"


class HopError(RefusedError):
    """An error as a user may derive it, with an attribute of its own."""

    def __init__(self, message: str, hop: int) -> None:
        super().__init__(message)
        self.hop = hop


@pytest.mark.parametrize(
    "error",
    [HopError("refused at hop 3", 3), TLSError("no"), BrokenError("lost"), ClosedError("closed")],
    ids=repr,
)
@pytest.mark.parametrize("policy", [UNRESTRICTED, JUDGE], ids=["name", "address"])
async def test_a_socket_error_of_a_dialer_is_raised_unchanged(
    error: SocketError, policy: AddressPolicy, names: Names
) -> None:
    names["db.example"] = ["192.0.2.1"]
    socket = Connector(policy, dialer=raising(error)).connect("db.example:1")
    with pytest.raises(SocketError) as caught:
        await socket.opened
    assert is_copy(caught.value, error)
    assert is_copy(socket.closed.exception(), error)
    assert getattr(caught.value, "hop", 3) == 3


async def test_the_failures_of_several_addresses_are_reported_together(names: Names) -> None:
    names["db.example"] = ["192.0.2.1", "10.0.0.1", "192.0.2.2"]
    errors = {"192.0.2.1": BrokenError("lost"), "192.0.2.2": HopError("refused at hop 3", 3)}

    async def dial(address: SocketAddress) -> ByteStream:
        raise errors[address.hostname]

    with pytest.raises(ConnectError) as caught:
        await Connector(JUDGE, dialer=dial).connect("db.example:1").opened
    first, second = caught.value.attempts
    assert type(caught.value) is ConnectError
    assert str(first) == "192.0.2.1:1: the Connector's dialer raised BrokenError: lost"
    assert is_copy(second, errors["192.0.2.2"])
    assert "10.0.0.1:1: the Connector's policy forbids it" in str(caught.value)


async def test_a_base_exception_of_a_dialer_goes_through() -> None:
    class Stop(BaseException):
        pass

    socket = Connector(dialer=raising(Stop())).connect("db.example:1")
    with pytest.raises(Stop):
        await socket.opened
    assert not socket.opened.done()


# --- what a dialer returns


@pytest.mark.parametrize("answer", [None, b"stream", object()], ids=["None", "bytes", "object"])
async def test_a_result_that_is_not_a_stream_is_an_error(answer: Any) -> None:
    async def dial(address: SocketAddress) -> Any:
        return answer

    kind = type(answer).__name__
    with pytest.raises(
        ConnectError, match=f"dialer returned {kind}, which is not a stream: return"
    ):
        await Connector(dialer=dial).connect("db.example:1").opened


@pytest.mark.parametrize("answer", [None, Stream], ids=["None", "a stream"])
async def test_a_dialer_that_is_not_async_is_an_error(answer: Any) -> None:
    def dial(address: SocketAddress) -> Any:
        return answer and answer()

    connector = Connector(dialer=dial)
    with pytest.raises(ConnectError, match="which is not a stream: write it with 'async def'"):
        await connector.connect("db.example:1").opened


async def test_a_stream_of_one_direction_is_closed() -> None:
    class Half(ByteReceiveStream):
        closed = False

        async def receive(self, max_bytes: int = 65536) -> bytes:
            raise AssertionError("unreachable")

        async def aclose(self) -> None:
            self.closed = True
            raise ValueError("which is of no interest")

    half = Half()

    async def dial(address: SocketAddress) -> Any:
        return half

    with pytest.raises(ConnectError, match="dialer returned Half, which is not a stream"):
        await Connector(dialer=dial).connect("db.example:1").opened
    assert half.closed


async def test_a_socket_that_a_dialer_returns_is_connected_first() -> None:
    async with listening() as listener:

        async def dial(address: SocketAddress) -> ByteStream:
            return connect(listener.address)

        async with Connector(dialer=dial).connect("db.example:1") as socket:
            host, port = listener.address
            assert (await socket.opened).remote_address == f"{host}:{port}"
            peer = await listener.accept()
            await socket.send(b"ping")
            assert await peer.receive() == b"ping"
            await peer.send(b"pong")
            assert await socket.receive() == b"pong"
        assert await peer.receive() == b""


async def test_a_socket_that_a_dialer_returns_gives_its_connection_away() -> None:
    """So the new socket has all of TCP: it can reset and half-close, and notices hang-ups."""
    async with listening() as listener:
        slots = Connector(max_connections=1)
        inner: list[Socket] = []

        async def dial(address: SocketAddress) -> ByteStream:
            inner.append(slots.connect(listener.address))
            return inner[0]

        connector = Connector(dialer=dial)
        socket = connector.connect("db.example:1", allow_half_open=True)
        await socket.opened
        assert inner[0].closed.done()
        assert raw(socket).getpeername() == listener.address
        peer = await listener.accept()
        peer.fin()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        await socket.send(b"after your end")
        assert await peer.receive() == b"after your end"
        other = slots.connect(listener.address, connect_timeout=0.01)
        with pytest.raises(ConnectTimeoutError, match="no slot"):
            await other.opened
        await socket.writable.abort()
        with pytest.raises(ConnectionResetError):
            await peer.receive()
        async with slots.connect(listener.address, connect_timeout=5):
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has TCP_USER_TIMEOUT")
@pytest.mark.parametrize(("silence", "limit"), [(30, 90_000), (math.inf, 0)])
async def test_a_socket_that_a_dialer_returns_keeps_its_keepalive(
    silence: float, limit: int
) -> None:
    async with listening() as listener:

        async def dial(address: SocketAddress) -> ByteStream:
            return connect(listener.address, keep_alive=silence)

        async with Connector(dialer=dial).connect("db.example:1", keep_alive=7) as socket:
            sock = raw(socket)
            kept = sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_KEEPALIVE)
            assert bool(kept) == (silence != math.inf)
            assert sock.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_USER_TIMEOUT) == limit
            idle = sock.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_KEEPIDLE)
            assert not kept or idle == silence


async def test_a_dialer_may_return_a_socket_over_tls() -> None:
    async with listening() as listener, anyio.create_task_group() as group:

        async def serve() -> None:
            peer = TLSPeer(await listener.accept(), server_context(TLS13))
            await peer.shake()
            while data := await peer.receive():
                await peer.send(data)

        group.start_soon(serve)
        outside = Connector(ssl_context=client_context())

        async def dial(address: SocketAddress) -> ByteStream:
            return outside.connect(listener.address, secure_transport="on", sni=NAME)

        async with Connector(dialer=dial).connect("db.example:1") as socket:
            await socket.send(b"ping")
            assert await socket.receive() == b"ping"


async def test_a_socket_that_cannot_be_connected_fails_the_dial() -> None:
    inner: list[Socket] = []

    async def dial(address: SocketAddress) -> ByteStream:
        inner.append(connect(refusing_address()))
        return inner[0]

    with pytest.raises(RefusedError) as caught:
        await Connector(dialer=dial).connect("db.example:1").opened
    assert is_copy(caught.value, inner[0].opened.exception())


async def test_a_socket_that_is_connected_too_late_is_closed() -> None:
    inner: list[Socket] = []

    async def dial(address: SocketAddress) -> ByteStream:
        inner.append(Connector(dialer=for_ever).connect(address))
        return inner[0]

    socket = Connector(dialer=dial).connect("db.example:1", connect_timeout=0.01)
    with pytest.raises(ConnectTimeoutError):
        await socket.opened
    assert inner[0].closed.done()


# --- time limits and cancellation


async def test_the_time_limit_cancels_the_dialer() -> None:
    cancelled = anyio.Event()

    async def dial(address: SocketAddress) -> ByteStream:
        try:
            return await for_ever(address)
        finally:
            cancelled.set()

    socket = Connector(dialer=dial).connect("db.example:1", connect_timeout=0.01)
    with pytest.raises(ConnectTimeoutError) as caught:
        await socket.opened
    assert cancelled.is_set()
    assert str(caught.value) == "cannot connect to db.example:1: no connection within 0.01 seconds"


async def test_a_timeout_names_the_addresses_that_are_silent(names: Names) -> None:
    names["db.example"] = ["192.0.2.1", "192.0.2.2"]
    connector = Connector(JUDGE, dialer=for_ever, happy_eyeballs_delay=0)
    with pytest.raises(ConnectTimeoutError, match=r"from 192\.0\.2\.1:1, 192\.0\.2\.2:1"):
        await connector.connect("db.example:1", connect_timeout=0.05).opened


@pytest.mark.parametrize("how", ["close", "abort", "timeout", "cancel"])
async def test_a_stream_that_comes_too_late_is_closed(how: str) -> None:
    """The dialer shields itself, and returns its stream when the dial is over already."""
    began, go_on = anyio.Event(), anyio.Event()
    stream = Stream()

    async def dial(address: SocketAddress) -> ByteStream:
        began.set()
        with anyio.CancelScope(shield=True):
            await go_on.wait()
        return stream

    limit = 0.01 if how == "timeout" else None
    socket = Connector(dialer=dial).connect("db.example:1", connect_timeout=limit)

    async def open_it() -> None:
        with suppress(SocketError), scope:
            await socket.opened

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(open_it)
        await began.wait()
        if how == "close":
            group.start_soon(socket.close)
        elif how == "abort":
            await socket.writable.abort()
        elif how == "cancel":
            scope.cancel()
        else:
            await anyio.sleep(0.02)
        await all_blocked()
        go_on.set()
    assert stream.closed.is_set()
    if how == "timeout":
        assert isinstance(socket.opened.exception(), ConnectTimeoutError)
    elif how == "cancel":
        assert not socket.opened.done()
    else:
        assert isinstance(socket.opened.exception(), (ClosedError, BrokenError))


async def test_the_stream_is_closed_with_the_socket() -> None:
    stream = Stream()

    async def dial(address: SocketAddress) -> ByteStream:
        return stream

    async with Connector(dialer=dial).connect("db.example:1"):
        assert not stream.closed.is_set()
    assert stream.closed.is_set()


async def test_a_dialled_stream_holds_a_slot() -> None:
    connector = Connector(max_connections=1, dialer=nowhere)
    first = connector.connect("db.example:1")
    await first.opened
    with pytest.raises(ConnectTimeoutError, match="no slot came free"):
        await connector.connect("db.example:1", connect_timeout=0.01).opened
    await first.close()
    async with connector.connect("db.example:1", connect_timeout=5):
        pass


# --- TLS


@pytest.mark.parametrize("starttls", [False, True], ids=["on", "starttls"])
async def test_tls_over_a_dialled_stream(starttls: bool) -> None:
    """TLS verifies the name that connect() was given, wherever the dialer connects to."""
    async with listening() as listener, anyio.create_task_group() as group:

        async def serve() -> None:
            peer = TLSPeer(await listener.accept(), server_context(TLS13))
            if starttls:
                await peer.peer.receive_exactly(2)
                await peer.peer.send(b"S")
            await peer.shake()
            await peer.send(await peer.receive())
            assert await peer.receive() == b""

        async def dial(address: SocketAddress) -> ByteStream:
            return await anyio.connect_tcp(*listener.address)

        group.start_soon(serve)
        connector = Connector(dialer=dial, ssl_context=client_context())
        address = (NAME, 443)
        if starttls:
            plain = connector.connect(address, secure_transport="starttls")
            await plain.send(b"go")
            assert await plain.receive(1) == b"S"
            socket = plain.start_tls()
        else:
            socket = connector.connect(address, secure_transport="on")
        async with socket:
            await socket.send(b"ping")
            assert await socket.receive() == b"ping"


async def test_a_certificate_for_another_name_is_refused() -> None:
    async with listening() as listener, anyio.create_task_group() as group:

        async def serve() -> None:
            with suppress(Exception):
                await TLSPeer(await listener.accept(), server_context(TLS13)).shake()

        async def dial(address: SocketAddress) -> ByteStream:
            return await anyio.connect_tcp(*listener.address)

        group.start_soon(serve)
        connector = Connector(dialer=dial, ssl_context=client_context())
        with pytest.raises(TLSError, match=r"db\.example"):
            await connector.connect("db.example:443", secure_transport="on").opened


# --- options


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"dialer": "ssh"}, "bad value for dialer: 'ssh': must be an async function"),
        ({"dialer": nowhere, "local_host": "127.0.0.1"}, "local_host='127.0.0.1' has no effect"),
        ({"dialer": nowhere, "happy_eyeballs_delay": 1}, "happy_eyeballs_delay=1 has no effect"),
        (
            {"dialer": nowhere, "happy_eyeballs_delay": 1, "policy": PORTS},
            "which is given the name, unless the policy judges addresses: leave it out",
        ),
    ],
)
def test_a_value_that_has_no_effect_is_an_error(values: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        Connector(**values)
    assert why in str(caught.value)


#: Values that have no effect with a dialer, because the dialer makes the connection.
REFUSED = {"local_host", "happy_eyeballs_delay", "prepare", "proxy"}
#: Values that mean the same with a dialer, or whose docstring says what they mean then.
TAKEN = {
    *("policy", "max_connections", "ssl_context", "close_timeout", "connect_timeout"),
    *("keep_alive", "resolver", "dialer"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_each_value_that_a_dialer_makes_useless_is_an_error(name: str) -> None:
    with pytest.raises(InvalidOptionError, match=name):
        Connector(**{"dialer": nowhere, name: VALUES[name]})


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_each_other_value_is_accepted_with_a_dialer(name: str) -> None:
    assert getattr(Connector(**{"dialer": nowhere, name: VALUES[name]}), name) == VALUES[name]


def test_each_value_is_accepted_or_refused_with_a_dialer() -> None:
    new = {*NAMES} - REFUSED - TAKEN
    assert not new, (
        f"do {new} mean anything with a dialer, and through a proxy (_tunnel)? Refuse a value "
        "that does not, in _check_dialer() of _connector, and add it to REFUSED; or test its "
        "effect, and add it to TAKEN. Say it in the docstring, too"
    )


def test_a_dialer_is_a_value_like_others() -> None:
    connector = Connector(WORKERS, dialer=nowhere, happy_eyeballs_delay=1)
    assert connector.dialer is nowhere
    assert replace(connector, dialer=None).dialer is None
    assert Connector().dialer is None
    assert replace(Connector(), dialer=nowhere).dialer is nowhere


# --- any stream


async def test_a_dialer_may_return_the_stream_of_a_unix_socket(tmp_path: Any) -> None:
    path = tmp_path / "socket"
    async with await anyio.create_unix_listener(path) as listener:

        async def echo(stream: ByteStream) -> None:
            async with stream:
                async for data in stream:
                    await stream.send(data)
                await stream.send_eof()

        async def dial(address: SocketAddress) -> ByteStream:
            return await anyio.connect_unix(path)

        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            async with Connector(dialer=dial).connect("db.example:1") as socket:
                assert (await socket.opened).remote_address is None
                await socket.send(b"over a path")
                await socket.send_eof()
                assert b"".join([data async for data in socket.readable]) == b"over a path"
                await socket.closed
            group.cancel_scope.cancel()


async def test_an_abort_resets_the_connection_of_a_socket_that_a_dialer_returned() -> None:
    """Also if the socket cannot give its connection away, here because of data read ahead."""
    async with listening() as listener:
        peers = []

        async def dial(_: SocketAddress) -> Socket:
            socket = connect(listener.address)
            await socket.opened
            peers.append(await listener.accept())
            await peers[0].send(b"ready\nmore")
            arrived(socket)
            assert await socket.receive_until(b"\n", 100) == b"ready"
            return socket

        socket = Connector(dialer=dial).connect("made-up.example:1")
        assert await socket.receive() == b"more"
        await socket.send(b"half of a message")
        await socket.writable.abort()
        with pytest.raises(ConnectionResetError):
            await peers[0].receive_all()


async def test_an_address_with_an_unknown_zone_is_one_failed_attempt_of_several() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["fe80::1%999", "127.0.0.1"]

    async with listening() as listener:

        async def dial(address: SocketAddress) -> anyio.abc.ByteStream:
            return await anyio.connect_tcp(*address)

        connector = Connector(AddressPolicy(deny=["127.0.0.2"]), resolver=resolve, dialer=dial)
        async with connector.connect(("made-up.example", listener.address[1])) as socket:
            assert (await socket.opened).remote_address == "{}:{}".format(*listener.address)
