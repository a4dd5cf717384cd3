"""Shows what is hidden from users: where sockets connect to, and the slots of a Connector."""

from __future__ import annotations

import socket as stdlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from anyio_connect import Connector
from anyio_connect._slots import Slots


@contextmanager
def spying(*, really: Callable[[str], bool] = lambda _: False) -> Iterator[list[str]]:
    """Record every address that any socket of this process is told to connect to.

    It is connected only if ``really`` allows that. Every other attempt is refused.
    """
    dialled: list[str] = []
    connect, connect_ex = stdlib.socket.connect, stdlib.socket.connect_ex

    def spy(sock: stdlib.socket, address: Any) -> None:
        if sock.type == stdlib.SOCK_STREAM:  # other sockets only look for a route
            dialled.append(address[0])
            if not really(address[0]):
                raise ConnectionRefusedError
        connect(sock, address)

    def spy_ex(sock: stdlib.socket, address: Any) -> int:
        raise AssertionError(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib.socket, "connect", spy, raising=False)
        patch.setattr(stdlib.socket, "connect_ex", spy_ex, raising=False)
        yield dialled
    assert (stdlib.socket.connect, stdlib.socket.connect_ex) == (connect, connect_ex)


def slots(connector: Connector) -> Slots:
    """The slots of a connector that has ``max_connections``."""
    found = vars(connector)["_slots"]
    assert isinstance(found, Slots)
    return found
