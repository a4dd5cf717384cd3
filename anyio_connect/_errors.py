"""Every error a user can meet, and the one place where foreign errors become ours.

Each class is a :class:`SocketError` and also the built-in or AnyIO class that code written
without this package in mind already catches. Two things are deliberately not here, because
AnyIO's own classes say them exactly: ``anyio.EndOfStream`` (the peer ended) and
``anyio.BusyResourceError`` (two tasks in one direction at once).
"""

import errno
import re
import socket
import ssl
import sys
from typing import Any, ClassVar

import anyio

from ._copies import bare, fresh, slots_of


class SocketError(Exception):
    """Base of every error of this package.

    ``code`` is a stable, machine-readable name for the kind of failure; ``str(error)`` is for
    people and may change between releases. ``__cause__`` holds the low-level error, where
    there was one.
    """

    code: ClassVar[str] = "socket_error"

    def __reduce__(self) -> tuple[Any, ...]:
        # For pickle and copy: OSError keeps errno outside of __dict__, and would lose it here; and
        # a subclass may be made from anything.
        return bare, (type(self), self.args), {**vars(self), **slots_of(self)}


class InvalidAddressError(SocketError, ValueError):
    """The address given to ``connect()`` cannot name a TCP endpoint. Raised before any I/O."""

    code: ClassVar[str] = "invalid_address"


class InvalidOptionError(SocketError, ValueError):
    """An option is unknown, has a bad value, or contradicts another. Raised before any I/O."""

    code: ClassVar[str] = "invalid_option"


class PendingError(SocketError, RuntimeError):
    """``result()`` or ``exception()`` of a future was asked for before it settled."""

    code: ClassVar[str] = "pending"


class ConnectError(SocketError, OSError):
    """The connection could not be made.

    ``errno`` is that of the last attempt, or None. ``attempts`` holds one error for each
    address that was tried, in the order in which they failed; their messages name the address.
    """

    code: ClassVar[str] = "connect_failed"
    attempts: "tuple[ConnectError, ...]"

    def __init__(self, message: str, *, attempts: "tuple[ConnectError, ...]" = ()) -> None:
        super().__init__(message)
        self.attempts = attempts

    def __str__(self) -> str:
        # OSError and ssl.SSLError would each have their own way with errno and args.
        return str(self.args[0])


class ResolveError(ConnectError, socket.gaierror):
    """The host name has no usable address."""

    code: ClassVar[str] = "resolve_failed"


class RefusedError(ConnectError, ConnectionRefusedError):
    """The peer answered that nothing listens on the port (RFC 9293 3.10.7.1)."""

    code: ClassVar[str] = "refused"


class ConnectTimeoutError(ConnectError, TimeoutError):
    """``connect_timeout`` ran out, or the operating system gave up waiting."""

    code: ClassVar[str] = "connect_timeout"


class AddressNotAllowedError(ConnectError, PermissionError):
    """The policy of the ``Connector`` forbids it. Nothing was sent there."""

    code: ClassVar[str] = "address_not_allowed"


class LoopError(ConnectError):
    """The connection would be to this process itself, which the policy refuses."""

    code: ClassVar[str] = "loop"


class ListenError(SocketError, OSError):
    """``listen()``: the address cannot be listened at."""

    code: ClassVar[str] = "listen_failed"

    def __str__(self) -> str:
        return str(self.args[0])


class TLSError(ConnectError, ssl.SSLError):
    """The TLS handshake failed.

    Where a certificate was turned away, ``__cause__`` is an ``ssl.SSLCertVerificationError``,
    whose ``verify_code`` says why.
    """

    code: ClassVar[str] = "tls_failed"


class StartTLSError(SocketError, RuntimeError):
    """``start_tls()`` was called where it cannot work. The socket is as it was before."""

    code: ClassVar[str] = "start_tls"


class ClosedError(SocketError, anyio.ClosedResourceError):
    """The socket, or this half of it, was closed on our side."""

    code: ClassVar[str] = "closed"


class BrokenError(SocketError, anyio.BrokenResourceError):
    """The connection is unusable: reset by the peer, lost, aborted, or a send was cut short."""

    code: ClassVar[str] = "broken"


