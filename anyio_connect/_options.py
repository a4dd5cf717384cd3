"""The options of ``connect()``: their names, their defaults, and their valid values."""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from ._address import HostError, normal_host
from ._errors import InvalidOptionError, bad_option, quote
from ._keepalive import KEEP_ALIVE, LONGEST

SecureTransport = Literal["off", "on", "starttls"]


class SocketOptions(TypedDict, total=False):
    """The options of ``connect()``.

    Every key may be left out, and None means the same: the value is that of the ``Connector`` if
    it has one, or else the default. The first four are the ``SocketOptions`` of the WinterTC
    draft, in Python spelling.

    ``secure_transport``: ``"off"`` (the default): plain TCP. ``"on"``: TLS from the first byte.
    ``"starttls"``: plain TCP until ``start_tls()``.

    ``allow_half_open``: what the peer's end of stream means. False (the default): it ends our side
    too, and ``closed`` resolves. True: we can go on sending until we end our side ourselves.

    ``sni``: the server name to send and to verify in the TLS handshake, instead of the host name
    of the address (RFC 6066 section 3). It is normalised like a host in an address: lower case,
    and A-labels of IDNA.

    ``alpn``: the protocols to offer in the TLS handshake, in order of preference (RFC 7301).

    ``ssl_context``: the settings of TLS, instead of the default ones: for your own CA, or for a
    client certificate.

    ``connect_timeout``: how long connecting may take in all, in seconds. This includes the wait
    for a slot of ``max_connections``, name resolution, all attempts to connect, and with
    ``secure_transport="on"`` the TLS handshake. After ``start_tls()`` it starts again, and covers
    the wait for a send in flight and the handshake. ``math.inf`` (the default) is no limit.

    ``close_timeout``: how long ``close()`` may take without any progress, in seconds; 5 by
    default. It starts again whenever the peer acknowledges more data. When the time is up,
    ``close()`` returns and ``closed`` fails with :class:`BrokenError`. ``math.inf`` is no limit.

    ``keep_alive``: after how many seconds of silence the kernel checks whether the peer is still
    there: whole seconds from 1 to 32767; 60 by default. It sends 4 probes, 15 seconds apart. If no
    answer comes, the connection is lost: calls raise :class:`BrokenError`, and ``closed`` fails
    with it. The cause is usually the kernel's ETIMEDOUT. On Linux the same happens if sent data is
    not acknowledged within the same time in total, 120 seconds by default (TCP_USER_TIMEOUT).
    Without that limit it would take about 15 minutes. A connection to a peer that answers is not
    lost, even if the peer has had no room for our data for a long time. With ``math.inf`` the
    kernel sends no probes, and the loss of a peer may never be noticed (RFC 9293 3.8.4).

    ``require_close_notify``: what it means if a TLS connection ends without close_notify. True
    (the default): it is a :class:`BrokenError`, because an attacker may have cut off the end of
    the peer's data (RFC 8446 section 6.1). False: it is the peer's end, as without TLS. Use this
    for servers that do not send close_notify, if their protocol has another way to show that the
    data is complete. An end in the middle of a TLS record is always an error.
    """

    secure_transport: SecureTransport | None
    """``"off"`` (the default): plain TCP. ``"on"``: TLS from the first byte. ``"starttls"``: plain
    TCP until ``start_tls()``."""
    allow_half_open: bool | None
    """What the peer's end of stream means. False (the default): it ends our side too, and
    ``closed`` resolves. True: we can go on sending until we end our side ourselves."""
    sni: str | None
    """The server name to send and to verify in the TLS handshake, instead of the host name of the
    address (RFC 6066 section 3). It is normalised like a host in an address: lower case, and
    A-labels of IDNA."""
    alpn: Sequence[str] | None
    """The protocols to offer in the TLS handshake, in order of preference (RFC 7301)."""
    ssl_context: ssl.SSLContext | None
    """The settings of TLS, instead of the default ones: for your own CA, or for a client
    certificate."""
    connect_timeout: float | None
    """How long connecting may take in all, in seconds. This includes the wait for a slot of
    ``max_connections``, name resolution, all attempts to connect, and with
    ``secure_transport="on"`` the TLS handshake. After ``start_tls()`` it starts again, and covers
    the wait for a send in flight and the handshake. ``math.inf`` (the default) is no limit."""
    close_timeout: float | None
    """How long ``close()`` may take without any progress, in seconds; 5 by default. It starts
    again whenever the peer acknowledges more data. When the time is up, ``close()`` returns and
    ``closed`` fails with :class:`BrokenError`. ``math.inf`` is no limit."""
    keep_alive: float | None
    """After how many seconds of silence the kernel checks whether the peer is still there: whole
    seconds from 1 to 32767; 60 by default. It sends 4 probes, 15 seconds apart. If no answer
    comes, the connection is lost: calls raise :class:`BrokenError`, and ``closed`` fails with it.
    The cause is usually the kernel's ETIMEDOUT. On Linux the same happens if sent data is not
    acknowledged within the same time in total, 120 seconds by default (TCP_USER_TIMEOUT). Without
    that limit it would take about 15 minutes. A connection to a peer that answers is not lost,
    even if the peer has had no room for our data for a long time. With ``math.inf`` the kernel
    sends no probes, and the loss of a peer may never be noticed (RFC 9293 3.8.4)."""
    require_close_notify: bool | None
    """What it means if a TLS connection ends without close_notify. True (the default): it is a
    :class:`BrokenError`, because an attacker may have cut off the end of the peer's data (RFC 8446
    section 6.1). False: it is the peer's end, as without TLS. Use this for servers that do not
    send close_notify, if their protocol has another way to show that the data is complete. An end
    in the middle of a TLS record is always an error."""


