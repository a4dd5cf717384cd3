"""For aiohttp: every socket is judged by an ``AddressPolicy``.

::

    connector = aiohttp.TCPConnector(socket_factory=socket_factory(WORKERS))
    async with aiohttp.ClientSession(connector=connector) as session:
        response = await session.get(url)
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from anyio_connect import AddressNotAllowedError, AddressPolicy

__all__ = ("socket_factory",)


def socket_factory(
    policy: AddressPolicy,
) -> Callable[[tuple[int, int, int, str, tuple[Any, ...]]], socket.socket]:
    """Return a ``socket_factory`` for ``aiohttp.TCPConnector`` that obeys ``policy``.

    aiohttp resolves names and connects by itself. It calls this function for each address that it
    is about to connect to: the addresses of names, addresses in URLs, and those of redirects. A
    forbidden address is skipped. If none is left, the request fails with
    ``aiohttp.ClientConnectorError``. Its text names the rule, and its ``os_error`` is an
    :class:`AddressNotAllowedError`.

    If aiohttp uses a proxy (``proxy=`` or ``trust_env=True``), only the proxy's address is judged,
    not the address that the proxy connects to. ``refuse_loops`` of the policy has no effect,
    because only a ``Connector`` knows what this process listens on. ``public_only`` and ``deny``
    work.
    """

    def make(info: tuple[int, int, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, address = info
        _judge(policy, address[0], address[1])
        sock = _JudgedSocket(family, kind, protocol)
        sock.policy = policy
        return sock

    return make


class _JudgedSocket(socket.socket):
    """A socket that obeys a policy whenever it is connected.

    The check in ``socket_factory`` is not enough: asyncio resolves an IPv6 address with a zone
    again, like a name, and connects to the result.
    """

    __slots__ = ("policy",)

    policy: AddressPolicy

    def connect(self, address: Any, /) -> None:
        _judge(self.policy, address[0], address[1])
        super().connect(address)


def _judge(policy: AddressPolicy, host: str, port: int) -> None:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    cause: Exception | None = None
    try:
        why = policy.refusal(host, port)
    except Exception as exc:  # noqa: BLE001  # a policy of the user's; a failed one allows nothing
        why, cause = f"it raised {type(exc).__name__} instead of judging it", exc
    if why is None:
        return
    error = AddressNotAllowedError(f"{where}: the policy forbids it: {why}")
    error.errno, error.strerror = errno.EACCES, str(error)  # aiohttp shows the latter
    raise error from cause
