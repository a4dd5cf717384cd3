"""``Connector(proxy=)``: HTTP CONNECT, SOCKS5, and all that a proxy may do wrong."""

from __future__ import annotations

import base64
import itertools
import re
import socket as stdlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_connect import (
    UNRESTRICTED,
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    BrokenError,
    CertificateError,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    ProxyError,
    ResolveError,
    Socket,
    SocketInfo,
    TLSError,
    _dial,
)
from support.cancelling import CancelAt, Moment
from support.cycles import nothing_to_collect
from support.peers import listening, refusing_address
from support.proxies import (
    CREDENTIALS,
    ESTABLISHED,
    JUDGE,
    PORTS,
    SECRET,
    SUCCEEDED,
    Line,
    Proxy,
    Script,
    echo,
    hear_http,
    hear_socks,
    http,
    proxying,
    says,
    silent,
    socks,
)
from support.sockets import raw, wait_for
from support.spying import slots
from support.tls_peers import (
    NAME,
    TLSPeer,
    client_context,
    server_context,
)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """A name server of our own: the addresses of each name, as (ip, port) or as ip alone."""
    known: dict[str, list[Any]] = {}

    async def getaddrinfo(host: str, port: int) -> list[Any]:
        await checkpoint()
        found = [each if isinstance(each, tuple) else (each, port) for each in known[host]]
        return [
            (stdlib.AF_INET6, stdlib.SOCK_STREAM, 6, "", (ip, at, 0, 0))
            if ":" in ip
            else (stdlib.AF_INET, stdlib.SOCK_STREAM, 6, "", (ip, at))
            for ip, at in found
        ]

    monkeypatch.setattr(_dial, "getaddrinfo", getaddrinfo)
    return known


def told(error: BaseException | None) -> Iterator[str]:
    """All that an error says, with its causes, its context and its attempts."""
    if error is not None:
        yield "".join(traceback.format_exception(error))
        yield repr(error)
        yield repr(vars(error))
        yield from told(error.__cause__)
        yield from told(error.__context__)
        for attempt in getattr(error, "attempts", ()):
            yield from told(attempt)


async def failing(
    script: Script, url: str, address: str = "db.example:5432", **options: Any
) -> ConnectError:
    """Connect through a proxy that does so, in vain; return the error, which has no secret.

    ``url`` has the port left out.
    """
    scheme, _, rest = url.partition("://")
    over_tls = scheme == "https"
    context = client_context() if over_tls else None
    async with proxying(script, over_tls=over_tls) as proxy:
        connector = Connector(proxy=f"{scheme}://{rest}:{proxy.port}", ssl_context=context)
        with pytest.raises(ConnectError) as caught:
            await connector.connect(address, **options).opened
    token = base64.b64encode(f"user:{SECRET}".encode()).decode()
    for text in told(caught.value):
        assert SECRET not in text
        assert token not in text
    return caught.value


# --- through it


async def use(socket: Socket) -> SocketInfo:
    """Talk with the target, which echoes; both sides end."""
    async with socket:
        info = await socket.opened
        await socket.send(b"hello")
        assert await socket.receive_exactly(5) == b"hello"
        await socket.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
    return info


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("DB.Example:5432", b"db.example:5432"),
        ("192.0.2.1:80", b"192.0.2.1:80"),
        ("[2001:DB8:0::1]:80", b"[2001:db8::1]:80"),
    ],
)
async def test_http_connect(address: str, target: bytes) -> None:
    async with proxying(http()) as proxy:
        info = await use(Connector(proxy=proxy.url("http")).connect(address))
        assert proxy.heads == [b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, target)]
    assert info.remote_address == target.decode()
    assert info.proxy_address == f"127.0.0.1:{proxy.port}"
    assert str(info.local_address).startswith("127.0.0.1:")


async def test_http_basic_authentication() -> None:
    async with proxying(http()) as proxy:
        await use(Connector(proxy=proxy.url("http", CREDENTIALS)).connect("h:1"))
        token = base64.b64encode(f"user:{SECRET}".encode())
        assert b"\r\nProxy-Authorization: Basic %b\r\n" % token in proxy.heads[0]


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("DB.Example:5432", "db.example:5432"),
        ("192.0.2.1:80", "192.0.2.1:80"),
        ("[2001:db8::1]:80", "[2001:0db8:0000:0000:0000:0000:0000:0001]:80"),
        (f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}:65535", None),
    ],
)
async def test_socks5_with_names_resolved_there(address: str, asked: str | None) -> None:
    async with proxying(socks()) as proxy:
        info = await use(Connector(proxy=proxy.url("socks5h")).connect(address))
        assert proxy.asked == [asked or address]
        assert proxy.said == [(b"\0", b"", b"")]
    assert str(info.remote_address).lower() == address.lower()


