"""What a socket through a proxy leaves behind when it fails, is dropped or is cancelled."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_connect import (
    ConnectError,
    Connector,
    ConnectTimeoutError,
    ProxyError,
)
from support.cancelling import CancelAt, Moment
from support.cycles import nothing_to_collect
from support.names import Names
from support.proxies import (
    BAD_GATEWAY,
    CREDENTIALS,
    ESTABLISHED,
    JUDGE,
    Inner,
    Line,
    Proxy,
    Script,
    hear_http,
    http,
    in_turn,
    proxying,
    says,
    silent,
    socks,
    target_over_tls,
)
from support.sockets import wait_for
from support.spying import slots
from support.tls_peers import (
    NAME,
    TLSPeer,
    client_context,
    server_context,
)


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

        await use_it()  # now what is made only once exists
        with nothing_to_collect():
            await use_it()


@pytest.mark.parametrize("how", ["off", "on"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_socket_that_is_dropped_is_closed(scheme: str, how: Any) -> None:
    """The proxy gets an end, and the slot is free, without the garbage collector."""

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


async def test_a_slot_is_held_for_the_whole_way() -> None:
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


# --- cancelled


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
async def test_a_cancellation_at_any_checkpoint_leaves_nothing(
    scheme: str,
    script: Script,
    options: dict[str, Any],
    moment: Moment,
    names: Names,
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
            if number % 3:  # made now, unless the cancelled call has made it
                async with socket:
                    await socket.send(b"x")
                    assert await socket.receive_exactly(1) == b"x"
            else:
                await socket.close()
            assert slots(connector).free == 1
            if not scope.cancel_called:
                break
    assert number > 1, "not a single checkpoint"
