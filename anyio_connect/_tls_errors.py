"""What a failed TLS handshake means, in words."""

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Mapping
from typing import Any

from ._copies import fresh
from ._errors import ConnectTimeoutError, TLSError

_NOT_TLS = (
    "the peer does not speak TLS on this port, or sent data in the clear before the handshake: "
    "check the port, or upgrade with start_tls() where the protocol says so"
)
_PERHAPS_NOT_TLS = (
    "the peer may not speak TLS on this port, or only once asked to, which start_tls() is for"
)
_NO_CIPHER = (
    "the peer refused every version and cipher we offered, or wants a client certificate: "
    "such things are set on an ssl_context"
)
_VERSION = "no TLS version in common: we offer 1.2 and newer unless an ssl_context says otherwise"
_WANTS_CERTIFICATE = (
    "the peer wants a client certificate: load one into an ssl_context with load_cert_chain()"
)
# Whether there was one is not known here: an ssl_context does not tell.
_OUR_CERTIFICATE = "the peer says that our client certificate {}; if we sent none, it wants one"
_NOT_DECRYPTED = (
    "the peer could not decrypt what it got from us: something in between changed it, "
    "or one of the two sides has a bug"
)
#: What an error advises, for who can say it in other terms.
TO_TRUST_IT = "pass an ssl_context that trusts it"
_UNKNOWN_CA = (
    "its certificate is signed by an authority that is not trusted here: "
    f"if it should be, {TO_TRUST_IT}"
)

#: OpenSSL's reason (`SSLError.reason`) for giving up -> what it means for somebody who connects.
_REASONS = {
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "HTTP_REQUEST": _NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": _NOT_TLS,
    "RECORD_LAYER_FAILURE": _NOT_TLS,
    "UNEXPECTED_MESSAGE": _NOT_TLS,
    "UNKNOWN_PROTOCOL": _NOT_TLS,
    "BAD_RECORD_TYPE": _NOT_TLS,
    "UNSUPPORTED_PROTOCOL": _VERSION,
    "NO_CIPHERS_AVAILABLE": "the ssl_context allows no cipher at all",
}

#: The alert by which the peer gave up (RFC 8446 section 6, and those before it that OpenSSL has
#: a name for) -> what it means for somebody who connects. A certificate's also come after the
#: handshake, which in TLS 1.3 is over for us before the peer has seen ours.
_ALERTS = {
    "unexpected_message": "the peer got a message from us that it did not expect by then",
    "bad_record_mac": _NOT_DECRYPTED,
    "decryption_failed": _NOT_DECRYPTED,
    "record_overflow": "the peer got a record from us that is longer than TLS allows",
    "decompression_failure": "the peer could not decompress what it got from us",
    "handshake_failure": _NO_CIPHER,
    "no_certificate": "the peer has no certificate to show",
    "bad_certificate": _OUR_CERTIFICATE.format("is corrupt, or signed wrongly"),
    "unsupported_certificate": _OUR_CERTIFICATE.format("is of a kind that it does not know"),
    "certificate_revoked": _OUR_CERTIFICATE.format("was revoked"),
    "certificate_expired": _OUR_CERTIFICATE.format("has expired, or is not valid yet"),
    "certificate_unknown": _OUR_CERTIFICATE.format("will not do"),
    "illegal_parameter": "the peer got a value from us that it takes for wrong",
    "unknown_ca": _OUR_CERTIFICATE.format("is signed by an authority that it does not trust"),
    "access_denied": _OUR_CERTIFICATE.format("does not let us in"),
    "decode_error": "the peer could not make sense of a message of ours",
    "decrypt_error": "the peer could not verify a signature of ours, or our end of the handshake",
    "protocol_version": _VERSION,
    "insufficient_security": (
        "the peer takes every cipher that we offered for too weak: they are set on an ssl_context"
    ),
    "internal_error": "the peer reports an error of its own",
    "inappropriate_fallback": (
        "the peer speaks a newer version of TLS than we offered, and takes that for an attack"
    ),
    "user_canceled": "the peer gave up, for a reason that has nothing to do with TLS",
    "no_renegotiation": "the peer does not want to negotiate again",
    "missing_extension": "the peer misses something in our offer that it cannot do without",
    "unsupported_extension": "the peer got an extension from us that has no place there",
    "certificate_unobtainable": "the peer could not fetch our client certificate",
    "unrecognized_name": "the peer does not serve the name that was asked for",
    "bad_certificate_status_response": (
        "the peer did not accept what we sent to show that a certificate was not revoked (OCSP)"
    ),
    "bad_certificate_hash_value": "the peer fetched another client certificate than we announced",
    "unknown_psk_identity": "the peer does not know the pre-shared key (PSK) that we named",
    "certificate_required": _WANTS_CERTIFICATE,
    "no_application_protocol": "the peer speaks none of the protocols in alpn",
}

#: X509_V_ERR_... (`SSLCertVerificationError.verify_code`) -> what is wrong with the certificate.
#: Braces take what the certificate says.
_VERIFY = {
    9: "its certificate is not valid before {notBefore}: check the clock of this machine",
    10: "its certificate expired on {notAfter}",
    18: f"its certificate is self-signed: if it should be trusted, {TO_TRUST_IT}",
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
    elif isinstance(exc, ssl.SSLZeroReturnError):
        what = "the peer ended TLS (close_notify) during the handshake, and does not say why"
    elif isinstance(exc, ssl.SSLError):
        what = _alert(exc) or _REASONS.get(_reason(exc))
    error = TLSError(f"no TLS with {where}: {what or exc}")
    if isinstance(exc, ssl.SSLError):
        error.errno = exc.errno
        for name in ("library", "reason"):
            setattr(error, name, getattr(exc, name, None))
    error.__cause__ = fresh(exc)
    return error


def explain(exc: ssl.SSLError) -> str:
    """What it means that a session was lost after its handshake."""
    # What else is wrong there has another cause than it would have in a handshake.
    return _alert(exc) or str(exc)


def _alert(exc: ssl.SSLError) -> str | None:
    """What it means, where it is an alert of the peer's that has a name."""
    # OpenSSL's name for it begins with the version that brought it, and spells one differently.
    alert = re.match(r"(?:SSLV3|TLSV1|TLSV13|SSL/TLS)_(?:ALERT_)?(\w+)$", _reason(exc))
    if alert is None:
        return None
    return _ALERTS.get(alert[1].lower().replace("cancelled", "canceled"))


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


#: How anything that a peer can say first begins: with an alert, or a handshake message.
_RECORDS = (b"\x15", b"\x16")


def handshake_ended(where: str, exc: Exception, said: bytes) -> TLSError:
    """The error for a connection that ended or broke before the handshake was done.

    ``said``: what the peer had said until then, or the beginning of that.
    """
    if said and not said.startswith(_RECORDS):
        what = _NOT_TLS
    else:
        lost = "was closed by the peer" if exc.__cause__ is None else f"broke ({exc.__cause__})"
        hint = "" if said else f": {_PERHAPS_NOT_TLS}"
        what = f"the connection {lost} during the handshake{hint}"
    error = TLSError(f"no TLS with {where}: {what}")
    error.__cause__ = fresh(exc.__cause__ or exc)
    return error


def handshake_timed_out(where: str, seconds: float) -> ConnectTimeoutError:
    """``connect_timeout`` ran out after TCP had connected."""
    error = ConnectTimeoutError(
        f"no TLS with {where}: the handshake did not finish within {seconds:g} seconds: "
        f"{_PERHAPS_NOT_TLS}; if it is merely slow, connect_timeout should be longer"
    )
    error.errno = errno.ETIMEDOUT
    return error
