"""Messages that describe themselves: a mark, a number, a length, and a body made of the number.

So the data that arrived shows which messages are complete, in which order, and where one was cut.
"""

from __future__ import annotations

MARK = 0x4D
HEAD = 7
SMALLEST = HEAD + 1


class Nonsense(Exception):  # noqa: N818 - it is what it says
    """The data that arrived was never sent in this form."""


def message(number: int, size: int) -> bytes:
    """The message of that number: ``size`` bytes, at least ``SMALLEST``."""
    size = max(size, SMALLEST)
    head = bytes([MARK]) + number.to_bytes(2, "big") + size.to_bytes(4, "big")
    return head + bytes([number & 0xFF]) * (size - HEAD)


def length(data: bytes | bytearray, at: int) -> int | None:
    """The length of the message that begins there; None if none does, or it has not arrived."""
    if len(data) < at + HEAD or data[at] != MARK:
        return None
    return int.from_bytes(data[at + 3 : at + HEAD], "big")


def parse(data: bytes) -> tuple[list[int], int | None]:
    """The numbers of the complete messages, and of the one that was cut (-1: too early).

    :raises Nonsense: the data is not what was sent
    """
    whole: list[int] = []
    at = 0
    while at < len(data):
        if data[at] != MARK:
            raise Nonsense(f"no message begins at {at}")
        size = length(data, at)
        if size is None:
            return whole, -1
        number = int.from_bytes(data[at + 1 : at + 3], "big")
        piece = data[at : at + size]
        if not message(number, size).startswith(piece):
            raise Nonsense(f"message {number} is not what was sent")
        if len(piece) < size:
            return whole, number
        whole.append(number)
        at += size
    return whole, None
