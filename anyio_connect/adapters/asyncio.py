"""For code on asyncio's streams: ``open_connection()`` over a ``Connector``.

::

    reader, writer = await open_connection("echo.example:7", connector=Connector(WORKERS))
"""

from __future__ import annotations

import asyncio
import ssl as tls

import idna

from anyio_connect import Connector, InvalidOptionError, SocketAddress

__all__ = ("open_connection",)

#: How much a StreamReader holds before the peer has to wait, in bytes: asyncio's own default.
_LIMIT = 1 << 16


async def open_connection(
    address: str | SocketAddress | tuple[str, int],
    *,
    connector: Connector | None = None,
    connect_timeout: float | None = None,
    keep_alive: float | None = None,
    ssl: tls.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    limit: int = _LIMIT,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect by a ``Connector``, and return asyncio's own reader and writer.

    The connector makes the connection, with its policy, its race of addresses and its
    ``max_connections``; the slot comes back when the writer's transport has closed the socket.
    After that, asyncio does everything, including TLS, and raises its own errors.

    ``connector``: None allows all addresses and any number of connections.

    ``address``, ``connect_timeout``, ``keep_alive``: as for ``connect()``. The time limit does not
    include the TLS handshake.

    ``ssl``, ``server_hostname``, ``limit``: as for ``asyncio.open_connection()``. ``ssl=True``
    uses the connector's context, if it has one. ``server_hostname`` is the host of ``address`` by
    default.

    A cancelled call leaves nothing open.

    :raises InvalidAddressError: ``address`` is not the address of a TCP endpoint
    :raises InvalidOptionError: an option has a bad value, or no effect
    :raises DetachError: the connection has no socket of the kernel, because it uses an HTTPS proxy
        or a ``dialer``
    :raises ConnectError: the connection could not be made; it is an OSError, like asyncio's
    :raises OSError: the TLS handshake failed, with an ``ssl.SSLError`` or a lost connection
    """
    connector = Connector() if connector is None else connector
    if ssl is not None and not isinstance(ssl, (bool, tls.SSLContext)):
        raise InvalidOptionError(f"bad ssl {ssl!r}: it must be True or an ssl.SSLContext")
    if server_hostname is not None and not ssl:
        raise InvalidOptionError(
            f"server_hostname={server_hostname!r} has no effect without ssl: leave it out"
        )
    if limit < 1:
        raise InvalidOptionError(f"bad limit {limit!r}: it must be a number of bytes, from 1")
    connector.connect(address)  # checks the address, and does no I/O
    context = connector.ssl_context if ssl is True and connector.ssl_context else ssl
    name = server_hostname or _name(_host(address))
    if context:
        context = _checked(context, name)
    sock = await connector.connect_socket(
        address, connect_timeout=connect_timeout, keep_alive=keep_alive
    )
    # From here on, asyncio closes the socket, even if the handshake fails or is cancelled.
    if not context:
        return await asyncio.open_connection(sock=sock, limit=limit)
    return await asyncio.open_connection(sock=sock, limit=limit, ssl=context, server_hostname=name)


def _checked(context: tls.SSLContext | bool, name: str) -> tls.SSLContext:
    """Check that TLS with ``name`` is possible. If not, asyncio would leave a socket open."""
    made = context if isinstance(context, tls.SSLContext) else tls.create_default_context()
    try:
        made.wrap_bio(tls.MemoryBIO(), tls.MemoryBIO(), server_hostname=name)
    except (ValueError, TypeError, AttributeError, tls.SSLError) as exc:
        raise InvalidOptionError(f"no TLS is possible with {name!r}: {exc}") from exc
    return made


def _host(address: str | SocketAddress | tuple[str, int]) -> str:
    return address.rpartition(":")[0].strip("[]") if isinstance(address, str) else address[0]


def _name(host: str) -> str:
    """The name that the certificate must be valid for, by IDNA 2008 as in ``connect()``.

    Python's ssl supports only IDNA 2003, in which "fass" and "faß" are the same name. An adapter
    uses public names only, and none of them returns the normal form of a host.
    """
    if not host.isascii():
        labels = idna.uts46_remap(host, std3_rules=False).split(".")
        host = ".".join(x if x.isascii() else idna.alabel(x).decode() for x in labels)
    return host.strip("[]").removesuffix(".").partition("%")[0]
