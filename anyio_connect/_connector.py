"""``connect()``: checks what it is given and returns a pending socket."""

from __future__ import annotations

from contextlib import suppress

import anyio
from anyio.abc import TaskGroup
from typing_extensions import Unpack

from ._address import SocketAddress, format_address, parse_address
from ._connection import Connection, SocketInfo, info_of
from ._dial import dial
from ._errors import ConnectError, SocketError, dial_timed_out
from ._options import Options, SocketOptions, parse_options
from ._socket import Socket
from ._transport import Transport


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
    where = parse_address(address)
    checked = parse_options(options)
    connection = Connection(
        _Dialler(where, checked),
        half_open=checked.allow_half_open,
        starttls=checked.secure_transport == "starttls",
    )
    socket = Socket(
        connection, name=format_address(*where), secure_transport=checked.secure_transport
    )
    if task_group is not None:
        task_group.start_soon(_open_now, socket, name=f"connect {format_address(*where)}")
    return socket


async def _open_now(socket: Socket) -> None:
    with suppress(SocketError):  # the futures have it
        await socket.opened


class _Dialler:
    """Makes the connection of a socket that ``connect()`` returned."""

    def __init__(self, address: SocketAddress, options: Options) -> None:
        self._address = address
        self._options = options

    async def open(self) -> tuple[Transport, SocketInfo]:
        attempts: list[ConnectError] = []
        with anyio.move_on_after(self._options.connect_timeout):
            transport = await dial(self._address, attempts)
            return transport, info_of(transport)
        raise dial_timed_out(
            format_address(*self._address),
            self._address.port,
            self._options.connect_timeout,
            tuple(attempts),
        )

    async def discard(self) -> None:
        """Nothing is held before it is opened."""
