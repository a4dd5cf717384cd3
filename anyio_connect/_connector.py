"""``connect()``: checks what it is given and returns a pending socket."""

from __future__ import annotations

from contextlib import suppress

from anyio.abc import TaskGroup
from typing_extensions import Unpack

from ._address import SocketAddress, parse_address
from ._errors import SocketError
from ._open import Dialled, Target
from ._options import SocketOptions, parse_options
from ._socket import Socket


def connect(
    address: str | SocketAddress | tuple[str, int],
    *,
    task_group: TaskGroup | None = None,
    **options: Unpack[SocketOptions],
) -> Socket:
    """Return a socket to ``address`` at once; the connection is made when it is first needed.

    ``address`` is ``"host:port"``, ``"[IPv6]:port"``, or a pair of host name and port. The
    options are those of :class:`SocketOptions`. With ``task_group``, a task in it makes the
    connection right away; a failure settles the socket's futures and does not cancel the group.

    Needs no running event loop. Source: the WinterTC Sockets API draft, ``connect()``.

    :raises InvalidAddressError: the address names no TCP endpoint
    :raises InvalidOptionError: an option is unknown, has a bad value, or contradicts another
    """
    target = Target(parse_address(address), parse_options(options))
    socket = Socket(Dialled(target), target)
    if task_group is not None:
        task_group.start_soon(_open_now, socket, name=f"connect {target}")
    return socket


async def _open_now(socket: Socket) -> None:
    with suppress(SocketError):  # the futures have it
        await socket.opened
