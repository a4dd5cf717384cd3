"""The two ends of a TCP connection, as Linux behaves (net/ipv4/tcp*.c).

Exact is what a program can see: what ``recv()`` returns after a reset, which error is told once,
when ``close()`` turns into a reset, what an end that nobody holds any more answers to data, which
flags ``poll()`` shows, and what is not acknowledged. Congestion and loss of packets are not
simulated; delays, windows, segments and delayed acknowledgements are.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

from .network import Network, error

IN, OUT, ERR, HUP, RDHUP = (
    select.EPOLLIN,
    select.EPOLLOUT,
    select.EPOLLERR,
    select.EPOLLHUP,
    select.EPOLLRDHUP,
)
#: A wake-up about the state as such, which passes every filter.
STATE = 0


@dataclass(frozen=True)
class Wire:
    """What a connection goes over, seen from one of its ends."""

    delay: float = 0.001  #: from here to the other end, in seconds
    jitter: float = 0.0  #: added to that, at most
    mss: int = 1460  #: a segment has at most so many bytes
    ack_delay: float = 0.0  #: how long the other end may keep an acknowledgement back
    short: float = 0.0  #: how often a send takes less than there is room for
    sndbuf: int = 65536
    rcvbuf: int = 65536


class End:
    """One end of a connection, with or without a descriptor.

    ``changed`` is called whenever something may be observed anew, with the poll flags that it is
    about, or ``STATE``.
    """

    def __init__(self, network: Network, name: str, wire: Wire) -> None:
        self.network = network
        self.name = name
        self.wire = wire
        self.local: tuple[str, int] = ("0.0.0.0", 0)
        self.remote: tuple[str, int] = ("0.0.0.0", 0)
        self.changed: Callable[[int], None] = lambda key: None
        self.peer: End | None = None  # once the connection is made
        self.connecting = True
        self.dialling = False  # connect() was called by the package
        self.dead = False  # TCP_CLOSE
        self.error = 0  # sk_err: told once
        self.released = False  # close() was called
        self.rx = bytearray()  # arrived, not yet received
        self._linger0 = False
        # Sending: what was accepted is in `_out`, then flying, then unacknowledged, then gone.
        self._out = bytearray()
        self._flying = 0
        self._unacknowledged = 0
        self._last_arrival = 0.0  # at the other end: TCP delivers in order
        self._fin_wanted = self._fin_sent = self._fin_acknowledged = False
        self._starved = False  # somebody found no room (SOCK_NOSPACE)
        # Receiving
        self._fin_received = False  # SOCK_DONE
        self._receive_shut = False
        self._send_shut = False
        # For whoever judges
        self.delivered = 0  # bytes that arrived here in all
        self.got_reset = False
        self.sent_reset = ""  # why
        network.ends.append(self)

    # --- making the connection

    def establish(self, peer: End) -> None:
        self.peer = peer
        self.connecting = False
        self._last_arrival = max(self._last_arrival, self.network.now)
        self.changed(STATE)

    def refuse(self, code: int) -> None:
        """The attempt has failed."""
        if self.connecting and not self.released:
            self.connecting = False
            self.error = code
            self._die()

    # --- what a program calls

    def receive(self, most: int, *, peek: bool = False) -> bytes:
        if self.rx:
            data = bytes(self.rx[:most])
            if not peek:
                del self.rx[:most]
                if self.peer is not None and self.peer._out:
                    self.network.later(self.wire.delay, self.peer._pump)
            return data
        if self._fin_received:
            return b""
        if self.error:
            raise error(self._take_error())
        if self._receive_shut:
            return b""
        if self.dead:
            raise error(errno.ENOTCONN)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    def send(self, data: bytes | bytearray | memoryview) -> int:
        if self.connecting and not self.dead:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        if self.error:
            raise error(self._take_error())
        if self._send_shut:
            raise error(errno.EPIPE)
        size = memoryview(data).nbytes
        if not size:
            return 0
        room = self.wire.sndbuf - self._used()
        if room <= 0:
            self._starved = True
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        count = min(room, size)
        if count > 1 and self.wire.short and self.network.random.random() < self.wire.short:
            count = self.network.random.randint(1, count)
        if count < size:
            self._starved = True
        self._out += memoryview(data).cast("B")[:count]
        self._pump()
        return count

    def shutdown(self, how: int) -> None:
        if self.dead or self.connecting:
            raise error(errno.ENOTCONN)
        if how != socket.SHUT_WR:
            self._receive_shut = True
        if how != socket.SHUT_RD:
            self._send_shut = True
            self._end()
        self.changed(STATE)

    def linger0(self) -> None:
        """Close with a reset (SO_LINGER with a time of 0)."""
        self._linger0 = True

    def disconnect(self) -> None:
        """Reset at once, and keep the descriptor (connect() to AF_UNSPEC)."""
        if not self.dead:
            self._reset("disconnected")

    def close(self) -> None:
        if self.released:
            return
        self.released = True
        if self.connecting or self.dead:
            self.dead = True
        elif self.rx:
            self._reset("closed with unread data")
        elif self._linger0:
            self._reset("closed with SO_LINGER 0")
        else:
            self._receive_shut = self._send_shut = True
            self._end()
        self.rx.clear()
        self.changed = lambda key: None

    def flags(self) -> int:
        mask = 0
        if self.dead or (self._receive_shut and self._send_shut):
            mask |= HUP
        if self._receive_shut:
            mask |= IN | RDHUP
        if not self.connecting or self.dead:
            if self.rx:
                mask |= IN
            if self._send_shut or self._used() * 3 <= self.wire.sndbuf * 2:
                mask |= OUT
            else:
                self._starved = True
        if self.error:
            mask |= ERR
        return mask

    def take_error(self) -> int:
        """SO_ERROR."""
        return self._take_error()

    @property
    def unacknowledged(self) -> int:
        """SIOCOUTQ: bytes that the peer's kernel has not acknowledged; our FIN counts as one."""
        return self._used() + (self._fin_wanted and not self._fin_acknowledged)

    @property
    def unsent(self) -> int:
        """SIOCOUTQNSD: bytes that were not even sent; our FIN counts as one."""
        return len(self._out) + (self._fin_wanted and not self._fin_sent)

    @property
    def writable(self) -> bool:
        return bool(self.flags() & OUT)

    @property
    def readable(self) -> bool:
        return bool(self.flags() & IN)

    # --- the wire

    def _used(self) -> int:
        return len(self._out) + self._flying + self._unacknowledged

    def _take_error(self) -> int:
        code, self.error = self.error, 0
        return code

    def _dispatch(self, what: Callable[..., None], *args: object) -> None:
        """Have it arrive at the other end; nothing arrives before what was sent earlier."""
        wire = self.wire
        delay = wire.delay + (self.network.random.random() * wire.jitter if wire.jitter else 0.0)
        self._last_arrival = max(self._last_arrival, self.network.now + delay)
        self.network.at(self._last_arrival, what, *args)

    def _pump(self) -> None:
        """Put on the wire what there is room for in the peer's window."""
        peer = self.peer
        if self.dead or peer is None:
            return
        while self._out:
            window = peer.wire.rcvbuf - len(peer.rx) - self._flying
            if window <= 0:
                return
            size = min(window, len(self._out), self.network.random.randint(1, self.wire.mss))
            data = bytes(self._out[:size])
            del self._out[:size]
            self._flying += size
            self._dispatch(peer._arrive, data)
        if self._fin_wanted and not self._fin_sent:
            self._fin_sent = True
            self._dispatch(peer._arrive_fin)

    def _end(self) -> None:
        if not self._fin_wanted:
            self._fin_wanted = True
            self._pump()

    def _arrive(self, data: bytes) -> None:
        peer = self.peer
        assert peer is not None
        peer._flying -= len(data)
        peer._unacknowledged += len(data)
        if self.dead or self.released or (self._receive_shut and self._fin_wanted):
            # A program that will not read it: RFC 1122 4.2.2.13.
            if not peer.dead:
                self.network.note(self.name, "answers data with a reset", len(data))
                if not self.dead:
                    self._out.clear()
                    self._die()
                self.sent_reset = self.sent_reset or "data came after close()"
                self._dispatch(peer._arrive_reset)
            return
        self.network.note(self.name, "gets", len(data))
        self.rx += data
        self.delivered += len(data)
        self._acknowledge(len(data))
        self.changed(IN)

    def _acknowledge(self, size: int) -> None:
        peer = self.peer
        assert peer is not None
        late = peer.wire.ack_delay
        delay = self.wire.delay + (self.network.random.random() * late if late else 0.0)
        self.network.later(delay, peer._acknowledged, size)

    def _acknowledged(self, size: int) -> None:
        self._unacknowledged -= size
        if self.dead:
            return
        self._pump()
        if self._starved and self._used() * 3 <= self.wire.sndbuf * 2:
            self._starved = False
            self.changed(OUT)

    def _arrive_fin(self) -> None:
        if self.dead or self.peer is None:
            return
        self.network.note(self.name, "gets FIN")
        self._fin_received = self._receive_shut = True
        self.network.later(self.wire.delay, self.peer._acknowledge_fin)
        if self._fin_acknowledged:
            self._die()  # TIME_WAIT
        else:
            self.changed(STATE)

    def _acknowledge_fin(self) -> None:
        if self.dead:
            return
        self._fin_acknowledged = True
        if self._fin_received:
            self._die()  # it was LAST_ACK or CLOSING
        else:
            self.changed(STATE)

    def _reset(self, why: str) -> None:
        self._out.clear()
        self.sent_reset = why
        self._die()
        self.network.note(self.name, "sends a reset:", why)
        if self.peer is not None:
            self._dispatch(self.peer._arrive_reset)

    def _arrive_reset(self) -> None:
        if self.dead:
            return
        self.network.note(self.name, "gets a reset")
        self.got_reset = True
        # In CLOSE_WAIT it is EPIPE: the peer had ended, and will not take what we have left.
        in_close_wait = self._fin_received and not self._fin_wanted
        self.error = errno.EPIPE if in_close_wait else errno.ECONNRESET
        self._die()

    def _die(self) -> None:
        self.dead = self._receive_shut = self._send_shut = True
        if self.error:
            self.changed(ERR)
        self.changed(STATE)


def connect(network: Network, client: End, address: tuple[str, int]) -> None:
    """Send the first packet of an attempt; what becomes of it is up to who is there."""
    client.remote = address

    def arrive() -> None:
        host = network.hosts.get(address)
        if host is not None:
            host.syn(client)
        else:
            network.later(client.wire.delay, client.refuse, errno.ECONNREFUSED)

    network.later(client.wire.delay, arrive)


def accept(network: Network, client: End, server: End, ready: Callable[[End], None]) -> None:
    """Answer an attempt: the client has the connection one way later, the server two."""

    def at_client() -> None:
        if client.released or client.dead:
            server.released = server.dead = True
            return
        server.peer = client  # the client's first packets find it, whatever the server knows
        client.establish(server)
        network.later(client.wire.delay, at_server)

    def at_server() -> None:
        server.establish(client)
        ready(server)

    server.local, server.remote = client.remote, client.local
    network.later(server.wire.delay, at_client)
