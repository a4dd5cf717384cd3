"""``Connector(proxy=)``: the tunnel, and the address that the proxy is asked for."""

from __future__ import annotations

import base64
import socket as stdlib
import sys
from collections.abc import Callable

import anyio
import pytest

from anyio_connect import (
    UNRESTRICTED,
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    BrokenError,
    Connector,
    ResolveError,
    TLSError,
)
from support.names import Names
from support.peers import refusing_address
from support.proxies import (
    BAD_GATEWAY,
    CREDENTIALS,
    ESTABLISHED,
    FORBIDDEN,
    JUDGE,
    PORTS,
    SECRET,
    SUCCEEDED,
    Line,
    Proxy,
    Script,
    echo,
    failing,
    hear_http,
    hear_socks,
    http,
    in_turn,
    proxying,
    socks,
    use,
)
from support.sockets import raw


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


async def test_socks5_with_names_resolved_here(names: Names) -> None:
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
async def test_data_after_the_answer_belongs_to_the_target(
    kind: Callable[[bytes], Script], scheme: str, answer: bytes
) -> None:
    """A server that speaks first, such as one for SMTP: both may arrive in one segment."""
    greeting = b"220 mail.example\r\n"
    async with proxying(kind(answer + greeting)) as proxy:
        socket = Connector(proxy=proxy.url(scheme)).connect("mail.example:587")
        assert await socket.receive(3) == b"220"
        assert await socket.receive_exactly(len(greeting) - 3) == greeting[3:]
        await socket.send(b"EHLO")
        assert await socket.receive_exactly(4) == b"EHLO"
        await socket.close()


@pytest.mark.parametrize(("kind", "scheme", "answer"), ANSWERS)
async def test_data_of_the_target_before_tls_is_an_error(
    kind: Callable[[bytes], Script], scheme: str, answer: bytes
) -> None:
    error = await failing(
        kind(answer + b"220 mail.example\r\n"), f"{scheme}://127.0.0.1", secure_transport="on"
    )
    assert isinstance(error, TLSError)
    assert "the peer does not speak TLS on this port, or sent data in the clear" in str(error)


async def test_the_tunnel_is_the_tcp_socket_itself() -> None:
    """So a reset gets through, for example."""

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


# --- the policy, and the addresses of a name


async def test_the_address_of_the_proxy_is_not_judged(names: Names) -> None:
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
async def test_a_forbidden_target_is_not_requested(
    policy: AddressPolicy, address: str, names: Names
) -> None:
    names["inside.example"] = ["10.0.0.1", "fd00::1"]
    async with proxying(http()) as proxy:
        with pytest.raises(AddressNotAllowedError):
            await Connector(policy, proxy=proxy.url("http")).connect(address).opened
        assert not proxy.served


@pytest.mark.parametrize("policy", [UNRESTRICTED, PORTS])
@pytest.mark.parametrize(("kind", "scheme"), [(http, "http"), (socks, "socks5h")])
async def test_the_proxy_gets_the_name_if_no_address_is_judged(
    policy: AddressPolicy, kind: Callable[[], Script], scheme: str, names: Names
) -> None:
    async with proxying(kind()) as proxy:
        await use(Connector(policy, proxy=proxy.url(scheme)).connect("db.example:5432"))
        assert proxy.asked == ["db.example:5432"]


async def test_each_allowed_address_is_requested_in_turn(names: Names) -> None:
    names["db.example"] = ["192.0.2.1", "192.0.2.2", "10.0.0.1", "2001:db8::1", "192.0.2.3"]
    async with proxying(in_turn(BAD_GATEWAY, FORBIDDEN, ESTABLISHED)) as proxy:
        info = await use(Connector(JUDGE, proxy=proxy.url("http")).connect("db.example:80"))
        assert proxy.asked == ["192.0.2.1:80", "[2001:db8::1]:80", "192.0.2.2:80"]
        assert proxy.served == 3
    assert info.remote_address == "192.0.2.2:80"


async def test_each_allowed_address_is_requested_in_turn_with_socks5(names: Names) -> None:
    names["db.example"] = ["192.0.2.1", "192.0.2.2"]

    async def script(proxy: Proxy, line: Line) -> None:
        await hear_socks(proxy, line)
        await line.send(b"\5\4" if len(proxy.asked) == 1 else SUCCEEDED)
        await echo(line)

    async with proxying(script) as proxy:
        info = await use(Connector(proxy=proxy.url("socks5")).connect("db.example:80"))
        assert proxy.asked == ["192.0.2.1:80", "192.0.2.2:80"]
    assert info.remote_address == "192.0.2.2:80"


async def test_the_other_options_apply_to_the_connection_to_the_proxy() -> None:
    looked_up: list[tuple[str, int]] = []
    prepared: list[stdlib.socket] = []

    async def resolver(host: str, port: int) -> list[str]:
        looked_up.append((host, port))
        if host == "proxy.example":
            return ["127.0.0.1"]
        # A zone means something on this machine only, so the proxy does not get it.
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


async def test_a_name_without_an_address(names: Names) -> None:
    names["no.example"] = []
    async with proxying(socks()) as proxy:
        with pytest.raises(ResolveError, match=r"cannot resolve 'no\.example'"):
            await Connector(proxy=proxy.url("socks5")).connect("no.example:1").opened
        assert not proxy.served


async def test_the_addresses_of_a_proxy_are_raced(names: Names) -> None:
    async with proxying(http()) as proxy:
        names["proxy.example"] = [refusing_address(), refusing_address(), proxy.listener.address]
        connector = Connector(proxy="http://proxy.example:3128", happy_eyeballs_delay=3600)
        info = await use(connector.connect("db.example:5432"))
    assert info.proxy_address == f"127.0.0.1:{proxy.port}"


async def test_local_host_applies_to_the_connection_to_the_proxy(
    names: Names,
) -> None:
    names["db.example"] = ["2001:db8::1"]  # the family of the target does not matter
    async with proxying(socks()) as proxy:
        connector = Connector(JUDGE, proxy=proxy.url("socks5"), local_host="127.0.0.2")
        info = await use(connector.connect("db.example:5432"))
    assert str(info.local_address).startswith("127.0.0.2:")
