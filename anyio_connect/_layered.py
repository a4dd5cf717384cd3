"""The transport of a socket over another ``Socket``, for example for TLS in TLS."""

from __future__ import annotations

import anyio
from anyio.abc import ByteStream

from ._connection import Connection
from ._transport import ForeignTransport


class LayeredTransport(ForeignTransport):
    """A transport over a ``Socket``.

    Unlike a foreign stream, it knows whether a send was cut short and whether data has arrived,
    and it can be reset.
    """

    def __init__(self, stream: ByteStream, connection: Connection) -> None:
        """``connection`` is that of ``stream``."""
        super().__init__(stream)
        self._connection = connection

    async def open(self) -> None:
        """Wait until the connection is made.

        :raises SocketError: it could not be made
        """
        await self._connection.opened

    def is_readable(self) -> bool:
        return super().is_readable() or self._connection.is_readable()

    def _is_torn(self) -> bool:
        return self._connection.torn

    async def finish(self) -> bool:
        await self._connection.close()
        error = self._connection.closed.exception()
        if not isinstance(error, anyio.BrokenResourceError):
            return True
        try:
            raise error
        finally:
            del error  # breaks the cycle of the error, its traceback and this frame

    async def abort(self) -> None:
        self._drop()
        with anyio.CancelScope(shield=True):  # abort() does not wait
            await self._connection.abort(None)
        await self._close_forcefully()
