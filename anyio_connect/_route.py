"""The options of a ``Connector`` that concern dialling."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NamedTuple

from ._dialer import Dialer
from ._keepalive import KEEP_ALIVE
from ._options import Options
from ._policy import UNRESTRICTED, AddressPolicy
from ._resolver import Resolver

#: RFC 8305 section 5, "Connection Attempt Delay", in seconds.
HAPPY_EYEBALLS_DELAY = 0.25


class Route(NamedTuple):
    """How to dial: the options of a ``Connector`` that concern dialling."""

    policy: AddressPolicy = UNRESTRICTED
    happy_eyeballs_delay: float = HAPPY_EYEBALLS_DELAY
    local_host: str | None = None
    #: The keep_alive option of the socket that is dialled, in seconds: see _keepalive.
    keep_alive: float = KEEP_ALIVE
    dialer: Dialer | None = None
    resolver: Resolver | None = None
    prepare: Callable[[socket.socket], object] | None = None

    def for_socket(self, options: Options) -> Route:
        """Return the route with what the options of one socket say about dialling."""
        if options.keep_alive == self.keep_alive:
            return self
        return self._replace(keep_alive=options.keep_alive)

    @property
    def is_plain(self) -> bool:
        """Whether all it does with an IP address is to connect: see :func:`_tcp_connect.begin`."""
        # Only names use these two fields. A route with any other value that is not the default is
        # not plain, so a new field needs no change here.
        given = self._replace(happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY, resolver=None)
        return all(value is default for value, default in zip(given, Route(), strict=True))