async def test_socks5_with_names_resolved_here(names: dict[str, list[Any]]) -> None:
    names["db.example"] = ["2001:db8::1"]
    async with proxying(socks()) as proxy:
        info = await use(Connector(proxy=proxy.url("socks5")).connect("db.example:5432"))
        assert proxy.asked == ["[2001:0db8:0000:0000:0000:0000:0000:0001]:5432"]
    assert info.remote_address == "[2001:db8::1]:5432"


@pytest.mark.parametrize("wants_user", [True, False])
async def test_socks5_offers_a_user_and_a_password(wants_user: bool) -> None:
    async with proxying(socks(wants_user=wants_user)) as proxy:
        await use(Connector(proxy=proxy.url("socks5h", CREDENTIALS)).connect("h:1"))
        heard = (b"user", SECRET.encode()) if wants_user else (b"", b"")
        assert proxy.said == [(b"\0\2", *heard)]


@pytest.mark.parametrize("kind", [1, 3, 4])
async def test_socks5_replies_with_any_kind_of_address(kind: int) -> None:
    bound = {1: bytes(4), 3: b"\xc8" + b"\xff" * 200, 4: bytes(16)}[kind]
    answer = bytes([5, 0, 0, kind]) + bound + b"\0\0"
    async with proxying(socks(answer + b"hi")) as proxy:
        socket = Connector(proxy=proxy.url("socks5h")).connect("h:1")
        assert await socket.receive_exactly(2) == b"hi"
        await socket.close()


ANSWERS = [
    pytest.param(http, "http", ESTABLISHED, id="http"),
    pytest.param(http, "http", b"HTTP/1.0 200 OK\nServer: old\n\n", id="http-1.0"),
    pytest.param(http, "http", b"HTTP/1.1 299 Odd\r\nContent-Length: 5\r\n\r\n", id="length"),
    pytest.param(
        http, "http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", id="chunked"
    ),
    pytest.param(
        http,
        "http",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\n" + ESTABLISHED,
        id="informed",
    ),
    pytest.param(socks, "socks5h", SUCCEEDED, id="socks5"),
]


@pytest.mark.parametrize(("kind", "scheme", "answer"), ANSWERS)
async def test_what_comes_behind_the_answer_is_the_target_s(
    kind: Callable[[bytes], Script], scheme: str, answer: bytes
) -> None:
    """In one segment: a server that speaks first, as SMTP's does."""
    greeting = b"220 mail.example\r\n"
    async with proxying(kind(answer + greeting)) as proxy:
        socket = Connector(proxy=proxy.url(scheme)).connect("mail.example:587")
        assert await socket.receive(3) == b"220"
        assert await socket.receive_exactly(len(greeting) - 3) == greeting[3:]
        await socket.send(b"EHLO")
        assert await socket.receive_exactly(4) == b"EHLO"
        await socket.close()


@pytest.mark.parametrize(("kind", "scheme", "answer"), ANSWERS)
async def test_before_tls_nothing_can_come_from_the_target(
    kind: Callable[[bytes], Script], scheme: str, answer: bytes
) -> None:
    error = await failing(
        kind(answer + b"220 mail.example\r\n"), f"{scheme}://127.0.0.1", secure_transport="on"
    )
    assert isinstance(error, TLSError)
    assert "the peer does not speak TLS on this port, or sent data in the clear" in str(error)


async def test_the_tunnel_is_the_tcp_socket_itself() -> None:
    """So it is as fast, and ends as exactly."""

    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(ESTABLISHED)
        await ended.wait()
        with pytest.raises(ConnectionResetError):
            await line.receive_all()
        seen.set()

    ended, seen = anyio.Event(), anyio.Event()
    async with proxying(script) as proxy:
        socket = Connector(proxy=proxy.url("http")).connect("h:1", allow_half_open=True)
        await socket.opened
        assert raw(socket).getpeername() == proxy.listener.address
        await socket.writable.abort()
        ended.set()
        with anyio.fail_after(30):
            await seen.wait()
        assert isinstance(socket.closed.exception(), BrokenError)


# --- over TLS


async def target_over_tls(line: Line, *, shook: Callable[[], None] = lambda: None) -> None:
    """What a target does that speaks TLS, over TCP."""
    tls = TLSPeer(line.peer, server_context())
    await tls.shake()
    shook()
    while data := await tls.receive():
        await tls.send(data)
    await line.peer.send(tls.server.close_notify())
    line.peer.fin()


def http_to_tls(before: bytes = b"") -> Script:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(ESTABLISHED)
        if before:
            await line.send(await line.exactly(len(before)))
        await target_over_tls(line)

    return script


def socks_to_tls() -> Script:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_socks(proxy, line)
        await line.send(SUCCEEDED)
        await target_over_tls(line)

    return script


