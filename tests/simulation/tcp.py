"""The package's TCP in memory (``_memory_tcp``), with random delays and a log."""

from __future__ import annotations

from dataclasses import dataclass

from anyio_connect import _memory_tcp

from .network import Network


@dataclass(frozen=True)
class Wire(_memory_tcp.Wire):
    jitter: float = 0.0  #: at most this is added to the delay
    mss: int = 1460  #: the most bytes in a segment
    ack_delay: float = 0.0  #: how long the other end may delay an acknowledgement
    short: float = 0.0  #: how often a send takes less data than there is room for


class End(_memory_tcp.End):
    """One end, and the facts that the judge needs."""

    # Narrower types than in the base class.
    network: Network  # pyright: ignore[reportIncompatibleVariableOverride]
    wire: Wire  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, network: Network, name: str, wire: Wire) -> None:
        super().__init__(network, wire)
        self.name = name
        self.dialling = False  # connect() was called by the package
        self.delivered = 0  # bytes that arrived here in all
        self.got_reset = False
        self.lost = 0  # bytes that a reset took away before the socket was closed
        self.sent_reset = ""  # why
        network.ends.append(self)

    @property
    def partner(self) -> End | None:
        """The peer, with the type of this module."""
        assert self.peer is None or isinstance(self.peer, End)
        return self.peer

    @property
    def unsent(self) -> int:
        """SIOCOUTQNSD: the number of bytes that were not sent yet; our FIN counts as one."""
        return len(self.waiting) + (self._fin_wanted and not self._fin_sent)

    def _taken(self, count: int) -> int:
        random = self.network.random
        if count > 1 and self.wire.short and random.random() < self.wire.short:
            return random.randint(1, count)
        return count

    def _segment(self, size: int) -> int:
        return min(size, self.network.random.randint(1, self.wire.mss))

    def _lag(self) -> float:
        jitter = self.wire.jitter
        return self.wire.delay + (self.network.random.random() * jitter if jitter else 0.0)

    def _lag_of_acknowledgement(self) -> float:
        assert self.partner is not None
        late = self.partner.wire.ack_delay
        return self.wire.delay + (self.network.random.random() * late if late else 0.0)

    def _note(self, *what: object) -> None:
        self.network.note(self.name, *what)
        match what:
            case ("gets", int(size)):
                self.delivered += size
            case ("gets a reset",):
                self.got_reset = True
                if not self.released:
                    self.lost = self._used()
            case ("answers data with a reset", _):
                self.sent_reset = self.sent_reset or "data came after close()"
            case ("sends a reset:", str(why)):
                self.sent_reset = why
