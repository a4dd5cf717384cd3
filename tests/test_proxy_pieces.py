"""Proxies whose answers arrive in any pieces, or contain any bytes."""

from __future__ import annotations

import itertools
from functools import partial

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_connect import (
    Connector,
    InvalidAddressError,
    InvalidOptionError,
    _proxy,
    _proxy_http,
    _proxy_socks,
)
from anyio_connect._proxy import Credentials, ProxyAnswerError, parse_proxy
from support.proxies import (
    CREDENTIALS,
    ESTABLISHED,
    SECRET,
    SUCCEEDED,
)
from support.tls_peers import (
    Wire,
)


def cut(data: bytes, places: list[float]) -> list[bytes]:
    at = sorted({0, len(data), *(round(place * len(data)) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


PLACES = st.lists(st.floats(0, 1), max_size=30)
HEADERS = st.lists(
    st.tuples(
        st.text("abcDEF-", min_size=1, max_size=10),
        st.text('xyz ,="1', max_size=30).map(str.strip),
    ),
    max_size=5,
)


@given(
    status=st.integers(200, 299),
    reason=st.text("abc OK", max_size=10),
    headers=HEADERS,
    end=st.sampled_from([b"\r\n", b"\n"]),
    before=st.integers(0, 3),
    tail=st.binary(max_size=40),
    places=PLACES,
    bytewise=st.booleans(),
)
async def test_http_in_any_pieces(
    status: int,
    reason: str,
    headers: list[tuple[str, str]],
    end: bytes,
    before: int,
    tail: bytes,
    places: list[float],
    bytewise: bool,
) -> None:
    """The head is read, and not a byte of what follows it."""
    lines = [f"HTTP/1.1 {status} {reason}".encode()]
    lines += [f"{name}: {value}".encode() for name, value in headers]
    data = b"HTTP/1.1 100 Continue\r\n\r\n" * before + end.join([*lines, b"", b""]) + tail
    wire = Wire()
    wire.arrive(
        *([data[n : n + 1] for n in range(len(data))] if bytewise else cut(data, places)),
        ends=anyio.EndOfStream(),
    )
    await _proxy_http.ask(wire, parse_proxy("proxy", "http://h:1"), "db.example", 5432)
    assert await rest_of(wire) == tail


async def rest_of(wire: Wire) -> bytes:
    data = b""
    try:
        while True:
            data += await wire.receive()
    except anyio.EndOfStream:
        return data


BOUND = st.one_of(
    st.binary(min_size=4, max_size=4).map(lambda address: b"\1" + address),
    st.binary(max_size=255).map(lambda name: bytes([3, len(name)]) + name),
    st.binary(min_size=16, max_size=16).map(lambda address: b"\4" + address),
)


@given(
    user=st.booleans(),
    reserved=st.integers(0, 255),
    bound=BOUND,
    port=st.binary(min_size=2, max_size=2),
    tail=st.binary(max_size=40),
    places=PLACES,
    bytewise=st.booleans(),
)
async def test_socks_in_any_pieces(
    user: bool,
    reserved: int,
    bound: bytes,
    port: bytes,
    tail: bytes,
    places: list[float],
    bytewise: bool,
) -> None:
    messages = [b"\5\2", b"\1\0"] if user else [b"\5\0"]
    messages.append(bytes([5, 0, reserved]) + bound + port + tail)
    wire = Wire()
    for message in messages:  # each answers a message of ours, so it has segments of its own
        pieces = [message[n : n + 1] for n in range(len(message))]
        wire.arrive(*(pieces if bytewise else cut(message, places)))
    wire.arrive(ends=anyio.EndOfStream())
    url = f"socks5h://{CREDENTIALS if user else ''}h:1"
    await _proxy_socks.ask(wire, parse_proxy("proxy", url), "db.example", 5432)
    assert await rest_of(wire) == tail


@st.composite
def answers(draw: st.DrawFn, valid: bytes) -> bytes:
    """Random bytes, or a valid answer that was damaged."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=60))
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


@given(answer=answers(b"HTTP/1.1 100 Go on\r\n\r\n" + ESTABLISHED), places=PLACES)
async def test_any_answer_to_http_is_valid_or_an_error(answer: bytes, places: list[float]) -> None:
    outcomes: set[str | bytes] = set()
    for pieces in ([answer], [answer[n : n + 1] for n in range(len(answer))], cut(answer, places)):
        wire = Wire()
        wire.arrive(*pieces, ends=anyio.EndOfStream())
        try:
            await _proxy_http.ask(wire, parse_proxy("proxy", "http://h:1"), "h", 1)
        except (ProxyAnswerError, anyio.EndOfStream) as exc:
            outcomes.add(str(exc))
        else:
            outcomes.add(await rest_of(wire))
    assert len(outcomes) == 1, "the outcome depends on the pieces in which the answer arrives"


@given(method=answers(b"\5\2"), login=answers(b"\1\0"), reply=answers(SUCCEEDED), places=PLACES)
async def test_any_answer_to_socks_is_valid_or_an_error(
    method: bytes, login: bytes, reply: bytes, places: list[float]
) -> None:
    for data in (method, b"\5\2" + login, b"\5\2\1\0" + reply, b"\5\0" + reply):
        wire = Wire()
        wire.arrive(*cut(data, places), ends=anyio.EndOfStream())
        proxy = parse_proxy("proxy", f"socks5h://{CREDENTIALS}h:1")
        try:
            await _proxy_socks.ask(wire, proxy, "h", 1)
        except (ProxyAnswerError, anyio.EndOfStream):
            pass
        else:
            assert data.startswith((b"\5\0\5\0", b"\5\2\1\0\5\0"))


@pytest.mark.slow
@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("piece", [70, 1000, 100_000])
async def test_the_limit_on_the_length_of_a_head_is_exact(spare: int, piece: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nA: "
    head += b"x" * (16384 - len(head) - 4 + spare) + b"\r\n\r\n"
    data = head + b"tail"
    wire = Wire()
    wire.arrive(
        *(data[n : n + piece] for n in range(0, len(data), piece)), ends=anyio.EndOfStream()
    )
    asking = partial(_proxy_http.ask, wire, parse_proxy("proxy", "http://h:1"), "h", 1)
    if spare:
        with pytest.raises(ProxyAnswerError, match="more than 16384 bytes"):
            await asking()
    else:
        await asking()
        assert await rest_of(wire) == b"tail"


def test_a_repr_does_not_show_the_credentials() -> None:
    assert repr(Credentials(b"user", SECRET.encode())) == "Credentials(***)"
    assert str(_proxy.ProxyURL("http://h:1")) == "http://h:1"


@pytest.mark.parametrize(
    "url", ["http://alice%3AsEcReT%40proxy.example:3128", "http%3A//alice:sEcReT%40h:1"]
)
def test_the_password_of_a_url_that_was_escaped_as_a_whole_is_not_shown(url: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        Connector(proxy=url)
    assert "sEcReT" not in str(caught.value)
    with pytest.raises(InvalidAddressError) as refused:
        Connector().connect(url)
    assert "sEcReT" not in str(refused.value)
