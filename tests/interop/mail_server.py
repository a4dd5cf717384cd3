"""aiosmtpd on two free ports of loopback, for SMTP and for LMTP, each with STARTTLS.

Over SMTP it accepts mail only after STARTTLS. All mail goes into a Maildir. The arguments are the
file of its certificate, that of the key, and the Maildir.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path

from aiosmtpd.handlers import Mailbox
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP


async def main(chain: str, key: str, maildir: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    loop = asyncio.get_running_loop()
    mailbox = Mailbox(Path(maildir))

    def smtp() -> SMTP:
        return SMTP(mailbox, hostname="mail.example", tls_context=context, require_starttls=True)

    def lmtp() -> LMTP:
        # Without require_starttls, because aiosmtpd would then refuse even an unencrypted LHLO.
        return LMTP(mailbox, hostname="mail.example", tls_context=context)

    listeners = [await loop.create_server(each, "127.0.0.1", 0) for each in (smtp, lmtp)]
    ports = [each.sockets[0].getsockname()[1] for each in listeners]
    print("listening on", *ports, flush=True)  # noqa: T201 - for the tests to read
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
