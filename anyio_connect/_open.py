"""The ways to open the connection of a socket.

A connection is dialled, accepted by a listener, made over a stream that exists already, or taken
over from a plain socket for TLS. For each of these there is a class with the methods of
``_opener.Opener``.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._connection import Connection
from ._dial import Progress, dial, find
from ._dial_errors import (
    broke_in_opening,
    ended_in_opening,
    no_slot,
    not_flushed,
    not_opened,
    opening_failed,
    reset_at_once,
)
from ._errors import DetachError, SocketError, TLSError
from ._judging import forbid
from ._layered import LayeredTransport
from ._opener import Opener
from ._policy import UNRESTRICTED, AddressPolicy
from ._raw import moved
from ._readiness import Loop
from ._route import Route
from ._slots import Slot
from ._target import SocketInfo, Target, Wrapping, info_of
from ._tcp_connect import Begun, Failed, begin
from ._tls_errors import handshake_timed_out
from ._tls_handshake import start_tls
from ._transport import NoSocketError, Transport


async def _secure(target: Target | Wrapping, transport: Transport | None) -> Transport:
    """Make the TLS handshake over a connected transport."""
    assert transport is not None
    options = target.options
    return await start_tls(
        transport,
        where=str(target),
        server_hostname=options.server_name(target.host),
        alpn=options.alpn,
        context=options.ssl_context,
        require_close_notify=options.require_close_notify,
    )


class Step(NamedTuple):
    """One step of opening a connection."""

    #: Takes the step. It gets the transport made so far, and returns the new one.
    take: Callable[[Transport | None], Awaitable[Transport | None]]
    #: Makes the error for a ``connect_timeout``, in seconds, that runs out during this step.
    too_late: Callable[[float], SocketError]


def _handshake(target: Target | Wrapping) -> Step:
    return Step(partial(_secure, target), partial(handshake_timed_out, str(target)))


class Way(Protocol):
    """How to make the connection to one address, before TLS. Each attempt needs a new object."""

    async def connect(self) -> Transport:
        """Make the connection. If this is cancelled, it leaves nothing behind.

        :raises SocketError: the connection cannot be made
        """
        ...

    def too_late(self, seconds: float) -> SocketError:
        """The error for a ``connect_timeout``, in seconds, that runs out in :meth:`connect`."""
        ...

    def describe(self, transport: Transport) -> SocketInfo:
        """The facts about the connection. ``transport``: that of :meth:`connect`, or TLS on it."""
        ...


class Straight:
    """The direct way, without a proxy: the address itself is dialled."""

    def __init__(self, route: Route, target: Target, begun: Begun | Failed | None = None) -> None:
        self._route = route.for_socket(target.options)
        self._progress = Progress(target.address, begun)

    async def connect(self) -> Transport:
        return await dial(self._route, self._progress)

    def too_late(self, seconds: float) -> SocketError:
        return self._progress.too_late(seconds)

    def describe(self, transport: Transport) -> SocketInfo:
        return info_of(transport)


async def addresses_of(target: Target, route: Route) -> list[str]:
    """Return the IP addresses that may be dialled for ``target``, in the order of dialling.

    :raises SocketError: no address was found, or none within ``connect_timeout``. No other
        subclass of ``Exception`` is raised.
    """
    await checkpoint()  # the code below need not wait
    progress, seconds = Progress(target.address), target.options.connect_timeout
    if route.policy is not UNRESTRICTED:
        await forbid(target.address, route.policy)
    try:
        with anyio.move_on_after(seconds):
            return [endpoint.ip for endpoint in await find(route, progress)]
    except SocketError:
        raise
    except Exception as exc:
        raise opening_failed(str(target), exc) from exc
    raise progress.too_late(seconds)


async def take(
    steps: Iterable[Step], target: Target | Wrapping, describe: Callable[[Transport], SocketInfo]
) -> tuple[Transport, SocketInfo]:
    """Take the steps in order, within ``connect_timeout``; return the transport and its facts.

    If a step fails, is cancelled or runs out of time, the transport is dropped, unless the step
    has done that. ``describe`` is called after the last step.

    :raises SocketError: a step failed, or the time ran out. No other subclass of ``Exception`` is
        raised.
    """
    made: tuple[Transport, SocketInfo] | None = None
    transport: Transport | None = None
    too_late: Callable[[float], SocketError] | None = None
    seconds = target.options.connect_timeout
    try:
        with anyio.move_on_after(seconds):
            for step in steps:
                too_late = step.too_late
                transport = await step.take(transport)
            assert transport is not None
            made = transport, describe(transport)
            return made
    except SocketError:
        raise
    except anyio.BrokenResourceError as exc:
        raise broke_in_opening(str(target), exc) from exc.__cause__ or exc
    except anyio.EndOfStream as exc:
        raise ended_in_opening(str(target), exc) from exc
    except Exception as exc:
        raise opening_failed(str(target), exc) from exc
    finally:
        if made is None and transport is not None:
            await transport.abort()
    assert too_late is not None
    raise too_late(seconds)


class Dialled(Opener):
    """The opener of ``connect()``: it makes a new connection."""

    def __init__(
        self,
        target: Target,
        policy: AddressPolicy,
        way: Callable[[Target], Way],
        slot: Slot | None,
        short_cut: Route | None = None,
    ) -> None:
        """``short_cut``: the route of ``way``, if that is plain (:attr:`Route.is_plain`)."""
        self._target = target
        self._policy = policy
        self._way = way
        self._slot = slot
        self._short_cut = short_cut
        self._begun: Begun | Failed | None = None

    def begin(self, loop: Loop) -> tuple[Transport, SocketInfo] | None:
        target = self._target
        if self._short_cut is None or self._slot is not None or self._further_steps():
            return None
        found = begin(target.address, self._short_cut.for_socket(target.options), loop)
        if found is None or isinstance(found, (Begun, Failed)):
            self._begun = found
            return None
        return found, info_of(found)

    async def open(self) -> tuple[Transport, SocketInfo]:
        target, slot = self._target, self._slot
        if self._policy is not UNRESTRICTED:
            await forbid(target.address, self._policy)
        begun, self._begun = self._begun, None
        if begun is None or self._short_cut is None:
            way = self._way(target)
        else:
            way = Straight(self._short_cut, target, begun)
        if slot is None:
            return await take(self._steps(way), target, way.describe)
        steps = [self._slot_first(slot), *self._steps(way)]
        try:
            made = await take(steps, target, way.describe)
        except BaseException:
            slot.release()
            raise
        slot.dialled()
        return made

    async def open_socket(self) -> socket.socket:
        """Make the connection, and return the kernel's socket, which then holds the slot.

        If this is cancelled, it leaves nothing behind.

        :raises SocketError: the connection cannot be made, or has no socket to return
        """
        await checkpoint()  # the code below need not wait
        transport, _ = await self.open()
        error: SocketError
        try:
            # The task may be cancelled in the same turn in which the connection was made.
            await checkpoint_if_cancelled()
            sock = transport.detach()
            return sock if self._slot is None else moved(sock, self._slot)
        except NoSocketError as exc:
            error = DetachError(f"the connection to {self._target} cannot be given away: {exc}")
        except anyio.BrokenResourceError as exc:
            error = reset_at_once(str(self._target), exc)
        except BaseException:
            await self._undo(transport)
            raise
        await self._undo(transport)
        try:
            raise error
        finally:
            del error  # breaks the cycle of the error, its traceback and this frame

    async def _undo(self, transport: Transport) -> None:
        try:
            await transport.abort()
        finally:
            if self._slot is not None:
                self._slot.release()

    def _slot_first(self, slot: Slot) -> Step:
        async def acquire(_: Transport | None) -> None:
            await slot.acquire()

        return Step(acquire, lambda seconds: no_slot(str(self._target), seconds, slot.slots.limit))

    def _steps(self, way: Way) -> Iterator[Step]:
        yield Step(lambda _: way.connect(), way.too_late)
        yield from self._further_steps()

    def _further_steps(self) -> list[Step]:
        """The steps after the connection is made. :meth:`begin` cannot take them."""
        if self._target.options.secure_transport == "on":
            return [_handshake(self._target)]
        return []

    async def discard(self, *, aborted: bool = False) -> None:
        """Do nothing: :meth:`open` either succeeds or leaves nothing behind."""

    def close_dropped(self) -> bool:
        return False


class Accepted(Opener):
    """The opener of a listener's sockets: the connection exists already."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def open(self) -> tuple[Transport, SocketInfo]:
        return self._transport, info_of(self._transport)

    async def discard(self, *, aborted: bool = False) -> None:
        await self._transport.abort()

    def close_dropped(self) -> bool:
        return self._transport.close_dropped()


