"""Every error a user can meet, and the one place where foreign errors become ours.

Each class is a :class:`SocketError`, and also the built-in or AnyIO class that code catches which
does not know this package. Two errors are not here, because AnyIO's own classes are exact:
``anyio.EndOfStream`` (the peer ended) and ``anyio.BusyResourceError`` (two tasks in one direction
at once).
"""

import errno
import re
import socket
import ssl
from typing import Any, ClassVar

import anyio

from ._copies import bare, fresh, slots_of


class SocketError(Exception):
    """Base of every error of this package.

    ``code`` is a stable, machine-readable name for the kind of failure; ``str(error)`` is for
    people and may change between releases. ``__cause__`` holds the low-level error, if
    there was one.

    What to do: catch it if the kind of failure makes no difference.
    """

    code: ClassVar[str] = "socket_error"

    def __reduce__(self) -> tuple[Any, ...]:
        # For pickle and copy. OSError keeps errno outside of __dict__, where it would be lost; and
        # the __init__() of a subclass may take other arguments.
        return bare, (type(self), self.args), {**vars(self), **slots_of(self)}


class InvalidAddressError(SocketError, ValueError):
    """The address given to ``connect()`` cannot name a TCP endpoint. Raised before any I/O.

    What to do: write ``"host:port"``, ``"[IPv6]:port"`` or a pair of host and port. The message
    says which part is wrong.
    """

    code: ClassVar[str] = "invalid_address"


class InvalidOptionError(SocketError, ValueError):
    """An option is unknown, has a bad value, or contradicts another. Raised before any I/O.

    What to do: mend the call. The message names the option, its value and what it may be.
    """

    code: ClassVar[str] = "invalid_option"


class PendingError(SocketError, RuntimeError):
    """``result()`` or ``exception()`` of a future was asked for before it settled.

    What to do: await the future, or ask its ``done()`` first.
    """

    code: ClassVar[str] = "pending"


class ConnectError(SocketError, OSError):
    """The connection could not be made.

    ``errno`` is that of the last attempt, or None. ``attempts`` holds one error for each
    address that was tried, in the order in which they failed; their messages name the address.

    What to do: see what the message says of each address. If it is the network, try again later.
    """

    code: ClassVar[str] = "connect_failed"
    attempts: "tuple[ConnectError, ...]"

    def __init__(self, message: str, *, attempts: "tuple[ConnectError, ...]" = ()) -> None:
        super().__init__(message)
        self.attempts = attempts

    def __str__(self) -> str:
        # OSError and ssl.SSLError would each show errno and args in a way of their own.
        return str(self.args[0])


class ResolveError(ConnectError, socket.gaierror):
    """The host name has no usable address, or cannot be looked up: all threads for that hang.

    What to do: check the name, and what the system's resolver makes of it (``getent hosts NAME``).
    """

    code: ClassVar[str] = "resolve_failed"


class RefusedError(ConnectError, ConnectionRefusedError):
    """The peer answered that nothing listens on the port (RFC 9293 3.10.7.1).

    What to do: start the server, or check the port.
    """

    code: ClassVar[str] = "refused"


class ConnectTimeoutError(ConnectError, TimeoutError):
    """``connect_timeout`` ran out, or the operating system gave up waiting.

    What to do: check whether a firewall drops what is sent there, or allow more time. With
    ``max_connections``, see that sockets are closed after use: others wait for their slots.
    """

    code: ClassVar[str] = "connect_timeout"


class AddressNotAllowedError(ConnectError, PermissionError):
    """The policy of the ``Connector`` forbids it. Nothing was sent there.

    What to do: if it was to be allowed, say so: ``dataclasses.replace(policy, allow=[...])``. The
    message names the rule. If a stranger named the address, turn the request down.
    """

    code: ClassVar[str] = "address_not_allowed"


class LoopError(ConnectError):
    """The connection would be to this process itself, which the policy refuses.

    What to do: connect elsewhere, or take a policy without ``refuse_loops``.
    """

    code: ClassVar[str] = "loop"


