"""Carries out what the lifecycle decides, over one transport, for whichever task awaits.

There is no task of its own in here. A call asks the lifecycle for leave, does its I/O, tells
the lifecycle what came of it, and does what that asks for in return. What a call cannot learn
from its own I/O (was it closed meanwhile? broken? ended?) it learns by asking again.
"""

from __future__ import annotations

import socket
import warnings
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, overload
from weakref import WeakMethod

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from ._address import format_address
from ._copies import fresh
from ._errors import (
    BrokenError,
    ClosedError,
    DetachError,
    HalfCloseError,
    IncompleteReadError,
    SocketError,
    StartTLSError,
    broken,
    shorten,
    text_of,
)
from ._future import Outcome, SocketFuture
from ._lifecycle import (
    Dial,
    Effect,
    Event,
    Inbound,
    Link,
    Outbound,
    State,
    Verdict,
    initial,
    step,
)
from ._linger import Patience
from ._log import log
from ._raw import moved
from ._read_ahead import MOST, ReadAhead
from ._readiness import Loop, here
from ._slots import Slot
from ._transport import DEFAULT_MAX_BYTES, NoSocketError, Transport


@dataclass(frozen=True)
class SocketInfo:
    """What is known of an open connection: the result of ``socket.opened``.

    ``remote_address``: ``"ip:port"`` of the peer, IPv6 in brackets, as the kernel tells it; None
    where the stream below has none. Through a proxy: what that was asked for, which may be a
    name, ``"host:port"``.

    ``local_address``: that of this side, in the same way; through a proxy, that of the connection
    to it.

    ``alpn``: the protocol that the TLS handshake agreed on (RFC 7301), or None.

    ``proxy_address``: ``"ip:port"`` of the proxy, or None if there is none in between.
    """

    remote_address: str | None
    """``"ip:port"`` of the peer, IPv6 in brackets, as the kernel tells it; None where the stream
    below has none. Through a proxy: what that was asked for, which may be a name,
    ``"host:port"``."""
    local_address: str | None
    """That of this side, in the same way; through a proxy, that of the connection to it."""
    alpn: str | None = None
    """The protocol that the TLS handshake agreed on (RFC 7301), or None."""
    proxy_address: str | None = None
    """``"ip:port"`` of the proxy, or None if there is none in between."""


class Opener(ABC):
    """How the connection is made, on demand."""

    def begin(self, loop: Loop) -> tuple[Transport, SocketInfo] | None:
        """Make it, as far as that needs no waiting; None: :meth:`open` goes on with it.

        ``loop`` is the running one. Raises nothing: :meth:`open` raises what has failed here.
        """
        return None

    @abstractmethod
    async def open(self) -> tuple[Transport, SocketInfo]:
        """Make it. Cancelled, it leaves nothing behind, and may be called again.

        :raises SocketError: it cannot be made
        """

    def spent(self) -> SocketError | None:
        """Why it cannot be opened any more, after :meth:`open` was cancelled; None if it can."""
        return None

    async def lost(self) -> SocketError | None:
        """Why it cannot be opened any more, if that can be seen already. Waits for nothing."""
        return None

    @abstractmethod
    async def discard(self, *, aborted: bool = False) -> None:
        """It will not be opened: let go of whatever is held for it. Waits for nothing.

        ``aborted``: the peer is to see a reset, if there is a connection already.
        """

    async def gone(self) -> None:  # noqa: B027  # most have nothing to wait for
        """Wait until nothing is left of what :meth:`discard` let go of."""

    @abstractmethod
    def close_dropped(self) -> bool:
        """It was dropped before it was opened: as :meth:`Transport.close_dropped`."""


#: Failures of a transport that mean: the connection is gone.
_BROKEN = (anyio.BrokenResourceError, OSError)

#: A receive ended without data: the peer has ended, or the connection is gone.
_OVER = (anyio.EndOfStream, anyio.ClosedResourceError, *_BROKEN)

_OPEN_INBOUND = (Inbound.OPEN, Inbound.RECEIVING)
_IN_FLIGHT = (Outbound.SENDING, Outbound.LAST, Outbound.ENDING, Outbound.FLUSHING)


