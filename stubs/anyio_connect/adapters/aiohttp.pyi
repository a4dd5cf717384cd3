"""For aiohttp: every socket is judged by an ``AddressPolicy``."""

from collections.abc import Callable
from socket import socket
from typing import Any

from anyio_connect import AddressPolicy

__all__ = ("socket_factory",)

def socket_factory(
    policy: AddressPolicy,
) -> Callable[[tuple[int, int, int, str, tuple[Any, ...]]], socket]:
    """Return a ``socket_factory`` for ``aiohttp.TCPConnector`` that obeys ``policy``."""
