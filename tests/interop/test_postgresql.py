"""A client of PostgreSQL, whose TLS begins with an SSLRequest, and a real server.

https://www.postgresql.org/docs/current/protocol-flow.html
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import ssl
import struct
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.streams.tls import TLSAttribute

from anyio_connect import Socket, connect
from interop.servers import PostgreSQL

# --- the client

SSL_REQUEST = struct.pack("!II", 8, 80877103)


class PostgresError(Exception):
    """An error of the server: its message, and the SQLSTATE in ``code``."""

    def __init__(self, fields: bytes) -> None:
        found = {field[:1]: field[1:].decode() for field in fields.split(b"\0") if field}
        super().__init__(found.get(b"M", "no message"))
        self.code = found.get(b"C", "")


@asynccontextmanager
async def connect_postgres(
    address: str | tuple[str, int],
    *,
    user: str,
    password: str = "",
    database: str = "postgres",
    ssl_context: ssl.SSLContext | None,
) -> AsyncIterator[Connection]:
    """A connection to a database, encrypted unless ``ssl_context`` is None."""
    if ssl_context is None:
        async with connect(address) as plain, logged_in(plain, user, password, database) as result:
            yield result
        return
    async with connect(address, secure_transport="starttls", ssl_context=ssl_context) as plain:
        await plain.send(SSL_REQUEST)
        # The answer is one byte. Everything after it must be TLS, so nothing more is read here.
        if await plain.receive_exactly(1) != b"S":
            raise ConnectionError("the server does not offer TLS")
        async with plain.start_tls() as tls, logged_in(tls, user, password, database) as result:
            yield result


@asynccontextmanager
async def logged_in(
    socket: Socket, user: str, password: str, database: str
) -> AsyncIterator[Connection]:
    connection = Connection(socket)
    await connection.log_in(user, password, database)
    yield connection
    await connection.send(b"X")  # Terminate


#: For the number of a column's type, the function that converts its text. Other types stay text.
DECODERS: dict[int, Callable[[bytes], object]] = {
    16: lambda text: text == b"t",  # bool
    17: lambda text: bytes.fromhex(text[2:].decode()),  # bytea
    20: int,  # int8
    21: int,  # int2
    23: int,  # int4
    701: float,  # float8
}


class Connection:
    """A session with the server."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    async def send(self, kind: bytes, body: bytes = b"") -> None:
        await self._socket.send(kind + struct.pack("!I", len(body) + 4) + body)

    async def receive(self) -> tuple[bytes, bytes]:
        """Receive one message: its type and its body."""
        kind, length = struct.unpack("!cI", await self._socket.receive_exactly(5))
        body = await self._socket.receive_exactly(length - 4)
        if kind == b"E":
            raise PostgresError(body)
        return kind, body

    async def receive_until_ready(self) -> AsyncIterator[tuple[bytes, bytes]]:
        kind = b""
        while kind != b"Z":  # ReadyForQuery
            kind, body = await self.receive()
            yield kind, body

    # --- logging in

    async def log_in(self, user: str, password: str, database: str) -> None:
        parameters = {"user": user, "database": database, "client_encoding": "UTF8"}
        words = (word for pair in parameters.items() for word in pair)
        version = struct.pack("!HH", 3, 0)
        await self.send(b"", version + b"".join(word.encode() + b"\0" for word in words) + b"\0")
        kind, body = await self.receive()
        if body[:4] == struct.pack("!I", 10):  # AuthenticationSASL, and the mechanisms offered
            await self._scram(password, body[4:].split(b"\0"))
            kind, body = await self.receive()
        if kind != b"R" or body != struct.pack("!I", 0):  # AuthenticationOk
            raise ConnectionError(f"the server requires another kind of authentication: {body!r}")
        async for _ in self.receive_until_ready():
            pass

    async def _scram(self, password: str, mechanisms: list[bytes]) -> None:
        """Prove that we know the password, and let the server prove it too (RFC 5802, RFC 7677).

        Over TLS, the proofs are bound to this connection (RFC 5929). So an attacker on the network
        path cannot pass them on, not even with a certificate that we trust.
        """
        mechanism, header, binding = b"SCRAM-SHA-256", "n,,", b""
        if b"SCRAM-SHA-256-PLUS" in mechanisms:
            mechanism, header = b"SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,"
            # SHA-256, because the certificate is signed with it.
            certificate = self._socket.extra(TLSAttribute.peer_certificate_binary)
            assert certificate is not None
            binding = hashlib.sha256(certificate).digest()

        nonce = secrets.token_urlsafe()
        client_first = f"n=,r={nonce}"  # the user was in the startup message
        first = (header + client_first).encode()
        await self.send(b"p", mechanism + b"\0" + struct.pack("!I", len(first)) + first)

        _, body = await self.receive()
        server_first = body[4:].decode()
        values = dict(part.split("=", 1) for part in server_first.split(","))
        if not values["r"].startswith(nonce):
            raise ConnectionError("the server's answer is for another client")
        salt, iterations = b64decode(values["s"]), int(values["i"])

        bound = b64encode(header.encode() + binding).decode()
        client_final = f"c={bound},r={values['r']}"
        signed = f"{client_first},{server_first},{client_final}".encode()
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        await self.send(b"p", f"{client_final},p={b64encode(proof).decode()}".encode())

        _, body = await self.receive()
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        verifier = b64encode(hmac.digest(server_key, signed, "sha256"))
        if not hmac.compare_digest(body[4:], b"v=" + verifier):
            raise ConnectionError("the server does not know the password")

    # --- queries

    async def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run an SQL statement and return the rows of its result."""
        await self.send(b"Q", sql.encode() + b"\0")
        types: list[int] = []
        rows = []
        async for kind, body in self.receive_until_ready():
            if kind == b"T":  # RowDescription
                types = column_types(body)
            elif kind == b"D":  # DataRow
                rows.append(tuple(map(decode, types, fields(body))))
        return rows


def column_types(body: bytes) -> list[int]:
    """The numbers of the columns' types, from a RowDescription."""
    (count,), rest = struct.unpack("!H", body[:2]), body[2:]
    types = []
    for _ in range(count):
        _name, _, rest = rest.partition(b"\0")
        types.append(struct.unpack("!IHIHIH", rest[:18])[2])
        rest = rest[18:]
    return types


