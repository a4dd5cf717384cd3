"""Addresses: which ones are accepted and how they are read, and the errors for the others."""

# ruff: noqa: RUF001 - many of these tests are about characters that look like others

from __future__ import annotations

import enum
import ipaddress
import re
import socket
import string
import subprocess
import sys
import typing
from typing import Any

import idna
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from anyio_connect._address import SocketAddress, format_address, parse_address
from anyio_connect._errors import InvalidAddressError, SocketError, quote


class Service(enum.IntEnum):
    HTTPS = 443


class Server(str, enum.Enum):
    MAIN = "Main.Example:80"


LONGEST_LABEL = "a" * 63
LONGEST_NAME = ".".join([LONGEST_LABEL] * 3 + ["a" * 61])
assert len(LONGEST_NAME) == 253


# --- accepted


def check_invariants(address: SocketAddress) -> None:
    """What the filter, the resolver and TLS may rely on."""
    hostname, port = address
    assert type(address) is SocketAddress
    assert type(hostname) is str
    assert type(port) is int
    assert 1 <= port <= 65535
    assert hostname.isascii()
    assert 1 <= len(hostname.removesuffix(".")) <= 253
    if ":" in hostname:
        number, percent, zone = hostname.partition("%")
        packed = socket.inet_pton(socket.AF_INET6, number)
        assert ipaddress.IPv6Address(packed) == ipaddress.IPv6Address(number)
        assert number == number.lower()
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", zone) if percent else not zone
    else:
        label = "[a-z0-9_-]{1,63}"
        assert re.fullmatch(rf"{label}(\.{label})*\.?", hostname)
        try:
            packed = socket.inet_aton(hostname)
        except OSError:
            pass
        else:
            assert socket.inet_ntoa(packed) == hostname, "the C library reads an IPv4 address"
    # Parsing the normal form again, as a pair or as text, changes nothing.
    assert parse_address(address) == address
    assert parse_address(format_address(*address)) == address


