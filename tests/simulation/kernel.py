"""Does the same acts on a simulated and on a real pair of connected sockets, over loopback.

This shows whether the simulated network behaves as the kernel does. Times of arrival and sizes of
buffers are not compared, because the kernel does not promise them.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from support.peers import under_way

from . import sockets
from .network import Network
from .tcp import Wire

Kind = Literal["send", "receive", "peek", "shutdown", "close", "abort", "error", "fill", "drain"]

_LINGER0 = struct.pack("ii", 1, 0)
_FLAGS = select.POLLIN | select.POLLOUT | select.POLLERR | select.POLLHUP | select.POLLRDHUP
#: How long the kernel may take to deliver what was sent on loopback, in seconds.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Act:
    side: int  #: 0 or 1
    kind: Kind
    amount: int = 1


@dataclass(frozen=True)
class Look:
    """What one side shows without any act."""

    flags: int
    unacknowledged: int


class Pair:
    """Two connected sockets, and the acts on them."""

    def __init__(self, ends: tuple[Any, Any], look: Callable[[Any], Look]) -> None:
        self.ends: tuple[Any, Any] = ends
        self._look = look
        self._sent = [0, 0]

    def act(self, act: Act, settle: Callable[[], None]) -> object:
        """Do the act; return its result, or the name of its error."""
        sock = self.ends[act.side]
        try:
            return self._do(act, sock, settle)
        except BlockingIOError:
            return "EAGAIN"
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]

    def _do(self, act: Act, sock: Any, settle: Callable[[], None]) -> object:
        if act.kind == "send":
            return sock.send(self._data(act.side, act.amount))
        if act.kind == "receive":
            return sock.recv(act.amount)
        if act.kind == "peek":
            return sock.recv(act.amount, socket.MSG_PEEK)
        if act.kind == "shutdown":
            return sock.shutdown(socket.SHUT_WR)
        if act.kind == "error":
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if act.kind == "fill":  # until neither side has room left
            while True:
                try:
                    sock.send(b"x" * 65536)
                except BlockingIOError:
                    settle()  # this may make room
                    sock.send(b"x" * 65536)
        if act.kind == "drain":
            while sock.recv(1 << 20):
                settle()
            return "end"
        if act.kind == "abort":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER0)
        return sock.close()

    def _data(self, side: int, amount: int) -> bytes:
        begin = self._sent[side]
        self._sent[side] += amount
        return bytes((begin + number) % 251 for number in range(amount))

    def look(self, side: int) -> Look | None:
        """What each side shows; None if it is closed."""
        sock = self.ends[side]
        return None if sock.fileno() < 0 else self._look(sock)

    def close(self) -> None:
        for sock in self.ends:
            sock.close()


class Simulated(Pair):
    def __init__(self, *, ack_delay: float = 0.0) -> None:
        self.network = network = Network(0)
        sockets.setting.network = network
        wire = Wire(delay=0.001, sndbuf=1 << 20, rcvbuf=1 << 20, ack_delay=ack_delay)
        sockets.setting.wires = lambda: (wire, wire)
        listener, client = sockets.Socket(), sockets.Socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        try:
            client.connect(listener.getsockname())
        except BlockingIOError:
            self.settle()
        server, _ = listener.accept()
        super().__init__((client, server), self._see)
        self._listener = listener

    def settle(self) -> None:
        """Let everything in flight arrive."""
        while self.arrive():
            pass

    def arrive(self) -> bool:
        """Let the next thing arrive; return whether anything was in flight."""
        due = self.network.next_due()
        if due is None:
            return False
        self.network.now = due
        self.network.run_due()
        return True

    @staticmethod
    def _see(sock: sockets.Socket) -> Look:
        assert sock.end is not None
        return Look(sock.flags() & _FLAGS, sock.end.unacknowledged)

    def close(self) -> None:
        super().close()
        self._listener.close()


class Real(Pair):
    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__((client, server), self._see)

    def settle(self) -> None:
        """Wait until nothing is in flight."""
        give_up = time.monotonic() + _PATIENCE
        while any(map(under_way, self.ends)) and time.monotonic() < give_up:
            time.sleep(0.0001)

    @staticmethod
    def _see(sock: socket.socket) -> Look:
        poll = select.poll()
        poll.register(sock, _FLAGS)
        found = poll.poll(0)
        queued = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
        return Look(found[0][1] if found else 0, struct.unpack("i", queued)[0])


def differences(acts: list[Act]) -> list[str]:
    """Do all acts on both pairs; say what was not the same."""
    found: list[str] = []
    simulated, real = Simulated(), Real()
    full: set[int] = set()  # the sides with full buffers: their size may grow, and is not compared
    try:
        for number, act in enumerate(acts):
            if simulated.look(act.side) is None:
                continue
            if act.kind == "send" and act.side in full:
                continue
            if act.kind == "fill":
                full.add(act.side)
            one = simulated.act(act, simulated.settle)
            simulated.settle()
            two = real.act(act, real.settle)
            if act.kind == "drain":  # all data in flight
                two = _until(partial(real.act, act, real.settle), one, two)
            if not _alike(one, two, full=bool(full)):
                found.append(f"{number}: {act}: simulated {one!r}, real {two!r}")
            for side in (0, 1):
                expected = simulated.look(side)

                def look_again(act: Act = act, side: int = side) -> Look | None:
                    if act.kind == "drain":  # more data may arrive
                        real.act(act, real.settle)
                    return real.look(side)

                seen = _until(look_again, expected, real.look(side), full=bool(full))
                if not _alike(expected, seen, full=bool(full)):
                    found.append(f"{number}: after {act}, {side}: {expected}, real {seen}")
    finally:
        simulated.close()
        real.close()
    return found


def _until(
    ask: Callable[[], object], wanted: object, answer: object, *, full: bool = False
) -> object:
    """Ask the kernel again until it answers as the simulation does, because it needs time."""
    give_up = time.monotonic() + _PATIENCE
    while not _alike(wanted, answer, full=full) and time.monotonic() < give_up:
        time.sleep(0.0005)
        answer = ask()
    return answer


def _alike(one: object, two: object, *, full: bool) -> bool:
    if full and isinstance(one, Look) and isinstance(two, Look):
        same = bool(one.unacknowledged) == bool(two.unacknowledged)
        return same and one.flags == two.flags
    if full and isinstance(one, (bytes, int)) and type(one) is type(two):
        return bool(one) == bool(two)
    return one == two
