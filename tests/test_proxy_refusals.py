"""Proxies that refuse, fail or do not answer: what the error says."""

from __future__ import annotations

import base64
import re
from typing import Any

import anyio
import pytest

from anyio_connect import (
    Connector,
    ConnectTimeoutError,
    ProxyError,
    _lookup,
)
from support.names import Names
from support.peers import refusing_address
from support.proxies import (
    BAD_GATEWAY,
    CREDENTIALS,
    FORBIDDEN,
    JUDGE,
    SECRET,
    Line,
    Proxy,
    failing,
    hear_http,
    hear_socks,
    http,
    in_turn,
    proxying,
    says,
    silent,
)


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (300, ""),
        (301, ""),
        (400, ": perhaps it is not a proxy"),
        (403, ": its rules forbid that"),
        (405, ": perhaps it is not a proxy"),
        (429, ""),
        (500, ": it failed, or could not connect there itself"),
        (502, ": it could not connect there itself"),
        (503, ": it could not connect there itself, or is overloaded"),
        (504, ": it had no answer from there in time"),
        (599, ""),
    ],
)
@pytest.mark.parametrize("credentials", ["", CREDENTIALS])
async def test_a_status_that_refuses(status: int, why: str, credentials: str) -> None:
    body = b"Content-Length: 100000\r\n\r\n" + b"x" * 100  # the body is not waited for
    error = await failing(
        http(b"HTTP/1.1 %d Said \x1b[31m%b\r\n%b" % (status, SECRET[:4].encode(), body)),
        f"http://{credentials}127.0.0.1",
    )
    assert isinstance(error, ProxyError)
    assert error.status == status
    assert str(error).startswith(
        "cannot connect to db.example:5432 through the proxy http://127.0.0.1:"
    )
    # If there is a password, the error shows no text of the proxy, which may repeat it.
    assert f": it answered {status} " in f"{error} "
    assert ("Said \\x1b[31m" in str(error)) == (not credentials)
    assert str(error).isprintable()
    assert why in str(error)
    assert [type(each) for each in error.attempts] == ([] if status == 405 else [ProxyError])


async def test_a_proxy_that_repeats_the_password() -> None:
    token = base64.b64encode(f"user:{SECRET}".encode())
    for answer in (
        b"HTTP/1.1 407 %b is wrong, as is %b\r\n\r\n" % (SECRET.encode(), token),
        b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % token,
        b"%b\r\n\r\n" % SECRET.encode(),
    ):
        error = await failing(http(answer), f"http://{CREDENTIALS}127.0.0.1")
        assert isinstance(error, ProxyError)