class ListenError(SocketError, OSError):
    """The address cannot be listened at, or no more connections can be accepted there.

    What to do: stop what listens there already, or take another address or port. The message says
    which.
    """

    code: ClassVar[str] = "listen_failed"

    def __str__(self) -> str:
        return str(self.args[0])


class ProxyError(ConnectError):
    """The proxy of the ``Connector`` could not be reached, refused, or gave no proper answer.

    ``status``: what it answered: an HTTP status, or the reply code of SOCKS5 (RFC 1928 section
    6). None if there was no such answer; SOCKS5 has none for a user or a password that is wrong.
    ``attempts`` holds one error for each address that the proxy was asked for, if it was asked,
    or else for each address of the proxy that was tried.

    What to do: look at ``status``. HTTP's 407 is a wrong user or password, 403 a rule of the
    proxy's. None: check the proxy's address.
    """

    code: ClassVar[str] = "proxy_failed"
    status: int | None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        attempts: "tuple[ConnectError, ...]" = (),
    ) -> None:
        super().__init__(message, attempts=attempts)
        self.status = status


class TLSError(ConnectError, ssl.SSLError):
    """The TLS handshake failed. ``library`` and ``reason`` are OpenSSL's, or None.

    What to do: see whose fault the message says it is. Often the port speaks no TLS, or wants
    STARTTLS first.
    """

    code: ClassVar[str] = "tls_failed"


class CertificateError(TLSError, ssl.SSLCertVerificationError):
    """The peer's certificate was turned away: it expired, is for others, or is not trusted.

    ``verify_code`` is OpenSSL's number for what is wrong (``X509_V_ERR_...``), 0 if code
    other than OpenSSL judged it; ``verify_message`` is the text that goes with it.

    What to do: trust the authority by an ``ssl_context`` with its certificate, or name the host
    that the certificate is for (``sni``), or have it renewed. To verify nothing is no remedy.
    """

    code: ClassVar[str] = "certificate_rejected"
    verify_code: int = 0
    verify_message: str = ""


class StartTLSError(SocketError, RuntimeError):
    """``start_tls()`` was called where it cannot work. The socket is as it was before.

    What to do: connect with ``secure_transport="starttls"``, receive the peer's go-ahead and no
    byte more, and call it while nothing is being received.
    """

    code: ClassVar[str] = "start_tls"


class DetachError(SocketError, RuntimeError):
    """There is no socket to give away: by ``detach()``, or on the way of ``connect_socket()``.

    What to do: await ``opened``, finish the calls that are in flight, receive what was read ahead,
    and detach before TLS.
    """

    code: ClassVar[str] = "detach"


class EventLoopRunningError(SocketError, RuntimeError):
    """``connect_socket_blocking()`` was called where an event loop runs, which it would stop.

    What to do: await ``connect_socket()`` there, or call this in a worker thread.
    """

    code: ClassVar[str] = "event_loop_running"


class ClosedError(SocketError, anyio.ClosedResourceError):
    """The socket, or this half of it, was closed on our side.

    What to do: nothing, if another task closed it on purpose. Otherwise use no socket after its
    ``close()``, and send nothing after its ``send_eof()``.
    """

    code: ClassVar[str] = "closed"


class BrokenError(SocketError, anyio.BrokenResourceError):
    """The connection is unusable: reset by the peer, lost, aborted, or a send was cut short.

    What to do: connect anew. Whether the peer got what was sent last, only its protocol can tell.
    """

    code: ClassVar[str] = "broken"


class HalfCloseError(SocketError, NotImplementedError):
    """The stream below cannot end one direction alone. The socket is as it was before.

    What to do: end the conversation as its protocol does, or ``close()`` both directions.
    """

    code: ClassVar[str] = "half_close"