@pytest.mark.parametrize(
    ("address", "hostname", "port"),
    [
        # Names.
        ("example.com:80", "example.com", 80),
        ("localhost:1", "localhost", 1),
        ("db:65535", "db", 65535),
        ("EXAMPLE.Com:80", "example.com", 80),
        ("_sip._tcp.my_service:80", "_sip._tcp.my_service", 80),
        ("r3---sn-4g5e6nz7.example:80", "r3---sn-4g5e6nz7.example", 80),
        ("-a-:80", "-a-", 80),
        ("3com.example:80", "3com.example", 80),
        ("1.2.3.4.example:80", "1.2.3.4.example", 80),
        ("1e3:80", "1e3", 80),
        ("0xg:80", "0xg", 80),
        ("xn--bcher-kva.example:80", "xn--bcher-kva.example", 80),
        ("XN--BCHER-KVA.example:80", "xn--bcher-kva.example", 80),
        # A name that exists in the DNS, though IDNA 2008 does not allow its label.
        ("xn--i-7iq.example:80", "xn--i-7iq.example", 80),
        # A dot at the end tells the resolver not to try search domains.
        ("example.com.:80", "example.com.", 80),
        ("localhost.:80", "localhost.", 80),
        ("bücher.example.:80", "xn--bcher-kva.example.", 80),
        ("bücher。:80", "xn--bcher-kva.", 80),
        # Names that are not ASCII: by IDNA 2008, also where it differs from IDNA 2003 ("ß").
        ("bücher.example:80", "xn--bcher-kva.example", 80),
        ("BÜCHER.Example:80", "xn--bcher-kva.example", 80),
        ("bu\u0308cher.example:80", "xn--bcher-kva.example", 80),
        ("faß.example:80", "xn--fa-hia.example", 80),
        ("日本語。jp:80", "xn--wgv71a119e.jp", 80),
        ("_sip._tcp.bücher.example:80", "_sip._tcp.xn--bcher-kva.example", 80),
        ("ＥＸＡＭＰＬＥ．ｃｏｍ:80", "example.com", 80),
        ("exa\u00admple.com:80", "example.com", 80),
        # IPv4, also with other digits and dots of Unicode.
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("255.255.255.255:80", "255.255.255.255", 80),
        ("１２７。０．０｡１:80", "127.0.0.1", 80),
        # IPv6, in the form of RFC 5952.
        ("[::1]:80", "::1", 80),
        ("[::]:80", "::", 80),
        ("[2001:DB8:0:0:0:0:0:0001]:80", "2001:db8::1", 80),
        ("[2001:db8:0:1:1:1:1:1]:80", "2001:db8:0:1:1:1:1:1", 80),
        ("[::ffff:192.0.2.1]:80", "::ffff:192.0.2.1", 80),
        ("[::FFFF:c000:0201]:80", "::ffff:192.0.2.1", 80),
        ("[64:ff9b::192.0.2.1]:80", "64:ff9b::c000:201", 80),
        # IPv6 zones.
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("[FE80::0001%Eth0.1-a_b~c]:80", "fe80::1%Eth0.1-a_b~c", 80),
        ("[::ffff:192.0.2.1%1]:80", "::ffff:192.0.2.1%1", 80),
        ("[fe80::1%25]:80", "fe80::1%25", 80),
        ("[fe80::1%251]:80", "fe80::1%251", 80),
        # Ports.
        ("h:00080", "h", 80),
        # Pairs.
        (("Example.com", 80), "example.com", 80),
        (("bücher.example", 80), "xn--bcher-kva.example", 80),
        (("127.0.0.1", 80), "127.0.0.1", 80),
        (("::1", 80), "::1", 80),
        (("[::1]", 80), "::1", 80),
        (("fe80::1%eth0", 80), "fe80::1%eth0", 80),
        (("[fe80::1%eth0]", 80), "fe80::1%eth0", 80),
        (SocketAddress("Example.com", 80), "example.com", 80),
        (("h", Service.HTTPS), "h", 443),
        ((Server.MAIN.partition(":")[0], 80), "main.example", 80),
        (Server.MAIN, "main.example", 80),
        # The longest that are allowed.
        pytest.param(f"{LONGEST_LABEL}:80", LONGEST_LABEL, 80, id="longest label"),
        pytest.param(f"{LONGEST_NAME}:80", LONGEST_NAME, 80, id="longest name"),
        pytest.param(f"{LONGEST_NAME}.:80", f"{LONGEST_NAME}.", 80, id="longest name, dot"),
    ],
)
def test_accepted(address: Any, hostname: str, port: int) -> None:
    result = parse_address(address)
    assert result == (hostname, port)
    check_invariants(result)


def test_the_result_is_a_socket_address() -> None:
    address = parse_address("example.com:80")
    assert isinstance(address, SocketAddress)
    assert (address.hostname, address.port) == ("example.com", 80)
    hostname, port = address
    assert SocketAddress(hostname=hostname, port=port) == address


def test_types_can_be_read_at_run_time() -> None:
    assert typing.get_type_hints(SocketAddress) == {"hostname": str, "port": int}
    assert typing.get_type_hints(parse_address)["return"] is SocketAddress


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("example.com", "example.com:80"),
        ("192.0.2.1", "192.0.2.1:80"),
        ("::1", "[::1]:80"),
        ("fe80::1%eth0", "[fe80::1%eth0]:80"),
    ],
)
def test_format(host: str, text: str) -> None:
    assert format_address(host, 80) == text


# --- refused

