"""The commands that ``--starttls`` sends before TLS, tried with real servers."""

from __future__ import annotations

import ssl

from anyio_connect import SocketInfo, connect
from anyio_connect._preludes import PRELUDES
from interop.servers import MailServer, PostgreSQL


async def upgrade(
    address: tuple[str, int], protocol: str, ssl_context: ssl.SSLContext, last_words: bytes
) -> tuple[SocketInfo, bytes]:
    """Upgrade to TLS, send one more command, and return the server's answer."""
    async with connect(address, secure_transport="starttls", ssl_context=ssl_context) as plain:
        await PRELUDES[protocol](plain)
        async with plain.start_tls() as tls:
            await tls.send(last_words)
            return await tls.opened, b"".join([chunk async for chunk in tls])


async def test_smtp(mail_server: MailServer, ssl_context: ssl.SSLContext) -> None:
    info, answer = await upgrade(mail_server.smtp, "smtp", ssl_context, b"QUIT\r\n")
    assert info.remote_address == "{}:{}".format(*mail_server.smtp)
    assert answer.startswith(b"221 ")


async def test_lmtp(mail_server: MailServer, ssl_context: ssl.SSLContext) -> None:
    _, answer = await upgrade(mail_server.lmtp, "lmtp", ssl_context, b"QUIT\r\n")
    assert answer.startswith(b"221 ")


async def test_postgres(postgresql: PostgreSQL, ssl_context: ssl.SSLContext) -> None:
    unknown_version = b"\0\0\0\x08\0\x63\0\0"
    _, answer = await upgrade(postgresql.address, "postgres", ssl_context, unknown_version)
    assert b"unsupported frontend protocol 99.0" in answer
