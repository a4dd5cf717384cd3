"""What a close waits for: how much the peer has acknowledged, and for how long it may stand still.

close() of a TCP socket hands what is unacknowledged to the kernel, which goes on by itself. But
data that comes in after that makes the kernel answer with a reset, and a reset takes away what the
peer has not yet got (RFC 1122 4.2.2.13). So our end goes out first, and the socket is kept until
the peer's kernel has acknowledged everything: a lingering close, as nginx and Apache have it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable

import anyio
from anyio.lowlevel import checkpoint

from ._watch import CAN_WATCH_ALL, IN, OUT, RDHUP, Watch

#: How often to look for progress within the time that is allowed without any.
_LOOKS = 4

#: How long to wait before a look on systems where data cannot be watched, in seconds.
_PAUSE = 0.05


class Patience:
    """Waits for the peer for as long as there is progress."""

    def __init__(self, seconds: float, progress: Callable[[], object]) -> None:
        """``progress`` tells a value that differs whenever something has moved."""
        self._seconds = seconds
        self._progress = progress
        self._seen = progress()
        self._until = anyio.current_time() + seconds

    async def wait(self, step: Callable[[], Awaitable[object]]) -> bool:
        """Do a step, for as long as one look may take; False: nothing has moved in all that time.

        True: something has moved, or may have. No step may have noticed, since a process without
        descriptors to spare cannot watch; so after each look the caller tries again.
        """
        now, seen = anyio.current_time(), self._progress()
        if seen != self._seen:
            self._seen = seen
            self._until = now + self._seconds
            await checkpoint()  # it may move again and again, each time that it is looked at
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

        Zero where the system does not tell.
        """
        try:
            # TIOCOUTQ is SIOCOUTQ: tcp(7).
            found = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
        except OSError:  # not every kernel that passes for Linux has it
            return 0
        return int.from_bytes(found, sys.byteorder)

else:

    def outstanding(sock: socket.socket) -> int:
        """How much was sent that the peer has not acknowledged: not known here."""
        return 0


async def wait_arrival(sock: socket.socket, *, delivered: bool) -> None:
    """Wait for data, an end or a reset; with ``delivered`` also for the peer to have it all.

    The last is what no event loop can wait for: to it, a socket whose sending side was shut down
    always has room. A watch is told when our end is acknowledged.
    """
    if not CAN_WATCH_ALL:
        await anyio.sleep(_PAUSE)
        return
    with Watch(sock, IN | OUT | RDHUP) as watch:
        while not await watch.wait() & ~OUT:
            if delivered and not outstanding(sock):
                return
