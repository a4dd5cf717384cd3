"""The errors of dialling and their messages. Each message names a limited number of addresses."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ._copies import fresh
from ._errors import (
    AddressNotAllowedError,
    ConnectError,
    ConnectTimeoutError,
    LoopError,
    ProxyError,
    RefusedError,
    ResolveError,
    quote,
    shorten,
    text_of,
)

#: How many addresses or errors a list in a message has.
_MOST_NAMED = 8

#: How long the reason of a policy may be, in characters. A reason may contain another one, if the
#: connection leads to another address than the one that was dialled.
_LONGEST_REASON = 500

#: Ports whose servers speak HTTP. A user who cannot connect there often needs an HTTP client.
_HTTP_PORTS = frozenset({80, 443})

_KINDS: dict[int, tuple[type[ConnectError], str]] = {
    errno.ECONNREFUSED: (RefusedError, "connection refused: nothing is listening there"),
    errno.ETIMEDOUT: (ConnectTimeoutError, "no answer: the system's own connect timeout ran out"),
    errno.ENETUNREACH: (ConnectError, "network unreachable: this machine has no route to it"),
    errno.EHOSTUNREACH: (ConnectError, "host unreachable"),
    errno.EADDRNOTAVAIL: (ConnectError, "no local address or port is free to connect from"),
    errno.EMFILE: (ConnectError, "this process has too many open files"),
    errno.ENFILE: (ConnectError, "the system has too many open files"),
}


# --- one address


def attempt_failed(where: str, exc: Exception) -> ConnectError:
    """The error for one failed attempt to reach the address ``where``."""
    number = _errno(exc)
    kind, text = _KINDS.get(number or 0, (ConnectError, text_of(exc)))
    return _caused(kind(f"{where}: {text}"), exc)


def needs_zone(where: str, exc: Exception) -> ConnectError:
    """The error for a link-local address without a zone. The kernel's error is only EINVAL."""
    return _caused(
        ConnectError(
            f"{where}: a link-local address needs a zone, the network interface that leads to "
            "it: write it like '[fe80::1%eth0]:80'"
        ),
        exc,
    )


def prepare_failed(where: str, exc: Exception) -> ConnectError:
    """The error for an attempt in which the ``Connector``'s ``prepare`` raised ``exc``."""
    why = f"the Connector's prepare raised {type(exc).__name__}: {text_of(exc)}"
    return _caused(ConnectError(f"{where}: {why}"), exc)


def badly_prepared(where: str, why: str) -> ConnectError:
    """The error for an attempt in which the ``Connector``'s ``prepare`` did something wrong."""
    return ConnectError(f"{where}: the Connector's prepare {why}")


def cannot_bind(where: str, local_host: str, exc: OSError) -> ConnectError:
    """The error for an attempt whose socket could not be bound to ``local_host``."""
    why = f"{where}: cannot connect from local_host {local_host}: {text_of(exc)}"
    return _caused(ConnectError(why), exc)


def forbidden(what: str, why: str) -> AddressNotAllowedError:
    """The error for an address that the policy forbids. ``why`` names the rule."""
    # A user's policy may return any text.
    why = shorten(str(why), _LONGEST_REASON)
    error = AddressNotAllowedError(f"{what}: the Connector's policy forbids it: {why}")
    error.errno = errno.EACCES
    return error


def not_judged(what: str, exc: Exception) -> AddressNotAllowedError:
    """The error for an address for which the policy raised ``exc``."""
    error = AddressNotAllowedError(
        f"{what}: the Connector's policy raised {type(exc).__name__} instead of judging it: "
        f"{text_of(exc)}"
    )
    error.errno = errno.EACCES
    error.__cause__ = fresh(exc)
    return error


def loop(what: str, why: str) -> LoopError:
    """The error for a connection to this process itself."""
    return LoopError(f"{what}: the Connector's policy refuses loops: {why}")


def perhaps_loop(what: str, exc: OSError) -> AddressNotAllowedError:
    """The error for an address that may lead back to this process: the system did not tell."""
    why = f"the system does not say whether this process itself listens there: {text_of(exc)}"
    error = forbidden(what, why)
    error.__cause__ = fresh(exc)
    return error


