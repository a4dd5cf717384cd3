"""What is known while a history runs: sockets, the ends of their connections, peers, calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio

from anyio_connect import Socket

from .network import Network
from .peer import Peer
from .plan import Plan, Step, Subject
from .tcp import End


@dataclass(eq=False)
class Call:
    """A call that some task makes. Times are numbers that count up."""

    step: Step
    party: Party
    socket: Socket
    tls: bool  #: what it moves goes over TLS
    how: str | None = None  #: "ok", "cancelled", or the name of what it raised; None: it waits
    error: Exception | None = None
    scope: anyio.CancelScope | None = None
    task: Any = None  #: asyncio's
    begun: int | None = None
    over: int | None = None
    cancelled_at: int | None = None
    native: bool = False  #: asyncio's Task.cancel() hit it
    #: It was cancelled while there was nothing for it to do: so it has to be cancelled.
    idle_when_cancelled: bool = False
    received: int = 0
    told: int = 0  #: how much its socket had received in all when it ended
    kept: int = 0  #: how much had come besides by then, and was kept for the next receive
    sure_at: float | None = None  #: is_readable() said then that it would not have to wait

    @property
    def kind(self) -> str:
        return self.step.kind

    @property
    def number(self) -> int:
        return self.step.number

    @property
    def pending(self) -> bool:
        return self.how is None

    def overlaps(self, other: Call) -> bool:
        if self.begun is None or other.begun is None:
            return False
        return (other.over is None or other.over > self.begun) and (
            self.over is None or self.over > other.begun
        )

    def __repr__(self) -> str:
        when = "late " if self.step.late else ""
        return f"{when}{self.kind} #{self.number}: {self.how or 'waits'}"


@dataclass(eq=False)
class Party:
    """A socket, those that start_tls() or detach() led to, and who is on the other side."""

    number: int
    subject: Subject
    sockets: list[Socket]
    upgraded: bool = False  #: start_tls() was called
    #: What was made of the kernel's socket of one before: it goes on with that connection.
    handed: list[Socket] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)  #: one for each connection that was made
    received: dict[bool, bytearray] = field(
        default_factory=lambda: {False: bytearray(), True: bytearray()}
    )
    may_keep: int = 0  #: the most that a receive may have left for the next
    drained: str | None = None  #: what ended reading to the end
    accepted: End | None = None  #: from a listener
    piped_from: bool = False
    piped_to: bool = False

    @property
    def last(self) -> Socket:
        return self.sockets[-1]

    def tls(self, socket: Socket) -> bool:
        plain = socket is self.sockets[0] or socket in self.handed
        return not plain or self.subject.secure == "on"

    @property
    def peer(self) -> Peer | None:
        """Whom a script may act as: the latest that is still there."""
        alive = [peer for peer in self.peers if not peer.end.dead]
        return next(reversed(alive or self.peers), None)


class World:
    """All of that, and what was found to be wrong."""

    def __init__(self, plan: Plan, scheduler: str, network: Network) -> None:
        self.plan = plan
        self.scheduler = scheduler
        self.network = network
        self.parties: list[Party] = []
        self.calls: list[Call] = []
        self.faults: list[str] = []
        self.closing_began: int | None = None
        self.prepared = 0  # how many sockets a function of the user's was given
        self._ticks = 0
        #: By the port of our side, for connections that we made or accepted.
        self.ours: dict[int, End] = {}
        self.theirs: dict[int, Peer] = {}

    def tick(self) -> int:
        self._ticks += 1
        return self._ticks

    def fault(self, name: str, *more: object) -> None:
        """Something is wrong. ``name`` says what, without any detail of this history."""
        self.faults.append(name)
        self.network.note("FAULT", name, *map(repr, more))

    def link(self, party: Party) -> tuple[End, Peer] | None:
        """The connection that the socket has, or had; None if it was never made."""
        if party.accepted is not None:
            end = party.accepted
            return end, self.theirs[end.remote[1]]
        first = party.sockets[0]
        if not first.opened.done() or first.opened.exception() is not None:
            return None
        local = first.opened.result().local_address
        assert local is not None
        port = int(local.rpartition(":")[2])
        return self.ours[port], self.theirs[port]
