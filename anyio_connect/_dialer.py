"""Dialers: functions of the user that make the connections."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress
from inspect import isawaitable
from typing import Protocol

import anyio
from anyio.abc import AsyncResource, ByteStream
from anyio.lowlevel import checkpoint_if_cancelled

from ._address import SocketAddress, format_address
from ._dial_errors import not_a_stream
from ._transport import ForeignTransport, Transport


class Dialer(Protocol):
    """The type of ``Connector(dialer=)``: it connects to an address and returns a stream.

    It can be an ``async def`` function with one argument, or such a method. It may connect through
    SSH, to a Unix socket, or to a peer in the same process. It is called with a
    :class:`SocketAddress`. If the ``policy`` of the ``Connector`` judges addresses, that has an IP
    address, which the policy allows. Otherwise it has the host that was given to ``connect()``, in
    its normal form, and the policy has allowed the port.

    The new socket owns the returned stream and closes it. It may be a stream of AnyIO, or any
    other ``ByteStream``. If it is a ``Socket``, that is connected first, and then its connection
    is taken over, as by ``detach()``. If that is not possible, for example because it uses TLS, it
    is used as by :meth:`Socket.wrap`, and needs ``allow_half_open`` if the new socket has it.

    If the dialer raises a :class:`SocketError`, the futures of the socket fail with it. If there
    are several addresses, it is an item in ``attempts`` of the :class:`ConnectError`, like the
    error of any other attempt. An ``OSError`` is treated like an error of the system:
    ``ECONNREFUSED`` and ``ConnectionRefusedError`` become :class:`RefusedError`, ``ETIMEDOUT`` and
    ``TimeoutError`` become :class:`ConnectTimeoutError`, and ``socket.gaierror`` becomes
    :class:`ResolveError`. Any other exception, and a result that is not a ``ByteStream``, becomes
    a :class:`ConnectError`.

    A dial that is no longer needed is cancelled: by ``close()``, by ``connect_timeout``, or
    because another address was faster. If it returns a stream nevertheless, the stream is closed.
    """

    def __call__(self, address: SocketAddress, /) -> Awaitable[ByteStream]:
        """Connect to ``address``, and return the stream."""
        ...


async def reach(dialer: Dialer, address: SocketAddress) -> Transport:
    """Let ``dialer`` connect to ``address``. If this is cancelled, it leaves no stream behind.

    :raises ConnectError: the dialer did not return a stream
    :raises Exception: any exception of the dialer
    """
    # Users need not obey the annotations.
    answer: object = dialer(address)
    if not isawaitable(answer):
        raise not_a_stream(format_address(*address), answer, "write it with 'async def'")
    stream: object = await answer
    if not isinstance(stream, ByteStream):
        if isinstance(stream, AsyncResource):
            with suppress(Exception):  # the error below matters more
                await anyio.aclose_forcefully(stream)
        raise not_a_stream(format_address(*address), stream, "return an anyio.abc.ByteStream")
    transport = stream if isinstance(stream, Transport) else ForeignTransport(stream)
    try:
        # The dialer may have shielded itself from a cancellation.
        await checkpoint_if_cancelled()
    except BaseException:
        await transport.abort()
        raise
    return transport
