"""Keepalive: the kernel finds out that a peer has vanished, and reports it.

A peer that lost its power or its network sends nothing, not even a FIN. If we send nothing either,
the connection would last for ever. So after some silence, the kernel sends probes to check whether
the peer is still there (RFC 9293 3.8.4). While data is unacknowledged, it sends no probes, but
retransmits the data for about fifteen minutes. TCP_USER_TIMEOUT is a shorter limit for this (RFC
5482).

But Linux applies that limit even while the peer's window is closed, although the peer answers
every window probe (tcp(7)). RFC 1122 4.2.2.17 forbids that: a peer may stop reading for as long as
it likes. So the limit is set only while the peer has room for all data that the kernel holds. When
that was checked, the result is valid for as many bytes as there was room for, because a peer does
not take back room that it has announced (RFC 9293 3.8.6).
"""

from __future__ import annotations

import math
import socket
import sys
from contextlib import suppress

#: After how many seconds of silence the kernel sends the first probe, by default.
KEEP_ALIVE = 60.0

#: The longest silence that Linux accepts, in seconds (MAX_TCP_KEEPIDLE).
LONGEST = 32767

#: The option for the silence; macOS has another name for it.
_IDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))

#: The time between probes, in seconds, and the number of probes.
_INTERVAL = 15
_QUESTIONS = 4

#: The socket options for the probes that the system supports.
_ASKING = tuple(
    (getattr(socket, option), value)
    for option, value in (("TCP_KEEPINTVL", _INTERVAL), ("TCP_KEEPCNT", _QUESTIONS))
    if hasattr(socket, option)
)


def keep_alive(sock: socket.socket, silence: float) -> int:
    """Switch keepalive on, after ``silence`` in seconds; for ``math.inf``, do nothing.

    Options that the system does not support are left out. Return the TCP_USER_TIMEOUT that was
    set, in milliseconds, or 0.
    """
    if silence == math.inf:
        return 0
    seconds = int(silence)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if _IDLE is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _IDLE, seconds)
        for option, value in _ASKING:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        return 0
    # With this limit, Linux counts the time and not the probes.
    limit = _limit(seconds)
    return limit if set_limit(sock, limit) else 0


def keep_alive_as_before(sock: socket.socket) -> int:
    """Set TCP_USER_TIMEOUT again on a socket that was detached, and return it, or 0."""
    with suppress(OSError):
        if (
            _IDLE is not None
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            and not limit_of(sock)  # if other code has set a limit, it is kept
        ):
            limit = _limit(sock.getsockopt(socket.IPPROTO_TCP, _IDLE))
            return limit if set_limit(sock, limit) else 0
    return 0


def _limit(silence: int) -> int:
    """How long after the last sign of life the kernel gives up, in milliseconds."""
    return (silence + _INTERVAL * _QUESTIONS) * 1000


if sys.platform == "linux":
    import fcntl
    import termios

    #: ioctl() for the number of unsent bytes (linux/sockios.h); Python has no name for it.
    _SIOCOUTQNSD = 0x894B

    #: The offset of tcpi_snd_wnd in TCP_INFO, a number of 4 bytes (linux/tcp.h; Linux 5.4).
    _SND_WND = 228

    def set_limit(sock: socket.socket, limit: int) -> bool:
        """Set TCP_USER_TIMEOUT, in milliseconds; 0 is none. Return whether it can be set."""
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
        except OSError:
            return False
        return True

    def limit_of(sock: socket.socket) -> int:
        """The value of TCP_USER_TIMEOUT, in milliseconds; 0 is none."""
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    def room_of(sock: socket.socket) -> int:
        """How many more bytes the peer has room for; negative if it lacks room already.

        This is a lower bound.
        """
        try:
            held = _held(sock, termios.TIOCOUTQ)
            # Read second: if data is acknowledged in between, the result is too low, not too high.
            found = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SND_WND + 4)
            if len(found) == _SND_WND + 4:
                return int.from_bytes(found[_SND_WND:], sys.byteorder) - held
            return -1 if _held(sock, _SIOCOUTQNSD) else 0  # an older kernel
        except (OSError, ValueError):  # closed, or a kernel that emulates Linux without this
            return -1

    def _held(sock: socket.socket, what: int) -> int:
        return int.from_bytes(fcntl.ioctl(sock, what, bytes(4)), sys.byteorder)

else:

    def set_limit(sock: socket.socket, limit: int) -> bool:
        """Return False: this system has no TCP_USER_TIMEOUT."""
        return False

    def limit_of(sock: socket.socket) -> int:
        """Return 0: this system has no TCP_USER_TIMEOUT."""
        return 0

    def room_of(sock: socket.socket) -> int:
        """Return -1: this system does not tell how much room the peer has."""
        return -1
