"""What has come from the peer and was not received yet: the only read buffer of a socket.

A receive that ends early, because it was cancelled, because the peer ended, or because what it
looked for did not come, leaves what it has taken here for the next one. Only
:meth:`ReadAhead.until` takes more from a transport than it may return.
"""

from __future__ import annotations

from ._errors import DelimiterNotFoundError, shorten
from ._transport import DEFAULT_MAX_BYTES, Transport

#: How many bytes one read takes from a transport at most. So much memory is allocated before it is
#: known how much there is.
MOST = 1 << 20


class ReadAhead(bytearray):
    """Bytes that have come and that no call has returned yet, in the order in which they came."""

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
        """Take as much as there is room for in ``view``; return how many bytes that is."""
        data = self.take(len(view))
        view[: len(data)] = data
        return len(data)

    async def exactly(self, transport: Transport, count: int) -> bytes:
        """Take ``count`` bytes, once so many have come; ask ``transport`` for no more than that.

        If this is cancelled, or the transport raises, what has come stays here.
        """
        while (missing := count - len(self)) > 0:
            data = await transport.receive(min(missing, MOST))
            if len(data) == count:  # so nothing came before it
                return data
            self += data
        return self.take(count)

    async def until(self, transport: Transport, delimiter: bytes, max_bytes: int) -> bytes:
        """Take what lies before ``delimiter``, once that has come, and drop the delimiter.

        Both together may have ``max_bytes`` bytes, and no more is asked for. If this is cancelled,
        or this or the transport raises, what has come stays here.

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