#: The default of ``close_timeout``, in seconds.
CLOSE_TIMEOUT = 5.0


class Options(NamedTuple):
    """:class:`SocketOptions`, checked and complete."""

    secure_transport: SecureTransport = "off"
    allow_half_open: bool = False
    sni: str | None = None
    alpn: tuple[str, ...] | None = None
    ssl_context: ssl.SSLContext | None = None
    connect_timeout: float = math.inf
    close_timeout: float = CLOSE_TIMEOUT
    keep_alive: float = KEEP_ALIVE
    require_close_notify: bool = True
    #: For ``start_tls()``: the name that the certificate must be valid for, instead of the host.
    server_hostname: str | None = None

    def server_name(self, host: str) -> str:
        """Return the name that the certificate must be valid for; empty: names are not checked.

        ``host`` is the host of the address, empty if it is not known.
        """
        return self.server_hostname or self.sni or host


_NAMES = tuple(SocketOptions.__annotations__)
_DEFAULTS = Options()
#: Options that have no effect without TLS.
TLS_ONLY = ("sni", "alpn", "ssl_context", "require_close_notify")
#: Options for the kernel's sockets. They have no effect on a stream that exists already.
SYSTEM_ONLY = ("keep_alive",)
_SECURE_TRANSPORTS = ("off", "on", "starttls")


def parse_options(options: Mapping[str, object], defaults: Options = _DEFAULTS) -> Options:
    """Check ``options``. An option that is missing or None has its value in ``defaults``.

    :raises InvalidOptionError: an option is unknown, has a bad value, or contradicts another
    """
    if not options and defaults.secure_transport == "off" and defaults.ssl_context is None:
        return defaults
    for name in options:
        if name not in _NAMES:
            raise _unknown(name)
    given = {name: value for name, value in options.items() if value is not None}
    checked: dict[str, Any] = {name: _CHECKS[name](name, value) for name, value in given.items()}
    parsed = defaults._replace(**checked)
    if parsed.secure_transport == "off":
        for name in TLS_ONLY:
            if name in given:
                raise InvalidOptionError(
                    f"{name}={quote(given[name])} has no effect with secure_transport='off': "
                    "leave it out, or set secure_transport to 'on' or 'starttls'"
                )
        return parsed._replace(ssl_context=None)  # a default context has no use without TLS
    if parsed.alpn is not None and parsed.ssl_context is not None:
        raise _alpn_conflict()
    return parsed


