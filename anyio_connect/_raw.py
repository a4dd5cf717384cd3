"""Sockets of the standard library that are given away, with the slot that they hold."""

from __future__ import annotations

import socket
from typing import Any

from ._slots import Slot


class SlotSocket(socket.socket):
    """A socket that holds slots of ``max_connections`` until it is closed.

    It gives them back when the descriptor is closed or detached, or when the object is collected.
    A file of ``makefile()`` that keeps the descriptor open keeps the slots too. As a rule there is
    one slot. There are more if a dialer made the connection by another ``Connector``.
    """

    # No arguments of __init__(): dup() makes an object of the same class, which holds no slot.
    __slots__ = ("_held",)

    _held: tuple[Slot, ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = ()

    def hold(self, slots: tuple[Slot, ...]) -> None:
        """Hold these slots, which another object has held until now."""
        self._held = slots

    def hand_over(self) -> tuple[Slot, ...]:
        """Hold no slots any more; return those that were held, for another object to hold."""
        slots, self._held = self._held, ()
        return slots

    def close(self) -> None:
        """Close the socket, and give the slots back as soon as that is done."""
        # This is called once more when the last file of makefile() is closed.
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
    """Move the descriptor of ``sock`` into a new non-blocking socket, and return that.

    It holds ``slot``, if there is one, and the slots that ``sock`` held.
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
