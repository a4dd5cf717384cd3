"""Dialers: functions of the user's that make the connections."""

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
    """What ``Connector(dialer=)`` takes: a way to an address, and a stream that leads there.

    An ``async def`` function of one argument will do, as will a method. It may go through SSH, to
    a Unix socket, or to a peer in the same process. The :class:`SocketAddress` that it is called
    with has an IP address, if the ``policy`` of the ``Connector`` judges addresses: it is one that
    the policy allows. Otherwise it has the host as ``connect()`` was given it, in its normal form,
    and the policy has allowed the port.

    The stream belongs to the new socket, which closes it. It may be one of AnyIO's, or any other
    ``ByteStream``. A ``Socket`` is connected first. Then it gives its connection away, as by
    ``detach()``. If it cannot, because it has TLS for example, it is used as by
    :meth:`Socket.wrap`, and needs ``allow_half_open`` if the new socket has it.

    A :class:`SocketError` that is raised is what the futures of the socket fail with. If there are
    several addresses, it is in ``attempts`` of the :class:`ConnectError`, like that of any
    other attempt. An ``OSError`` becomes what it would be from the system: ``ECONNREFUSED`` and
    ``ConnectionRefusedError`` are :class:`RefusedError`, ``ETIMEDOUT`` and ``TimeoutError`` are
    :class:`ConnectTimeoutError`, ``socket.gaierror`` is :class:`ResolveError`. Any other
    exception, and a result that is no ``ByteStream``, is a :class:`ConnectError`.

    A dial that is not wanted any more is cancelled: by ``close()``, by ``connect_timeout``, or
    because another address was faster. A stream that is returned after that is closed.
    """

    def __call__(self, address: SocketAddress, /) -> Awaitable[ByteStream]:
        """Connect to ``address``; return the stream."""
        ...


async def reach(dialer: Dialer, address: SocketAddress) -> Transport:
    """Have ``dialer`` connect to ``address``. Cancelled, it leaves no stream behind.

    :raises ConnectError: what it returned is no stream
    :raises Exception: whatever the dialer raises
    """
    # Whatever the annotations promise.
    answer: object = dialer(address)
    if not isawaitable(answer):
        raise not_a_stream(format_address(*address), answer, "write it with 'async def'")
    stream: object = await answer
    if not isinstance(stream, ByteStream):
        if isinstance(stream, AsyncResource):
            with suppress(Exception):  # what it returned matters more
                await anyio.aclose_forcefully(stream)
        raise not_a_stream(format_address(*address), stream, "return an anyio.abc.ByteStream")
    transport = stream if isinstance(stream, Transport) else ForeignTransport(stream)
    try:
        # It may have shielded itself from the cancellation.
        await checkpoint_if_cancelled()
    except BaseException:
        await transport.abort()
        raise
    return transport
