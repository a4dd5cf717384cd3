"""Keepalive: the kernel finds out that a peer has vanished, and says so.

A peer that lost its power or its network says nothing, and a connection on which nothing is sent
would last for ever. So the kernel asks for the peer after some silence (RFC 9293 3.8.4). While
something is unacknowledged it does not ask, as sending it again does the same; but by itself it
goes on with that for some fifteen minutes, which is what TCP_USER_TIMEOUT is for (RFC 5482).

Yet Linux also counts that limit for data that the peer has no room for, however often the peer
answers that it is there (tcp(7)), which RFC 1122 4.2.2.17 forbids. A peer may stop reading for as
long as it likes. So the limit is in force only while the peer has room for all that the
kernel holds. That is looked up once in as many bytes as there was room for: what a peer has said
that it has room for, it does not take back (RFC 9293 3.8.6).
"""

from __future__ import annotations

import math
import socket
import sys
from contextlib import suppress

#: How many seconds of silence come before the first question unless told otherwise.
KEEP_ALIVE = 60.0

#: The longest silence that Linux takes, in seconds (MAX_TCP_KEEPIDLE).
LONGEST = 32767

#: The option for the silence; macOS has another name for it.
_IDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))

#: How far apart questions are, in seconds, and how many of them are asked.
_INTERVAL = 15
_QUESTIONS = 4


def keep_alive(sock: socket.socket, silence: float) -> int:
    """Have the kernel ask for the peer after so many seconds of silence; ``math.inf``: never.

    As far as the system can. Returns the TCP_USER_TIMEOUT that was set, in milliseconds, or 0.
    """
    if silence == math.inf:
        return 0
    seconds = int(silence)
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (_IDLE, seconds),
            (getattr(socket, "TCP_KEEPINTVL", None), _INTERVAL),
            (getattr(socket, "TCP_KEEPCNT", None), _QUESTIONS),
        ):
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        # With it, Linux gives up by the time that has passed, and not by how often it asked.
        limit = _limit(seconds)
        if set_limit(sock, limit):
            return limit
    return 0


def keep_alive_as_before(sock: socket.socket) -> int:
    """Set the TCP_USER_TIMEOUT again, of a socket that was detached, and return it; or 0."""
    with suppress(OSError):
        if (
            _IDLE is not None
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            and not limit_of(sock)  # or somebody has set another one, which is not ours to change
        ):
            limit = _limit(sock.getsockopt(socket.IPPROTO_TCP, _IDLE))
            return limit if set_limit(sock, limit) else 0
    return 0


def _limit(silence: int) -> int:
    """How long it takes in all until the kernel gives up, in milliseconds."""
    return (silence + _INTERVAL * _QUESTIONS) * 1000


if sys.platform == "linux":
    import fcntl
    import termios

    #: What was not even sent yet (linux/sockios.h); Python has no name for it.
    _SIOCOUTQNSD = 0x894B

    #: Where tcpi_snd_wnd is in TCP_INFO, a number of 4 bytes (linux/tcp.h; Linux 5.4).
    _SND_WND = 228

    def set_limit(sock: socket.socket, limit: int) -> bool:
        """Set TCP_USER_TIMEOUT, in milliseconds; 0 is none. Return whether it can be set."""
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
        except OSError:
            return False
        return True

    def limit_of(sock: socket.socket) -> int:
        """What TCP_USER_TIMEOUT is, in milliseconds."""
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    def room_of(sock: socket.socket) -> int:
        """How much more the peer has room for, in bytes; negative if there is too little already.

        It has at least that much room.
        """
        try:
            held = _held(sock, termios.TIOCOUTQ)
            # After that: what is acknowledged in between makes it too little, and not too much.
            found = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SND_WND + 4)
            if len(found) == _SND_WND + 4:
                return int.from_bytes(found[_SND_WND:], sys.byteorder) - held
            return -1 if _held(sock, _SIOCOUTQNSD) else 0  # an older kernel
        except (OSError, ValueError):  # not every kernel that passes for Linux has it; or closed
            return -1

    def _held(sock: socket.socket, what: int) -> int:
        return int.from_bytes(fcntl.ioctl(sock, what, bytes(4)), sys.byteorder)

else:

    def set_limit(sock: socket.socket, limit: int) -> bool:
        """Set TCP_USER_TIMEOUT: not here."""
        return False

    def limit_of(sock: socket.socket) -> int:
        """What TCP_USER_TIMEOUT is: nothing here."""
        return 0

    def room_of(sock: socket.socket) -> int:
        """How much more the peer has room for: not known here."""
        return -1
