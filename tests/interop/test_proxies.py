"""Through tinyproxy and microsocks to servers of several protocols.

Over plain TCP, over TLS from the first byte, to a server that sends first, and with STARTTLS. All
of these also through a proxy over TLS: TLS in TLS.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace

import pytest

from anyio_connect import AddressPolicy, Connector, ProxyError
from interop.servers import (
    MailServer,
    PostgreSQL,
    ProxyServer,
    RedisServer,
    free_port,
)
from interop.test_postgresql import SSL_REQUEST, logged_in
from interop.test_redis import Redis
from interop.test_smtp import SMTP


@dataclass(frozen=True)
class Through:
    """A connector through a proxy, whether the proxy gets names, and the proxy's port."""

    connector: Connector
    proxy: ProxyServer
    gives_names: bool


@pytest.fixture(
    scope="session",
    params=[
        ("tinyproxy", "http"),
        ("tls_front", "https"),
        ("open_microsocks", "socks5"),
        ("open_microsocks", "socks5h"),
        ("closed_microsocks", "socks5"),
        ("closed_microsocks", "socks5h"),
    ],
    ids="-".join,
)
def through(request: pytest.FixtureRequest, ssl_context: ssl.SSLContext) -> Through:
    name, scheme = request.param
    proxy: ProxyServer = request.getfixturevalue(name)
    connector = Connector(proxy=proxy.url(scheme=scheme), ssl_context=ssl_context)
    return Through(connector, proxy, gives_names=scheme != "socks5")


async def test_redis(through: Through, redis_server: RedisServer) -> None:
    value = bytes(range(256)) * 8192
    port = redis_server.plain[1]
    async with through.connector.connect(("localhost", port)) as socket:
        redis = Redis(socket)
        assert await redis(b"SET", b"proxied", value) == b"OK"
        assert await redis(b"GET", b"proxied") == value
        info = await socket.opened
    host, proxy_port = through.proxy.address
    assert info.proxy_address == f"{host}:{proxy_port}"
    if through.gives_names:
        assert info.remote_address == f"localhost:{port}"
    else:  # Redis listens on IPv4 only, so the proxy may have been asked for IPv6 first
        assert info.remote_address == f"127.0.0.1:{port}"


async def test_redis_over_tls(through: Through, redis_server: RedisServer) -> None:
    value = bytes(range(256)) * 8192
    address = "localhost", redis_server.tls[1]
    async with through.connector.connect(address, secure_transport="on") as socket:
        redis = Redis(socket)
        assert await redis(b"SET", b"proxied", value) == b"OK"
        assert await redis(b"GET", b"proxied") == value


async def test_a_server_that_speaks_first(through: Through, mail_server: MailServer) -> None:
    async with through.connector.connect(mail_server.smtp, secure_transport="starttls") as plain:
        smtp = SMTP(plain)
        await smtp.reply(220)
        assert "STARTTLS" in await smtp.command("EHLO client.example", 250)
        await smtp.command("STARTTLS", 220)
        async with plain.start_tls() as tls:
            smtp = SMTP(tls)
            await smtp.command("EHLO client.example", 250)
            await smtp.command("NOOP", 250)
            await smtp.command("QUIT", 221)


async def test_postgresql(through: Through, postgresql: PostgreSQL) -> None:
    connector = through.connector
    async with connector.connect(postgresql.address, secure_transport="starttls") as plain:
        await plain.send(SSL_REQUEST)
        assert await plain.receive(1) == b"S"
        async with (
            plain.start_tls() as tls,
            logged_in(tls, postgresql.user, postgresql.password, "postgres"),
        ):
            pass


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_addresses_that_are_judged(
    scheme: str,
    tinyproxy: ProxyServer,
    open_microsocks: ProxyServer,
    redis_server: RedisServer,
) -> None:
    proxy = tinyproxy if scheme == "http" else open_microsocks
    connector = Connector(AddressPolicy(deny=["::1"]), proxy=proxy.url())
    async with connector.connect(("localhost", redis_server.plain[1])) as socket:
        assert await Redis(socket)(b"PING") == b"PONG"
        assert (await socket.opened).remote_address == f"127.0.0.1:{redis_server.plain[1]}"


async def test_a_port_where_nothing_listens(through: Through) -> None:
    with pytest.raises(ProxyError) as caught:
        await through.connector.connect(("127.0.0.1", free_port())).opened
    # tinyproxy only reports a failure. SOCKS5 has a reply code for this.
    assert caught.value.status == (5 if through.proxy.scheme == "socks5" else 500)


async def test_a_name_that_only_the_proxy_looks_up(open_microsocks: ProxyServer) -> None:
    connector = Connector(proxy=open_microsocks.url(scheme="socks5h"))
    with pytest.raises(ProxyError, match="SOCKS5 reply"):
        await connector.connect("no-such-name.invalid:80").opened


@pytest.fixture(scope="session", params=["tinyproxy", "closed_microsocks"])
def asking(request: pytest.FixtureRequest) -> ProxyServer:
    """A proxy that wants a user and a password."""
    proxy: ProxyServer = request.getfixturevalue(request.param)
    return proxy


async def test_a_wrong_password(asking: ProxyServer) -> None:
    url = replace(asking, password="wrong").url()
    why = "it does not accept this user with this password"
    with pytest.raises(ProxyError, match=why) as caught:
        await Connector(proxy=url).connect("127.0.0.1:9").opened
    assert caught.value.status == (401 if asking.scheme == "http" else None)


async def test_no_password(asking: ProxyServer) -> None:
    url = replace(asking, user="").url()
    with pytest.raises(ProxyError, match="it wants a user and a password") as caught:
        await Connector(proxy=url).connect("127.0.0.1:9").opened
    assert caught.value.status == (407 if asking.scheme == "http" else None)


async def test_the_other_kind_of_proxy(
    tinyproxy: ProxyServer, open_microsocks: ProxyServer
) -> None:
    url = ProxyServer("http", open_microsocks.address).url()
    with pytest.raises(ProxyError, match="is it an HTTP proxy"):
        await Connector(proxy=url).connect("h:1").opened
