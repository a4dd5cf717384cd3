"""All errors that a user can meet, and the functions that convert foreign errors to them.

Each class is a :class:`SocketError`. It is also a subclass of a built-in or AnyIO class, so that
code that does not know this package can catch it. Two errors are not here, because AnyIO's own
classes fit: ``anyio.EndOfStream`` (the peer has ended) and ``anyio.BusyResourceError`` (two tasks
use the same direction at once).
"""

import errno
import re
import socket
import ssl
from typing import Any, ClassVar

import anyio

from ._copies import bare, fresh, slots_of


class SocketError(Exception):
    """The base class of all errors of this package.

    ``code`` is a stable, machine-readable name for the kind of failure. ``str(error)`` is for
    people and may change between releases. ``__cause__`` is the low-level error, if there was one.

    What to do: catch it if the kind of failure makes no difference.
    """

    code: ClassVar[str] = "socket_error"

    def __reduce__(self) -> tuple[Any, ...]:
        # For pickle and copy. OSError keeps errno outside of __dict__, so it would be lost. And
        # the __init__() of a subclass may have other parameters.
        return bare, (type(self), self.args), {**vars(self), **slots_of(self)}


class InvalidAddressError(SocketError, ValueError):
    """The address given is not the address of a TCP endpoint. Raised before any I/O.

    What to do: write ``"host:port"``, ``"[IPv6]:port"`` or a pair of host and port. The message
    says which part is wrong.
    """

    code: ClassVar[str] = "invalid_address"


class InvalidOptionError(SocketError, ValueError):
    """An option is unknown, has a bad value, or contradicts another. Raised before any I/O.

    What to do: correct the call. The message names the option, its value and the allowed values.
    """

    code: ClassVar[str] = "invalid_option"


class PendingError(SocketError, RuntimeError):
    """``result()`` or ``exception()`` of a future was called before it settled.

    What to do: await the future, or check its ``done()`` first.
    """

    code: ClassVar[str] = "pending"


class ConnectError(SocketError, OSError):
    """The connection could not be made.

    ``errno`` is that of the last attempt, or None. ``attempts`` has one error for each address
    that was tried, in the order in which they failed. Their messages name the address.

    What to do: read what the message says about each address. If the network failed, try again
    later.
    """

    code: ClassVar[str] = "connect_failed"
    attempts: "tuple[ConnectError, ...]"

    def __init__(self, message: str, *, attempts: "tuple[ConnectError, ...]" = ()) -> None:
        super().__init__(message)
        self.attempts = attempts

    def __str__(self) -> str:
        # OSError and ssl.SSLError would show errno and args, each in its own way.
        return str(self.args[0])


class ResolveError(ConnectError, socket.gaierror):
    """The host name has no usable address, or it cannot be looked up at all.

    It cannot be looked up if all threads for name lookups hang.

    What to do: check the name, and the answer of the system's resolver (``getent hosts NAME``).
    """

    code: ClassVar[str] = "resolve_failed"


class RefusedError(ConnectError, ConnectionRefusedError):
    """The peer answered that nothing listens on the port (RFC 9293 3.10.7.1).

    What to do: start the server, or check the port.
    """

    code: ClassVar[str] = "refused"


class ConnectTimeoutError(ConnectError, TimeoutError):
    """``connect_timeout`` ran out, or the operating system gave up waiting.

    What to do: check whether a firewall drops the packets, or allow more time. With
    ``max_connections``, make sure that sockets are closed after use: other sockets wait for their
    slots.
    """

    code: ClassVar[str] = "connect_timeout"


class AddressNotAllowedError(ConnectError, PermissionError):
    """The policy of the ``Connector`` forbids the address or the port. Nothing was sent to it.

    What to do: if it should be allowed, change the policy: ``dataclasses.replace(policy,
    allow=[...])``. The message names the rule. If the address came from an untrusted source,
    refuse the request.
    """

    code: ClassVar[str] = "address_not_allowed"


