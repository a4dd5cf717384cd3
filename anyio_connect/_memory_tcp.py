"""The two ends of a TCP connection in memory, with the behaviour of Linux (net/ipv4/tcp*.c).

It is exact in everything that a program can see: what ``recv()`` returns after a reset, which
errors are reported only once, when ``close()`` sends a reset, what a closed end answers to data,
which flags ``poll()`` shows, and how much is unacknowledged. It simulates windows and delays, but
neither congestion nor the loss of packets.

Nothing here waits: a :class:`Timeline` calls functions at their times. The sockets of ``testing``
use this module. The project's own simulation uses it too, adds random delays and chunks, and
compares the result with the kernel.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ._watch import ERR, HUP, IN, OUT, RDHUP

E = TypeVar("E", bound="End")
E_contra = TypeVar("E_contra", bound="End", contravariant=True)

#: The key for a change of the state itself. Every watch is told of it.
STATE = 0


def error(code: int) -> OSError:
    """The kernel's error for ``code``. OSError chooses the subclass."""
    return OSError(code, os.strerror(code))


class Timeline(Protocol):
    """A schedule of calls."""

    @property
    def now(self) -> float:
        """The time, in seconds."""
        ...

    def at(self, when: float, what: Callable[..., None], *args: object) -> None:
        """Schedule a call of ``what`` at that time, and after earlier calls of the same time."""
        ...


class Host(Protocol[E_contra]):
    """A host: it answers connection attempts at an address."""

    def syn(self, client: E_contra) -> None:
        """Handle a client's connection attempt, which has just arrived."""
        ...


@dataclass(frozen=True)
class Wire:
    """The network between the two ends of a connection, seen from one of them."""

    delay: float = 0.001  #: from here to the other end, in seconds
    sndbuf: int = 65536
    rcvbuf: int = 65536


