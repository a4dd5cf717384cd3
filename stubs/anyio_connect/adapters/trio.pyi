"""For libraries on trio: a socket as a trio stream, with trio's errors."""

import sys

import trio

from anyio_connect import Connector, Socket, SocketOptions

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

__all__ = ("Stream", "open_tcp_stream")

async def open_tcp_stream(
    host: str, port: int, *, connector: Connector | None = None, **options: Unpack[SocketOptions]
) -> Stream:
    """Connect, like ``trio.open_tcp_stream()``, with TLS if the options say so."""

class Stream(trio.abc.HalfCloseableStream):
    """A ``Socket`` for code that needs a ``trio.abc.Stream``."""

    socket: Socket
    def __init__(self, socket: Socket) -> None: ...
    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...
    async def wait_send_all_might_not_block(self) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...
