"""The public socket: a thin layer over the connection and its two streams."""

from __future__ import annotations

import socket as stdlib
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from anyio.abc import ByteStream, SocketAttribute

from ._address import format_address
from ._connection import Connection
from ._errors import bad_option, text_of
from ._future import SocketFuture
from ._layered import LayeredTransport
from ._lifecycle import Dial, Link
from ._open import TakenOver, Wrapped
from ._opener import Opener
from ._options import (
    SecureTransport,
    SocketOptions,
    parse_start_tls_options,
    parse_stream_options,
)
from ._slots import Slot
from ._streams import ReadableStream, WritableStream, attributes_of, writable
from ._target import SocketInfo, Target, Wrapping
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

    It begins *pending*: the first task that awaits something that needs the connection makes it.
    ``async with`` waits until the connection is open, and closes the socket at the end of the
    block. It is a ``ByteStream``, so it works wherever AnyIO accepts one. Its methods are those of
    its two streams.

    Every call that is awaited is a checkpoint: a pending cancellation is raised. If a call need
    not wait, other tasks still get to run: on trio after every such call, and on asyncio after at
    most sixteen such calls or one mebibyte of data, counted over all sockets of the event loop.
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
        # Created on first use: most programs use only the methods of the socket.
        self._readable: ReadableStream | None = None
        self._writable: WritableStream | None = None

    @staticmethod
    def wrap(stream: ByteStream, **options: Unpack[SocketOptions]) -> Socket:
        """Return a socket that uses ``stream``, which is connected already. Does not wait.

        ``stream`` may be AnyIO's ``UNIXSocketStream`` or ``TLSStream``, an SSH channel, another
        ``Socket`` (TLS in TLS), or any other ``ByteStream``. With ``secure_transport="on"``, the
        TLS handshake is made when the socket is first used, within ``connect_timeout``. The
        certificate must be valid for the name in ``sni``, which is required unless the
        ``ssl_context`` checks no names. With ``"starttls"``, ``start_tls()`` requires
        ``expected_server_hostname`` in the same way. From now on the socket owns the stream and
        closes it. No other code may use the stream.

        The socket behaves like any other, as far as the stream allows:

        - ``closed`` notices the peer's end or a reset only when a call receives or sends.
        - A cancelled send counts as cut short, because the stream does not tell how much it has
          sent. A :class:`Socket` does tell.
        - ``writable.abort()``, and everything else that would reset a connection, closes the
          stream by force. A :class:`Socket` is aborted instead.
        - ``send_eof()`` calls the stream's own. If the stream cannot do that, it raises
          :class:`HalfCloseError`. TLS over the stream has its own half-close.
        - ``close()`` waits until the stream is closed, for at most ``close_timeout`` seconds. If
          closing the stream fails, ``closed`` fails.
        - The stream decides whether a cancelled ``close()`` still waits.
        - Any other error of the stream becomes the cause of a :class:`BrokenError`.

        If ``stream`` is a :class:`Socket` that is still pending, its connection is made as well,
        within its own ``connect_timeout`` and the one given here. Data that it has read ahead is
        received first. Its ``allow_half_open`` applies to both.

        ``opened`` tells the addresses and the ALPN protocol that the stream reports as AnyIO's
        typed attributes.

        :raises InvalidOptionError: ``stream`` is not a ``ByteStream``; an option is unknown, has a
            bad value, contradicts another, or applies only to sockets of the kernel; or ``sni`` is
            missing. The stream is not touched.
        """
        parsed = parse_stream_options(options)
        target = Wrapping(_name_of(stream), parsed)
        return Socket(Wrapped(transport_of(stream), target), target, None)

    @property
    def readable(self) -> ReadableStream:
        """The stream of the data that the peer sends."""
        if self._readable is None:
            self._readable = ReadableStream(self._connection)
        return self._readable

    @property
    def writable(self) -> WritableStream:
        """The stream of the data that we send."""
        if self._writable is None:
            self._writable = WritableStream(self._connection)
        return self._writable

    @property
    def opened(self) -> SocketFuture[SocketInfo]:
        """Resolves with a :class:`SocketInfo` when the connection has been made.

        Fails with a :class:`ConnectError` if the connection cannot be made, or with
        :class:`ClosedError` if the socket is closed first.
        """
        return self._connection.opened

    @property
    def closed(self) -> SocketFuture[None]:
        """Settles when the connection is over.

        Resolves after ``close()``, when both directions have ended, and when ``start_tls()``
        has taken the connection over. Fails with the error of ``opened``, or with
        :class:`BrokenError` if the connection was reset, lost or aborted.

        Awaiting it makes the connection if necessary, and watches for the peer's FIN or reset
        without taking any data. A TLS close_notify without a FIN is noticed only when a task
        receives. If both directions have ended, but our close_notify did not fit into the send
        buffer, awaiting this sends it as soon as there is room; so does ``close()``.
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
        """Return a pending socket that uses TLS on this connection. It replaces this socket.

        For protocols that switch to TLS on an open connection, after the peer has agreed. This
        socket's ``upgraded`` becomes True, its ``closed`` resolves, and its streams raise
        :class:`ClosedError`. The new socket makes the TLS handshake when it is first used, within
        a new ``connect_timeout`` if one was given. A send that is still in flight on this socket
        finishes before the handshake.

        Unread plain-text data from the peer goes to the handshake, which fails: such data can
        never be read as if it had come over TLS. If :meth:`receive_until` has read data ahead,
        this call fails. If your own code has read data ahead into a buffer, check that the buffer
        is empty.

        ``expected_server_hostname``: the name that the certificate must be valid for, instead of
        the host name of the address. It is normalised like ``sni``. ``ssl_context`` and ``alpn``
        replace those of ``connect()``. None means "not given" for each of the three. All other
        options are those of ``connect()``.

        A failed handshake drops the connection, and both futures of the new socket fail: with
        :class:`TLSError`, or with :class:`ConnectTimeoutError` if ``connect_timeout`` ran out,
        which includes the wait for that send. If that send was cut short or the connection broke,
        there is no handshake, and both futures fail with :class:`BrokenError`. A handshake that
        is cancelled part-way cannot be made again: it drops the connection too, and both futures
        fail with :class:`TLSError`. Source: the WinterTC draft, ``startTls()``.

        :raises StartTLSError: the socket was not made with ``secure_transport="starttls"``; it is
            closed or upgraded already; one of its directions has ended; a receive is in flight; or
            data was read ahead, or kept by a receive that ended early, and not received yet.
            Nothing has changed.
        :raises InvalidOptionError: an argument has a bad value; or ``expected_server_hostname``
            differs from ``sni``, or would not be checked, because ``check_hostname`` of the
            context is False. Nothing has changed.
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was lost, or a send was cut short
        """
        before = self._target
        options = parse_start_tls_options(
            before.options, before.host, expected_server_hostname, ssl_context, alpn
        )
        target = before._replace(options=options)
        slot = self._connection.upgrade()
        return Socket(TakenOver(self._connection, target), target, slot)

    def detach(self) -> stdlib.socket:
        """Return the kernel's socket, for a library that needs one. It replaces this object.

        The returned socket is connected and non-blocking. The caller owns it and has to close it.
        No event loop watches it any more. Unread data from the peer can be received from it. This
        object's ``closed`` resolves, its streams raise :class:`ClosedError`, and its ``close()``
        does nothing. A direction that has ended stays ended.

        With ``max_connections``, the returned socket is an instance of a subclass of
        ``socket.socket``. It gives the slot back when it is closed, when its ``detach()`` is
        called, or when it is collected. That is too early if another object then uses the
        connection: ``SSLContext.wrap_socket()`` calls ``detach()``, and the result of ``dup()``
        has no slot. Some libraries refuse a subclass, such as trio's ``from_stdlib_socket()``:
        pass ``socket.socket(fileno=sock.detach())``. asyncio keeps the socket until it closes the
        connection, also with ``ssl=``.

        For TLS from the first byte, give the library a plain connection, and let it make the
        handshake: :meth:`Connector.connect_socket` makes such a connection.

        :raises DetachError: the connection was not made yet; the socket was closed, detached or
            upgraded; a call is in flight; data was read ahead and not received yet; or the
            connection has no such socket, because it uses TLS or a stream of another kind.
            Nothing has changed.
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was lost, or a send was cut short
        """
        return self._connection.detach()

    async def receive(self, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Receive at least one and at most ``max_bytes`` bytes, as soon as there are any.

        This is :meth:`ReadableStream.receive`. Makes the connection first if necessary. Cancelling
        it loses no data.

        :raises TypeError: ``max_bytes`` is not an int
        :raises ValueError: ``max_bytes`` is less than 1
        :raises anyio.EndOfStream: the peer has ended, and everything it sent was received; every
            later call raises this too
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        return await self._connection.receive(max_bytes)

    async def receive_into(self, buffer: Buffer) -> int:
        """Receive at least one byte into ``buffer``, as soon as possible; return the number.

        This is :meth:`ReadableStream.receive_into`. Cancelling it loses no data, but the content
        of ``buffer`` is then undefined.

        :raises TypeError: ``buffer`` is not a buffer, is read-only, or is not contiguous
        :raises ValueError: ``buffer`` is empty
        :raises anyio.EndOfStream: the peer has ended, and everything it sent was received; every
            later call raises this too
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        with writable(buffer) as view:
            return await self._connection.receive(len(view), view)

    async def receive_exactly(self, nbytes: int) -> bytes:
        """Receive exactly ``nbytes`` bytes; wait until all of them have arrived.

        This is :meth:`ReadableStream.receive_exactly`. If it is cancelled or raises, the data
        that has arrived is kept, and the next receive of any kind begins with it.

        :raises TypeError: ``nbytes`` is not an int
        :raises ValueError: ``nbytes`` is less than 0
        :raises IncompleteReadError: the peer ended too early; the data that arrived is kept
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost; what came before that is kept
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        return await self.readable.receive_exactly(nbytes)

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """Receive up to and including ``delimiter``; return the data without the delimiter.

        This is :meth:`ReadableStream.receive_until`. Data and delimiter together may have at most
        ``max_bytes`` bytes, and no more is read ahead. The data after the delimiter is kept, and
        the next receive of any kind begins with it. If this is cancelled or raises, all data is
        kept.

        :raises TypeError: ``delimiter`` is not bytes-like, or ``max_bytes`` is not an int
        :raises ValueError: ``delimiter`` is empty, or longer than ``max_bytes``
        :raises DelimiterNotFoundError: the first ``max_bytes`` bytes do not contain the delimiter;
            they are kept
        :raises IncompleteReadError: the peer ended too early; the data that arrived is kept
        :raises anyio.BusyResourceError: another task is receiving
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost; what came before that is kept
        :raises ClosedError: the socket or this half of it was closed, also while waiting
        """
        return await self.readable.receive_until(delimiter, max_bytes)

    def is_readable(self) -> bool:
        """Whether :meth:`receive` would return or raise without waiting for the peer.

        This is :meth:`ReadableStream.is_readable`. It neither waits nor takes data.
        """
        return self._connection.is_readable()

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of ``item``; return when the kernel has accepted it.

        This is :meth:`WritableStream.send`. Makes the connection first if necessary. A call that
        is cancelled before it has sent anything changes nothing. If it is cancelled later, our
        side is broken: later sends raise :class:`BrokenError`, but receiving works.

        :raises TypeError: ``item`` is not bytes-like; nothing was sent
        :raises anyio.BusyResourceError: another task is sending
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, or an earlier send was cut short
        :raises ClosedError: our side has ended, or the socket was closed, also while waiting
        """
        await self._connection.send(item)

    async def send_eof(self) -> None:
        """End our side: the peer sees the end of the stream, and receiving goes on.

        This is :meth:`WritableStream.send_eof`. A second call does nothing. Over TLS it waits
        until the kernel has room for close_notify. If it is cancelled during that wait, our side
        is broken.

        :raises anyio.BusyResourceError: another task is sending
        :raises ConnectError: the connection could not be made
        :raises BrokenError: the connection was reset or lost, or a send was cut short
        :raises HalfCloseError: the wrapped stream cannot end one direction; nothing has changed
        :raises ClosedError: the socket was closed
        """
        await self._connection.end()

    async def close(self) -> None:
        """Close both directions. Any task may call this, at any time, any number of times.

        A receive in flight raises :class:`ClosedError` at once. A send in flight finishes first,
        unless this call is cancelled. Then our side ends, and ``closed`` resolves. Unread data is
        discarded. If a send was cut short, the peer gets a reset instead.

        If the connection has not been made yet, it will not be made: ``opened`` fails with
        :class:`ClosedError`, and ``closed`` resolves. There is one exception: if a send is
        waiting for the connection, the connection is made and the send finishes.

        Over TLS, this sends close_notify before the FIN. It does not wait for the peer's
        close_notify. If the peer has not acknowledged everything yet, this waits until it has, or
        until the peer has ended, and discards what the peer sends meanwhile. Closing earlier
        could cause a reset, which destroys the data in transit (RFC 1122 4.2.2.13). Only Linux
        reports what was acknowledged; on other systems this does not wait.

        After ``close_timeout`` seconds without any progress, it gives up. A send in flight is cut
        short: it raises :class:`ClosedError`, and the peer gets a reset. The kernel goes on to
        deliver what it holds. ``closed`` fails with :class:`BrokenError`, which says how many
        bytes were not acknowledged, and a warning is logged (logger ``anyio_connect``).

        If this call is cancelled, it closes the socket without waiting. If a send is in flight, it
        is cut short, and ``closed`` fails. Otherwise the kernel delivers what it holds, and
        ``closed`` resolves. This call raises the cancellation and no other error.
        """
        await self._connection.close()

    async def aclose(self) -> None:
        """The same as :meth:`close`, under AnyIO's name."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        try:
            await self._connection.opened
        except BaseException:
            # Another task may have made the connection. Nothing else would close it.
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
        """AnyIO's typed attributes, such as ``SocketAttribute``; empty until it is connected."""
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
    """Return a transport for ``stream``: the most capable kind that is available."""
    if isinstance(stream, Socket):
        return LayeredTransport(stream, stream._connection)  # noqa: SLF001  # of this module
    return stream if isinstance(stream, Transport) else ForeignTransport(stream)


def _name_of(stream: object) -> str:
    """The name of a stream in messages."""
    if not isinstance(stream, ByteStream):  # callers need not obey the annotations
        why = "must be an anyio.abc.ByteStream: anyio.streams.stapled makes one of two halves"
        raise bad_option("stream", stream, why)
    if isinstance(stream, Socket):
        return str(stream._target)  # noqa: SLF001
    address = attribute_of(stream, SocketAttribute.remote_address)
    if isinstance(address, tuple):
        return format_address(*address[:2])
    return text_of(address) if address else f"a {type(stream).__name__}"