class Connection:
    """One socket's state, futures and transport; the streams and the socket are its face."""

    __slots__ = (
        "__weakref__",
        "_changed",
        "_close_timeout",
        "_closed",
        "_closing",
        "_dial_over",
        "_dialling",
        "_error",
        "_hung_up",
        "_info",
        "_kept",
        "_name",
        "_opened",
        "_opener",
        "_piped_here",
        "_receive_waits",
        "_slot",
        "_state",
        "_transport",
        "_watching",
    )

    _transport: Transport
    _info: SocketInfo

    def __init__(
        self,
        opener: Opener,
        *,
        name: object,
        half_open: bool,
        starttls: bool,
        close_timeout: float,
        slot: Slot | None = None,
    ) -> None:
        """``name``: what to call it in messages. ``close_timeout`` is in seconds.

        ``slot``: of ``max_connections``, which it holds until it is over.
        """
        self._opened: Outcome[SocketInfo] = Outcome()
        self._closed: Outcome[None] = Outcome()
        self._state = initial(half_open=half_open, starttls=starttls)
        self._opener = opener
        self._name = name
        self._close_timeout = close_timeout
        self._slot = slot
        if slot is not None:
            slot.follow(WeakMethod(self.look))
        self._kept = ReadAhead()
        self._error: BrokenError | None = None  # what broke the connection; never raised
        # Scopes and events exist only while a task waits in or for them.
        self._dialling: anyio.CancelScope | None = None
        self._dial_over: anyio.Event | None = None
        self._receive_waits: anyio.CancelScope | None = None  # a receive waits to be connected
        self._watching: anyio.CancelScope | None = None
        self._closing: anyio.CancelScope | None = None  # close() waits for the peer in it
        self._hung_up = False  # the watcher has seen a hang-up that lies behind unread data
        self._changed: anyio.Event | None = None
        self._piped_here: tuple[anyio.CancelScope, ...] = ()  # of pipes that end here

    @property
    def opened(self) -> SocketFuture[SocketInfo]:
        return self._opened.future(self._open)

    @property
    def closed(self) -> SocketFuture[None]:
        return self._closed.future(self._watch)

    @property
    def state(self) -> State:
        return self._state

    @property
    def upgraded(self) -> bool:
        """Whether it was given up to another, that puts TLS on it."""
        return self._state.link is Link.UPGRADED

    @property
    def torn(self) -> bool:
        """Whether a send was cut short, so that nothing more can be sent."""
        return self._state.outbound is Outbound.TORN

    @property
    def transport(self) -> Transport | None:
        """The transport, once there is one."""
        return getattr(self, "_transport", None)

    # --- asking and telling
    #
    # receive() and send() take their plain steps themselves, and tell nobody: see _lifecycle. Only
    # if `_hung_up`, the watcher waits for what was unread to be read.

    def _ask(self, event: Event) -> Verdict | None:
        """Move by an event that has no effects; return the verdict."""
        before = self._state
        after, verdict, _ = step(before, event)
        if after is not before:
            self._move(before, after)
        return verdict

    async def _tell(self, event: Event, error: SocketError | None = None) -> None:
        """Move by an event and do what it asks for. ``error`` is what futures reject with."""
        before = self._state
        after, _, effects = step(before, event)
        if after is not before:
            if isinstance(error, BrokenError) and self._error is None:
                self._error = error
            self._move(before, after)
        if effects:
            await self._carry_out(effects, error)

    def _tell_nowait(self, event: Event) -> tuple[Effect, ...]:
        """Move by an event that rarely has effects; return them, to be carried out."""
        before = self._state
        after, _, effects = step(before, event)
        if after is not before:
            self._move(before, after)
        return effects

    def _move(self, before: State, after: State) -> None:
        self._state = after
        if self._kept and after.inbound not in _OPEN_INBOUND:
            self._kept.clear()
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        if self._closing is not None:
            self._closing.cancel()
        if (
            self._watching is not None
            and after.dial is Dial.DONE
            and (self._hung_up or before.link is not after.link)
        ):
            self._watching.cancel()
        if self._piped_here and self._no_send() not in (None, Verdict.BUSY):
            for scope in self._piped_here:
                scope.cancel()

    async def _change(self) -> None:
        """Wait for the state to move."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    async def _carry_out(self, effects: tuple[Effect, ...], error: SocketError | None) -> None:
        if Effect.CANCEL_DIAL in effects and self._dialling is not None:
            self._dialling.cancel()
        if Effect.INTERRUPT_RECEIVE in effects:
            if self._receive_waits is not None:
                self._receive_waits.cancel()
            else:
                self._transport.stop_receiving()
        self._settle_opened(effects, error)
        try:
            if Effect.DROP in effects or Effect.DISCARD in effects:
                await self._drop()
            elif Effect.LET_GO in effects:
                await self._let_go()
            elif Effect.FINISH in effects:
                await self._shut(patiently=False)
            elif Effect.ACLOSE in effects:
                await self._shut(patiently=True)
        finally:
            # Last, so that the tasks that it wakes find the transport gone. Also if the closing of
            # a foreign transport was cancelled.
            self._settle_closed(effects, error)

    def _settle_opened(self, effects: tuple[Effect, ...], error: SocketError | None) -> None:
        if Effect.RESOLVE_OPENED in effects:
            self._opened.resolve(self._info)
            if log.debugs:
                ends = self._info.local_address, self._info.remote_address
                log.debug("%s: open, from %s to %s", self._name, *ends)
        elif Effect.REJECT_OPENED in effects:
            error = error or ClosedError("the socket was closed before the connection was made")
            self._opened.reject(error)
            if log.debugs:
                log.debug("%s: not opened: %s", self._name, error)

    def _settle_closed(self, effects: tuple[Effect, ...], error: SocketError | None) -> None:
        if Effect.RESOLVE_CLOSED in effects:
            self._closed.resolve(None)
            if log.debugs:
                how = _HOW_OVER.get(self._state.link, "closed")
                log.debug("%s: %s", self._name, how)
        elif Effect.REJECT_CLOSED in effects:
            error = error or self._broken()
            self._closed.reject(error)
            if log.debugs:
                log.debug("%s: closed: %s", self._name, error)
        else:
            return
        if self._watching is not None:
            self._watching.cancel()
        if self._slot is not None:
            self._slot.settled()

    async def _drop(self) -> None:
        transport = self.transport
        if transport is None:
            await self._opener.discard(aborted=True)
        else:
            await transport.abort()

    async def _shut(self, *, patiently: bool) -> None:
        """Close the transport as far as needs no waiting, or wait until the peer has it all."""
        event, error = Event.SHUT, None
        if patiently and log.debugs:
            log.debug("%s: closing", self._name)
        try:
            finish = self._finish_in_time if patiently else self._transport.finish
            if not await finish():
                event = Event.LATE if patiently else Event.CROWDED
        except anyio.ClosedResourceError:
            pass  # another task was first
        except _BROKEN as exc:
            event, error = Event.RESET, broken("closing", exc)
        except BaseException:
            await self._tell(Event.FORCE)
            raise
        if event is Event.LATE:
            error = self._gave_up("waiting for the peer")
        await self._tell(event, error)

    async def _finish_in_time(self) -> bool:
        """Close the transport; False: the time is up."""
        transport = self._transport
        if not transport.immediate:  # finish() may wait as well, and nothing tells of progress
            with anyio.move_on_after(self._close_timeout):
                while not await transport.finish():
                    await self._until_change(transport.wait_room)
                return True
            return False
        patience: Patience | None = None
        while not await transport.finish():
            if patience is None:
                patience = Patience(self._close_timeout, transport.progress)
            if not await patience.wait(partial(self._until_change, transport.wait_room)):
                return False
        return True

    async def _let_go(self) -> None:
        """Close the transport, and let the system deliver what is on its way."""
        if self.transport is None:
            await self._opener.discard()
            return
        try:
            whole = await self._transport.let_go()
        except _BROKEN as exc:
            await self._tell(Event.RESET, broken("closing", exc))
            return
        if whole:
            await self._tell(Event.SHUT)
        else:
            why = "the peer got a reset, because close() was cancelled before our end had gone out"
            await self._tell(Event.RESET, BrokenError(why))

    def _gave_up(self, what: str) -> BrokenError | None:
        """What ``closed`` fails with because close() has waited for too long; log it as well.

        None: the connection was never made, so that there is nothing to lose.
        """
        if self.transport is None:
            return None
        error = BrokenError(
            f"close() gave up {what}, because the peer took nothing for {self._close_timeout:g} "
            f"seconds (close_timeout): it has yet to acknowledge "
            f"{self.transport.unacknowledged()} bytes that were sent"
        )
        log.warning("%s: %s", self._name, error)
        return error

    def _broken(self) -> BrokenError:
        if self._error is None:
            self._error = BrokenError(
                "a send was cut short, so the peer holds only a piece of it: "
                "nothing more can be sent on this connection"
            )
        return self._error

    def _refusal(self, verdict: Verdict | None, doing: str) -> BaseException:
        """The exception for a verdict that is not leave. ``doing`` is a key of _CLOSED."""
        if verdict is Verdict.AT_EOF:
            return anyio.EndOfStream()
        if verdict is Verdict.BUSY:
            return anyio.BusyResourceError(doing)
        if verdict is Verdict.BROKEN:
            return fresh(self._broken())
        if verdict is Verdict.FAILED:
            error = self._opened.exception()
            assert error is not None
            return error
        if self._state.link is Link.UPGRADED:
            return ClosedError("start_tls() was called: use the socket that it returned")
        if self._state.link is Link.DETACHED:
            return ClosedError("detach() was called: use the socket that it returned")
        return ClosedError(_CLOSED[doing])

    # --- piping

    def _no_send(self) -> Verdict | None:
        """What refuses a send in this state; None if it would have leave."""
        if self._state.outbound is Outbound.ENDING:
            return Verdict.CLOSED  # which it is by the time that another send could begin
        verdict = step(self._state, Event.SEND).verdict
        return None if verdict in (Verdict.PROCEED, Verdict.OPEN_FIRST) else verdict

    def why_no_send(self) -> BaseException | None:
        """What a send would raise now because of the state; None if it might succeed."""
        verdict = self._no_send()
        return None if verdict is None else self._refusal(verdict, "sending to")

    def why_no_receive(self) -> BaseException | None:
        """What a receive would raise now because of the state; None if it might succeed."""
        verdict = step(self._state, Event.RECEIVE).verdict
        if verdict in (Verdict.PROCEED, Verdict.OPEN_FIRST):
            return None
        return self._refusal(verdict, "receiving from")

    @property
    def stopped_reading(self) -> bool:
        """Whether receives are refused because of :meth:`cancel`, and of nothing else."""
        return self._state.inbound in (Inbound.CANCELLED, Inbound.DISCARDED)

    @contextmanager
    def cancelling_once_it_ends(self, scope: anyio.CancelScope) -> Iterator[None]:
        """Cancel ``scope`` as soon as our side is over: nothing more can ever be sent here."""
        self._piped_here += (scope,)
        try:
            yield
        finally:
            self._piped_here = tuple(each for each in self._piped_here if each is not scope)

    # --- opening

    async def _open(self) -> bool:
        """Make the connection: the driver of ``opened``.

        Returns whether it has ended with a look for a cancellation that is due.
        """
        loop = here()
        goes_on = loop.may_go_on(0)
        if not goes_on:
            await checkpoint_if_cancelled()  # no more: who comes first queues up first
        self._ask(Event.DIAL)
        at_once = made = None
        try:
            at_once = made = self._opener.begin(loop)
            if made is None:
                self._dial_over = anyio.Event()
                with anyio.CancelScope() as self._dialling:
                    made = await self._opener.open()
        except SocketError as exc:
            try:
                await self._opener.discard()
            finally:
                await self._tell(Event.DIAL_FAILED, fresh(exc))
        except BaseException:
            spent = self._opener.spent()
            await self._tell(Event.DIAL_CANCELLED if spent is None else Event.DIAL_FAILED, spent)
            if self._state.dial is Dial.FAILED:
                # Closed, aborted or disowned meanwhile: nobody else will let go of it.
                await self._opener.discard()
            raise
        finally:
            self._dialling = None
            if self._dial_over is not None:
                self._dial_over.set()
        if made is None:  # it has failed, perhaps at once, or close() cancelled it
            await self._opener.discard()
            await checkpoint()
            return True
        self._transport, self._info = made
        await self._tell(Event.DIALLED)
        if not goes_on:
            await checkpoint()
        return at_once is not None or not goes_on

    async def _await_connection(self, given_up: Event) -> None:
        """Wait for the connection, for a call that is in flight already.

        ``given_up`` is what to tell if there will be none, or the call is cancelled.
        """
        try:
            await self.opened
        except BaseException:
            await self._tell(given_up)
            raise

    async def _begin_outbound(self, verdict: Verdict | None, event: Event, doing: str) -> bool:
        """Get the connection for what has leave; False: there is nothing to do.

        :raises BaseException: whatever refuses it
        """
        if verdict is Verdict.PROCEED:
            return True
        if verdict is Verdict.NOTHING_TO_DO:
            return False
        if verdict is Verdict.OPEN_FIRST:
            given_up = Event.SEND_DONE if event is Event.SEND else Event.END_UNDONE
            await self._await_connection(given_up)
            if self._state.outbound in _IN_FLIGHT:
                return True
            verdict = self._ask(event)  # it was ended meanwhile: this says how
        await checkpoint()
        raise self._refusal(verdict, doing)

    # --- receiving

    @overload
    async def receive(self, max_bytes: int) -> bytes: ...

    @overload
    async def receive(self, max_bytes: int, into: memoryview) -> int: ...

    async def receive(self, max_bytes: int, into: memoryview | None = None) -> bytes | int:
        """Receive up to ``max_bytes`` bytes, or into all of ``into``, which has as many."""
        if into is None and not (type(max_bytes) is int and 1 <= max_bytes <= MOST):
            check_int("max_bytes", max_bytes, 1)
            max_bytes = min(max_bytes, MOST)
        after = self._state.receiving
        if after is None or self._hung_up:
            await self._begin_receiving()
        else:
            self._state = after
        begun: bytes | int | Awaitable[bytes | int]
        try:
            if self._kept:
                await self._pass(max_bytes)
                begun = self._kept.take(max_bytes) if into is None else self._kept.take_into(into)
            elif into is None:
                begun = self._transport.start_receive(max_bytes)
            else:
                begun = self._transport.start_receive_into(into)
            data = begun if isinstance(begun, (bytes, int)) else await begun
        except _OVER as exc:
            verdict = await self._receive_over(exc)
        except BaseException:
            self._ask(Event.RECEIVE_DONE)
            raise
        else:
            after = self._state.received
            if after is None or self._hung_up:
                self._ask(Event.RECEIVE_DONE)
            else:
                self._state = after
            return data
        return await self._raise_over(verdict)

    async def receive_exactly(self, count: int) -> bytes:
        try:
            return await self._receive(lambda: self._kept.exactly(self._transport, count), count)
        except anyio.EndOfStream as exc:
            if not count:
                return b""
            raise self._incomplete(f"{len(self._kept)} of {count} bytes") from exc

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        try:
            return await self._receive(
                lambda: self._kept.until(self._transport, delimiter, max_bytes), max_bytes
            )
        except anyio.EndOfStream as exc:
            what = f"{len(self._kept)} bytes, without {shorten(repr(delimiter))} among them"
            raise self._incomplete(what) from exc

    def _incomplete(self, what: str) -> IncompleteReadError:
        kept = ": receive() returns them" if self._kept else ""
        return IncompleteReadError(f"the peer ended after {what}{kept}")

    async def _receive(self, take: Callable[[], Awaitable[bytes]], amount: int) -> bytes:
        """Receive about ``amount`` bytes by ``take``, which may read several times for them.

        It leaves in ``_kept`` what it took and does not return.
        """
        await self._begin_receiving()
        try:
            if self._kept or not amount:
                await self._pass(amount)
            value = await take()
            self._check_turn()  # or what was kept before the rest came is gone
        except _OVER as exc:
            verdict = await self._receive_over(exc)
        except BaseException:
            self._ask(Event.RECEIVE_DONE)
            raise
        else:
            self._ask(Event.RECEIVE_DONE)
            return value
        return await self._raise_over(verdict)

    async def _pass(self, amount: int) -> None:
        """Be a checkpoint before about ``amount`` bytes are taken of what is kept."""
        if not self._transport.may_go_on(min(amount, DEFAULT_MAX_BYTES)):
            await checkpoint()
            self._check_turn()

    def _check_turn(self) -> None:
        """See that no other task has ended the receive that is in flight."""
        if self._state.inbound is not Inbound.RECEIVING:
            raise anyio.ClosedResourceError

    async def _receive_over(self, exc: Exception) -> Verdict | None:
        """Tell what ended a receive; return what it is to raise. None: the state says that.

        As long as something is kept the next receive returns that. The one after it meets the
        same end in the transport, or finds the transport closed, and tells it.
        """
        ended = isinstance(exc, anyio.EndOfStream)
        receiving = self._state.inbound is Inbound.RECEIVING  # or another task has ended it
        if not receiving:
            self._kept.clear()
        if not self._kept:
            if ended:
                await self._tell(Event.PEER_EOF)
            elif receiving:
                await self._tell(Event.RESET, broken("receiving", exc))
            return None
        if not ended:
            await self._tell(Event.LOST, broken("receiving", exc))
        self._ask(Event.RECEIVE_DONE)
        return Verdict.AT_EOF if ended else Verdict.BROKEN

    async def _raise_over(self, verdict: Verdict | None) -> NoReturn:
        """Raise what ended a receive, as :meth:`_receive_over` has it."""
        await checkpoint()  # may raise instead of the error: the state keeps that for later
        if self._state.inbound not in _OPEN_INBOUND:
            verdict = None  # close() came, and has thrown away what was kept
        raise self._refusal(verdict or self._ask(Event.RECEIVE), "receiving from")

    def is_readable(self) -> bool:
        """Whether a receive would return or raise without waiting; False if that is not known."""
        verdict = step(self._state, Event.RECEIVE).verdict
        if verdict is Verdict.PROCEED:
            return bool(self._kept) or self._transport.is_readable()
        return verdict is not Verdict.OPEN_FIRST

    async def _begin_receiving(self) -> None:
        """Get leave and the connection, or raise whatever refuses a receive."""
        verdict = self._ask(Event.RECEIVE)
        if verdict is Verdict.PROCEED:
            return
        if verdict is Verdict.OPEN_FIRST:
            try:
                # readable.aclose() and close() cancel this scope.
                with anyio.CancelScope() as self._receive_waits:
                    await self._await_connection(Event.RECEIVE_DONE)
            finally:
                self._receive_waits = None
            if self._state.inbound is Inbound.RECEIVING:
                return
            verdict = self._ask(Event.RECEIVE)
        await checkpoint()
        raise self._refusal(verdict, "receiving from")

    async def cancel(self) -> None:
        """Stop reading."""
        await self._tell(Event.CANCEL)
        await checkpoint()

    # --- sending

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        if type(item) is not bytes:
            item = _view(item)
        after = self._state.sending
        if after is None or self._hung_up:
            await self._begin_outbound(self._ask(Event.SEND), Event.SEND, "sending to")
        else:
            self._state = after
        try:
            rest = self._transport.start_send(item)
            if rest is not None:
                await rest
        except (*_BROKEN, anyio.ClosedResourceError) as exc:
            lost = broken("sending", exc)
            await self._lost_sending(lost)
        except BaseException:
            await self._tell(Event.SEND_TORN if self._transport.torn else Event.SEND_DONE)
            raise
        else:
            after = self._state.sent
            if after is None or self._hung_up:
                await self._tell(Event.SEND_DONE)
            else:
                self._state = after
            return
        raise await self._why_lost(lost, Event.SEND, "sending to")

    async def end(self) -> None:
        """End our side; reading goes on."""
        await checkpoint_if_cancelled()
        if await self._begin_outbound(self._ask(Event.END), Event.END, "ending"):
            await self._end()
        else:
            await checkpoint()

    async def _end(self) -> None:
        try:
            await self._transport.send_eof()
        except (*_BROKEN, anyio.ClosedResourceError) as exc:
            lost = broken("ending our side", exc)
            await self._lost_sending(lost)
        except NotImplementedError as exc:
            await self._tell(Event.END_UNDONE)
            raise HalfCloseError(
                f"the stream below {self._name} cannot end our direction alone: end both by "
                "close(), and let the peer know in your protocol that nothing more will come"
            ) from exc
        except BaseException:
            await self._tell(Event.SEND_TORN)
            raise
        else:
            # Before any other task runs: each sees that our side has ended, as the peer does.
            await self._tell(Event.END_DONE)
            await cancel_shielded_checkpoint()
            return
        raise await self._why_lost(lost, Event.END, "ending")

    async def _why_lost(self, lost: BrokenError, event: Event, doing: str) -> BaseException:
        """What a send or an end raises that met a broken connection."""
        await checkpoint()
        if lost is self._error:  # even where close() waited for this
            return fresh(lost)
        return self._refusal(self._ask(event), doing)

    async def _lost_sending(self, error: BrokenError) -> None:
        if self._state.outbound not in _IN_FLIGHT:
            return  # another task closed or dropped the transport, and the state says so
        # The peer may have said why before it hung up: leave that for a receive.
        try:
            # A receive in flight will tell, and its bytes are not for us to take.
            unread = self._state.inbound is Inbound.RECEIVING or self._has_unread()
        except (*_BROKEN, anyio.ClosedResourceError):
            await self._tell(Event.RESET, error)
        else:
            await self._tell(Event.RESET_UNREAD, error)
            if not unread and self._state.inbound is Inbound.OPEN:
                await self._tell(Event.PEER_EOF)

    def _has_unread(self) -> bool:
        return bool(self._kept) or self._transport.unread()

    async def end_gracefully(self) -> None:
        """End our side once nothing is in flight; does nothing if it has ended in any way."""
        waited = False
        try:
            while (verdict := self._ask(Event.END_LAST)) is Verdict.WAIT:
                waited = True
                await self._change()
            if verdict is Verdict.BROKEN:
                await self.abort(None)  # no clean end may follow a piece of a message
            elif await self._begin_outbound(verdict, Event.END_LAST, "ending"):
                await self._end()
        except anyio.get_cancelled_exc_class():
            await self._tell(Event.ABORT, BrokenError("ending our side was cancelled"))
            raise
        await checkpoint()
        if waited and self._error is not None and self._state.outbound is not Outbound.ENDED:
            raise fresh(self._broken())  # what this call waited to end has broken

    async def abort(self, reason: object) -> None:
        why = f": {text_of(reason)}" if reason is not None else ""
        error = BrokenError(f"the connection was aborted on our side{why}")
        if isinstance(reason, BaseException):
            error.__cause__ = fresh(reason)
        await self._tell(Event.ABORT, error)
        await checkpoint()

    # --- ending

    async def close(self) -> None:
        try:
            await self._tell(Event.CLOSE)
            if self._state.link is Link.FLUSHING:
                await self._flush()
            while self._state.link in (Link.CLOSING, Link.LINGERING):
                if self._state.link is Link.LINGERING:
                    await self._tell(Event.CLOSE)
                else:
                    await self._change()  # another task is at it
            await self.gone()
            transport = self.transport
            if transport is None or not transport.may_go_on(0):
                await checkpoint()
        except BaseException:
            why = "close() was cancelled while a send was in flight, which was cut short"
            await self._tell(Event.FORCE, None if self.transport is None else BrokenError(why))
            raise

    async def gone(self) -> None:
        """Wait until nothing is left of an attempt to connect that was given up."""
        if self._state.dial is Dial.FAILED:
            if self._dialling is not None:
                assert self._dial_over is not None
                await self._dial_over.wait()
            await self._opener.gone()

    async def _flush(self) -> None:
        """Wait for what is in flight, then close the transport."""
        patience: Patience | None = None
        while self._state.link is Link.FLUSHING:
            if self._state.outbound is not Outbound.FLUSHING:
                await self._tell(Event.FLUSHED)
                return
            if patience is None:
                patience = Patience(self._close_timeout, self._progress)
            moved = await patience.wait(self._discard_until_change)
            if not moved and self._state.outbound is Outbound.FLUSHING:
                await self._tell(Event.LATE, self._gave_up("a send in flight"))

    def _progress(self) -> object:
        transport = self.transport
        return None if transport is None else transport.progress()

    async def _discard_until_change(self) -> None:
        """Wait for the state to move. Meanwhile, throw away what comes in.

        A peer that can send no more may take no more either, and all would wait for each other.
        """
        state = self._state
        while self._state is state:
            transport = self.transport
            if transport is None or self._closing is not None or not transport.discard():
                await self._change()
            else:
                await self._until_change(transport.wait_arrival)

    async def _until_change(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait for something of the transport, or for the state to move."""
        scope = self._closing = anyio.CancelScope()
        try:
            with suppress(anyio.ClosedResourceError), scope:
                await wait()
        finally:
            if self._closing is scope:  # or another task has begun to wait since
                self._closing = None

    # --- watching

    async def _watch(self) -> None:
        """Watch for the end of the connection, taking no data: the driver of ``closed``."""
        try:
            with anyio.CancelScope() as self._watching:  # start_tls() settles `closed` before
                await self.opened
        except SocketError:
            return  # which has settled `closed` too
        finally:
            self._watching = None
        self._hung_up = False
        error: Exception | None = None
        while not self._closed.settled:
            state = self._state
            if self._hung_up and state.link is Link.OPEN:
                await self._judge_hangup(state, error)
                if self._state is not state:
                    continue
            try:
                with anyio.CancelScope() as self._watching:
                    if state.link is Link.OPEN:
                        known = self._hung_up or state.inbound in (Inbound.EOF, Inbound.DISCARDED)
                        error = await self._transport.wait_hangup(after_eof=known)
                        self._hung_up = True
                    elif state.link is Link.LINGERING:
                        with suppress(*_BROKEN, anyio.ClosedResourceError):  # finishing shows it
                            await self._transport.wait_room()
                    else:
                        await anyio.sleep_forever()  # until the state moves
            finally:
                self._watching = None
            if self._state.link is Link.LINGERING:
                await self._tell(Event.ROOM)

    async def _judge_hangup(self, state: State, error: Exception | None) -> None:
        """The peer is gone. Say so as soon as no unread data lies before that."""
        lost = broken("waiting for its end", error) if error is not None else None
        if state.inbound is Inbound.OPEN:
            try:
                unread = self._has_unread()
            except anyio.BrokenResourceError as exc:
                await self._tell(Event.RESET, broken("waiting for its end", exc))
                return
            if lost is not None:
                await self._tell(Event.RESET_UNREAD, lost)
            elif not unread:
                await self._tell(Event.PEER_EOF)
        elif state.inbound is Inbound.CANCELLED and lost is None:
            await self._tell(Event.PEER_EOF)
        elif lost is not None and state.inbound is not Inbound.RECEIVING:
            await self._tell(Event.RESET, lost)

    async def look(self) -> None:
        """Notice an end or a reset that is here already, as awaiting ``closed`` would.

        Waits for nothing. Unread data that lies before an end keeps that from being noticed.
        """
        if self._is_open() and self._watching is None:
            hung_up, error = await self._transport.hung_up()
            if hung_up and self._is_open():
                await self._judge_hangup(self._state, error)
        elif self._state.link is Link.LINGERING and self._watching is None:
            await self._tell(Event.ROOM)
        elif self._state.link is Link.OPEN and self._state.dial is Dial.IDLE:
            lost = await self._opener.lost()
            if lost is not None and self._state.dial is Dial.IDLE:
                await self._tell(Event.DISOWN, lost)
                await self._opener.discard()

    async def lost(self) -> BrokenError | None:
        """The reset of a connection that was given up to another, if there was one by now."""
        if self.transport is None:
            return None
        _, error = await self.transport.hung_up()
        return None if error is None else broken("waiting for the TLS handshake", error)

    def _is_open(self) -> bool:
        return self._state.link is Link.OPEN and self._state.dial is Dial.DONE

    # --- upgrading

    def upgrade(self) -> Slot | None:
        """Give the connection up to another, which calls :meth:`surrender` or :meth:`disown`.

        Returns the slot, which the other has to hold now.
        """
        _, verdict, effects = step(self._state, Event.UPGRADE)
        if verdict is Verdict.PROCEED and self._kept:
            raise StartTLSError(
                f"start_tls() was called while {len(self._kept)} bytes that came in the clear are "
                "kept and not received yet: receive them first, or hang up if the peer was to "
                "send nothing more before TLS"
            )
        self._ask(Event.UPGRADE)
        if verdict is Verdict.FAILED or verdict is Verdict.BROKEN:
            raise self._refusal(verdict, "start_tls")
        if verdict is not Verdict.PROCEED:
            assert verdict is not None
            raise StartTLSError(_WHY_NO_UPGRADE[verdict])
        slot, self._slot = self._slot, None
        self._settle_closed(effects, None)
        return slot

    async def surrender(self) -> Transport:
        """The transport, once it is made and what was handed to send has gone out.

        :raises SocketError: it cannot be made, or broke
        """
        await self.opened
        while self._state.outbound is Outbound.FLUSHING:
            await self._change()
        if self._state.outbound is not Outbound.CLOSED:
            raise fresh(self._broken())
        return self._transport

    async def disown(self, *, aborted: bool) -> None:
        """Let go of a connection that was given up to another, which does not want it."""
        await self._tell(Event.ABANDON if aborted else Event.DISOWN)

    # --- detaching

    @property
    def held(self) -> int:
        """How many bytes were taken from the system, and have yet to be received."""
        transport = self.transport
        return 0 if transport is None else len(self._kept) + transport.held

    def detach(self) -> socket.socket:
        """Give the system's socket away, and with it the slot."""
        verdict = step(self._state, Event.DETACH).verdict
        if verdict is Verdict.FAILED or verdict is Verdict.BROKEN:
            raise self._refusal(verdict, "detach")
        if verdict is not Verdict.PROCEED:
            assert verdict is not None
            raise DetachError(_WHY_NO_DETACH[verdict])
        if self.held:
            raise DetachError(
                f"detach() was called while {self.held} bytes that the peer sent are held here, "
                "and not yet received: receive them first"
            )
        error: SocketError
        try:
            sock = self._transport.detach()
        except NoSocketError as exc:
            error = DetachError(f"the connection to {self._name} cannot be detached: {exc}")
        except _BROKEN as exc:
            error = broken("detaching", exc)
        else:
            slot, self._slot = self._slot, None
            self._settle_closed(self._tell_nowait(Event.DETACH), None)
            return sock if slot is None else moved(sock, slot)
        try:
            raise error
        finally:
            del error  # or it would keep this frame, and this frame it

    # --- dropped

    def close_dropped(self) -> bool:
        """Let go of the transport; return whether it was open. In any thread, in no task.

        Not if something is in flight: then it is what start_tls() returned that was dropped, and
        the plain socket goes on sending. It lets go of the transport when it is dropped itself.
        """
        if self._state.outbound in _IN_FLIGHT:
            return False
        transport = self.transport
        return self._opener.close_dropped() if transport is None else transport.close_dropped()

    def __del__(self) -> None:
        # What start_tls() returned keeps this one, and so has been dropped before it.
        if self.close_dropped():
            warnings.warn(
                f"unclosed connection to {self._name}: close it, or use it in 'async with'",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


_CLOSED = {
    "receiving from": "cannot receive: this socket, or its readable half, has been closed",
    "sending to": "cannot send: our side of this socket has ended (send_eof(), close(), or "
    "the peer's end with allow_half_open=False)",
    "ending": "cannot end our side: this socket has been closed",
}

_WHY_NO_UPGRADE = {
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


#: What is logged if ``closed`` resolves though the connection goes on.
_HOW_OVER = {Link.UPGRADED: "goes on over TLS", Link.DETACHED: "detached"}


_WHY_NO_DETACH = {
    Verdict.PENDING: "detach() was called before the connection was made: await socket.opened",
    Verdict.UPGRADED_ALREADY: "detach() was called after start_tls(), which has taken the "
    "connection over: it is TLS by now, or will be",
    Verdict.DETACHED_ALREADY: "detach() has been called on this socket already: "
    "use the socket that it returned",
    Verdict.CLOSED: "detach() was called on a closed socket",
    Verdict.RECEIVE_IN_FLIGHT: "detach() was called while a receive is in flight: "
    "finish or cancel it first",
    Verdict.SEND_IN_FLIGHT: "detach() was called while a send, or the end of our side, is in "
    "flight: wait for it first",
}


def info_of(transport: Transport) -> SocketInfo:
    """What a transport tells of itself."""

    def text(address: Any) -> str | None:  # a Unix socket's is a path
        return format_address(*address[:2]) if isinstance(address, tuple) else None

    remote, local = transport.addresses
    return SocketInfo(text(remote), text(local), transport.alpn)


def check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def _view(item: Any) -> memoryview:
    """The bytes of what should be a bytes-like object, without a copy."""
    try:
        return memoryview(item).cast("B")
    except TypeError:
        raise TypeError(
            f"send() takes bytes, bytearray or a contiguous memoryview, not "
            f"{type(item).__name__}{': encode it first' if isinstance(item, str) else ''}"
        ) from None
