"""A client of Redis (RESP) and a real server, over TLS and over plain TCP.

https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio
import pytest

from anyio_connect import Socket, connect
from interop.servers import RedisServer

# --- the client

Reply: TypeAlias = "bytes | int | list[Reply] | None"


class RedisError(Exception):
    """An error of the server."""


class Redis:
    """Commands and replies."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    async def __call__(self, *words: bytes) -> Reply:
        """Send one command and return the reply to it."""
        await self.send(words)
        return await self.reply()

    async def send(self, *commands: tuple[bytes, ...]) -> None:
        """Send any number of commands at once. The replies arrive in the same order."""
        parts = []
        for words in commands:
            parts.append(b"*%d\r\n" % len(words))
            parts += (b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        await self._socket.send(b"".join(parts))

    async def reply(self) -> Reply:
        line = await self._socket.receive_until(b"\r\n", 65536)
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        size = int(rest)
        if size < 0:
            return None
        if kind == b"*":
            return [await self.reply() for _ in range(size)]
        return (await self._socket.receive_exactly(size + 2))[:-2]


@asynccontextmanager
async def connect_redis(
    address: str | tuple[str, int], *, ssl_context: ssl.SSLContext | None
) -> AsyncIterator[Redis]:
    """A connection to Redis, encrypted unless ``ssl_context`` is None."""
    if ssl_context is None:
        socket = connect(address)
    else:
        socket = connect(address, secure_transport="on", ssl_context=ssl_context)
    async with socket:
        yield Redis(socket)


# --- the tests


@pytest.fixture(params=["tls", "plain"])
def server(
    redis_server: RedisServer, ssl_context: ssl.SSLContext, request: pytest.FixtureRequest
) -> tuple[tuple[str, int], ssl.SSLContext | None]:
    """The address of Redis, and the context for TLS, or None without TLS."""
    if request.param == "tls":
        return redis_server.tls, ssl_context
    return redis_server.plain, None


async def test_commands(server: tuple[tuple[str, int], ssl.SSLContext | None]) -> None:
    address, ssl_context = server
    async with connect_redis(address, ssl_context=ssl_context) as redis:
        assert await redis(b"PING") == b"PONG"
        assert await redis(b"SET", b"key", b"a\r\nvalue\0") == b"OK"
        assert await redis(b"GET", b"key") == b"a\r\nvalue\0"
        assert await redis(b"STRLEN", b"key") == 9
        assert await redis(b"MGET", b"key", b"missing") == [b"a\r\nvalue\0", None]
        with pytest.raises(RedisError, match="WRONGTYPE"):
            await redis(b"LPUSH", b"key", b"item")


async def test_pipeline(server: tuple[tuple[str, int], ssl.SSLContext | None]) -> None:
    """Replies arrive while commands are still being sent: neither waits for the other."""
    address, ssl_context = server
    value = bytes(range(256)) * 64
    count = 500  # commands, with 8 MB in all
    commands = [(b"SETEX", b"pipelined:%d" % n, b"60", b"%d" % n + value) for n in range(count)]
    async with connect_redis(address, ssl_context=ssl_context) as redis:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(redis.send, *commands)
            assert [await redis.reply() for _ in range(count)] == [b"OK"] * count
        assert await redis(b"GET", b"pipelined:499") == b"499" + value


async def test_pipeline_with_large_replies(redis_server: RedisServer) -> None:
    """Only over plain TCP: over TLS, Redis 7.0 drops clients that do not read fast enough.

    Its log then says "bad length", because it repeats an SSL_write() with less data. Valkey
    inherited that from Redis: https://github.com/valkey-io/valkey/issues/1135
    """
    value = bytes(range(256)) * 64
    count = 500  # commands that echo 8 MB: more than the kernels' buffers hold
    commands = [(b"ECHO", b"%d" % n + value) for n in range(count)]
    async with (
        connect_redis(redis_server.plain, ssl_context=None) as redis,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(redis.send, *commands)
        assert [await redis.reply() for _ in range(count)] == [words[1] for words in commands]


async def test_large_value(server: tuple[tuple[str, int], ssl.SSLContext | None]) -> None:
    address, ssl_context = server
    value = bytes(range(256)) * 16384
    async with connect_redis(address, ssl_context=ssl_context) as redis:
        assert await redis(b"SET", b"large", value) == b"OK"
        assert await redis(b"GET", b"large") == value
        assert await redis(b"QUIT") == b"OK"


async def test_tls_in_tls(redis_front: tuple[str, int], ssl_context: ssl.SSLContext) -> None:
    value = bytes(range(256)) * 4096
    outer = connect(redis_front, secure_transport="on", ssl_context=ssl_context)
    async with Socket.wrap(
        outer, secure_transport="on", sni=redis_front[0], ssl_context=ssl_context
    ) as socket:
        redis = Redis(socket)
        assert await redis(b"SET", b"twice", value) == b"OK"
        assert await redis(b"GET", b"twice") == value
    assert outer.closed.result() is None
