"""The connection of a socket: it does the I/O that the lifecycle decides on.

There is no background task: the task that calls a method does the work. Each call reports an event
to the lifecycle and gets permission or a refusal. Then it does its I/O, reports the result, and
carries out the effects that the lifecycle returns. After any wait, another task may have closed,
ended or broken the connection; a call finds that out by asking the lifecycle again.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NoReturn, overload
from weakref import WeakMethod

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

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
from ._opener import Opener
from ._raw import moved
from ._read_ahead import MOST, ReadAhead
from ._readiness import here
from ._refusals import CLOSED, WHY_NO_DETACH, WHY_NO_UPGRADE, check_int, view_of
from ._slots import Slot
from ._target import SocketInfo
from ._transport import DEFAULT_MAX_BYTES, NoSocketError, Transport
from ._waking import Home, cancel, is_closed, wake

#: The errors of a transport that mean: the connection is broken.
_BROKEN = (anyio.BrokenResourceError, OSError)

#: The errors that end a receive for good: the peer has ended, or the connection broke or closed.
_OVER = (anyio.EndOfStream, anyio.ClosedResourceError, *_BROKEN)

_OPEN_INBOUND = (Inbound.OPEN, Inbound.RECEIVING)
_IN_FLIGHT = (Outbound.SENDING, Outbound.LAST, Outbound.ENDING, Outbound.FLUSHING)

#: What is logged if ``closed`` resolves although the connection stays open.
_HOW_OVER = {Link.UPGRADED: "goes on over TLS", Link.DETACHED: "detached"}


class Connection:
    """The state, the futures and the transport of one socket.

    ``Socket`` and the two streams are the public interface of it.
    """

    __slots__ = (
        "__weakref__",
        "_changed",
        "_close_timeout",
        "_closed",
        "_closing",
        "_dial_over",
        "_dialling",
        "_error",
        "_home",
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
        """``name`` stands for the connection in messages. ``close_timeout`` is in seconds.

        ``slot`` is a slot of ``max_connections``. The connection holds it until it is over.
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
        # Each of these scopes and events exists only while a task waits in it or for it.
        self._dialling: anyio.CancelScope | None = None
        self._dial_over: anyio.Event | None = None
        self._receive_waits: anyio.CancelScope | None = None  # of a receive before the connection
        self._watching: anyio.CancelScope | None = None
        self._closing: anyio.CancelScope | None = None  # in which close() waits for the peer
        self._hung_up = False  # the watcher has seen a hang-up that comes after unread data
        self._changed: anyio.Event | None = None
        self._piped_here: tuple[anyio.CancelScope, ...] = ()  # of pipes that send to this
        self._home: Home | None = None  # the event loop in which tasks use this

    @property
    def opened(self) -> SocketFuture[SocketInfo]:
        return self._opened.future(self._open, self._forget_dead_tasks)

    @property
    def closed(self) -> SocketFuture[None]:
        return self._closed.future(self._watch, self._forget_dead_tasks)

    @property
    def state(self) -> State:
        return self._state

    @property
    def upgraded(self) -> bool:
        """Whether start_tls() has passed the transport on to another connection."""
        return self._state.link is Link.UPGRADED

    @property
    def torn(self) -> bool:
        """Whether a send was cut short. Then nothing more can be sent."""
        return self._state.outbound is Outbound.TORN

    @property
    def transport(self) -> Transport | None:
        """The transport; None until the connection is made."""
        return getattr(self, "_transport", None)

    # --- asking the lifecycle, and reporting to it
    #
    # receive() and send() set the state directly for the plain steps (see _lifecycle). That wakes
    # no other task, so they do not do it while `_hung_up`: then the watcher waits until the unread
    # data is received.

    def _ask(self, event: Event) -> Verdict | None:
        """Take the step of an event that has no effects; return the verdict."""
        before = self._state
        after, verdict, _ = step(before, event)
        if after is not before:
            self._move(before, after)
        return verdict

    async def _tell(self, event: Event, error: SocketError | None = None) -> None:
        """Take the step of an event and carry out its effects.

        ``error`` is the error for the futures that the event rejects.
        """
        before = self._state
        after, _, effects = step(before, event)
        if after is not before:
            if isinstance(error, BrokenError) and self._error is None:
                self._error = error
            self._move(before, after)
        if effects:
            await self._carry_out(effects, error)

    def _tell_nowait(self, event: Event) -> tuple[Effect, ...]:
        """Take the step of an event, and return its effects, which the caller carries out."""
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
            wake(self._changed)
            self._changed = None
        if self._closing is not None:
            cancel(self._closing)
        if (
            self._watching is not None
            and after.dial is Dial.DONE
            and (self._hung_up or before.link is not after.link)
        ):
            cancel(self._watching)
        if self._piped_here and self._no_send() not in (None, Verdict.BUSY):
            for scope in self._piped_here:
                cancel(scope)

    async def _change(self) -> None:
        """Wait until the state changes."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    # --- waiting tasks whose event loop was closed

    def _loop_is_closed(self) -> bool:
        """Whether the event loop in which tasks used this was closed."""
        return self._home is not None and is_closed(self._home)

    async def _forget_dead_tasks(self) -> None:
        """Forget the tasks that wait, if their event loop was closed: they never run again.

        If one of them is in a call, this breaks the connection. Otherwise later calls would wait
        for that call, which never ends. It is called before each wait for other tasks.
        """
        if not self._loop_is_closed():
            return
        self._home = here().home
        self._dialling = None  # gone() would wait for that attempt to end
        self._closed.forget_tasks()
        state = self._state
        if (
            state.dial is Dial.RUNNING
            or state.inbound is Inbound.RECEIVING
            or state.outbound in _IN_FLIGHT
            or state.link in (Link.FLUSHING, Link.CLOSING)
        ):
            why = "the event loop was closed while a task waited in a call of this socket"
            await self._tell(Event.RESET, BrokenError(f"{why}: cancel the task before that"))

    async def _carry_out(self, effects: tuple[Effect, ...], error: SocketError | None) -> None:
        if Effect.CANCEL_DIAL in effects and self._dialling is not None:
            cancel(self._dialling)
        if Effect.INTERRUPT_RECEIVE in effects:
            if self._receive_waits is not None:
                cancel(self._receive_waits)
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
            # This comes last, so that the tasks that it wakes find the transport closed. It is in
            # a `finally`, because closing a foreign transport may be cancelled.
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
            cancel(self._watching)
        if self._slot is not None:
            self._slot.settled()

    async def _drop(self) -> None:
        transport = self.transport
        if transport is None:
            await self._opener.discard(aborted=True)
        else:
            await transport.abort()

    async def _shut(self, *, patiently: bool) -> None:
        """Close the transport; ``patiently``, wait until the peer has acknowledged everything."""
        event, error = Event.SHUT, None
        if patiently and log.debugs:
            log.debug("%s: closing", self._name)
        try:
            finish = self._finish_in_time if patiently else self._transport.finish
            if not await finish():
                event = Event.LATE if patiently else Event.CROWDED
        except anyio.ClosedResourceError:
            pass  # another task has closed it
        except _BROKEN as exc:
            event, error = Event.RESET, broken("closing", exc)
        except BaseException:
            await self._tell(Event.FORCE)
            raise
        if event is Event.LATE:
            error = self._gave_up("waiting for the peer")
        await self._tell(event, error)

    async def _finish_in_time(self) -> bool:
        """Close the transport within ``close_timeout``; return whether that succeeded."""
        transport = self._transport
        if not transport.immediate:  # finish() may wait too, and does not report progress
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
        """Close the transport without waiting. The kernel goes on to deliver what it holds."""
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
        """Log and return the error of ``closed`` after close() has waited for too long.

        Returns None if the connection was never made: then nothing was lost.
        """
        if self.transport is None:
            return None
        error = BrokenError(
            f"close() gave up {what}, because the peer took nothing for {self._close_timeout:g} "
            f"seconds (close_timeout): it has not acknowledged "
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
        """The exception for a verdict that refuses a call. ``doing`` is a key of CLOSED."""
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
        return ClosedError(CLOSED[doing])

    # --- piping

    def _no_send(self) -> Verdict | None:
        """The verdict that refuses a send in this state; None if a send is permitted."""
        if self._state.outbound is Outbound.ENDING:
            return Verdict.CLOSED  # our side will have ended before another send can begin
        verdict = step(self._state, Event.SEND).verdict
        return None if verdict in (Verdict.PROCEED, Verdict.OPEN_FIRST) else verdict

    def why_no_send(self) -> BaseException | None:
        """The exception that a send would raise because of the state; None if permitted."""
        verdict = self._no_send()
        return None if verdict is None else self._refusal(verdict, "sending to")

    def why_no_receive(self) -> BaseException | None:
        """The exception that a receive would raise because of the state; None if permitted."""
        verdict = step(self._state, Event.RECEIVE).verdict
        if verdict in (Verdict.PROCEED, Verdict.OPEN_FIRST):
            return None
        return self._refusal(verdict, "receiving from")

    @property
    def stopped_reading(self) -> bool:
        """Whether :meth:`cancel` is the only reason to refuse receives."""
        return self._state.inbound in (Inbound.CANCELLED, Inbound.DISCARDED)

    @contextmanager
    def cancelling_once_it_ends(self, scope: anyio.CancelScope) -> Iterator[None]:
        """Cancel ``scope`` as soon as no further send can succeed."""
        self._piped_here += (scope,)
        try:
            yield
        finally:
            self._piped_here = tuple(each for each in self._piped_here if each is not scope)

    # --- opening

    async def _open(self) -> bool:
        """Make the connection. This drives ``opened``.

        Returns True if the last thing it did was to check for a pending cancellation.
        """
        loop = here()
        if self._loop_is_closed():
            await self._forget_dead_tasks()
            if self._opened.settled:
                return False
        self._home = loop.home
        goes_on = loop.may_go_on(0)
        if not goes_on:
            # A full checkpoint would let a later task enter the queue for a slot first.
            await checkpoint_if_cancelled()
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
                # Closed, aborted or disowned meanwhile. Nothing else will discard it.
                await self._opener.discard()
            raise
        finally:
            self._dialling = None
            if self._dial_over is not None:
                wake(self._dial_over)
        if made is None:  # the attempt has failed, or close() cancelled it
            await self._opener.discard()
            await checkpoint()
            return True
        self._transport, self._info = made
        await self._tell(Event.DIALLED)
        if not goes_on:
            await checkpoint()
        return at_once is not None or not goes_on

    async def _await_connection(self, given_up: Event) -> None:
        """Wait for the connection, in a call that has permission already.

        ``given_up`` is the event to report if the connection fails or the call is cancelled.
        """
        try:
            await self.opened
        except BaseException:
            await self._tell(given_up)
            raise

    async def _begin_outbound(self, verdict: Verdict | None, event: Event, doing: str) -> bool:
        """Get the connection for a call with this verdict; return False if it has nothing to do.

        :raises BaseException: the call is refused, or the connection cannot be made
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
            verdict = self._ask(event)  # our side was ended meanwhile: ask for the reason
        await checkpoint()
        raise self._refusal(verdict, doing)

    # --- receiving

    @overload
    async def receive(self, max_bytes: int) -> bytes: ...

    @overload
    async def receive(self, max_bytes: int, into: memoryview) -> int: ...

    async def receive(self, max_bytes: int, into: memoryview | None = None) -> bytes | int:
        """Receive up to ``max_bytes`` bytes; with ``into``, of that size, receive into it."""
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
                begun = self._transport.start_receive(max_bytes, into)
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
        """Receive about ``amount`` bytes by ``take``, which may read from the transport often.

        ``take`` leaves in ``_kept`` the data that it read and does not return.
        """
        await self._begin_receiving()
        try:
            if self._kept or not amount:
                await self._pass(amount)
            value = await take()
            self._check_turn()  # if another task has ended this receive, the data was discarded
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
        """Be a checkpoint before a call takes about ``amount`` bytes of the kept data."""
        if not self._transport.may_go_on(min(amount, DEFAULT_MAX_BYTES)):
            await checkpoint()
            self._check_turn()

    def _check_turn(self) -> None:
        """Raise ``ClosedResourceError`` if another task has ended the receive in flight."""
        if self._state.inbound is not Inbound.RECEIVING:
            raise anyio.ClosedResourceError

    async def _receive_over(self, exc: Exception) -> Verdict | None:
        """Report the error that ended a receive; return the verdict to raise.

        None means that the state gives the verdict. If data is kept, the peer's end is not
        reported yet: the next receive returns the data, and the one after it meets the same end in
        the transport. A broken connection is reported at once; its data can still be received.
        """
        ended = isinstance(exc, anyio.EndOfStream)
        receiving = self._state.inbound is Inbound.RECEIVING  # no other task has ended it
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
        """Raise the error that ended a receive. ``verdict`` is that of :meth:`_receive_over`."""
        await checkpoint()  # if this is cancelled, the state keeps the error for a later call
        if self._state.inbound not in _OPEN_INBOUND:
            verdict = None  # the socket was closed meanwhile, and the kept data was discarded
        raise self._refusal(verdict or self._ask(Event.RECEIVE), "receiving from")

    def is_readable(self) -> bool:
        """Whether a receive would return or raise without waiting; False if unknown."""
        verdict = step(self._state, Event.RECEIVE).verdict
        if verdict is Verdict.PROCEED:
            return bool(self._kept) or self._transport.is_readable()
        return verdict is not Verdict.OPEN_FIRST

    async def _begin_receiving(self) -> None:
        """Get permission and the connection for a receive, or raise the error that refuses it."""
        verdict = self._ask(Event.RECEIVE)
        if verdict is Verdict.BUSY:
            await self._forget_dead_tasks()
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
        """Stop receiving."""
        if self._loop_is_closed():
            await self._forget_dead_tasks()
        await self._tell(Event.CANCEL)
        await checkpoint()

    # --- sending

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        if type(item) is not bytes:
            item = view_of(item)
        after = self._state.sending
        if after is None or self._hung_up:
            verdict = self._ask(Event.SEND)
            if verdict is Verdict.BUSY:
                await self._forget_dead_tasks()
                verdict = self._ask(Event.SEND)
            await self._begin_outbound(verdict, Event.SEND, "sending to")
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
        """End our side; receiving goes on."""
        await checkpoint_if_cancelled()
        if self._loop_is_closed():
            await self._forget_dead_tasks()
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
            # Report this before any other task runs, because the peer may already see our end.
            await self._tell(Event.END_DONE)
            await cancel_shielded_checkpoint()
            return
        raise await self._why_lost(lost, Event.END, "ending")

    async def _why_lost(self, lost: BrokenError, event: Event, doing: str) -> BaseException:
        """The exception of a send, or of an end of our side, that met a broken connection."""
        await checkpoint()
        if lost is self._error:  # it takes precedence over a close() that waited for this call
            return fresh(lost)
        return self._refusal(self._ask(event), doing)

    async def _lost_sending(self, error: BrokenError) -> None:
        if self._state.outbound not in _IN_FLIGHT:
            return  # another task closed or dropped the transport, and has reported it
        # The peer may have sent its reason before it hung up. A receive can still get that data.
        try:
            # A receive in flight will find out by itself, and it alone may take the data.
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
        """End our side after a send in flight; do nothing if it has ended or failed already."""
        waited = False
        if self._loop_is_closed():
            await self._forget_dead_tasks()
        try:
            while (verdict := self._ask(Event.END_LAST)) is Verdict.WAIT:
                waited = True
                await self._change()
            if verdict is Verdict.BROKEN:
                await self.abort(None)  # a regular end must not follow an incomplete message
            elif await self._begin_outbound(verdict, Event.END_LAST, "ending"):
                await self._end()
        except anyio.get_cancelled_exc_class():
            await self._tell(Event.ABORT, BrokenError("ending our side was cancelled"))
            raise
        await checkpoint()
        if waited and self._error is not None and self._state.outbound is not Outbound.ENDED:
            raise fresh(self._broken())  # the connection broke while this call waited

    async def abort(self, reason: object) -> None:
        why = f": {text_of(reason)}" if reason is not None else ""
        error = BrokenError(f"the connection was aborted on our side{why}")
        if isinstance(reason, BaseException):
            error.__cause__ = fresh(reason)
        if self._loop_is_closed():
            await self._forget_dead_tasks()
        await self._tell(Event.ABORT, error)
        await checkpoint()

    # --- ending

    async def close(self) -> None:
        try:
            if self._loop_is_closed():
                await self._forget_dead_tasks()
            await self._tell(Event.CLOSE)
            if self._state.link is Link.FLUSHING:
                await self._flush()
            while self._state.link in (Link.CLOSING, Link.LINGERING):
                if self._state.link is Link.LINGERING:
                    await self._tell(Event.CLOSE)
                else:
                    await self._change()  # another task is closing the transport
            await self.gone()
            transport = self.transport
            if transport is None or not transport.may_go_on(0):
                await checkpoint()
        except BaseException:
            why = "close() was cancelled while a send was in flight, which was cut short"
            await self._tell(Event.FORCE, None if self.transport is None else BrokenError(why))
            raise

    async def gone(self) -> None:
        """Wait until an attempt to connect that was given up has ended."""
        if self._state.dial is Dial.FAILED:
            if self._dialling is not None:
                assert self._dial_over is not None
                await self._dial_over.wait()
            await self._opener.gone()

    async def _flush(self) -> None:
        """Wait for a send in flight, then close the transport."""
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
        """Wait until the state changes, and discard the data that arrives meanwhile.

        Otherwise there could be a deadlock: a peer that cannot send may not read either, and then
        our send cannot finish.
        """
        state = self._state
        while self._state is state:
            transport = self.transport
            if transport is None or self._closing is not None or not transport.discard():
                await self._change()
            else:
                await self._until_change(transport.wait_arrival)

    async def _until_change(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Call ``wait``, a method of the transport that waits, until the state changes."""
        scope = self._closing = anyio.CancelScope()
        try:
            with suppress(anyio.ClosedResourceError), scope:
                await wait()
        finally:
            if self._closing is scope:  # otherwise another task has begun to wait since
                self._closing = None

    # --- watching

    async def _watch(self) -> None:
        """Watch for the end of the connection, without taking data. This drives ``closed``."""
        if self._loop_is_closed():
            await self._forget_dead_tasks()
        scope = self._watching = anyio.CancelScope()
        try:
            # start_tls() may settle `closed` before the connection is made.
            with scope:
                await self.opened
        except SocketError:
            return  # the failure has settled `closed` too
        finally:
            self._watched(scope)
        self._hung_up = False
        error: Exception | None = None
        while not self._closed.settled:
            state = self._state
            if self._hung_up and state.link is Link.OPEN:
                await self._judge_hangup(state, error)
                if self._state is not state:
                    continue
            scope = self._watching = anyio.CancelScope()
            try:
                with scope:
                    if state.link is Link.OPEN:
                        known = self._hung_up or state.inbound in (Inbound.EOF, Inbound.DISCARDED)
                        error = await self._transport.wait_hangup(after_eof=known)
                        self._hung_up = True
                    elif state.link is Link.LINGERING:
                        # If this fails, the next finish() meets the same error.
                        with suppress(*_BROKEN, anyio.ClosedResourceError):
                            await self._transport.wait_room()
                    else:
                        await anyio.sleep_forever()  # until the state changes
            finally:
                self._watched(scope)
            if self._state.link is Link.LINGERING:
                await self._tell(Event.ROOM)

    def _watched(self, scope: anyio.CancelScope) -> None:
        if self._watching is scope:  # otherwise this task was forgotten
            self._watching = None

    async def _judge_hangup(self, state: State, error: Exception | None) -> None:
        """Report the hang-up of the peer, unless unread data comes before it."""
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
        """Check, without waiting, for an end or a reset that awaiting ``closed`` would notice.

        An end that comes after unread data is not noticed.
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
        """The reset of a connection that was passed on by :meth:`upgrade`; None if none so far."""
        if self.transport is None:
            return None
        _, error = await self.transport.hung_up()
        return None if error is None else broken("waiting for the TLS handshake", error)

    def _is_open(self) -> bool:
        return self._state.link is Link.OPEN and self._state.dial is Dial.DONE

    # --- upgrading

    def upgrade(self) -> Slot | None:
        """Pass the transport on to another connection, and return the slot.

        The other connection holds the slot from now on. It has to call :meth:`surrender` or
        :meth:`disown`.
        """
        _, verdict, effects = step(self._state, Event.UPGRADE)
        if verdict is Verdict.PROCEED and self._kept:
            raise StartTLSError(
                f"start_tls() was called while {len(self._kept)} bytes that came without TLS are "
                "kept and not received yet: receive them first, or close the socket if the peer "
                "should have sent nothing more before TLS"
            )
        self._ask(Event.UPGRADE)
        if verdict is Verdict.FAILED or verdict is Verdict.BROKEN:
            raise self._refusal(verdict, "start_tls")
        if verdict is not Verdict.PROCEED:
            assert verdict is not None
            raise StartTLSError(WHY_NO_UPGRADE[verdict])
        slot, self._slot = self._slot, None
        self._settle_closed(effects, None)
        return slot

    async def surrender(self) -> Transport:
        """Wait for the connection and for a send in flight, and return the transport.

        :raises SocketError: the connection cannot be made, or has broken
        """
        await self.opened
        while self._state.outbound is Outbound.FLUSHING:
            await self._change()
        if self._state.outbound is not Outbound.CLOSED:
            raise fresh(self._broken())
        return self._transport

    async def disown(self, *, aborted: bool) -> None:
        """Close the transport, which was passed on to another connection that will not use it."""
        await self._tell(Event.ABANDON if aborted else Event.DISOWN)

    # --- detaching

    @property
    def held(self) -> int:
        """How many bytes were read from the kernel and are not received yet."""
        transport = self.transport
        return 0 if transport is None else len(self._kept) + transport.held

    def detach(self) -> socket.socket:
        """Return the kernel's socket, which then holds the slot."""
        verdict = step(self._state, Event.DETACH).verdict
        if verdict is Verdict.FAILED or verdict is Verdict.BROKEN:
            raise self._refusal(verdict, "detach")
        if verdict is not Verdict.PROCEED:
            assert verdict is not None
            raise DetachError(WHY_NO_DETACH[verdict])
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
            del error  # breaks the cycle of the error, its traceback and this frame

    # --- dropped

    def close_dropped(self) -> bool:
        """Close the transport, because the socket was collected; return whether it was open.

        This may be called in any thread, and outside of tasks. It does nothing if a send is in
        flight: then the TLS socket of start_tls() was collected while the plain socket still
        sends. The plain socket closes the transport when it is collected itself.
        """
        if self._state.outbound in _IN_FLIGHT:
            return False
        transport = self.transport
        return self._opener.close_dropped() if transport is None else transport.close_dropped()

    def __del__(self) -> None:
        # The TLS socket of start_tls() refers to this one, so it was collected before.
        if self.close_dropped():
            warnings.warn(
                f"unclosed connection to {self._name}: close it, or use it in 'async with'",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