def fields(body: bytes) -> list[bytes | None]:
    """The fields of a DataRow; None for NULL."""
    (count,), rest = struct.unpack("!H", body[:2]), body[2:]
    found: list[bytes | None] = []
    for _ in range(count):
        (length,), rest = struct.unpack("!i", rest[:4]), rest[4:]
        found.append(None if length < 0 else rest[:length])
        rest = rest[max(length, 0) :]
    return found


def decode(number: int, text: bytes | None) -> object:
    return None if text is None else DECODERS.get(number, bytes.decode)(text)


# --- the tests


async def test_password_and_query(postgresql: PostgreSQL, ssl_context: ssl.SSLContext) -> None:
    async with connect_postgres(
        postgresql.address,
        user=postgresql.user,
        password=postgresql.password,
        ssl_context=ssl_context,
    ) as database:
        rows = await database.query(
            "SELECT 1, -2::int8, 2.5::float8, true, 'grüße', NULL::int, '\\x00ff'::bytea"
        )
        assert rows == [(1, -2, 2.5, True, "grüße", None, b"\x00\xff")]
        # Does the server say too that this connection uses TLS?
        assert await database.query(
            "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ) == [(True, "TLSv1.3")]


async def test_password_without_tls(postgresql: PostgreSQL) -> None:
    async with connect_postgres(
        postgresql.address,
        user=postgresql.user,
        password=postgresql.password,
        ssl_context=None,
    ) as database:
        assert await database.query("SELECT current_user::text") == [(postgresql.user,)]


async def test_over_its_unix_socket(postgresql: PostgreSQL) -> None:
    async with (
        Socket.wrap(await anyio.connect_unix(postgresql.path)) as socket,
        logged_in(socket, postgresql.user, postgresql.password, "postgres") as database,
    ):
        query = "SELECT current_user::text, inet_client_addr() IS NULL"
        assert await database.query(query) == [(postgresql.user, True)]
        rows = await database.query("SELECT n, repeat('x', n) FROM generate_series(1, 1000) n")
        assert rows == [(n, "x" * n) for n in range(1, 1001)]
    assert socket.closed.result() is None


@pytest.mark.parametrize("tls", [True, False])
async def test_wrong_password(
    postgresql: PostgreSQL, ssl_context: ssl.SSLContext, tls: bool
) -> None:
    with pytest.raises(PostgresError, match="password authentication failed") as caught:
        async with connect_postgres(
            postgresql.address,
            user=postgresql.user,
            password="wrong",
            ssl_context=ssl_context if tls else None,
        ):
            pytest.fail("it let us in")
    assert caught.value.code == "28P01"


async def test_large_result_and_error(postgresql: PostgreSQL, ssl_context: ssl.SSLContext) -> None:
    async with connect_postgres(
        postgresql.address, user=postgresql.trusted_user, ssl_context=ssl_context
    ) as database:
        rows = await database.query("SELECT n, repeat('x', n) FROM generate_series(1, 1000) n")
        assert rows == [(n, "x" * n) for n in range(1, 1001)]
        with pytest.raises(PostgresError, match="division by zero") as caught:
            await database.query("SELECT 1 / 0")
        assert caught.value.code == "22012"


async def test_user_who_needs_tls(postgresql: PostgreSQL) -> None:
    with pytest.raises(PostgresError, match="no encryption"):
        async with connect_postgres(
            postgresql.address, user=postgresql.trusted_user, ssl_context=None
        ):
            pytest.fail("it let us in")
