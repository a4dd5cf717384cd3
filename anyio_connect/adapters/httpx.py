"""For httpx: a transport over a ``Connector``.

::

    transport = Transport(Connector(WORKERS))
    async with httpx.AsyncClient(transport=transport) as client:
        response = await client.get(url)
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import httpcore
import httpx

from anyio_connect import Connector
from anyio_connect.adapters.httpcore import NetworkBackend

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

__all__ = ("Transport",)

#: The defaults of ``httpx.Limits``.
_MAX_CONNECTIONS = 100
_MAX_IDLE = 20
_IDLE_SECONDS = 5.0


class Transport(httpx.AsyncBaseTransport):
    """The transport of an ``httpx.AsyncClient``, for HTTP/1.1 and HTTP/2.

    The connector's policy judges the address of every new connection, for requests and for
    redirects. A forbidden address raises an ``httpx.ConnectError`` whose text names the rule. The
    :class:`AddressNotAllowedError` is in the chain of its ``__cause__``. A client with its own
    transport uses no proxy from the environment. Do not pass ``mounts`` or ``proxy`` to the
    client, because they bypass this transport: pass the proxy to the ``Connector``.
    """

    def __init__(
        self,
        connector: Connector | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits | None = None,
        retries: int = 0,
    ) -> None:
        """Create the transport. This needs no running event loop.

        ``connector``: None allows all addresses and any number of connections.

        ``ssl_context``: httpx's context by default. httpcore changes its ALPN protocols, so pass a
        context that no other code uses. The connector's own context is never changed, so it is not
        used here.

        ``http1``, ``http2``: the versions to offer. ``http2`` needs ``httpx[http2]``.

        ``limits``: httpx's own by default. There are never more connections than the connector's
        ``max_connections``, and idle connections count too.

        ``retries``: how many times to try again to connect.
        """
        connector = Connector() if connector is None else connector
        if limits is None:
            limits = httpx.Limits(
                max_connections=_MAX_CONNECTIONS,
                max_keepalive_connections=_MAX_IDLE,
                keepalive_expiry=_IDLE_SECONDS,
            )
        most = [n for n in (limits.max_connections, connector.max_connections) if n is not None]
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or httpx.create_ssl_context(),
            max_connections=min(most) if most else None,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            network_backend=NetworkBackend(connector),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``, and return the response when its head has arrived.

        If it is cancelled, the request is given up, and over HTTP/1.1 its connection is closed.

        :raises httpx.TransportError: in the same cases as httpx's own transport
        """
        url = request.url
        with _errors_as_httpx(request):
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=url.raw_scheme,
                        host=url.raw_host,
                        port=url.port,
                        target=url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response, request),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._pool.__aexit__(exc_type, exc_value, traceback)


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _errors_as_httpx(self._request):
            async for chunk in self._response.aiter_stream():
                yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


#: Each is called the same in both. What comes first is more exact than what comes later.
_NAMES = (
    "ConnectTimeout",
    "ReadTimeout",
    "WriteTimeout",
    "PoolTimeout",
    "TimeoutException",
    "ConnectError",
    "ReadError",
    "WriteError",
    "NetworkError",
    "ProxyError",
    "UnsupportedProtocol",
    "LocalProtocolError",
    "RemoteProtocolError",
    "ProtocolError",
)
_ERRORS: tuple[tuple[type[Exception], Any], ...] = tuple(
    (getattr(httpcore, name), getattr(httpx, name)) for name in _NAMES
)


@contextmanager
def _errors_as_httpx(request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        for theirs, ours in _ERRORS:
            if isinstance(exc, theirs):
                if exc.args and isinstance(exc.args[0], Exception):
                    exc.__cause__ = exc.args[0]  # httpcore's pool has dropped the cause
                raise ours(str(exc), request=request) from exc
        raise