class LoopError(ConnectError):
    """The connection would lead back to this process, and the policy refuses that.

    What to do: connect to another address, or use a policy without ``refuse_loops``.
    """

    code: ClassVar[str] = "loop"


class ListenError(SocketError, OSError):
    """It is not possible to listen at the address, or to accept further connections there.

    What to do: stop the program that listens there already, or use another address or port. The
    message says which of these helps.
    """

    code: ClassVar[str] = "listen_failed"

    def __str__(self) -> str:
        return str(self.args[0])


class ProxyError(ConnectError):
    """The proxy of the ``Connector`` could not be reached, refused, or gave an invalid answer.

    ``status``: the HTTP status of the answer, or the reply code of SOCKS5 (RFC 1928 section 6).
    None if there was no such answer; SOCKS5 has no reply code for a wrong user or password.
    ``attempts`` has one error for each address that the proxy was asked for. If the proxy was not
    asked, it has one for each address of the proxy that was tried.

    What to do: look at ``status``. HTTP's 407 means a wrong user or password, and 403 means that
    a rule of the proxy forbids the target. If it is None, check the proxy's address.
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

    What to do: read in the message which side failed. Often the port does not support TLS, or
    requires STARTTLS first.
    """

    code: ClassVar[str] = "tls_failed"


class CertificateError(TLSError, ssl.SSLCertVerificationError):
    """The peer's certificate was rejected: expired, valid for other names, or not trusted.

    ``verify_code`` is OpenSSL's number of the error (``X509_V_ERR_...``); 0 if other code than
    OpenSSL checked the certificate. ``verify_message`` is the text of the error.

    What to do: trust the authority by an ``ssl_context`` with its certificate, or name the host
    that the certificate is valid for (``sni``), or have the certificate renewed. Switching the
    verification off is not a solution.
    """

    code: ClassVar[str] = "certificate_rejected"
    verify_code: int = 0
    verify_message: str = ""


class StartTLSError(SocketError, RuntimeError):
    """``start_tls()`` was called in a state in which it cannot work. The socket is unchanged.

    What to do: connect with ``secure_transport="starttls"``, receive the peer's go-ahead and not a
    byte more, and call ``start_tls()`` while no receive is in flight.
    """

    code: ClassVar[str] = "start_tls"


class DetachError(SocketError, RuntimeError):
    """``detach()`` or ``connect_socket()`` cannot return a socket of the kernel.

    What to do: await ``opened``, finish the calls that are in flight, receive the data that was
    read ahead, and detach before TLS.
    """

    code: ClassVar[str] = "detach"


class EventLoopRunningError(SocketError, RuntimeError):
    """``connect_socket_blocking()`` was called in a thread whose event loop it would block.

    What to do: await ``connect_socket()`` instead, or call it in a worker thread.
    """

    code: ClassVar[str] = "event_loop_running"


class ClosedError(SocketError, anyio.ClosedResourceError):
    """The socket, or this half of it, was closed on our side.

    What to do: nothing, if another task closed it on purpose. Otherwise do not use a socket after
    its ``close()``, and do not send after its ``send_eof()``.
    """

    code: ClassVar[str] = "closed"


class BrokenError(SocketError, anyio.BrokenResourceError):
    """The connection is unusable: reset by the peer, lost, aborted, or a send was cut short.

    What to do: connect again. Only the protocol can tell whether the peer has received the last
    data.
    """

    code: ClassVar[str] = "broken"


class HalfCloseError(SocketError, NotImplementedError):
    """The wrapped stream cannot end one direction alone. The socket is unchanged.

    What to do: end the conversation as its protocol requires, or ``close()`` both directions.
    """

    code: ClassVar[str] = "half_close"


