"""TLS as a transport over any other: the part of TLS that the standard library leaves out.

``ssl.SSLObject`` turns bytes into records and back; what to do when is decided here. It has no
half-close as such: ``unwrap()`` sends our close_notify, says that it would like to read the
peer's, and can then be left alone, since ``read()`` goes on. But where application data lies
undecrypted at that moment, ``unwrap()`` takes it for an answer, fails, and the data is lost. So
everything is decrypted first, with no await in between.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from ._copies import fresh
from ._readiness import Pause
from ._tls_errors import explain, handshake_ended, handshake_failed
from ._transport import DEFAULT_MAX_BYTES, Transport

#: How much ciphertext to ask the transport for at a time, in bytes: a few records, and more only
#: for who wants more. What is here undecrypted is never more than that, and nothing is asked for
#: before it is wanted.
_READ = 65536
_MOST_READ = 4 * _READ

#: How much data to encrypt before it is sent, in bytes. The engine would take any amount at
#: once, and hold all of its ciphertext.
_WRITE = 65536

#: What a record holds at most, in bytes (RFC 8446 section 5.1), so no read returns more.
_RECORD = 16384

#: How much ciphertext may wait to be sent, in bytes: twice what a send makes at a time. There
#: is more only where a peer asks for answers and reads none.
_MAX_WAITING = 2 * _WRITE

#: How often to take more from the transport in search of data before others get to run. Two
#: are enough for any record; a peer can send what is no data as fast as it is taken.
_ROUNDS = 8


#: The transport broke, or another task closed it.
_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)

#: The contexts of everybody who brings none of their own, by what they offer.
_contexts: dict[tuple[str, ...], ssl.SSLContext] = {}

#: Held by the thread that builds one of them.
_building = threading.Lock()


async def default_context(alpn: tuple[str, ...]) -> ssl.SSLContext:
    """The shared context for ``alpn``. Building one reads files for tens of milliseconds."""
    try:
        return _contexts[alpn]
    except KeyError:
        return await anyio.to_thread.run_sync(_shared_context, alpn, abandon_on_cancel=True)


def _shared_context(alpn: tuple[str, ...]) -> ssl.SSLContext:
    """Build it, unless another thread just has; kept even where nobody waits any more."""
    with _building:
        if alpn not in _contexts:
            _contexts[alpn] = _build_context(alpn)
        return _contexts[alpn]


def _build_context(alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    file = ssl.get_default_verify_paths().cafile
    if file and not context.cert_store_stats()["x509_ca"]:
        # OpenSSL does not say that it could not open it, for want of a descriptor perhaps. Kept,
        # such a context would trust nobody for ever.
        with suppress(ssl.SSLError):  # there is none in it
            context.load_verify_locations(file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # gone from TLS 1.3, and attacked before
    context.hostname_checks_common_name = False  # RFC 9525 6.3: a common name is nobody's name
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def start_tls(
    transport: Transport,
    *,
    where: str,
    server_hostname: str,
    alpn: tuple[str, ...] | None = None,
    context: ssl.SSLContext | None = None,
) -> TLSTransport:
    """Make the client's handshake with ``where`` and return the encrypted transport.

    ``server_hostname`` is what the certificate must be for, and is sent as SNI where it is a
    name. ``alpn`` is for the default context; one's own, which is never changed, has its own.
    Failed or cancelled, the handshake leaves the transport closed.

    :raises TLSError: the handshake failed
    """
    # The root's dot is no part of a name in a certificate (RFC 6125), a zone none of an address.
    name = server_hostname.removesuffix(".").partition("%")[0]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine: ssl.SSLObject | None = None
    said = b""  # what the peer said first: the engine keeps what is too short for a record
    try:
        if context is None:
            context = await default_context(alpn or ())
        engine = context.wrap_bio(incoming, outgoing, server_hostname=name)
        while True:
            finished = _want_read(engine.do_handshake)
            if ciphertext := outgoing.read():
                await transport.send(ciphertext)
            if finished:
                return TLSTransport(transport, engine, incoming, outgoing)
            ciphertext = await transport.receive(_READ)
            said = said or ciphertext
            incoming.write(ciphertext)
    except (OSError, ValueError) as exc:  # TLS's own errors are both
        error = handshake_failed(where, name, exc, _certificate(engine))
    except (anyio.EndOfStream, *_GONE) as exc:
        error = handshake_ended(where, exc, said)
    except BaseException:
        await transport.abort()
        raise
    try:
        with suppress(*_GONE):  # the alert that says what is wrong
            transport.send_nowait(outgoing.read())
    finally:
        await transport.finish()
    raise fresh(error)


def _want_read(call: Callable[[], object]) -> bool:
    """Whether ``call`` got through without more from the peer."""
    try:
        call()
    except ssl.SSLWantReadError:
        return False
    return True


def _certificate(engine: Any) -> Mapping[str, Any]:
    """What a certificate that was turned away says; empty where that cannot be had.

    ``getpeercert()`` tells only of those that were accepted. The list that this reads has
    been there since Python 3.10, and is public, in another form, since 3.13.
    """
    try:
        certificate: Mapping[str, Any] = engine._sslobj.get_verified_chain()[0].get_info()
    except (AttributeError, IndexError, TypeError, ValueError):
        return {}
    return certificate


class TLSTransport(Transport):
    """TLS over another transport, after its handshake.

    Full duplex: only ``receive`` waits for the peer's bytes, only ``send``, ``send_eof`` and
    ``aclose`` wait for room. What TLS has to say of itself while receiving (the answer to a
    KeyUpdate, an alert) goes out at once where there is room, and otherwise with the next receive
    or send that finds some, in order.

    Errors stay: after ``EndOfStream`` (the peer's close_notify) or ``BrokenResourceError`` every
    receive raises the same. An end of the transport without close_notify is the latter.
    """

    def __init__(
        self,
        transport: Transport,
        engine: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        self._transport = transport
        self._engine = engine
        self._incoming = incoming
        self._outgoing = outgoing
        self._decrypted = bytearray()  # taken from the engine before anybody asked
        self._unsent = b""  # ciphertext that has to go out before any other
        self._flushing = False
        self._ended = False  # our close_notify is written
        self._peer_ended = False  # the peer's close_notify was read
        self._error: ssl.SSLError | None = None  # the session is lost
        self._decrypting: anyio.Event | None = None  # who sends waits for who receives
        self._stopped = False  # nobody receives any more
        self._aborted = False

    # --- receiving

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        data = self._take(max_bytes)
        for _ in range(_ROUNDS):
            if data is not None:
                break
            try:
                ciphertext = self._transport.receive_nowait(_READ)
            except anyio.EndOfStream:
                self._truncated()
            if ciphertext is None:
                break
            self._incoming.write(ciphertext)
            data = self._take(max_bytes)
        return data

    async def receive(self, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Receive up to ``max_bytes`` bytes. Cancelled, it loses nothing.

        :raises anyio.EndOfStream: the peer sent close_notify
        :raises anyio.BrokenResourceError: the transport ended without it, or broke; what came
            is no TLS
        :raises anyio.ClosedResourceError: the transport was closed
        """
        data: bytes | None = None
        if self._decrypted or self._incoming.pending or self._engine.pending() or self._over():
            if not self._transport.may_go_on(min(max_bytes, _RECORD)):
                await checkpoint()
            if self._stopped:
                raise anyio.ClosedResourceError
            data = self._take(max_bytes)
        while data is None:
            try:
                most = min(max(_READ, max_bytes), _MOST_READ)
                ciphertext = await self._transport.receive(most)
            except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
                # Meanwhile unread() may have taken what came before that.
                data = self._take(max_bytes)
                if data is None and isinstance(exc, anyio.EndOfStream):
                    self._truncated()
                if data is None:
                    raise
            else:
                self._incoming.write(ciphertext)
                data = self._take(max_bytes)
        return data

    def _over(self) -> bool:
        return self._peer_ended or self._error is not None

    def stop_receiving(self) -> None:
        self._stopped = True
        self._transport.stop_receiving()

    def may_go_on(self, amount: int) -> bool:
        return self._transport.may_go_on(amount)

    async def enter(self) -> None:
        await self._transport.enter()

    @property
    def leave(self) -> Pause | None:
        return self._transport.leave

    def unread(self) -> bool:
        if not self._decrypted:
            try:
                self._decrypted += self.receive_nowait(_RECORD) or b""
            except anyio.EndOfStream:
                return False
        return True

    def _take(self, max_bytes: int) -> bytes | None:
        """Data that needs no more ciphertext than is here already."""
        if self._decrypted:
            data = bytes(self._decrypted[:max_bytes])
            del self._decrypted[:max_bytes]
            return data
        first = self._decrypt(max_bytes)
        # The engine gives no more than a record at a time. Behind a full one there is more of the
        # same, most likely.
        if first is None or len(first) < _RECORD or len(first) == max_bytes:
            return first
        pieces, room = [first], max_bytes - len(first)
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # the next call tells that
            while room and (more := self._decrypt(room)) is not None:
                pieces.append(more)
                room -= len(more)
        return b"".join(pieces)

    def _decrypt(self, max_bytes: int) -> bytes | None:
        """Take what the engine can decrypt; None if it needs more ciphertext for that."""
        self._check_session()
        if self._peer_ended:
            raise anyio.EndOfStream
        data: bytes | None = None
        try:
            data = self._engine.read(min(max_bytes, _RECORD))
            self._peer_ended = data == b""
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            # How close_notify shows once we have sent ours; before, as b"".
            self._peer_ended = True
        except ssl.SSLError as exc:
            self._error = fresh(exc)
        if self._outgoing.pending or self._unsent:
            with suppress(*_GONE):
                self._flush_nowait()  # an answer, or the alert that says what is wrong
        if self._decrypting is not None:
            self._decrypting.set()
        if not data:
            self._check_session()
        if self._peer_ended:
            raise anyio.EndOfStream
        if self._outgoing.pending + len(self._unsent) > _MAX_WAITING:
            self._error = ssl.SSLError(
                ssl.SSL_ERROR_SSL,
                "the peer wants an answer to each of its many KeyUpdates, and reads none",
            )
        return data

    def _truncated(self) -> NoReturn:
        # Found here, not by the engine, because a context can be told to let it pass
        # (OP_IGNORE_UNEXPECTED_EOF). RFC 8446 6.1: without close_notify it may be an attack.
        self._error = ssl.SSLEOFError(
            ssl.SSL_ERROR_EOF,
            "the peer ended the connection without TLS close_notify: what it sent may have "
            "been truncated",
        )
        if self._decrypting is not None:
            self._decrypting.set()
        raise self._lost(self._error) from self._error

    def _check_session(self) -> None:
        if self._error is not None:
            raise self._lost(self._error) from self._error

    @staticmethod
    def _lost(error: ssl.SSLError) -> anyio.BrokenResourceError:
        return anyio.BrokenResourceError(explain(error))

    # --- sending

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        # Once encrypted, bytes must go out, and whether there is room shows only then.
        return 0

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of ``item``.

        Cancelled before any of it was encrypted, it has done nothing. Cancelled after that, it
        sets ``torn``: nothing can be sent any more, reading goes on.

        :raises anyio.BrokenResourceError: the transport broke, the session is lost, or an
            earlier send was cut short
        :raises anyio.ClosedResourceError: our side has ended, or the transport was closed
        """
        view = memoryview(item).cast("B")
        transport = self._transport
        if not transport.may_go_on(len(view)):
            await (transport.enter() if view else checkpoint())
        self._check_sending()
        if not view:
            return
        if self._unsent or self._outgoing.pending:
            await self._flush()
        try:
            while view:
                written = self._encrypt(view[:_WRITE])
                if not written:
                    await self._renegotiated()
                    continue
                await self._flush()
                view = view[written:]
                if view and not transport.may_go_on(_WRITE):
                    await checkpoint()
        except BaseException:
            self.torn = True
            raise
        if transport.leave is not None:
            await transport.leave()

    async def _renegotiated(self) -> None:
        """Wait for who receives to get on with a renegotiation, or with anything else."""
        self._decrypting = anyio.Event()
        try:
            await self._flush()
            await self._decrypting.wait()
        finally:
            self._decrypting = None
        if self._aborted:
            raise anyio.ClosedResourceError

    def _check_sending(self) -> None:
        self._check_session()
        if self.torn:
            raise anyio.BrokenResourceError("an earlier send was cut short")
        if self._ended:
            raise anyio.ClosedResourceError

    def _encrypt(self, view: memoryview) -> int:
        """Turn data into ciphertext; return how much, which is all of it or none.

        None: the engine waits for the peer, in mid-renegotiation. Who receives will see to that.
        """
        self._check_session()
        try:
            return self._engine.write(view)
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLError as exc:
            self._error = fresh(exc)
            raise self._lost(exc) from exc

    def _ciphertext(self) -> bytes:
        """What has to go out next, in the order in which the engine made it."""
        made = self._outgoing.read()
        # Behind a cut message nothing may follow. Behind close_notify the peer would leave it
        # unread: its kernel then answers close() with a reset, and its last words can be lost.
        if not self.torn and not self._ended:
            self._unsent += made
        return self._unsent

    async def _flush(self) -> None:
        """Send all ciphertext there is. One task at a time comes here."""
        self._flushing = True
        try:
            while ciphertext := self._ciphertext():
                sent = self._transport.send_nowait(ciphertext)
                self._unsent = rest = ciphertext[sent:]
                if rest:
                    await self._transport.send(rest)
                    self._unsent = self._unsent[len(rest) :]
        finally:
            # Where it was not cut, the same ciphertext can still go out.
            self.torn = self.torn or self._transport.torn
            self._flushing = False

    def _flush_nowait(self) -> None:
        """Send what ciphertext there is room for, unless a task is at it."""
        if self._flushing:
            return
        ciphertext = self._ciphertext()
        if ciphertext and not self.torn:
            sent = self._transport.send_nowait(ciphertext)
            self._unsent = ciphertext[sent:]

    # --- ending

    async def send_eof(self) -> None:
        """Send close_notify, and leave the transport open: reading goes on.

        RFC 8446 6.1 keeps the peer's direction open. RFC 5246 7.2.1 lets a peer of TLS 1.2 drop
        what it had yet to say, though most do not.

        Cancelled before close_notify has gone out whole, it sets ``torn``.

        :raises anyio.BrokenResourceError: as of :meth:`send`
        :raises anyio.ClosedResourceError: the transport was closed
        """
        if self._ended and not self.torn:
            await checkpoint()
            return
        self._check_sending()
        try:
            while not self._end():
                await self._renegotiated()
                self._check_sending()
            self._check_session()
            # Where there is room, or nobody any more, done even if the caller is cancelled.
            self._flush_nowait()
            await self._flush()
        except BaseException:
            self.torn = True
            raise

    def _end(self) -> bool:
        """Write close_notify (RFC 8446 6.1), once.

        False: the engine is in mid-renegotiation, where it cannot be written.
        """
        if self._ended:
            return True
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while (data := self._decrypt(_RECORD)) is not None:
                self._decrypted += data
        if self._error is None:
            try:
                self._engine.unwrap()
            except ssl.SSLError as exc:  # as a rule, it wants to read the peer's: receive() will
                if exc.reason == "SHUTDOWN_WHILE_IN_INIT":
                    return False
            self._ciphertext()
            self._ended = True
        return True

    async def aclose(self) -> None:
        """Send close_notify, and close the transport without waiting for the peer's.

        Waits for room. Cancelled while it does, or called while a message is cut or under way,
        it drops the connection instead.
        """
        if self._must_drop() or not self._end():
            await self.abort()
            return
        try:
            self._flush_nowait()
            if self._error is None:
                await self._flush()
        except _GONE:
            pass
        except BaseException:
            await self.abort()
            raise
        await self._transport.aclose()

    async def finish(self) -> bool:
        if self._must_drop() or not self._end():
            await self.abort()
            return True
        with suppress(*_GONE):
            self._flush_nowait()
            if self._unsent and self._error is None:
                return False
        return await self._transport.finish()

    async def wait_room(self) -> None:
        await self._transport.wait_room()

    def _must_drop(self) -> bool:
        """Whether the peer holds a piece of a message, so that no clean end may follow."""
        return self.torn or self._flushing or self._decrypting is not None

    async def abort(self) -> None:
        self._aborted = True
        if self._decrypting is not None:
            self._decrypting.set()
        await self._transport.abort()

    # --- watching and attributes

    @property
    def alpn(self) -> str | None:
        """The protocol that the handshake agreed on (RFC 7301)."""
        return self._engine.selected_alpn_protocol()

    async def wait_hangup(self, *, after_eof: bool) -> OSError | None:
        return await self._transport.wait_hangup(after_eof=after_eof)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        from anyio.streams.tls import TLSAttribute  # here, because hardly anybody needs it

        engine = self._engine
        names: Any = TLSAttribute  # its members are keys here, but typed as what they stand for
        tls: dict[Any, Callable[[], Any]] = {
            names.alpn_protocol: engine.selected_alpn_protocol,
            names.channel_binding_tls_unique: engine.get_channel_binding,
            names.cipher: engine.cipher,
            names.peer_certificate: lambda: engine.getpeercert(binary_form=False),
            names.peer_certificate_binary: lambda: engine.getpeercert(binary_form=True),
            names.server_side: lambda: engine.server_side,
            names.shared_ciphers: engine.shared_ciphers,
            names.ssl_object: lambda: engine,
            names.standard_compatible: lambda: True,
            names.tls_version: engine.version,
        }
        return {**self._transport.extra_attributes, **tls}
