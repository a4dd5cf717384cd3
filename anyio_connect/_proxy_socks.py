"""SOCKS5 (RFC 1928) with user and password (RFC 1929), by socksio.

socksio packs and unpacks messages, but does not tell the length of a message. This module knows
the lengths and never reads more, so that the data after the last message is left for the next
receive.
"""

from __future__ import annotations

from typing import Any

from socksio import (
    ProtocolError,
    SOCKS5AuthMethod,
    SOCKS5AuthMethodsRequest,
    SOCKS5Command,
    SOCKS5CommandRequest,
    SOCKS5Connection,
    SOCKS5UsernamePasswordRequest,
)

from ._proxy import Proxy, ProxyAnswerError
from ._transport import Transport

_MEANINGS = {
    1: "it failed, and does not say why",
    2: "its rules forbid that",
    3: "it has no route to that network",
    4: "it cannot reach that host",
    5: "connection refused: nothing is listening there",
    6: "its packets did not reach that host (TTL expired)",
    7: "it does not know how to connect",
    8: "it does not know this kind of address",
}

#: The length of the address in a reply, in bytes, by its type. A name begins with its length.
_LENGTHS = {1: 4, 4: 16}
_NAME = 3


async def ask(transport: Transport, proxy: Proxy, host: str, port: int) -> None:
    """Ask the proxy for a tunnel to ``host``. Afterwards, the transport leads to ``host``.

    :raises ProxyAnswerError: the proxy refused, or its answer is not SOCKS5
    :raises anyio.EndOfStream: the proxy hung up before it answered
    :raises anyio.BrokenResourceError: the connection broke before the proxy answered
    """
    connection = SOCKS5Connection()
    await _authenticate(transport, connection, proxy)
    request = SOCKS5CommandRequest.from_address(SOCKS5Command.CONNECT, (host, port))
    await _say(transport, connection, request)
    version, status = await _read(transport, 2)
    if version != 5:
        raise _not_socks()
    if status:  # then the rest has no meaning, and some proxies do not send it
        why = _MEANINGS.get(status, "it refused")
        raise ProxyAnswerError(f"{why} (SOCKS5 reply {status})", status, of_target=True)
    _, kind = await _read(transport, 2)
    if kind == _NAME:
        (length,) = await _read(transport, 1)
    elif kind in _LENGTHS:
        length = _LENGTHS[kind]
    else:
        raise _not_socks()
    await _read(transport, length + 2)  # the address that the proxy connects from: not needed


async def _authenticate(transport: Transport, connection: SOCKS5Connection, proxy: Proxy) -> None:
    methods = [SOCKS5AuthMethod.NO_AUTH_REQUIRED]
    if proxy.credentials is not None:
        methods.append(SOCKS5AuthMethod.USERNAME_PASSWORD)
    await _say(transport, connection, SOCKS5AuthMethodsRequest(methods))
    answer = await _read(transport, 2, our_turn=True)
    method = _loaded(connection, answer).method if answer[0] == 5 else None
    if method is SOCKS5AuthMethod.NO_ACCEPTABLE_METHODS:
        if proxy.credentials is None:
            raise ProxyAnswerError(
                "it wants a user and a password: write them into the URL, "
                f"{proxy.scheme}://user:password@..."
            )
        raise ProxyAnswerError(
            "it wants another kind of authentication than a user and a password, which is the "
            "only one supported"
        )
    if method not in methods:
        raise _not_socks()
    if method is SOCKS5AuthMethod.USERNAME_PASSWORD:
        assert proxy.credentials is not None
        await _say(transport, connection, SOCKS5UsernamePasswordRequest(*proxy.credentials))
        answer = await _read(transport, 2, our_turn=True)
        if answer[0] != 1:
            raise _not_socks()
        if not _loaded(connection, answer).success:
            raise ProxyAnswerError("it does not accept this user with this password")


async def _say(transport: Transport, connection: Any, request: object) -> None:
    connection.send(request)  # pyright does not know the type
    await transport.send(connection.data_to_send())


def _loaded(connection: SOCKS5Connection, answer: bytes) -> Any:
    try:
        return connection.receive_data(answer)
    except ProtocolError:
        raise _not_socks() from None


async def _read(transport: Transport, count: int, *, our_turn: bool = False) -> bytes:
    """Read ``count`` bytes. ``our_turn``: we send next, so the proxy must not send more bytes."""
    data = b""
    while len(data) < count:
        data += await transport.receive(count - len(data) + our_turn)
    if len(data) > count:
        raise ProxyAnswerError("it sent more than was expected: is it a SOCKS5 proxy?")
    return data


def _not_socks() -> ProxyAnswerError:
    return ProxyAnswerError("it answered with something that is not SOCKS5: is it a SOCKS5 proxy?")
