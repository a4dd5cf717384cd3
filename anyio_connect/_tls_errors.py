"""The messages of TLS errors: what OpenSSL's errors and the peer's alerts mean."""

from __future__ import annotations

import errno
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ._copies import fresh
from ._errors import CertificateError, ConnectTimeoutError, TLSError, quote, shorten
from ._threads import NoThreadError

_NOT_TLS = (
    "the peer does not speak TLS on this port, or sent data in the clear before the handshake: "
    "check the port; if the protocol begins without TLS, use start_tls()"
)
_PERHAPS_NOT_TLS = (
    "the peer may not speak TLS on this port, or may expect a command first: then use start_tls()"
)
_NO_CIPHER = (
    "the peer refused every version and cipher that we offered, or wants a client certificate: "
    "pass an ssl_context that has what the peer wants"
)
_VERSION = (
    "no TLS version in common: we offer 1.2 and newer, unless you pass an ssl_context with others"
)
_WANTS_CERTIFICATE = (
    "the peer wants a client certificate: load one into an ssl_context with load_cert_chain()"
)
# We cannot know whether we sent a client certificate: an ssl_context does not tell.
_OUR_CERTIFICATE = (
    "the peer says that our client certificate {}: load one that the peer accepts into an "
    "ssl_context, with load_cert_chain(); a peer may say this also if we sent no certificate"
)
_NOT_DECRYPTED = (
    "the peer could not decrypt what it got from us: something in between changed it, "
    "or one of the two sides has a bug"
)
#: The advice in an error. The command line replaces it by its own option.
TO_TRUST_IT = "pass an ssl_context that trusts it"
_TO_CHANGE_IT = "if the peer cannot be changed, an ssl_context can allow it: "
_TO_TAKE_WEAK_KEYS = "set_ciphers('DEFAULT:@SECLEVEL=1')"
_TOO_WEAK = f"the {{}} is too weak for this machine's OpenSSL: {_TO_CHANGE_IT}{_TO_TAKE_WEAK_KEYS}"

#: OpenSSL's reason for an error (`SSLError.reason`) -> what it means to a client.
_REASONS = {
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "HTTP_REQUEST": _NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": _NOT_TLS,
    "RECORD_LAYER_FAILURE": _NOT_TLS,
    "UNEXPECTED_MESSAGE": _NOT_TLS,
    "UNKNOWN_PROTOCOL": _NOT_TLS,
    "BAD_RECORD_TYPE": _NOT_TLS,
    "UNSUPPORTED_PROTOCOL": _VERSION,
    "NO_CIPHERS_AVAILABLE": "the ssl_context allows no cipher: allow some with set_ciphers()",
    "UNSAFE_LEGACY_RENEGOTIATION_DISABLED": (
        "the peer does not support secure renegotiation (RFC 5746), which protects TLS 1.2: "
        f"{_TO_CHANGE_IT}options |= 0x4 (ssl.OP_LEGACY_SERVER_CONNECT)"
    ),
    "DH_KEY_TOO_SMALL": _TOO_WEAK.format("peer's Diffie-Hellman key"),
    "EE_KEY_TOO_SMALL": _TOO_WEAK.format("key of the peer's certificate"),
    "CA_KEY_TOO_SMALL": _TOO_WEAK.format("key of the authority of the peer's certificate"),
    "CA_MD_TOO_WEAK": _TOO_WEAK.format("signature of the peer's certificate"),
    "WRONG_SIGNATURE_TYPE": _TOO_WEAK.format("peer's signature"),
    "NO_SUITABLE_SIGNATURE_ALGORITHM": _TOO_WEAK.format("peer's signature"),
}

