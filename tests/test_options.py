"""The options of connect(): the allowed values of each, and the error for any other value."""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable
from typing import Any, Literal, get_type_hints

import pytest
import truststore
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_connect import InvalidOptionError, SocketOptions, connect
from anyio_connect._errors import quote
from anyio_connect._options import _CHECKS, TLS_ONLY, Options, parse_options

CONTEXT = ssl.create_default_context()
NAMES = list(get_type_hints(SocketOptions))


def tls(**options: object) -> dict[str, object]:
    return {"secure_transport": "on", **options}


@pytest.mark.parametrize(
    ("given_options", "parsed"),
    [
        pytest.param({}, Options(), id="none"),
        pytest.param({"secure_transport": "off"}, Options(), id="off"),
        pytest.param({"secure_transport": "on"}, Options("on"), id="on"),
        pytest.param({"secure_transport": "starttls"}, Options("starttls"), id="starttls"),
        pytest.param({"allow_half_open": True}, Options(allow_half_open=True), id="half-open"),
        pytest.param({"allow_half_open": False}, Options(), id="not half-open"),
        pytest.param(tls(sni="db.example"), Options("on", sni="db.example"), id="sni"),
        pytest.param(tls(sni="192.0.2.1"), Options("on", sni="192.0.2.1"), id="sni IPv4"),
        pytest.param(tls(sni="2001:db8::1"), Options("on", sni="2001:db8::1"), id="sni IPv6"),
        pytest.param(tls(sni="DB.Example"), Options("on", sni="db.example"), id="sni upper case"),
        pytest.param(tls(sni="2001:DB8:0::1"), Options("on", sni="2001:db8::1"), id="sni long"),
        pytest.param(
            tls(sni="B\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example"),
            Options("on", sni="xn--bcher-kva.example"),
            id="sni IDNA",
        ),
        pytest.param(tls(alpn=["h2"]), Options("on", alpn=("h2",)), id="alpn list"),
        pytest.param(tls(alpn=("a", "b")), Options("on", alpn=("a", "b")), id="alpn order"),
        pytest.param(tls(alpn=["x" * 255]), Options("on", alpn=("x" * 255,)), id="alpn long"),
        pytest.param(tls(ssl_context=CONTEXT), Options("on", ssl_context=CONTEXT), id="context"),
        pytest.param({"connect_timeout": 0.5}, Options(connect_timeout=0.5), id="timeout"),
        pytest.param({"connect_timeout": 3}, Options(connect_timeout=3.0), id="timeout int"),
        pytest.param({"connect_timeout": math.inf}, Options(), id="timeout inf"),
        pytest.param(
            {"secure_transport": "starttls", "sni": "h", "ssl_context": CONTEXT},
            Options("starttls", sni="h", ssl_context=CONTEXT),
            id="starttls with a name and a context",
        ),
    ],
)
def test_accepted(given_options: dict[str, object], parsed: Options) -> None:
    assert parse_options(given_options) == parsed


@pytest.mark.parametrize("name", NAMES)
def test_an_option_has_a_default_and_a_check(name: str) -> None:
    assert name in Options._field_defaults, f"add {name} to Options in _options.py, with a default"
    assert name in _CHECKS, f"add {name} to _CHECKS in _options.py, with its check"


@pytest.mark.parametrize("name", NAMES)
def test_good_and_bad_values_of_each_option_are_tested(name: str) -> None:
    assert name in GOOD, f"add {name} to GOOD, with values that it may have"
    assert name in {option for option, *_ in BAD_VALUES}, (
        f"add {name} to BAD_VALUES, with values that it must not have, and what the error says"
    )


def test_defaults() -> None:
    assert parse_options({}) == Options("off", allow_half_open=False, connect_timeout=math.inf)
    assert (Options().sni, Options().alpn, Options().ssl_context) == (None, None, None)


@pytest.mark.parametrize("mode", ["off", "on", "starttls"])
def test_none_means_not_given(mode: Literal["off", "on", "starttls"]) -> None:
    assert parse_options(dict.fromkeys(NAMES)) == Options()
    assert parse_options({**dict.fromkeys(NAMES), "secure_transport": mode}) == Options(mode)


def test_an_option_that_is_not_given_is_taken_from_the_defaults() -> None:
    defaults = Options(ssl_context=CONTEXT, connect_timeout=5)
    assert parse_options({}, defaults) == Options(connect_timeout=5)
    assert parse_options(tls(), defaults) == defaults._replace(secure_transport="on")
    none = tls(ssl_context=None, connect_timeout=None, alpn=None)
    assert parse_options(none, defaults) == defaults._replace(secure_transport="on")
    other = ssl.create_default_context()
    given_one = parse_options(tls(ssl_context=other, connect_timeout=math.inf), defaults)
    assert given_one == Options("on", ssl_context=other)
    with pytest.raises(InvalidOptionError, match=r"set_alpn_protocols\(\)"):
        parse_options(tls(alpn=["h2"]), defaults)