@pytest.mark.parametrize(
    ("script", "scheme"), [(http_to_tls(), "http"), (socks_to_tls(), "socks5h")]
)
async def test_tls_verifies_the_target(script: Script, scheme: str) -> None:
    async with proxying(script) as proxy:
        connector = Connector(proxy=proxy.url(scheme), ssl_context=client_context())
        info = await use(connector.connect(f"{NAME}:443", secure_transport="on"))
        assert info.remote_address == f"{NAME}:443"
        assert info.proxy_address == f"127.0.0.1:{proxy.port}"
        with pytest.raises(CertificateError, match=r"not for 'other\.example'"):
            await connector.connect("other.example:443", secure_transport="on").opened


async def test_start_tls_works_through_it() -> None:
    async with proxying(http_to_tls(b"STARTTLS")) as proxy:
        connector = Connector(proxy=proxy.url("http"), ssl_context=client_context())
        async with connector.connect(f"{NAME}:587", secure_transport="starttls") as plain:
            await plain.send(b"STARTTLS")
            assert await plain.receive_exactly(8) == b"STARTTLS"
            before = await plain.opened
            info = await use(plain.start_tls())
        assert info == before
        assert (info.remote_address, info.proxy_address) == (
            f"{NAME}:587",
            f"127.0.0.1:{proxy.port}",
        )


async def test_start_tls_does_not_take_for_tls_what_came_with_the_answer() -> None:
    async with proxying(http(ESTABLISHED + b"220 ready\r\n")) as proxy:
        connector = Connector(proxy=proxy.url("http"), ssl_context=client_context())
        async with connector.connect(f"{NAME}:587", secure_transport="starttls") as plain:
            with pytest.raises(TLSError):
                await plain.start_tls().opened


async def test_a_proxy_over_tls() -> None:
    async with proxying(http(ESTABLISHED + b"hi"), over_tls=True) as proxy:
        connector = Connector(proxy=proxy.url("https", CREDENTIALS), ssl_context=client_context())
        async with connector.connect("db.example:5432") as socket:
            assert await socket.receive_exactly(2) == b"hi"
            await socket.send(b"hello")
            assert await socket.receive_exactly(5) == b"hello"
            info = await socket.opened
        assert proxy.asked == ["db.example:5432"]
    assert info.proxy_address == f"127.0.0.1:{proxy.port}"
    assert info.remote_address == "db.example:5432"


@pytest.mark.parametrize("required", [True, False])
async def test_a_proxy_over_tls_that_ends_without_close_notify(required: bool) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(ESTABLISHED + b"hi")

    async with proxying(script, over_tls=True) as proxy:
        connector = Connector(proxy=proxy.url("https"), ssl_context=client_context())
        socket = connector.connect(
            "h:1", secure_transport="starttls", require_close_notify=required
        )
        assert await socket.receive_exactly(2) == b"hi"
        with pytest.raises(BrokenError if required else anyio.EndOfStream):
            await socket.receive()
        await socket.close()


class Inner:
    """The connection of a target behind a proxy over TLS, for a peer that speaks TLS as well."""

    def __init__(self, line: Line) -> None:
        self.line = line

    async def send(self, data: bytes) -> None:
        if data:
            await self.line.send(data)

    async def receive(self) -> bytes:
        return await self.line.receive()


@pytest.mark.parametrize("how", ["on", "starttls"])
async def test_tls_in_tls(how: Any) -> None:
    got: list[bytes] = []

    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(ESTABLISHED)
        tls = TLSPeer(Inner(line), server_context())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await tls.shake()
        await tls.send(b"hi")
        got.append(await tls.receive_all())
        await line.send(tls.server.close_notify())
        assert await line.receive() == b""  # the close_notify of the outer TLS
        got.append(b"the end")

    async with proxying(script, over_tls=True) as proxy:
        connector = Connector(proxy=proxy.url("https"), ssl_context=client_context())
        socket = connector.connect(f"{NAME}:443", secure_transport=how)
        await socket.opened
        secure = socket.start_tls() if how == "starttls" else socket
        async with secure:
            assert await secure.receive_exactly(2) == b"hi"
            await secure.send(b"hello" * 30_000)
            await secure.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await secure.receive()
            await secure.closed
            info = await secure.opened
        with anyio.fail_after(30):
            while len(got) < 2:
                await checkpoint()
    assert got == [b"hello" * 30_000, b"the end"]
    assert (info.remote_address, info.proxy_address) == (
        f"{NAME}:443",
        f"127.0.0.1:{proxy.port}",
    )


async def test_the_certificate_of_a_proxy_is_verified() -> None:
    async with proxying(http(), over_tls=True) as proxy:
        connector = Connector(proxy=proxy.url("https"))  # which does not trust the tests' CA
        with pytest.raises(CertificateError) as caught:
            await connector.connect("db.example:5432").opened
        assert f"no TLS with the proxy https://127.0.0.1:{proxy.port}: " in str(caught.value)
        assert not proxy.asked


