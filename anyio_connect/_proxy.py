"""The URL of a proxy, as a user gives it, and its check.

The user and the password in it are secrets. No message and no ``repr()`` shows them.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from ._address import HostError, SocketAddress, format_address, normal_host
from ._copies import fresh
from ._errors import InvalidOptionError, quote

#: For each scheme: the module that speaks its protocol, and the library that the module needs.
_SCHEMES = {
    "http": ("._proxy_http", "h11"),
    "https": ("._proxy_http", "h11"),
    "socks5": ("._proxy_socks", "socksio"),
    "socks5h": ("._proxy_socks", "socksio"),
}

_EXAMPLE = "'http://user:password@host:3128'"


class Credentials(NamedTuple):
    """The user and the password for a proxy."""

    user: bytes
    password: bytes

    def __repr__(self) -> str:
        return "Credentials(***)"


class Proxy(NamedTuple):
    """A proxy: its protocol and its address. As text it is its URL, without the secrets."""

    scheme: str
    address: SocketAddress
    credentials: Credentials | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{format_address(*self.address)}"

    @property
    def over_tls(self) -> bool:
        """Whether the connection to the proxy itself has TLS."""
        return self.scheme == "https"

    @property
    def resolves_names(self) -> bool:
        """Whether it takes names as well as addresses."""
        return self.scheme != "socks5"

    def protocol(self) -> Any:
        """The module that speaks its protocol.

        :raises ImportError: the library that it needs is not installed
        """
        return import_module(_SCHEMES[self.scheme][0], __package__)


class ProxyURL(str):
    """The URL as it was given, whose ``repr()`` does not show the user and the password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _masked(str(self))


class ProxyAnswerError(Exception):
    """What a proxy refused or did wrong. In messages, the text follows the name of the proxy.

    ``status`` is the number that it answered, if it did. With ``of_target``, the proxy may still
    be able to connect to another address of the same host.
    """

    def __init__(self, why: str, status: int | None = None, *, of_target: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.status = status
        self.of_target = of_target


def parse_proxy(name: str, value: object) -> Proxy:
    """Check the URL of a proxy, and that the libraries it needs are installed.

    :raises InvalidOptionError: it is not such a URL, or a library is not installed
    """
    if not isinstance(value, str):
        raise _bad(name, value, f"must be a str, a URL such as {_EXAMPLE}")
    try:
        proxy = _parse(value)
    except HostError as broken:
        raise _bad(name, value, str(broken)) from broken.__cause__
    try:
        proxy.protocol()
    except ImportError as exc:
        needed = _SCHEMES[proxy.scheme][1]
        why = f"it needs the package {needed}, which is not installed (or too old)"
        raise _bad(name, value, f"{why}: pip install anyio_connect[proxy]") from fresh(exc)
    return proxy


#: A host, or what stands in its place, and what follows the ':' after it.
_BEHIND_HOST = re.compile(
    r"((?:[a-z][a-z0-9+.-]*://)?(?:\[[^]]*\]|[^:]*):)(?!//)(.*)", re.IGNORECASE | re.DOTALL
)


def _masked(url: str) -> str:
    """``repr(url)`` without what is, or may be, a user or a password."""
    if "@" not in url and "%40" not in url:
        # If the host was forgotten, what follows a ':' and is no port may be a password.
        found = _BEHIND_HOST.match(url)
        if found and not re.match(r"[0-9]{1,5}(?:[/?#]|$)", found[2]):
            url = f"{found[1]}***"
    return quote(url)


def _bad(name: str, value: object, why: str) -> InvalidOptionError:
    if isinstance(value, str):
        return InvalidOptionError(f"bad value for {name}: {_masked(str(value))}: {why}")
    return InvalidOptionError(f"bad value for {name} (a {type(value).__name__}): {why}")


def _parse(url: str) -> Proxy:
    # No message from here shows a part of the URL: it may be a part of a password.
    if re.search(r"[\s\x00-\x1f\x7f-\x9f\\]", url):
        raise HostError(
            "it has white space, a control character or a backslash: in a user or a password, "
            "percent-encode it"
        )
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", url)
    if found is None:
        raise HostError(f"must be a URL with its scheme, such as {_EXAMPLE}")
    scheme, rest = found[1].lower(), found[2]
    if scheme not in _SCHEMES:
        raise HostError(f"the scheme must be one of {', '.join(_SCHEMES)}")
    authority, _, path = rest.partition("/")
    if path or re.search("[?#]", rest):
        raise HostError(
            "a proxy has no path, query or fragment: leave it out; in a user or a password, "
            "write '/' as %2F, '?' as %3F and '#' as %23"
        )
    userinfo, at, host_and_port = authority.rpartition("@")
    if "@" in userinfo:
        raise HostError("it has more than one '@': in a user or a password, write it as %40")
    credentials = _credentials(scheme, userinfo) if at else None
    return Proxy(scheme, _address(scheme, host_and_port), credentials)


def _address(scheme: str, text: str) -> SocketAddress:
    found = re.fullmatch(r"(.*):([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[2]) <= 65535:
        # There is no default that clients agree on: some take 80, others 1080, 3128 or 8080.
        raise HostError(
            f"its port is missing, or is not a number from 1 to 65535: end it with ':' and the "
            f"port, as in '{scheme}://host:3128'"
        )
    host = found[1]
    if host.startswith("["):
        host = host.replace("%25", "%", 1)  # before a zone (RFC 6874)
    elif ":" in host:
        raise HostError("it has more than one ':': write an IPv6 address in brackets")
    return SocketAddress(normal_host(host), int(found[2]))


def _credentials(scheme: str, userinfo: str) -> Credentials:
    if re.search(r"%(?![0-9A-Fa-f]{2})", userinfo):
        raise HostError("a '%' in a user or a password begins a percent-escape: write it as %25")
    user, _, password = userinfo.partition(":")
    found = Credentials(unquote_to_bytes(user), unquote_to_bytes(password))
    if any(re.search(rb"[\x00-\x1f\x7f]", part) for part in found):  # RFC 7617 section 2
        raise HostError("the user or the password has a control character: remove it")
    if not userinfo:
        raise HostError("it has no user before the '@': leave out the '@'")
    if _SCHEMES[scheme][1] == "h11":
        if b":" in found.user:
            raise HostError("the user has a ':', which RFC 7617 does not allow there")
    elif not all(1 <= len(part) <= 255 for part in found):
        raise HostError("SOCKS5 takes a user and a password of 1 to 255 bytes each (RFC 1929)")
    return found