HOST_PORT = "write only 'host:port'"
IPV4 = "must be four decimal numbers"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        # Something is missing.
        ("", "it is empty: write 'host:port'"),
        (":80", "no host: write 'host:port'"),
        (("", 80), "no host"),
        ("example.com", "no port: write 'host:port'"),
        ("example.com:", "no port"),
        ("[::1]", "no port"),
        ("[::1]80", "no port"),
        ("[::1]:", "no port"),
        ("[]:80", "'' is not an IPv6 address"),
        (("[]", 80), "'' is not an IPv6 address"),
        (":", "no port"),
        # Ports.
        ("h:0", "the port must be a number from 1 to 65535"),
        ("h:65536", "the port must be a number from 1 to 65535"),
        ("h:99999", "the port must be a number from 1 to 65535"),
        ("h:000080", "the port '000080' must be a number from 1 to 65535, in digits"),
        ("h:+80", "the port '+80'"),
        ("h:-80", "the port '-80'"),
        ("h:8_0", "the port '8_0'"),
        ("h:80.0", "the port '80.0'"),
        ("h:0x50", "the port '0x50'"),
        ("h:http", "the port 'http'"),
        ("h:８０", "the port '８０'"),
        ("h:٨٠", "the port '٨٠'"),
        ("h:²", "the port '²'"),
        (("h", 0), "the port must be a number from 1 to 65535"),
        (("h", -1), "the port must be a number from 1 to 65535"),
        (("h", 65536), "the port must be a number from 1 to 65535"),
        # Parts of a URL.
        ("tcp://h:1", f"'://' follows the scheme of a URL: {HOST_PORT}"),
        ("http://h", f"'://' follows the scheme of a URL: {HOST_PORT}"),
        (("https://h", 443), f"'://' follows the scheme of a URL: {HOST_PORT}"),
        ("user@h:1", f"'@' follows the user of a URL: {HOST_PORT}"),
        (("user@h", 1), f"'@' follows the user of a URL: {HOST_PORT}"),
        ("h:1/", f"'/' begins the path of a URL: {HOST_PORT}"),
        ("//h:1", f"'/' begins the path of a URL: {HOST_PORT}"),
        (("h/index.html", 1), f"'/' begins the path of a URL: {HOST_PORT}"),
        (("::1/128", 1), f"'/' begins the path of a URL: {HOST_PORT}"),
        ("h:1?a", f"'?' begins the query of a URL: {HOST_PORT}"),
        (("h?a", 1), f"'?' begins the query of a URL: {HOST_PORT}"),
        ("h:1#a", f"'#' begins the fragment of a URL: {HOST_PORT}"),
        (("h#a", 1), f"'#' begins the fragment of a URL: {HOST_PORT}"),
        ("h\\a:1", r"'\\' is a backslash: remove it"),
        (("h\\a", 1), r"'\\' is a backslash: remove it"),
        ("%41.example:80", "'%' begins the percent-escape of a URL: write the character"),
        (("%41.example", 80), "'%' begins the percent-escape of a URL"),
        ("[%3A%3A1]:80", "is not an IPv6 address"),
        # White space and control characters, ASCII and not.
        *[
            (address, f"{char!r} is white space or a control character: remove it")
            for char in " \t\n\r\v\f\0\x1b\x7f\x80\x85\xa0\u1680\u2003\u2028\u3000"
            for address in (f"a{char}b:80", f"a:80{char}", (f"{char}a", 80))
        ],
        ("[::1]\n:80", r"'\n' is white space"),
        ("[fe80::1%eth0\n]:80", r"'\n' is white space"),
        # IPv6.
        ("::1:80", "more than one ':': write an IPv6 address as '[::1]:80'"),
        ("::1", "more than one ':'"),
        ("h:80:90", "more than one ':'"),
        ("[::1:80", "more than one ':'"),
        ("::1]:80", "'::1]' is not an IPv6 address"),
        ("[[::1]]:80", "'[::1]' is not an IPv6 address"),
        ("[::1]]:80", "'::1]' is not an IPv6 address"),
        ("a[::1]:80", "'a[::1]' is not an IPv6 address"),
        ("[::1]:80:90", "only ':' and the port may follow a ']', as in '[::1]:80'"),
        ("[::1]a:80", "only ':' and the port may follow a ']'"),
        ("[::1].:80", "only ':' and the port may follow a ']'"),
        ("[::1]%eth0:80", "only ':' and the port may follow a ']'"),
        ("[example.com]:80", "'example.com' is not an IPv6 address; brackets and ':' are for"),
        (("[example.com]", 80), "write other hosts without them"),
        ("[127.0.0.1]:80", "'127.0.0.1' is not an IPv6 address; brackets and ':' are for"),
        ("[v1.fe]:80", "'v1.fe' is not an IPv6 address"),
        ("[::g]:80", "'::g' is not an IPv6 address"),
        ("[1::2::3]:80", "'1::2::3' is not an IPv6 address"),
        ("[::ffff:192.0.2.01]:80", "is not an IPv6 address"),
        ("[：：１]:80", "'：：１' is not an IPv6 address"),
        (("：：１", 80), "':' cannot be in a host name"),
        (("h:80", 80), "'h:80' is not an IPv6 address"),
        ("[::1:80]", "no port"),
        ("[h:80", "'[' cannot be in a host name"),
        ("h]:80", "']' cannot be in a host name"),
        (("[::1", 80), "'[::1' is not an IPv6 address"),
        (("[", 80), "'[' cannot be in a host name"),
        # IPv6 zones.
        ("[fe80::1%]:80", "a zone is of letters, digits, '.', '_', '~' and '-': '[fe80::1%eth0]'"),
        ("[fe80::1%a%b]:80", "a zone is of letters"),
        ("[fe80::1%ä]:80", "a zone is of letters"),
        ("[fe80::1%a:b]:80", "a zone is of letters"),
        (("fe80::1%eth0]", 80), "a zone is of letters"),
        ("[fe80::1%25eth0]:80", "'%25' is for URLs: write a plain '%' before the zone"),
        (("fe80::1%25eth0", 80), "'%25' is for URLs"),
        ("[%eth0]:80", "is not an IPv6 address"),
        ("[127.0.0.1%eth0]:80", "is not an IPv6 address"),
        ("h%eth0:80", "'%' begins the percent-escape"),
        # Forms of IPv4 that only some parsers accept. To inet_aton(), each number may be octal,
        # decimal or hexadecimal, and the last one stands for all octets that are left.
        ("2130706433:80", f"{IPV4}, 0 to 255: if you mean 127.0.0.1, write that"),
        ("127.1:80", f"{IPV4}, 0 to 255: if you mean 127.0.0.1, write that"),
        ("127.0.1:80", "if you mean 127.0.0.1, write that"),
        ("0x7f.1:80", "if you mean 127.0.0.1, write that"),
        ("0X7F.1:80", "if you mean 127.0.0.1, write that"),
        ("0x7f000001:80", "if you mean 127.0.0.1, write that"),
        ("017700000001:80", "if you mean 127.0.0.1, write that"),
        ("010.0.0.1:80", "if you mean 8.0.0.1, write that"),
        ("1.65535:80", "if you mean 1.0.255.255, write that"),
        ("1.2.65535:80", "if you mean 1.2.255.255, write that"),
        ("1.2.3.0xff:80", "if you mean 1.2.3.255, write that"),
        ("0:80", "if you mean 0.0.0.0, write that"),
        ("1.2.3.4.:80", "if you mean 1.2.3.4, write that"),
        (("127.1", 80), "if you mean 127.0.0.1, write that"),
        ("１２７。１:80", "if you mean 127.0.0.1, write that"),
        ("₀ｘ７ｆ．１:80", "if you mean 127.0.0.1, write that"),
        *[
            (f"{host}:80", f"{IPV4}, 0 to 255: write it as '127.0.0.1'")
            for host in (
                "256.0.0.1",
                "1.2.3.256",
                "1.2.65536",
                "1.16777216",
                "4294967296",
                "08.0.0.1",
                "0x",
                "1.2.3.4.5",
                "1.2.3.4.0",
                "example.123",
                "example.0x7f",
                "1_0.1",
            )
        ],
        # Names.
        (".:80", "an empty label: write something before, between and after dots"),
        ("..:80", "an empty label"),
        (".a:80", "an empty label"),
        ("a..b:80", "an empty label"),
        ("a.b..:80", "an empty label"),
        ("a。。b:80", "an empty label"),
        ("ä..b:80", "an empty label"),
        ("\u00ad:80", "an empty label"),
        *[
            (f"a{char}b:80", f"{char!r} cannot be in a host name")
            for char in "!\"$&'()*+,;<=>^`{|}~"
        ],
        # UTS 46 maps these characters to others, and the result is judged.
        ("a／b:80", f"'/' begins the path of a URL: {HOST_PORT}"),
        ("a℀b:80", f"'/' begins the path of a URL: {HOST_PORT}"),
        ("a＠b:80", f"'@' follows the user of a URL: {HOST_PORT}"),
        ("a？b:80", f"'?' begins the query of a URL: {HOST_PORT}"),
        ("a＃b:80", f"'#' begins the fragment of a URL: {HOST_PORT}"),
        ("a＼b:80", r"'\\' is a backslash"),
        ("％４１:80", "'%' begins the percent-escape"),
        ("ａ：８０", "no port"),
        ("ａ：８０:80", "':' cannot be in a host name"),
        ("a；b:80", "';' cannot be in a host name"),
        # Names that IDNA 2008 does not allow.
        ("ü" * 63 + ":80", "the name is not valid in IDNA 2008"),  # too long in Punycode
        ("☃.example:80", "the name is not valid in IDNA 2008: Codepoint U+2603"),
        ("a\u202eb:80", "not valid in IDNA 2008"),
        ("\ud800:80", "not valid in IDNA 2008"),
        ("\u200d:80", "not valid in IDNA 2008"),
        ("\u0661:80", "not valid in IDNA 2008"),
        ("-ä:80", "not valid in IDNA 2008"),
        (("ä!", 80), "not valid in IDNA 2008"),
        # Neither a str nor a pair of a str and an int.
        *[
            (address, "write a str, 'host:port', or a tuple of a str and an int, ('h', 80)")
            for address in (
                None,
                80,
                b"h:80",
                ["h", 80],
                {"hostname": "h", "port": 80},
                range(10**30),  # len() of it raises OverflowError
                (),
                ("h",),
                ("h", 80, 0),
                ("::1", 80, 0, 0),
                (b"h", 80),
                (None, 80),
                (ipaddress.IPv4Address("127.0.0.1"), 80),
                ("h", "80"),
                ("h", 80.0),
                ("h", True),
                ("h", None),
                SocketAddress("h", "80"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            )
        ],
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value),
)
def test_refused(address: Any, words: str) -> None:
    with pytest.raises(InvalidAddressError) as caught:
        parse_address(address)
    message = str(caught.value)
    assert message.startswith(f"bad address {quote(address)}: ")
    assert words in message