async def test_a_proxy_that_speaks_no_tls() -> None:
    async with proxying(says(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as proxy:
        with pytest.raises(TLSError, match=r"no TLS with the proxy https://127\.0\.0\.1"):
            await Connector(proxy=proxy.url("https")).connect("db.example:5432").opened


async def test_a_proxy_that_insists_on_another_protocol() -> None:
    theirs, ours = server_context(), client_context()
    theirs.set_alpn_protocols(["h2"])
    ours.set_alpn_protocols(["h2", "http/1.1"])
    async with listening() as listener, anyio.create_task_group() as group:
        proxy = Proxy(listener, silent, theirs)
        group.start_soon(proxy.serve)
        socket = Connector(proxy=proxy.url("https"), ssl_context=ours).connect("h:1")
        with pytest.raises(ProxyError, match="agreed on 'h2'"):
            await socket.opened
        group.cancel_scope.cancel()


# --- the policy, and the addresses of a name


async def test_the_address_of_the_proxy_is_not_judged(names: dict[str, list[Any]]) -> None:
    names["db.example"] = ["10.0.0.1", "1.1.1.1", "127.0.0.1"]
    async with proxying(http()) as proxy:
        info = await use(Connector(WORKERS, proxy=proxy.url("http")).connect("db.example:443"))
        assert proxy.asked == ["1.1.1.1:443"]
        assert info.remote_address == "1.1.1.1:443"


@pytest.mark.parametrize(
    ("policy", "address"),
    [
        (WORKERS, "127.0.0.1:80"),
        (WORKERS, "[::ffff:10.0.0.1]:80"),
        (WORKERS, "mail.example:25"),
        (PORTS, "mail.example:25"),
        (WORKERS, "inside.example:80"),
    ],
)
async def test_what_is_forbidden_is_not_asked_for(
    policy: AddressPolicy, address: str, names: dict[str, list[Any]]
) -> None:
    names["inside.example"] = ["10.0.0.1", "fd00::1"]
    async with proxying(http()) as proxy:
        with pytest.raises(AddressNotAllowedError):
            await Connector(policy, proxy=proxy.url("http")).connect(address).opened
        assert not proxy.served


@pytest.mark.parametrize("policy", [UNRESTRICTED, PORTS])
@pytest.mark.parametrize(("kind", "scheme"), [(http, "http"), (socks, "socks5h")])
async def test_without_judging_the_name_goes_to_the_proxy(
    policy: AddressPolicy, kind: Callable[[], Script], scheme: str, names: dict[str, list[Any]]
) -> None:
    async with proxying(kind()) as proxy:
        await use(Connector(policy, proxy=proxy.url(scheme)).connect("db.example:5432"))
        assert proxy.asked == ["db.example:5432"]


def in_turn(*answers: bytes) -> Script:
    """An HTTP proxy that answers each connection in another way."""
    left = [*answers]

    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(left.pop(0))
        await echo(line)

    return script


BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
FORBIDDEN = b"HTTP/1.1 403 Filtered\r\n\r\n"


async def test_each_allowed_address_is_asked_for_in_turn(names: dict[str, list[Any]]) -> None:
    names["db.example"] = ["192.0.2.1", "192.0.2.2", "10.0.0.1", "2001:db8::1", "192.0.2.3"]
    async with proxying(in_turn(BAD_GATEWAY, FORBIDDEN, ESTABLISHED)) as proxy:
        info = await use(Connector(JUDGE, proxy=proxy.url("http")).connect("db.example:80"))
        assert proxy.asked == ["192.0.2.1:80", "[2001:db8::1]:80", "192.0.2.2:80"]
        assert proxy.served == 3
    assert info.remote_address == "192.0.2.2:80"


async def test_so_it_is_with_socks5(names: dict[str, list[Any]]) -> None:
    names["db.example"] = ["192.0.2.1", "192.0.2.2"]

    async def script(proxy: Proxy, line: Line) -> None:
        await hear_socks(proxy, line)
        await line.send(b"\5\4" if len(proxy.asked) == 1 else SUCCEEDED)
        await echo(line)

    async with proxying(script) as proxy:
        info = await use(Connector(proxy=proxy.url("socks5")).connect("db.example:80"))
        assert proxy.asked == ["192.0.2.1:80", "192.0.2.2:80"]
    assert info.remote_address == "192.0.2.2:80"


async def test_what_else_a_connector_has_is_for_the_way_to_the_proxy() -> None:
    looked_up: list[tuple[str, int]] = []
    prepared: list[stdlib.socket] = []

    async def resolver(host: str, port: int) -> list[str]:
        looked_up.append((host, port))
        if host == "proxy.example":
            return ["127.0.0.1"]
        # A zone is of this machine, and says nothing to the proxy.
        return [f"fe80::1%{stdlib.if_indextoname(1)}"]

    async with proxying(socks()) as proxy:
        connector = Connector(
            proxy=f"socks5://proxy.example:{proxy.port}",
            resolver=resolver,
            prepare=prepared.append,
            keep_alive=77,
        )
        async with connector.connect("db.example:80", keep_alive=88) as socket:
            assert prepared == [raw(socket)]
            if sys.platform == "linux":
                idle = raw(socket).getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_KEEPIDLE)
                assert idle == 88
            assert (await socket.opened).remote_address == "[fe80::1]:80"
        assert proxy.asked == ["[fe80:0000:0000:0000:0000:0000:0000:0001]:80"]
        assert looked_up == [("db.example", 80), ("proxy.example", proxy.port)]


async def test_all_that_were_refused_are_told(names: dict[str, list[Any]]) -> None:
    names["db.example"] = ["192.0.2.1", "10.0.0.1", "192.0.2.2"]
    async with proxying(in_turn(BAD_GATEWAY, FORBIDDEN)) as proxy:
        with pytest.raises(ProxyError) as caught:
            await Connector(JUDGE, proxy=proxy.url("http")).connect("db.example:80").opened
    error = caught.value
    assert str(error) == (
        f"cannot connect to db.example:80 through the proxy http://127.0.0.1:{proxy.port}: it was "
        "asked for 2 addresses: 192.0.2.1:80: it answered 502 Bad Gateway: it could not connect "
        "there itself; 192.0.2.2:80: it answered 403 Filtered: its rules forbid that; not tried: "
        "10.0.0.1:80: the Connector's policy forbids it: 10.0.0.1/32 is in deny"
    )
    assert error.status == 403
    statuses = [
        (type(each), each.status) for each in error.attempts if isinstance(each, ProxyError)
    ]
    assert statuses == [(ProxyError, 502), (ProxyError, 403)]


@pytest.mark.parametrize("status", [401, 405, 407, 501])
async def test_no_other_address_is_asked_for_if_that_is_no_use(
    status: int, names: dict[str, list[Any]]
) -> None:
    names["db.example"] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    answers = BAD_GATEWAY, b"HTTP/1.1 %d No\r\n\r\n" % status
    async with proxying(in_turn(*answers)) as proxy:
        with pytest.raises(ProxyError) as caught:
            await Connector(JUDGE, proxy=proxy.url("http")).connect("db.example:80").opened
        assert proxy.asked == ["192.0.2.1:80", "192.0.2.2:80"]
    assert caught.value.status == status
    assert "; before that: 192.0.2.1:80: it answered 502" in str(caught.value)
    assert len(caught.value.attempts) == 1


async def test_a_name_without_an_address(names: dict[str, list[Any]]) -> None:
    names["no.example"] = []
    async with proxying(socks()) as proxy:
        with pytest.raises(ResolveError, match=r"cannot resolve 'no\.example'"):
            await Connector(proxy=proxy.url("socks5")).connect("no.example:1").opened
        assert not proxy.served


async def test_the_addresses_of_a_proxy_are_raced(names: dict[str, list[Any]]) -> None:
    async with proxying(http()) as proxy:
        names["proxy.example"] = [refusing_address(), refusing_address(), proxy.listener.address]
        connector = Connector(proxy="http://proxy.example:3128", happy_eyeballs_delay=3600)
        info = await use(connector.connect("db.example:5432"))
    assert info.proxy_address == f"127.0.0.1:{proxy.port}"


async def test_local_host_is_where_the_proxy_is_connected_to_from(
    names: dict[str, list[Any]],
) -> None:
    names["db.example"] = ["2001:db8::1"]  # which it has nothing to do with
    async with proxying(socks()) as proxy:
        connector = Connector(JUDGE, proxy=proxy.url("socks5"), local_host="127.0.0.2")
        info = await use(connector.connect("db.example:5432"))
    assert str(info.local_address).startswith("127.0.0.2:")


# --- what a proxy refuses


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (300, ""),
        (301, ""),
        (400, ": perhaps it is no proxy"),
        (403, ": its rules forbid that"),
        (405, ": perhaps it is no proxy"),
        (429, ""),
        (500, ": it failed, or could not connect there itself"),
        (502, ": it could not connect there itself"),
        (503, ": it could not connect there itself, or has too much to do"),
        (504, ": it had no answer from there in time"),
        (599, ""),
    ],
)
@pytest.mark.parametrize("credentials", ["", CREDENTIALS])
async def test_a_status_that_refuses(status: int, why: str, credentials: str) -> None:
    body = b"Content-Length: 100000\r\n\r\n" + b"x" * 100  # which nobody waits for
    error = await failing(
        http(b"HTTP/1.1 %d Said \x1b[31m%b\r\n%b" % (status, SECRET[:4].encode(), body)),
        f"http://{credentials}127.0.0.1",
    )
    assert isinstance(error, ProxyError)
    assert error.status == status
    assert str(error).startswith(
        "cannot connect to db.example:5432 through the proxy http://127.0.0.1:"
    )
    # With a password, nothing is shown that the proxy may have from us.
    assert f": it answered {status} " in f"{error} "
    assert ("Said \\x1b[31m" in str(error)) == (not credentials)
    assert str(error).isprintable()
    assert why in str(error)
    assert [type(each) for each in error.attempts] == ([] if status == 405 else [ProxyError])