#: Ports whose server speaks HTTP: somebody who cannot connect there often wanted a client.
_HTTP_PORTS = frozenset({80, 443})

_DIAL_KINDS: dict[int, tuple[type[ConnectError], str]] = {
    errno.ECONNREFUSED: (RefusedError, "connection refused: nothing is listening there"),
    errno.ETIMEDOUT: (ConnectTimeoutError, "no answer: the system's own connect timeout ran out"),
    errno.ENETUNREACH: (ConnectError, "network unreachable: this machine has no route to it"),
    errno.EHOSTUNREACH: (ConnectError, "host unreachable"),
    errno.EADDRNOTAVAIL: (ConnectError, "no local address or port is free to connect from"),
    errno.EMFILE: (ConnectError, "this process has too many open files"),
    errno.ENFILE: (ConnectError, "the system has too many open files"),
}


def _reason(exc: BaseException) -> str:
    """What an exception says, without Python's ``[Errno N]`` prefix."""
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__


def bad_option(name: str, value: object, why: str) -> InvalidOptionError:
    """The error for an option, or a part of one, that cannot be what it is."""
    return InvalidOptionError(f"bad value for {name}: {quote(value)}: {why}")


def attempt_failed(where: str, exc: OSError) -> ConnectError:
    """The error for one failed attempt to reach the address ``where``."""
    kind, text = _DIAL_KINDS.get(exc.errno or 0, (ConnectError, _reason(exc)))
    error = kind(f"{where}: {text}")
    error.errno = exc.errno
    error.__cause__ = fresh(exc)
    return error


def resolve_failed(hostname: str, port: int, exc: Exception | None) -> ConnectError:
    """The error for a name without an address."""
    why = "the name has no address" if exc is None else _reason(exc)
    error = ResolveError(f"cannot resolve {hostname!r}: {why}; check the spelling and your DNS")
    error.errno = exc.errno if isinstance(exc, OSError) else None
    error.__cause__ = None if exc is None else fresh(exc)
    return note_http(error, port)


def no_such_zone(ip: str, exc: OSError) -> ResolveError:
    """The error for an IPv6 address whose zone the system does not take."""
    number, _, zone = ip.partition("%")
    try:
        socket.if_nametoindex(zone)
    except OSError:
        why = f"this machine has no network interface {zone!r}"
    else:
        why = f"only link-local addresses have zones: write {number!r}"
    error = ResolveError(f"cannot resolve {ip!r}: {why}")
    error.errno = exc.errno
    error.__cause__ = fresh(exc)
    return error


def forbidden(what: str, why: str) -> AddressNotAllowedError:
    """The error for an address that the policy forbids, and by which rule."""
    error = AddressNotAllowedError(f"{what}: the Connector's policy forbids it: {why}")
    error.errno = errno.EACCES
    return error


def loop(what: str, why: str) -> LoopError:
    """The error for a connection to this process itself."""
    return LoopError(f"{what}: the Connector's policy refuses loops: {why}")


def perhaps_loop(what: str, exc: OSError) -> AddressNotAllowedError:
    """The error for an address of which it cannot be told whether it leads back here."""
    why = f"it cannot be told whether this process itself listens there: {_reason(exc)}"
    error = forbidden(what, why)
    error.__cause__ = fresh(exc)
    return error


def none_allowed(where: str, refused: list[ConnectError]) -> ConnectError:
    """One error for a host none of whose addresses may be dialled."""
    each = "; ".join(str(error) for error in refused)
    kinds = {type(error) for error in refused}
    kind = kinds.pop() if len(kinds) == 1 else AddressNotAllowedError
    error = kind(f"cannot connect to {where}: {each.removeprefix(f'{where}: ')}")
    error.errno = refused[-1].errno
    error.__cause__ = refused[-1].__cause__
    return error


def cannot_bind(where: str, local_host: str, exc: OSError) -> ConnectError:
    """The error for an attempt that could not be made from ``local_host``."""
    error = ConnectError(f"{where}: cannot connect from local_host {local_host}: {_reason(exc)}")
    error.errno = exc.errno
    error.__cause__ = fresh(exc)
    return error


