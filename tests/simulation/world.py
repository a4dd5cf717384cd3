"""The state of a running history: sockets, the ends of their connections, peers, calls."""

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
    """A call of a task. Times are consecutive numbers."""

    step: Step
    party: Party
    socket: Socket
    tls: bool  #: its data goes over TLS
    how: str | None = None  #: "ok", "cancelled", or the name of the exception; None while it waits
    error: Exception | None = None
    scope: anyio.CancelScope | None = None
    task: Any = None  #: asyncio's
    begun: int | None = None
    over: int | None = None
    cancelled_at: int | None = None
    native: bool = False  #: asyncio's Task.cancel() cancelled it
    #: It was cancelled while it had nothing to do, so it must end as cancelled.
    idle_when_cancelled: bool = False
    received: int = 0
    told: int = 0  #: how much its socket had received in total when it ended
    kept: int = 0  #: how much more had arrived and was kept for the next receive
    sure_at: float | None = None  #: when is_readable() said that it would not have to wait

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
    """A socket, the sockets that start_tls() or detach() made of it, and its peers."""

    number: int
    subject: Subject
    sockets: list[Socket]
    upgraded: bool = False  #: start_tls() was called
    #: The sockets that continue with a detached socket of the kernel.
    handed: list[Socket] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)  #: one for each connection that was made
    received: dict[bool, bytearray] = field(
        default_factory=lambda: {False: bytearray(), True: bytearray()}
    )
    may_keep: int = 0  #: the most data that a receive may have left for the next
    drained: str | None = None  #: how reading to the end ended
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
        """The peer that a script controls: the latest that is still connected."""
        alive = [peer for peer in self.peers if not peer.end.dead]
        return next(reversed(alive or self.peers), None)


class World:
    """The whole state, and the faults that were found."""

    def __init__(self, plan: Plan, scheduler: str, network: Network) -> None:
        self.plan = plan
        self.scheduler = scheduler
        self.network = network
        self.parties: list[Party] = []
        self.calls: list[Call] = []
        self.faults: list[str] = []
        self.closing_began: int | None = None
        self.prepared = 0  # how many sockets the user's function has prepared
        self._ticks = 0
        #: By the port of our side, for connections that we made or accepted.
        self.ours: dict[int, End] = {}
        self.theirs: dict[int, Peer] = {}

    def tick(self) -> int:
        self._ticks += 1
        return self._ticks

    def fault(self, name: str, *more: object) -> None:
        """Record a fault. ``name`` has no details of this history."""
        self.faults.append(name)
        self.network.note("FAULT", name, *map(repr, more))

    def link(self, party: Party) -> tuple[End, Peer] | None:
        """The connection of the socket, also after it has ended; None if it was never made."""
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
