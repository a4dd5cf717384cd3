"""A client of SMTP with STARTTLS (RFC 5321, RFC 3207), and aiosmtpd."""

from __future__ import annotations

import ssl
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from mailbox import Maildir
from uuid import uuid4

import pytest

from anyio_connect import Socket, connect
from interop.servers import MailServer

# --- the client


class SMTPError(Exception):
    """An error of the server."""


class SMTP:
    """Commands and replies."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    async def reply(self, wanted: int) -> list[str]:
        """Receive one reply, which may have several lines, and return their texts."""
        texts = []
        more = True
        while more:
            line = (await self._socket.receive_until(b"\r\n", 512)).decode()
            texts.append(line[4:])
            more = line[3:4] == "-"  # "250-first", "250-second", "250 last"
        if not line.startswith(str(wanted)):
            raise SMTPError(line)
        return texts

    async def command(self, line: str, wanted: int) -> list[str]:
        await self._socket.send(line.encode() + b"\r\n")
        return await self.reply(wanted)


async def send_mail(
    address: str | tuple[str, int],
    message: EmailMessage,
    *,
    ssl_context: ssl.SSLContext,
    hostname: str = "client.example",
) -> None:
    """Send a message to a mail server, encrypted."""
    async with connect(address, secure_transport="starttls", ssl_context=ssl_context) as plain:
        smtp = SMTP(plain)
        await smtp.reply(220)
        if "STARTTLS" not in await smtp.command(f"EHLO {hostname}", 250):
            raise SMTPError("the server has no STARTTLS")
        await smtp.command("STARTTLS", 220)
        # If data followed that reply, start_tls() or the handshake fails (CVE-2011-0411).
        async with plain.start_tls() as tls:
            smtp = SMTP(tls)
            await smtp.command(f"EHLO {hostname}", 250)  # what was sent before TLS does not count
            await smtp.command(f"MAIL FROM:<{message['From']}>", 250)
            await smtp.command(f"RCPT TO:<{message['To']}>", 250)
            await smtp.command("DATA", 354)
            body = message.as_bytes(policy=SMTP_POLICY)
            # A line that begins with a dot gets another dot, because a line with only a dot is the
            # end.
            body = b"".join(b"." * line.startswith(b".") + line for line in body.splitlines(True))
            await tls.send(body)
            await smtp.command(".", 250)
            await smtp.command("QUIT", 221)


# --- the tests


def mail(text: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "alice@client.example"
    message["To"] = "bob@mail.example"
    message["Subject"] = "Greetings"
    message["Message-ID"] = f"<{uuid4()}@client.example>"
    message.set_content(text)
    return message


@pytest.mark.parametrize(
    "text",
    ["Hello\n", "a line\n.\n..two dots\n.one dot\n", "many lines\n" * 20_000],
    ids=["short", "dots", "long"],
)
async def test_a_message_arrives(
    mail_server: MailServer, ssl_context: ssl.SSLContext, text: str
) -> None:
    message = mail(text)

    await send_mail(mail_server.smtp, message, ssl_context=ssl_context)

    (arrived,) = (
        found
        for found in Maildir(mail_server.maildir)
        if found["Message-ID"] == message["Message-ID"]
    )
    assert arrived["Subject"] == "Greetings"
    assert arrived.get_payload() == text


async def test_without_tls_it_takes_nothing(mail_server: MailServer) -> None:
    async with connect(mail_server.smtp) as plain:
        smtp = SMTP(plain)
        await smtp.reply(220)
        await smtp.command("EHLO client.example", 250)
        with pytest.raises(SMTPError, match="STARTTLS"):
            await smtp.command("MAIL FROM:<alice@client.example>", 250)
