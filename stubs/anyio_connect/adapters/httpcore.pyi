"""For httpcore: a network backend over a ``Connector``."""

from collections.abc import Iterable

import httpcore
from httpcore import SOCKET_OPTION

from anyio_connect import Connector

__all__ = ("NetworkBackend",)

class NetworkBackend(httpcore.AsyncNetworkBackend):
    """Opens the connections of an ``httpcore.AsyncConnectionPool``, and of its proxies."""

    def __init__(self, connector: Connector | None = None) -> None: ...
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream: ...
    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream: ...
    async def sleep(self, seconds: float) -> None: ...
