"""TLS as a transport over any other: the part of TLS that the standard library leaves out.

``ssl.SSLObject`` turns bytes into records and back; what to do when is decided here. It has no
half-close as such: ``unwrap()`` sends our close_notify, says that it would like to read the
peer's, and can then be left alone, since ``read()`` goes on. But where application data lies
undecrypted at that moment, ``unwrap()`` takes it for an answer, fails, and the data is lost. So
everything is decrypted first, with no await in between.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar, overload

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint

from ._copies import fresh
from ._log import log
from ._readiness import Pause
from ._threads import Threads
from ._tls_errors import check_count, explain, handshake_ended, handshake_failed
from ._transport import DEFAULT_MAX_BYTES, NoSocketError, Transport

#: How much ciphertext to ask the transport for at a time, in bytes: a few records, and more only
#: if the caller wants more. What is here undecrypted is never more than that, and nothing is
#: asked for before it is wanted.
_READ = 65536
_MOST_READ = 4 * _READ

#: How much ciphertext the engine gets at a time, in bytes: more than a record. The engine works
#: through all it has until it finds data, and the event loop stands still meanwhile.
_PIECE = 65536

#: After how much ciphertext that was no data other tasks get to run, in bytes. (Each record of
#: data has some twenty bytes of that; a peer can send KeyUpdates as fast as they are read.)
_NO_DATA = _PIECE

#: How much data to encrypt before it is sent, in bytes. The engine would take any amount at
#: once, and hold all of its ciphertext.
_WRITE = 65536

#: What a record holds at most, in bytes (RFC 8446 section 5.1), so no read returns more.
_RECORD = 16384

#: How long the head of a record is, in bytes.
_HEAD = 5

#: How much ciphertext may wait to be sent, in bytes: twice what a send makes at a time. There
#: is more only if a peer asks for answers and reads none.
_MAX_WAITING = 2 * _WRITE

#: How much data a send that reads for the engine keeps for the next receive, in bytes.
_MAX_KEPT = 1 << 20

#: How often receive_nowait() gives the engine more in search of data.
_ROUNDS = 2

#: How many default contexts are kept. Each holds the system's authorities: a megabyte or so.
_MAX_CONTEXTS = 16

_ENDED_IN_HANDSHAKE = "the peer ended TLS while it was being negotiated again"

#: The transport broke, or another task closed it.
_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)

_T = TypeVar("_T")

#: For contexts: to build them, and for what those of another make do slowly.
_threads = Threads("work on TLS contexts", 64)

# --- contexts


class Contexts:
    """The default contexts of all callers who pass none of their own, in any thread.

    Kept by the class that made them, which others may replace (truststore), and by what they
    offer; the one used last comes last.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[type, tuple[str, ...]], ssl.SSLContext] = OrderedDict()
        self.after_fork()

    def after_fork(self) -> None:
        """In the child, no thread is left that would release the lock."""
        self._building = threading.Lock()  # held by the thread that builds one

    async def get(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """The context for ``alpn``. Building one reads files for tens of milliseconds."""
        context = self._find(alpn)
        return context if context is not None else await _threads.run(partial(self._build, alpn))

    def _find(self, alpn: tuple[str, ...]) -> ssl.SSLContext | None:
        key = (ssl.SSLContext, alpn)
        try:
            self._kept.move_to_end(key)
            return self._kept[key]
        except KeyError:
            return None

    def _build(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """Build it, unless another thread just has; it is kept even if its caller has gone."""
        with self._building:
            context = self._find(alpn)
            if context is None:
                context = build_context(alpn)
                while len(self._kept) >= _MAX_CONTEXTS:
                    self._kept.popitem(last=False)
                self._kept[ssl.SSLContext, alpn] = context
            return context


_contexts = Contexts()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_contexts.after_fork)


def build_context(alpn: Sequence[str] = (), cafile: str | None = None) -> ssl.SSLContext:
    """A context for clients as strict as ours are, which trusts the system's authorities.

    ``cafile``: trust the certificates in this file instead.

    :raises OSError: they cannot be read
    """
    context = ssl.create_default_context(cafile=cafile)
    if cafile == "":  # which the standard library takes for none at all
        context.load_verify_locations(cafile="")
    if cafile is None:
        _load_for_certain(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # gone from TLS 1.3, and attacked before
    context.hostname_checks_common_name = False  # RFC 9525 6.3: a common name is nobody's name
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _load_for_certain(context: ssl.SSLContext) -> None:
    file = ssl.get_default_verify_paths().cafile
    try:
        empty = not context.cert_store_stats()["x509_ca"]
    except NotImplementedError:  # truststore, injected: it loads what it needs later
        return
    if file and empty:
        # OpenSSL does not say that it could not open it, for want of a descriptor perhaps. Kept,
        # such a context would trust nobody for ever.
        with suppress(ssl.SSLError):  # there is none in it
            context.load_verify_locations(file)


# --- the handshake


class Records:
    """Where the records of a stream of ciphertext end (RFC 8446 section 5.1), without its keys.

    A record has a head of five bytes, of which the last two tell the length of what follows.
    """

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        self._head = b""  # of the next record, as far as it is here
        self._left = 0  # of the body that it has announced, in bytes

    @property
    def whole(self) -> bool:
        """Whether what came so far ends where a record ends."""
        return not self._left and not self._head

    def follow(self, ciphertext: bytes) -> None:
        at = 0
        while at < len(ciphertext):
            if self._left:
                step = min(self._left, len(ciphertext) - at)
                self._left -= step
            else:
                step = _HEAD - len(self._head)
                self._head += ciphertext[at : at + step]
                if len(self._head) == _HEAD:
                    self._left = int.from_bytes(self._head[-2:], "big")
                    self._head = b""
            at += step


class _EngineError(Exception):
    """An engine or a context raised ``cause``, whatever that is."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


async def start_tls(
    transport: Transport,
    *,
    where: str,
    server_hostname: str,
    alpn: tuple[str, ...] | None = None,
    context: ssl.SSLContext | None = None,
    require_close_notify: bool = True,
) -> TLSTransport:
    """Make the client's handshake with ``where`` and return the encrypted transport.

    ``server_hostname`` is what the certificate must be for, and is sent as SNI if it is a
    name. ``alpn`` is for the default context; one's own, which is never changed, has its own.
    What a context or engine of another make may do slowly is done in a thread. If the handshake
    fails or is cancelled, the transport is closed. ``require_close_notify``: see
    :class:`TLSTransport`.

    :raises TLSError: the handshake failed, for whatever reason
    """
    # The root's dot is no part of a name in a certificate (RFC 6125), a zone none of an address.
    name = server_hostname.removesuffix(".").partition("%")[0]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine: ssl.SSLObject | None = None
    if log.debugs:
        log.debug("%s: TLS handshake, for %s", where, name)
    said = b""  # what the peer said first: the engine keeps what is too short for a record
    records = None if require_close_notify else Records()
    try:
        try:
            # Only what was empty from the start is no name at all: nothing else goes unverified.
            wanted = name if server_hostname else None
            engine = await _make_engine(context, alpn or (), incoming, outgoing, wanted)
            while True:
                finished = await _shake(engine)
                if ciphertext := outgoing.read():
                    await transport.send(ciphertext)
                if finished:
                    if log.debugs:
                        log.debug("%s: %s", where, _agreed(engine))
                    return TLSTransport(transport, engine, incoming, outgoing, records)
                ciphertext = await transport.receive(_READ)
                if records is not None:
                    records.follow(ciphertext)
                said = said or ciphertext
                incoming.write(ciphertext)
        except _EngineError as exc:
            error = handshake_failed(where, name, exc.cause, engine)
        except Exception as exc:  # of the transport: AnyIO's errors, or what a foreign stream has
            why, said = await _last_words(transport, engine, incoming, said)
            if why is None:
                error = handshake_ended(where, exc, said)
            else:
                error = handshake_failed(where, name, why, engine)
        with suppress(*_GONE):  # the alert that says what is wrong
            transport.send_nowait(outgoing.read())
        with suppress(Exception):  # of a foreign stream, which is closed all the same
            await transport.let_go()
    except BaseException:
        await transport.abort()
        raise
    raise fresh(error)


def _agreed(engine: ssl.SSLObject) -> str:
    """What a handshake agreed on, in words."""
    try:
        cipher = engine.cipher()
        return f"{engine.version()} with {cipher and cipher[0]}"
    except Exception:  # of an engine of another make
        return "TLS"


async def _make_engine(
    context: ssl.SSLContext | None,
    alpn: tuple[str, ...],
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
    name: str | None,
) -> ssl.SSLObject:
    try:
        if context is None:
            context = await _contexts.get(alpn)
        chosen = context

        def make() -> ssl.SSLObject:
            return chosen.wrap_bio(incoming, outgoing, server_hostname=name)

        # The standard library's reads no files. Another's may: truststore reads its authorities.
        return make() if _is_native(context) else await _threads.run(make)
    except Exception as exc:
        raise _EngineError(exc) from None


def _is_native(context: Any) -> bool:
    """Whether the standard library and nothing else makes the engines of ``context``."""
    try:
        made_by = context.wrap_bio.__module__, context.sslobject_class
    except Exception:
        return False
    return made_by == ("ssl", ssl.SSLObject)


async def _shake(engine: ssl.SSLObject) -> bool:
    """Go on with the handshake; return whether it got through without more from the peer."""

    def shake() -> bool:
        try:
            engine.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    try:
        # An engine of another make may ask the system what to think of a certificate.
        return shake() if type(engine) is ssl.SSLObject else await _threads.run(shake)
    except Exception as exc:
        raise _EngineError(exc) from None


async def _last_words(
    transport: Transport, engine: ssl.SSLObject | None, incoming: ssl.MemoryBIO, said: bytes
) -> tuple[Exception | None, bytes]:
    """What the engine makes of what was here when the transport broke: an alert says why.

    And what the peer has said in all, or the beginning of that.
    """
    try:
        for _ in range(_ROUNDS):
            ciphertext = transport.receive_nowait(_READ)
            if ciphertext is None or engine is None:
                break
            said = said or ciphertext
            incoming.write(ciphertext)
            await _shake(engine)
    except _EngineError as exc:
        return exc.cause, said
    except Exception:  # of the transport, which has nothing more
        return None, said
    return None, said


class TLSTransport(Transport):
    """TLS over another transport, after its handshake.

    Full duplex, and nothing needs a second task. What TLS has to say of itself while receiving
    (the answer to a KeyUpdate, an alert) goes out at once if there is room, and otherwise with
    the next receive or send that finds some, in order. If the engine cannot send before it has
    heard from the peer (TLS 1.2 may negotiate again), the sending task reads for it, unless a
    receive is in flight, which does that anyway; data that comes is kept for the next receive.

    Errors stay: after ``EndOfStream`` (the peer's close_notify) or ``BrokenResourceError`` every
    receive raises the same. An end of the transport without close_notify is the latter, unless the
    records that came were followed, and it comes where one of them ends. When the transport
    breaks, what the peer had said by then is looked at first: an alert says why.
    """

    def __init__(
        self,
        transport: Transport,
        engine: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        records: Records | None = None,
    ) -> None:
        """``records``: of all that came so far; None: the peer's close_notify is required."""
        self._records = records
        self._transport = transport
        self._engine = engine
        self._incoming = incoming
        self._outgoing = outgoing
        self._held: bytes | memoryview = b""  # ciphertext that the engine is to get next
        self._dry = False  # the engine wants more ciphertext than it has
        self._no_data = 0  # how much of what the engine got was no data, in bytes
        self._decrypted = bytearray()  # taken from the engine before anybody asked
        self._unsent = b""  # ciphertext that has to go out before any other
        self._flushing = False
        self._ended = False  # our close_notify is written
        self._peer_ended = False  # the peer's close_notify was read
        self._error: Exception | None = None  # the session is lost
        self._reading = False  # a task reads from the transport
        self._reading_to_send = False  # and it is one that sends
        self._negotiating = False  # a task that sends waits for the engine to let it
        self._progress: anyio.Event | None = None  # set when such a task may look again
        self._stopped = False  # nothing is to be received any more
        self._aborted = False

    # --- receiving

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        for _ in range(_ROUNDS):
            data = self._take(max_bytes)
            if data is not None or not self._fetch_nowait():
                return data
        return self._take(max_bytes)

    # Both are coroutine functions to their callers, and one frame less to come through each time.

    def receive(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> Coroutine[Any, Any, bytes]:
        """Receive up to ``max_bytes`` bytes. Cancelled, it loses nothing.

        :raises anyio.EndOfStream: the peer sent close_notify
        :raises anyio.BrokenResourceError: the transport ended without it, or broke; what came
            is no TLS
        :raises anyio.ClosedResourceError: the transport was closed
        """
        return self._receive(max_bytes, self._take)

    def receive_into(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, view: memoryview
    ) -> Coroutine[Any, Any, int]:
        """As :meth:`receive`, into ``view``."""
        return self._receive(len(view), partial(self._take_into, view))

    async def _receive(self, max_bytes: int, take: Callable[[int], _T | None]) -> _T:
        data: _T | None = None
        if self._has_some():
            if self._no_data >= _NO_DATA:
                await self._let_others_run()
            elif not self._transport.may_go_on(min(max_bytes, _RECORD)):
                await checkpoint()
            if not self._stopped:
                data = take(max_bytes)
        else:
            self._dry = True
        while data is None:
            if self._no_data >= _NO_DATA:
                await self._let_others_run()
            if self._stopped:
                raise anyio.ClosedResourceError
            if self._held:
                pass
            elif self._reading:  # a task that sends does, and keeps what comes
                await self._wait_for_progress()
            else:
                try:
                    # As _fetch(), which would be one frame more to come through each time.
                    self._reading = True
                    try:
                        most = min(max(_READ, max_bytes), _MOST_READ)
                        begun = self._transport.start_receive(most)
                        self._hold(begun if isinstance(begun, bytes) else await begun)
                    finally:
                        self._reading = False
                        if self._progress is not None:
                            self._tell_progress()
                except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
                    # Meanwhile unread() may have taken what came before that.
                    data = take(max_bytes)
                    while data is None and self._held:
                        data = take(max_bytes)
                    if data is not None:
                        break
                    if isinstance(exc, anyio.EndOfStream):
                        self._end_of_transport()
                    raise
            data = take(max_bytes)
        return data

    def _has_some(self) -> bool:
        """Whether there is something to take, or may be, without waiting for the peer."""
        if self._decrypted or self._held or self._incoming.pending:
            return True
        if self._peer_ended or self._error is not None:
            return True
        try:
            return self._engine.pending() > 0
        except Exception:  # of an engine of another make: reading will tell
            return False

    async def _fetch(self, most: int) -> None:
        """Wait for ciphertext. One task at a time comes here."""
        self._reading = True
        try:
            self._hold(await self._transport.receive(most))
        finally:
            self._reading = False
            if self._progress is not None:
                self._tell_progress()

    def _fetch_nowait(self) -> bool:
        """Get ciphertext that is here; return whether there is some."""
        if not self._held:
            try:
                ciphertext = self._transport.receive_nowait(_READ)
            except anyio.EndOfStream:
                self._end_of_transport()
                raise
            if ciphertext is not None:
                self._hold(ciphertext)
        return len(self._held) > 0

    def _hold(self, ciphertext: bytes) -> None:
        """Keep it for the engine. Whatever takes of it, copies no more than that."""
        if self._records is not None:
            self._records.follow(ciphertext)
        self._held = ciphertext if len(ciphertext) <= _PIECE else memoryview(ciphertext)

    async def _wait_for_progress(self) -> None:
        """Wait until another task has read something, or reads no more."""
        if self._progress is None:
            self._progress = anyio.Event()
        await self._progress.wait()
        if self._aborted:
            raise anyio.ClosedResourceError

    def _tell_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    async def _let_others_run(self) -> None:
        self._no_data = 0
        await checkpoint()

    def stop_receiving(self) -> None:
        self._stopped = True
        if self._reading_to_send:
            self._tell_progress()  # to a receive that waits for that
        else:
            self._transport.stop_receiving()

    def resume_receiving(self) -> None:
        self._stopped = False
        self._transport.resume_receiving()

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

    def is_readable(self) -> bool:
        if self._decrypted or self._stopped:
            return True
        if self._reading:  # to send, by a task that waits for what would be taken from it
            return False
        try:
            self._decrypted += self.receive_nowait(_RECORD) or b""
        except (anyio.EndOfStream, *_GONE):
            return True
        return len(self._decrypted) > 0

    def _take(self, max_bytes: int) -> bytes | None:
        """Data that needs no more ciphertext than is here already."""
        if self._decrypted:
            data = bytes(self._decrypted[:max_bytes])
            del self._decrypted[:max_bytes]
            self._tell_progress()  # there is room for more
            return data
        first = self._next(max_bytes)
        # The engine gives no more than a record at a time. Behind a full one there is more of the
        # same, most likely.
        if first is None or len(first) < _RECORD or len(first) == max_bytes:
            return first
        pieces, room = [first], max_bytes - len(first)
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # the next call tells that
            while room and (more := self._next(room)) is not None:
                pieces.append(more)
                room -= len(more)
        return b"".join(pieces)

    def _take_into(self, view: memoryview, max_bytes: int) -> int | None:
        """As :meth:`_take`, into ``view``, of ``max_bytes`` bytes."""
        if self._decrypted:
            data = self._take(max_bytes) or b""
            view[: len(data)] = data
            return len(data)
        first = self._next(max_bytes, view)
        if first is None:
            return None
        count = len(first)
        if count < _RECORD:
            return count
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # the next call tells that
            while count < max_bytes and (more := self._next(max_bytes - count, view[count:])):
                count += len(more)
        return count

    @overload
    def _next(self, max_bytes: int) -> bytes | None: ...

    @overload
    def _next(self, max_bytes: int, into: memoryview) -> memoryview | None: ...

    def _next(self, max_bytes: int, into: memoryview | None = None) -> bytes | memoryview | None:
        """The data of the next record; None if it is not here, or is not what comes next.

        With ``into`` it is put there, and returned as a part of that.
        """
        held = self._held
        if not held:
            return self._decrypt(max_bytes, into)
        data = None if self._dry else self._decrypt(max_bytes, into)
        if data is None:
            if len(held) <= _PIECE:
                self._held = b""  # an empty view would keep all that it is a view of
            else:
                held, self._held = held[:_PIECE], held[_PIECE:]
            self._incoming.write(held)
            self._no_data += len(held)
            data = self._decrypt(max_bytes, into)
        return data

    def _decrypt(
        self, max_bytes: int, into: memoryview | None = None
    ) -> bytes | memoryview | None:
        """Take what the engine can decrypt; None if it needs more ciphertext for that."""
        self._check_session()
        if self._peer_ended:
            raise anyio.EndOfStream
        data: bytes | memoryview | None = None
        try:
            data = self._read(min(max_bytes, _RECORD), into)
            self._peer_ended = not data
            self._no_data -= len(data)
            self._dry = False
        except ssl.SSLWantReadError:
            self._dry = True
        except ssl.SSLZeroReturnError:
            # How close_notify shows once we have sent ours; before, as b"".
            self._peer_ended = True
        except Exception as exc:
            data = None
            self._error = fresh(exc)
        if self._outgoing.pending or self._unsent:
            with suppress(*_GONE):
                self._flush_nowait()  # an answer, or the alert that says what is wrong
        if self._progress is not None:
            self._tell_progress()
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

    def _read(self, max_bytes: int, into: memoryview | None) -> bytes | memoryview:
        if into is None:
            return self._engine.read(max_bytes)
        if type(self._engine) is ssl.SSLObject:
            count: Any = self._engine.read(max_bytes, into)
            return into[:count]
        data = self._engine.read(max_bytes)  # one of another make may know no other way
        into[: len(data)] = data
        return into[: len(data)]

    def _end_of_transport(self) -> None:
        """The transport has ended without close_notify, which may be as good as that.

        :raises anyio.BrokenResourceError: it is not
        """
        self._tell_progress()
        if self._records is not None and self._records.whole:
            self._peer_ended = True
            return
        # Found here, not by the engine, because a context can be told to let it pass
        # (OP_IGNORE_UNEXPECTED_EOF). RFC 8446 6.1: without close_notify it may be an attack.
        why = "without TLS close_notify: what it sent may have been truncated"
        if self._records is not None:
            why = "in the middle of a TLS record: what it sent was truncated"
        self._error = ssl.SSLEOFError(ssl.SSL_ERROR_EOF, f"the peer ended the connection {why}")
        raise self._lost(self._error) from self._error

    def _check_session(self) -> None:
        if self._error is not None:
            raise self._lost(self._error) from self._error

    @staticmethod
    def _lost(error: Exception) -> anyio.BrokenResourceError:
        return anyio.BrokenResourceError(explain(error))

    # --- why the connection broke

    async def _raise_why(self, exc: anyio.BrokenResourceError) -> NoReturn:
        """Raise what the peer said before the transport broke, or ``exc`` if it said nothing."""
        await self._read_last_words()
        self._check_session()
        try:
            raise exc
        finally:
            del exc  # or it would keep this frame, and this frame it

    async def _read_last_words(self) -> None:
        """Decrypt all that is here, in search of an alert. Data is kept for the next receive.

        The transport is broken, so that is no more than the kernel holds.
        """
        with suppress(anyio.EndOfStream, *_GONE):
            more = True
            while more:
                while (data := self._next(_RECORD)) is not None:
                    self._decrypted += data
                if self._no_data >= _NO_DATA:
                    self._no_data = 0
                    await cancel_shielded_checkpoint()
                more = self._fetch_nowait()

    # --- sending

    #: Once encrypted, data must go out, and whether there is room shows only then.
    keeps = True

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        if self.torn or self._flushing or not data:
            return 0
        self._check_sending()
        written = self._encrypt(memoryview(data).cast("B"))
        self._flush_nowait()
        return written

    async def flush(self) -> None:
        try:
            if self._has_more_to_send():
                await self._flush()
        except BaseException:
            self.torn = True  # as of a send that was cut short
            raise

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
        await (transport.enter() if view else checkpoint())
        self._check_sending()
        if view:
            await self._send_all(view)
            if transport.leave is not None:
                await transport.leave()

    def start_send(self, item: bytes | memoryview) -> Awaitable[None] | None:
        transport = self._transport
        if not item or not transport.may_go_on(len(item)):
            return self.send(item)
        self._check_sending()
        if len(item) > _WRITE or self._has_more_to_send() or transport.keeps:
            return self._send_all(memoryview(item))
        begun = False
        try:
            begun = self._encrypt(item) > 0
            self._flush_nowait()
        except BaseException as exc:
            self.torn = self.torn or begun
            if isinstance(exc, anyio.BrokenResourceError):
                return self._raise_why(exc)
            raise
        if not begun:
            return self._send_all(memoryview(item))
        return self._send_all(memoryview(b""), begun=True) if self._has_more_to_send() else None

    async def _send_all(self, view: memoryview, *, begun: bool = False) -> None:
        """Send what there is, and ``view``. ``begun``: there is a part of a message among that."""
        transport = self._transport
        try:
            if self._has_more_to_send():
                await self._flush()
            while view:
                written = self._encrypt(view[:_WRITE])
                if not written:
                    await self._negotiate()
                    continue
                begun = True
                await self._flush()
                view = view[written:]
                if view and not transport.may_go_on(_WRITE):
                    await checkpoint()
        except BaseException as exc:
            self.torn = self.torn or begun
            if isinstance(exc, anyio.BrokenResourceError):
                await self._raise_why(exc)
            raise

    def _has_more_to_send(self) -> bool:
        """Whether there is ciphertext that has to go out before any other."""
        return bool(self._unsent) or self._outgoing.pending > 0

    async def _negotiate(self) -> None:
        """Get on with a renegotiation, or wait for the task that receives to do so.

        Cancelled, it has lost nothing.
        """
        self._negotiating = True
        try:
            await self._flush()
            if self._no_data >= _NO_DATA:
                await self._let_others_run()
            if not self._held:
                if self._reading or len(self._decrypted) > _MAX_KEPT:
                    await self._wait_for_progress()
                    return
                if self._stopped:  # for a receive, but the engine has to go on
                    self._transport.resume_receiving()
                self._reading_to_send = True
                try:
                    await self._fetch(_READ)
                except anyio.EndOfStream:
                    self._end_of_transport()
                finally:
                    self._reading_to_send = False
            with suppress(anyio.EndOfStream):
                while (data := self._next(_RECORD)) is not None:
                    self._decrypted += data
        finally:
            self._negotiating = False

    def _check_sending(self) -> None:
        self._check_session()
        if self.torn:
            raise anyio.BrokenResourceError("an earlier send was cut short")
        if self._ended:
            raise anyio.ClosedResourceError

    def _encrypt(self, view: bytes | memoryview) -> int:
        """Turn data into ciphertext; return how much, which is all of it or none.

        None: the engine waits for the peer, in mid-renegotiation.
        """
        self._check_session()
        try:
            written = self._engine.write(view)
            check_count(written, len(view))
        except ssl.SSLWantReadError:
            if self._peer_ended:  # which will not get on with it
                raise anyio.BrokenResourceError(_ENDED_IN_HANDSHAKE) from None
            return 0
        except Exception as exc:
            self._error = fresh(exc)
            raise self._lost(self._error) from self._error
        return written

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
            if self._transport.keeps:
                await self._transport.flush()
        finally:
            # If it was not cut, the same ciphertext can still go out.
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
                await self._negotiate()
                self._check_sending()
            self._check_session()
            # If there is room, or the peer is gone, this is done even if the caller is cancelled.
            self._flush_nowait()
            await self._flush()
        except BaseException as exc:
            self.torn = True
            if isinstance(exc, anyio.BrokenResourceError):
                await self._raise_why(exc)
            raise

    def _end(self) -> bool:
        """Write close_notify (RFC 8446 6.1), once.

        False: the engine is in mid-renegotiation, during which it cannot be written.
        """
        if self._ended:
            return True
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while (data := self._decrypt(_RECORD)) is not None:
                self._decrypted += data
        if self._error is not None:
            return True
        before = self._outgoing.pending + len(self._unsent)
        try:
            self._engine.unwrap()
        except ssl.SSLError as exc:  # as a rule, it wants to read the peer's: receive() will
            if exc.reason == "SHUTDOWN_WHILE_IN_INIT":
                if self._peer_ended:  # and will not get on with it
                    self._error = ssl.SSLError(ssl.SSL_ERROR_SSL, _ENDED_IN_HANDSHAKE)
                return self._peer_ended
        except Exception as exc:
            self._error = fresh(exc)
            return True
        self._transport.expendable = max(0, len(self._ciphertext()) - before)
        self._ended = True
        return True

    async def aclose(self) -> None:
        """Send close_notify, and close the transport without waiting for the peer's.

        Waits for room. Cancelled while it does, or called while a message is cut or under way,
        it drops the connection instead.
        """
        if self._must_drop():
            await self.abort()
            return
        try:
            while not self._end():
                await self._negotiate()
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
        if self._must_drop():
            await self.abort()
            raise anyio.BrokenResourceError("a message was cut short, so the peer got a reset")
        if not self._end():
            return False
        with suppress(*_GONE):
            if self._transport.immediate:
                self._flush_nowait()
            elif self._error is None:
                await self._flush()
            if self._unsent and self._error is None:
                # A peer that finds no room for what it sends may take nothing either.
                self._transport.discard()
                return False
        return await self._transport.finish()

    @property
    def immediate(self) -> bool:
        return self._transport.immediate

    async def wait_room(self) -> None:
        if self._ended or self._error is not None:
            await self._transport.wait_room()
        else:
            await self._negotiate()  # before that, our end cannot be written

    async def let_go(self) -> bool:
        if self._must_drop() or not self._end():
            await self.abort()
            return False
        with suppress(*_GONE):
            self._flush_nowait()
        if self._unsent:
            await self.abort()
            return False
        return await self._transport.let_go()

    def discard(self) -> bool:
        self._decrypted.clear()
        self._tell_progress()
        # What a send reads for the engine, it would wait for in vain if it were taken from it.
        return self._reading_to_send or super().discard()

    async def wait_arrival(self) -> None:
        await self._transport.wait_arrival()

    def progress(self) -> object:
        return self._transport.progress()

    def unacknowledged(self) -> int:
        return len(self._unsent) + self._transport.unacknowledged()

    def _must_drop(self) -> bool:
        """Whether the peer holds a piece of a message, so that no clean end may follow."""
        return self.torn or self._flushing or self._negotiating

    async def abort(self) -> None:
        self._aborted = True
        self._tell_progress()
        await self._transport.abort()

    def detach(self) -> socket.socket:
        raise NoSocketError("TLS is spoken on it, whose keys are not the system's")

    def close_dropped(self) -> bool:
        return self._transport.close_dropped()

    # --- watching and attributes

    @property
    def alpn(self) -> str | None:
        """The protocol that the handshake agreed on (RFC 7301)."""
        try:
            return self._engine.selected_alpn_protocol()
        except Exception:  # of an engine of another make, which may not know
            return None

    async def hung_up(self) -> tuple[bool, Exception | None]:
        hung_up, error = await self._transport.hung_up()
        return hung_up, None if error is None else await self._why(error)

    async def wait_hangup(self, *, after_eof: bool) -> Exception | None:
        error = await self._transport.wait_hangup(after_eof=after_eof)
        return None if error is None else await self._why(error)

    async def _why(self, error: Exception) -> Exception:
        """What the peer said of it before, if it did."""
        await self._read_last_words()
        if self._error is None:
            return error
        why = self._lost(self._error)
        why.__cause__ = self._error
        return why

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        from anyio.streams.tls import TLSAttribute  # here, because hardly anybody needs it

        engine = self._engine
        names: Any = TLSAttribute  # its members are keys here, but typed as what they stand for
        tls: dict[Any, Callable[[], Any]] = {
            # Looked up when asked for: an engine of another make may not have them all.
            names.alpn_protocol: lambda: self.alpn,
            names.channel_binding_tls_unique: partial(_call, engine, "get_channel_binding"),
            names.cipher: partial(_call, engine, "cipher"),
            names.peer_certificate: lambda: engine.getpeercert(binary_form=False),
            names.peer_certificate_binary: lambda: engine.getpeercert(binary_form=True),
            names.server_side: lambda: engine.server_side,
            names.shared_ciphers: partial(_call, engine, "shared_ciphers"),
            names.ssl_object: lambda: engine,
            names.standard_compatible: lambda: True,
            names.tls_version: partial(_call, engine, "version"),
        }
        return {**self._transport.extra_attributes, **tls}


def _call(engine: ssl.SSLObject, method: str) -> Any:
    return getattr(engine, method)()
