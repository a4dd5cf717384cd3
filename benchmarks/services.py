"""The services of the peer, one on each of its ports."""

from __future__ import annotations

from contextlib import suppress
from enum import IntEnum

HOST = "127.0.0.1"


class Service(IntEnum):
    """One port each, in this order."""

    SEND = 0  #: takes a number, 8 bytes big-endian, and sends as many bytes; again and again
    TAKE = 1  #: takes a number, takes as many bytes, then sends one; again and again
    BOTH = 2  #: takes a number, then does both at once, and sends one byte more
    ECHO = 3  #: sends back what comes
    GREET = 4  #: sends one byte as soon as there is a connection
    HOLD = 5  #: keeps the connection, and takes what comes


def allow_many_sockets() -> None:
    with suppress(ImportError, ValueError, OSError):  # not everywhere, and not always so many
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
