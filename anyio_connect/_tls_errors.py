"""What a failed TLS handshake means, in words."""

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Mapping
from typing import Any

from ._errors import ConnectTimeoutError, TLSError

_NOT_TLS = (
    "the peer does not speak TLS on this port, or sent data in the clear before the handshake: "
    "check the port, or upgrade with start_tls() where the protocol says so"
)
_NO_CIPHER = (
    "the peer refused every version and cipher we offered, or wants a client certificate: "
    "such things are set on an ssl_context"
)
_VERSION = "no TLS version in common: we offer 1.2 and newer unless an ssl_context says otherwise"
_WANTS_CERTIFICATE = (
    "the peer wants a client certificate: load one into an ssl_context with load_cert_chain()"
)
_OUR_CERTIFICATE = "the peer turned our client certificate away"
_UNKNOWN_CA = (
    "its certificate is signed by an authority that is not trusted here: "
    "if it should be, pass an ssl_context that trusts it"
)

#: OpenSSL's reason (`SSLError.reason`) -> what it means for somebody who connects.
_REASONS = {
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "HTTP_REQUEST": _NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": _NOT_TLS,
    "RECORD_LAYER_FAILURE": _NOT_TLS,
    "UNEXPECTED_MESSAGE": _NOT_TLS,
    "UNKNOWN_PROTOCOL": _NOT_TLS,
    "BAD_RECORD_TYPE": _NOT_TLS,
    "UNSUPPORTED_PROTOCOL": _VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": _VERSION,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": _NO_CIPHER,
    "NO_CIPHERS_AVAILABLE": "the ssl_context allows no cipher at all",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "the peer speaks none of the protocols in alpn",
    "TLSV1_UNRECOGNIZED_NAME": "the peer does not serve the name that was asked for",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _WANTS_CERTIFICATE,
    "TLSV1_ALERT_UNKNOWN_CA": _OUR_CERTIFICATE,
    "SSLV3_ALERT_BAD_CERTIFICATE": _OUR_CERTIFICATE,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": _OUR_CERTIFICATE,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _OUR_CERTIFICATE,
    "TLSV1_ALERT_INTERNAL_ERROR": "the peer reports an error of its own",
}

#: X509_V_ERR_... (`SSLCertVerificationError.verify_code`) -> what is wrong with the certificate.
#: Braces take what the certificate says.
_VERIFY = {
    9: "its certificate is not valid before {notBefore}: check the clock of this machine",
    10: "its certificate expired on {notAfter}",
    18: "its certificate is self-signed: if it should be trusted, pass an ssl_context that "
    "does so",
    19: _UNKNOWN_CA,
    20: _UNKNOWN_CA,
    21: _UNKNOWN_CA,
    23: "its certificate was revoked",
    62: "its certificate is not for {wanted!r} but for {names}",
    64: "its certificate is not for {wanted!r} but for {names}",
}


def handshake_failed(
    where: str, wanted: str, exc: Exception, certificate: Mapping[str, Any]
) -> TLSError:
    """The error for a handshake that OpenSSL, or the context, gave up."""
    what = None
    if isinstance(exc, ssl.SSLCertVerificationError):
        # Not all of them are OpenSSL's: truststore's come without some attributes.
        what = (
            _VERIFY.get(getattr(exc, "verify_code", 0), "").format(
                wanted=wanted,
                names=_names(certificate),
                notBefore=certificate.get("notBefore", "a day to come"),
                notAfter=certificate.get("notAfter", "a day gone by"),
            )
            or f"its certificate was turned away: {getattr(exc, 'verify_message', exc)}"
        )
    elif isinstance(exc, ssl.SSLError):
        what = _REASONS.get(_reason(exc))
    error = TLSError(f"no TLS with {where}: {what or exc}")
    if isinstance(exc, ssl.SSLError):
        error.errno = exc.errno
        for name in ("library", "reason"):
            setattr(error, name, getattr(exc, name, None))
    error.__cause__ = exc
    return error


def explain(exc: ssl.SSLError) -> str:
    """What it means that a session was lost after its handshake."""
    reason = _reason(exc)
    # What else is wrong there has another cause than it would have in a handshake.
    return _REASONS.get(reason, str(exc)) if "_ALERT_" in reason else str(exc)


def _reason(exc: ssl.SSLError) -> str:
    """The name that OpenSSL has for what went wrong.

    Python knows only those that were there when it was made. OpenSSL's own text, which is the
    name in another form, is always there.
    """
    text = re.sub(r"^\[.*?\] | \(_ssl\.c:\d+\)$", "", exc.strerror or "")
    return getattr(exc, "reason", None) or text.upper().replace(" ", "_")


def _names(certificate: Mapping[str, Any]) -> str:
    """Whom a certificate is for, as far as it says."""
    if not certificate:
        return "other names"
    names = [name for _, name in certificate.get("subjectAltName", ())]
    return ", ".join(map(repr, names)) or (
        "nobody: it has no subjectAltName, for which a common name is no substitute"
    )


def handshake_ended(where: str, exc: Exception) -> TLSError:
    """The error for a connection that ended or broke before the handshake was done."""
    lost = "was closed by the peer" if exc.__cause__ is None else f"broke ({exc.__cause__})"
    error = TLSError(f"no TLS with {where}: the connection {lost} during the handshake")
    error.__cause__ = exc.__cause__ or exc
    return error


def handshake_timed_out(where: str, seconds: float) -> ConnectTimeoutError:
    """``connect_timeout`` ran out after TCP had connected."""
    error = ConnectTimeoutError(
        f"no TLS with {where}: the handshake did not finish within {seconds:g} seconds"
    )
    error.errno = errno.ETIMEDOUT
    return error
