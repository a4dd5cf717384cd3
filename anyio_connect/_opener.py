"""What a connection needs of the object that makes it. ``_open`` has the openers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ._errors import SocketError
from ._readiness import Loop
from ._target import SocketInfo
from ._transport import Transport


class Opener(ABC):
    """Makes the connection of a socket, when it is first needed."""

    def begin(self, loop: Loop) -> tuple[Transport, SocketInfo] | None:
        """Make the connection without waiting; return None if :meth:`open` has to continue.

        ``loop`` is the running event loop. This raises nothing: if it fails, :meth:`open` raises
        the error.
        """
        return None

    @abstractmethod
    async def open(self) -> tuple[Transport, SocketInfo]:
        """Make the connection. If it is cancelled, it leaves nothing behind.

        After a cancellation it may be called again, unless :meth:`spent` returns an error.

        :raises SocketError: the connection cannot be made
        """

    def spent(self) -> SocketError | None:
        """The reason why a cancelled :meth:`open` cannot be repeated; None if it can."""
        return None

    async def lost(self) -> SocketError | None:
        """The reason why it cannot be opened any more, if known already. Does not wait."""
        return None

    @abstractmethod
    async def discard(self, *, aborted: bool = False) -> None:
        """Give up everything that is held for the connection, which will not be opened.

        This does not wait. With ``aborted``, the peer gets a reset if there is a connection.
        """

    async def gone(self) -> None:  # noqa: B027  # most openers need not wait
        """Wait until everything that :meth:`discard` gave up is closed."""

    @abstractmethod
    def close_dropped(self) -> bool:
        """Close what is held, because the socket was collected before it was opened.

        See :meth:`Transport.close_dropped`.
        """
