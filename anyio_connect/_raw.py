"""Kernel sockets that are returned to the user, with the slots that they hold."""

from __future__ import annotations

import socket
from typing import Any

from ._slots import Slot


class SlotSocket(socket.socket):
    """A socket that holds slots of ``max_connections`` until it is closed.

    It gives them back when the descriptor is closed or detached, or when the object is collected.
    A file of ``makefile()`` that keeps the descriptor open keeps the slots too. There is more than
    one slot only if a dialer has made the connection through another ``Connector``.
    """

    # Slots are no argument of __init__(): dup() creates an object of this class without slots.
    __slots__ = ("_held",)

    _held: tuple[Slot, ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = ()

    def hold(self, slots: tuple[Slot, ...]) -> None:
        """Hold these slots from now on. Another object held them before."""
        self._held = slots

    def hand_over(self) -> tuple[Slot, ...]:
        """Stop holding the slots, and return them, so that another object can hold them."""
        slots, self._held = self._held, ()
        return slots

    def close(self) -> None:
        """Close the socket, and give the slots back once the descriptor is closed."""
        # The last file of makefile() calls this again when it is closed.
        super().close()
        if self.fileno() < 0:
            self._let_go()

    def detach(self) -> int:
        """Return the descriptor, and give the slots back."""
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