#: The peer's alert (RFC 8446 section 6, and older ones that OpenSSL knows) -> what it means to a
#: client. Alerts about our certificate can arrive after the handshake: in TLS 1.3, our handshake
#: is complete before the peer has seen the certificate.
_ALERTS = {
    "unexpected_message": "the peer got a message from us that it did not expect at that point",
    "bad_record_mac": _NOT_DECRYPTED,
    "decryption_failed": _NOT_DECRYPTED,
    "record_overflow": "the peer got a record from us that is longer than TLS allows",
    "decompression_failure": "the peer could not decompress what it got from us",
    "handshake_failure": _NO_CIPHER,
    "no_certificate": "the peer has no certificate to show",
    "bad_certificate": _OUR_CERTIFICATE.format("is corrupt, or signed wrongly"),
    "unsupported_certificate": _OUR_CERTIFICATE.format("is of a type that is not supported"),
    "certificate_revoked": _OUR_CERTIFICATE.format("was revoked"),
    "certificate_expired": _OUR_CERTIFICATE.format("has expired, or is not valid yet"),
    "certificate_unknown": _OUR_CERTIFICATE.format("is not acceptable"),
    "illegal_parameter": "the peer got a value from us that it considers wrong",
    "unknown_ca": _OUR_CERTIFICATE.format("is signed by an authority that is not trusted there"),
    "access_denied": _OUR_CERTIFICATE.format("does not give us access"),
    "decode_error": "the peer could not decode a message from us",
    "decrypt_error": "the peer could not verify our signature, or our Finished message",
    "protocol_version": _VERSION,
    "insufficient_security": (
        "the peer considers every cipher that we offered too weak: "
        "pass an ssl_context with stronger ones, set by set_ciphers()"
    ),
    "internal_error": "the peer reports an error of its own",
    "inappropriate_fallback": (
        "the peer supports a newer version of TLS than we offered, and suspects that an attacker "
        "made us offer the older one"
    ),
    "user_canceled": "the peer gave up, for a reason that has nothing to do with TLS",
    "no_renegotiation": "the peer does not want to negotiate again",
    "missing_extension": "the peer requires an extension that our offer did not have",
    "unsupported_extension": "the peer got an extension from us that is not allowed there",
    "certificate_unobtainable": "the peer could not fetch our client certificate",
    "unrecognized_name": (
        "the peer does not serve the name that was asked for: check the host name, or sni"
    ),
    "bad_certificate_status_response": (
        "the peer did not accept our proof that a certificate is not revoked (OCSP)"
    ),
    "bad_certificate_hash_value": "the peer fetched another client certificate than we announced",
    "unknown_psk_identity": "the peer does not know the pre-shared key (PSK) that we named",
    "certificate_required": _WANTS_CERTIFICATE,
    "no_application_protocol": "the peer speaks none of the protocols in alpn",
}

#: X509_V_ERR_... (`SSLCertVerificationError.verify_code`) -> what is wrong with the certificate.
#: Details replace the braces.
_VERIFY = {
    9: "{early}: check the clock of this machine",
    10: "{late}",
    18: f"its certificate is self-signed: if it should be trusted, {TO_TRUST_IT}",
    19: "{unknown}",
    20: "{unknown}",
    21: "{unknown}",
    23: "its certificate was revoked",
    62: "its certificate is not for {wanted} but for {names}",
    64: "its certificate is not for {wanted} but for {names}",
    66: _TOO_WEAK.format("key of the peer's certificate"),
    67: _TOO_WEAK.format("key of the authority of the peer's certificate"),
    68: _TOO_WEAK.format("signature of the peer's certificate"),
}

#: Codes of OpenSSL 3 that occur only with the flag VERIFY_X509_STRICT. The standard library sets
#: it since Python 3.13.
_STRICT = range(80, 94)

_OF_STRICT = (
    "its certificate, or that of its issuer, violates RFC 5280, which Python enforces since 3.13: "
    "{said}; the peer should replace it; to accept it, pass an ssl_context whose verify_flags "
    "lack ssl.VERIFY_X509_STRICT"
)

#: How many certificates, or names in a certificate, a message shows.
_SHOWN = 4