def parse_stream_options(options: Mapping[str, object]) -> Options:
    """Like :func:`parse_options`, for a stream that exists already and whose host is unknown.

    :raises InvalidOptionError: for the same reasons; or an option is for the kernel's sockets
        only; or no option gives the name that the peer's certificate must be valid for
    """
    parsed = parse_options(options)
    for name in SYSTEM_ONLY:
        if options.get(name) is not None:
            raise InvalidOptionError(
                f"{name}={quote(options[name])} has no effect on a stream that exists already: "
                "leave it out, and set it where the connection is made"
            )
    if parsed.secure_transport == "on":
        _check_named("sni", "", parsed)
    return parsed


def parse_start_tls_options(
    before: Options, host: str, expected_server_hostname: object, ssl_context: object, alpn: object
) -> Options:
    """Check the arguments of ``start_tls()``, and return the options of the socket over TLS.

    ``before`` has the options of the plain socket, ``host`` the host of its address, if it is
    known.

    :raises InvalidOptionError: an argument has a bad value, or contradicts another or an option
    """
    options = before._replace(secure_transport="on")
    if ssl_context is not None:
        # It has ALPN protocols of its own.
        context = check_ssl_context("ssl_context", ssl_context)
        options = options._replace(ssl_context=context, alpn=None)
    if alpn is not None:
        options = options._replace(alpn=check_alpn("alpn", alpn))
    if options.alpn and options.ssl_context:
        raise _alpn_conflict()
    if expected_server_hostname is not None:
        options = _with_server_name(options, expected_server_hostname)
    _check_named("expected_server_hostname", host, options)
    return options


def _check_named(option: str, host: str, options: Options) -> None:
    """Check that there is a name for TLS to verify, unless the context verifies no names.

    ``option`` is the option by which the user can give the name.
    """
    name, context = options.server_name(host), options.ssl_context
    if not name and (context is None or _of(context, "check_hostname") is not False):
        raise InvalidOptionError(
            f"{option} is missing: the stream has no host name, so TLS does not know for which "
            "name to verify the peer's certificate. Give the name, or an ssl_context whose "
            "check_hostname is False"
        )


def _check_secure_transport(name: str, value: object) -> object:
    if value not in _SECURE_TRANSPORTS:
        raise bad_option(name, value, "must be 'off', 'on' or 'starttls'")
    return value


def _check_flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise bad_option(name, value, "must be True or False")
    return value


def check_server_name(name: str, value: object) -> str:
    """Check a host name or an IP address, and return its normal form."""
    why = "must be a host name or an IP address"
    if not isinstance(value, str) or not value or value.startswith("["):
        raise bad_option(name, value, why)
    if "%" in value and ":" in value:
        raise bad_option(name, value, f"{why}, without a zone: no certificate is valid for one")
    try:
        return normal_host(value)
    except HostError as broken:
        raise bad_option(name, value, f"{why}: {broken}") from broken.__cause__


