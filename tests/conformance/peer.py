"""The peer of a scenario: blocking sockets, which do one step at a time and report what they saw.

When a step of the peer is over, its effect has reached the client: data and an end have been
acknowledged, and after a reset the client's kernel no longer has the connection. So the next step
always finds the effect.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from conformance.certificates import Certificates
from conformance.steps import PENDING, STILL_OPEN
from support.peers import has_ipv6
from support.tls_peers import Server

HOST = "127.0.0.1"

#: How often to look at the kernel's tables, in seconds.
_GLANCE = 0.002

#: How long to wait for the second and third SYN of a kernel that got no answer, in seconds.
_ASKED_AGAIN = 4

# <net/tcp_states.h>
_ESTABLISHED, _FIN_WAIT1, _CLOSING, _LAST_ACK = 1, 4, 11, 9


class Peer:
    """Listens on loopback, and is the other end of the one connection that arrives."""

    def __init__(self, certificates: Certificates, patience: float) -> None:
        self.certificates = certificates
        self.patience = patience
        self._listeners = _listeners()
        self.port: int = self._listeners[0].getsockname()[1]
        self._others: list[socket.socket] = []
        self._silent: list[socket.socket] = []
        self._nobody = False  # the client has given up connecting
        self._sock: socket.socket | None = None
        self._tls: _TLS | None = None
        self._sni: str | None = None

    def close(self) -> None:
        for sock in (*self._listeners, *self._others, self._sock):
            if sock is not None:
                sock.close()

    # --- places to connect to

    def refusing_port(self) -> int:
        """A port on which nothing listens as long as this peer exists."""
        sock = self._other()
        return int(sock.getsockname()[1])

    def silent_port(self) -> int:
        """A port that does not answer, because the backlog of its listener is full."""
        listener = self._other()
        listener.listen(0)
        filler = socket.create_connection(listener.getsockname())
        self._others.append(filler)
        self._silent.append(listener)
        return int(listener.getsockname()[1])

    def _do_answer(self, rest: str, wait: float) -> str:
        """Accept the connection at the port that did not answer, when the client's kernel tries
        again."""
        filled = self._silent.pop()
        filled.accept()[0].close()
        self._listeners.append(filled)
        ready, _, _ = select.select(self._listeners, [], [], _ASKED_AGAIN)
        if not ready:
            self._nobody = True
            return "nobody"
        self._accept()
        return "accepted"

    def _other(self) -> socket.socket:
        sock = socket.socket()
        self._others.append(sock)
        sock.bind((HOST, 0))
        return sock

    # --- the steps: each returns what the peer saw, or None if there is nothing to report

    def step(self, verb: str, rest: str, wait: float) -> str | None:
        method: Callable[[str, float], str | None] = getattr(self, f"_do_{verb}")
        return method(rest, wait)

    def _do_accept(self, rest: str, wait: float) -> str:
        self._accept()
        return "accepted"

    def _do_handshake(self, rest: str, wait: float) -> str:
        """Make the TLS handshake. ``rest`` is the name of the certificate."""
        context = self.certificates.server(rest or "good")
        context.sni_callback = self._note_name
        self._tls = _TLS(self.sock, context)
        try:
            self._tls.handshake()
        except OSError:  # or its subclass ssl.SSLError, depending on the timing
            self._tls.flush()
            return "error"
        return "ok"

    def _note_name(self, engine: object, name: str | None, context: object) -> None:
        self._sni = name

    def _do_sni(self, rest: str, wait: float) -> str:
        return self._sni or "none"

    def _do_alpn(self, rest: str, wait: float) -> str:
        assert self._tls is not None
        return self._tls.engine.selected_alpn_protocol() or "none"

    def _do_send(self, rest: str, wait: float) -> str | None:
        data = bytes(int(rest[1:])) if rest.startswith("*") else rest.encode("latin-1")
        return self._send(self._tls.encrypt(data) if self._tls else data)

    def _do_notify(self, rest: str, wait: float) -> str | None:
        """End our side of TLS, but not of TCP."""
        assert self._tls is not None
        return self._send(self._tls.close_notify())

    def _do_fin(self, rest: str, wait: float) -> str | None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return "rst"
        self._until(lambda: self._state() not in (_ESTABLISHED, _FIN_WAIT1, _CLOSING, _LAST_ACK))
        return None

    def _do_rst(self, rest: str, wait: float) -> str | None:
        ours, theirs = self.sock.getsockname(), self.sock.getpeername()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self._until(lambda: not _in_table(theirs, ours))
        return None

    def _do_read(self, rest: str, wait: float) -> str:
        """Read that number of bytes."""
        wanted, data = int(rest), bytearray()
        while len(data) < wanted:
            piece = self._receive(self.patience, wanted - len(data))
            if isinstance(piece, str):
                return f"{told(bytes(data))} then {piece}" if data else piece
            data += piece
        return told(bytes(data))

    def _do_end(self, rest: str, wait: float) -> str:
        """Read up to the client's end, and report its kind."""
        count = 0
        while True:
            piece = self._receive(wait)
            if isinstance(piece, str):
                return f"{count} bytes then {piece}" if count else piece
            count += len(piece)

    def _do_view(self, rest: str, wait: float) -> str:
        """Read up to the client's end. ``rest`` is "open" if no end is expected."""
        data = bytearray()
        while True:
            piece = self._receive(wait)
            if isinstance(piece, str):
                word = STILL_OPEN if piece == PENDING else piece
                return f"{told(bytes(data))} then {word}" if data else word
            data += piece

    def _do_torn(self, rest: str, wait: float) -> str:
        """Read up to the client's end, with any number of bytes before it."""
        while True:
            piece = self._receive(wait)
            if isinstance(piece, str):
                return piece

    def _do_quiet(self, rest: str, wait: float) -> str:
        """Check that nothing arrives."""
        piece = self._receive(wait)
        return piece if isinstance(piece, str) else told(piece)

    def _do_gone(self, rest: str, wait: float) -> str:
        """Whether the client's kernel refuses the data that we send now."""
        with suppress(OSError):
            self.sock.send(b"?")
        poll = select.poll()
        poll.register(self.sock, 0)  # errors are always reported
        return "rst" if poll.poll(wait * 1000) else "pending"

    # --- helpers

    @property
    def sock(self) -> socket.socket:
        return self._accept()

    def _accept(self) -> socket.socket:
        if self._sock is None:
            ready, _, _ = select.select(self._listeners, [], [], self.patience)
            if not ready:
                raise TimeoutError("the client did not connect")
            self._sock, _ = ready[0].accept()
            self._sock.settimeout(self.patience)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._sock

    def _receive(self, wait: float, most: int = 65536) -> bytes | str:
        """The next data, or a word for the kind of end."""
        if self._nobody:
            return "nobody"
        self.sock.settimeout(wait)
        try:
            if self._tls is None:
                return self.sock.recv(most) or "fin"
            return self._tls.receive(most)
        except TimeoutError:
            return "pending"
        except ssl.SSLError:
            return "alert"
        except OSError:
            return "rst"
        finally:
            self.sock.settimeout(self.patience)

    def _send(self, data: bytes) -> str | None:
        try:
            self.sock.sendall(data)
        except OSError:
            return "rst"
        if len(data) < 65536:  # the rest may have to wait until the client reads
            self._until(self._acknowledged)
        return None

    def _acknowledged(self) -> bool:
        from fcntl import ioctl
        from termios import TIOCOUTQ

        (left,) = struct.unpack("i", ioctl(self.sock, TIOCOUTQ, bytes(4)))
        return not left or self._state() not in (_ESTABLISHED, 8)

    def _state(self) -> int:
        return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]

    def _until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.patience
        while not happened():
            if time.monotonic() > deadline:
                raise TimeoutError("what the peer sent did not arrive")
            time.sleep(_GLANCE)


