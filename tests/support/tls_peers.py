"""The other end of TLS: a server that can be told what to do record by record.

:class:`Server` is only the standard library's engine. :class:`Forger` makes records that no engine
can be made to send. :class:`Wire` is a transport in memory: the test decides what arrives, in
which pieces, and how much room there is.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

from anyio_connect import Socket, TLSError
from anyio_connect._tcp import TCPTransport
from anyio_connect._tls import Records, TLSTransport
from anyio_connect._tls_handshake import start_tls
from anyio_connect._transport import Transport
from support.peers import Listener, Peer, listening
from support.sockets import socket_over

NAME = "peer.example"
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


# --- certificates and contexts


@cache
def authority() -> trustme.CA:
    """The authority of all tests. There is only one, because making keys takes time."""
    return trustme.CA()


@cache
def certificate(*names: str, **options: Any) -> trustme.LeafCert:
    return authority().issue_cert(*names, **options)


def server_context(
    version: ssl.TLSVersion | None = None, cert: trustme.LeafCert | None = None
) -> ssl.SSLContext:
    """The context of a server for NAME, without session tickets, which would be extra data."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (cert or certificate(NAME, "127.0.0.1", "::1")).configure_cert(context)
    context.num_tickets = 0
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def client_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """The context of a user who trusts the tests' authority."""
    # Without the system's authorities: loading them takes longer than most tests.
    context = ssl.create_default_context(cadata=authority().cert_pem.bytes().decode())
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


#: For tests that do not change them, because loading certificates takes longer than a handshake.
_kept_server_context, _kept_client_context = cache(server_context), cache(client_context)


# --- the server


