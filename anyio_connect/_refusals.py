"""The words of refused calls, and the checks of their arguments."""

from __future__ import annotations

from typing import Any

from ._lifecycle import Verdict

CLOSED = {
    "receiving from": "cannot receive: this socket, or its readable half, has been closed",
    "sending to": "cannot send: our side of this socket has ended (send_eof(), close(), or "
    "the peer's end with allow_half_open=False)",
    "ending": "cannot end our side: this socket has been closed",
}

WHY_NO_UPGRADE = {
    Verdict.NOT_STARTTLS: "start_tls() needs a socket made with secure_transport='starttls'",
    Verdict.UPGRADED_ALREADY: "start_tls() has been called on this socket already: "
    "use the socket that it returned",
    Verdict.DETACHED_ALREADY: "start_tls() was called after detach(), which has given the "
    "kernel's socket away: make the TLS handshake on that",
    Verdict.CLOSED: "start_tls() was called on a closed socket",
    Verdict.RECEIVE_IN_FLIGHT: "start_tls() was called while a receive is in flight: what that "
    "receives could be the peer's TLS handshake, so finish or cancel it first",
    Verdict.ENDED: "start_tls() needs both directions, and one of them has ended",
}

WHY_NO_DETACH = {
    Verdict.PENDING: "detach() was called before the connection was made: await socket.opened",
    Verdict.UPGRADED_ALREADY: "detach() was called after start_tls(), which has taken the "
    "connection over: it uses TLS now, or will",
    Verdict.DETACHED_ALREADY: "detach() has been called on this socket already: "
    "use the socket that it returned",
    Verdict.CLOSED: "detach() was called on a closed socket",
    Verdict.RECEIVE_IN_FLIGHT: "detach() was called while a receive is in flight: "
    "finish or cancel it first",
    Verdict.SEND_IN_FLIGHT: "detach() was called while a send, or the end of our side, is in "
    "flight: wait for it first",
}


def check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def view_of(item: Any) -> memoryview:
    """A view of the bytes of ``item``, without a copy.

    :raises TypeError: ``item`` is not a contiguous bytes-like object
    """
    try:
        return memoryview(item).cast("B")
    except TypeError:
        raise TypeError(
            f"send() takes bytes, bytearray or a contiguous memoryview, not "
            f"{type(item).__name__}{': encode it first' if isinstance(item, str) else ''}"
        ) from None
