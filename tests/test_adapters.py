"""Clients of other libraries that connect through a Connector to a server in the test."""

from __future__ import annotations

import socket as stdlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from ipaddress import IPv6Address
from typing import Any

import aiohttp
import anyio
import httpcore
import httpx
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from anyio_connect import (
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    Connector,
    ConnectTimeoutError,
    InvalidAddressError,
    InvalidOptionError,
    RefusedError,
    TLSError,
)
from anyio_connect._address import parse_address
from anyio_connect.adapters.aiohttp import socket_factory
from anyio_connect.adapters.asyncio import _name as name_to_verify
from anyio_connect.adapters.asyncio import open_connection
from anyio_connect.adapters.httpcore import NetworkBackend
from anyio_connect.adapters.httpx import Transport
from anyio_connect.adapters.trio import open_tcp_stream
from anyio_connect.testing import Network
from support.attacks import ONE
from support.http_peers import HTTPServer, Reply, serving_http
from support.peers import listening, refusing_address
from support.tls_peers import certificate, client_context, server_context

#: If a request or a body is not completed, httpx and httpcore leave an async generator open. Trio
#: warns of it.
leaves_generators = pytest.mark.filterwarnings(
    "ignore:Async generator '(httpx|httpcore|anyio_connect.adapters.httpx)\\.:ResourceWarning"
)


def causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


def client(connector: Connector | None = None, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=Transport(connector, **options))


def for_http2() -> ssl.SSLContext:
    context = server_context()
    context.set_alpn_protocols(["h2"])
    return context


# --- httpx


async def test_httpx_keeps_its_connection_and_closes_it_with_the_client() -> None:
    async with serving_http(lambda request: Reply(request.content)) as server:
        async with client() as http:
            for content in (b"one", b"two" * 100_000):
                response = await http.post(server.url, content=content)
                assert (response.status_code, response.content) == (200, content)
        assert server.connections == 1
        await none_left(server)


async def none_left(server: HTTPServer) -> None:
    with anyio.fail_after(10):
        while server.open:
            await anyio.lowlevel.checkpoint()


async def test_httpx_over_tls() -> None:
    async with (
        serving_http(tls=server_context()) as server,
        client(ssl_context=client_context()) as http,
    ):
        assert (await http.get(server.url)).text == "hello"


async def test_httpx_over_http2() -> None:
    async with (
        serving_http(tls=for_http2()) as server,
        client(ssl_context=client_context(), http2=True) as http,
    ):
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(http.get, f"{server.url}{number}")
        assert {request.version for request in server.requests} == {"HTTP/2"}
        assert len(server.requests) == 20


async def test_httpx_reports_an_untrusted_certificate() -> None:
    async with serving_http(tls=server_context()) as server, client() as http:
        with pytest.raises(httpx.ConnectError, match="certificate") as caught:
            await http.get(server.url)
        assert any(isinstance(cause, TLSError) for cause in causes(caught.value))


async def test_httpx_names_the_rule_that_forbids_an_address() -> None:
    async with client(Connector(WORKERS)) as http:
        with pytest.raises(httpx.ConnectError, match=r"127\.0\.0\.0/8 is Loopback") as caught:
            await http.get("http://127.0.0.1:1/")
        assert any(isinstance(c, AddressNotAllowedError) for c in causes(caught.value))
        assert caught.value.request.url == "http://127.0.0.1:1/"


async def test_httpx_reports_a_refused_connection() -> None:
    async with client() as http:
        with pytest.raises(httpx.ConnectError) as caught:
            await http.get("http://{}:{}/".format(*refusing_address()))
        assert any(isinstance(cause, RefusedError) for cause in causes(caught.value))