class Server:
    """A server's engine; the test passes records to it, and takes records from it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.engine = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.ended = False  # the client's close_notify was read

    def shake(self) -> bool:
        """Go on with the handshake; return whether it is done."""
        try:
            self.engine.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def encrypt(self, data: bytes) -> bytes:
        """The records with ``data``."""
        self.engine.write(data)
        return self.outgoing.read()

    def close_notify(self) -> bytes:
        """The record that ends our side."""
        with suppress(ssl.SSLError):
            self.engine.unwrap()
        return self.outgoing.read()

    def decrypt(self, ciphertext: bytes) -> bytes:
        """The data in ``ciphertext``."""
        self.incoming.write(ciphertext)
        data = b""
        try:
            while found := self.engine.read(65536):
                data += found
        except ssl.SSLWantReadError:
            return data
        except ssl.SSLZeroReturnError:
            pass
        self.ended = True
        return data


class Forger:
    """Writes a server's TLS 1.3 records from its secret, for example those that OpenSSL does not.

    See RFC 8446 sections 5.2, 5.3, 7.2 and 7.3, for TLS_AES_256_GCM_SHA384. It replaces an engine
    that has sent nothing since the handshake.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._derive()

    def _derive(self) -> None:
        self.key = AESGCM(self._expand(b"key", 32))
        self.iv = self._expand(b"iv", 12)
        self.sequence = 0

    def _expand(self, label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return hmac.new(self.secret, info + b"\1", hashlib.sha384).digest()[:length]

    def record(self, kind: int, content: bytes) -> bytes:
        inner = content + bytes([kind])
        head = b"\x17\3\3" + (len(inner) + 16).to_bytes(2, "big")
        counter = self.sequence.to_bytes(12, "big")
        nonce = bytes(a ^ b for a, b in zip(self.iv, counter, strict=True))
        self.sequence += 1
        return head + self.key.encrypt(nonce, inner, head)

    def encrypt(self, data: bytes) -> bytes:
        return self.record(23, data)

    def close_notify(self) -> bytes:
        return self.alert(1, 0)

    def alert(self, level: int, description: int) -> bytes:
        return self.record(21, bytes([level, description]))

    def key_update(self, *, answer: bool) -> bytes:
        """A KeyUpdate (RFC 8446 4.6.3). With ``answer``, it asks the client for one too."""
        record = self.record(22, bytes([24, 0, 0, 1, answer]))
        self.secret = self._expand(b"traffic upd", 48)
        self._derive()
        return record


# --- in memory


class Wire(Transport):
    """A transport whose far end is the test."""

    def __init__(self) -> None:
        self.arriving: deque[bytes] = deque()  # a receive takes data only from the first item
        self.ends: BaseException | None = None  # what receive raises after that
        self.sent = bytearray()
        self.room: float = float("inf")  # how many more bytes it accepts
        self.most = 0  # the size of the longest send
        self.asked = 0  # the largest size that a receive requested
        self.gives_way = True  # each call that need not wait is a checkpoint
        self.calls: list[str] = []  # the calls that ended it
        self.hangup = anyio.Event()
        self._sending = False
        self._changed = anyio.Event()

    # --- for the test

    def arrive(self, *segments: bytes, ends: BaseException | None = None) -> None:
        self.arriving += (segment for segment in segments if segment)
        if ends is not None:
            self.ends = ends
        self._wake()

    def make_room(self, room: float = float("inf")) -> None:
        self.room = room
        self._wake()

    def take(self) -> bytes:
        """The data that was sent since the last call of this method."""
        data = bytes(self.sent)
        self.sent.clear()
        return data

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    # --- Transport

    def may_go_on(self, amount: int) -> bool:
        return not self.gives_way

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        self.asked = max(self.asked, max_bytes)
        if self.arriving:
            segment = self.arriving.popleft()
            if segment[max_bytes:]:
                self.arriving.appendleft(segment[max_bytes:])
            return segment[:max_bytes]
        if self.ends is not None:
            raise self.ends
        return None

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await checkpoint_if_cancelled()
        while (data := self.receive_nowait(max_bytes)) is None:
            await self._changed.wait()
        await cancel_shielded_checkpoint()
        return data

    def stop_receiving(self) -> None:
        raise AssertionError("no test needs this")

    def resume_receiving(self) -> None:
        raise AssertionError("no test needs this")

    def unread(self) -> bool:
        raise AssertionError("TLS decides that")

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        assert not self._sending, "this would go out in the middle of another send"
        return self._put(data)

    def _put(self, data: bytes | bytearray | memoryview) -> int:
        count = int(min(len(data), self.room))
        self.sent += data[:count]
        self.room -= count
        return count

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        await checkpoint_if_cancelled()
        assert not self._sending, "two tasks send at once"
        assert not self.torn
        self._sending = True
        view = memoryview(item).cast("B")
        self.most = max(self.most, len(view))
        sent = 0
        try:
            while True:
                sent += self._put(view[sent:])
                if sent == len(view):
                    break
                await self._changed.wait()
        except BaseException:
            self.torn = sent > 0
            raise
        finally:
            self._sending = False
        await cancel_shielded_checkpoint()

    async def send_eof(self) -> None:
        raise AssertionError("a TLS half-close leaves TCP open")

    async def wait_hangup(self, *, after_eof: bool) -> OSError | None:
        self.calls.append(f"wait_hangup({after_eof})")
        await self.hangup.wait()
        return ConnectionResetError("reset")

    async def aclose(self) -> None:
        self.calls.append("aclose")
        await checkpoint()

    async def finish(self) -> bool:
        self.calls.append("finish")
        return True

    async def wait_room(self) -> None:
        while not self.room:
            await self._changed.wait()

    async def abort(self) -> None:
        self.calls.append("abort")


def shaken(
    version: ssl.TLSVersion,
    *,
    client: ssl.SSLContext | None = None,
    require_close_notify: bool = True,
    over: TLSTransport | None = None,
) -> tuple[TLSTransport, Wire, Server]:
    """TLS over a wire, or over TLS, after the handshake."""
    records = None if require_close_notify else Records()
    server = Server(_kept_server_context(version))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client or _kept_client_context()
    engine = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    done = False
    while not done:
        with suppress(ssl.SSLWantReadError):
            engine.do_handshake()
        server.incoming.write(outgoing.read())
        done = server.shake()
        said = server.outgoing.read()
        incoming.write(said)
        if records is not None:
            records.follow(said)
    with suppress(ssl.SSLWantReadError):
        engine.do_handshake()
    wire = Wire()
    return TLSTransport(over or wire, engine, incoming, outgoing, records), wire, server


def forged() -> tuple[TLSTransport, Wire, Server, Forger]:
    """TLS 1.3 over a wire, after the handshake. The server decrypts, the forger encrypts."""
    context = client_context(TLS13)
    with logging_secrets(context) as forger_of:
        tls, wire, server = shaken(TLS13, client=context)
        return tls, wire, server, forger_of(server)


@contextmanager
def logging_secrets(context: ssl.SSLContext) -> Iterator[Callable[[Server], Forger]]:
    """Make a forger for a server that has just made a handshake with a client of ``context``."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "secrets"

        def forger_of(server: Server) -> Forger:
            assert server.engine.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
            lines = [line.split() for line in log.read_text().splitlines() if line[0] != "#"]
            secrets = {label: bytes.fromhex(secret) for label, _, secret in lines}
            return Forger(secrets["SERVER_TRAFFIC_SECRET_0"])

        context.keylog_filename = str(log)
        try:
            yield forger_of
        finally:
            # None closes it, but no stub has that.
            context.keylog_filename = None  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]


# --- over TCP


class TLSPeer:
    """A server's end of a TCP connection."""

    def __init__(self, peer: Peer, context: ssl.SSLContext) -> None:
        self.peer = peer
        self.server = Server(context)

    async def shake(self) -> None:
        done = False
        while not done:
            try:
                done = self.server.shake()
            finally:
                await self.peer.send(self.server.outgoing.read())  # an alert too
            if not done:
                ciphertext = await self.peer.receive()
                if not ciphertext:
                    raise anyio.EndOfStream
                self.server.incoming.write(ciphertext)

    async def send(self, data: bytes) -> None:
        await self.peer.send(self.server.encrypt(data))

    async def receive(self) -> bytes:
        """The next data; b"" after close_notify. An end of TCP alone raises EndOfStream."""
        data = self.server.decrypt(b"")
        while not data and not self.server.ended:
            ciphertext = await self.peer.receive()
            if not ciphertext:
                raise anyio.EndOfStream
            data = self.server.decrypt(ciphertext)
        return data

    async def receive_all(self) -> bytes:
        """All data up to the client's close_notify."""
        chunks = []
        while chunk := await self.receive():
            chunks.append(chunk)
        return b"".join(chunks)


class RenegotiatingPeer:
    """A server's end, of TLS 1.2, that can ask for a new handshake.

    Python's ssl module cannot ask for one, but pyOpenSSL can. The handshake makes progress when
    the peer receives.
    """

    def __init__(self, peer: Peer) -> None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        certificate(NAME).configure_cert(context)
        self.peer = peer
        self.engine = SSL.Connection(context, None)
        self.engine.set_accept_state()

    async def _flush(self) -> None:
        """Send the output of the engine."""
        with suppress(SSL.WantReadError):
            while True:
                await self.peer.send(self.engine.bio_read(65536))

    async def _fetch(self) -> None:
        ciphertext = await self.peer.receive()
        if not ciphertext:
            raise anyio.EndOfStream
        self.engine.bio_write(ciphertext)

    async def shake(self) -> None:
        done = False
        while not done:
            with suppress(SSL.WantReadError):
                self.engine.do_handshake()
                done = True
            await self._flush()
            if not done:
                await self._fetch()

    async def ask(self) -> None:
        """Send a HelloRequest (RFC 5246 section 7.4.1.1)."""
        assert self.engine.renegotiate()
        with suppress(SSL.WantReadError):
            self.engine.do_handshake()
        await self._flush()

    async def send(self, data: bytes) -> None:
        self.engine.sendall(data)
        await self._flush()

    async def receive(self) -> bytes:
        """The next data; b"" after close_notify. An end of TCP alone raises EndOfStream."""
        while True:
            try:
                return self.engine.recv(65536)
            except SSL.ZeroReturnError:
                return b""
            except SSL.WantReadError:
                await self._flush()
                await self._fetch()


def dial(address: tuple[str, int], *, send_buffer: int | None = None) -> TCPTransport:
    """A transport to a listener on loopback. Connecting there never waits."""
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    if send_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, send_buffer)
    sock.connect(address)
    sock.setblocking(False)
    return TCPTransport(sock)


