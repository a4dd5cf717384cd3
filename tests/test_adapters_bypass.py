"""Ways around a policy, tried with httpx and aiohttp: see attacks.py and test_bypass.py.

The client connects only to addresses that the policy allows, whatever the URL, its redirects and
the answers of name servers are. The spy watches the sockets of the standard library.
"""

from __future__ import annotations

import ipaddress
import socket as stdlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeAlias

import aiohttp
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyio_connect import WORKERS, AddressPolicy, Connector
from anyio_connect.adapters.aiohttp import socket_factory
from anyio_connect.adapters.httpx import Transport
from support.attacks import (
    INWARD_ANSWERS,
    INWARD_URLS,
    PRIVATE,
    Rules,
    answers,
    names,
    numbers,
    some_rules,
    spellings,
)
from support.http_peers import Reply, serving_http
from support.spying import spying
from support.tls_peers import client_context

#: Sends a GET request. Returns the content of the response, or the error.
Get: TypeAlias = Callable[[str], Awaitable[bytes | Exception]]
Client: TypeAlias = Callable[[AddressPolicy], AbstractAsyncContextManager[Get]]

#: A server on this machine. GOOD_OR_PUBLIC allows this address and all public ones.
GOOD = "127.0.0.9"
GOOD_OR_PUBLIC = AddressPolicy(allow=[GOOD], public_only=True)


@asynccontextmanager
async def by_httpx(policy: AddressPolicy) -> AsyncIterator[Get]:
    connector = Connector(policy, happy_eyeballs_delay=0)
    transport = Transport(connector, ssl_context=trusting())
    async with httpx.AsyncClient(transport=transport, follow_redirects=True) as client:

        async def get(url: str) -> bytes | Exception:
            try:
                return (await client.get(url)).content
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                return exc

        yield get


@asynccontextmanager
async def by_aiohttp(policy: AddressPolicy) -> AsyncIterator[Get]:
    connector = aiohttp.TCPConnector(
        socket_factory=socket_factory(policy),
        resolver=aiohttp.ThreadedResolver(),
        use_dns_cache=False,
        ssl=trusting(),
    )
    async with aiohttp.ClientSession(connector=connector) as session:

        async def get(url: str) -> bytes | Exception:
            try:
                async with session.get(url) as response:
                    return await response.read()
            except (aiohttp.ClientError, ValueError) as exc:
                return exc

        yield get


@cache
def trusting() -> Any:
    return client_context()


LOOPS: dict[str, Any] = {"asyncio": ("asyncio", {}), "trio": ("trio", {})}
if find_spec("uvloop") is not None:
    LOOPS["uvloop"] = ("asyncio", {"use_uvloop": True})


def with_clients(*loops: str) -> pytest.MarkDecorator:
    """Run a test with httpx on these event loops, and with aiohttp on asyncio, which it needs."""
    httpx_s = [pytest.param(LOOPS[loop], by_httpx, id=f"httpx-{loop}") for loop in loops]
    aiohttp_s = pytest.param(LOOPS["asyncio"], by_aiohttp, id="aiohttp")
    return pytest.mark.parametrize(
        ("anyio_backend", "client"), [*httpx_s, aiohttp_s], indirect=["anyio_backend"]
    )


clients = with_clients(*LOOPS)
#: For long lists. How an address is written makes no difference to an event loop.
clients_once = with_clients("trio")


@contextmanager
def answering(answer: Callable[[str], list[tuple[str, int]]]) -> Iterator[list[str]]:
    """Replace the system's resolver, and yield the list of the hosts that it was asked for.

    A number in any form is read as the C library reads it.
    """
    asked: list[str] = []
    really = stdlib.getaddrinfo

    def getaddrinfo(name: str | bytes, port: int, *args: Any, **options: Any) -> list[Any]:
        flags = options.get("flags", 0)  # not those of asyncio, which are in args
        if flags & stdlib.AI_NUMERICHOST:
            return really(name, port, *args, **options)
        host = name if isinstance(name, str) else name.decode()
        asked.append(host)
        with suppress(stdlib.gaierror):
            number = host.removesuffix(".")
            return really(number, port, type=stdlib.SOCK_STREAM, flags=stdlib.AI_NUMERICHOST)
        return [
            (
                stdlib.AF_INET6 if ":" in ip else stdlib.AF_INET,
                stdlib.SOCK_STREAM,
                6,
                "",
                (ip, at or port, 0, 0) if ":" in ip else (ip, at or port),
            )
            for ip, at in answer(host)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib, "getaddrinfo", getaddrinfo)
        yield asked


def url_of(host: str, port: int = 80) -> str:
    return (
        f"http://[{host}]:{port}/" if ":" in host and "[" not in host else f"http://{host}:{port}/"
    )


# --- URLs

#: Each URL once, in this order.
EVERY_URL = dict.fromkeys(
    [*INWARD_URLS, *(url_of(host) for ip in PRIVATE for host in spellings(ip))]
)
#: Fewer URLs, because each redirect takes one more request.
REDIRECTS = dict.fromkeys([*INWARD_URLS, *map(url_of, spellings("10.1.2.3"))])


@clients_once
async def test_no_spelling_gets_through(client: Client) -> None:
    with answering(lambda _: [("127.0.0.1", 0)]), spying() as dialled:
        async with client(WORKERS) as get:
            for url in EVERY_URL:
                assert isinstance(await get(url), Exception), url
    assert dialled == []


