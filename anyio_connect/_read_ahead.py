"""The only read buffer of a socket: data that has arrived and was not received yet.

A receive may end early: it is cancelled, the peer ends, or the delimiter does not arrive. Then it
leaves the data that it has read here, for the next receive. Only :meth:`ReadAhead.until` reads
more from a transport than it may return.
"""

from __future__ import annotations

from ._errors import DelimiterNotFoundError, shorten
from ._transport import DEFAULT_MAX_BYTES, Transport

#: The most bytes that one read takes from a transport. That much memory is allocated before the
#: amount of data is known.
MOST = 1 << 20


class ReadAhead(bytearray):
    """The bytes that have arrived and that no call has returned yet, in order."""

    __slots__ = ()

    def take(self, most: int) -> bytes:
        """Take up to ``most`` bytes."""
        if most >= len(self):
            data = bytes(self)
            self.clear()
        else:
            data = bytes(self[:most])
            del self[:most]
        return data

    def take_into(self, view: memoryview) -> int:
        """Take as many bytes as fit into ``view``; return the number."""
        data = self.take(len(view))
        view[: len(data)] = data
        return len(data)

    async def exactly(self, transport: Transport, count: int) -> bytes:
        """Wait until ``count`` bytes have arrived, and take them. Never read more than those.

        If this is cancelled or the transport raises, the data that has arrived stays here.
        """
        while (missing := count - len(self)) > 0:
            data = await transport.receive(min(missing, MOST))
            if len(data) == count:  # the buffer is empty, and this is all
                return data
            self += data
        return self.take(count)

    async def until(self, transport: Transport, delimiter: bytes, max_bytes: int) -> bytes:
        """Wait for ``delimiter``; take the data before it, and drop the delimiter.

        Both together may have ``max_bytes`` bytes, and no more is read. If this is cancelled, or
        if this or the transport raises, the data that has arrived stays here.

        :raises DelimiterNotFoundError: the delimiter is not within the first ``max_bytes`` bytes
        """
        searched = 0
        while (at := self.find(delimiter, searched, max_bytes)) < 0:
            if len(self) >= max_bytes:
                raise DelimiterNotFoundError(
                    f"{shorten(repr(delimiter))} is not within the first {max_bytes} bytes "
                    "(max_bytes) that the peer sent: receive() returns them"
                )
            searched = max(0, len(self) - len(delimiter) + 1)
            self += await transport.receive(min(max_bytes - len(self), DEFAULT_MAX_BYTES))
        data = self.take(at)
        del self[: len(delimiter)]
        return data