def dialer_failed(where: str, exc: Exception) -> ConnectError:
    """The error for an attempt in which a dialer raised ``exc``, to reach ``where``."""
    known = system_error(exc) if isinstance(exc, OSError) else None
    number = None if known is None else known.errno
    if isinstance(known, socket.gaierror):
        error: ConnectError = ResolveError(f"{where}: the name has no address: {text_of(known)}")
    elif number in _KINDS:
        error = attempt_failed(where, OSError(number, ""))
    elif isinstance(known, ConnectionRefusedError):  # raised by Python code, without an errno
        number = errno.ECONNREFUSED
        error = attempt_failed(where, OSError(number, ""))
    elif isinstance(known, TimeoutError):
        number = errno.ETIMEDOUT
        error = ConnectTimeoutError(f"{where}: no answer within the time limit of the dialer")
    else:
        why = f"the Connector's dialer raised {type(exc).__name__}: {text_of(exc)}"
        error = ConnectError(f"{where}: {why}")
    _caused(error, exc)
    error.errno = number
    return error


def system_error(exc: OSError) -> OSError:
    """The system's error that is the cause of ``exc``, if AnyIO's ``connect_tcp()`` raised that.

    AnyIO raises an OSError without an errno. Its cause is the system's error, or a group with one
    error for each address. If they are of several kinds, this returns ``exc``.
    """
    if exc.errno is not None or exc.__cause__ is None:
        return exc
    causes = [*_leaves(exc.__cause__)]
    first = causes[0]
    kinds = {(type(cause), getattr(cause, "errno", None)) for cause in causes}
    return first if len(kinds) == 1 and isinstance(first, OSError) else exc


def _leaves(error: Any) -> Iterator[BaseException]:
    """The errors in a group of groups, or the error itself."""
    if hasattr(error, "exceptions"):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def not_a_stream(where: str, returned: object, instead: str) -> ConnectError:
    """The error for a dialer that did not return a stream. ``instead``: what to do instead."""
    kind = type(returned).__name__
    return ConnectError(
        f"cannot connect to {where}: the Connector's dialer returned {kind}, which is not "
        f"a stream: {instead}"
    )


# --- a name


def resolve_failed(hostname: str, port: int, exc: Exception | None) -> ConnectError:
    """The error for a name without an address."""
    why = "the name has no address" if exc is None else text_of(exc)
    error = ResolveError(f"cannot resolve {hostname!r}: {why}; check the spelling and your DNS")
    return note_http(_caused(error, exc), port)


def no_lookup(hostname: str, port: int, exc: Exception) -> ConnectError:
    """The error for a name that could not be looked up at all."""
    error = ResolveError(f"cannot resolve {hostname!r}: {text_of(exc)}; check your DNS")
    return note_http(_caused(error, exc), port)


def resolver_failed(hostname: str, port: int, exc: Exception) -> ConnectError:
    """The error for a name for which the ``Connector``'s resolver raised ``exc``."""
    why = f"the Connector's resolver raised {type(exc).__name__}: {text_of(exc)}"
    return note_http(_caused(ResolveError(f"cannot resolve {hostname!r}: {why}"), exc), port)


def bad_answer(hostname: str, port: int, value: object, why: str) -> ConnectError:
    """The error for an invalid answer of the ``Connector``'s resolver. ``value`` is the part."""
    told = f"the Connector's resolver returned {quote(value)}, which {why}"
    return note_http(ResolveError(f"cannot resolve {hostname!r}: {told}"), port)


def no_such_zone(ip: str, exc: OSError) -> ConnectError:
    """The error for an IPv6 address whose zone the system does not accept."""
    number, _, zone = ip.partition("%")
    try:
        socket.if_nametoindex(zone)
    except OSError:
        why = f"this machine has no network interface {zone!r}"
    else:
        why = f"only link-local addresses have zones: write {number!r}"
    error = ResolveError(f"cannot resolve {ip!r}: {why}")
    return _caused(error, exc)


# --- a dial as a whole


def none_allowed(where: str, refused: Sequence[ConnectError], left_out: int = 0) -> ConnectError:
    """One error for a host if the policy refuses all of its addresses."""
    each = _listed(refused, f"{where}: ") + _left_out(left_out)
    kinds = {type(error) for error in refused}
    kind = kinds.pop() if len(kinds) == 1 else AddressNotAllowedError
    error = kind(f"cannot connect to {where}: {each}")
    error.errno = refused[-1].errno
    error.__cause__ = refused[-1].__cause__
    return error


def no_family(where: str, local_host: str, refused: Sequence[ConnectError]) -> ConnectError:
    """The error for a host that has no address of the family of ``local_host``."""
    family = "IPv6" if ":" in local_host else "IPv4"
    return ConnectError(
        f"cannot connect to {where}: local_host {local_host} can only reach {family} addresses, "
        f"but no allowed address of the host is one{_not_tried(refused)}"
    )