@clients_once
async def test_without_a_policy_the_spellings_get_through(client: Client) -> None:
    """This shows that the spellings really are attacks."""
    with answering(lambda _: [("127.0.0.1", 0)]), spying() as dialled:
        async with client(AddressPolicy()) as get:
            for host in spellings("10.1.2.3"):
                await get(url_of(host))
    assert dialled.count("10.1.2.3") > 3


@clients_once
async def test_no_redirect_gets_through(client: Client) -> None:
    redirects = iter(REDIRECTS)

    def answer(_: object) -> Reply:
        return Reply(status=302, headers=(("location", next(redirects)),))

    with (
        answering(lambda _: [("127.0.0.1", 0)]),
        spying(really=lambda ip: ip == GOOD) as dialled,
    ):
        async with (
            serving_http(answer, address=f"{GOOD}:0") as server,
            client(GOOD_OR_PUBLIC) as get,
        ):
            for url in REDIRECTS:
                assert isinstance(await get(server.url), Exception), url
            assert len(server.requests) == len(REDIRECTS)
    assert set(dialled) == {GOOD}


@clients
async def test_a_redirect_within_the_policy_is_followed(client: Client) -> None:
    def answer(request: Any) -> Reply:
        if request.target == "/":
            return Reply(status=302, headers=(("location", "/there"),))
        return Reply(b"there")

    async with (
        serving_http(answer, address=f"{GOOD}:0") as server,
        client(GOOD_OR_PUBLIC) as get,
    ):
        assert await get(server.url) == b"there"


# --- answers of name servers


@clients
@pytest.mark.parametrize("answer", INWARD_ANSWERS)
async def test_no_answer_gets_through(client: Client, answer: str) -> None:
    with answering(lambda _: INWARD_ANSWERS[answer]) as asked, spying() as dialled:
        async with client(WORKERS) as get:
            error = await get("http://evil.example/")
            assert isinstance(error, Exception)
    assert asked
    assert dialled == []
    assert "forbids it" in str(error)


@clients
async def test_only_the_allowed_addresses_of_a_mixed_answer_are_dialled(client: Client) -> None:
    mixed = [("127.0.0.2", 0), ("10.0.0.1", 0), (GOOD, 0), ("::1", 0)]
    with answering(lambda _: mixed), spying(really=lambda ip: ip == GOOD) as dialled:
        async with serving_http(address=f"{GOOD}:0") as server, client(GOOD_OR_PUBLIC) as get:
            port = int(server.address.rpartition(":")[2])
            assert await get(url_of("mixed.example", port)) == b"hello"
    assert dialled == [GOOD]


@clients
@pytest.mark.parametrize("closes", [False, True], ids=["kept", "closed"])
async def test_a_name_that_moves_between_two_requests(client: Client, closes: bool) -> None:
    """A kept connection still leads to the address that was judged; a new one is judged again."""
    reply = Reply(headers=(("connection", "close"),)) if closes else Reply()
    where = [GOOD]
    with (
        answering(lambda _: [(ip, 0) for ip in where]) as asked,
        spying(really=lambda ip: ip == GOOD) as dialled,
    ):
        async with (
            serving_http(lambda _: reply, address=f"{GOOD}:0") as server,
            client(GOOD_OR_PUBLIC) as get,
        ):
            url = url_of("moving.example", int(server.address.rpartition(":")[2]))
            assert await get(url) == b"hello"
            where[:] = ["127.0.0.2", "::1", "::ffff:10.0.0.1"]
            second = await get(url)
            where[:] = [GOOD]
            assert await get(url) == b"hello"
            assert len(server.requests) == (2 if closes else 3)
    assert set(dialled) == {GOOD}
    if closes:
        assert "forbids it" in str(second)
        assert len(asked) == 3
    else:
        assert second == b"hello"
        assert len(asked) == 1


@with_clients("trio")
async def test_the_address_that_a_zoned_address_resolves_to_is_judged(client: Client) -> None:
    """asyncio resolves such an address once more, and aiohttp does not learn of it."""
    with answering(lambda _: [("::1", 0)]), spying() as dialled:
        async with client(AddressPolicy(allow=["8.8.8.8"])) as get:
            assert isinstance(await get(url_of("64:ff9b::808:808%lo", 80)), Exception)
    assert "::1" not in dialled


# --- all of this at once


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    host=st.booleans().flatmap(lambda named: names if named else numbers),
    port=st.sampled_from([25, 80, 443, 8080]),
    found=st.lists(answers, min_size=1, max_size=3),
    first=some_rules,
    second=st.none() | some_rules,
)
@clients_once
async def test_nothing_outside_the_policy_is_ever_connected_to(
    client: Client,
    host: str,
    port: int,
    found: list[list[str]],
    first: Rules,
    second: Rules | None,
) -> None:
    """However an address is written, wherever it comes from, whatever it is rebound to."""
    every, policy = [first], first.policy()
    if second is not None:
        every.append(second)
        policy &= second.policy()
    left = list(found)

    def answer(_: str) -> list[tuple[str, int]]:
        return [(ip, 0) for ip in (left.pop(0) if len(left) > 1 else left[0])]

    with answering(answer), spying() as dialled:
        async with client(policy) as get:
            for _ in range(len(found) + 1):
                assert isinstance(await get(url_of(host, port)), Exception)
    for reached in dialled:
        ip = ipaddress.ip_address(reached.partition("%")[0])
        assert all(rules.permit(ip, port) for rules in every)
