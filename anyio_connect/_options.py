"""The options of ``connect()``: their names, their defaults, and what they may be."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Literal, NamedTuple, TypedDict

from ._errors import InvalidOptionError, bad_option, quote

SecureTransport = Literal["off", "on", "starttls"]


class SocketOptions(TypedDict, total=False):
    """What ``connect()`` takes besides the address; every key may be left out.

    The first four are the WinterTC draft's ``SocketOptions``, in Python spelling.
    """

    #: ``"off"`` (the default): plain TCP for good. ``"on"``: TLS from the first byte.
    #: ``"starttls"``: plain TCP until ``start_tls()``.
    secure_transport: SecureTransport
    #: What the peer's end of stream means. False (the default): it ends our side too, and
    #: ``closed`` resolves. True: we may go on sending until we end our side ourselves.
    allow_half_open: bool
    #: The server name to ask for in the TLS handshake and to verify, in place of the
    #: address's host name (RFC 6066 section 3).
    sni: str
    #: The protocols to offer in the TLS handshake, most wanted first (RFC 7301).
    alpn: Sequence[str]
    #: For TLS with other than the default settings: an own CA, a client certificate.
    ssl_context: ssl.SSLContext
    #: How long connecting may take in all, in seconds: waiting for a slot where there is a
    #: ``max_connections``, name resolution, every address tried, and with
    #: ``secure_transport="on"`` the TLS handshake. No limit unless given.
    connect_timeout: float


class Options(NamedTuple):
    """:class:`SocketOptions`, checked and complete."""

    secure_transport: SecureTransport = "off"
    allow_half_open: bool = False
    sni: str | None = None
    alpn: tuple[str, ...] | None = None
    ssl_context: ssl.SSLContext | None = None
    connect_timeout: float = math.inf
    #: Of ``start_tls()``: whom the certificate must be for, in place of the address's host.
    server_hostname: str | None = None


_NAMES = tuple(SocketOptions.__annotations__)
_TLS_ONLY = ("sni", "alpn", "ssl_context")
_SECURE_TRANSPORTS = ("off", "on", "starttls")


def parse_options(options: Mapping[str, object]) -> Options:
    """Check ``options`` and fill in the defaults.

    :raises InvalidOptionError: an option is unknown, has a bad value, or makes no sense with
        the others
    """
    for name in options:
        if name not in _NAMES:
            raise _unknown(name)
    secure_transport = options.get("secure_transport", "off")
    if secure_transport not in _SECURE_TRANSPORTS:
        raise bad_option("secure_transport", secure_transport, "must be 'off', 'on' or 'starttls'")
    if secure_transport == "off":
        for name in _TLS_ONLY:
            if name in options:
                raise InvalidOptionError(
                    f"{name}={quote(options[name])} has no effect with secure_transport='off': "
                    "leave it out, or set secure_transport to 'on' or 'starttls'"
                )
    if "alpn" in options and "ssl_context" in options:
        raise alpn_conflict()
    half_open = options.get("allow_half_open", False)
    if not isinstance(half_open, bool):
        raise bad_option("allow_half_open", half_open, "must be True or False")
    return Options(
        secure_transport,  # type: ignore[arg-type]  # one of the three, checked above
        half_open,
        check_server_name("sni", options["sni"]) if "sni" in options else None,
        check_alpn(options["alpn"]) if "alpn" in options else None,
        check_ssl_context(options["ssl_context"]) if "ssl_context" in options else None,
        _check_timeout(options["connect_timeout"]) if "connect_timeout" in options else math.inf,
    )


def check_server_name(option: str, value: object) -> str:
    """A non-empty host name or IP address, ASCII."""
    if not isinstance(value, str) or not (_NAME.fullmatch(value) or _is_ip(value)):
        raise bad_option(option, value, "must be a host name or an IP address, in ASCII")
    return value


#: RFC 1035 section 2.3.4, and the underscore of RFC 8552.
_NAME = re.compile(r"(?=.{1,254}$)[\w-]{1,63}(\.[\w-]{1,63})*\.?", re.ASCII)


def _is_ip(text: str) -> bool:  # a zone would be no part of a server's name
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def check_alpn(value: object) -> tuple[str, ...]:
    """A list of protocol names, each of 1 to 255 octets (RFC 7301 section 3.1)."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        why = "must be a list of protocol names, such as ['h2', 'http/1.1']"
        raise bad_option("alpn", value, why)
    for name in value:
        if not isinstance(name, str) or not name.isascii() or not 1 <= len(name) <= 255:
            raise bad_option(
                "alpn", value, f"{quote(name)} is not a name of 1 to 255 ASCII characters"
            )
    return tuple(value)


def alpn_conflict() -> InvalidOptionError:
    return InvalidOptionError(
        "alpn has no effect with an ssl_context of your own, which is never changed: "
        "call its set_alpn_protocols(), and leave alpn out"
    )


def check_ssl_context(value: object) -> ssl.SSLContext:
    if not isinstance(value, ssl.SSLContext):
        raise bad_option("ssl_context", value, "must be an ssl.SSLContext")
    if value.protocol == ssl.PROTOCOL_TLS_SERVER:
        why = (
            "is for servers: ssl.create_default_context() without a purpose makes one for clients"
        )
        raise bad_option("ssl_context", value, why)
    return value


def check_count(name: str, value: object) -> None:
    """A number of things, at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise bad_option(name, value, "must be a number from 1")


def _check_timeout(value: object) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and value > 0:
            return float(value)
    except OverflowError:
        pass  # an int beyond what a float can hold
    raise bad_option("connect_timeout", value, "must be a number of seconds greater than 0")


def _unknown(name: str) -> InvalidOptionError:
    import difflib  # here, because hardly anybody needs it

    # People who port Workers code bring its names along: secureTransport, allowHalfOpen.
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    close = difflib.get_close_matches(snake, _NAMES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(_NAMES)}"
    return InvalidOptionError(f"unknown option {quote(name)}: {hint}")
