"""Sockets of the standard library that are given away, with the slot that they hold."""

from __future__ import annotations

import socket
from typing import Any

from ._slots import Slot


class SlotSocket(socket.socket):
    """A socket that holds slots of ``max_connections`` until it is closed.

    It gives them back when the descriptor is closed or detached, or when it is collected. That a
    file of ``makefile()`` keeps the descriptor open, keeps them. As a rule it is one; it is more
    if a dialer made the connection by another ``Connector``.
    """

    # Not set by arguments: dup() makes an object of the same class, and a copy holds no slot.
    __slots__ = ("_held",)

    _held: tuple[Slot, ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = ()

    def hold(self, slots: tuple[Slot, ...]) -> None:
        """Hold these, which were another's until now."""
        self._held = slots

    def hand_over(self) -> tuple[Slot, ...]:
        """Hold none any more; return those that were held, for another to hold."""
        slots, self._held = self._held, ()
        return slots

    def close(self) -> None:
        """Close the socket, and give the slots back as soon as that is done."""
        # It is called once more when the last file of makefile() is closed.
        super().close()
        if self.fileno() < 0:
            self._let_go()

    def detach(self) -> int:
        """Give the descriptor away, and the slots back."""
        fd = super().detach()
        self._let_go()
        return fd

    def _let_go(self) -> None:
        for slot in self.hand_over():
            slot.release()


def moved(sock: socket.socket, slot: Slot | None = None) -> socket.socket:
    """Return a new non-blocking socket with the descriptor of ``sock``, which is closed by that.

    It holds ``slot``, if there is one, and what ``sock`` held.
    """
    slots: tuple[Slot, ...] = () if slot is None else (slot,)
    if isinstance(sock, SlotSocket):
        slots += sock.hand_over()
    family, kind, proto = sock.family, sock.type, sock.proto
    made = SlotSocket if slots else socket.socket
    fd = sock.detach()
    try:
        given = made(family, kind, proto, fileno=fd)
    except BaseException:
        socket.close(fd)
        raise
    given.setblocking(False)
    if isinstance(given, SlotSocket):
        given.hold(slots)
    return given
