"""Byte streams as a socket needs them, and any AnyIO stream as one of them.

:class:`Transport` is AnyIO's ``ByteStream`` with what more the rules of a socket need and no AnyIO
stream offers. ``_tcp`` and ``_tls`` have it all; :class:`ForeignTransport` gives any other
``ByteStream`` the nearest thing. Nothing here knows of sockets in the sense of this package, of
futures or of dialling.
"""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint

from ._copies import fresh
from ._readiness import Pause

#: What one receive takes at most unless told otherwise: AnyIO's own default, in bytes.
DEFAULT_MAX_BYTES = 65536

#: How much is thrown away at a time, in reads of DEFAULT_MAX_BYTES: more than any default receive
#: buffer holds; a bound, so that a peer that never stops does not keep the event loop.
DISCARD_READS = 128


class NoSocketError(Exception):
    """A transport has no socket to give away: its message says why."""


class Transport(ByteStream):
    """A byte stream that can also act without waiting, be watched, and be dropped.

    Errors are AnyIO's: ``EndOfStream``, ``BrokenResourceError`` (caused by the low-level
    error), ``ClosedResourceError``. One receive and one send may run at the same time.
    """

    #: A send was stopped part-way: the peer holds a piece of what was to be sent, and whatever
    #: were sent after it would be misread.
    torn: bool = False

    #: So many bytes at the end of what was sent are missed by nobody if a reset takes them away.
    #: They are the close_notify of a TLS above, which a peer need not wait for (RFC 8446 6.1).
    expendable: int = 0

    #: What :meth:`send_nowait` takes may wait here for room. It goes out before anything else.
    keeps: bool = False

    @property
    def immediate(self) -> bool:
        """Whether the calls that do not wait can do anything."""
        return True

    def may_go_on(self, amount: int) -> bool:
        """Whether a call that moves about ``amount`` bytes may be made without a checkpoint.

        False: it takes :meth:`enter` before, and if it need not wait, :attr:`leave` after it.
        """
        return False

    async def enter(self) -> None:
        """Be a checkpoint, of which :attr:`leave` may be the half that lets others run."""
        await checkpoint()

    @property
    def leave(self) -> Pause | None:
        """What lets others run after a call, if there is such a thing. It raises nothing."""
        return None

    @property
    def alpn(self) -> str | None:
        """The protocol that a TLS handshake agreed on (RFC 7301), or None."""
        return None

    @property
    def addresses(self) -> tuple[Any, Any]:
        """Those of the other side and of this one, as far as they are known."""
        remote = attribute_of(self, SocketAttribute.remote_address)
        return remote, attribute_of(self, SocketAttribute.local_address)

    def start_receive(self, max_bytes: int) -> bytes | Awaitable[bytes]:
        """As :meth:`receive`: at once where nothing has to be awaited, not even a checkpoint.

        Otherwise what to await, which is a checkpoint.
        """
        return self.receive(max_bytes)

    def start_receive_into(self, view: memoryview) -> int | Awaitable[int]:
        """As :meth:`receive_into`, in the same way."""
        return self.receive_into(view)

    def start_send(self, item: bytes | memoryview) -> Awaitable[None] | None:
        """As :meth:`send`, in the same way; None: it is done."""
        return self.send(item)

    @abstractmethod
    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """Take up to ``max_bytes`` bytes that are already here; None if there are none yet."""

    async def receive_into(self, view: memoryview) -> int:
        """Receive into ``view``, at least one byte; return how many. Cancelled, it loses nothing.

        ``view`` is writable, made of bytes, and not empty.
        """
        data = await self.receive(len(view))
        view[: len(data)] = data
        return len(data)

    def is_readable(self) -> bool:
        """Whether ``receive()`` would return or raise without waiting for the peer.

        Takes nothing that ``receive()`` would not return afterwards. False if it cannot be known.
        Not called while a receive is in flight.
        """
        return False

    @abstractmethod
    def stop_receiving(self) -> None:
        """Have ``receive()`` raise ``ClosedResourceError``, now and ever after."""

    @abstractmethod
    def resume_receiving(self) -> None:
        """Take :meth:`stop_receiving` back, once ``receive()`` has returned."""

    @abstractmethod
    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of ``item``. Cancelled part-way, it sets ``torn``."""

    @abstractmethod
    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Hand over as much of ``data`` as fits at once; return how many bytes that was."""

    async def flush(self) -> None:
        """Wait until what :meth:`send_nowait` has kept has gone out."""

    @abstractmethod
    async def wait_hangup(self, *, after_eof: bool) -> Exception | None:
        """Wait, taking no data, until the peer has ended or reset the connection.

        Returns None for an end (which may still lie behind unread data) and the error for a
        reset. With ``after_eof`` only a reset ends the wait. Cancelling it changes nothing.
        """

    async def hung_up(self) -> tuple[bool, Exception | None]:
        """What :meth:`wait_hangup` would wait for, if it is here already: whether, and the error.

        If that cannot be known at once: no.
        """
        return False, None

    @abstractmethod
    def unread(self) -> bool:
        """Whether data can be had before the peer's end; only asked after a hang-up.

        :raises anyio.BrokenResourceError: there is no data, and no end but a reset
        """

    @abstractmethod
    async def finish(self) -> bool:
        """Go on closing, without waiting; return whether the transport is closed by now.

        Our end goes out, and what comes in is thrown away. It is not closed as long as there is
        no room for our end, or the peer has not acknowledged everything: see :meth:`wait_room`.

        :raises anyio.BrokenResourceError: the connection was lost, and with it some of what was
            sent
        """

    @abstractmethod
    async def wait_room(self) -> None:
        """Wait until ``finish()`` may get further. Cancelling it changes nothing."""

    async def let_go(self) -> bool:
        """Close now, in the midst of :meth:`finish`, and leave the rest to the system.

        Waits for nothing, and is done even if the caller is cancelled. False: something was
        cut or left unread, so that the peer gets a reset.

        :raises anyio.BrokenResourceError: the peer's reset took away what was sent; it is closed
        """
        await self.abort()
        return False

    def discard(self) -> bool:
        """Throw away what has come in; False: nothing more can come."""
        try:
            for _ in range(DISCARD_READS):
                if self.receive_nowait(DEFAULT_MAX_BYTES) is None:
                    break
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return False
        return True

    async def wait_arrival(self) -> None:
        """Wait until there may be more to :meth:`discard`. Cancelling it changes nothing."""
        await anyio.sleep_forever()

    def progress(self) -> object:
        """A value that differs from the last one if the peer has taken something meanwhile."""
        return None

    def unacknowledged(self) -> int:
        """How many bytes the peer has not acknowledged; 0 if that cannot be known."""
        return 0

    @property
    def held(self) -> int:
        """How many bytes were taken from the system, and have yet to be received."""
        return 0

    def detach(self) -> socket.socket:
        """Give the system's socket away, and be closed. Nothing is in flight, nothing is held.

        :raises NoSocketError: there is none, or more than one; nothing has changed
        :raises anyio.BrokenResourceError: the connection was reset, of which the system has told
            already; nothing has changed
        """
        raise NoSocketError("it is no socket of the system's, but another stream")

    def close_dropped(self) -> bool:
        """Close it, as whoever had it has dropped it; return whether it was open.

        Called in any thread, and in no task: no task waits for it any more. The peer sees what it
        sees when the process ends. A stream that is not ours closes itself.
        """
        return False

    @abstractmethod
    async def abort(self) -> None:
        """Drop the connection now, so that the peer cannot take what it got for the whole.

        Waits for nothing, and is done even if the caller is cancelled. Whatever is in flight
        raises ``ClosedResourceError``.
        """


