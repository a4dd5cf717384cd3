"""For httpx: a transport over a ``Connector``."""

import ssl
import sys
from types import TracebackType

import httpx

from anyio_connect import Connector

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

__all__ = ("Transport",)

class Transport(httpx.AsyncBaseTransport):
    """The transport of an ``httpx.AsyncClient``, for HTTP/1.1 and HTTP/2."""

    def __init__(
        self,
        connector: Connector | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits | None = None,
        retries: int = 0,
    ) -> None: ...
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response: ...
    async def aclose(self) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None: ...
