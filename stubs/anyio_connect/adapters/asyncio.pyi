"""For code on asyncio's streams: ``open_connection()`` over a ``Connector``."""

import asyncio
import ssl as tls

from anyio_connect import Connector, SocketAddress

__all__ = ("open_connection",)

async def open_connection(
    address: str | SocketAddress | tuple[str, int],
    *,
    connector: Connector | None = None,
    connect_timeout: float | None = None,
    keep_alive: float | None = None,
    ssl: tls.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    limit: int = ...,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect by a ``Connector``, and return asyncio's own reader and writer."""
