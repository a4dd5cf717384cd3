"""What a close waits for: that the peer acknowledges everything, as long as there is progress.

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

#: How many times to look for progress in the time that may pass without any.
_LOOKS = 4

#: How long to wait before a look on systems where data cannot be watched, in seconds.
_PAUSE = 0.05


class Patience:
    """Waits for the peer for as long as there is progress."""

    def __init__(self, seconds: float, progress: Callable[[], object]) -> None:
        """``progress`` returns a value that changes whenever something has moved."""
        self._seconds = seconds
        self._progress = progress
        self._seen = progress()
        self._until = anyio.current_time() + seconds

    async def wait(self, step: Callable[[], Awaitable[object]]) -> bool:
        """Do a step for a part of the time; return False if nothing has moved in all of the time.

        True means that something has moved, or may have moved: a process that has no descriptor
        left cannot watch, so the step may not notice. The caller tries again after each step.
        """
        now, seen = anyio.current_time(), self._progress()
        if seen != self._seen:
            self._seen = seen
            self._until = now + self._seconds
            await checkpoint()  # there may be progress at each look
            return True
        if now >= self._until:
            return False
        with anyio.move_on_after(min(self._until - now, self._seconds / _LOOKS)):
            await step()
        return True


if sys.platform == "linux":
    import fcntl
    import termios

    def outstanding(sock: socket.socket) -> int:
        """How much was sent that the peer has not acknowledged, in bytes; our end counts as one.

        Zero if the system does not tell.
        """
        try:
            # TIOCOUTQ is SIOCOUTQ: tcp(7).
            found = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
        except OSError:  # a kernel that imitates Linux may lack it
            return 0
        return int.from_bytes(found, sys.byteorder)

else:

    def outstanding(sock: socket.socket) -> int:
        """How much was sent that the peer has not acknowledged: not known here."""
        return 0


async def wait_arrival(sock: socket.socket, *, delivered: bool) -> None:
    """Wait for data, an end or a reset; with ``delivered``, also until the peer has everything.

    No event loop can wait for the last: for it, a socket whose sending side was shut down always
    has room. A watch can: it is told when our end is acknowledged.
    """
    if not CAN_WATCH_ALL:
        await anyio.sleep(_PAUSE)
        return
    with Watch(sock, IN | OUT | RDHUP) as watch:
        while not await watch.wait() & ~OUT:
            if delivered and not outstanding(sock):
                return