class IncompleteReadError(SocketError, anyio.IncompleteRead):
    """The peer ended before all came that ``receive_exactly()`` or ``receive_until()`` wait for.

    What did come is kept: ``receive()`` returns it.

    What to do: take the message for cut off, and connect anew.
    """

    code: ClassVar[str] = "incomplete_read"

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)  # AnyIO's has a message of its own, and no argument


class DelimiterNotFoundError(SocketError, anyio.DelimiterNotFound):
    """What ``receive_until()`` looks for is not within ``max_bytes``.

    What did come is kept: ``receive()`` returns it.

    What to do: hang up, as the peer speaks another protocol, or allow more ``max_bytes``.
    """

    code: ClassVar[str] = "delimiter_not_found"

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)  # AnyIO's has a message of its own


def text_of(value: object) -> str:
    """The text of a value for messages; of an exception, without Python's ``[Errno N]``.

    Its length is bounded, and characters that control a terminal are shown as their numbers.
    """
    if isinstance(value, OSError) and value.strerror:
        value = value.strerror
    try:
        text = shorten(str(value))
    except Exception:  # noqa: BLE001  # it may be foreign code
        text = ""
    return printable(text) or type(value).__name__


def printable(text: str) -> str:
    """A text in which characters that control a terminal are shown as their numbers."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def bad_option(name: str, value: object, why: str) -> InvalidOptionError:
    """The error for an option, or a part of one, that has a bad value."""
    return InvalidOptionError(f"bad value for {name}: {quote(value)}: {why}")


def cannot_listen(where: str, exc: OSError) -> ListenError:
    """The error for an address that cannot be listened at."""
    why = {
        errno.EADDRINUSE: "something else listens there: stop it, or take another port",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.EACCES: "this user may not: take a port from 1024",
    }.get(exc.errno or 0, text_of(exc))
    error = ListenError(f"cannot listen at {where}: {why}")
    error.errno = exc.errno
    error.__cause__ = fresh(exc)
    return error


def cannot_accept(where: str, exc: OSError) -> ListenError:
    """The error for a listener that accepts no more connections."""
    error = ListenError(f"cannot accept connections at {where} any more: {text_of(exc)}")
    error.errno = exc.errno
    error.__cause__ = fresh(exc)
    return error


def broken(doing: str, exc: BaseException) -> BrokenError:
    """The connection failed while ``doing`` something: chained to the low-level error."""
    if isinstance(exc, BrokenError):
        return fresh(exc)
    cause = exc
    why = ""
    if isinstance(exc, anyio.BrokenResourceError) and exc.__cause__ is not None:
        cause = exc.__cause__
        if str(exc) != str(cause):  # TLS says more than its cause
            why = str(exc)
    if isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT:
        why = why or f"the peer has stopped answering, as the kernel found: {text_of(cause)}"
    error = BrokenError(f"the connection broke while {doing}: {why or text_of(cause)}")
    error.__cause__ = fresh(cause)
    return error


def quote(value: object) -> str:
    """``repr(value)`` for messages: not too long, and without what may be a secret.

    People paste whole URLs, and errors end up in logs. So a user, a password, a query and a
    fragment are left out. A password may have any character.
    """
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # an int of more than 4300 digits has none
        return f"({type(value).__name__})"
    # In a URL that was escaped as a whole, the '@' is escaped too.
    user, at, rest = text.replace("%40", "@").rpartition("@")
    if at:
        scheme = re.match(r"\W*(?:[A-Za-z][A-Za-z0-9+.-]*://)?", user)
        text = f"{scheme[0] if scheme else ''}***@{rest}"
    if query := re.search("[?#]", text):
        text = text[: query.end()] + "***" + text[-1:].strip("?#")
    return shorten(text)


def shorten(text: str, most: int = 120) -> str:
    """A text for messages: of one that is too long, the beginning and the end."""
    tail = most // 3 - 3
    return text if len(text) <= most else f"{text[: most - tail - 3]}...{text[-tail:]}"
