"""TLS contexts that are the same in every process, so that all flights have the same length.

Ed25519 keys: their signatures have one length, and are quick to make.
"""

from __future__ import annotations

import functools
import ssl
import tempfile
from datetime import datetime, timezone
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

#: The name that the certificate is valid for.
NAMES = ("test.example",)
ADDRESSES = ("10.0.0.2",)

_BEGIN, _END = datetime(2000, 1, 1, tzinfo=timezone.utc), datetime(2999, 1, 1, tzinfo=timezone.utc)


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a client, of a server, and of a server without TLS 1.3."""
    authority, key = Ed25519PrivateKey.from_private_bytes(bytes(32)), _key(1)
    issuer = _name("simulated authority")
    root = _certificate(issuer, authority, issuer, authority, ca=True)
    leaf = _certificate(_name(NAMES[0]), key, issuer, authority, ca=False)
    client = ssl.create_default_context(cadata=root.public_bytes(Encoding.PEM).decode())
    server, old = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder, "server.pem")
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem.write_bytes(secret + leaf.public_bytes(Encoding.PEM))
        for context in (server, old):
            context.load_cert_chain(pem)
    server.num_tickets = 0
    old.options |= ssl.OP_NO_TICKET  # their length depends on the time
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    return client, server, old


def _key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name,
    key: Ed25519PrivateKey,
    issuer: x509.Name,
    signing: Ed25519PrivateKey,
    *,
    ca: bool,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), 1 + ca, _BEGIN, _END)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=ca,
                crl_sign=ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not ca:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in NAMES]
        names += [x509.IPAddress(ip_address(address)) for address in ADDRESSES]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signing, None)