def test_timeout_becomes_a_float() -> None:
    assert type(parse_options({"connect_timeout": 3}).connect_timeout) is float


@pytest.mark.parametrize(
    "make",
    [
        lambda: ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
        lambda: truststore.SSLContext(ssl.PROTOCOL_TLS_SERVER),
    ],
    ids=["standard library", "truststore"],
)
def test_a_servers_context_is_refused(make: Callable[[], ssl.SSLContext]) -> None:
    with pytest.raises(InvalidOptionError, match=r"^bad value for ssl_context: .*: is for serv"):
        parse_options(tls(ssl_context=make()))


def test_any_context_that_clients_can_use_is_taken() -> None:
    with pytest.warns(DeprecationWarning, match="PROTOCOL_TLS"):
        either = ssl.SSLContext(ssl.PROTOCOL_TLS)
    for context in (either, truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)):
        assert parse_options(tls(ssl_context=context)).ssl_context is context


def test_alpn_is_copied() -> None:
    names = ["h2"]
    parsed = parse_options(tls(alpn=names))
    names.append("http/1.1")
    assert parsed.alpn == ("h2",)


TIMEOUT = "must be a number of seconds greater than 0"
SILENCE = "must be whole seconds from 1 to 32767, or math.inf to switch it off"
NAME = "must be a host name or an IP address"
MODE = "must be 'off', 'on' or 'starttls'"
ALPN = "must be a list of protocol names, such as ['h2', 'http/1.1']"
PROTOCOL = "is not a name of 1 to 255 ASCII characters"

#: An option, values it must not have, and what the error tells the user to do.
BAD_VALUES: list[tuple[str, list[object], str]] = [
    ("secure_transport", ["yes", "", "ON", "tls", True, False, b"on", []], MODE),
    ("allow_half_open", [1, 0, "no", []], "must be True or False"),
    ("require_close_notify", [1, 0, "no", []], "must be True or False"),
    ("sni", ["", 1, True, b"h", ["h"], "\N{SNOWMAN}"], NAME),
    ("sni", [".h", "a..b", "a b", "a\0b", "a\nb", "h:443", "[::1]", "https://h"], NAME),
    ("sni", ["fe80::1%eth0", "fe80::1%a b"], f"{NAME}, without a zone"),
    ("sni", ["x" * 64, "x." * 127 + "x"], NAME),
    ("sni", ["127.1", "0x7f000001"], "if you mean 127.0.0.1, write that"),
    ("sni", ["a\N{ZERO WIDTH JOINER}b"], "is not valid in IDNA 2008"),
    # A str is a sequence of str, so type checkers let it pass.
    ("alpn", ["h2", "", b"h2", [], (), 2, {"h2"}, {"h2": 1}], ALPN),
    ("alpn", [[""], ["x" * 256], [b"h2"], [1], [None], ["h2", ""]], PROTOCOL),
    ("alpn", [["\N{SNOWMAN}"], [["h2"]], bytearray(b"h2")], PROTOCOL),
    ("ssl_context", [True, "x", {}, ssl.SSLContext], "must be an ssl.SSLContext"),
    ("connect_timeout", [0, -1, 0.0, -0.5, -math.inf, math.nan], TIMEOUT),
    ("connect_timeout", ["5", True, False, [5], 5j], TIMEOUT),
    ("close_timeout", [0, -1, math.nan, "5", True], TIMEOUT),
    ("keep_alive", [0, -1, 0.5, 60.5, 32768, 10**400, math.nan, -math.inf, "60", True], SILENCE),
]


@pytest.mark.parametrize(
    ("name", "value", "what_to_do"),
    [
        pytest.param(name, value, what_to_do, id=f"{name}={value!r:.40}")
        for name, values, what_to_do in BAD_VALUES
        for value in values
    ],
)
def test_the_error_for_a_bad_value_says_what_to_write(
    name: str, value: object, what_to_do: str
) -> None:
    options = tls(**{name: value})
    with pytest.raises(InvalidOptionError) as raised:
        parse_options(options)
    message = str(raised.value)
    assert message.startswith(f"bad value for {name}: {value!r}"[:60])
    assert what_to_do in message


def test_the_error_quotes_the_bad_alpn_name() -> None:
    with pytest.raises(InvalidOptionError, match=r"\['h2', 7\]: 7 is not a name of"):
        parse_options(tls(alpn=["h2", 7]))


FOR_TLS = {"sni": "h", "alpn": ["h2"], "ssl_context": CONTEXT, "require_close_notify": False}


def test_every_option_for_tls_is_tested_without_tls() -> None:
    assert FOR_TLS.keys() == set(TLS_ONLY), "add a good value of each option for TLS to FOR_TLS"


