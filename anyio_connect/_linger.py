"""The wait of a close until the peer has acknowledged everything, as long as there is progress.

After close() of a TCP socket, the kernel goes on sending what is unacknowledged. But if data comes
in after that, the kernel answers with a reset, and the peer loses what it has not received yet
(RFC 1122 4.2.2.13). So our end is sent first, and the socket is kept open until the peer's kernel
has acknowledged everything. nginx and Apache call that a lingering close.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable

import anyio
from anyio.lowlevel import checkpoint

from ._watch import CAN_WATCH_ALL, IN, OUT, RDHUP, Watch

#: How many times to check for progress within the time limit.
_LOOKS = 4

#: How long to wait between checks on systems where data cannot be watched, in seconds.
_PAUSE = 0.05


class Patience:
    """Waits for the peer for as long as there is progress."""

    def __init__(self, seconds: float, progress: Callable[[], object]) -> None:
        """``progress`` returns a value that changes whenever there is progress.

        ``seconds`` is how long to wait without any.
        """
        self._seconds = seconds
        self._progress = progress
        self._seen = progress()
        self._until = anyio.current_time() + seconds

    async def wait(self, step: Callable[[], Awaitable[object]]) -> bool:
        """Wait in ``step`` for a part of the time; return False if the time is up.

        After True, the caller checks its condition and calls this again. It must not rely on
        ``step`` to notice progress: a process that has no descriptor left cannot watch a socket.
        """
        now, seen = anyio.current_time(), self._progress()
        if seen != self._seen:
            self._seen = seen
            self._until = now + self._seconds
            await checkpoint()  # there may be progress at every check
            return True
        if now >= self._until:
            return False
        with anyio.move_on_after(min(self._until - now, self._seconds / _LOOKS)):
            await step()
        return True


#: Whether :func:`outstanding` knows how much the peer has acknowledged.
KNOWS_OUTSTANDING = sys.platform == "linux"

if sys.platform == "linux":
    import fcntl
    import termios

    def outstanding(sock: socket.socket) -> int:
        """How many sent bytes the peer has not acknowledged. A FIN counts as one byte.

        0 if the system does not tell.
        """
        try:
            # TIOCOUTQ is SIOCOUTQ: tcp(7).
            found = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # closed, or a kernel that emulates Linux without this
            return 0
        return int.from_bytes(found, sys.byteorder)

else:

    def outstanding(sock: socket.socket) -> int:
        """Return 0: this system does not tell how much the peer has acknowledged."""
        return 0


async def wait_arrival(sock: socket.socket, *, delivered: bool) -> None:
    """Wait for data, an end or a reset; with ``delivered``, also for the last acknowledgement.

    No event loop can wait for that: after shutdown(), the socket always counts as writable. But a
    watch gets a new event when our FIN is acknowledged.
    """
    if not CAN_WATCH_ALL:
        await anyio.sleep(_PAUSE)
        return
    with Watch(sock, IN | OUT | RDHUP) as watch:
        while not await watch.wait() & ~OUT:
            if delivered and not outstanding(sock):
                return