def _listeners() -> list[socket.socket]:
    """Listen on the same port of both loopback addresses, because "localhost" may mean either."""
    for attempts_left in reversed(range(20)):
        listeners = [socket.socket()]
        listeners[0].bind((HOST, 0))
        try:
            if has_ipv6():
                listeners.append(socket.socket(socket.AF_INET6))
                listeners[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listeners[1].bind(("::1", listeners[0].getsockname()[1]))
        except OSError:  # another process has that port at the other address
            for listener in listeners:
                listener.close()
            if not attempts_left:
                raise
            continue
        for listener in listeners:
            # Small, so that the client cannot send much data that the peer does not read.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            listener.listen()
        return listeners
    raise AssertionError("unreachable")


class _TLS(Server):
    """TLS on a blocking socket. It can end its side and keep TCP open."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(context)
        self.sock = sock

    def flush(self) -> None:
        with suppress(OSError):
            self.sock.sendall(self.outgoing.read())

    def handshake(self) -> None:
        while not self.shake():
            self.flush()
            data = self.sock.recv(65536)
            if not data:
                raise ssl.SSLEOFError("no handshake")
            self.incoming.write(data)
        self.flush()

    def receive(self, most: int) -> bytes | str:
        while not self.ended:
            try:
                data = self.engine.read(most)
            except ssl.SSLWantReadError:
                more = self.sock.recv(65536)
                if not more:
                    return "fin"
                self.incoming.write(more)
                continue
            except ssl.SSLZeroReturnError:
                data = b""
            if data:
                return data
            self.ended = True
            return "close_notify"
        return "data after close_notify" if self.sock.recv(65536) else "fin"


def told(data: bytes) -> str:
    """Data in the form of a trace: JSON of Latin-1, or only the length if the data is long."""
    if len(data) > 64:
        return f"{len(data)} bytes"
    return json.dumps(data.decode("latin-1"), ensure_ascii=False)


def _in_table(client: tuple[object, ...], server: tuple[object, ...]) -> bool:
    """Whether the kernel still has the client's end of this connection."""
    ports = f":{client[1]:04X} ", f":{server[1]:04X} "
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(FileNotFoundError):
            for line in Path(table).read_text(encoding="ascii").splitlines():
                if ports[0] in line and line.index(ports[0]) < line.find(ports[1]):
                    return True
    return False