def check_alpn(option: str, value: object) -> tuple[str, ...]:
    """Check a list of protocol names, each of 1 to 255 octets (RFC 7301 section 3.1)."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        why = "must be a list of protocol names, such as ['h2', 'http/1.1']"
        raise bad_option(option, value, why)
    for name in value:
        if not isinstance(name, str) or not name.isascii() or not 1 <= len(name) <= 255:
            raise bad_option(
                option, value, f"{quote(name)} is not a name of 1 to 255 ASCII characters"
            )
    return tuple(value)


def _alpn_conflict() -> InvalidOptionError:
    return InvalidOptionError(
        "alpn has no effect with an ssl_context of your own, which is never changed: "
        "call its set_alpn_protocols(), and leave alpn out"
    )


def check_ssl_context(name: str, value: object) -> ssl.SSLContext:
    """Check for a context of the standard library, or of a derived class, that suits clients."""
    if not isinstance(value, (ssl.SSLContext, _SSL_CONTEXT)):
        raise bad_option(name, value, "must be an ssl.SSLContext")
    context: Any = value
    if _of(context, "protocol") == ssl.PROTOCOL_TLS_SERVER:
        why = (
            "is for servers: ssl.create_default_context() without arguments makes one for clients"
        )
        raise bad_option(name, value, why)
    checked: ssl.SSLContext = context
    return checked


#: The C class from which the standard library's context is derived. It stays the same even if a
#: package such as truststore replaces ``ssl.SSLContext``.
_SSL_CONTEXT: type = ssl.SSLContext.__mro__[-2]


def _of(context: Any, attribute: str) -> object:
    """An attribute of a context; None if a context of another implementation does not have it."""
    try:
        return getattr(context, attribute)
    except Exception:  # noqa: BLE001
        return None


def _with_server_name(options: Options, expected: object) -> Options:
    """Return ``options`` with the name that ``start_tls()`` expects in the certificate.

    :raises InvalidOptionError: ``expected`` is not a name, contradicts ``sni``, or would not be
        checked
    """
    option = "expected_server_hostname"
    name = check_server_name(option, expected)
    if options.sni is not None and _no_dot(options.sni) != _no_dot(name):
        raise bad_option(
            option, expected, f"contradicts sni={quote(options.sni)} of connect(): leave one out"
        )
    if options.ssl_context is not None and _of(options.ssl_context, "check_hostname") is False:
        why = (
            "has no effect with an ssl_context that checks no names: set its check_hostname to "
            "True, or use sni to choose only what the peer is asked for"
        )
        raise bad_option(option, expected, why)
    return options._replace(server_hostname=name)


def _no_dot(name: str) -> str:
    return name.removesuffix(".")


def check_count(name: str, value: object) -> None:
    """Check an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise bad_option(name, value, "must be a whole number, at least 1")


def check_timeout(name: str, value: object) -> float:
    """Check a number of seconds greater than 0, which may be ``math.inf``."""
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and value > 0:
            return float(value)
    except OverflowError:
        pass  # an int beyond what a float can hold
    raise bad_option(name, value, "must be a number of seconds greater than 0")


def check_wait(name: str, value: object) -> float:
    """Check a number of seconds, which may be 0 or ``math.inf``."""
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and float(value) >= 0:
            return float(value)
    except OverflowError:
        pass  # an int beyond what a float can hold
    raise bad_option(name, value, "must be a number of seconds, 0 or more")


def check_keep_alive(name: str, value: object) -> float:
    """Check a whole number of seconds that all systems accept, or ``math.inf`` (off)."""
    if not isinstance(value, bool) and isinstance(value, (int, float)):
        if value == math.inf:
            return math.inf
        if 1 <= value <= LONGEST and value == int(value):
            return float(value)
    why = f"must be whole seconds from 1 to {LONGEST}, or math.inf to switch it off"
    raise bad_option(name, value, why)


#: For each option, the function that checks a value and returns it in the form of Options.
_CHECKS: dict[str, Callable[[str, object], Any]] = {
    "secure_transport": _check_secure_transport,
    "allow_half_open": _check_flag,
    "sni": check_server_name,
    "alpn": check_alpn,
    "ssl_context": check_ssl_context,
    "connect_timeout": check_timeout,
    "close_timeout": check_timeout,
    "keep_alive": check_keep_alive,
    "require_close_notify": _check_flag,
}


def _unknown(name: str) -> InvalidOptionError:
    import difflib  # here, because few programs need it

    # Code ported from Workers may use its names: secureTransport, allowHalfOpen.
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    close = difflib.get_close_matches(snake, _NAMES, n=2)
    hint = f"did you mean {' or '.join(map(repr, close))}?"
    if not close:
        hint = f"there are: {', '.join(_NAMES)}"
    return InvalidOptionError(f"unknown option {quote(name)}: {hint}")