class Wrapped(Opener):
    """The opener of :meth:`Socket.wrap`: it uses an existing stream."""

    def __init__(self, transport: Transport, target: Wrapping) -> None:
        self._transport = transport
        self._target = target
        self._shaking = False

    async def open(self) -> tuple[Transport, SocketInfo]:
        return await take(self._steps(), self._target, info_of)

    def _steps(self) -> Iterator[Step]:
        yield Step(self._begin, partial(not_opened, str(self._target)))
        if self._target.options.secure_transport == "on":
            self._shaking = True  # from here on, open() cannot be repeated
            yield _handshake(self._target)

    async def _begin(self, _: Transport | None) -> Transport:
        if isinstance(self._transport, LayeredTransport):
            await self._transport.open()
        return self._transport

    def spent(self) -> SocketError | None:
        return _cancelled(self._target) if self._shaking else None

    async def discard(self, *, aborted: bool = False) -> None:
        if aborted:
            await self._transport.abort()
        else:
            await self._transport.let_go()

    def close_dropped(self) -> bool:
        return self._transport.close_dropped()


def _cancelled(target: Target | Wrapping) -> TLSError:
    return TLSError(
        f"the TLS handshake with {target} was cancelled part-way, "
        "and cannot be repeated on the same connection"
    )


class TakenOver(Opener):
    """The opener of ``start_tls()``: it puts TLS on the connection of a plain socket."""

    def __init__(self, plain: Connection, target: Target | Wrapping) -> None:
        self._plain = plain
        self._target = target
        self._begun = False

    async def open(self) -> tuple[Transport, SocketInfo]:
        plain = await self._plain.opened  # has its own time limit

        def describe(transport: Transport) -> SocketInfo:
            return replace(plain, alpn=transport.alpn)

        return await take(self._steps(), self._target, describe)

    def _steps(self) -> Iterator[Step]:
        yield Step(self._surrender, partial(not_flushed, str(self._target)))
        yield _handshake(self._target)

    async def _surrender(self, _: Transport | None) -> Transport:
        transport = await self._plain.surrender()
        self._begun = True
        return transport

    def spent(self) -> SocketError | None:
        if not self._begun:
            return None
        return _cancelled(self._target)

    async def lost(self) -> SocketError | None:
        return await self._plain.lost()

    async def discard(self, *, aborted: bool = False) -> None:
        await self._plain.disown(aborted=aborted)

    async def gone(self) -> None:
        await self._plain.gone()

    def close_dropped(self) -> bool:
        return self._plain.close_dropped()