def dial_failed(
    where: str,
    port: int,
    attempts: tuple[ConnectError, ...],
    refused: Sequence[ConnectError],
    left_out: int = 0,
) -> ConnectError:
    """One error for a dial if all attempts failed.

    If all attempts failed with the same class, such as :class:`RefusedError`, the error has that
    class.
    """
    last = attempts[-1]
    # If the host is an IP address, `where` is the only address tried: name it once.
    each = _listed(attempts, f"{where}: ")
    if len(attempts) > 1:
        each = f"all {len(attempts)} addresses failed: {each}"
    message = f"cannot connect to {where}: {each}{_not_tried(refused)}{_left_out(left_out)}"
    kinds = {type(attempt) for attempt in attempts}
    kind = kinds.pop() if len(kinds) == 1 else ConnectError
    error = kind(message, attempts=attempts)
    error.errno = last.errno
    error.__cause__ = last.__cause__
    return note_http(error, port)


def reset_at_once(where: str, exc: Exception) -> ConnectError:
    """The error for a connection that the peer reset before its socket could be returned."""
    cause = exc.__cause__ if isinstance(exc.__cause__, Exception) else exc
    why = f"cannot connect to {where}: it was made, but broke at once: {text_of(cause)}"
    return _caused(ConnectError(why), cause)


def broke_in_opening(where: str, exc: Exception) -> ConnectError:
    """The error for a connection that broke in a later step of opening."""
    cause = exc.__cause__ if isinstance(exc.__cause__, Exception) else exc
    why = f"cannot connect to {where}: it was made, but broke before it was open: {text_of(cause)}"
    return _caused(ConnectError(why), cause)


def ended_in_opening(where: str, exc: Exception) -> ConnectError:
    """The error for a connection that the peer ended in a later step of opening."""
    why = f"cannot connect to {where}: it was made, but the peer ended it before it was open"
    return _caused(ConnectError(why), exc)


def no_thread(where: str, exc: Exception) -> ConnectError:
    """The error for a blocking call if no thread or no event loop could be started."""
    return _caused(ConnectError(f"cannot connect to {where}: {text_of(exc)}"), exc)


def opening_failed(where: str, exc: Exception) -> ConnectError:
    """The error for any other exception, for example from foreign code."""
    error = ConnectError(f"cannot connect to {where}: {type(exc).__name__}: {text_of(exc)}")
    return _caused(error, exc)


# --- through a proxy


def proxy_unreachable(where: str, proxy: object, at: str, exc: ConnectError) -> ProxyError:
    """The error for a proxy to which no connection could be made. ``at`` is its address."""
    error = ProxyError(_unreached(where, proxy, at, exc), attempts=exc.attempts)
    error.errno = exc.errno
    error.__cause__ = exc.__cause__
    return error


def proxy_refused(
    where: str, why: str, status: int | None, cause: BaseException | None
) -> ProxyError:
    """The error for one address to which a proxy did not connect."""
    error = ProxyError(f"{where}: {why}", status=status)
    error.__cause__ = cause
    return error


def proxy_refused_all(
    where: str,
    proxy: object,
    attempts: tuple[ProxyError, ...],
    refused: Sequence[ConnectError],
    left_out: int = 0,
) -> ProxyError:
    """One error for a proxy that connected to none of the requested addresses."""
    last = attempts[-1]
    each = _listed(attempts, f"{where}: ")
    if len(attempts) > 1:
        each = f"it was asked for {len(attempts)} addresses: {each}"
    message = _through(where, proxy, f"{each}{_not_tried(refused)}{_left_out(left_out)}")
    error = ProxyError(message, status=last.status, attempts=attempts)
    error.__cause__ = last.__cause__
    return error


def proxy_failed(
    where: str,
    proxy: object,
    why: str,
    status: int | None,
    cause: BaseException | None,
    attempts: tuple[ProxyError, ...],
) -> ProxyError:
    """The error for a proxy that would fail for every address.

    ``attempts``: those for other addresses, which failed before.
    """
    before = f"; before that: {_listed(attempts)}" if attempts else ""
    error = ProxyError(_through(where, proxy, f"{why}{before}"), status=status, attempts=attempts)
    error.__cause__ = cause
    return error


def proxy_not_reached(
    where: str, proxy: object, at: str, error: ConnectTimeoutError
) -> ConnectTimeoutError:
    """The error for a ``connect_timeout`` that ran out before the proxy was connected.

    ``at`` is the proxy's address, and ``error`` the error of connecting to it.
    """
    return _too_late(_unreached(where, proxy, at, error), error.attempts)