@pytest.mark.parametrize(
    ("address", "words"),
    [
        pytest.param(f"{'a' * 64}:80", "a label of the name has more than 63", id="label"),
        pytest.param(f"b.{'a' * 64}.c.:80", "a label of the name has more than 63", id="labels"),
        pytest.param(f"{'ä' * 64}:80", "a label of the name has more than 63", id="U-label"),
        pytest.param(f"{'ア・' * 40}:80", "a label of the name has more", id="slow U-label"),
        # Not too long as written, but too long as an A-label.
        pytest.param(f"{'äö' * 30}:80", "IDNA 2008: Label too long", id="A-label"),
        pytest.param(
            f"{LONGEST_NAME}a:80", "more than 253 characters: write a shorter", id="name"
        ),
        pytest.param(f"{LONGEST_NAME}a.:80", "more than 253 characters", id="name, dot"),
        pytest.param((f"{LONGEST_NAME}a", 80), "more than 253 characters", id="name in a pair"),
        pytest.param("ä." * 127 + "a:80", "more than 253 characters", id="non-ASCII name"),
        pytest.param(f"[::1%{'a' * 250}]:80", "more than 253 characters", id="zone"),
        pytest.param(f"{'a' * 100_000}:80", "more than 63", id="huge name"),
        pytest.param(f"{'ア・' * 100_000}:80", "", id="huge non-ASCII name"),
        pytest.param(f"{'☃' * 100_000}:80", "", id="huge name not in IDNA"),
        pytest.param("\u202e" * 500 + ":80", "not valid in IDNA 2008", id="long reason"),
        pytest.param("h:" + "8" * 100_000, "the port '8888", id="huge port"),
        pytest.param(("h", 10**5000), "from 1 to 65535", id="port without a repr"),
        pytest.param(10**5000, "write a str", id="int without a repr"),
        pytest.param(["h"] * 100_000, "write a str", id="huge list"),
    ],
)
def test_messages_about_long_addresses_are_short(address: Any, words: str) -> None:
    with pytest.raises(InvalidAddressError) as caught:
        parse_address(address)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_long_address_is_quoted_by_its_ends() -> None:
    with pytest.raises(InvalidAddressError, match=r"bad address 'begin-a+\.\.\.a+-end:80': "):
        parse_address(f"begin-{'a' * 1000}-end:80")


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("☃.example:80", idna.InvalidCodepoint),
        ("-ä:80", idna.IDNAError),
        ("[::g]:80", ipaddress.AddressValueError),
        ("127.1:80", ipaddress.AddressValueError),
        ("tcp://h:1", type(None)),
        (None, type(None)),
    ],
)
def test_the_error_has_the_cause_and_no_other_context(address: Any, cause: type) -> None:
    with pytest.raises(InvalidAddressError) as caught:
        parse_address(address)
    assert isinstance(caught.value.__cause__, cause)
    assert caught.value.__suppress_context__
    assert isinstance(caught.value, (SocketError, ValueError))
    assert caught.value.code == "invalid_address"