@pytest.mark.slow
@leaves_generators
async def test_the_timeouts_of_httpx_take_effect() -> None:
    async with listening() as silent, client() as http:
        url = "http://{}:{}/".format(*silent.address)
        with pytest.raises(httpx.ReadTimeout, match=r"0\.05 seconds"):
            await http.get(url, timeout=httpx.Timeout(10, read=0.05))
        content = bytes(64 << 20)
        with pytest.raises(httpx.WriteTimeout):
            await http.post(url, content=content, timeout=httpx.Timeout(10, write=0.05))
        secure = url.replace("http", "https")
        with pytest.raises(httpx.ConnectTimeout):
            await http.get(secure, timeout=httpx.Timeout(10, connect=0.05))


async def test_httpx_does_not_reuse_a_connection_that_the_server_has_closed() -> None:
    async with serving_http(lambda _: Reply(hangs_up=True)) as server, client() as http:
        for _ in range(3):
            assert (await http.get(server.url)).text == "hello"
            await none_left(server)
        assert server.connections == 3


async def test_httpx_frees_the_slot_of_a_cancelled_request() -> None:
    connector = Connector(max_connections=1)
    async with serving_http() as server, listening() as silent, client(connector) as http:
        with anyio.move_on_after(0.05):
            await http.get("http://{}:{}/".format(*silent.address))
        assert (await http.get(server.url)).text == "hello"


async def test_httpx_opens_no_more_connections_than_the_connector_allows() -> None:
    """Idle connections of the pool hold slots too. With a higher limit, the pool would block."""
    async with (
        serving_http() as server,
        serving_http() as other,
        client(Connector(max_connections=1)) as http,
    ):
        for _ in range(2):
            assert (await http.get(server.url)).text == "hello"
            assert (await http.get(other.url)).text == "hello"


@leaves_generators
async def test_httpx_opens_a_new_connection_after_a_body_was_left_unread() -> None:
    async with serving_http(lambda _: Reply(bytes(1 << 22))) as server, client() as http:
        async with http.stream("GET", server.url) as response:
            async for _ in response.aiter_raw():
                break
        assert len((await http.get(server.url)).content) == 1 << 22
        assert server.connections == 2


# --- httpcore


async def test_a_pool_of_httpcore() -> None:
    async with (
        serving_http() as server,
        httpcore.AsyncConnectionPool(network_backend=NetworkBackend()) as pool,
    ):
        response = await pool.request("GET", server.url)
        assert response.content == b"hello"


async def test_httpcore_holds_a_slot_until_its_stream_is_closed() -> None:
    backend = NetworkBackend(Connector(max_connections=1))
    async with listening() as listener:
        for _ in range(2):
            stream = await backend.connect_tcp(*listener.address, timeout=30)
            with pytest.raises(httpcore.ConnectTimeout):
                await backend.connect_tcp(*listener.address, timeout=0.01)
            await stream.aclose()


async def test_httpcore_gets_information_about_the_stream() -> None:
    async with serving_http(tls=server_context()) as server:
        host, _, port = server.address.partition(":")
        nodelay = (stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 0)
        plain = await NetworkBackend().connect_tcp(host, int(port), socket_options=[nodelay])
        sock = plain.get_extra_info("socket")
        assert not sock.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY)
        assert plain.get_extra_info("server_addr") == (host, int(port))
        assert plain.get_extra_info("client_addr") == sock.getsockname()
        assert plain.get_extra_info("ssl_object") is None
        assert plain.get_extra_info("is_readable") is False
        assert plain.get_extra_info("made up") is None
        secure = await plain.start_tls(client_context(), host, 10)
        assert secure.get_extra_info("ssl_object").version() == "TLSv1.3"
        await secure.aclose()
        assert secure.get_extra_info("is_readable") is True


async def test_httpcore_cannot_choose_the_local_address_of_one_connection() -> None:
    with pytest.raises(InvalidOptionError, match="local_host"):
        await NetworkBackend().connect_tcp("127.0.0.1", 1, local_address="127.0.0.1")


