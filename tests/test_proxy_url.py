"""The URL of a proxy: which ones are valid, and the errors for others."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_connect import (
    UNRESTRICTED,
    WORKERS,
    AddressPolicy,
    Connector,
    InvalidAddressError,
    InvalidOptionError,
)
from anyio_connect._proxy import parse_proxy
from support.proxies import (
    JUDGE,
    PORTS,
    SECRET,
)


@pytest.mark.parametrize(
    ("url", "scheme", "address", "credentials"),
    [
        ("http://proxy.example:3128", "http", ("proxy.example", 3128), None),
        ("HTTP://Proxy.Example:3128/", "http", ("proxy.example", 3128), None),
        ("https://192.0.2.1:443", "https", ("192.0.2.1", 443), None),
        ("socks5://[2001:DB8::1]:1080", "socks5", ("2001:db8::1", 1080), None),
        ("socks5h://[fe80::1%25eth0]:1080", "socks5h", ("fe80::1%eth0", 1080), None),
        ("http://bücher.example:80", "http", ("xn--bcher-kva.example", 80), None),
        ("http://me:secret@h:1", "http", ("h", 1), (b"me", b"secret")),
        ("http://me@h:1", "http", ("h", 1), (b"me", b"")),
        ("http://:key@h:1", "http", ("h", 1), (b"", b"key")),
        ("http://me:a:b@h:1", "http", ("h", 1), (b"me", b"a:b")),
        ("http://m%65:p%40ss%25%2F@h:1", "http", ("h", 1), (b"me", b"p@ss%/")),
        ("http://jörg:%E2%82%AC@h:1", "http", ("h", 1), ("jörg".encode(), "€".encode())),
        ("socks5://me%3A:x@h:1", "socks5", ("h", 1), (b"me:", b"x")),
        (f"socks5://{'u' * 255}:{'p' * 255}@h:1", "socks5", ("h", 1), (b"u" * 255, b"p" * 255)),
    ],
)
def test_a_url_is_read(
    url: str, scheme: str, address: tuple[str, int], credentials: tuple[bytes, bytes] | None
) -> None:
    found = parse_proxy("proxy", url)
    assert (found.scheme, found.address, found.credentials) == (scheme, address, credentials)


REFUSED = [
    ("", "must be a URL with its scheme"),
    ("proxy.example:3128", "must be a URL with its scheme"),
    ("//proxy.example:3128", "must be a URL with its scheme"),
    ("socks4://h:1", "the scheme must be one of http, https, socks5, socks5h"),
    ("socks://h:1", "the scheme must be one of"),
    ("ftp://h:1", "the scheme must be one of"),
    ("http://h", "its port is missing, or is not a number"),
    ("http://h:", "its port is missing"),
    ("http://h:0", "from 1 to 65535"),
    ("http://h:65536", "from 1 to 65535"),
    ("http://h:100000", "its port is missing"),
    ("http://h:+80", "its port is missing"),
    ("http://h:\uff18\uff10", "its port is missing"),
    ("http://:3128", "it has no host"),
    ("http://::1:3128", "write an IPv6 address in brackets"),
    ("http://[::g]:3128", "is not an IPv6 address"),
    ("http://h..x:1", "empty label"),
    ("http://127.1:1", "if you mean 127.0.0.1, write that"),
    ("http://h%20x:1", "percent-escape"),
    ("http://h:1/path", "has no path"),
    ("http://h:1//", "has no path"),
    ("http://h:1?", "has no path, query"),
    ("http://h:1/?q", "has no path, query"),
    ("http://h:1#", "fragment"),
    ("http://h:1\n", "control character"),
    ("http://h :1", "white space"),
    ("http://h\0:1", "control character"),
    ("http://h\x85:1", "control character"),
    ("http://h\x9b:1", "control character"),
    ("http://evil\\h:1", "backslash"),
    ("http://@h:1", "leave out the '@'"),
    (f"http://user:{SECRET}", "its port is missing"),
    (f"user:{SECRET}", "must be a URL with its scheme"),
    (f"user:{SECRET}@h:1", "must be a URL with its scheme"),
    (f"http://user:{SECRET}:1", "more than one ':'"),
    (f"http://user:{SECRET}/x@h:1", "write '/' as %2F"),
    (f"http://user:{SECRET}?x@h:1", "'?' as %3F"),
    (f"http://user:{SECRET}#x@h:1", "'#' as %23"),
    (f"http://user:{SECRET}@x@h:1", "write it as %40"),
    (f"http://user:{SECRET} x@h:1", "percent-encode it"),
    (f"http://user:{SECRET}%@h:1", "write it as %25"),
    (f"http://user:{SECRET}%zz@h:1", "write it as %25"),
    (f"http://user:{SECRET}%00@h:1", "has a control character"),
    (f"http://user:{SECRET}%0D%0Ax@h:1", "has a control character"),
    (f"http://us%7Fer:{SECRET}@h:1", "has a control character"),
    (f"http://us%3Aer:{SECRET}@h:1", "has a ':'"),
    (f"socks5://:{SECRET}@h:1", "of 1 to 255 bytes"),
    (f"socks5://{SECRET}@h:1", "of 1 to 255 bytes"),
    (f"socks5h://{SECRET}:@h:1", "of 1 to 255 bytes"),
    (f"socks5://user:{SECRET}{'x' * 249}@h:1", "of 1 to 255 bytes"),
    (f"socks5://user:{SECRET}{'%20' * 249}@h:1", "of 1 to 255 bytes"),
    (f"http://user:{SECRET}@", "its port is missing"),
    (f"http://user:{SECRET}@:1", "it has no host"),
]


@pytest.mark.parametrize(("url", "why"), REFUSED)
def test_any_other_url_is_an_error_at_once(url: str, why: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        Connector(proxy=url)
    assert str(caught.value).startswith("bad value for proxy: ")
    assert why in str(caught.value)
    assert str(caught.value).isprintable()
    for text in (str(caught.value), repr(caught.value), str(caught.value.__cause__)):
        assert SECRET not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://proxy.example", "'http://proxy.example'"),
        ("http://proxy.example:80/path", "'http://proxy.example:80/path'"),
        (f"http://user:{SECRET}", "'http://user:***'"),
        (f"user:{SECRET}", "'user:***'"),
        (f"http://user:{SECRET}@h:1/x", "'http://***@h:1/x'"),
        ("http://[::1]:x", "'http://[::1]:***'"),
    ],
)
def test_a_bad_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        Connector(proxy=url)
    assert str(caught.value).startswith(f"bad value for proxy: {shown}: ")


@pytest.mark.parametrize("value", [3128, True, b"http://h:1", ("h", 1), f"{SECRET}".encode()])
def test_a_proxy_that_is_no_str_is_an_error_at_once(value: Any) -> None:
    with pytest.raises(InvalidOptionError, match="must be a str, a URL such as") as caught:
        Connector(proxy=value)
    assert SECRET not in str(caught.value)


@given(st.text(st.characters(codec="utf-8") | st.sampled_from(":/@%[]?#\\. 1"), max_size=40))
def test_any_text_is_a_proxy_or_a_printable_error(text: str) -> None:
    for url in (text, f"http://{text}", f"socks5://{text}:1"):
        try:
            found = parse_proxy("proxy", url)
        except InvalidOptionError as error:
            assert str(error).isprintable()  # noqa: PT017
        else:
            assert parse_proxy("proxy", str(found)) == found._replace(credentials=None)


@given(
    st.sampled_from(["http", "https", "socks5", "socks5h"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=60),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=60),
)
def test_percent_encoded_credentials_are_decoded(scheme: str, user: str, password: str) -> None:
    user = user.replace(":", "")
    if not user:
        return

    def encoded(text: str) -> str:
        return "".join(f"%{byte:02X}" for byte in text.encode())

    found = parse_proxy("proxy", f"{scheme}://{encoded(user)}:{encoded(password)}@h:1")
    assert found.credentials == (user.encode(), password.encode())


def test_nothing_shows_the_user_and_the_password() -> None:
    url = f"http://user:{SECRET}@proxy.example:3128"
    connector = Connector(proxy=url)
    assert "proxy='http://***@proxy.example:3128'" in repr(connector)
    assert connector.proxy == url
    other = replace(connector, max_connections=1)
    assert other.proxy == url
    found = parse_proxy("proxy", url)
    for shown in (connector, other, found, found.credentials, vars(connector), vars(other)):
        for text in (repr(shown), str(shown), f"{shown}"):
            assert SECRET not in text
            assert "user" not in text


@pytest.mark.parametrize(("scheme", "needed"), [("http", "h11"), ("socks5", "socksio")])
def test_a_missing_extra_is_an_error_at_once(
    scheme: str, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = parse_proxy("proxy", f"{scheme}://h:1").protocol()
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.setitem(sys.modules, needed, None)
    with pytest.raises(InvalidOptionError, match=r"pip install anyio_connect\[proxy\]") as caught:
        Connector(proxy=f"{scheme}://user:{SECRET}@h:1")
    assert f"the package {needed}, which is not installed" in str(caught.value)
    assert isinstance(caught.value.__cause__, ImportError)
    assert SECRET not in str(caught.value)
    Connector()  # without a proxy, the extra is not needed


@pytest.mark.parametrize("policy", [WORKERS, JUDGE, PORTS & JUDGE, AddressPolicy(allow=["::/0"])])
def test_names_that_the_proxy_resolves_cannot_be_judged(policy: AddressPolicy) -> None:
    with pytest.raises(InvalidOptionError, match="write socks5, which") as caught:
        Connector(policy, proxy=f"socks5h://user:{SECRET}@h:1")
    assert SECRET not in str(caught.value)
    Connector(policy, proxy="socks5://h:1")
    Connector(policy, proxy="http://h:1")


def test_ports_can_be_judged_with_any_proxy() -> None:
    Connector(PORTS, proxy="socks5h://h:1")
    Connector(UNRESTRICTED & PORTS, proxy="socks5h://h:1")


def test_a_proxy_is_refused_together_with_a_dialer() -> None:
    async def dialer(address: object) -> Any: ...

    with pytest.raises(InvalidOptionError, match="proxy and dialer"):
        Connector(proxy="http://h:1", dialer=dialer)


def test_an_address_with_a_zone_is_refused_with_a_proxy() -> None:
    with pytest.raises(InvalidAddressError, match="a zone names a network interface"):
        Connector(proxy="http://h:1").connect("[fe80::1%eth0]:80")