def test_idna_is_imported_only_for_a_name_that_needs_it() -> None:
    program = """if True:
        import sys
        from anyio_connect._address import parse_address
        parse_address("Example.com:80"), parse_address("[fe80::1%eth0]:80")
        assert "idna" not in sys.modules
        parse_address("b\\u00fccher.example:80")
        assert "idna" in sys.modules
    """
    subprocess.run([sys.executable, "-c", program], check=True)


# --- any address at all

ANY_CHARACTER = st.characters()  # with surrogates, unlike the default of st.text()
NEARLY = st.text(
    st.one_of(
        st.sampled_from("[]:%.@/?#\\ \0_-+" + string.ascii_letters + string.digits),
        st.sampled_from("。．：／％［］＠０１ＸüßÜ\u00ad\u200d\u0308"),
        ANY_CHARACTER,
    ),
    max_size=30,
)
TEXT = st.text(ANY_CHARACTER) | NEARLY | NEARLY.map("{}:80".format) | NEARLY.map("[{}]:80".format)
PORT = st.integers() | st.integers(-1, 65537)
ANYTHING = (
    st.none() | st.booleans() | PORT | st.floats() | TEXT | st.binary() | st.complex_numbers()
)
ADDRESS = (
    TEXT
    | st.tuples(TEXT, PORT)
    | st.tuples(TEXT, PORT).map(lambda pair: SocketAddress(*pair))
    | ANYTHING
    | st.lists(ANYTHING, max_size=4)
    | st.lists(ANYTHING, max_size=4).map(tuple)
)