async def test_httpcore_sends_the_server_name_even_if_it_is_not_verified() -> None:
    asked = []

    def note(_: object, name: str | None, __: object) -> None:
        asked.append(name)

    context = server_context()
    context.sni_callback = note
    unchecked = client_context()
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    async with serving_http(tls=context) as server:
        host, _, port = server.address.partition(":")
        stream = await NetworkBackend().connect_tcp(host, int(port))
        secure = await stream.start_tls(unchecked, "other.example", 10)
        assert asked == ["other.example"]
        await secure.aclose()


async def test_httpcore_over_a_unix_socket(tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    async with await anyio.create_unix_listener(path) as listener:

        async def serve(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.receive()
                await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")

        async with (
            anyio.create_task_group() as group,
            httpcore.AsyncConnectionPool(uds=path, network_backend=NetworkBackend()) as pool,
        ):
            group.start_soon(listener.serve, serve)
            response = await pool.request("GET", "http://made-up.example/")
            assert response.content == b"hello"
            group.cancel_scope.cancel()


async def test_httpcore_through_an_https_proxy_to_an_https_server() -> None:
    """TLS in TLS."""
    async with (
        serving_http(tls=server_context()) as server,
        tunnelling(server.address) as proxy,
        httpcore.AsyncConnectionPool(
            proxy=httpcore.Proxy(f"https://{proxy}", ssl_context=client_context()),
            ssl_context=client_context(),
            network_backend=NetworkBackend(),
        ) as pool,
    ):
        response = await pool.request("GET", server.url)
        assert response.content == b"hello"


@asynccontextmanager
async def tunnelling(address: str) -> AsyncIterator[str]:
    """An HTTPS proxy, which connects to one address only."""
    from anyio.streams.tls import TLSListener

    host, _, port = address.partition(":")

    async def serve(stream: anyio.abc.ByteStream) -> None:
        async with stream, await anyio.connect_tcp(host, int(port)) as onward:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            assert head.startswith(f"CONNECT {address} ".encode())
            await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
            async with anyio.create_task_group() as group:
                group.start_soon(pass_on, stream, onward, group.cancel_scope)
                group.start_soon(pass_on, onward, stream, group.cancel_scope)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    secure = TLSListener(listener, server_context(), standard_compatible=False)
    async with secure, anyio.create_task_group() as group:
        group.start_soon(secure.serve, serve)
        yield "{}:{}".format(*listener.extra(anyio.abc.SocketAttribute.local_address))
        group.cancel_scope.cancel()


async def pass_on(
    source: anyio.abc.ByteReceiveStream,
    destination: anyio.abc.ByteSendStream,
    over: anyio.CancelScope,
) -> None:
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            await destination.send(await source.receive())
    over.cancel()


# --- aiohttp

on_loops_of_aiohttp = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")], indirect=True
)


def session(policy: AddressPolicy, **options: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(socket_factory=socket_factory(policy), **options)
    return aiohttp.ClientSession(connector=connector)


@on_loops_of_aiohttp
async def test_aiohttp_connects_to_an_allowed_address() -> None:
    async with serving_http() as server, session(ONE) as http, http.get(server.url) as response:
        assert await response.text() == "hello"


@on_loops_of_aiohttp
async def test_aiohttp_names_the_rule_that_forbids_an_address() -> None:
    async with session(WORKERS) as http:
        with pytest.raises(
            aiohttp.ClientConnectorError, match=r"127\.0\.0\.0/8 is Loopback"
        ) as caught:
            await http.get("http://127.0.0.1:1/")
        assert isinstance(caught.value.os_error, AddressNotAllowedError)


@on_loops_of_aiohttp
async def test_aiohttp_cannot_connect_if_the_policy_raises() -> None:
    class Broken(AddressPolicy):
        def refusal(self, address: Any, port: int) -> str | None:
            raise RuntimeError("out of order")

    async with session(Broken()) as http:
        with pytest.raises(aiohttp.ClientConnectorError, match="RuntimeError") as caught:
            await http.get("http://127.0.0.1:1/")
        assert isinstance(caught.value.os_error.__cause__, RuntimeError)


# --- trio

on_trio = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("trio", {}), id="trio")], indirect=True
)


