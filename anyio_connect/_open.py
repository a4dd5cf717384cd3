"""How the connection of a socket comes about: dialled, or taken over from a plain one for TLS."""

from __future__ import annotations

from typing import NamedTuple

import anyio
from anyio.lowlevel import checkpoint

from ._address import SocketAddress, format_address
from ._connection import Connection, SocketInfo, info_of
from ._dial import Progress, Route, dial, forbid
from ._errors import TLSError, dial_timed_out, no_slot
from ._options import Options
from ._policy import UNRESTRICTED
from ._slots import Slot
from ._tls import start_tls
from ._tls_errors import handshake_timed_out
from ._transport import Transport


class Target(NamedTuple):
    """Where a socket goes, and how."""

    address: SocketAddress
    options: Options

    def __str__(self) -> str:
        return format_address(*self.address)

    async def secure(self, transport: Transport) -> tuple[Transport, SocketInfo]:
        """Put TLS on a connected transport."""
        tls = await start_tls(
            transport,
            where=str(self),
            server_hostname=self.options.server_hostname
            or self.options.sni
            or self.address.hostname,
            alpn=self.options.alpn,
            context=self.options.ssl_context,
        )
        return tls, info_of(tls, tls.alpn)


class Dialled:
    """A new connection: what ``connect()`` gives a socket."""

    def __init__(self, target: Target, route: Route, slot: Slot | None) -> None:
        self._target = target
        self._route = route
        self._slot = slot

    async def open(self) -> tuple[Transport, SocketInfo]:
        if self._route.policy is not UNRESTRICTED:
            await checkpoint()
            forbid(self._target.address, self._route.policy)
        slot = self._slot
        if slot is None:
            return await self._open(None)
        try:
            made = await self._open(slot)
        except BaseException:
            slot.release()
            raise
        slot.dialled()
        return made

    async def _open(self, slot: Slot | None) -> tuple[Transport, SocketInfo]:
        target = self._target
        progress = Progress()
        waiting = slot is not None
        transport = None
        with anyio.move_on_after(target.options.connect_timeout):
            if slot is not None:
                await slot.acquire()
                waiting = False
            transport = await dial(target.address, self._route, progress)
            if target.options.secure_transport == "on":
                return await target.secure(transport)
            return transport, info_of(transport)
        seconds = target.options.connect_timeout
        if slot is not None and waiting:
            raise no_slot(str(target), seconds, slot.slots.limit)
        if transport is not None:
            raise handshake_timed_out(str(target), seconds)
        tried, refused = tuple(progress.attempts), progress.refused
        raise dial_timed_out(str(target), target.address.port, seconds, tried, refused)

    async def discard(self) -> None:
        """Nothing is held before it is opened."""


class Accepted:
    """A connection that exists already: what a listener gives a socket."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def open(self) -> tuple[Transport, SocketInfo]:
        return self._transport, info_of(self._transport)

    async def discard(self) -> None:
        await self._transport.abort()


class TakenOver:
    """TLS on the connection of a plain socket: what ``start_tls()`` gives a socket."""

    def __init__(self, plain: Connection, target: Target) -> None:
        self._plain = plain
        self._target = target
        self._begun = False

    async def open(self) -> tuple[Transport, SocketInfo]:
        if self._begun:
            raise TLSError(
                f"the TLS handshake with {self._target} was cancelled part-way, "
                "and cannot be begun again on the same connection"
            )
        transport = await self._plain.surrender()
        self._begun = True
        with anyio.move_on_after(self._target.options.connect_timeout):
            return await self._target.secure(transport)
        raise handshake_timed_out(str(self._target), self._target.options.connect_timeout)

    async def discard(self) -> None:
        await self._plain.disown()