def proxy_silent(
    where: str, proxy: object, seconds: float, attempts: tuple[ConnectError, ...]
) -> ConnectTimeoutError:
    """The error for a ``connect_timeout`` that ran out before the proxy answered."""
    why = f"it did not answer within {seconds:g} seconds; perhaps it cannot connect there itself"
    if attempts:
        why += f"; {_listed(attempts)}"
    return _too_late(_through(where, proxy, why), attempts)


def _unreached(where: str, proxy: object, at: str, error: ConnectError) -> str:
    why = str(error).removeprefix(f"cannot connect to {at}: ")
    return _through(where, proxy, f"it cannot be reached: {why}")


def _through(where: str, proxy: object, why: str) -> str:
    return f"cannot connect to {where} through the proxy {proxy}: {why}"


# --- too late


def no_slot(where: str, seconds: float, limit: int) -> ConnectTimeoutError:
    """The error for a ``connect_timeout`` that ran out before a slot was free."""
    return _too_late(
        f"cannot connect to {where}: no slot came free within {seconds:g} seconds: all "
        f"{limit} of max_connections are taken; close sockets that are no longer needed"
    )


def not_resolved(where: str, port: int, seconds: float) -> ConnectTimeoutError:
    """The error for a ``connect_timeout`` that ran out before the name was resolved."""
    error = _too_late(
        f"cannot connect to {where}: the name was not resolved within {seconds:g} seconds; "
        "check your DNS"
    )
    note_http(error, port)
    return error


def dial_timed_out(
    where: str,
    port: int,
    seconds: float,
    *,
    silent: Sequence[object],
    attempts: tuple[ConnectError, ...],
    refused: Sequence[ConnectError],
    left_out: int,
) -> ConnectTimeoutError:
    """The error for a ``connect_timeout`` that ran out before a connection was made."""
    message = f"cannot connect to {where}: no connection within {seconds:g} seconds"
    if silent and [str(endpoint) for endpoint in silent] != [where]:
        message += f"; no answer from {_listed(silent, separator=', ')}"
    if attempts:
        message += f"; {_listed(attempts)}"
    error = _too_late(f"{message}{_not_tried(refused)}{_left_out(left_out)}", attempts)
    note_http(error, port)
    return error


def not_opened(where: str, seconds: float) -> ConnectTimeoutError:
    """The error for a ``connect_timeout`` that ran out before the wrapped socket was open."""
    return _too_late(
        f"cannot connect to {where}: the socket that was wrapped was not open within "
        f"{seconds:g} seconds"
    )


def not_flushed(where: str, seconds: float) -> ConnectTimeoutError:
    """The error for a ``connect_timeout`` that ran out during the wait for a send in flight.

    ``start_tls()`` waits for that before the handshake.
    """
    return _too_late(
        f"cannot start TLS with {where}: what was sent before did not go out within "
        f"{seconds:g} seconds: the peer does not read it"
    )


def _too_late(message: str, attempts: tuple[ConnectError, ...] = ()) -> ConnectTimeoutError:
    error = ConnectTimeoutError(message, attempts=attempts)
    error.errno = errno.ETIMEDOUT
    if attempts:
        error.__cause__ = attempts[-1].__cause__
    return error


# --- parts of messages


def note_http(error: ConnectError, port: int) -> ConnectError:
    """Add a note to an error for a web port. workerd has the same hint in its message."""
    if port in _HTTP_PORTS:
        note = (
            f"port {port} is for HTTP: to talk to a web server, "
            "use an HTTP client such as httpx or aiohttp"
        )
        if sys.version_info >= (3, 11):
            error.add_note(note)
        else:
            vars(error).setdefault("__notes__", []).append(note)
    return error


def _not_tried(refused: Sequence[ConnectError]) -> str:
    return f"; not tried: {_listed(refused)}" if refused else ""


def _left_out(count: int) -> str:
    return f"; {count} more addresses were left out" if count else ""


def _listed(things: Sequence[object], prefix: str = "", *, separator: str = "; ") -> str:
    named: Iterable[str] = map(str, things[:_MOST_NAMED])
    text = separator.join(named).removeprefix(prefix)
    more = len(things) - _MOST_NAMED
    return f"{text} and {more} more" if more > 0 else text


def _caused(error: ConnectError, exc: Exception | None) -> ConnectError:
    error.errno = _errno(exc)
    error.__cause__ = None if exc is None else fresh(exc)
    return error


def _errno(exc: Exception | None) -> int | None:
    return exc.errno if isinstance(exc, OSError) else None
