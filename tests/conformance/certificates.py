"""The certificates of the scenarios, valid and invalid ones."""

from __future__ import annotations

import ssl
from datetime import datetime, timezone

import trustme

HOSTS = "localhost", "127.0.0.1"


class Certificates:
    def __init__(self) -> None:
        self.authority = trustme.CA()
        long_ago = datetime(2001, 1, 1, tzinfo=timezone.utc)
        self._server = {
            "good": self.authority.issue_cert(*HOSTS),
            "other-name": self.authority.issue_cert("other.example"),
            "expired": self.authority.issue_cert(*HOSTS, not_after=long_ago),
            "unknown-authority": trustme.CA().issue_cert(*HOSTS),
        }

    def server(self, which: str) -> ssl.SSLContext:
        """The context of a server with that certificate. It sends no session tickets."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server[which].configure_cert(context)
        context.num_tickets = 0
        context.set_alpn_protocols(["conformance"])
        return context
