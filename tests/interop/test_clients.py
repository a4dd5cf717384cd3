"""The recipes of docs/clients.md against real servers.

The tests run each recipe exactly as it is on the page. They show of each client that it does not
connect to what the policy forbids and gives the reason, that it connects to what the policy
allows, that ``max_connections`` counts its connections, and that closing it gives the slot back.
"""

from __future__ import annotations

import gc
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from email.message import EmailMessage
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.lowlevel import checkpoint
from anyio.to_thread import run_sync

from anyio_connect import WORKERS, AddressNotAllowedError, AddressPolicy, Connector
from interop.servers import Broker, MailServer, PostgreSQL, RedisServer, SSHServer
from support.http_peers import serving_http
from support.pages import recipe
from support.peers import listening
from support.spying import spying
from support.tls_peers import client_context, server_context

#: Uses a client with a connector: the client has connected and exchanged data when the block is
#: entered, and has closed when it is left.
Use: TypeAlias = Callable[[Connector], AbstractAsyncContextManager[object]]

#: Allows one of this machine's loopback addresses, and forbids the others.
ONE = AddressPolicy(allow=["127.0.0.1"])


one_loop = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")], indirect=True
)
asyncios_loops = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
    indirect=True,
)
trios_loop = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("trio", {}), id="trio")], indirect=True
)


# --- what holds for each client


async def goes_nowhere_forbidden(use: Use, error: type[BaseException]) -> None:
    """An address that the policy forbids is not dialled, and the client's error gives the
    reason."""
    with spying() as dialled, pytest.raises(error, match=r"127\.0\.0\.0/8 is Loopback") as caught:
        async with use(Connector(WORKERS)):
            pytest.fail("it connected")
    assert dialled == []
    assert any(isinstance(one, AddressNotAllowedError) for one in behind(caught.value))