class End:
    """One end of a connection, with or without a descriptor.

    ``changed`` is called whenever a program may see a change: with the poll flags of the event, or
    with ``STATE``.
    """

    def __init__(self, network: Timeline, wire: Wire) -> None:
        self.network: Timeline = network
        self.wire: Wire = wire
        self.local: tuple[str, int] = ("", 0)
        self.remote: tuple[str, int] = ("", 0)
        self.changed: Callable[[int], None] = lambda key: None
        self.peer: End | None = None  # set when the connection is made
        self.connecting: bool = True
        self.dead: bool = False  # TCP_CLOSE
        self.error: int = 0  # sk_err: reported once
        self.released: bool = False  # close() was called
        self.rx: bytearray = bytearray()  # arrived and not received yet
        self._linger0 = False
        # Sending. Accepted bytes wait for room at the peer, then they are in flight, and then they
        # are kept until the peer acknowledges them.
        self.waiting: bytearray = bytearray()
        self.flying: int = 0
        self.kept: int = 0
        self._acknowledged = 0  # how many bytes in all
        self._last_arrival = 0.0  # at the other end: TCP delivers in order
        self._fin_wanted = self._fin_sent = self._fin_acknowledged = False
        self._starved = False  # a send found no room (SOCK_NOSPACE)
        # Receiving
        self._arrived = 0  # bytes in all
        self._fin_received = False  # SOCK_DONE
        self._receive_shut = False
        self._send_shut = False

    # --- making the connection

    def establish(self, peer: End) -> None:
        self.peer = peer
        self.connecting = False
        self._last_arrival = max(self._last_arrival, self.network.now)
        self.changed(STATE)

    def refuse(self, code: int) -> None:
        """Make the connection attempt fail."""
        if self.connecting and not self.released:
            self.connecting = False
            self.error = code
            self._die()

    # --- the calls of a program

    def receive(self, most: int, *, peek: bool = False) -> bytes:
        if self.rx:
            data = bytes(self.rx[:most])
            if not peek:
                del self.rx[:most]
                if self.peer is not None and self.peer.waiting:
                    self.send_over(self.network.now + self.wire.delay, self.peer.pump)
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
        count = self._taken(min(room, size))
        if count < size:
            self._starved = True
        self.waiting += memoryview(data).cast("B")[:count]
        self.pump()
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
        """Make :meth:`close` send a reset (SO_LINGER with a time of 0)."""
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
        """Return and clear the error (SO_ERROR)."""
        return self._take_error()

    @property
    def unacknowledged(self) -> int:
        """How many bytes the peer has not acknowledged (SIOCOUTQ). A FIN counts as one byte."""
        return self._used() + (self._fin_wanted and not self._fin_acknowledged)

    @property
    def writable(self) -> bool:
        return bool(self.flags() & OUT)

    @property
    def readable(self) -> bool:
        return bool(self.flags() & IN)

    # --- the behaviour of the network, which derived classes may override

    def _taken(self, count: int) -> int:
        """How many of ``count`` bytes a send accepts if there is room for all of them."""
        return count

    def _segment(self, size: int) -> int:
        """How many of ``size`` waiting bytes are sent in one piece."""
        return size

    def _lag(self) -> float:
        """How long data that is sent now takes to the other end, in seconds."""
        return self.wire.delay

    def _lag_of_acknowledgement(self) -> float:
        """How long an acknowledgement takes, in seconds, with any delay before it is sent."""
        return self.wire.delay

    def send_over(self, when: float, what: Callable[..., None], *args: object) -> None:
        """Schedule a call that takes place when something arrives at the other end."""
        self.network.at(when, what, *args)

    def _note(self, *what: object) -> None:
        """Record an event of this end, for a log."""

    # --- the wire

    def _used(self) -> int:
        return len(self.waiting) + self.flying + self.kept

    def _take_error(self) -> int:
        code, self.error = self.error, 0
        return code

    def _dispatch(self, what: Callable[..., None], *args: object) -> None:
        """Send something: call ``what`` when it arrives, after everything that was sent before."""
        self._last_arrival = max(self._last_arrival, self.network.now + self._lag())
        self.send_over(self._last_arrival, what, *args)

    def pump(self) -> None:
        """Send as much data as the peer's window allows."""
        peer = self.peer
        if self.dead or peer is None:
            return
        while self.waiting:
            window = peer.wire.rcvbuf - len(peer.rx) - self.flying
            if window <= 0:
                return
            size = min(window, self._segment(len(self.waiting)))
            data = bytes(self.waiting[:size])
            del self.waiting[:size]
            self.flying += size
            self._dispatch(peer.arrive, data)
        if self._fin_wanted and not self._fin_sent:
            self._fin_sent = True
            self._dispatch(peer.arrive_fin)

    def _end(self) -> None:
        if not self._fin_wanted:
            self._fin_wanted = True
            self.pump()

    def arrive(self, data: bytes) -> None:
        peer = self.peer
        assert peer is not None
        peer.flying -= len(data)
        peer.kept += len(data)
        if self.dead or self.released or (self._receive_shut and self._fin_wanted):
            # No program will receive it, so the answer is a reset (RFC 1122 4.2.2.13).
            if not peer.dead:
                self._note("answers data with a reset", len(data))
                if not self.dead:
                    self.waiting.clear()
                    self._die()
                self._dispatch(peer.arrive_reset)
            return
        self._note("gets", len(data))
        self.rx += data
        self._arrived += len(data)
        self._acknowledge()
        self.changed(IN)

    def _acknowledge(self) -> None:
        peer = self.peer
        assert peer is not None
        when = self.network.now + self._lag_of_acknowledgement()
        self.send_over(when, peer.acknowledged, self._arrived)

    def acknowledged(self, count: int) -> None:
        """Handle an acknowledgement of the first ``count`` bytes of the connection.

        It also acknowledges what earlier acknowledgements, still on their way, would (RFC 9293
        3.4). After a reset, the kernel ignores it: SIOCOUTQ stays as it was.
        """
        if self.dead or count <= self._acknowledged:
            return
        self.kept -= count - self._acknowledged
        self._acknowledged = count
        self.pump()
        if self._starved and self._used() * 3 <= self.wire.sndbuf * 2:
            self._starved = False
            self.changed(OUT)

    def arrive_fin(self) -> None:
        if self.dead or self.peer is None:
            return
        self._note("gets FIN")
        self._fin_received = self._receive_shut = True
        self.send_over(
            self.network.now + self.wire.delay, self.peer.acknowledge_fin, self._arrived
        )
        if self._fin_acknowledged:
            self._die()  # TIME_WAIT
        else:
            self.changed(STATE)

    def acknowledge_fin(self, count: int) -> None:
        """Handle an acknowledgement of our FIN, and of the ``count`` bytes before it."""
        if self.dead:
            return
        self._fin_acknowledged = True
        self.acknowledged(count)
        if self._fin_received:
            self._die()  # the state was LAST_ACK or CLOSING
        else:
            self.changed(STATE)

    def _reset(self, why: str) -> None:
        self.waiting.clear()
        self._die()
        self._note("sends a reset:", why)
        if self.peer is not None:
            self._dispatch(self.peer.arrive_reset)

    def arrive_reset(self) -> None:
        if self.dead:
            return
        self._note("gets a reset")
        # In CLOSE_WAIT, a reset is EPIPE: the peer has ended, and refuses what we still send.
        in_close_wait = self._fin_received and not self._fin_wanted
        self.error = errno.EPIPE if in_close_wait else errno.ECONNRESET
        self._die()

    def _die(self) -> None:
        self.dead = self._receive_shut = self._send_shut = True
        if self.error:
            self.changed(ERR)
        self.changed(STATE)


def connect(hosts: Mapping[tuple[str, int], Host[E]], client: E, address: tuple[str, int]) -> None:
    """Start a connection attempt. If no host has the address, it is refused."""
    client.remote = address
    network, delay = client.network, client.wire.delay

    def arrive() -> None:
        host = hosts.get(address)
        if host is not None:
            host.syn(client)
        else:
            client.send_over(network.now + delay, client.refuse, errno.ECONNREFUSED)

    client.send_over(network.now + delay, arrive)


def accept(client: End, server: E, ready: Callable[[E], None]) -> None:
    """Accept an attempt: the client is connected after one delay, the server after two."""
    network = client.network

    def at_client() -> None:
        if client.released or client.dead:
            server.released = server.dead = True
            return
        server.peer = client  # now, because the client's first data may arrive before at_server()
        client.establish(server)
        client.send_over(network.now + client.wire.delay, at_server)

    def at_server() -> None:
        server.establish(client)
        ready(server)

    server.local, server.remote = client.remote, client.local
    server.send_over(network.now + server.wire.delay, at_client)
