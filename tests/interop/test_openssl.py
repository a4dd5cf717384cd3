"""`openssl s_server` can be told to send new keys (TLS 1.3) or to renegotiate (TLS 1.2)."""

from __future__ import annotations

import ssl
from functools import partial

import anyio
import anyio.to_thread
import pytest

from anyio_connect import Socket, connect
from interop.servers import OpenSSL

UPDATE = " TLS 1.3, Handshake \\[length 0005\\], KeyUpdate\n"


def press(server: OpenSSL, keys: str) -> None:
    assert server.program.process.stdin is not None
    server.program.process.stdin.write(keys)
    server.program.process.stdin.flush()


async def shows(server: OpenSSL, pattern: str, after: int = 0) -> None:
    await anyio.to_thread.run_sync(partial(server.program.wait_for, pattern, after=after))


async def read_until_the_end(socket: Socket) -> None:
    received = b""
    while b"the end\n" not in received:
        received += await socket.receive()


@pytest.mark.parametrize("openssl_keyboard", [("-tls1_3", "-msg")], indirect=True)
async def test_key_updates(openssl_keyboard: OpenSSL, ssl_context: ssl.SSLContext) -> None:
    server = openssl_keyboard
    async with connect(server.address, secure_transport="on", ssl_context=ssl_context) as socket:
        await socket.opened
        # Now its handshake is over too. Before that, a keystroke does nothing.
        await shows(server, "CIPHER is")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_until_the_end, socket)
            for n in range(4):
                before = len(server.program.output)
                async with anyio.create_task_group() as sending:
                    # Now with much data in flight: the server prints what it receives.
                    sending.start_soon(socket.send, b"." * 200_000 + b"\nmark %d\n" % n)
                    press(server, "K\n" if n % 2 else "k\n")
                    await shows(server, f"mark {n}\n", before)
                    await shows(server, f">>>{UPDATE}", before)
            # OpenSSL sends the answer to a K together with the next data that it sends.
            await socket.send(b"last words\n")
            await shows(server, "last words\n")
            press(server, "the end\n")
    await shows(server, "DONE")
    shown = server.program.output
    update = UPDATE.replace("\\", "")
    assert (shown.count(f">>>{update}"), shown.count(f"<<<{update}")) == (4, 2)


@pytest.mark.parametrize("openssl_keyboard", [("-tls1_2",)], indirect=True)
async def test_a_renegotiation(openssl_keyboard: OpenSSL, ssl_context: ssl.SSLContext) -> None:
    server = openssl_keyboard
    async with (
        connect(server.address, secure_transport="on", ssl_context=ssl_context) as socket,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(read_until_the_end, socket)
        await socket.send(b"one\n")
        await shows(server, "one\n")
        press(server, "r\n")
        await shows(server, "SSL_do_handshake")
        for n in range(20):
            await socket.send(b"." * 20_000 + b"\nmark %d\n" % n)
        await shows(server, "mark 19\n")
        press(server, "the end\n")
    await shows(server, "DONE")
