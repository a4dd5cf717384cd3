"""The life of a socket: states and events as tables, and one step function.

Two rules hold this file together, both taken from h11:

1. Every question about a socket's life is answered here and nowhere else. Code outside asks
   (``step(state, event)``), then does what the answer says. It keeps no flags of its own.
2. Nothing here does I/O, awaits, or knows what a socket is. A state is a value; the same
   state and event always give the same answer.

A state has four facets, each with a small table of its own:

``Dial``      Has the connection been made? Settles the future ``opened``.
``Link``      Is the connection as a whole alive? Settles the future ``closed``.
``Inbound``   What may be received: RFC 9293's receiving half, and who ended it.
``Outbound``  What may be sent: the sending half.

An event first moves each facet by its own table (a missing entry means no change and no output).
Then the first of the ``JOINT`` rules that fits is applied, again and again, until none fits. Only
these rules make one facet depend on another, so they also decide what half-open means.

A step has two outputs besides the next state. The *verdict* answers an event that asks for
permission (``RECEIVE``, ``SEND``, ``END``, ``END_LAST``, ``ABORT``, ``UPGRADE``, ``DETACH``). The
*effects* are what the task that reported the event must do now.

A call is in flight from the moment it has permission, even while it still waits for the
connection to be made. Later events do not distinguish the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple


class _Name(Enum):
    # Members are looked up on every receive and send. Enum's own __hash__ is a Python
    # function; members are singletons, so identity is enough, and several times as fast.
    def __repr__(self) -> str:
        return self.name

    # (Hidden from type checkers, which would report an ambiguous override.)
    if not TYPE_CHECKING:
        __hash__ = object.__hash__


class Dial(_Name):
    IDLE = auto()  #: no task is making the connection: none has begun, or it was cancelled
    RUNNING = auto()  #: a task is making it
    DONE = auto()
    FAILED = auto()  #: it could not be made, or was given up


class Link(_Name):
    OPEN = auto()  #: neither ended nor broken (made or not: see Dial)
    FLUSHING = auto()  #: close() was called; what was already handed to send goes out first
    CLOSING = auto()  #: a task is closing the transport, and may wait until the peer has it all
    LINGERING = auto()  #: both directions have ended, but the peer does not have it all yet
    CLOSED = auto()
    RESET = auto()  #: broken; there may be unread data to receive
    UPGRADED = auto()  #: start_tls() took the connection over
    DETACHED = auto()  #: detach() gave the kernel's socket away


class Inbound(_Name):
    OPEN = auto()
    RECEIVING = auto()  #: a receive is in flight
    EOF = auto()  #: the peer has ended, and everything before that was read
    CANCELLED = auto()  #: we stopped reading
    DISCARDED = auto()  #: we stopped reading, and the peer has ended
    BROKEN = auto()
    CLOSED = auto()


class Outbound(_Name):
    OPEN = auto()
    SENDING = auto()  #: a send is in flight
    LAST = auto()  #: a send is in flight, and writable.aclose() waits to end our side after it
    DUE = auto()  #: that send is over, and nothing but our end may follow it
    ENDING = auto()  #: our end is on its way
    ENDED = auto()
    FLUSHING = auto()  #: a send or end is in flight, and nothing may follow it
    TORN = auto()  #: a send was cut short: the peer holds a piece of a message
    BROKEN = auto()
    CLOSED = auto()


class Event(_Name):
    # the connection is being made
    DIAL = auto()  #: a task begins to make it
    DIALLED = auto()
    DIAL_CANCELLED = auto()  #: the task was cancelled; its attempt is torn down
    DIAL_FAILED = auto()
    # reading
    RECEIVE = auto()  #: may I?
    RECEIVE_DONE = auto()  #: with data, or cancelled with nothing taken
    PEER_EOF = auto()  #: the peer has ended and nothing is left to read
    CANCEL = auto()  #: readable.aclose()
    # writing
    SEND = auto()  #: may I?
    SEND_DONE = auto()  #: all of it, or nothing of it
    SEND_TORN = auto()  #: a part of it (or of our end)
    END = auto()  #: may I? send_eof()
    END_LAST = auto()  #: may I, once what is in flight is done? writable.aclose()
    END_DONE = auto()
    END_UNDONE = auto()  #: cancelled before anything of our end went out
    ABORT = auto()  #: writable.abort()
    # the whole connection
    RESET = auto()  #: broken, with nothing left to read
    RESET_UNREAD = auto()  #: broken for sending; there is more to read (data, or an end)
    LOST = auto()  #: broken; what was read ahead is left, and needs no transport
    CLOSE = auto()  #: close()
    FLUSHED = auto()  #: close() has waited for what was in flight
    SHUT = auto()  #: the transport is closed
    CROWDED = auto()  #: it is not: there is no room, or the peer has not acknowledged everything
    ROOM = auto()  #: there may be room now, or everything may be acknowledged: try again
    FORCE = auto()  #: close() was cancelled: wait for nothing
    LATE = auto()  #: close() has waited for close_timeout without any progress
    UPGRADE = auto()  #: may I? start_tls()
    DISOWN = auto()  #: the TLS socket that start_tls() returned will never take over
    ABANDON = auto()  #: the same, because the TLS socket was aborted
    DETACH = auto()  #: may I? detach()


class Verdict(_Name):
    PROCEED = auto()
    OPEN_FIRST = auto()  #: permitted, but make the connection first
    WAIT = auto()  #: something is in flight: ask again when the state has moved
    NOTHING_TO_DO = auto()
    BUSY = auto()
    AT_EOF = auto()
    CLOSED = auto()
    BROKEN = auto()
    FAILED = auto()  #: raise what `opened` was rejected with
    # why start_tls() or detach() is refused
    NOT_STARTTLS = auto()
    PENDING = auto()
    UPGRADED_ALREADY = auto()
    DETACHED_ALREADY = auto()
    RECEIVE_IN_FLIGHT = auto()
    SEND_IN_FLIGHT = auto()
    ENDED = auto()


class Effect(_Name):
    RESOLVE_OPENED = auto()
    REJECT_OPENED = auto()
    RESOLVE_CLOSED = auto()
    REJECT_CLOSED = auto()
    CANCEL_DIAL = auto()
    INTERRUPT_RECEIVE = auto()  #: make the receive in flight return to ask again
    DISCARD = auto()  #: drop the connection that was made too late
    ACLOSE = auto()  #: close the transport, waiting for the peer; then report SHUT, RESET or LATE
    FINISH = auto()  #: the same, without waiting; then report SHUT, CROWDED or RESET
    LET_GO = auto()  #: close it now, and leave the rest to the system; then report SHUT or RESET
    DROP = auto()  #: drop the transport at once; whatever is in flight fails


@dataclass(frozen=True, eq=False)  # interned: identity is equality
class State:
    """Where a socket is in its life. Made by :func:`initial` and :func:`step` only."""

    dial: Dial
    link: Link
    inbound: Inbound
    outbound: Outbound
    half_open: bool  #: allow_half_open
    starttls: bool  #: secure_transport is "starttls"
    #: What :func:`step` has answered before.
    steps: dict[Event, Step] = field(default_factory=dict, init=False, repr=False)
    # The plain steps from here, computed in advance: nearly every receive and send is one. None:
    # the step is not plain, so call :func:`step`.
    receiving: State | None = field(default=None, init=False, repr=False)  #: RECEIVE
    received: State | None = field(default=None, init=False, repr=False)  #: RECEIVE_DONE
    sending: State | None = field(default=None, init=False, repr=False)  #: SEND
    sent: State | None = field(default=None, init=False, repr=False)  #: SEND_DONE


class Step(NamedTuple):
    state: State
    verdict: Verdict | None
    effects: tuple[Effect, ...]


_D, _L, _I, _O, _E, _V, _F = Dial, Link, Inbound, Outbound, Event, Verdict, Effect

# facet -> state -> event -> next state, or (next state, verdict or effect ...)
TABLES: dict[str, dict[Any, dict[Event, Any]]] = {
    "dial": {
        _D.IDLE: {
            _E.DIAL: _D.RUNNING,
            _E.DISOWN: (_D.FAILED, _F.REJECT_OPENED),
            _E.ABANDON: (_D.FAILED, _F.REJECT_OPENED),
        },
        _D.RUNNING: {
            _E.DISOWN: (_D.FAILED, _F.CANCEL_DIAL, _F.REJECT_OPENED),
            _E.ABANDON: (_D.FAILED, _F.CANCEL_DIAL, _F.REJECT_OPENED),
            _E.DIALLED: (_D.DONE, _F.RESOLVE_OPENED),
            _E.DIAL_CANCELLED: _D.IDLE,
            _E.DIAL_FAILED: (_D.FAILED, _F.REJECT_OPENED),
        },
        _D.DONE: {_E.DISOWN: (_D.DONE, _F.LET_GO), _E.ABANDON: (_D.DONE, _F.DROP)},
        # close() came while the attempt was succeeding.
        _D.FAILED: {_E.DIALLED: (_D.FAILED, _F.DISCARD)},
    },
    "link": {
        _L.OPEN: {
            _E.RESET: (_L.RESET, _F.REJECT_CLOSED, _F.DROP),
            _E.RESET_UNREAD: (_L.RESET, _F.REJECT_CLOSED),
            _E.LOST: (_L.RESET, _F.REJECT_CLOSED, _F.DROP),
            _E.ABORT: (_L.RESET, _F.REJECT_CLOSED, _F.DROP),
            _E.CLOSE: _L.FLUSHING,
            # `closed` resolves: this socket's part is over. The TLS socket has its own.
            _E.UPGRADE: (_L.UPGRADED, _F.RESOLVE_CLOSED),
            # `closed` resolves here too: the new owner of the kernel's socket closes that.
            _E.DETACH: (_L.DETACHED, _F.RESOLVE_CLOSED),
        },
        _L.FLUSHING: {
            # What close() promised to flush is lost.
            _E.RESET: (_L.CLOSED, _F.REJECT_CLOSED, _F.DROP),
            _E.RESET_UNREAD: (_L.CLOSED, _F.REJECT_CLOSED, _F.DROP),
            _E.ABORT: (_L.CLOSED, _F.REJECT_CLOSED, _F.DROP),
            _E.FLUSHED: (_L.CLOSING, _F.ACLOSE),
            _E.FORCE: (_L.CLOSING, _F.LET_GO),
        },
        _L.CLOSING: {
            _E.SHUT: (_L.CLOSED, _F.RESOLVE_CLOSED),
            _E.CROWDED: _L.LINGERING,
            # Some of what was sent is lost.
            _E.RESET: (_L.CLOSED, _F.REJECT_CLOSED, _F.DROP),
            _E.FORCE: (_L.CLOSING, _F.LET_GO),
            _E.LATE: (_L.CLOSED, _F.REJECT_CLOSED, _F.LET_GO),
        },
        _L.LINGERING: {
            _E.ROOM: (_L.CLOSING, _F.FINISH),
            _E.CLOSE: (_L.CLOSING, _F.ACLOSE),
        },
        # The unread data was read to its end, or will not be read.
        _L.RESET: dict.fromkeys(
            (_E.RESET, _E.LOST, _E.PEER_EOF, _E.CANCEL, _E.CLOSE), (_L.RESET, _F.DROP)
        ),
    },
    "inbound": {
        _I.OPEN: {
            _E.RECEIVE: (_I.RECEIVING, _V.PROCEED),
            _E.PEER_EOF: _I.EOF,
            _E.CANCEL: _I.CANCELLED,
            _E.RESET: _I.BROKEN,
            _E.ABORT: _I.BROKEN,
            _E.CLOSE: _I.CLOSED,
            _E.UPGRADE: _I.CLOSED,
            _E.DETACH: _I.CLOSED,
        },
        _I.RECEIVING: {
            _E.RECEIVE: (_I.RECEIVING, _V.BUSY),
            _E.RECEIVE_DONE: _I.OPEN,
            _E.PEER_EOF: _I.EOF,
            _E.CANCEL: (_I.CANCELLED, _F.INTERRUPT_RECEIVE),
            _E.RESET: (_I.BROKEN, _F.INTERRUPT_RECEIVE),
            _E.ABORT: (_I.BROKEN, _F.INTERRUPT_RECEIVE),
            _E.CLOSE: (_I.CLOSED, _F.INTERRUPT_RECEIVE),
        },
        _I.EOF: {
            _E.RECEIVE: (_I.EOF, _V.AT_EOF),
            _E.CANCEL: _I.DISCARDED,
            _E.RESET_UNREAD: (_I.EOF, _F.DROP),
            _E.CLOSE: _I.CLOSED,
            _E.DETACH: _I.CLOSED,
        },
        _I.CANCELLED: {
            _E.RECEIVE: (_I.CANCELLED, _V.CLOSED),
            _E.PEER_EOF: _I.DISCARDED,
            _E.RESET_UNREAD: (_I.CANCELLED, _F.DROP),
            _E.CLOSE: _I.CLOSED,
            _E.DETACH: _I.CLOSED,
        },
        _I.DISCARDED: {
            _E.RECEIVE: (_I.DISCARDED, _V.CLOSED),
            _E.RESET_UNREAD: (_I.DISCARDED, _F.DROP),
            _E.CLOSE: _I.CLOSED,
            _E.DETACH: _I.CLOSED,
        },
        _I.BROKEN: {
            _E.RECEIVE: (_I.BROKEN, _V.BROKEN),
            _E.CANCEL: _I.CLOSED,
            _E.CLOSE: _I.CLOSED,
        },
        _I.CLOSED: {_E.RECEIVE: (_I.CLOSED, _V.CLOSED)},
    },
    "outbound": {
        _O.OPEN: {
            _E.SEND: (_O.SENDING, _V.PROCEED),
            _E.END: (_O.ENDING, _V.PROCEED),
            _E.END_LAST: (_O.ENDING, _V.PROCEED),
            _E.RESET: _O.BROKEN,
            _E.RESET_UNREAD: _O.BROKEN,
            _E.LOST: _O.BROKEN,
            _E.ABORT: _O.BROKEN,
            _E.CLOSE: _O.CLOSED,
            _E.UPGRADE: _O.CLOSED,
            _E.DETACH: _O.CLOSED,
        },
        _O.SENDING: {
            _E.SEND: (_O.SENDING, _V.BUSY),
            _E.END: (_O.SENDING, _V.BUSY),
            _E.END_LAST: (_O.LAST, _V.WAIT),
            _E.SEND_DONE: _O.OPEN,
            _E.SEND_TORN: _O.TORN,
            _E.RESET: _O.BROKEN,
            _E.RESET_UNREAD: _O.BROKEN,
            _E.LOST: _O.BROKEN,
            _E.ABORT: _O.BROKEN,
            _E.CLOSE: _O.FLUSHING,
            _E.UPGRADE: _O.FLUSHING,
        },
        _O.LAST: {
            _E.SEND: (_O.LAST, _V.CLOSED),
            _E.END: (_O.LAST, _V.BUSY),
            _E.END_LAST: (_O.LAST, _V.WAIT),
            _E.SEND_DONE: _O.DUE,
            _E.SEND_TORN: _O.TORN,
            _E.RESET: _O.BROKEN,
            _E.RESET_UNREAD: _O.BROKEN,
            _E.LOST: _O.BROKEN,
            _E.ABORT: _O.BROKEN,
            _E.CLOSE: _O.FLUSHING,
        },
        _O.DUE: {
            _E.SEND: (_O.DUE, _V.CLOSED),
            _E.END: (_O.ENDING, _V.PROCEED),
            _E.END_LAST: (_O.ENDING, _V.PROCEED),
            _E.RESET: _O.BROKEN,
            _E.RESET_UNREAD: _O.BROKEN,
            _E.LOST: _O.BROKEN,
            _E.ABORT: _O.BROKEN,
            _E.CLOSE: _O.CLOSED,
        },
        _O.ENDING: {
            _E.SEND: (_O.ENDING, _V.BUSY),
            _E.END: (_O.ENDING, _V.BUSY),
            _E.END_LAST: (_O.ENDING, _V.WAIT),
            _E.END_DONE: _O.ENDED,
            _E.END_UNDONE: _O.OPEN,
            _E.SEND_TORN: _O.TORN,
            _E.RESET: _O.BROKEN,
            _E.RESET_UNREAD: _O.BROKEN,
            _E.LOST: _O.BROKEN,
            _E.ABORT: _O.BROKEN,
            _E.CLOSE: _O.FLUSHING,
        },
        _O.ENDED: {
            _E.SEND: (_O.ENDED, _V.CLOSED),
            _E.END: (_O.ENDED, _V.NOTHING_TO_DO),
            _E.END_LAST: (_O.ENDED, _V.NOTHING_TO_DO),
            _E.CLOSE: _O.CLOSED,
            _E.DETACH: _O.CLOSED,
        },
        _O.FLUSHING: {
            _E.SEND: (_O.FLUSHING, _V.CLOSED),
            _E.END: (_O.FLUSHING, _V.CLOSED),
            _E.END_LAST: (_O.FLUSHING, _V.WAIT),
            _E.SEND_DONE: _O.CLOSED,
            _E.END_DONE: _O.CLOSED,
            _E.END_UNDONE: _O.CLOSED,
            _E.SEND_TORN: _O.TORN,
            _E.RESET: _O.BROKEN,
            _E.RESET_UNREAD: _O.BROKEN,
            _E.ABORT: _O.BROKEN,
            _E.LATE: _O.TORN,  # it is cut short
            _E.DISOWN: (_O.BROKEN, _F.DROP),
            _E.ABANDON: (_O.BROKEN, _F.DROP),
        },
        _O.TORN: {
            _E.SEND: (_O.TORN, _V.BROKEN),
            _E.END: (_O.TORN, _V.BROKEN),
            _E.END_LAST: (_O.TORN, _V.BROKEN),
            _E.RESET: _O.BROKEN,
            _E.RESET_UNREAD: _O.BROKEN,
            _E.LOST: _O.BROKEN,
            _E.ABORT: _O.BROKEN,
            _E.DISOWN: (_O.BROKEN, _F.DROP),
            _E.ABANDON: (_O.BROKEN, _F.DROP),
        },
        _O.BROKEN: {
            _E.SEND: (_O.BROKEN, _V.BROKEN),
            _E.END: (_O.BROKEN, _V.BROKEN),
            _E.END_LAST: (_O.BROKEN, _V.NOTHING_TO_DO),
            _E.CLOSE: _O.CLOSED,
        },
        _O.CLOSED: {
            _E.SEND: (_O.CLOSED, _V.CLOSED),
            _E.END: (_O.CLOSED, _V.CLOSED),
            _E.END_LAST: (_O.CLOSED, _V.NOTHING_TO_DO),
        },
    },
}


class Rule(NamedTuple):
    """If each facet in ``when`` has one of the values listed, set the facets in ``then``."""

    when: dict[str, tuple[object, ...]]
    then: dict[str, object]
    effects: tuple[Effect, ...]


JOINT: tuple[Rule, ...] = (
    # A connection that cannot be made is over.
    Rule(
        {"link": (_L.OPEN, _L.FLUSHING), "dial": (_D.FAILED,)},
        {"link": _L.CLOSED},
        (_F.REJECT_CLOSED,),
    ),
    # close() or abort() before the connection was made: no dial (the WinterTC draft). But a send
    # or an end that waits for the connection is in flight, which close() waits for.
    Rule(
        {
            "link": (_L.FLUSHING, _L.CLOSING),
            "dial": (_D.RUNNING,),
            "outbound": (_O.CLOSED, _O.TORN),
        },
        {"link": _L.CLOSED, "dial": _D.FAILED, "outbound": _O.CLOSED},
        (_F.CANCEL_DIAL, _F.REJECT_OPENED, _F.RESOLVE_CLOSED),
    ),
    Rule(
        {
            "link": (_L.FLUSHING, _L.CLOSING),
            "dial": (_D.IDLE,),
            "outbound": (_O.CLOSED, _O.TORN),
        },
        {"link": _L.CLOSED, "dial": _D.FAILED, "outbound": _O.CLOSED},
        (_F.REJECT_OPENED, _F.RESOLVE_CLOSED, _F.LET_GO),
    ),
    Rule(
        {"link": (_L.RESET,), "dial": (_D.RUNNING,)},
        {"link": _L.CLOSED, "dial": _D.FAILED},
        (_F.CANCEL_DIAL, _F.REJECT_OPENED),
    ),
    Rule(
        {"link": (_L.RESET,), "dial": (_D.IDLE,)},
        {"link": _L.CLOSED, "dial": _D.FAILED},
        (_F.REJECT_OPENED,),
    ),
    # close() has stopped waiting for that send or end.
    Rule(
        {"link": (_L.CLOSED,), "dial": (_D.RUNNING,)},
        {"dial": _D.FAILED},
        (_F.CANCEL_DIAL, _F.REJECT_OPENED),
    ),
    Rule(
        {"link": (_L.CLOSED,), "dial": (_D.IDLE,)},
        {"dial": _D.FAILED},
        (_F.REJECT_OPENED,),
    ),
    # close() was cancelled and does not wait for a send or end in flight: that is cut short.
    # (After start_tls() it is not cut short: the TLS socket waits for it.)
    Rule(
        {"link": (_L.CLOSING,), "outbound": (_O.FLUSHING,)},
        {"outbound": _O.TORN},
        (),
    ),
    # close() after a send was cut short: after a regular end, the peer would take the incomplete
    # message for complete.
    Rule(
        {"link": (_L.FLUSHING, _L.CLOSING), "outbound": (_O.TORN,)},
        {"link": _L.CLOSED, "outbound": _O.CLOSED},
        (_F.REJECT_CLOSED, _F.DROP),
    ),
    # A reset while close() is flushing: later calls find the socket closed.
    Rule(
        {"link": (_L.CLOSED,), "inbound": (_I.CLOSED,), "outbound": (_O.BROKEN,)},
        {"outbound": _O.CLOSED},
        (),
    ),
    # allow_half_open=False: the peer's end also ends our side, as soon as no send is in flight.
    Rule(
        {
            "link": (_L.OPEN,),
            "half_open": (False,),
            "inbound": (_I.EOF, _I.DISCARDED),
            "outbound": (_O.OPEN, _O.DUE),
        },
        {"link": _L.CLOSING, "outbound": _O.ENDED},
        (_F.FINISH,),
    ),
    Rule(
        {
            "link": (_L.OPEN,),
            "half_open": (False,),
            "inbound": (_I.EOF, _I.DISCARDED),
            "outbound": (_O.TORN,),
        },
        {"link": _L.RESET, "outbound": _O.BROKEN},
        (_F.REJECT_CLOSED, _F.DROP),
    ),
    # The peer has ended, and so have we.
    Rule(
        {
            "link": (_L.OPEN,),
            "dial": (_D.DONE,),
            "inbound": (_I.EOF, _I.DISCARDED),
            "outbound": (_O.ENDED,),
        },
        {"link": _L.CLOSING},
        (_F.FINISH,),
    ),
    # We have ended both directions. The peer may still send, as after close().
    Rule(
        {
            "link": (_L.OPEN,),
            "dial": (_D.DONE,),
            "inbound": (_I.CANCELLED,),
            "outbound": (_O.ENDED,),
        },
        {"link": _L.CLOSING},
        (_F.ACLOSE,),
    ),
)

#: For each event, the conditions under which it is refused and changes nothing. The first one that
#: fits gives the verdict.
REFUSALS: dict[Event, tuple[tuple[dict[str, tuple[object, ...]], Verdict], ...]] = {
    # WHATWG Streams: aborting a stream that has ended or failed already does nothing.
    _E.ABORT: (
        ({"outbound": (_O.ENDED, _O.BROKEN, _O.CLOSED)}, _V.NOTHING_TO_DO),
        ({"link": (_L.UPGRADED,)}, _V.NOTHING_TO_DO),
    ),
    _E.UPGRADE: (
        ({"starttls": (False,)}, _V.NOT_STARTTLS),
        ({"link": (_L.UPGRADED,)}, _V.UPGRADED_ALREADY),
        ({"link": (_L.DETACHED,)}, _V.DETACHED_ALREADY),
        ({"dial": (_D.FAILED,)}, _V.FAILED),
        ({"link": (_L.RESET,)}, _V.BROKEN),
        ({"link": (_L.FLUSHING, _L.CLOSING, _L.LINGERING, _L.CLOSED)}, _V.CLOSED),
        ({"inbound": (_I.RECEIVING,)}, _V.RECEIVE_IN_FLIGHT),
        ({"inbound": (_I.EOF, _I.CANCELLED, _I.DISCARDED)}, _V.ENDED),
        ({"outbound": (_O.LAST, _O.DUE, _O.ENDING, _O.ENDED)}, _V.ENDED),
        ({"outbound": (_O.TORN,)}, _V.BROKEN),
    ),
    _E.DETACH: (
        ({"link": (_L.UPGRADED,)}, _V.UPGRADED_ALREADY),
        ({"link": (_L.DETACHED,)}, _V.DETACHED_ALREADY),
        ({"dial": (_D.FAILED,)}, _V.FAILED),
        ({"link": (_L.RESET,)}, _V.BROKEN),
        ({"link": (_L.FLUSHING, _L.CLOSING, _L.LINGERING, _L.CLOSED)}, _V.CLOSED),
        ({"dial": (_D.IDLE, _D.RUNNING)}, _V.PENDING),
        ({"inbound": (_I.RECEIVING,)}, _V.RECEIVE_IN_FLIGHT),
        ({"outbound": (_O.SENDING, _O.LAST, _O.DUE, _O.ENDING)}, _V.SEND_IN_FLIGHT),
        ({"outbound": (_O.TORN,)}, _V.BROKEN),
    ),
}

#: Events that need the connection: before it is made, they get OPEN_FIRST, not PROCEED.
_NEED_CONNECTION = frozenset({Event.RECEIVE, Event.SEND, Event.END, Event.END_LAST})
_FACETS = ("dial", "link", "inbound", "outbound")


@cache
def initial(*, half_open: bool, starttls: bool) -> State:
    """The state of a socket that ``connect()`` has just returned."""
    return _intern(State(_D.IDLE, _L.OPEN, _I.OPEN, _O.OPEN, half_open, starttls))


def step(state: State, event: Event) -> Step:
    """Return what ``event`` does in ``state``. Every pair has one answer, which is remembered."""
    try:
        return state.steps[event]
    except KeyError:
        answer = state.steps[event] = _step(state, event)
        return answer


#: A plain step moves a direction between these two, and nothing else.
_PLAIN = ({_I.OPEN, _I.RECEIVING}, {_O.OPEN, _O.SENDING})
_PLAIN_STEPS = {
    "receiving": _E.RECEIVE,
    "received": _E.RECEIVE_DONE,
    "sending": _E.SEND,
    "sent": _E.SEND_DONE,
}


def _plain(state: State, event: Event) -> State | None:
    """The next state, if ``event`` is permitted, has no effects, and need not wake any task.

    Tasks wait for the end of a direction. A plain step leaves the direction open, so no waiting
    task has to know of it.
    """
    after, verdict, effects = step(state, event)
    if effects or verdict not in (None, Verdict.PROCEED):
        return None
    pairs = [{getattr(state, facet), getattr(after, facet)} for facet in _FACETS]
    return after if all(pair in _PLAIN for pair in pairs if len(pair) > 1) else None


_states: dict[tuple[object, ...], State] = {}


def _intern(state: State) -> State:
    key = (*(getattr(state, facet) for facet in _FACETS), state.half_open, state.starttls)
    found = _states.setdefault(key, state)
    if found is state:
        for name, event in _PLAIN_STEPS.items():
            object.__setattr__(state, name, _plain(state, event))  # frozen for everybody else
    return found


def _fits(state: State, when: dict[str, tuple[object, ...]]) -> bool:
    return all(getattr(state, facet) in values for facet, values in when.items())


def _step(state: State, event: Event) -> Step:
    for when, refusal in REFUSALS.get(event, ()):
        if _fits(state, when):
            return Step(state, refusal, ())

    moved: dict[str, Any] = {}
    said: list[Verdict | Effect] = []
    for facet in _FACETS:
        entry = TABLES[facet].get(getattr(state, facet), {}).get(event)
        if entry is not None:
            moved[facet], *words = entry if isinstance(entry, tuple) else (entry,)
            said += words
    verdict = next((word for word in said if isinstance(word, Verdict)), None)
    effects = [word for word in said if isinstance(word, Effect)]

    if event in _NEED_CONNECTION and state.link is not Link.UPGRADED:
        if state.dial is Dial.FAILED and verdict is not Verdict.NOTHING_TO_DO:
            return Step(state, Verdict.FAILED, ())
        if state.dial is not Dial.DONE and verdict is Verdict.PROCEED:
            verdict = Verdict.OPEN_FIRST

    after = replace(state, **moved)
    while rule := next((rule for rule in JOINT if _fits(after, rule.when)), None):
        after = replace(after, **rule.then)  # type: ignore[arg-type]  # facets by name
        effects += rule.effects
    if verdict is None and event in REFUSALS:
        verdict = Verdict.PROCEED
    return Step(_intern(after), verdict, tuple(effects))
