"""The services of the peer, one on each of its ports."""

from __future__ import annotations

from contextlib import suppress
from enum import IntEnum

HOST = "127.0.0.1"


class Service(IntEnum):
    """One port each, in this order."""

    SEND = 0  #: receives a number (8 bytes, big-endian), and sends that many bytes; repeatedly
    TAKE = 1  #: receives a number, receives that many bytes, then sends one; repeatedly
    BOTH = 2  #: receives a number, then does both at once, and sends one more byte
    ECHO = 3  #: sends everything back
    GREET = 4  #: sends one byte as soon as there is a connection
    HOLD = 5  #: keeps the connection, and receives everything


def allow_many_sockets() -> None:
    with suppress(
        ImportError, ValueError, OSError
    ):  # not on every system, and not always that many
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
