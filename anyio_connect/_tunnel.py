"""Connect through a proxy: connect to the proxy, and ask it to connect to the target."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from functools import partial

import anyio

from ._address import format_address
from ._copies import fresh
from ._dial import Progress, dial, find
from ._dial_errors import (
    proxy_failed,
    proxy_not_reached,
    proxy_refused,
    proxy_refused_all,
    proxy_silent,
    proxy_unreachable,
)
from ._errors import (
    ConnectError,
    ConnectTimeoutError,
    InvalidOptionError,
    ProxyError,
    quote,
    text_of,
)
from ._log import log
from ._policy import UNRESTRICTED, judges_addresses
from ._proxy import Proxy, ProxyAnswerError, parse_proxy
from ._route import Route
from ._target import SocketInfo, Target, info_of
from ._tls_errors import handshake_timed_out
from ._tls_handshake import start_tls
from ._transport import Transport

#: The ALPN protocols offered to a proxy (RFC 7301), unless the context has its own. This package
#: supports CONNECT only in HTTP/1.1.
_ALPN = ("http/1.1",)


def through(
    url: object, route: Route, context: ssl.SSLContext | None
) -> Callable[[Target], Tunnel]:
    """Return the way through the proxy with that URL, for any target.

    :raises InvalidOptionError: ``url`` is not the URL of a proxy, its libraries are not installed,
        or the proxy cannot be used with the policy of ``route``
    """
    proxy = parse_proxy("proxy", url)
    if proxy.scheme == "socks5h" and judges_addresses(route.policy):
        raise InvalidOptionError(
            f"proxy={str(proxy)!r} resolves names itself, so that the policy could not judge "
            "their addresses: write socks5, which has them resolved here"
        )
    return partial(Tunnel, route, proxy, context)


class _Phase(Enum):
    """The current step of a tunnel."""

    FINDING = auto()  #: resolving the target's name
    REACHING = auto()  #: connecting to the proxy
    SHAKING = auto()  #: making the TLS handshake with the proxy
    ASKING = auto()  #: asking the proxy to connect to the target


class Tunnel:
    """The way to ``target`` through ``proxy`` (see ``_open.Way``).

    If the policy of ``route`` judges addresses, or the proxy does not accept names, the target's
    name is resolved here. Then the proxy is asked for each allowed address in turn, over a new
    connection each time. Otherwise the proxy is asked for the name. The proxy's own address is not
    judged. ``context`` is for TLS with the proxy; None is the default context.
    """

    def __init__(
        self, route: Route, proxy: Proxy, context: ssl.SSLContext | None, target: Target
    ) -> None:
        # local_host applies only to the connection to the proxy.
        self._to_target = route._replace(local_host=None)
        self._to_proxy = route._replace(policy=UNRESTRICTED).for_socket(target.options)
        self._proxy = proxy
        self._context = context
        self._address = target.address
        self._where = str(target)
        self._require_close_notify = target.options.require_close_notify
        self._found = Progress(target.address)
        self._attempts: list[ProxyError] = []
        self._asked = self._where  # the last address that the proxy was asked for
        self._phase = _Phase.FINDING
        self._reaching = self._found  # the progress of connecting to the proxy

    # --- the methods of _open.Way

    async def connect(self) -> Transport:
        """Make the connection. If this is cancelled, it leaves nothing behind.

        :raises ProxyError: the proxy cannot be reached, refused, or gave an invalid answer
        :raises TLSError: the TLS handshake with the proxy failed
        :raises ConnectError: the name has no address, or the policy allows none
        """
        hosts = [self._address.hostname]
        if not self._proxy.resolves_names or judges_addresses(self._to_target.policy):
            # A zone names an interface of this machine, and means nothing to the proxy.
            endpoints = await find(self._to_target, self._found)
            hosts = [endpoint.ip.partition("%")[0] for endpoint in endpoints]
        for host in hosts:
            self._asked = format_address(host, self._address.port)
            try:
                return await self._through(host)
            except ProxyAnswerError as exc:
                told = exc.why, exc.status, exc.__cause__
                if not exc.of_target:
                    before = tuple(self._attempts)
                    raise proxy_failed(self._where, self._proxy, *told, before) from told[-1]
                self._attempts.append(proxy_refused(self._asked, *told))
                if log.debugs:
                    log.debug("%s: %s", self._where, self._attempts[-1])
        raise proxy_refused_all(
            self._where,
            self._proxy,
            tuple(self._attempts),
            self._found.refused,
            self._found.left_out,
        )

    def too_late(self, seconds: float) -> ConnectTimeoutError:
        """The error for a ``connect_timeout``, in seconds, that runs out in :meth:`connect`."""
        if self._phase is _Phase.FINDING:
            return self._found.too_late(seconds)
        if self._phase is _Phase.REACHING:
            error = self._reaching.too_late(seconds)
            return proxy_not_reached(self._where, self._proxy, str(self._reaching), error)
        if self._phase is _Phase.SHAKING:
            return handshake_timed_out(self._name, seconds)
        return proxy_silent(self._where, self._proxy, seconds, tuple(self._attempts))

    def describe(self, transport: Transport) -> SocketInfo:
        """The facts about the connection. The kernel only knows our address and the proxy's.

        :raises Exception: any exception of a foreign stream
        """
        info = info_of(transport)
        return replace(info, remote_address=self._asked, proxy_address=info.remote_address)

    # --- for one address

    async def _through(self, host: str) -> Transport:
        transport = await self._reach()
        self._phase = _Phase.ASKING
        if log.debugs:
            log.debug("%s: asking the proxy %s for %s", self._where, self._proxy, self._asked)
        try:
            await self._proxy.protocol().ask(transport, self._proxy, host, self._address.port)
        except BaseException as exc:
            await transport.abort()
            if isinstance(exc, anyio.EndOfStream):
                raise ProxyAnswerError("it closed the connection before it had answered") from None
            if isinstance(exc, anyio.BrokenResourceError):
                cause = fresh(exc.__cause__ or exc)  # a copy, to avoid a reference cycle
                why = f"the connection to it broke before it had answered: {text_of(cause)}"
                raise ProxyAnswerError(why) from cause
            raise
        return transport

    async def _reach(self) -> Transport:
        """Connect to the proxy, with TLS if its URL says so."""
        proxy = self._proxy
        self._phase = _Phase.REACHING
        self._reaching = Progress(proxy.address)
        try:
            transport = await dial(self._to_proxy, self._reaching)
        except ConnectError as exc:
            at = str(self._reaching)
            raise proxy_unreachable(self._where, proxy, at, exc) from exc.__cause__
        if not proxy.over_tls:
            return transport
        self._phase = _Phase.SHAKING
        secure = await start_tls(
            transport,
            where=self._name,
            server_hostname=proxy.address.hostname,
            alpn=_ALPN,
            context=self._context,
            require_close_notify=self._require_close_notify,
        )
        if secure.alpn not in (None, *_ALPN):
            await secure.abort()
            raise ProxyAnswerError(
                f"TLS with it agreed on {quote(secure.alpn)} (ALPN), but only HTTP/1.1 works "
                "here: let the ssl_context of the Connector offer 'http/1.1', or no ALPN protocol"
            )
        return secure

    @property
    def _name(self) -> str:
        return f"the proxy {self._proxy}"