def behind(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


async def is_counted(use: Use) -> None:
    """A client connects if it may. A second one waits until the first has given its slot back."""
    connector = Connector(ONE, max_connections=1)
    slots = vars(connector)["_slots"]
    closing = False

    async def use_another() -> None:
        async with use(connector):
            assert closing

    async with anyio.create_task_group() as group, use(connector):
        assert slots.free == 0
        group.start_soon(use_another)
        await until(lambda: len(slots.queue) == 1)
        closing = True
    await until(lambda: slots.free == 1)


async def gives_back_what_fails(use: Use, error: type[BaseException]) -> None:
    """If the server refuses the client, or is not trusted, the slot becomes free again."""
    connector = Connector(ONE, max_connections=1)
    with pytest.raises(error):
        async with use(connector):
            pytest.fail("it let us in")
    await until(lambda: vars(connector)["_slots"].free == 1)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for an event of another thread or of a later turn of the event loop."""
    with anyio.fail_after(30):
        while not holds():
            await checkpoint()


# --- websockets

for_websockets = recipe("websockets")


@asynccontextmanager
async def websocket(
    server: tuple[str, int], connector: Connector, *, path: str = ""
) -> AsyncIterator[None]:
    uri = "ws://{}:{}/{}".format(*server, path)
    async with await for_websockets.open_websocket(uri, connector) as connection:
        await connection.send("hello")
        assert await connection.recv() == "hello"
        yield


@asyncios_loops
async def test_websockets(web_server: tuple[str, int]) -> None:
    use = partial(websocket, web_server)
    await goes_nowhere_forbidden(use, AddressNotAllowedError)
    await is_counted(use)
    refused = import_module("websockets.exceptions").InvalidStatus
    await gives_back_what_fails(partial(use, path="nowhere"), refused)


@one_loop
async def test_websockets_follows_no_redirect(web_server: tuple[str, int]) -> None:
    uri = "ws://{}:{}/inwards".format(*web_server)
    with (
        spying(really=lambda ip: ip == "127.0.0.1") as dialled,
        pytest.raises(ValueError, match=r"cannot follow .*redirect"),
    ):
        await for_websockets.open_websocket(uri, Connector(ONE))
    assert dialled == ["127.0.0.1"]


# --- asyncssh

for_asyncssh = recipe("asyncssh")


@asynccontextmanager
async def ssh(server: SSHServer, connector: Connector) -> AsyncIterator[None]:
    async with await for_asyncssh.connect_ssh(
        *server.address,
        connector,
        username=server.user,
        client_keys=[str(server.key)],
        known_hosts=str(server.known_hosts),
        config=None,
    ) as connection:
        async with connection.start_sftp_client() as sftp:
            assert await sftp.isdir("/")
        yield
    await connection.wait_closed()


@asyncios_loops
async def test_asyncssh(ssh_server: SSHServer) -> None:
    use = partial(ssh, ssh_server)
    await goes_nowhere_forbidden(use, AddressNotAllowedError)
    await is_counted(use)
    stranger = partial(ssh, replace(ssh_server, user="stranger"))
    await gives_back_what_fails(stranger, import_module("asyncssh").PermissionDenied)


# --- aiosmtplib

for_aiosmtplib = recipe("aiosmtplib")


@asynccontextmanager
async def mail(
    server: MailServer, context: ssl.SSLContext, connector: Connector
) -> AsyncIterator[None]:
    """With STARTTLS, which this server requires."""
    message = EmailMessage()
    message["From"], message["To"] = "alice@client.example", "bob@mail.example"
    smtp = await for_aiosmtplib.open_smtp(
        *server.smtp, connector, tls_context=context, local_hostname="client.example"
    )
    async with smtp:
        errors, _ = await smtp.send_message(message)
        assert not errors
        yield


@asyncios_loops
async def test_aiosmtplib(mail_server: MailServer, ssl_context: ssl.SSLContext) -> None:
    use = partial(mail, mail_server, ssl_context)
    await goes_nowhere_forbidden(use, AddressNotAllowedError)
    await is_counted(use)
    untrusting = partial(mail, mail_server, ssl.create_default_context())
    await gives_back_what_fails(untrusting, ssl.SSLCertVerificationError)


# --- redis

for_redis = recipe("redis")
#: With this setting, redis does not retry.
AT_ONCE = import_module("redis.asyncio.retry").Retry(import_module("redis.backoff").NoBackoff(), 0)


@asynccontextmanager
async def redis_client(
    server: RedisServer, cafile: Path | None, connector: Connector
) -> AsyncIterator[None]:
    host, port = server.tls if cafile else server.plain
    options: dict[str, Any] = {"retry": AT_ONCE}
    if cafile:
        options["ssl_ca_certs"] = str(cafile)
    pool = for_redis.redis_pool(host, port, connector, tls=bool(cafile), **options)
    async with import_module("redis.asyncio").Redis.from_pool(pool) as client:
        assert await client.ping()
        yield


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@asyncios_loops
async def test_redis(redis_server: RedisServer, cafile: Path, tls: bool) -> None:
    use = partial(redis_client, redis_server, cafile if tls else None)
    await goes_nowhere_forbidden(use, import_module("redis.exceptions").ConnectionError)
    await is_counted(use)


# --- asyncpg

for_asyncpg = recipe("asyncpg")


@asynccontextmanager
async def postgres(
    server: PostgreSQL, context: ssl.SSLContext | bool, connector: Connector
) -> AsyncIterator[None]:
    connection = await for_asyncpg.connect_asyncpg(
        *server.address,
        connector,
        user=server.user,
        password=server.password,
        database="postgres",
        ssl=context,
    )
    try:
        assert await connection.fetchval("SELECT 1") == 1
        yield
    finally:
        await connection.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@asyncios_loops
async def test_asyncpg(postgresql: PostgreSQL, ssl_context: ssl.SSLContext, tls: bool) -> None:
    context = ssl_context if tls else False
    use = partial(postgres, postgresql, context)
    await goes_nowhere_forbidden(use, AddressNotAllowedError)
    await is_counted(use)
    stranger = partial(postgres, replace(postgresql, password="wrong"), context)
    await gives_back_what_fails(stranger, import_module("asyncpg").InvalidPasswordError)


@one_loop
async def test_asyncpg_cancels_a_query_by_one_more_connection(postgresql: PostgreSQL) -> None:
    sockets: list[object] = []
    connector = Connector(ONE, max_connections=2, prepare=sockets.append)
    async with for_asyncpg.asyncpg_pool(
        *postgresql.address,
        connector,
        user=postgresql.user,
        password=postgresql.password,
        database="postgres",
        ssl=False,
        min_size=1,
        max_size=1,
    ) as pool:
        async with pool.acquire() as connection:
            with pytest.raises(Exception, match=r"^$") as caught:
                await connection.fetchval("SELECT pg_sleep(60)", timeout=0.05)
            assert type(caught.value).__name__ == "TimeoutError"  # on Python 3.10, asyncio's
            assert await connection.fetchval("SELECT 1") == 1
        assert len(sockets) == 2
        assert vars(connector)["_slots"].free == 1


# --- psycopg

for_psycopg = recipe("psycopg")


async def here(host: str, port: int) -> list[str]:
    """An error that only a Connector can raise."""
    assert host == "db.example"
    return ["127.0.0.1"]


@asyncios_loops
async def test_psycopg(postgresql: PostgreSQL, cafile: Path) -> None:
    options: dict[str, Any] = {
        "user": postgresql.user,
        "password": postgresql.password,
        "dbname": "postgres",
        "sslmode": "verify-full",
        "sslrootcert": str(cafile),
    }
    port = postgresql.address[1]
    for policy in (WORKERS, AddressPolicy(deny=["127.0.0.0/8"])):
        with pytest.raises(AddressNotAllowedError, match=r"forbids it: 127\.0\.0\.0/8"):
            await for_psycopg.connect_psycopg("127.0.0.1", port, Connector(policy), **options)
    async with await for_psycopg.connect_psycopg(
        "127.0.0.1", port, Connector(ONE), **options
    ) as connection:
        found = await connection.execute("SELECT 1")
        assert await found.fetchone() == (1,)


@one_loop
async def test_psycopg_looks_no_name_up_again(postgresql: PostgreSQL) -> None:
    """libpq makes the connections, so ``max_connections`` does not count them."""
    connector = Connector(ONE, resolver=here, max_connections=1)
    async with await for_psycopg.connect_psycopg(
        "db.example",
        postgresql.address[1],
        connector,
        user=postgresql.user,
        password=postgresql.password,
        dbname="postgres",
        sslmode="disable",
    ) as connection:
        assert connection.info.host == "db.example"
        assert connection.info.hostaddr == "127.0.0.1"
        assert vars(connector)["_slots"].free == 1


# --- aiomqtt

for_aiomqtt = recipe("aiomqtt")


@asynccontextmanager
async def mqtt(
    server: tuple[str, int], context: ssl.SSLContext | None, connector: Connector
) -> AsyncIterator[None]:
    async with for_aiomqtt.GuardedClient(*server, connector, tls_context=context) as client:
        await client.subscribe("greetings")
        await client.publish("greetings", "hello")
        async for message in client.messages:
            assert message.payload == b"hello"
            break
        yield


@asyncios_loops
async def test_aiomqtt(mosquitto: Broker) -> None:
    use = partial(mqtt, mosquitto.plain, None)
    await goes_nowhere_forbidden(use, import_module("aiomqtt").MqttError)
    await is_counted(use)


@one_loop
async def test_aiomqtt_over_tls_is_not_counted(
    mosquitto: Broker, ssl_context: ssl.SSLContext
) -> None:
    connector = Connector(ONE, max_connections=1)
    async with mqtt(mosquitto.tls, ssl_context, connector):
        assert vars(connector)["_slots"].free == 1


# --- nats

for_nats = recipe("nats")


@asynccontextmanager
async def nats_client(
    server: tuple[str, int], connector: Connector, **options: Any
) -> AsyncIterator[Any]:
    client = await for_nats.connect_nats("nats://{}:{}".format(*server), connector, **options)
    try:
        subscription = await client.subscribe("greetings")
        await client.publish("greetings", b"hello")
        assert (await subscription.next_msg(timeout=30)).data == b"hello"
        yield client
    finally:
        await client.close()


@asyncios_loops
async def test_nats(nats_server: tuple[str, int]) -> None:
    refused = import_module("nats.errors").NoServersError
    told: list[Exception] = []

    async def note(error: Exception) -> None:
        told.append(error)

    with spying() as dialled, pytest.raises(refused):
        async with nats_client(
            nats_server,
            Connector(WORKERS),
            error_cb=note,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
        ):
            pytest.fail("it connected")
    assert dialled == []
    assert {type(error) for error in told} == {AddressNotAllowedError}
    await is_counted(partial(nats_client, nats_server))


@one_loop
async def test_nats_comes_back_the_same_way(nats_server: tuple[str, int]) -> None:
    sockets: list[object] = []
    connector = Connector(ONE, max_connections=1, prepare=sockets.append)
    back = anyio.Event()

    async def reconnected() -> None:
        back.set()

    async with nats_client(
        nats_server, connector, reconnected_cb=reconnected, reconnect_time_wait=0
    ) as client:
        await client.force_reconnect()
        await back.wait()
        assert len(sockets) == 2


# --- trio-websocket

for_trio_websocket = recipe("trio-websocket")


@asynccontextmanager
async def trios_websocket(
    server: tuple[str, int], connector: Connector, *, path: str = "/"
) -> AsyncIterator[None]:
    async with for_trio_websocket.open_trio_websocket(*server, path, connector) as connection:
        await connection.send_message("hello")
        assert await connection.get_message() == "hello"
        yield


@trios_loop
async def test_trio_websocket(web_server: tuple[str, int]) -> None:
    use = partial(trios_websocket, web_server)
    await goes_nowhere_forbidden(use, AddressNotAllowedError)
    await is_counted(use)
    await gives_back_what_fails(partial(use, path="/nowhere"), Exception)


# --- urllib3 and requests

for_urllib3 = recipe("urllib3")
for_requests = recipe("requests", guard=for_urllib3.guard)


@asynccontextmanager
async def urllib3_pools(
    url: str, context: ssl.SSLContext | None, connector: Connector
) -> AsyncIterator[None]:
    with import_module("urllib3").PoolManager(ssl_context=context) as pools:
        for_urllib3.guard(pools, connector)
        response = await run_sync(partial(pools.request, "GET", url, retries=False))
        assert response.data == b"hello"
        yield


@one_loop
async def test_urllib3(web_server: tuple[str, int]) -> None:
    use = partial(urllib3_pools, "http://{}:{}/".format(*web_server), None)
    await goes_nowhere_forbidden(use, import_module("urllib3.exceptions").NewConnectionError)
    await is_counted(use)


@one_loop
async def test_urllib3_over_tls_is_not_counted() -> None:
    connector = Connector(ONE, max_connections=1)
    async with (
        serving_http(tls=server_context()) as server,
        urllib3_pools(server.url, client_context(), connector),
    ):
        assert vars(connector)["_slots"].free == 1
    with pytest.raises(import_module("urllib3.exceptions").NewConnectionError, match="Loopback"):
        async with urllib3_pools("https://127.0.0.1:1/", None, Connector(WORKERS)):
            pytest.fail("it connected")


@one_loop
async def test_urllib3_waits_no_longer_than_it_is_told() -> None:
    async with listening() as silent:
        url = "https://{}:{}/".format(*silent.address)
        pools = import_module("urllib3").PoolManager(timeout=0.05, retries=False)
        for_urllib3.guard(pools, Connector(ONE))
        with pytest.raises(import_module("urllib3.exceptions").TimeoutError):  # of the handshake
            await run_sync(pools.request, "GET", url)
        one = Connector(ONE, max_connections=1)
        with await one.connect_socket(silent.address):
            for_urllib3.guard(pools, one)
            pools.clear()
            with pytest.raises(import_module("urllib3.exceptions").ConnectTimeoutError):
                await run_sync(pools.request, "GET", url)


@asynccontextmanager
async def requests_session(url: str, connector: Connector) -> AsyncIterator[None]:
    with for_requests.guarded_session(connector) as session:
        assert (await run_sync(session.get, url)).text == "hello"
        yield


@one_loop
async def test_requests(web_server: tuple[str, int]) -> None:
    use = partial(requests_session, "http://{}:{}/".format(*web_server))
    await goes_nowhere_forbidden(use, import_module("requests").ConnectionError)
    await is_counted(use)


def refused_by_requests(url: str, **options: Any) -> str:
    refused = import_module("requests").RequestException
    with (
        for_requests.guarded_session(Connector(ONE)) as session,
        pytest.raises(refused) as caught,
    ):
        session.get(url, **options)
    return str(caught.value)


@one_loop
async def test_requests_is_not_led_inwards_by_a_redirect(web_server: tuple[str, int]) -> None:
    url = "http://{}:{}/inwards".format(*web_server)
    with spying(really=lambda ip: ip == "127.0.0.1") as dialled:
        why = await run_sync(refused_by_requests, url)
    assert "cannot connect to 127.0.0.2:8080: the Connector's policy forbids it" in why
    assert dialled == ["127.0.0.1"]
    gc.collect()  # closes the redirected connection, which requests leaves open


def test_requests_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    url = "http://127.0.0.2:8080/"
    assert "the Connector's policy forbids it" in refused_by_requests(url)
    why = refused_by_requests(url, proxies={"http": "http://127.0.0.1:1"})
    assert "would bypass the Connector" in why