@given(ADDRESS)
@example("[::ffff:1.2.3.4]:80")
@example("a\u0308.example.:80")
def test_any_value_is_an_address_or_refused(address: Any) -> None:
    try:
        result = parse_address(address)
    except InvalidAddressError as exc:
        assert str(exc).encode().startswith(b"bad address ")  # noqa: PT017 - it may also not be raised
    else:
        check_invariants(result)


@given(
    st.lists(
        st.from_regex(r"0?[xX]?[0-9a-fA-F]{0,3}", fullmatch=True) | st.integers(0, 2**32).map(str),
        min_size=1,
        max_size=5,
    ).map(".".join),
    st.sampled_from(["", "."]),
)
def test_no_spelling_of_ipv4_is_misread(host: str, dot: str) -> None:
    """An accepted host is an IPv4 address to us if, and only if, it is one to the C library."""
    try:
        result = parse_address((host + dot, 80))
    except InvalidAddressError as exc:
        # If the message suggests an address, it is the one that the C library reads.
        if meant := re.search(r"if you mean ([0-9.]+), write that", str(exc)):
            try:
                packed = socket.inet_aton(host)
            except OSError:
                return
            assert socket.inet_ntoa(packed) == meant[1]
    else:
        check_invariants(result)


# --- every valid address

LETTERS = string.ascii_letters + string.digits + "-_"
LABELS = st.text(LETTERS, min_size=1, max_size=63) | st.text(
    # Letters of scripts that are written from left to right, so that any mix is valid.
    st.sampled_from("àéîõüßçñαβγδεжзийдλ日本語中文한국어"),
    min_size=1,
    max_size=12,
)


