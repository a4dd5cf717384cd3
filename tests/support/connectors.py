"""A value for each attribute of a Connector."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from anyio.abc import ByteStream

from anyio_connect import AddressPolicy, Connector, SocketAddress, connect
from support.tls_peers import client_context


async def resolve(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def prepare(sock: object) -> None:
    pass


async def dial(address: SocketAddress) -> ByteStream:
    socket = connect(("127.0.0.1", address.port))
    await socket.opened
    return socket


#: One value for each attribute, other than the default. Each function works, with any address of
#: which a test listens at the port.
VALUES: dict[str, Any] = {
    "policy": AddressPolicy(deny=["192.0.2.1"]),
    "max_connections": 2,
    "ssl_context": client_context(),
    "happy_eyeballs_delay": 1.0,
    "local_host": "127.0.0.1",
    "close_timeout": 7.0,
    "connect_timeout": 60.0,
    "keep_alive": 77.0,
    "resolver": resolve,
    "prepare": prepare,
    "dialer": dial,
    "proxy": "http://127.0.0.1:9",
}
NAMES = [field.name for field in fields(Connector)]