@pytest.mark.parametrize(("name", "value"), FOR_TLS.items())
@pytest.mark.parametrize("off", [{}, {"secure_transport": "off"}], ids=["default", "off"])
def test_tls_options_are_refused_without_tls(
    name: str, value: object, off: dict[str, object]
) -> None:
    with pytest.raises(InvalidOptionError) as raised:
        parse_options({name: value, **off})
    assert str(raised.value) == (
        f"{name}={value!r} has no effect with secure_transport='off': "
        "leave it out, or set secure_transport to 'on' or 'starttls'"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        # as in code for Workers
        ("secureTransport", "did you mean 'secure_transport'?"),
        ("allowHalfOpen", "did you mean 'allow_half_open'?"),
        # misspelt
        ("secure_transprot", "did you mean 'secure_transport'?"),
        ("timeout", "did you mean 'close_timeout' or 'connect_timeout'?"),
        ("ssl_contxt", "did you mean 'ssl_context'?"),
        # similar to no option
        ("zzz", f"there are: {', '.join(NAMES)}"),
        ("", f"there are: {', '.join(NAMES)}"),
    ],
)
def test_the_error_for_an_unknown_option_suggests_known_ones(name: str, hint: str) -> None:
    with pytest.raises(InvalidOptionError) as raised:
        parse_options({name: True})
    assert str(raised.value) == f"unknown option {name!r}: {hint}"


def test_connect_checks_options_at_once() -> None:
    options: dict[str, Any] = {"connect_timeout": "5"}
    with pytest.raises(InvalidOptionError, match=r"^bad value for connect_timeout: '5': "):
        connect("h:1", **options)


def test_python_refuses_an_option_name_that_is_no_string() -> None:
    options: dict[Any, Any] = {1: 2}
    with pytest.raises(TypeError):
        connect("h:1", **options)


# --- random options

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.sampled_from(["off", "on", "starttls", CONTEXT, object(), SocketOptions])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.sets(SCALARS),
    max_leaves=5,
)
GOOD = {
    "secure_transport": st.sampled_from(["off", "on", "starttls"]),
    "allow_half_open": st.booleans(),
    "sni": st.sampled_from(["h", "db.example", "192.0.2.1", "::1"]),
    "alpn": st.lists(st.text(st.characters(codec="ascii"), min_size=1), min_size=1),
    "ssl_context": st.just(CONTEXT),
    "connect_timeout": st.floats(min_value=0, exclude_min=True) | st.integers(min_value=1),
    "close_timeout": st.floats(min_value=0, exclude_min=True) | st.integers(min_value=1),
    "require_close_notify": st.booleans(),
    "keep_alive": st.integers(1, 32767) | st.integers(1, 32767).map(float) | st.just(math.inf),
}
GOOD = {name: good | st.none() for name, good in GOOD.items()}
OPTIONS = st.fixed_dictionaries(
    {}, optional={name: good | ANYTHING for name, good in GOOD.items()}
)


@given(OPTIONS | st.dictionaries(st.text(max_size=20) | st.sampled_from(NAMES), ANYTHING))
@example({"connect_timeout": 10**400})  # more than a float can hold
@example({"connect_timeout": -(10**5000)})  # more digits than repr() writes
@example({"keep_alive": 10**400})
@example({"secure_transport": 10**5000})
@example(tls(alpn=[10**5000]))
@example({"sni": 10**5000})
def test_anything_gives_options_or_an_invalid_option_error(options: dict[str, Any]) -> None:
    try:
        parsed = parse_options(options)
    except InvalidOptionError as exc:
        message = str(exc)
        # A name is quoted in the same way as a value, without what may be a secret.
        assert any(name in message or quote(name) in message for name in options)
        assert len(message) < 500
        return
    assert set(options) <= set(NAMES)
    assert parsed.secure_transport in {"off", "on", "starttls"}
    assert isinstance(parsed.allow_half_open, bool)
    assert type(parsed.connect_timeout) is float
    assert parsed.connect_timeout > 0
    assert parsed.keep_alive == math.inf or parsed.keep_alive in range(1, 32768)
    if parsed.secure_transport == "off":
        assert (parsed.sni, parsed.alpn, parsed.ssl_context) == (None, None, None)
    if parsed.alpn is not None:
        # The ssl module accepts these names, so it cannot refuse them later, in a handshake.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_alpn_protocols(list(parsed.alpn))


@given(st.fixed_dictionaries({}, optional=GOOD))
def test_good_values_are_taken_as_they_are(options: dict[str, Any]) -> None:
    if options.get("secure_transport") in (None, "off"):
        for name in TLS_ONLY:
            options.pop(name, None)
    if options.get("ssl_context") is not None:
        options.pop("alpn", None)
    parsed = parse_options(options)
    as_taken = {"alpn": tuple, "connect_timeout": float, "close_timeout": float}
    as_taken["keep_alive"] = float
    for name, value in options.items():
        if value is None:
            assert getattr(parsed, name) == getattr(Options(), name)
        else:
            assert getattr(parsed, name) == as_taken.get(name, lambda same: same)(value)


@pytest.mark.parametrize("mode", ["on", "starttls"])
def test_alpn_is_refused_together_with_a_context(mode: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"set_alpn_protocols\(\)"):
        parse_options({"secure_transport": mode, "alpn": ["h2"], "ssl_context": CONTEXT})