@st.composite
def names(draw: st.DrawFn) -> str:
    labels = draw(st.lists(LABELS, min_size=1, max_size=4))
    assume(not re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", labels[-1]))
    return ".".join(labels) + draw(st.sampled_from(["", "."]))


ZONES = st.text(LETTERS + ".~", min_size=1, max_size=15).filter(
    lambda zone: zone.isdigit() or not zone.startswith("25")
)
IPV6 = st.ip_addresses(v=6).flatmap(
    lambda ip: st.sampled_from([str(ip), ip.exploded, str(ip).upper()])
)
HOSTS = (
    names()
    | st.ip_addresses(v=4).map(str)
    | IPV6.map("[{}]".format)
    | st.builds("[{}%{}]".format, IPV6, ZONES)
)
PORTS = st.integers(1, 65535)


@given(HOSTS, PORTS)
def test_every_valid_address_is_accepted(host: str, port: int) -> None:
    address = parse_address(f"{host}:{port}")
    check_invariants(address)
    assert address.port == port
    assert parse_address((host, port)) == address
    if host.startswith("["):
        ip, _, zone = host[1:-1].partition("%")
        number, _, same_zone = address.hostname.partition("%")
        assert ipaddress.IPv6Address(number) == ipaddress.IPv6Address(ip)
        assert same_zone == zone
        assert parse_address((host[1:-1], port)) == address
    elif host.isascii():
        assert address.hostname == host.lower()


class Spelled(str):
    """A string that the parser reads without its short cut, because of its type."""

    __slots__ = ()


@given(
    (HOSTS | names().map(str.lower)).flatmap(
        lambda host: st.just(host) | st.sampled_from([host + ".", "0" + host, "a" * 200 + host])
    ),
    st.integers(-1, 65536),
)
@example(LONGEST_NAME, 80)
@example(LONGEST_NAME + ".", 80)
@example(LONGEST_NAME + "a", 80)
@example("a" * 64, 80)
@example("1.2.3.4.", 80)
@example("1.2.3.256", 80)
@example("01.2.3.4", 80)
@example("name.0x", 80)
@example("name.x0", 80)
@example("name.-", 80)
def test_plain_hosts_are_read_alike_with_and_without_the_short_cut(host: str, port: int) -> None:
    """The short cut is for hosts that are in the normal form already."""
    found: list[object] = []
    for spelled in (host, Spelled(host)):
        for address in ((spelled, port), type(spelled)(f"{spelled}:{port}")):
            try:
                found.append(parse_address(address))
            except InvalidAddressError as exc:
                found.append(str(exc))
    assert found[:2] == found[2:]
    assert all(type(it.hostname) is str for it in found if isinstance(it, SocketAddress))


@given(
    HOSTS,
    PORTS,
    st.sampled_from(" \t\r\n\0\x7f\x85\xa0\u3000@/\\?#!\"$&'()*+,;<=>^`{|}"),
    st.data(),
)
def test_one_forbidden_character_anywhere_is_refused(
    host: str, port: int, char: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(host)), label="at")
    mutant = host[:at] + char + host[at:]
    for address in (f"{mutant}:{port}", (mutant, port), f"{host}:{port}{char}"):
        with pytest.raises(InvalidAddressError, match=r"^bad address "):
            parse_address(address)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgres://user:s3cret@db.example:5432/app", "postgres://***@db.example:5432/app"),
        ("https://s3cret@host:1", "https://***@host:1"),
        ("redis://user:s3cret/more@host:6379", "redis://***@host:6379"),
        ("redis://user:s3@cret@host:1", "redis://***@host:1"),
        ("user:s3 cret:@host:1", "***@host:1"),
        ("host:1?password=s3cret", "host:1?***"),
        ("host:1?a=\"s3cret'", "host:1?***"),
        ("https://s3cret@host/?password=s3cret#s3cret", "https://***@host/?***"),
        (("user:s3cret@host", 1), "***@host"),
        ("host:1#s3cret", "host:1#***"),
    ],
)
def test_a_password_is_not_repeated(address: Any, shown: str) -> None:
    with pytest.raises(InvalidAddressError) as caught:
        parse_address(address)
    assert "s3cret" not in str(caught.value)
    assert "cret" not in str(caught.value)
    assert shown in str(caught.value)