_ANYIOS = (
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.BusyResourceError,
)


@contextmanager
def _as_anyios(*passed: type[Exception]) -> Iterator[None]:
    """Whatever a foreign stream raises is one of AnyIO's errors, with it as the cause.

    Those of ``passed`` are left as they are.
    """
    try:
        yield
    except _ANYIOS:
        raise
    except passed:
        raise
    except Exception as exc:
        raise anyio.BrokenResourceError(str(exc)) from exc


class ForeignTransport(Transport):
    """Any other ``ByteStream``: nothing without waiting, no watching, dropped by closing.

    How much of a cancelled send went out cannot be known here, so any counts as torn. A stream
    that cannot end one of its directions raises ``NotImplementedError`` in :meth:`send_eof`.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._stopped = False
        self._dropped = False
        self._rest = b""  # it gave more than it was asked for
        self._over: Exception | None = None  # what every receive raises from now on
        # Not every stream wakes the tasks that wait in it when it is closed.
        self._receiving: anyio.CancelScope | None = None
        self._sending: anyio.CancelScope | None = None

    @property
    def immediate(self) -> bool:
        return False

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        return None

    async def receive(self, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        await checkpoint()  # which not every stream's receive is
        if self._stopped:
            raise anyio.ClosedResourceError
        if not self._rest:
            await self._receive(max_bytes)
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return data

    async def _receive(self, max_bytes: int) -> None:
        if self._over is not None:
            raise fresh(self._over)
        try:
            with anyio.CancelScope() as self._receiving, _as_anyios():
                self._rest = _checked(await self._stream.receive(max_bytes))
                return
        except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            self._over = fresh(exc)
            raise
        finally:
            self._receiving = None
        raise anyio.ClosedResourceError

    def is_readable(self) -> bool:
        return bool(self._rest) or self._stopped or self._over is not None

    def stop_receiving(self) -> None:
        self._stopped = True
        if self._receiving is not None:
            self._receiving.cancel()

    def resume_receiving(self) -> None:
        self._stopped = self._dropped

    def unread(self) -> bool:
        return True

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        return 0

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        await checkpoint()  # which not every stream's send is
        if not len(item):  # some streams would send that on
            return
        try:
            await self._interruptibly(partial(self._stream.send, bytes(item)))
        except BaseException:
            self.torn = self._is_torn()
            raise

    def _is_torn(self) -> bool:
        """Whether a send that did not come to its end may have sent something."""
        return True

    async def send_eof(self) -> None:
        await self._interruptibly(self._stream.send_eof, NotImplementedError)

    async def _interruptibly(
        self, call: Callable[[], Awaitable[None]], *passed: type[Exception]
    ) -> None:
        if not self._dropped:
            try:
                with anyio.CancelScope() as self._sending, _as_anyios(*passed):
                    await call()
            except anyio.EndOfStream as exc:  # which is said of receiving, but TLS streams do
                raise anyio.BrokenResourceError("the peer has ended") from exc
            finally:
                self._sending = None
        if self._dropped:
            raise anyio.ClosedResourceError

    async def aclose(self) -> None:
        with _as_anyios():
            await self._stream.aclose()

    async def finish(self) -> bool:
        # This waits for as long as the stream does. One that has ended or was closed is closed.
        with suppress(anyio.EndOfStream, anyio.ClosedResourceError):
            await self.aclose()
        return True

    async def wait_room(self) -> None:
        raise AssertionError("unreachable")

    async def abort(self) -> None:
        self._drop()
        await self._close_forcefully()

    def _drop(self) -> None:
        self._dropped = True
        self.stop_receiving()
        if self._sending is not None:
            self._sending.cancel()

    async def _close_forcefully(self) -> None:
        # Shielded: a cancellation of the caller, raised in here, would keep it from what comes
        # next. An exception of any kind: a stream that fails to close is gone too.
        with anyio.CancelScope(shield=True), suppress(Exception):
            await anyio.aclose_forcefully(self._stream)

    async def let_go(self) -> bool:
        self._drop()
        await self._close_forcefully()
        return True  # what was lost by that cannot be known

    async def wait_hangup(self, *, after_eof: bool) -> Exception | None:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    def detach(self) -> socket.socket:
        kind = type(self._stream).__name__
        raise NoSocketError(f"it is no socket of the system's, but a {kind}")

    @property
    def alpn(self) -> str | None:
        from anyio.streams.tls import TLSAttribute  # here, because hardly anybody needs it

        names: Any = TLSAttribute  # its members are keys here, but typed as what they stand for
        alpn = attribute_of(self, names.alpn_protocol)
        return alpn if isinstance(alpn, str) else None

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes


def attribute_of(stream: ByteStream, attribute: Any) -> Any:
    """A typed attribute of a stream of any kind; None if it has none, or fails to tell it."""
    try:
        return stream.extra(attribute, None)
    except Exception:  # noqa: BLE001  # it may be foreign code
        return None


def _checked(data: Any) -> bytes:
    """What a foreign stream has received, if it is something.

    :raises anyio.BrokenResourceError: it is nothing, which may mean an end or not
    :raises TypeError: it is not bytes
    """
    data = bytes(memoryview(data))
    if not data:
        raise anyio.BrokenResourceError(
            "the stream below has received nothing: at its end it should raise anyio.EndOfStream"
        )
    checked: bytes = data
    return checked