def handshake_failed(where: str, wanted: str, exc: Exception, engine: object = None) -> TLSError:
    """The error for a handshake that failed in OpenSSL or in the context."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _certificate_rejected(where, wanted, exc, engine)
    what = None
    if isinstance(exc, ssl.SSLZeroReturnError):
        what = "the peer ended TLS (close_notify) during the handshake, and did not say why"
    elif isinstance(exc, ssl.SSLError):
        what = _alert(exc) or _REASONS.get(_reason(exc))
    error = TLSError(f"no TLS with {where}: {what or _said(exc)}")
    if isinstance(exc, ssl.SSLError):
        _take_after(error, exc)
    error.__cause__ = fresh(exc)
    return error


def _certificate_rejected(
    where: str, wanted: str, exc: ssl.SSLCertVerificationError, engine: object
) -> CertificateError:
    # Errors of truststore have the same class, but lack some attributes.
    code = getattr(exc, "verify_code", 0)
    said = _plain(str(getattr(exc, "verify_message", exc)))
    verified, sent = _chain(engine, "get_verified_chain"), _chain(engine, "get_unverified_chain")
    what = _OF_STRICT if code in _STRICT else _VERIFY.get(code)
    if what is None:
        what = "its certificate was rejected: {said}"
    text = what.format(
        said=said,
        wanted=quote(wanted),
        names=_names(verified[0]) if verified else "other names",
        early=_out_of_time(verified, "notBefore"),
        late=_out_of_time(verified, "notAfter"),
        unknown=_unknown(verified, sent),
    )
    error = CertificateError(f"no TLS with {where}: {text}")
    _take_after(error, exc)
    error.verify_code, error.verify_message = code, said
    error.__cause__ = fresh(exc)
    return error


def _take_after(error: TLSError, exc: ssl.SSLError) -> None:
    error.errno = exc.errno
    for name in ("library", "reason"):
        setattr(error, name, getattr(exc, name, None))


def _chain(engine: Any, which: str) -> Sequence[Mapping[str, Any]]:
    """The contents of the verified certificates, or of those sent. The peer's own comes first.

    ``getpeercert()`` returns a certificate only if it was accepted. The private methods that are
    called here exist since Python 3.10. Since 3.13 there are public ones, with other results.
    """
    try:
        found = getattr(engine._sslobj, which)() or ()  # noqa: SLF001
        return [certificate.get_info() for certificate in found]
    except Exception:  # from an engine of another implementation
        return ()


def _out_of_time(chain: Sequence[Mapping[str, Any]], bound: str) -> str:
    """Say which certificates have expired (``notAfter``) or are not valid yet, with the date."""
    found = []
    for n, certificate in enumerate(chain):
        when = certificate.get(bound, "")
        try:
            beyond = ssl.cert_time_to_seconds(when) - time.time()
        except ValueError:
            continue
        if (beyond < 0) == (bound == "notAfter"):
            whose = (
                f"the certificate of its issuer {_name(certificate)}" if n else "its certificate"
            )
            found.append(f"{whose} {_SINCE[bound]} {when}")
    return _and(found) or f"its certificate, or that of an issuer, {_NOT_SAID[bound]}"


_SINCE = {"notBefore": "is not valid before", "notAfter": "expired on"}
_NOT_SAID = {"notBefore": "is not valid yet", "notAfter": "has expired"}


def _unknown(verified: Sequence[Mapping[str, Any]], sent: Sequence[Mapping[str, Any]]) -> str:
    """Say who signed a certificate that is not trusted, and what may be the reason."""
    text = "its certificate is signed by an authority that is not trusted here"
    last = (verified or sent or ({},))[-1]
    if last.get("issuer") and last.get("issuer") != last.get("subject"):
        # The issuer's certificate is neither trusted here, nor did the peer send it.
        return (
            f"{text}: {_name(last, 'issuer')}; if that is an intermediate authority, the peer "
            f"should have sent its certificate too; if it should be trusted, {TO_TRUST_IT}"
        )
    named = f": {_name(last)}" if last else ""
    return f"{text}{named}; if it should be, {TO_TRUST_IT}"


def _name(certificate: Mapping[str, Any], field: str = "subject") -> str:
    """The most informative part of a distinguished name, quoted."""
    parts = dict(part for relative in certificate.get(field, ()) for part in relative)
    for key in ("commonName", "organizationalUnitName", "organizationName"):
        if key in parts:
            return quote(parts[key])
    return "(without a name)"


def check_count(value: object, most: int) -> None:
    """Check the result of ``write()``, which an engine of another implementation may get wrong.

    :raises TypeError: ``value`` is not a number from 1 to ``most``
    """
    if value not in range(1, most + 1):
        raise TypeError(
            f"write() of its engine returned {quote(value)}, not a number from 1 to {most}"
        )


def explain(exc: Exception) -> str:
    """Say why a session was lost after its handshake."""
    # _REASONS describes failures of handshakes only.
    return (isinstance(exc, ssl.SSLError) and _alert(exc)) or _said(exc)


def _said(exc: BaseException) -> str:
    """The text of an exception for which this module has no message."""
    try:
        text = _plain(str(exc))
    except Exception:
        text = ""
    if text and isinstance(exc, (OSError, NoThreadError)):
        return text
    return f"the ssl_context, or its engine, raised {type(exc).__name__}: {text}".removesuffix(
        ": "
    )


def _plain(text: str) -> str:
    """Shorten a foreign text for messages, and escape characters that control a terminal."""
    return shorten("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def _alert(exc: ssl.SSLError) -> str | None:
    """The meaning of ``exc`` if it is a known alert of the peer; otherwise None."""
    # OpenSSL's name begins with the TLS version that introduced the alert. It spells one alert,
    # user_canceled, in its own way.
    alert = re.match(r"(?:SSLV3|TLSV1|TLSV13|SSL/TLS)_(?:ALERT_)?(\w+)$", _reason(exc))
    if alert is None:
        return None
    return _ALERTS.get(alert[1].lower().replace("cancelled", "canceled"))


def _reason(exc: ssl.SSLError) -> str:
    """OpenSSL's name for the reason of an error.

    Python knows only the names of the OpenSSL version that it was built with. So if Python has no
    name, this is made from OpenSSL's text, which is the same name in another form.
    """
    text = re.sub(r"^\[.*?\] | \(_ssl\.c:\d+\)$", "", exc.strerror or "")
    return getattr(exc, "reason", None) or text.upper().replace(" ", "_")


def _names(certificate: Mapping[str, Any]) -> str:
    """The names that a certificate is valid for."""
    if not certificate:
        return "other names"
    names = [quote(name) for _, name in certificate.get("subjectAltName", ())]
    return _and(names, ", ") or (
        "no name: it has no subjectAltName, and a common name does not count"
    )


def _and(parts: list[str], between: str = ", and ") -> str:
    """A list as text. Of a long list, only the beginning is shown."""
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return between.join(parts[:_SHOWN]) + more


#: The first byte of a peer that speaks TLS: its first record is an alert or a handshake message.
_RECORDS = (b"\x15", b"\x16")


def handshake_ended(where: str, exc: Exception, said: bytes) -> TLSError:
    """The error for a connection that ended or broke before the handshake was complete.

    ``said``: the first bytes that the peer has sent.
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
    """The error for a ``connect_timeout`` that ran out during the handshake."""
    error = ConnectTimeoutError(
        f"no TLS with {where}: the handshake did not finish within {seconds:g} seconds: "
        f"{_PERHAPS_NOT_TLS}; if the peer is only slow, pass a longer connect_timeout"
    )
    error.errno = errno.ETIMEDOUT
    return error
