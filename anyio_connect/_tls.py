"""TLS as a transport over any other: the part of TLS that the standard library leaves out.

``ssl.SSLObject`` turns bytes into records and back; what to do when is decided here. It has no
half-close as such: ``unwrap()`` sends our close_notify, says that it would like to read the
peer's, and can then be left alone, since ``read()`` goes on. But where application data lies
undecrypted at that moment, ``unwrap()`` takes it for an answer, fails, and the data is lost. So
everything is decrypted first, with no await in between.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import anyio
import anyio.to_thread
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled
from anyio.streams.tls import TLSAttribute

from ._tls_errors import handshake_ended, handshake_failed
from ._transport import DEFAULT_MAX_BYTES, Transport

#: How much ciphertext to ask the transport for at a time, in bytes: a few records. What is
#: here undecrypted is never more than that, and nothing is asked for before it is wanted.
_READ = 65536

#: How much ciphertext to collect before it is sent, in bytes.
_WRITE = 65536


#: The transport broke, or another task closed it.
_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)

#: The contexts of everybody who brings none of their own, by what they offer.
_contexts: dict[tuple[str, ...], ssl.SSLContext] = {}


async def default_context(alpn: tuple[str, ...]) -> ssl.SSLContext:
    """The shared context for ``alpn``. Building one reads files for tens of milliseconds."""
    try:
        return _contexts[alpn]
    except KeyError:
        context = await anyio.to_thread.run_sync(_build_context, alpn, abandon_on_cancel=True)
        return _contexts.setdefault(alpn, context)


def _build_context(alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # gone from TLS 1.3, and attacked before
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
    name. Failed or cancelled, the handshake leaves the transport closed.

    :raises TLSError: the handshake failed
    """
    # The root's dot is no part of a name in a certificate (RFC 6125), a zone none of an address.
    name = server_hostname.removesuffix(".").partition("%")[0]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine: ssl.SSLObject | None = None
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
            incoming.write(await transport.receive(_READ))
    except (ssl.SSLError, ssl.CertificateError, ValueError) as exc:
        error = handshake_failed(where, name, exc, _certificate(engine))
    except (anyio.EndOfStream, *_GONE) as exc:
        error = handshake_ended(where, exc)
    except BaseException:
        await transport.abort()
        raise
    try:
        with suppress(
            anyio.BrokenResourceError, anyio.ClosedResourceError
        ):  # the alert that says what is wrong
            transport.send_nowait(memoryview(outgoing.read()))
    finally:
        await transport.finish()
    raise error


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
    KeyUpdate, an alert) goes out when there is room or with the next send, in order.
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
        self._unsent = b""  # ciphertext that did not go out at once; the next goes after it
        self._flushing = False
        self._ended = False  # our close_notify is written
        self._peer_ended = False  # the peer's close_notify was read
        self._error: ssl.SSLError | None = None  # the session is lost
        self._decrypting: anyio.Event | None = None  # who sends waits for who receives

    # --- receiving

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        if self._decrypted:
            data = bytes(self._decrypted[:max_bytes])
            del self._decrypted[:max_bytes]
            return data
        while (found := self._decrypt(max_bytes)) is None:
            try:
                ciphertext = self._transport.receive_nowait(_READ)
            except anyio.EndOfStream:
                self._truncated()
            if ciphertext is None:
                return None
            self._incoming.write(ciphertext)
        return found

    async def receive(self, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        await checkpoint_if_cancelled()
        data = self.receive_nowait(max_bytes)
        if data is not None:
            await cancel_shielded_checkpoint()
        while data is None:
            try:
                ciphertext = await self._transport.receive(_READ)
            except anyio.EndOfStream:
                self._truncated()
            self._incoming.write(ciphertext)
            data = self.receive_nowait(max_bytes)
        return data

    def unread(self) -> bool:
        if self._decrypted:
            return True
        try:
            data = self.receive_nowait(DEFAULT_MAX_BYTES)
        except anyio.EndOfStream:
            return False
        if data is not None:
            self._decrypted += data
        return True

    def _decrypt(self, max_bytes: int) -> bytes | None:
        """Take what the engine can decrypt; None if it needs more ciphertext for that."""
        if self._error is not None:
            raise anyio.BrokenResourceError(str(self._error)) from self._error
        if self._peer_ended:
            raise anyio.EndOfStream
        data: bytes | None = b""
        try:
            data = self._engine.read(max_bytes)
        except ssl.SSLWantReadError:
            data = None
        except ssl.SSLZeroReturnError:
            pass  # how close_notify shows once we have sent ours; before, as b""
        except ssl.SSLError as exc:
            self._error = exc
            raise anyio.BrokenResourceError(str(exc)) from exc
        finally:
            if self._outgoing.pending or self._unsent:
                self._flush_nowait()
            if self._decrypting is not None:
                self._decrypting.set()
        if data == b"":
            self._peer_ended = True
            raise anyio.EndOfStream
        return data

    def _truncated(self) -> NoReturn:
        # Found here, not by the engine, because a context can be told to let it pass
        # (OP_IGNORE_UNEXPECTED_EOF). RFC 8446 6.1: without close_notify it may be an attack.
        self._error = ssl.SSLEOFError(
            ssl.SSL_ERROR_EOF,
            "the peer ended the connection without TLS close_notify: what it sent may have "
            "been truncated",
        )
        raise anyio.BrokenResourceError(str(self._error)) from self._error

    # --- sending

    def send_nowait(self, data: memoryview) -> int:
        # Once encrypted, bytes must go out, and whether there is room shows only then.
        return 0

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        await checkpoint_if_cancelled()
        self._check_sending()
        view = memoryview(item).cast("B")
        if not view:
            await cancel_shielded_checkpoint()
            return
        await self._flush()
        try:
            while view:
                written = self._encrypt(view)
                view = view[written:]
                if not written:
                    self._decrypting = anyio.Event()
                    await self._decrypting.wait()
                elif not view or self._outgoing.pending >= _WRITE:
                    await self._flush()
        except BaseException:
            self.torn = True
            raise

    def _check_sending(self) -> None:
        if self._ended:
            raise anyio.ClosedResourceError
        if self._error is not None:
            raise anyio.BrokenResourceError(str(self._error)) from self._error
        if self.torn:
            raise anyio.BrokenResourceError("an earlier send was cut short")

    def _encrypt(self, view: memoryview) -> int:
        """Turn up to a record's worth of data into ciphertext; return how much that was.

        0: the engine waits for the peer, in mid-renegotiation. Who receives will see to that.
        """
        try:
            return self._engine.write(view)
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLError as exc:
            self._error = exc
            raise anyio.BrokenResourceError(str(exc)) from exc

    async def _flush(self) -> None:
        """Send all ciphertext there is, in order. One task at a time comes here."""
        self._flushing = True
        try:
            while ciphertext := self._unsent + self._outgoing.read(_WRITE):
                self._unsent = b""
                await self._transport.send(ciphertext)
        except BaseException:
            self.torn = True  # records are missing from the sequence: no other may follow
            raise
        finally:
            self._flushing = False

    def _flush_nowait(self) -> None:
        """Send what ciphertext there is room for, unless a task is at it."""
        if self._flushing or self.torn:
            return
        with suppress(*_GONE):
            while ciphertext := self._unsent + self._outgoing.read(_WRITE):
                sent = self._transport.send_nowait(memoryview(ciphertext))
                self._unsent = ciphertext[sent:]
                if self._unsent:
                    break

    # --- ending

    async def send_eof(self) -> None:
        if self._ended:
            return
        self._check_sending()
        self._end()
        # Where there is room, done even if the caller is cancelled.
        self._flush_nowait()
        await self._flush()
        await cancel_shielded_checkpoint()

    def _end(self) -> None:
        """Write close_notify (RFC 8446 6.1), once."""
        if self._ended or self.torn or self._error is not None:
            return
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while (data := self._decrypt(DEFAULT_MAX_BYTES)) is not None:
                self._decrypted += data
        self._ended = True
        if self._error is None:
            with suppress(ssl.SSLError):  # it wants to read the peer's: receive() will
                self._engine.unwrap()

    async def aclose(self) -> None:
        if self.torn:
            await self._transport.abort()
            return
        self._end()
        self._flush_nowait()
        try:
            await self._flush()
        except _GONE:
            pass
        except BaseException:
            await self._transport.abort()
            raise
        await self._transport.aclose()

    async def finish(self) -> None:
        if self.torn:
            await self._transport.abort()
            return
        self._end()
        self._flush_nowait()
        await self._transport.finish()

    async def abort(self) -> None:
        await self._transport.abort()

    # --- watching and attributes

    async def wait_hangup(self, *, after_eof: bool) -> OSError | None:
        return await self._transport.wait_hangup(after_eof=after_eof)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
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
