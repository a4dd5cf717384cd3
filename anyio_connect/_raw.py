"""Sockets of the standard library that are given away, with the slot that they hold."""

from __future__ import annotations

import socket
from typing import Any

from ._slots import Slot


class SlotSocket(socket.socket):
    """A socket that holds a slot of ``max_connections`` until it is closed.

    It gives the slot back when the descriptor is closed or detached, or when it is collected.
    That a file of ``makefile()`` keeps the descriptor open, keeps the slot.
    """

    # Not set in __init__(): dup() makes an object of the same class, and a copy holds no slot.
    __slots__ = ("_slot",)

    _slot: Slot | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slot = None

    def hold(self, slot: Slot) -> None:
        """Hold ``slot``, which was another's until now."""
        self._slot = slot

    def close(self) -> None:
        """Close the socket, and give the slot back as soon as that is done."""
        # It is called once more when the last file of makefile() is closed.
        super().close()
        if self.fileno() < 0:
            self._let_go()

    def detach(self) -> int:
        """Give the descriptor away, and the slot back."""
        fd = super().detach()
        self._let_go()
        return fd

    def _let_go(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()


def moved(sock: socket.socket, slot: Slot | None = None) -> socket.socket:
    """Return a new non-blocking socket with the descriptor of ``sock``, which is closed by that.

    It holds ``slot``, if there is one.
    """
    family, kind, proto = sock.family, sock.type, sock.proto
    made = socket.socket if slot is None else SlotSocket
    fd = sock.detach()
    try:
        given = made(family, kind, proto, fileno=fd)
    except BaseException:
        socket.close(fd)
        raise
    given.setblocking(False)
    if isinstance(given, SlotSocket):
        assert slot is not None
        given.hold(slot)
    return given