async def test_a_proxy_that_repeats_the_password() -> None:
    token = base64.b64encode(f"user:{SECRET}".encode())
    for answer in (
        b"HTTP/1.1 407 %b is wrong, as is %b\r\n\r\n" % (SECRET.encode(), token),
        b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % token,
        b"%b\r\n\r\n" % SECRET.encode(),
    ):
        error = await failing(http(answer), f"http://{CREDENTIALS}127.0.0.1")
        assert isinstance(error, ProxyError)


@pytest.mark.parametrize(
    ("credentials", "wants", "why"),
    [
        ("", b"", "it wants a user and a password: write them into the URL"),
        ("", b'Proxy-Authenticate: Basic realm="x"\r\n', "it wants a user and a password"),
        (CREDENTIALS, b"", "it does not accept this user with this password"),
        (CREDENTIALS, b"Proxy-Authenticate: NTLM, BASIC\r\n", "it does not accept this user"),
        ("", b"Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n", "another kind"),
        (CREDENTIALS, b"Proxy-Authenticate: Digest realm=x\r\n", "than Basic, which is all"),
    ],
)
async def test_a_proxy_that_wants_other_credentials(
    credentials: str, wants: bytes, why: str
) -> None:
    answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n" + wants + b"\r\n"
    error = await failing(http(answer), f"http://{credentials}127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status == 407
    assert why in str(error)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (1, "it failed, and does not say why"),
        (2, "its rules forbid that"),
        (3, "it has no route to that network"),
        (4, "it cannot reach that host"),
        (5, "connection refused: nothing is listening there"),
        (6, "it could not get that far (TTL expired)"),
        (7, "it does not know how to connect"),
        (8, "it does not know this kind of address"),
        (9, "it refused"),
        (255, "it refused"),
    ],
)
@pytest.mark.parametrize("rest", [bytes([0, 1, 0, 0, 0, 0, 0, 0]), b"", b"\0\xff"])
async def test_a_reply_that_refuses(code: int, why: str, rest: bytes) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_socks(proxy, line)
        await line.send(bytes([5, code]) + rest)

    error = await failing(script, "socks5h://127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status == code
    assert str(error).endswith(f": {why} (SOCKS5 reply {code})")
    assert "db.example:5432 through the proxy socks5h://127.0.0.1:" in str(error)


@pytest.mark.parametrize(
    ("credentials", "answer", "why"),
    [
        ("", b"\5\xff", "it wants a user and a password: write them into the URL, socks5h://"),
        (CREDENTIALS, b"\5\xff", "another kind of authentication than a user and a password"),
        ("", b"\5\2", "something that is not SOCKS5"),  # was not offered
        ("", b"\5\1", "something that is not SOCKS5"),
        (CREDENTIALS, b"\5\x80", "something that is not SOCKS5"),
        ("", b"\4\0", "something that is not SOCKS5"),
        ("", b"HTTP/1.1 400 Bad Request\r\n\r\n", "it said more than it was asked"),
        ("", b"\5\0\5\0\0\1", "it said more than it was asked"),
        ("", b"\5", "it hung up in place of an answer"),
        ("", b"", "it hung up in place of an answer"),
    ],
)
async def test_a_method_that_will_not_do(credentials: str, answer: bytes, why: str) -> None:
    error = await failing(says(answer), f"socks5h://{credentials}127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status is None
    assert why in str(error)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"\1\1", "it does not accept this user with this password"),
        (b"\1\xff", "it does not accept this user with this password"),
        (b"\5\0", "something that is not SOCKS5"),
        (b"\1\0\5\0", "it said more than it was asked"),
        (b"\1", "it hung up in place of an answer"),
    ],
)
async def test_a_user_that_is_refused(answer: bytes, why: str) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await line.exactly(4)
        await line.send(b"\5\2")
        await line.exactly(3 + len("user") + len(SECRET))
        await line.send(answer)

    error = await failing(script, f"socks5h://{CREDENTIALS}127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status is None
    assert why in str(error)


@pytest.mark.parametrize(
    "answer",
    [b"\4\0", b"\4\0\0\1" + bytes(6), b"\5\0\0\2", b"\5\0\0\0", b"\5\0\0\3", b"\5\0\0\1abc"],
)
async def test_a_reply_that_is_none(answer: bytes) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_socks(proxy, line)
        await line.send(answer)

    error = await failing(script, "socks5h://127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status is None
    assert "not SOCKS5" in str(error) or "it hung up" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "it hung up in place of an answer"),
        (b"HTTP/1.1 200 OK\r\n", "it hung up in place of an answer"),
        (b"\5\0", "something that is not HTTP"),
        (b"220 mail.example ESMTP\r\n\r\n", "something that is not HTTP: is it an HTTP proxy?"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "something that is not HTTP"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "something that is not HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "something that is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", "something that is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 20_000, "has a head of more than 16384 bytes"),
        (b"HTTP/1.1 100 Go on\r\n\r\n" * 1000, "has a head of more than 16384 bytes"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_answer_that_is_none(scheme: str, answer: bytes, why: str) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(answer)
        if line.tls is not None:
            await line.peer.send(line.tls.server.close_notify())

    error = await failing(script, f"{scheme}://127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status is None
    assert why in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
async def test_a_proxy_that_resets_the_connection(scheme: str) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await line.receive()
        line.peer.rst()

    error = await failing(script, f"{scheme}://127.0.0.1")
    assert isinstance(error, ProxyError)
    assert "the connection to it broke before it had answered: Connection reset" in str(error)
    assert isinstance(error.__cause__, ConnectionResetError)


@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
async def test_a_proxy_that_is_not_there(scheme: str) -> None:
    host, port = refusing_address()
    connector = Connector(proxy=f"{scheme}://{CREDENTIALS}{host}:{port}")
    with pytest.raises(ProxyError) as caught:
        await connector.connect("192.0.2.1:80").opened
    error = caught.value
    assert str(error) == (
        f"cannot connect to 192.0.2.1:80 through the proxy {scheme}://{host}:{port}: it cannot be "
        "reached: connection refused: nothing is listening there"
    )
    assert error.status is None
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert error.errno == error.__cause__.errno
    assert len(error.attempts) == 1
    assert not vars(error).get("__notes__")


async def test_the_name_of_a_proxy_that_does_not_exist(names: dict[str, list[Any]]) -> None:
    names["proxy.example"] = []
    with pytest.raises(ProxyError, match=r"it cannot be reached: cannot resolve 'proxy\.example'"):
        await Connector(proxy="http://proxy.example:80").connect("192.0.2.1:80").opened


async def rst(proxy: Proxy, line: Line) -> None:
    await line.receive()
    line.peer.rst()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "script"),
    [
        ("http", http(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")),
        ("http", http(b"HTTP/1.1 407 No\r\n\r\n")),
        ("http", http(b"no HTTP\r\n\r\n")),
        ("http", silent),
        ("http", rst),
        ("https", says(b"no TLS")),
        ("https", http(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")),
        ("https", rst),
        ("https", silent),
        ("socks5", socks(b"\5\5")),
        ("socks5", says(b"\5\xff")),
        ("socks5", rst),
        ("http", http()),
    ],
    ids=itertools.count(),
)
async def test_nothing_is_left_to_the_garbage_collector(scheme: str, script: Script) -> None:
    over_tls = scheme == "https" and script is not silent
    async with proxying(script, over_tls=over_tls) as proxy:
        connector = Connector(
            proxy=proxy.url(scheme), ssl_context=client_context(), connect_timeout=0.2
        )

        async def use_it() -> None:
            with suppress(ConnectError):
                async with connector.connect("192.0.2.1:80"):
                    pass

        await use_it()  # what is made once for all is made
        with nothing_to_collect():
            await use_it()


@pytest.mark.parametrize("how", ["off", "on"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_socket_that_is_dropped_is_closed(scheme: str, how: Any) -> None:
    """The proxy sees an end, and the slot is free again, without the garbage collector."""

    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(ESTABLISHED)
        if how == "on":
            await TLSPeer(Inner(line), server_context()).shake()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with suppress(anyio.EndOfStream, ConnectionError):
            await line.receive_all()
        ended.set()

    ended = anyio.Event()
    async with proxying(script, over_tls=scheme == "https") as proxy:
        connector = Connector(
            proxy=proxy.url(scheme), ssl_context=client_context(), max_connections=1
        )
        socket = connector.connect(f"{NAME}:443", secure_transport=how)
        await socket.opened
        with pytest.warns(ResourceWarning, match=f"^unclosed connection to {NAME}:443: "):
            del socket
        with anyio.fail_after(30):
            await ended.wait()
        assert slots(connector).free == 1


# --- too late


async def too_late(connector: Connector, why: str) -> ConnectTimeoutError:
    """The error that says so, with as much time as it takes to come so far."""
    seconds = 0.05
    while True:
        with pytest.raises(ConnectTimeoutError) as caught:
            await connector.connect("db.example:5432", connect_timeout=seconds).opened
        if seconds > 20 or re.search(why, str(caught.value)):
            assert re.search(why, str(caught.value))
            return caught.value
        seconds *= 4


@pytest.mark.parametrize(
    ("scheme", "why"),
    [
        ("http", r"it did not answer within [\d.]+ seconds; perhaps it cannot connect there"),
        ("socks5h", r"it did not answer within [\d.]+ seconds"),
        ("https", r"the handshake did not finish within [\d.]+ seconds"),
    ],
)
async def test_a_proxy_that_is_silent(scheme: str, why: str) -> None:
    async with proxying(silent) as proxy:
        error = await too_late(Connector(proxy=proxy.url(scheme, CREDENTIALS)), why)
    assert f"the proxy {scheme}://127.0.0.1:{proxy.port}: " in str(error)


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_a_proxy_that_never_comes_to_an_end(scheme: str) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await line.receive()
        await line.send(b"HTTP/1.1 200 OK\r\nA: " if scheme == "http" else b"\5")
        heard.set()
        await anyio.sleep_forever()

    heard = anyio.Event()
    async with proxying(script) as proxy:
        await too_late(Connector(proxy=proxy.url(scheme)), "it did not answer within")
        await heard.wait()


async def test_a_timeout_tells_what_was_refused_before(names: dict[str, list[Any]]) -> None:
    names["db.example"] = ["192.0.2.1", "192.0.2.2"]

    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        if proxy.asked[-1].startswith("192.0.2.1:"):
            await line.send(BAD_GATEWAY)
        await anyio.sleep_forever()

    async with proxying(script) as proxy:
        connector = Connector(JUDGE, proxy=proxy.url("http"))
        error = await too_late(connector, r"did not answer .*; 192\.0\.2\.1:5432: it answered 502")
    assert [type(each) for each in error.attempts] == [ProxyError]


async def test_a_proxy_whose_name_is_not_resolved_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: object) -> list[Any]:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    monkeypatch.setattr(_dial, "getaddrinfo", getaddrinfo)
    connector = Connector(proxy="http://proxy.example:3128", connect_timeout=0.02)
    why = (
        r"192\.0\.2\.1:80 through the proxy http://proxy\.example:3128: it cannot be reached: the "
    )
    with pytest.raises(ConnectTimeoutError, match=why) as caught:
        await connector.connect("192.0.2.1:80").opened
    assert not vars(caught.value).get("__notes__")
    connector = Connector(JUDGE, proxy="http://192.0.2.1:3128", connect_timeout=0.02)
    with pytest.raises(ConnectTimeoutError, match=r"db\.example:5432: the name was not resolved"):
        await connector.connect("db.example:5432").opened


# --- slots, and cancelling


async def test_a_slot_is_for_the_whole_way() -> None:
    async with proxying(in_turn(BAD_GATEWAY, ESTABLISHED, ESTABLISHED)) as proxy:
        connector = Connector(proxy=proxy.url("http"), max_connections=1)
        with pytest.raises(ProxyError):
            await connector.connect("h:1").opened
        assert slots(connector).free == 1
        async with connector.connect("h:2") as socket:
            await socket.opened
            with pytest.raises(ConnectTimeoutError, match="no slot came free"):
                await connector.connect("h:3", connect_timeout=0.02).opened
        assert proxy.asked == ["h:1", "h:2"]
        async with connector.connect("h:4"):
            assert slots(connector).free == 0
    assert slots(connector).free == 1


async def refuse_then_tunnel(proxy: Proxy, line: Line) -> None:
    await hear_http(proxy, line)
    if proxy.asked[-1].startswith("192.0.2.1:"):
        await line.send(BAD_GATEWAY)
    else:
        await line.send(ESTABLISHED)
        await target_over_tls(line)


async def tls_in_tls(proxy: Proxy, line: Line) -> None:
    await hear_http(proxy, line)
    await line.send(ESTABLISHED)
    tls = TLSPeer(Inner(line), server_context())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await tls.shake()
    while data := await tls.receive():
        await tls.send(data)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("scheme", "script", "options"),
    [
        ("http", refuse_then_tunnel, {"secure_transport": "on", "sni": NAME}),
        ("https", http(), {}),
        ("https", tls_in_tls, {"secure_transport": "on", "sni": NAME}),
        ("socks5", socks(wants_user=True), {}),
    ],
    ids=["http", "https", "tls-in-tls", "socks5"],
)
async def test_cancelled_at_every_checkpoint(
    scheme: str,
    script: Script,
    options: dict[str, Any],
    moment: Moment,
    names: dict[str, list[Any]],
) -> None:
    """Nothing is left behind, and the next task that needs the connection makes a new one."""
    names["db.example"] = ["192.0.2.1", "192.0.2.2"]
    async with proxying(script, over_tls=scheme == "https") as proxy:
        connector = Connector(
            JUDGE,
            proxy=proxy.url(scheme, CREDENTIALS),
            ssl_context=client_context(),
            max_connections=1,
        )
        number = -1
        while True:
            number += 1
            socket = connector.connect("db.example:5432", **options)
            with anyio.CancelScope() as scope:
                await CancelAt(number, moment, scope, wait_for(socket))
                await checkpoint()
            made = socket.opened.done()
            assert slots(connector).free == (not made)
            if number % 3:  # cancelled, and made by another task
                async with socket:
                    await socket.send(b"x")
                    assert await socket.receive_exactly(1) == b"x"
            else:
                await socket.close()
            assert slots(connector).free == 1
            if not scope.cancel_called:
                break
    assert number > 1, "not a single checkpoint"
