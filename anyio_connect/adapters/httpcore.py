"""For httpcore: a network backend over a ``Connector``.

::

    pool = httpcore.AsyncConnectionPool(network_backend=NetworkBackend(Connector(WORKERS)))
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpcore
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute
from httpcore import SOCKET_OPTION

from anyio_connect import Connector, InvalidOptionError, Socket, SocketError

__all__ = ("NetworkBackend",)

_ATTRIBUTES: dict[str, Any] = {
    "ssl_object": TLSAttribute.ssl_object,
    "client_addr": SocketAttribute.local_address,
    "server_addr": SocketAttribute.remote_address,
    "socket": SocketAttribute.raw_socket,
}


class NetworkBackend(httpcore.AsyncNetworkBackend):
    """Opens the connections of an ``httpcore.AsyncConnectionPool``, and of its proxies.

    The connector's policy judges every address that the pool is about to connect to: the addresses
    of names, addresses in URLs, and those of redirects. If the pool uses a proxy, only the proxy's
    address is judged, not the address that the proxy connects to.

    The errors are httpcore's, because its pool expects them: ``ConnectError``,
    ``ConnectTimeout``, ``ReadError``, ``ReadTimeout``, ``WriteError``, ``WriteTimeout``. Their
    argument, and so their text, is the :class:`SocketError` with the reason.

    A pool keeps idle connections. Each of them holds a slot of ``max_connections``, so the pool's
    own limit must not be greater than that.
    """

    def __init__(self, connector: Connector | None = None) -> None:
        """``connector``: None allows all addresses and any number of connections."""
        self._connector = Connector() if connector is None else connector

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to ``host`` at ``port`` within ``timeout`` seconds; None is no limit.

        ``socket_options`` are set after connecting, as by httpcore's own backend. A cancelled call
        leaves nothing behind.

        :raises httpcore.ConnectTimeout: the time ran out
        :raises httpcore.ConnectError: the connection could not be made, or the policy forbids it
        :raises InvalidOptionError: ``local_address`` is given: use ``local_host`` of the
            ``Connector``
        """
        if local_address is not None:
            raise InvalidOptionError(
                f"local_address={local_address!r} has no effect on one connection alone: "
                "give it to the Connector, as local_host"
            )
        with _errors_as(httpcore.ConnectError, httpcore.ConnectTimeout, timeout):
            socket = self._connector.connect(
                (host, port),
                secure_transport="starttls",
                allow_half_open=True,  # an upload goes on although the peer has ended
            )
            return await _opened(socket, host, timeout, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the Unix socket at ``path`` within ``timeout`` seconds.

        ``socket_options`` are set after connecting. No policy judges the path. A cancelled call
        leaves nothing behind.

        :raises httpcore.ConnectTimeout: the time ran out
        :raises httpcore.ConnectError: the connection could not be made
        """
        with _errors_as(httpcore.ConnectError, httpcore.ConnectTimeout, timeout):
            with anyio.fail_after(timeout):
                stream = await anyio.connect_unix(path)
            socket = Socket.wrap(stream, secure_transport="starttls", allow_half_open=True)
            return await _opened(socket, "localhost", timeout, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds``, before the pool tries again."""
        await anyio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, socket: Socket, host: str) -> None:
        self._socket = socket
        self._host = host

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        with (
            _errors_as(httpcore.ReadError, httpcore.ReadTimeout, timeout),
            anyio.fail_after(timeout),
        ):
            try:
                return await self._socket.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        with (
            _errors_as(httpcore.WriteError, httpcore.WriteTimeout, timeout),
            anyio.fail_after(timeout),
        ):
            await self._socket.send(buffer)

    async def aclose(self) -> None:
        await self._socket.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        name = server_hostname or self._host
        with _errors_as(httpcore.ConnectError, httpcore.ConnectTimeout, timeout):
            return await _opened(self._secured(ssl_context, name), name, timeout, None)

    def _secured(self, ssl_context: ssl.SSLContext, name: str) -> Socket:
        checked = getattr(ssl_context, "check_hostname", True)
        if self._socket.secure_transport == "starttls" and (checked or name == self._host):
            expected = name if checked else None
            return self._socket.start_tls(
                ssl_context=ssl_context, expected_server_hostname=expected
            )
        # TLS in TLS, to an HTTPS proxy; or a name that is sent and not checked.
        return Socket.wrap(
            self._socket,
            secure_transport="on",
            allow_half_open=True,
            sni=name,
            ssl_context=ssl_context,
        )

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._socket.is_readable()
        attribute = _ATTRIBUTES.get(info)
        return None if attribute is None else self._socket.extra(attribute, None)


async def _opened(
    socket: Socket,
    host: str,
    timeout: float | None,  # noqa: ASYNC109
    socket_options: Iterable[SOCKET_OPTION] | None,
) -> _Stream:
    """Make the connection, and return it for httpcore. A failure leaves nothing open."""
    try:
        with anyio.fail_after(timeout):
            await socket.opened
        raw: Any = socket.extra(SocketAttribute.raw_socket, None)
        for option in socket_options or ():
            if raw is not None:  # other kinds of streams have no socket options
                raw.setsockopt(*option)
    except BaseException:
        await socket.close()
        raise
    return _Stream(socket, host)


@contextmanager
def _errors_as(
    failed: type[Exception], late: type[Exception], seconds: float | None
) -> Iterator[None]:
    """Raise httpcore's errors instead of this package's and the system's."""
    try:
        yield
    except TimeoutError as exc:  # ConnectTimeoutError is one, and has a text
        raise late(exc if str(exc) else f"not done within {seconds:g} seconds") from exc
    except (SocketError, OSError) as exc:
        raise failed(exc) from exc  # also as its argument, since the pool drops the cause