@on_trio
async def test_a_stream_of_trio() -> None:
    async with (
        listening() as listener,
        await open_tcp_stream(*listener.address) as stream,
    ):
        peer = await listener.accept()
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert await peer.receive_all() == b"hello"
        await peer.send(b"world")
        peer.fin()
        assert await stream.receive_some(3) == b"wor"
        assert await stream.receive_some() == b"ld"
        assert await stream.receive_some() == b""


@on_trio
async def test_a_stream_of_trio_obeys_the_policy() -> None:
    with pytest.raises(AddressNotAllowedError):
        await open_tcp_stream("127.0.0.1", 1, connector=Connector(WORKERS))


@on_trio
async def test_a_stream_of_trio_holds_a_slot_until_it_is_closed() -> None:
    connector = Connector(max_connections=1)
    async with listening() as listener:
        for _ in range(2):
            async with await open_tcp_stream(*listener.address, connector=connector):
                with pytest.raises(ConnectTimeoutError, match="max_connections"):
                    await open_tcp_stream(
                        *listener.address, connector=connector, connect_timeout=0.01
                    )


# --- asyncio

ON_ASYNCIO = [pytest.param(("asyncio", {}), id="asyncio")]
if find_spec("uvloop") is not None:
    import uvloop

    on_uvloop = ("asyncio", {"loop_factory": uvloop.new_event_loop})
    ON_ASYNCIO.append(pytest.param(on_uvloop, id="uvloop"))
on_asyncio = pytest.mark.parametrize("anyio_backend", ON_ASYNCIO, indirect=True)


@on_asyncio
async def test_streams_of_asyncio() -> None:
    connector = Connector(max_connections=1)
    async with listening() as listener:
        for _ in range(3):
            reader, writer = await open_connection(listener.address, connector=connector)
            peer = await listener.accept()
            writer.write(b"hello\n")
            writer.write_eof()
            assert await peer.receive_all() == b"hello\n"
            await peer.send(b"world\n")
            peer.fin()
            assert await reader.readline() == b"world\n"
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()


@on_asyncio
async def test_streams_of_asyncio_over_tls() -> None:
    connector = Connector(ssl_context=client_context(), max_connections=1)
    async with serving_http(tls=server_context()) as server:
        for ssl_ in (True, client_context()):
            _, writer = await open_connection(server.address, connector=connector, ssl=ssl_)
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            writer.close()
            await writer.wait_closed()
        with pytest.raises(ssl.SSLCertVerificationError):
            await open_connection(
                server.address, connector=connector, ssl=True, server_hostname="other.example"
            )
        # The slot of the failed connection is free.
        _, writer = await open_connection(server.address, connector=connector, connect_timeout=10)
        writer.close()
        await writer.wait_closed()


@on_asyncio
async def test_streams_of_asyncio_can_be_cancelled_during_the_handshake() -> None:
    connector = Connector(max_connections=1)
    async with listening() as silent:
        for _ in range(2):
            with anyio.move_on_after(0.05) as scope:
                await open_connection(silent.address, connector=connector, ssl=client_context())
            assert scope.cancelled_caught
        peers = [await silent.accept() for _ in range(2)]
        for peer in peers:
            with suppress(ConnectionResetError):
                await peer.receive_all()


@on_asyncio
async def test_streams_of_asyncio_obey_the_policy() -> None:
    with pytest.raises(AddressNotAllowedError):
        await open_connection("127.0.0.1:1", connector=Connector(WORKERS))


