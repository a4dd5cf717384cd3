"""Proxies and TLS: with the target, with the proxy, and with both."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_connect import (
    BrokenError,
    CertificateError,
    Connector,
    ProxyError,
    TLSError,
)
from support.peers import listening
from support.proxies import (
    CREDENTIALS,
    ESTABLISHED,
    SUCCEEDED,
    Inner,
    Line,
    Proxy,
    Script,
    hear_http,
    hear_socks,
    http,
    proxying,
    says,
    silent,
    target_over_tls,
    use,
)
from support.tls_peers import (
    NAME,
    TLSPeer,
    client_context,
    server_context,
)


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


async def test_start_tls_works_through_a_proxy() -> None:
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


async def test_start_tls_does_not_treat_data_after_the_answer_as_tls() -> None:
    async with proxying(http(ESTABLISHED + b"220 ready\r\n")) as proxy:
        connector = Connector(proxy=proxy.url("http"), ssl_context=client_context())
        async with connector.connect(f"{NAME}:587", secure_transport="starttls") as plain:
            with pytest.raises(TLSError):
                await plain.start_tls().opened


# --- TLS with the proxy


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
        connector = Connector(proxy=proxy.url("https"))  # it does not trust the CA of the tests
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
