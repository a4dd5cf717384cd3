"""The socket: a thin face of the connection and its two streams."""

from __future__ import annotations

import socket as stdlib
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from anyio.abc import ByteStream, SocketAttribute

from ._address import format_address
from ._connection import Connection, Opener, SocketInfo
from ._errors import bad_option, text_of
from ._future import SocketFuture
from ._layered import LayeredTransport
from ._lifecycle import Dial, Link
from ._open import TakenOver, Target, Wrapped, Wrapping
from ._options import (
    SecureTransport,
    SocketOptions,
    alpn_conflict,
    check_alpn,
    check_named,
    check_ssl_context,
    parse_stream_options,
    with_server_name,
)
from ._slots import Slot
from ._streams import ReadableStream, WritableStream, attributes_of, writable
from ._transport import DEFAULT_MAX_BYTES, ForeignTransport, Transport, attribute_of

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer
if sys.version_info >= (3, 11):
    from typing import Self, Unpack
else:
    from typing_extensions import Self, Unpack


class Socket(ByteStream):
    """A TCP connection, made by ``connect()``; it has no public constructor.

    It begins *pending*: whichever task first awaits something that needs the connection makes
    it. ``async with`` enters once it is open, and leaves it closed. As a ``ByteStream`` it
    goes wherever AnyIO takes one; its methods are those of its two streams.

    Whatever is awaited here is a checkpoint: a cancellation that is due is raised. A call that
    need not wait lets other tasks run each time on trio, and on asyncio once in sixteen calls or
    a mebibyte, counted over all sockets of the event loop.
    """

    def __init__(self, opener: Opener, target: Target | Wrapping, slot: Slot | None) -> None:
        options = target.options
        connection = Connection(
            opener,
            name=target,
            half_open=options.allow_half_open,
            starttls=options.secure_transport == "starttls",
            close_timeout=options.close_timeout,
            slot=slot,
        )
        self._connection = connection
        self._target = target
        # Made when they are asked for: most sockets do without.
        self._readable: ReadableStream | None = None
        self._writable: WritableStream | None = None

    @staticmethod
    def wrap(stream: ByteStream, **options: Unpack[SocketOptions]) -> Socket:
        """Return a socket over a stream that is connected already, at once.

        It may be AnyIO's ``UNIXSocketStream`` or ``TLSStream``, an SSH channel, another
        ``Socket`` (TLS in TLS), or any other ``ByteStream``. With ``secure_transport="on"``, the
        TLS handshake is made when the socket is first needed, within ``connect_timeout``; ``sni``
        is the name that the certificate has to be for, and is needed unless the ``ssl_context``
        checks no names. With ``"starttls"``, ``start_tls()`` needs ``expected_server_hostname``
        in the same way. The stream belongs to the socket from now on, which closes it. Nobody
        else may use it.

        The socket behaves as any other, as far as the stream can:

        - ``closed`` learns of the peer's end or a reset from receiving and sending only.
        - A send that is cancelled counts as cut short, as nobody knows how much has gone out. Not
          so over a :class:`Socket`, which knows.
        - ``writable.abort()`` and all else that would reset a connection close the stream by
          force. Over a :class:`Socket`, that one is aborted.
        - ``send_eof()`` is the stream's. If it has none, that is a :class:`HalfCloseError`. TLS
          that is put on the stream has a half-close of its own.
        - ``close()`` waits for as long as closing the stream takes, up to ``close_timeout`` in
          all. If that fails, ``closed`` fails.
        - Whether it still waits when it is cancelled is up to the stream.
        - Whatever else the stream raises is the cause of a :class:`BrokenError`.

        If ``stream`` is a :class:`Socket` that is still pending, its connection is made as well,
        within its own ``connect_timeout`` and that of this one. What it has read ahead is received
        first. Its ``allow_half_open`` holds for both.

        ``opened`` tells the addresses, and the protocol agreed on by a TLS below, that the stream
        has as AnyIO's typed attributes.

        :raises InvalidOptionError: ``stream`` is no ``ByteStream``; an option is unknown, has a
            bad value, or contradicts another; ``sni`` is missing; or ``keep_alive`` is given,
            which is for the kernel's sockets. The stream is left alone.
        """
        parsed = parse_stream_options(options)
        target = Wrapping(_name_of(stream), parsed)
        return Socket(Wrapped(transport_of(stream), target), target, None)

    @property
    def readable(self) -> ReadableStream:
        """What the peer sends."""
        if self._readable is None:
            self._readable = ReadableStream(self._connection)
        return self._readable

    @property
    def writable(self) -> WritableStream:
        """What we send."""
        if self._writable is None:
            self._writable = WritableStream(self._connection)
        return self._writable

    @property
    def opened(self) -> SocketFuture[SocketInfo]:
        """Settles when the connection is made, with what is known of it, or cannot be.

        Fails with the :class:`ConnectError` that says why, or with :class:`ClosedError` if the
        socket was closed before.
        """
        return self._connection.opened

    @property
    def closed(self) -> SocketFuture[None]:
        """Settles when the connection is over.

        Resolves after ``close()``, when both directions have ended, and when ``start_tls()``
        has taken the connection over. Fails with what ``opened`` failed with, or with
        :class:`BrokenError` if the connection was reset, lost or aborted. Awaiting it
        watches for the peer's hang-up, without taking any data. That is the end of its TCP: a
        TLS close_notify by itself is noticed by receiving. If both directions have ended, but
        there was no room for our close_notify, awaiting this sends it as soon as there is some;
        so does ``close()``.
        """
        return self._connection.closed

    @property
    def upgraded(self) -> bool:
        """Whether ``start_tls()`` has taken the connection over."""
        return self._connection.upgraded

    @property
    def secure_transport(self) -> SecureTransport:
        """``"off"``, ``"on"`` (the connection is, or will be, TLS) or ``"starttls"``."""
        return self._target.options.secure_transport

    def start_tls(
        self,
        *,
        expected_server_hostname: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        alpn: Sequence[str] | None = None,
    ) -> Socket:
        """Return a pending socket that puts TLS on this connection; this one is over.

        For protocols that upgrade in mid-connection, once the peer has agreed to it. This
        socket's ``upgraded`` turns True, its ``closed`` resolves and its streams raise
        :class:`ClosedError`. The new socket makes the TLS handshake when it is first needed,
        within ``connect_timeout`` anew if one was given; a send still in flight here goes
        out before it. What the peer sent in the clear and was not read goes to the handshake,
        which fails: it can never be read as if it had come over TLS. What :meth:`receive_until`
        has read ahead of the peer's go-ahead makes this call fail. Bytes that a buffer of yours
        has read ahead are yours to check.

        ``expected_server_hostname``: the name that the certificate must be for, in place of the
        host name connected to; as ``sni`` it is brought into its normal form. ``ssl_context`` and
        ``alpn``: in place of those of ``connect()``. None means "not given" for each. All other
        options are those of ``connect()``.

        A handshake that fails drops the connection, and both futures of the new socket fail: with
        :class:`TLSError`, or with :class:`ConnectTimeoutError` if ``connect_timeout`` ran out,
        the wait for that send included.
        If a send in flight here was cut short or met a broken connection, there is no
        handshake, and they fail with :class:`BrokenError`. A handshake that is cancelled part-way
        cannot be made again: it drops the connection as well, and both fail with
        :class:`TLSError`. Source: the WinterTC draft, ``startTls()``.

        :raises StartTLSError: not made with ``secure_transport="starttls"``; closed; ended in
            one direction; upgraded already; a receive is in flight; or bytes are kept that were
            read ahead, or left by a receive that ended early. Nothing has changed.
        :raises InvalidOptionError: an argument has a bad value; or ``expected_server_hostname`` is
            not what ``sni`` says, or would not be checked, as ``check_hostname`` of the context
            is False. Nothing has changed.
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was lost, or a send was cut short
        """
        changed: dict[str, Any] = {"secure_transport": "on"}
        if ssl_context is not None:
            changed["ssl_context"] = check_ssl_context("ssl_context", ssl_context)
            changed["alpn"] = None  # it brings its own
        if alpn is not None:
            changed["alpn"] = check_alpn("alpn", alpn)
        options = self._target.options._replace(**changed)
        if options.alpn and options.ssl_context:
            raise alpn_conflict()
        if expected_server_hostname is not None:
            options = with_server_name(options, expected_server_hostname)
        target = self._target._replace(options=options)
        check_named("expected_server_hostname", target.hostname, options)
        slot = self._connection.upgrade()
        return Socket(TakenOver(self._connection, target), target, slot)

    def detach(self) -> stdlib.socket:
        """Return the kernel's socket, for a library that takes one; this object is over.

        The socket is connected and non-blocking, and nobody else has it: it is the caller's to
        close. No event loop watches it any more. What the peer sent and was not received is
        received from it. This object's ``closed`` resolves, its streams raise
        :class:`ClosedError`, and its ``close()`` does nothing. A half that has ended stays so.

        With ``max_connections`` it is of a subclass of ``socket.socket`` that gives the slot back
        when it is closed, when its ``detach()`` is called, or when it is collected. That is
        early where another object goes on with the connection: ``SSLContext.wrap_socket()``
        calls ``detach()``; what ``dup()`` returns has no slot. A library that takes no subclass,
        such as trio's ``from_stdlib_socket()``, needs ``socket.socket(fileno=sock.detach())``.
        asyncio keeps it until it closes the connection, with ``ssl=`` as well.

        For TLS from the first byte, hand over a plain connection and let that library make the
        handshake: :meth:`Connector.connect_socket` makes one.

        :raises DetachError: the connection was not made yet; the socket was closed, detached or
            upgraded; a call is in flight; bytes were read ahead and not yet received; or there is
            no socket to be had: over TLS, or over a stream of another kind. Nothing has changed.
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was lost, or a send was cut short
        """
        return self._connection.detach()

    async def receive(self, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Receive at least one and at most ``max_bytes`` bytes, as soon as there are any.

        This is :meth:`ReadableStream.receive`. Makes the connection first, if no task has yet.
        Cancelling it loses no data.

        :raises TypeError: ``max_bytes`` is not an int
        :raises ValueError: ``max_bytes`` is less than 1
        :raises anyio.EndOfStream: the peer has ended, and all it sent was received; so does
            every later call
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        return await self._connection.receive(max_bytes)

    async def receive_into(self, buffer: Buffer) -> int:
        """Receive into ``buffer``, at least one byte, as soon as there are any; return how many.

        This is :meth:`ReadableStream.receive_into`. Cancelling it loses no data, but the content
        of ``buffer`` is undefined then.

        :raises TypeError: ``buffer`` is no buffer, is read-only, or is not contiguous
        :raises ValueError: ``buffer`` is empty
        :raises anyio.EndOfStream: the peer has ended, and all it sent was received; so does
            every later call
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        with writable(buffer) as view:
            return await self._connection.receive(len(view), view)

    async def receive_exactly(self, nbytes: int) -> bytes:
        """Receive ``nbytes`` bytes, no more and no fewer, once all of them have come.

        This is :meth:`ReadableStream.receive_exactly`. If it is cancelled, or raises, what has
        come is kept: the next receive of any kind begins with that.

        :raises TypeError: ``nbytes`` is not an int
        :raises ValueError: ``nbytes`` is less than 0
        :raises IncompleteReadError: the peer has ended before; what did come is kept
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost; what came before that is kept
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        return await self.readable.receive_exactly(nbytes)

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """Receive what comes before ``delimiter``; the delimiter is received too, and left out.

        This is :meth:`ReadableStream.receive_until`. Both together may have ``max_bytes`` bytes;
        no more are read ahead. What has come behind the delimiter is kept for the next receive of
        any kind, and so is everything if this is cancelled, or raises.

        :raises TypeError: ``delimiter`` is not bytes-like, or ``max_bytes`` is not an int
        :raises ValueError: ``delimiter`` is empty, or longer than ``max_bytes``
        :raises DelimiterNotFoundError: the first ``max_bytes`` bytes do not have the delimiter;
            they are kept
        :raises IncompleteReadError: the peer has ended before; what did come is kept
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost; what came before that is kept
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        return await self.readable.receive_until(delimiter, max_bytes)

    def is_readable(self) -> bool:
        """Whether :meth:`receive` would return or raise without waiting for the peer.

        This is :meth:`ReadableStream.is_readable`: it looks at once, and takes no data.
        """
        return self._connection.is_readable()

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of ``item``; return when the kernel has taken it.

        This is :meth:`WritableStream.send`. Makes the connection first, if no task has yet.
        Cancelled before anything has gone out, it has done nothing. After that our side is broken:
        later sends raise :class:`BrokenError`, and reading goes on.

        :raises TypeError: ``item`` is not bytes-like; nothing was sent
        :raises anyio.BusyResourceError: another task is sending
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, or an earlier send was cut short
        :raises ClosedError: our side has ended, or the socket was closed, also while waiting
        """
        await self._connection.send(item)

    async def send_eof(self) -> None:
        """End our side: the peer sees an end of stream, and reading goes on.

        This is :meth:`WritableStream.send_eof`. Does nothing the second time. Over TLS it waits
        until there is room for close_notify; cancelled while it does, it leaves our side broken.

        :raises anyio.BusyResourceError: another task is sending
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, or a send was cut short
        :raises HalfCloseError: the stream that was wrapped cannot do that; nothing has changed
        :raises ClosedError: the socket was closed
        """
        await self._connection.end()

    async def close(self) -> None:
        """Close both directions; any task may, at any time, any number of times.

        Receives in flight raise :class:`ClosedError` at once. A send in flight is finished
        first, for as long as this call is not cancelled. Then the peer gets our end and
        ``closed`` resolves; unread data is thrown away. If a send was cut short, the peer
        gets a reset instead. A connection that was not made yet is not made any more: ``opened``
        fails with :class:`ClosedError`, and ``closed`` resolves. But a send that waits for the
        connection is in flight as well: then the connection is made and the send finished.

        Over TLS our end is close_notify and then that of TCP; the peer's close_notify is not
        waited for. If anything that was sent is still on its way, this returns when the peer's
        kernel has acknowledged it all, or the peer has ended, and throws away what the peer says
        until then: a close before that could turn into a reset, which takes away what has not
        arrived (RFC 1122 4.2.2.13). Only Linux tells what was acknowledged; elsewhere this does
        not wait.

        For ``close_timeout`` seconds without any progress, it goes on waiting. Then a send in
        flight is cut short: it raises :class:`ClosedError`, and the peer gets a reset. What the
        kernel holds is left to it. ``closed`` fails with :class:`BrokenError`, which says how many
        bytes were not acknowledged, and a warning is logged (``anyio_connect``).

        Cancelled, it still closes, but waits for nothing: a send in flight is cut short, and
        ``closed`` fails; with none, the kernel delivers what it holds, and ``closed`` resolves.
        Raises nothing else.
        """
        await self._connection.close()

    async def aclose(self) -> None:
        """The same as :meth:`close`, by AnyIO's name."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        try:
            await self._connection.opened
        except BaseException:
            # Another task may have made the connection: without this, nothing would close it.
            await self._connection.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self._connection.close()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, such as ``SocketAttribute``; empty before it is open."""
        return attributes_of(self._connection)

    def __repr__(self) -> str:
        state = self._connection.state
        word = state.link.name.lower()
        if state.link is Link.OPEN and state.dial is not Dial.DONE:
            word = "pending"
        elif state.dial is Dial.FAILED:
            word = "failed"
        return f"<Socket {self._target} {word} secure_transport={self.secure_transport!r}>"


def transport_of(stream: ByteStream) -> Transport:
    """A stream as a transport that knows all that can be known of it."""
    if isinstance(stream, Socket):
        return LayeredTransport(stream, stream._connection)  # noqa: SLF001  # of this module
    return stream if isinstance(stream, Transport) else ForeignTransport(stream)


def _name_of(stream: object) -> str:
    """What to call a stream in messages."""
    if not isinstance(stream, ByteStream):  # whatever the annotations promise
        why = "must be an anyio.abc.ByteStream: anyio.streams.stapled makes one of two halves"
        raise bad_option("stream", stream, why)
    if isinstance(stream, Socket):
        return str(stream._target)  # noqa: SLF001
    address = attribute_of(stream, SocketAttribute.remote_address)
    if isinstance(address, tuple):
        return format_address(*address[:2])
    return text_of(address) if address else f"a {type(stream).__name__}"