@on_asyncio
async def test_streams_of_asyncio_refuse_options_that_have_no_effect() -> None:
    with pytest.raises(InvalidOptionError, match="has no effect without ssl"):
        await open_connection("127.0.0.1:1", server_hostname="peer.example")
    wrong: Any = "yes"
    with pytest.raises(InvalidOptionError, match="bad ssl 'yes'"):
        await open_connection("127.0.0.1:1", ssl=wrong)


@on_asyncio
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"ssl": client_context(), "server_hostname": "x" * 70}, "no TLS is possible"),
        ({"ssl": server_context()}, "no TLS is possible"),
        ({"limit": 0}, "bad limit 0"),
    ],
    ids=["name", "context", "limit"],
)
async def test_streams_of_asyncio_refuse_bad_input_before_they_connect(
    wrong: dict[str, Any], why: str
) -> None:
    connector = Connector(max_connections=1, connect_timeout=30)
    async with listening() as listener:
        with pytest.raises(InvalidOptionError, match=why):
            await open_connection(listener.address, connector=connector, **wrong)
        with pytest.raises(BlockingIOError):
            listener.sock.accept()
        _, writer = await open_connection(listener.address, connector=connector)
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("fa\xdf.example", "xn--fa-hia.example"),
        ("a_b.fa\xdf.example", "a_b.xn--fa-hia.example"),
        ("localhost.", "localhost"),
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_the_name_that_is_verified_is_the_one_that_is_connected_to(host: str, name: str) -> None:
    assert name_to_verify(host) == name


#: Parts of hosts, with characters that IDNA maps to others, to several, or to none.
LABELS = st.text("aB1-_\xdf\u017f\uff21\uff11\u0130\u65e5\u212a\xad", min_size=1, max_size=6)
NAMES = st.builds(
    lambda labels, dot, end: dot.join(labels) + end,
    st.lists(LABELS, min_size=1, max_size=3),
    st.sampled_from([".", "\u3002"]),
    st.sampled_from(["", "."]),
)


@given(NAMES | st.ip_addresses().map(str) | st.ip_addresses(v=6).map("[{}%eth0]".format))
def test_the_name_that_is_verified_is_the_normal_form_of_every_host(host: str) -> None:
    try:
        normal = parse_address((host, 1)).hostname
    except InvalidAddressError:
        reject()
    expected, found = normal.removesuffix(".").partition("%")[0], name_to_verify(host)
    if ":" in expected:
        assert IPv6Address(found) == IPv6Address(expected)
    else:
        assert found.lower() == expected  # certificates are compared without regard to case


@on_asyncio
async def test_streams_of_asyncio_refuse_a_certificate_for_the_idna_2003_form_of_a_name() -> None:
    async def here(host: str, port: int) -> list[str]:
        assert host == "xn--fa-hia.example"
        return ["127.0.0.1"]

    connector = Connector(resolver=here, ssl_context=client_context())
    tls = server_context(cert=certificate("fass.example"))
    async with serving_http(tls=tls) as server:
        address = ("fa\xdf.example", int(server.address.partition(":")[2]))
        with pytest.raises(ssl.SSLCertVerificationError):
            await open_connection(address, connector=connector, ssl=True)


# --- over a stream that is not a socket of the system


@on_trio
async def test_a_stream_of_trio_over_a_network_in_memory() -> None:
    network = Network()
    async with network.listen("peer.example:7") as listener:
        connector = network.connector()
        async with await open_tcp_stream("peer.example", 7, connector=connector) as stream:
            await stream.wait_send_all_might_not_block()
            await stream.send_all(b"hello")
            async with await listener.accept() as peer:
                assert await peer.receive() == b"hello"


async def test_httpcore_over_a_network_in_memory() -> None:
    network = Network()
    async with network.listen("peer.example:7") as listener:
        nodelay = (stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)
        stream = await NetworkBackend(network.connector()).connect_tcp(
            "peer.example", 7, socket_options=[nodelay]
        )
        await stream.write(b"hello")
        async with await listener.accept() as peer:
            assert await peer.receive() == b"hello"
        await stream.aclose()
