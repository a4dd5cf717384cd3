"""TLS as a transport over any other transport.

``ssl.SSLObject``, here called the engine, converts data to TLS records and back. This module moves
the records and decides when to call the engine.

The engine has no method for a half-close. ``unwrap()`` writes our close_notify, and then raises
because it wants to read the peer's. That error can be ignored: ``read()`` still works. But if the
engine holds application data that it has not decrypted yet, ``unwrap()`` mistakes that for the
answer, fails, and the data is lost. So everything is decrypted before ``unwrap()`` is called,
without an await in between.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar, overload

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint

from ._copies import fresh
from ._readiness import Pause
from ._tls_errors import check_count, explain
from ._transport import DEFAULT_MAX_BYTES, NoSocketError, Transport
from ._waking import wake

#: How much ciphertext to receive from the transport at a time, in bytes: a few records, and more
#: only if the caller wants more. Ciphertext is received only when a call needs it, so no more than
#: this is ever held here.
READ = 65536
_MOST_READ = 4 * READ

#: How much ciphertext the engine gets at a time, in bytes: more than a record. One read of the
#: engine may process all of it before it finds application data, and blocks the event loop.
_PIECE = 65536

#: After how much ciphertext without application data other tasks get to run, in bytes. (A peer may
#: send nothing but KeyUpdates. The overhead of each record, about twenty bytes, counts as well.)
_NO_DATA = _PIECE

#: How much data to encrypt before the ciphertext is sent, in bytes. The engine has no limit of its
#: own, and holds all the ciphertext.
_WRITE = 65536

#: The most data in a record, in bytes (RFC 8446 section 5.1). No read of the engine returns more.
_RECORD = 16384

#: The size of a record's header, in bytes.
_HEAD = 5

#: How much ciphertext may wait to be sent, in bytes: twice what a send produces at a time. There
#: can be more only if a peer requests answers and does not read them.
_MAX_WAITING = 2 * _WRITE

#: How much data may be kept for the next receive by a send that has to read, in bytes.
_MAX_KEPT = 1 << 20

#: How many times receive_nowait() gives the engine more ciphertext until it finds data.
ROUNDS = 2

_ENDED_IN_HANDSHAKE = "the peer ended TLS while it was being negotiated again"

#: The errors that mean: the transport broke, or another task closed it.
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)

_T = TypeVar("_T")


class Records:
    """Finds the ends of TLS records in ciphertext (RFC 8446 section 5.1). It needs no keys.

    A record has a header of five bytes. Its last two bytes are the length of the rest.
    """

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        self._head = b""  # the part of the next header that has arrived
        self._left = 0  # how much of the record after the header is missing, in bytes

    @property
    def whole(self) -> bool:
        """Whether the ciphertext so far ends with a complete record."""
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


class TLSTransport(Transport):
    """TLS over another transport, after the handshake.

    It is full duplex, and needs no background task.

    - While receiving, the engine may produce messages of its own: the answer to a KeyUpdate, or an
      alert. They are sent at once if there is room. Otherwise they are sent, in order, by the next
      receive or send that finds room.
    - Sometimes the engine can send nothing until it has read from the peer: TLS 1.2 may
      renegotiate. Then the sending task reads, unless a receive is in flight, which reads anyway.
      Data that arrives is kept for the next receive.
    - After ``EndOfStream`` (the peer's close_notify) or ``BrokenResourceError``, every receive
      raises the same error.
    - If the transport ends without close_notify, that is a ``BrokenResourceError``. There is an
      exception if close_notify is not required: an end after a complete record is an
      ``EndOfStream``.
    - If the transport breaks, the ciphertext that arrived before is decrypted first, because it
      may have an alert with the reason.
    """

    def __init__(
        self,
        transport: Transport,
        engine: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        records: Records | None = None,
    ) -> None:
        """``records`` has followed all ciphertext so far. None: close_notify is required."""
        self._records = records
        self._transport = transport
        self._engine = engine
        self._incoming = incoming
        self._outgoing = outgoing
        self._held: bytes | memoryview = b""  # received ciphertext that the engine gets next
        self._dry = False  # the engine needs more ciphertext
        self._no_data = 0  # how much of the engine's input was not application data, in bytes
        self._decrypted = bytearray()  # data that was decrypted before a receive asked for it
        self._unsent = b""  # ciphertext that must be sent before any other
        self._flushing = False
        self._ended = False  # our close_notify is written
        self._peer_ended = False  # the peer's close_notify was read
        self._error: Exception | None = None  # what ended the session
        self._reading = False  # a task is reading from the transport
        self._reading_to_send = False  # that task is sending, and reads for the engine
        self._negotiating = False  # a sending task waits until the engine can encrypt again
        self._progress: anyio.Event | None = None  # set when such a task should try again
        self._stopped = False  # receive() must raise ClosedResourceError
        self._aborted = False

    # --- receiving

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        for _ in range(ROUNDS):
            data = self._take(max_bytes)
            if data is not None or not self._fetch_nowait():
                return data
        return self._take(max_bytes)

    # Both behave like coroutine functions, but save a frame at each resumption.

    def receive(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> Coroutine[Any, Any, bytes]:
        """Receive up to ``max_bytes`` bytes. Cancelling it loses no data.

        :raises anyio.EndOfStream: the peer sent close_notify
        :raises anyio.BrokenResourceError: the transport ended without close_notify or broke, or
            the peer sent invalid TLS
        :raises anyio.ClosedResourceError: the transport was closed
        """
        return self._receive(max_bytes, self._take)

    def receive_into(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, view: memoryview
    ) -> Coroutine[Any, Any, int]:
        """Like :meth:`receive`, into ``view``."""
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
            elif self._reading:  # a sending task reads, and keeps the data for receives
                await self._wait_for_progress()
            else:
                try:
                    # The same as _fetch(), without its frame at each resumption.
                    self._reading = True
                    try:
                        most = min(max(READ, max_bytes), _MOST_READ)
                        begun = self._transport.start_receive(most)
                        self._hold(begun if isinstance(begun, bytes) else await begun)
                    finally:
                        self._reading = False
                        if self._progress is not None:
                            self._tell_progress()
                except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
                    # unread() may have read the ciphertext before that meanwhile.
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
        """Whether a receive may be able to return or raise without waiting for the peer."""
        if self._decrypted or self._held or self._incoming.pending:
            return True
        if self._peer_ended or self._error is not None:
            return True
        try:
            return self._engine.pending() > 0
        except Exception:  # from an engine of another implementation; its read() will raise too
            return False

    async def _fetch(self, most: int) -> None:
        """Wait for ciphertext. Only one task at a time may call this."""
        self._reading = True
        try:
            self._hold(await self._transport.receive(most))
        finally:
            self._reading = False
            if self._progress is not None:
                self._tell_progress()

    def _fetch_nowait(self) -> bool:
        """Get ciphertext that has arrived; return whether there is any to process."""
        if not self._held:
            try:
                ciphertext = self._transport.receive_nowait(READ)
            except anyio.EndOfStream:
                self._end_of_transport()
                raise
            if ciphertext is not None:
                self._hold(ciphertext)
        return len(self._held) > 0

    def _hold(self, ciphertext: bytes) -> None:
        """Keep ciphertext for the engine. A large amount is kept as a view, to save copies."""
        if self._records is not None:
            self._records.follow(ciphertext)
        self._held = ciphertext if len(ciphertext) <= _PIECE else memoryview(ciphertext)

    async def _wait_for_progress(self) -> None:
        """Wait until another task has read something, or has stopped reading."""
        if self._progress is None:
            self._progress = anyio.Event()
        await self._progress.wait()
        if self._aborted:
            raise anyio.ClosedResourceError

    def _tell_progress(self) -> None:
        if self._progress is not None:
            wake(self._progress)
            self._progress = None

    async def _let_others_run(self) -> None:
        self._no_data = 0
        await checkpoint()

    def stop_receiving(self) -> None:
        self._stopped = True
        if self._reading_to_send:
            self._tell_progress()  # wakes a receive that waits for the reading task
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
        if self._reading:  # a sending task waits for the ciphertext that this would take
            return False
        try:
            self._decrypted += self.receive_nowait(_RECORD) or b""
        except (anyio.EndOfStream, *GONE):
            return True
        return len(self._decrypted) > 0

    def _take(self, max_bytes: int) -> bytes | None:
        """Take up to ``max_bytes`` of data; return None if that needs more ciphertext."""
        if self._decrypted:
            data = bytes(self._decrypted[:max_bytes])
            del self._decrypted[:max_bytes]
            self._tell_progress()  # there is room for more
            return data
        first = self._next(max_bytes)
        # The engine returns at most one record at a time. After a full record there is probably
        # another.
        if first is None or len(first) < _RECORD or len(first) == max_bytes:
            return first
        pieces, room = [first], max_bytes - len(first)
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # the next call raises it
            while room and (more := self._next(room)) is not None:
                pieces.append(more)
                room -= len(more)
        return b"".join(pieces)

    def _take_into(self, view: memoryview, max_bytes: int) -> int | None:
        """Like :meth:`_take`, into ``view``, which has ``max_bytes`` bytes."""
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
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # the next call raises it
            while count < max_bytes and (more := self._next(max_bytes - count, view[count:])):
                count += len(more)
        return count

    @overload
    def _next(self, max_bytes: int) -> bytes | None: ...

    @overload
    def _next(self, max_bytes: int, into: memoryview) -> memoryview | None: ...

    def _next(self, max_bytes: int, into: memoryview | None = None) -> bytes | memoryview | None:
        """Take the data of the next record.

        Returns None if the record is not complete, or the engine processed a message without data.
        With ``into``, the data is written there, and that part of ``into`` is returned.
        """
        held = self._held
        if not held:
            return self._decrypt(max_bytes, into)
        data = None if self._dry else self._decrypt(max_bytes, into)
        if data is None:
            if len(held) <= _PIECE:
                self._held = b""  # an empty view would keep the whole buffer alive
            else:
                held, self._held = held[:_PIECE], held[_PIECE:]
            self._incoming.write(held)
            self._no_data += len(held)
            data = self._decrypt(max_bytes, into)
        return data

    def _decrypt(
        self, max_bytes: int, into: memoryview | None = None
    ) -> bytes | memoryview | None:
        """Take data from the engine; return None if it needs more ciphertext."""
        if self._error is not None:
            raise self._lost(self._error) from self._error
        if self._peer_ended:
            raise anyio.EndOfStream
        data: bytes | memoryview | None = None
        try:
            most = min(max_bytes, _RECORD)
            data = self._engine.read(most) if into is None else self._read_into(most, into)
            self._peer_ended = not data
            self._no_data -= len(data)
            self._dry = False
        except ssl.SSLWantReadError:
            self._dry = True
        except ssl.SSLZeroReturnError:
            # The peer's close_notify raises this if ours is written. If not, read() returns b"".
            self._peer_ended = True
        except Exception as exc:
            data = None
            self._error = fresh(exc)
        if self._outgoing.pending or self._unsent:
            with suppress(*GONE):
                self._flush_nowait()  # an answer of TLS, or the alert about an error
        if self._progress is not None:
            self._tell_progress()
        if not data:
            self._check_session()
        if self._peer_ended:
            raise anyio.EndOfStream
        if self._outgoing.pending + len(self._unsent) > _MAX_WAITING:
            self._error = ssl.SSLError(
                ssl.SSL_ERROR_SSL,
                "the peer requests answers to many KeyUpdates, but does not read them",
            )
        return data

    def _read_into(self, max_bytes: int, into: memoryview) -> memoryview:
        if type(self._engine) is ssl.SSLObject:
            count: Any = self._engine.read(max_bytes, into)
            return into[:count]
        data = self._engine.read(max_bytes)  # other implementations may not support a buffer
        into[: len(data)] = data
        return into[: len(data)]

    def _end_of_transport(self) -> None:
        """Handle an end of the transport without close_notify.

        :raises anyio.BrokenResourceError: this end does not count as a close_notify
        """
        self._tell_progress()
        if self._records is not None and self._records.whole:
            self._peer_ended = True
            return
        # The engine is not asked, because a context may allow this (OP_IGNORE_UNEXPECTED_EOF).
        # Without close_notify, it may be a truncation attack (RFC 8446 6.1).
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
        """Raise the error that the peer sent before the transport broke; without one, ``exc``."""
        await self._read_last_words()
        self._check_session()
        try:
            raise exc
        finally:
            del exc  # breaks the cycle of the error, its traceback and this frame

    async def _read_last_words(self) -> None:
        """Decrypt everything that has arrived, to find an alert. Keep data for the next receive.

        The transport is broken, so this is at most as much as the kernel's buffer holds.
        """
        with suppress(anyio.EndOfStream, *GONE):
            more = True
            while more:
                while (data := self._next(_RECORD)) is not None:
                    self._decrypted += data
                if self._no_data >= _NO_DATA:
                    self._no_data = 0
                    await cancel_shielded_checkpoint()
                more = self._fetch_nowait()

    # --- sending

    #: Encrypted data must be sent, and whether the kernel has room is known only afterwards.
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
            self.torn = True  # as after a send that was cut short
            raise

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of ``item``.

        A call that is cancelled before it has encrypted anything changes nothing. If it is
        cancelled later, it sets ``torn``: nothing more can be sent, but receiving works.

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
        """Send the pending ciphertext, and then ``view``.

        ``begun``: the pending ciphertext contains a part of the same message.
        """
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
        """Whether there is ciphertext that must be sent before any other."""
        return bool(self._unsent) or self._outgoing.pending > 0

    async def _negotiate(self) -> None:
        """Continue a renegotiation, or wait until the receiving task has done so.

        Cancelling it loses no data.
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
                if self._stopped:  # receives are stopped, but the engine still needs ciphertext
                    self._transport.resume_receiving()
                self._reading_to_send = True
                try:
                    await self._fetch(READ)
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
        if self._error is not None:
            raise self._lost(self._error) from self._error
        if self.torn:
            raise anyio.BrokenResourceError("an earlier send was cut short")
        if self._ended:
            raise anyio.ClosedResourceError

    def _encrypt(self, view: bytes | memoryview) -> int:
        """Encrypt all of ``view`` and return its length; or return 0 if that is not possible now.

        It is not possible while a renegotiation waits for the peer.
        """
        if self._error is not None:
            raise self._lost(self._error) from self._error
        try:
            written = self._engine.write(view)
            if written != len(view):
                check_count(written, len(view))
        except ssl.SSLWantReadError:
            if self._peer_ended:  # so the renegotiation will never be completed
                raise anyio.BrokenResourceError(_ENDED_IN_HANDSHAKE) from None
            return 0
        except Exception as exc:
            self._error = fresh(exc)
            raise self._lost(self._error) from self._error
        return written

    def _ciphertext(self) -> bytes:
        """Return the ciphertext to send next, in the order in which the engine produced it."""
        made = self._outgoing.read()
        # Nothing may follow an incomplete message. A peer would not read anything after our
        # close_notify: then its close() sends a reset, and its last data can be lost.
        if not self.torn and not self._ended:
            self._unsent += made
        return self._unsent

    async def _flush(self) -> None:
        """Send all pending ciphertext. Only one task at a time may call this."""
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
            # If the transport sent nothing, a later call can still send the same ciphertext.
            self.torn = self.torn or self._transport.torn
            self._flushing = False

    def _flush_nowait(self) -> None:
        """Send as much ciphertext as there is room for, unless another task is sending it."""
        if self._flushing:
            return
        ciphertext = self._ciphertext()
        if ciphertext and not self.torn:
            sent = self._transport.send_nowait(ciphertext)
            self._unsent = ciphertext[sent:]

    # --- ending

    async def send_eof(self) -> None:
        """Send close_notify, and leave the transport open. Receiving goes on.

        RFC 8446 6.1 keeps the peer's direction open. RFC 5246 7.2.1 allows a peer with TLS 1.2 to
        discard the data that it has not sent yet, but most peers send it.

        If this is cancelled before all of close_notify is sent, it sets ``torn``.

        :raises anyio.BrokenResourceError: for the same reasons as :meth:`send`
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
            # If there is room, this sends close_notify even if the caller is cancelled.
            self._flush_nowait()
            await self._flush()
        except BaseException as exc:
            self.torn = True
            if isinstance(exc, anyio.BrokenResourceError):
                await self._raise_why(exc)
            raise

    def _end(self) -> bool:
        """Make the engine write close_notify (RFC 8446 6.1), unless it already has.

        Returns False if that is not possible yet, because a renegotiation is going on.
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
        except ssl.SSLError as exc:  # usually: it wants the peer's, which receive() will read
            if exc.reason == "SHUTDOWN_WHILE_IN_INIT":
                if self._peer_ended:  # so the renegotiation will never be completed
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

        It waits until there is room for close_notify. It drops the connection instead if it is
        cancelled during that wait, if a send is in flight, or if a send was cut short.
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
        except GONE:
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
        with suppress(*GONE):
            if self._transport.immediate:
                self._flush_nowait()
            elif self._error is None:
                await self._flush()
            if self._unsent and self._error is None:
                # A peer that cannot send may not read either, so make room for its data.
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
            await self._negotiate()  # close_notify cannot be written during a renegotiation

    async def let_go(self) -> bool:
        if self._must_drop() or not self._end():
            await self.abort()
            return False
        with suppress(*GONE):
            self._flush_nowait()
        if self._unsent:
            await self.abort()
            return False
        return await self._transport.let_go()

    def discard(self) -> bool:
        self._decrypted.clear()
        self._tell_progress()
        # If a sending task reads for the engine, it needs that ciphertext: do not take it.
        return self._reading_to_send or super().discard()

    async def wait_arrival(self) -> None:
        await self._transport.wait_arrival()

    def progress(self) -> object:
        return self._transport.progress()

    def unacknowledged(self) -> int:
        return len(self._unsent) + self._transport.unacknowledged()

    def _must_drop(self) -> bool:
        """Whether the peer may have an incomplete message, so that no regular end may follow."""
        return self.torn or self._flushing or self._negotiating

    async def abort(self) -> None:
        self._aborted = True
        self._tell_progress()
        await self._transport.abort()

    def detach(self) -> socket.socket:
        raise NoSocketError("it uses TLS, and the system does not have the keys")

    def close_dropped(self) -> bool:
        return self._transport.close_dropped()

    # --- watching and attributes

    @property
    def alpn(self) -> str | None:
        """The protocol that the handshake agreed on (RFC 7301)."""
        try:
            return self._engine.selected_alpn_protocol()
        except Exception:  # from an engine of another implementation, which may lack the method
            return None

    async def hung_up(self) -> tuple[bool, Exception | None]:
        hung_up, error = await self._transport.hung_up()
        return hung_up, None if error is None else await self._why(error)

    async def wait_hangup(self, *, after_eof: bool) -> Exception | None:
        error = await self._transport.wait_hangup(after_eof=after_eof)
        return None if error is None else await self._why(error)

    async def _why(self, error: Exception) -> Exception:
        """The reason that the peer sent in an alert, if it did; else ``error``."""
        await self._read_last_words()
        if self._error is None:
            return error
        why = self._lost(self._error)
        why.__cause__ = self._error
        return why

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        from anyio.streams.tls import TLSAttribute  # here, because few programs need it

        engine = self._engine
        names: Any = TLSAttribute  # its members are typed as the values of the attributes
        tls: dict[Any, Callable[[], Any]] = {
            # Methods are looked up on use: engines of another implementation may lack some.
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
