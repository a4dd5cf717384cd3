"""A model of a socket: a second description of the rules of half-open, of ends and of resets.

It follows the promises to users and not the code of the package, so that the two do not share a
mistake. One event happens at a time. After it, each call either has its outcome or waits, and
:meth:`Model.follow` says which.

The model describes Linux's TCP, where data that arrived before a reset can still be read. It does
not say how much of the data a receive returns, and which of several waiting calls is the first to
learn of an event. The simulation tests events at the same moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

#: How a call ends: a word, or for a receive some of these bytes.
Outcome: TypeAlias = bytes | Literal["ok", "eof", "closed", "broken", "busy", "cancelled"]

#: receive, send, send_eof, writable.aclose ("end"), readable.aclose ("stop"), writable.abort,
#: close, and waiting for ``closed`` ("watch").
Kind: TypeAlias = Literal["receive", "send", "send_eof", "end", "stop", "abort", "close", "watch"]

#: A send of this many bytes waits for the peer to read. All others are small and never wait.
BIG = 1 << 20


@dataclass(frozen=True)
class Call:
    kind: Kind
    max_bytes: int = 0  # receive
    data: bytes = b""  # send


@dataclass
class Model:
    half_open: bool
    tls: bool = False
    wrapped: bool = False  #: over a stream that can be received from, sent to, ended and closed

    # What the peer did, even if we do not know it yet.
    inbox: bytes = b""  #: has arrived and was not received yet
    fin: bool = False  #: after that, the peer's end
    reset: bool = False  #: the connection is gone
    peer: Literal["open", "ended", "gone"] = "open"

    # What the peer has to see.
    sent: bytes = field(default=b"", repr=False)
    #: A part of this may follow, from its beginning.
    piece: bytes = field(default=b"", repr=False)
    then: Literal["more", "end", "reset", "dropped"] = "more"
    taken: int = 0  #: how much of it the peer has read

    # The state of our side.
    made: bool = False  #: the connection
    failed: Literal["closed", "broken"] | None = None  #: the reason why it will not be made
    noticed: bool = False  #: we know of the peer's end
    in_pieces: bool = False  #: a receive leaves some of what has arrived: see outcomes_of()
    stopped: bool = False  #: readable.aclose() was called
    closed: bool = False  #: close() was called
    dropped: bool = False  #: by us, with a reset
    unacknowledged: bool = False  #: the peer's kernel has not acknowledged all data yet
    writing: Literal["open", "ended", "torn", "broken"] = "open"
    over: Literal["resolved", "rejected"] | None = None  #: the future ``closed``

    waiting: dict[int, Call] = field(default_factory=dict)  #: calls by number
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def copy(self) -> Model:
        return replace(self, waiting={**self.waiting}, outcomes={**self.outcomes})

    # --- calling

    def call(self, number: int, call: Call) -> None:
        outcome = self.begin(call) or self.go_on(call)
        if outcome is None:
            self.waiting[number] = call
        else:
            self.outcomes[number] = outcome
        self.follow()

    def call_cancelled(self, number: int, call: Call) -> None:
        """Make a call that is cancelled already. It may end a direction, but does not wait."""
        self.outcomes[number] = "cancelled"
        if call.kind == "end" and not self.made:
            self.abort()
        elif call.kind in ("stop", "abort", "close", "end"):
            self.begin(call)
            self.cut_short(call)
        self.follow()

    def cancel(self, number: int) -> None:
        if number in self.waiting:
            self.outcomes[number] = "cancelled"
            self.cut_short(self.waiting.pop(number))
            self.follow()

    def cut_short(self, call: Call) -> None:
        if call.kind == "send":
            self.writing = "torn"
        elif call.kind == "close" and self.sending:
            self.drop()
            self.over = "rejected"
        elif call.kind == "end" and self.sending:
            self.abort()

    def waits(self, *kinds: Kind) -> bool:
        return any(call.kind in kinds for call in self.waiting.values())

    @property
    def sending(self) -> bool:
        return self.waits("send")

    def begin(self, call: Call) -> Outcome | None:
        """The outcome of the call at once; None if it waits."""
        if call.kind not in ("stop", "abort", "close") and self.failed is None:
            self.made = self.made or not (call.kind == "receive" and self.stopped)
        match call.kind:
            case "receive":
                refusal = self.cannot_receive()
                return "busy" if refusal is None and self.waits("receive") else refusal
            case "send":
                return self.send(call.data)
            case "send_eof":
                return self.send_eof()
            case "stop":
                self.stopped = True
                return "ok"
            case "abort":
                self.abort()
                return "ok"
            case "close":
                self.closed = True
                if not self.made and self.failed is None:
                    self.failed, self.over = "closed", "resolved"
                return None
            case "end":
                return None if self.sending else self.end_gracefully()
            case "watch":
                return None

    def follow(self) -> None:
        """Give each call that waits its outcome, if it has one now."""
        while True:
            self.apply_rules()
            for number, call in self.waiting.items():
                outcome = self.go_on(call)
                if outcome is not None:
                    self.outcomes[number] = outcome
                    del self.waiting[number]
                    break
            else:
                return

    def go_on(self, call: Call) -> Outcome | None:
        match call.kind:
            case "receive":
                return self.receive(call.max_bytes)
            case "send":
                return self.go_on_sending()
            case "end":
                if self.sending:
                    return None
                self.end_gracefully()
                return "ok" if self.writing == "ended" else "broken"
            case "close":
                return "ok" if self.over and not self.sending else None
            case _:
                return self.watch()

    # --- receiving

    def cannot_receive(self) -> Outcome | None:
        if self.failed is not None:
            return self.failed
        if self.closed or self.stopped:
            return "closed"
        return "eof" if self.noticed else None

    def receive(self, max_bytes: int) -> Outcome | None:
        refusal = self.cannot_receive()
        if refusal is not None:
            return refusal
        if self.inbox:
            data = self.inbox[:max_bytes]
            self.inbox = self.inbox[max_bytes:]
            return data
        if self.fin:  # also if a reset came after it: the peer has sent its end
            self.noticed = True
            return "eof"
        if self.reset:
            self.lose()
            return "broken"
        return None

    def received(self, number: int, data: bytes) -> None:
        """Record how much of the available data a receive returned."""
        outcome = self.outcomes[number]
        assert isinstance(outcome, bytes)
        self.outcomes[number] = data
        self.inbox = outcome[len(data) :] + self.inbox
        self.noticed = False  # the peer's end comes after the data that was left

    # --- sending

    def cannot_send(self) -> Outcome | None:
        if self.failed is not None:
            return self.failed
        if self.closed or self.writing == "ended" or self.waits("end"):
            return "closed"
        if self.writing != "open":
            return "broken"
        return "busy" if self.sending else None

    def send(self, data: bytes) -> Outcome | None:
        refusal = self.cannot_send()
        if refusal is not None:
            return refusal
        if not data:
            return "ok"
        if self.peer == "gone" and not self.reset:
            self.reset = True  # the answer to this send, which does not know of it yet
            if len(data) < BIG:
                return "ok"
        if self.reset:
            self.lose()
            return "broken"
        if len(data) < BIG:
            self.sent += data
            return "ok"
        self.piece = data
        return None

    def go_on_sending(self) -> Outcome | None:
        if self.dropped:
            return "closed" if self.over == "resolved" else "broken"
        if self.reset:
            self.lose()
            return "broken"
        return None

    def send_eof(self) -> Outcome:
        if self.writing == "ended" and not self.closed:
            return "ok"
        if self.sending and self.waits("end"):
            return "busy"  # with a call that will end our side
        return self.cannot_send() or self.end_now()

    def end_now(self) -> Outcome:
        if self.reset:
            self.lose()
            return "broken"
        self.end()
        return "ok"

    def end_gracefully(self) -> Outcome:
        if self.failed or self.closed or self.writing in ("ended", "broken"):
            return "ok"
        if self.writing == "torn":  # after a clean end, the incomplete data would look complete
            self.abort()
            return "ok"
        return self.end_now()

    # --- ending

    def apply_rules(self) -> None:
        if self.over or self.sending:
            return
        ends = self.closed or (self.noticed and not self.half_open)
        if ends and self.writing == "torn":
            self.drop()
            self.over = "rejected"
        elif ends:
            self.end()
            self.over = "rejected" if self.unacknowledged and self.reset else "resolved"
        elif (self.noticed or self.stopped) and self.writing == "ended":
            self.over = "resolved"

    def watch(self) -> Outcome | None:
        if self.over is None and not self.closed and not self.wrapped:
            if self.reset:
                self.lose()
            elif self.fin and (
                self.stopped or not (self.inbox or self.in_pieces or self.waits("receive"))
            ):
                self.noticed = True
                self.apply_rules()
        if self.over is None:
            return None
        return "ok" if self.over == "resolved" else "broken"

    def end(self) -> None:
        """End our side: the peer sees the end after everything we sent."""
        self.writing = "ended"
        if self.then == "more":
            self.then = "end"
        if self.tls and self.peer == "gone" and not self.over:
            self.reset = True  # the kernel's answer to close_notify

    def drop(self) -> None:
        """Reset the connection. Nothing can be received any more either."""
        self.dropped = True
        self.writing = "broken"
        self.inbox, self.fin, self.reset = b"", False, True
        if self.then == "more":
            # It is not known how a stream of another kind ends if it is closed by force.
            self.then = "dropped" if self.wrapped else "reset"

    def abort(self) -> None:
        done = self.closed and not self.sending
        if done or self.failed or self.writing in ("ended", "broken"):
            return
        if not self.made:
            self.failed = "broken"
        self.drop()
        self.over = "rejected"

    @property
    def lost_unseen(self) -> bool:
        """Whether the connection was reset and we do not know that yet."""
        return self.reset and (not self.over or self.lingers)

    def lose(self) -> None:
        """We know of the reset now. Data that arrived before it can still be read."""
        if not self.over or self.lingers:
            self.over = "rejected"
        if self.writing != "ended":
            self.writing = "broken"

    # --- the peer

    @property
    def listening(self) -> bool:
        """Whether we would notice what the peer does."""
        return self.made and self.over is None and not self.reset

    def peer_sends(self, data: bytes) -> None:
        if self.listening:
            self.inbox += data

    def peer_ends(self) -> None:
        self.peer = "ended"
        self.fin = self.fin or self.listening

    def peer_resets(self) -> None:
        self.peer = "gone"
        # After both ends no connection is left to reset. But the ends of TLS leave TCP open.
        if self.listening and (self.tls or not (self.fin and self.then == "end")):
            self.reset = True
        if self.lingers:  # the peer may or may not have acknowledged our end before
            self.reset = True

    def peer_closes(self) -> None:
        if self.coming:
            self.peer_resets()  # because data is lost (RFC 1122 4.2.2.13)
        else:
            self.peer_ends()
            self.peer = "gone"

    def peer_takes_all(self) -> None:
        """Read until no more data can come, so that a send that waits can finish."""
        if self.sending and not self.reset:
            number = next(n for n, call in self.waiting.items() if call.kind == "send")
            self.sent += self.piece
            self.piece = b""
            self.outcomes[number] = "ok"
            del self.waiting[number]
        self.taken = len(self.sent)
        self.follow()

    @property
    def coming(self) -> bytes:
        """The most that the peer can still read. All of it except ``piece`` will be there."""
        return (self.sent + self.piece)[self.taken :]

    @property
    def end_waits_for_room(self) -> bool:
        """Whether our end may find no room after a send, without a task that waits for room.

        The peer's end causes our end, which TLS has to send. A task that awaits ``closed`` waits
        for room.
        """
        return self.tls and self.sending and self.noticed and not self.half_open

    # --- what is left

    @property
    def lingers(self) -> bool:
        """Whether both directions have ended, but the closing may not be complete.

        The peer has not acknowledged our end yet. The socket has no task of its own, so the tasks
        that close it or await ``closed`` wait for that.
        """
        return self.over == "resolved" and not self.closed

    @property
    def released(self) -> bool | None:
        """Whether the kernel's socket is closed; None if it may be either.

        A broken connection keeps it as long as a task may still read what arrived before.
        """
        if not self.over:
            return False
        reading = not (self.closed or self.stopped or self.noticed or self.dropped)
        return None if self.lingers or (self.over == "rejected" and reading) else True
