"""Half-close over TLS: we end, the peer sees the end of the stream, and we read until its end.

In TLS, each side ends its own direction by a close_notify alert (RFC 8446 6.1).
"""

from __future__ import annotations

import ssl

import anyio
import pytest
import trustme

from anyio_connect import ClosedError, Socket, connect
from interop.half_close_server import MEGABYTE
from interop.servers import OpenSSL

# --- the client


async def ask(socket: Socket, question: bytes) -> bytes:
    """Send all of a question, end our side, and receive all of the answer."""
    await socket.send(question)
    await socket.send_eof()
    return b"".join([chunk async for chunk in socket.readable])


# --- the tests


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def versioned_context(request: pytest.FixtureRequest, authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[request.param]
    return context


@pytest.mark.parametrize(("size", "half_open"), [(0, False), (1 << 20, True)])
async def test_peer_that_answers_after_our_end(
    half_close_server: tuple[str, int],
    versioned_context: ssl.SSLContext,
    size: int,
    half_open: bool,
) -> None:
    """When we end, the peer's first megabyte is in flight and unread."""
    async with connect(
        half_close_server,
        secure_transport="on",
        ssl_context=versioned_context,
        allow_half_open=half_open,
    ) as socket:
        first = await socket.receive(1)
        rest = await ask(socket, bytes(size))
        assert first + rest == MEGABYTE + b"received %d bytes" % size + MEGABYTE
        with anyio.fail_after(10):
            await socket.closed
        with pytest.raises(ClosedError):
            await socket.send(b"too late")


async def test_openssl_sees_our_end(
    openssl_terminal: OpenSSL, versioned_context: ssl.SSLContext
) -> None:
    said = len(openssl_terminal.program.output)
    async with connect(
        openssl_terminal.address, secure_transport="on", ssl_context=versioned_context
    ) as socket:
        assert await ask(socket, b"hello\n") == b""
        await socket.closed
    # openssl prints this for a close_notify. If the connection breaks, it prints ERROR.
    openssl_terminal.program.wait_for("hello\nDONE\n", after=said)


async def test_file_from_openssl_after_our_end(
    openssl_files: OpenSSL, versioned_context: ssl.SSLContext
) -> None:
    content = bytes(range(256)) * 32768
    (openssl_files.directory / "file.txt").write_bytes(content)
    async with connect(
        openssl_files.address, secure_transport="on", ssl_context=versioned_context
    ) as socket:
        answer = await ask(socket, b"GET /file.txt HTTP/1.0\r\n\r\n")
        await socket.closed
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 ok")
    assert body == content
