"""``Connector.connect_socket()``: a connected socket of the kernel, for other libraries."""

from __future__ import annotations

import errno
import math
import os
import socket as stdlib
import sys
from contextlib import suppress
from typing import Any
from weakref import ref

import anyio
import anyio.to_thread
import pytest
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from anyio_connect import (
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    DetachError,
    LoopError,
    RefusedError,
    ResolveError,
    SocketAddress,
    _dial,
    listen,
)
from anyio_connect._tcp import TCPTransport
from support.cycles import Local
from support.names import LOOPBACK, Names
from support.peers import Peer, full, has_ipv6, listening, refusing_address
from support.proxies import ESTABLISHED, Line, Proxy, hear_http, proxying
from support.spying import slots
from support.tls_peers import client_context


async def test_a_connected_socket_that_does_not_block() -> None:
    async with listening() as listener:
        with await Connector().connect_socket(listener.address) as sock:
            peer = await listener.accept()
            assert type(sock) is stdlib.socket
            assert (sock.family, sock.type) == (stdlib.AF_INET, stdlib.SOCK_STREAM)
            assert sock.gettimeout() == 0
            assert sock.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY)
            sock.send(b"ping")
            assert await peer.receive() == b"ping"
            await peer.send(b"pong")
            assert await Peer(sock).receive() == b"pong"
        assert await peer.receive_all() == b""


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_over_ipv6() -> None:
    async with listening("::1") as listener:
        host, port = listener.address
        with await Connector().connect_socket(f"[{host}]:{port}") as sock:
            assert sock.family == stdlib.AF_INET6
            assert sock.getpeername()[:2] == listener.address


async def test_keepalive_is_set_as_for_other_sockets() -> None:
    async with listening() as listener:
        for connector, options, wanted in (
            (Connector(), {}, True),
            (Connector(), {"keep_alive": math.inf}, False),
            (Connector(keep_alive=math.inf), {}, False),
            (Connector(keep_alive=math.inf), {"keep_alive": 5.0}, True),
        ):
            with await connector.connect_socket(listener.address, **options) as sock:
                assert bool(sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_KEEPALIVE)) == wanted
                if sys.platform == "linux":
                    # A limit for unacknowledged data would break with a slow reader.
                    assert not sock.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_USER_TIMEOUT)


async def test_the_addresses_are_raced_and_judged(names: Names) -> None:
    async with listening() as listener:
        host, port = listener.address
        names["host.test"] = [("10.0.0.1", port), refusing_address(), (host, port)]
        connector = Connector(LOOPBACK, happy_eyeballs_delay=3600)
        with anyio.fail_after(30):
            sock = await connector.connect_socket("host.test:1")
        with sock:
            assert sock.getpeername() == listener.address


async def test_the_errors_of_connect_socket(names: Names) -> None:
    names["nowhere.test"] = stdlib.gaierror(stdlib.EAI_NONAME, "no such name")
    names["silent.test"] = "silence"
    with pytest.raises(RefusedError, match="connection refused"):
        await Connector().connect_socket(refusing_address())
    with pytest.raises(ResolveError):
        await Connector().connect_socket("nowhere.test:1")
    with pytest.raises(AddressNotAllowedError, match="Loopback"):
        await Connector(WORKERS).connect_socket("127.0.0.1:1")
    with pytest.raises(ConnectTimeoutError, match=r"within 0\.01 seconds"):
        await Connector(connect_timeout=0.01).connect_socket("silent.test:1")
    async with await listen("127.0.0.1:0") as loop, full() as silent:
        with pytest.raises(LoopError):
            await Connector(AddressPolicy(refuse_loops=True)).connect_socket(loop.addresses[0])
        with pytest.raises(ConnectTimeoutError, match=r"no connection within 0\.01 seconds"):
            await Connector().connect_socket(silent.address, connect_timeout=0.01)


async def test_a_stream_of_a_dialer_cannot_be_given_away() -> None:
    async with listening() as listener:
        host, port = listener.address
        streams: list[ByteStream] = []

        async def dial(address: SocketAddress) -> ByteStream:
            streams.append(await anyio.connect_tcp(host, port))
            return streams[-1]

        connector = Connector(dialer=dial, max_connections=1)
        for _ in range(2):
            with pytest.raises(
                DetachError, match="cannot be given away: it is not a socket of the"
            ):
                await connector.connect_socket("unix.test:1")
        assert slots(connector).free == 1
        for stream in streams:
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()


async def test_a_connection_of_another_connector_holds_a_slot_of_both() -> None:
    async with listening() as listener:
        inner = Connector(max_connections=3)

        async def dial(address: SocketAddress) -> ByteStream:
            return inner.connect(listener.address)

        outer = Connector(dialer=dial, max_connections=2)
        with await outer.connect_socket("host.test:1") as sock:
            assert sock.getpeername() == listener.address
            assert (slots(outer).free, slots(inner).free) == (1, 2)
        assert (slots(outer).free, slots(inner).free) == (2, 3)
        async with outer.connect("host.test:1") as socket:
            with socket.detach():
                assert (slots(outer).free, slots(inner).free) == (1, 2)
            assert (slots(outer).free, slots(inner).free) == (2, 3)


async def test_through_a_proxy() -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(ESTABLISHED + b"220 hello")
        await line.send(await line.receive_all())

    async with proxying(script) as proxy:
        connector = Connector(proxy=proxy.url("http"), max_connections=1)
        with await connector.connect_socket("mail.example:587") as sock:
            # The socket receives what the target sends first.
            assert await Peer(sock).receive_exactly(9) == b"220 hello"
            await Peer(sock).send(b"EHLO")
            sock.shutdown(stdlib.SHUT_WR)
            assert await Peer(sock).receive_all() == b"EHLO"
        assert slots(connector).free == 1


async def test_tls_to_a_proxy_cannot_be_given_away() -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(ESTABLISHED)

    async with proxying(script, over_tls=True) as proxy:
        connector = Connector(proxy=proxy.url("https"), ssl_context=client_context())
        with pytest.raises(DetachError, match="cannot be given away: it uses TLS"):
            await connector.connect_socket("mail.example:587")


async def test_a_connection_that_was_reset_at_once_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel reports a reset once, so a later receive would not raise it."""

    async def connect_and_be_reset(endpoint: Any, *_: Any) -> TCPTransport:
        await checkpoint()
        sock = stdlib.create_connection(endpoint.sockaddr)
        sock.setblocking(False)
        error = OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return TCPTransport(sock, remote=endpoint.sockaddr, error=error)

    monkeypatch.setattr(_dial, "connect", connect_and_be_reset)
    connector = Connector(max_connections=1)
    async with listening() as listener:
        with pytest.raises(ConnectError, match="broke at once: Connection reset") as caught:
            await connector.connect_socket(listener.address)
        assert caught.value.errno == errno.ECONNRESET
        assert isinstance(caught.value.__cause__, OSError)
    assert slots(connector).free == 1


async def test_a_failure_keeps_no_frame_alive(no_collector: None) -> None:
    async def fail(connector: Connector) -> ref[Local]:
        local = Local()
        with suppress(RefusedError, DetachError):
            await connector.connect_socket(refusing_address())
        return ref(local)

    async def dial(address: SocketAddress) -> ByteStream:
        return await anyio.connect_tcp(host, port)

    async with listening() as listener:
        host, port = listener.address
        for dialer in (None, dial):
            connector = Connector(max_connections=1, dialer=dialer)
            local = await fail(connector)
            # AnyIO closes the stream in a cancelled scope, which lives until the next checkpoint.
            await checkpoint()
            assert local() is None
            assert slots(connector).free == 1