def no_family(where: str, local_host: str, refused: list[ConnectError]) -> ConnectError:
    """The error for a host that has no address of the family of ``local_host``."""
    family = "IPv6" if ":" in local_host else "IPv4"
    return ConnectError(
        f"cannot connect to {where}: local_host {local_host} can only reach {family} addresses, "
        f"and none of the host's that may be dialled is one{_not_tried(refused)}"
    )


def no_slot(where: str, seconds: float, limit: int) -> ConnectTimeoutError:
    """``connect_timeout`` ran out before there was a slot."""
    error = ConnectTimeoutError(
        f"cannot connect to {where}: no slot came free within {seconds:g} seconds: all "
        f"{limit} of max_connections are taken; close sockets that are no longer needed"
    )
    error.errno = errno.ETIMEDOUT
    return error


def cannot_listen(where: str, exc: OSError) -> ListenError:
    """The error for an address that cannot be listened at."""
    why = {
        errno.EADDRINUSE: "something else listens there: stop it, or take another port",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.EACCES: "this user may not: take a port from 1024",
    }.get(exc.errno or 0, _reason(exc))
    error = ListenError(f"cannot listen at {where}: {why}")
    error.errno = exc.errno
    error.__cause__ = fresh(exc)
    return error


def dial_failed(
    where: str,
    port: int,
    attempts: tuple[ConnectError, ...],
    refused: list[ConnectError],
) -> ConnectError:
    """One error for a dial all of whose attempts failed.

    Its class is the one all attempts share: refused everywhere is :class:`RefusedError`.
    """
    last = attempts[-1]
    each = "; ".join(str(attempt) for attempt in attempts)
    if len(attempts) > 1:
        each = f"all {len(attempts)} addresses failed: {each}"
    # A literal address is its own only attempt: name it once.
    message = f"cannot connect to {where}: {each.removeprefix(f'{where}: ')}"
    message += _not_tried(refused)
    kinds = {type(attempt) for attempt in attempts}
    kind = kinds.pop() if len(kinds) == 1 else ConnectError
    error = kind(message, attempts=attempts)
    error.errno = last.errno
    error.__cause__ = last.__cause__
    return note_http(error, port)


def _not_tried(refused: list[ConnectError]) -> str:
    return "".join(f"; not tried: {error}" for error in refused)


def dial_timed_out(
    where: str,
    port: int,
    seconds: float,
    attempts: tuple[ConnectError, ...],
    refused: list[ConnectError],
) -> ConnectTimeoutError:
    """``connect_timeout`` ran out."""
    failed = "".join(f"; {attempt}" for attempt in attempts)
    error = ConnectTimeoutError(
        f"cannot connect to {where}: no connection within {seconds:g} seconds{failed}"
        f"{_not_tried(refused)}",
        attempts=attempts,
    )
    error.errno = errno.ETIMEDOUT
    if attempts:
        error.__cause__ = attempts[-1].__cause__
    note_http(error, port)
    return error


def note_http(error: ConnectError, port: int) -> ConnectError:
    """Add a hint to a failed dial to a web port (workerd does the same in its message)."""
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


def broken(doing: str, exc: BaseException) -> BrokenError:
    """The connection failed while ``doing`` something: chained to the low-level error."""
    if isinstance(exc, BrokenError):
        return fresh(exc)
    cause = exc
    why = ""
    if isinstance(exc, anyio.BrokenResourceError) and exc.__cause__ is not None:
        cause = exc.__cause__
        if str(exc) != str(cause):  # TLS knows better than its cause
            why = str(exc)
    error = BrokenError(f"the connection broke while {doing}: {why or _reason(cause)}")
    error.__cause__ = fresh(cause)
    return error


def quote(value: object) -> str:
    """``repr(value)``, of a length for messages, and without a password.

    People paste whole URLs, and errors end up in logs.
    """
    try:
        return shorten(re.sub(r":[^:@/]*@", ":***@", repr(value)))
    except ValueError:  # an int of more than 4300 digits has no repr
        return f"({type(value).__name__})"


def shorten(text: str) -> str:
    """The two ends of a text that is too long for a message."""
    return text if len(text) <= 120 else f"{text[:80]}...{text[-37:]}"