@pytest.mark.parametrize(
    ("credentials", "wants", "why"),
    [
        ("", b"", "it wants a user and a password: write them into the URL"),
        ("", b'Proxy-Authenticate: Basic realm="x"\r\n', "it wants a user and a password"),
        (CREDENTIALS, b"", "it does not accept this user with this password"),
        (CREDENTIALS, b"Proxy-Authenticate: NTLM, BASIC\r\n", "it does not accept this user"),
        ("", b"Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n", "another kind"),
        (
            CREDENTIALS,
            b"Proxy-Authenticate: Digest realm=x\r\n",
            "than Basic, which is the only one",
        ),
    ],
)
async def test_a_proxy_that_wants_other_credentials(
    credentials: str, wants: bytes, why: str
) -> None:
    answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n" + wants + b"\r\n"
    error = await failing(http(answer), f"http://{credentials}127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status == 407
    assert why in str(error)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (1, "it failed, and does not say why"),
        (2, "its rules forbid that"),
        (3, "it has no route to that network"),
        (4, "it cannot reach that host"),
        (5, "connection refused: nothing is listening there"),
        (6, "its packets did not reach that host (TTL expired)"),
        (7, "it does not know how to connect"),
        (8, "it does not know this kind of address"),
        (9, "it refused"),
        (255, "it refused"),
    ],
)
@pytest.mark.parametrize("rest", [bytes([0, 1, 0, 0, 0, 0, 0, 0]), b"", b"\0\xff"])
async def test_a_reply_that_refuses(code: int, why: str, rest: bytes) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_socks(proxy, line)
        await line.send(bytes([5, code]) + rest)

    error = await failing(script, "socks5h://127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status == code
    assert str(error).endswith(f": {why} (SOCKS5 reply {code})")
    assert "db.example:5432 through the proxy socks5h://127.0.0.1:" in str(error)


@pytest.mark.parametrize(
    ("credentials", "answer", "why"),
    [
        ("", b"\5\xff", "it wants a user and a password: write them into the URL, socks5h://"),
        (CREDENTIALS, b"\5\xff", "another kind of authentication than a user and a password"),
        ("", b"\5\2", "something that is not SOCKS5"),  # this method was not offered
        ("", b"\5\1", "something that is not SOCKS5"),
        (CREDENTIALS, b"\5\x80", "something that is not SOCKS5"),
        ("", b"\4\0", "something that is not SOCKS5"),
        ("", b"HTTP/1.1 400 Bad Request\r\n\r\n", "it sent more than was expected"),
        ("", b"\5\0\5\0\0\1", "it sent more than was expected"),
        ("", b"\5", "it closed the connection before it had answered"),
        ("", b"", "it closed the connection before it had answered"),
    ],
)
async def test_an_authentication_method_that_is_not_possible(
    credentials: str, answer: bytes, why: str
) -> None:
    error = await failing(says(answer), f"socks5h://{credentials}127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status is None
    assert why in str(error)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"\1\1", "it does not accept this user with this password"),
        (b"\1\xff", "it does not accept this user with this password"),
        (b"\5\0", "something that is not SOCKS5"),
        (b"\1\0\5\0", "it sent more than was expected"),
        (b"\1", "it closed the connection before it had answered"),
    ],
)
async def test_a_user_that_is_refused(answer: bytes, why: str) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await line.exactly(4)
        await line.send(b"\5\2")
        await line.exactly(3 + len("user") + len(SECRET))
        await line.send(answer)

    error = await failing(script, f"socks5h://{CREDENTIALS}127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status is None
    assert why in str(error)


@pytest.mark.parametrize(
    "answer",
    [b"\4\0", b"\4\0\0\1" + bytes(6), b"\5\0\0\2", b"\5\0\0\0", b"\5\0\0\3", b"\5\0\0\1abc"],
)
async def test_a_reply_that_is_not_socks5(answer: bytes) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_socks(proxy, line)
        await line.send(answer)

    error = await failing(script, "socks5h://127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status is None
    assert "not SOCKS5" in str(error) or "it closed the connection" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "it closed the connection before it had answered"),
        (b"HTTP/1.1 200 OK\r\n", "it closed the connection before it had answered"),
        (b"\5\0", "something that is not HTTP"),
        (b"220 mail.example ESMTP\r\n\r\n", "something that is not HTTP: is it an HTTP proxy?"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "something that is not HTTP"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "something that is not HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "something that is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", "something that is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 20_000, "has a head of more than 16384 bytes"),
        (b"HTTP/1.1 100 Go on\r\n\r\n" * 1000, "has a head of more than 16384 bytes"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_answer_that_is_not_http(scheme: str, answer: bytes, why: str) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(answer)
        if line.tls is not None:
            await line.peer.send(line.tls.server.close_notify())

    error = await failing(script, f"{scheme}://127.0.0.1")
    assert isinstance(error, ProxyError)
    assert error.status is None
    assert why in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
async def test_a_proxy_that_resets_the_connection(scheme: str) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await line.receive()
        line.peer.rst()

    error = await failing(script, f"{scheme}://127.0.0.1")
    assert isinstance(error, ProxyError)
    assert "the connection to it broke before it had answered: Connection reset" in str(error)
    assert isinstance(error.__cause__, ConnectionResetError)


@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
async def test_a_proxy_that_is_not_there(scheme: str) -> None:
    host, port = refusing_address()
    connector = Connector(proxy=f"{scheme}://{CREDENTIALS}{host}:{port}")
    with pytest.raises(ProxyError) as caught:
        await connector.connect("192.0.2.1:80").opened
    error = caught.value
    assert str(error) == (
        f"cannot connect to 192.0.2.1:80 through the proxy {scheme}://{host}:{port}: it cannot be "
        "reached: connection refused: nothing is listening there"
    )
    assert error.status is None
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert error.errno == error.__cause__.errno
    assert len(error.attempts) == 1
    assert not vars(error).get("__notes__")


async def test_the_name_of_a_proxy_that_does_not_exist(names: Names) -> None:
    names["proxy.example"] = []
    with pytest.raises(ProxyError, match=r"it cannot be reached: cannot resolve 'proxy\.example'"):
        await Connector(proxy="http://proxy.example:80").connect("192.0.2.1:80").opened


# --- several addresses


async def test_the_error_lists_all_refused_addresses(names: Names) -> None:
    names["db.example"] = ["192.0.2.1", "10.0.0.1", "192.0.2.2"]
    async with proxying(in_turn(BAD_GATEWAY, FORBIDDEN)) as proxy:
        with pytest.raises(ProxyError) as caught:
            await Connector(JUDGE, proxy=proxy.url("http")).connect("db.example:80").opened
    error = caught.value
    assert str(error) == (
        f"cannot connect to db.example:80 through the proxy http://127.0.0.1:{proxy.port}: it was "
        "asked for 2 addresses: 192.0.2.1:80: it answered 502 Bad Gateway: it could not connect "
        "there itself; 192.0.2.2:80: it answered 403 Filtered: its rules forbid that; not tried: "
        "10.0.0.1:80: the Connector's policy forbids it: 10.0.0.1/32 is in deny"
    )
    assert error.status == 403
    statuses = [
        (type(each), each.status) for each in error.attempts if isinstance(each, ProxyError)
    ]
    assert statuses == [(ProxyError, 502), (ProxyError, 403)]


@pytest.mark.parametrize("status", [401, 405, 407, 501])
async def test_no_further_address_is_requested_if_that_cannot_help(
    status: int, names: Names
) -> None:
    names["db.example"] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    answers = BAD_GATEWAY, b"HTTP/1.1 %d No\r\n\r\n" % status
    async with proxying(in_turn(*answers)) as proxy:
        with pytest.raises(ProxyError) as caught:
            await Connector(JUDGE, proxy=proxy.url("http")).connect("db.example:80").opened
        assert proxy.asked == ["192.0.2.1:80", "192.0.2.2:80"]
    assert caught.value.status == status
    assert "; before that: 192.0.2.1:80: it answered 502" in str(caught.value)
    assert len(caught.value.attempts) == 1


# --- too late


async def too_late(connector: Connector, why: str) -> ConnectTimeoutError:
    """Raise the time limit until the error of the timeout matches ``why``; return the error."""
    seconds = 0.05
    while True:
        with pytest.raises(ConnectTimeoutError) as caught:
            await connector.connect("db.example:5432", connect_timeout=seconds).opened
        if seconds > 20 or re.search(why, str(caught.value)):
            assert re.search(why, str(caught.value))
            return caught.value
        seconds *= 4


@pytest.mark.parametrize(
    ("scheme", "why"),
    [
        ("http", r"it did not answer within [\d.]+ seconds; perhaps it cannot connect there"),
        ("socks5h", r"it did not answer within [\d.]+ seconds"),
        ("https", r"the handshake did not finish within [\d.]+ seconds"),
    ],
)
async def test_a_proxy_that_is_silent(scheme: str, why: str) -> None:
    async with proxying(silent) as proxy:
        error = await too_late(Connector(proxy=proxy.url(scheme, CREDENTIALS)), why)
    assert f"the proxy {scheme}://127.0.0.1:{proxy.port}: " in str(error)


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_a_proxy_that_never_ends_its_answer(scheme: str) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await line.receive()
        await line.send(b"HTTP/1.1 200 OK\r\nA: " if scheme == "http" else b"\5")
        heard.set()
        await anyio.sleep_forever()

    heard = anyio.Event()
    async with proxying(script) as proxy:
        await too_late(Connector(proxy=proxy.url(scheme)), "it did not answer within")
        await heard.wait()


async def test_a_timeout_lists_earlier_refusals(names: Names) -> None:
    names["db.example"] = ["192.0.2.1", "192.0.2.2"]

    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        if proxy.asked[-1].startswith("192.0.2.1:"):
            await line.send(BAD_GATEWAY)
        await anyio.sleep_forever()

    async with proxying(script) as proxy:
        connector = Connector(JUDGE, proxy=proxy.url("http"))
        error = await too_late(connector, r"did not answer .*; 192\.0\.2\.1:5432: it answered 502")
    assert [type(each) for each in error.attempts] == [ProxyError]


async def test_a_proxy_whose_name_is_not_resolved_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: object) -> list[Any]:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
    connector = Connector(proxy="http://proxy.example:3128", connect_timeout=0.02)
    why = (
        r"192\.0\.2\.1:80 through the proxy http://proxy\.example:3128: it cannot be reached: the "
    )
    with pytest.raises(ConnectTimeoutError, match=why) as caught:
        await connector.connect("192.0.2.1:80").opened
    assert not vars(caught.value).get("__notes__")
    connector = Connector(JUDGE, proxy="http://192.0.2.1:3128", connect_timeout=0.02)
    with pytest.raises(ConnectTimeoutError, match=r"db\.example:5432: the name was not resolved"):
        await connector.connect("db.example:5432").opened