class IncompleteReadError(SocketError, anyio.IncompleteRead):
    """The peer ended before ``receive_exactly()`` or ``receive_until()`` had all their data.

    The data that arrived is kept: ``receive()`` returns it.

    What to do: treat the message as incomplete, and connect again.
    """

    code: ClassVar[str] = "incomplete_read"

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)  # AnyIO's __init__() takes no message


class DelimiterNotFoundError(SocketError, anyio.DelimiterNotFound):
    """The first ``max_bytes`` bytes do not contain the delimiter of ``receive_until()``.

    The data that arrived is kept: ``receive()`` returns it.

    What to do: increase ``max_bytes``, or close the socket, because the peer may use another
    protocol.
    """

    code: ClassVar[str] = "delimiter_not_found"

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)  # AnyIO's __init__() has its own message


def text_of(value: object) -> str:
    """The text of a value for messages; of an exception, without Python's ``[Errno N]``.

    Its length is limited, and characters that control a terminal are escaped.
    """
    if isinstance(value, OSError) and value.strerror:
        value = value.strerror
    try:
        text = shorten(str(value))
    except Exception:  # noqa: BLE001  # foreign code may raise anything
        text = ""
    return printable(text) or type(value).__name__


def printable(text: str) -> str:
    """Escape the characters that control a terminal."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def bad_option(name: str, value: object, why: str) -> InvalidOptionError:
    """The error for a bad value of an option, or of a part of an option."""
    return InvalidOptionError(f"bad value for {name}: {quote(value)}: {why}")


def cannot_listen(where: str, exc: OSError) -> ListenError:
    """The error for an address at which it is not possible to listen."""
    why = {
        errno.EADDRINUSE: "another socket listens there: close it, or use another port",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.EACCES: "this user has no permission: use a port of at least 1024",
    }.get(exc.errno or 0, text_of(exc))
    error = ListenError(f"cannot listen at {where}: {why}")
    error.errno = exc.errno
    error.__cause__ = fresh(exc)
    return error


def cannot_accept(where: str, exc: OSError) -> ListenError:
    """The error for a listener that cannot accept further connections."""
    error = ListenError(f"cannot accept connections at {where} any more: {text_of(exc)}")
    error.errno = exc.errno
    error.__cause__ = fresh(exc)
    return error


def broken(doing: str, exc: BaseException) -> BrokenError:
    """The error for a connection that broke while ``doing`` something. ``exc`` is its cause."""
    if isinstance(exc, BrokenError):
        return fresh(exc)
    cause = exc
    why = ""
    if isinstance(exc, anyio.BrokenResourceError) and exc.__cause__ is not None:
        cause = exc.__cause__
        if str(exc) != str(cause):  # TLS says more than its cause
            why = str(exc)
    if isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT:
        why = why or f"the kernel found that the peer has stopped answering: {text_of(cause)}"
    error = BrokenError(f"the connection broke while {doing}: {why or text_of(cause)}")
    error.__cause__ = fresh(cause)
    return error


def quote(value: object) -> str:
    """``repr(value)`` for messages: shortened, and without possible secrets.

    People paste whole URLs, and errors are logged. So a user, a password, a query and a fragment
    are left out. A password may contain any character.
    """
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # repr() may fail, as for an int of more than 4300 digits
        return f"({type(value).__name__})"
    # If a whole URL was escaped, its '@' is escaped too.
    user, at, rest = text.replace("%40", "@").rpartition("@")
    if at:
        scheme = re.match(r"\W*(?:[A-Za-z][A-Za-z0-9+.-]*://)?", user)
        text = f"{scheme[0] if scheme else ''}***@{rest}"
    if query := re.search("[?#]", text):
        text = text[: query.end()] + "***" + text[-1:].strip("?#")
    return shorten(text)


def shorten(text: str, most: int = 120) -> str:
    """Shorten a long text for messages to its beginning and its end."""
    tail = most // 3 - 3
    return text if len(text) <= most else f"{text[: most - tail - 3]}...{text[-tail:]}"
