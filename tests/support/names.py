"""A name server for tests, and a policy that allows only this machine."""

from __future__ import annotations

import socket
import threading
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from anyio_connect import AddressPolicy

LOOPBACK = AddressPolicy(allow=["127.0.0.0/8"])


class Names(dict[str, Any]):
    """A name server: host name -> its addresses, an exception, or "silence".

    An address is ``ip``, or ``(ip, port)`` if the connection is to go to another port than the one
    that the test asks for. Port 0 stands for the port that the test asks for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    async def getaddrinfo(self, host: str, port: int) -> list[Any]:
        await checkpoint()
        self.asked.set()
        answer = self[host]
        if answer == "silence":
            await anyio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        found = [each if isinstance(each, tuple) else (each, 0) for each in answer]
        return [_info(ip, at or port) for ip, at in found]


def _info(ip: str, port: int) -> Any:
    """An item of what ``socket.getaddrinfo()`` returns."""
    if ":" in ip:
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (ip, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)