@asynccontextmanager
async def over_tcp(
    server: ssl.SSLContext,
    *,
    host: str = "127.0.0.1",
    buffers: int | None = None,
    **options: Any,
) -> AsyncIterator[tuple[TLSTransport, TLSPeer]]:
    """TLS over TCP on loopback, after the handshake, and the peer it is connected to."""
    options = {"server_hostname": NAME, "context": client_context(), **options}
    async with listening(host, receive_buffer=buffers) as listener:
        transport = dial(listener.address, send_buffer=buffers)
        try:
            peer = TLSPeer(await listener.accept(), server)
            if buffers is not None:
                peer.peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(peer.shake)
                tls = await start_tls(transport, where="the peer", **options)
            yield tls, peer
        finally:
            await transport.abort()


async def tls_socket_pair(version: ssl.TLSVersion) -> tuple[Socket, Socket]:
    """Two open half-open sockets over TLS: that of a client and that of its server."""
    listener = Listener()
    try:
        transport = dial(listener.address)
        peer = TLSPeer(await listener.accept(), server_context(version))
        listener.peers.clear()
    finally:
        listener.close()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.shake)
        ours = await start_tls(
            transport, where="the peer", server_hostname=NAME, context=client_context()
        )
    server = peer.server
    theirs = TLSTransport(
        TCPTransport(peer.peer.sock), server.engine, server.incoming, server.outgoing
    )
    pair = socket_over(ours, half_open=True), socket_over(theirs, half_open=True)
    for one in pair:
        await one.opened
    return pair


async def failing(peer_does: Callable[[Peer], Awaitable[object]], **options: Any) -> TLSError:
    """Make a handshake with a peer that makes it fail; return the error."""
    options = {"server_hostname": NAME, "context": client_context(), **options}
    async with listening() as listener:
        transport = dial(listener.address)
        peer = await listener.accept()

        async def act() -> None:
            with suppress(ssl.SSLError, OSError, anyio.EndOfStream):
                await peer_does(peer)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(act)
            with pytest.raises(TLSError) as caught:
                await start_tls(transport, where="the peer", **options)
        with pytest.raises(anyio.ClosedResourceError):
            transport.receive_nowait(1)
    return caught.value
