"""The handshake: which certificates it accepts, and what its errors say."""

from __future__ import annotations

import copy
import pickle
import re
import select
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trustme
import truststore
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from anyio_connect import CertificateError, ConnectError, TLSError, _tls_contexts
from anyio_connect._tls import TLSTransport
from anyio_connect._tls_handshake import start_tls
from support.peers import Peer, has_ipv6, listening
from support.sockets import needs_poll
from support.tls_peers import (
    NAME,
    TLS12,
    TLS13,
    Server,
    TLSPeer,
    Wire,
    authority,
    certificate,
    client_context,
    dial,
    failing,
    over_tcp,
    server_context,
)
from support.turns import all_blocked

each_version = pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])


def serving(context: ssl.SSLContext) -> Callable[[Peer], Awaitable[None]]:
    """A peer that makes the server's handshake."""
    return lambda peer: TLSPeer(peer, context).shake()


def saying(data: bytes) -> Callable[[Peer], Awaitable[None]]:
    """A peer that waits for the ClientHello, sends ``data``, and then reads to the end."""

    async def talk(peer: Peer) -> None:
        await peer.receive()
        await peer.send(data)
        while await peer.receive():
            pass

    return talk


def alert(description: int) -> bytes:
    """A fatal alert in the clear (RFC 5246 section 7.2)."""
    return bytes([21, 3, 3, 0, 2, 2, description])


def watching_names(context: ssl.SSLContext) -> list[Any]:
    """The server names (SNI) that clients ask ``context`` for."""
    names: list[Any] = []
    context.sni_callback = lambda engine, name, context: names.append(name)
    return names


# --- handshakes that succeed


@each_version
async def test_a_handshake(version: ssl.TLSVersion) -> None:
    async with over_tcp(server_context(version)) as (tls, peer):
        await tls.send(b"ping")
        assert await peer.receive() == b"ping"
        await peer.send(b"pong")
        assert await tls.receive() == b"pong"
        assert tls.extra(TLSAttribute.tls_version) == version.name.replace("_", ".")


async def test_the_attributes_are_anyios_and_those_of_the_transport() -> None:
    context = client_context(TLS12)
    context.set_alpn_protocols(["a", "b"])
    server = server_context(TLS12)
    server.set_alpn_protocols(["b"])
    async with over_tcp(server, context=context) as (tls, _):
        known = {
            key: tls.extra(value) for key, value in vars(TLSAttribute).items() if key[0] != "_"
        }
        assert known["alpn_protocol"] == "b"
        assert len(known["channel_binding_tls_unique"]) in (12, 32, 48)
        assert known["cipher"][1] == "TLSv1.2"
        assert ("DNS", NAME) in known["peer_certificate"]["subjectAltName"]
        assert known["peer_certificate_binary"][0] == 0x30
        assert known["server_side"] is False
        assert known["shared_ciphers"] is None
        assert known["standard_compatible"] is True
        assert isinstance(known["ssl_object"], ssl.SSLObject)
        assert known["tls_version"] == "TLSv1.2"
        raw = tls._transport.extra_attributes
        assert {*tls.extra_attributes} == {
            *raw,
            *(value for key, value in vars(TLSAttribute).items() if key[0] != "_"),
        }
        assert tls.extra(anyio.abc.SocketAttribute.remote_address)[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "asked_for"),
    [
        (NAME, NAME),
        (f"{NAME}.", NAME),  # the root's dot is in no certificate
        ("PEER.example", "PEER.example"),
        ("127.0.0.1", None),  # RFC 6066 section 3: no addresses
        pytest.param(
            "::1",
            None,
            marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6"),
        ),
        ("::1%lo", None),  # a zone is not part of the peer's name
    ],
)
async def test_the_name_that_is_asked_for_and_verified(host: str, asked_for: str | None) -> None:
    server = server_context()
    names = watching_names(server)
    async with over_tcp(server, server_hostname=host) as (tls, peer):
        await tls.send(b"x")
        assert await peer.receive() == b"x"
    assert names == [asked_for]


async def test_an_international_name_goes_out_as_it_is_given() -> None:
    name = "xn--bcher-kva.example"
    server = server_context(None, certificate(name))
    names = watching_names(server)
    async with over_tcp(server, server_hostname=name):
        assert names == [name]


async def test_truststore() -> None:
    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert isinstance(context, ssl.SSLContext)
    error = await failing(serving(server_context()), context=context)
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    context.load_verify_locations(cadata=authority().cert_pem.bytes().decode())
    async with over_tcp(server_context(), context=context) as (tls, peer):
        await tls.send(b"x")
        assert await peer.receive() == b"x"


# --- contexts


async def test_a_task_that_is_cancelled_while_a_default_context_is_built_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on, returned = threading.Event(), threading.Event(), threading.Event()

    def build(_: tuple[str, ...]) -> ssl.SSLContext:
        begun.set()
        go_on.wait(10)
        returned.set()
        return client_context()

    monkeypatch.setattr(_tls_contexts, "_contexts", _tls_contexts.Contexts())
    monkeypatch.setattr(_tls_contexts, "build_context", build)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_tls_contexts._contexts.get, ())
        assert await anyio.to_thread.run_sync(begun.wait, 10)
        tasks.cancel_scope.cancel()
    assert not returned.is_set()
    go_on.set()
    assert returned.wait(10)
    # The context that the thread has built is kept, so this function is not called.
    monkeypatch.setattr(_tls_contexts, "build_context", lambda _: None)
    assert isinstance(await _tls_contexts._contexts.get(()), ssl.SSLContext)


async def test_tasks_that_want_a_default_context_at_the_same_time_share_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callers = 20
    everybody_waits = threading.Event()
    built: list[ssl.SSLContext] = []
    got: list[ssl.SSLContext] = []

    def build(_: tuple[str, ...]) -> ssl.SSLContext:
        everybody_waits.wait(10)
        built.append(client_context())
        return built[-1]

    async def want() -> None:
        got.append(await _tls_contexts._contexts.get(()))

    monkeypatch.setattr(_tls_contexts, "_contexts", _tls_contexts.Contexts())
    monkeypatch.setattr(_tls_contexts, "build_context", build)
    async with anyio.create_task_group() as tasks:
        for _ in range(callers):
            tasks.start_soon(want)
        await all_blocked()
        everybody_waits.set()
    assert len(built) == 1
    assert got == built * callers


async def test_the_default_contexts_are_built_once_and_kept_apart() -> None:
    one, two = await _tls_contexts._contexts.get(()), await _tls_contexts._contexts.get(("h2",))
    assert one is await _tls_contexts._contexts.get(())
    assert two is await _tls_contexts._contexts.get(("h2",))
    assert one is not two
    for context in (one, two):
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version == TLS12


async def test_alpn_with_the_default_context(monkeypatch: pytest.MonkeyPatch) -> None:
    authority().configure_trust(await _tls_contexts._contexts.get(("x", "tls-test")))
    server = server_context()
    server.set_alpn_protocols(["tls-test"])
    async with over_tcp(server, context=None, alpn=("x", "tls-test")) as (tls, _):
        assert tls.extra(TLSAttribute.alpn_protocol) == "tls-test"
        assert tls.alpn == "tls-test"


async def test_a_users_context_is_not_changed() -> None:
    context = client_context()

    def settings() -> list[Any]:
        return [
            context.options,
            context.verify_mode,
            context.verify_flags,
            context.check_hostname,
            context.minimum_version,
            context.maximum_version,
            context.get_ciphers(),
            context.sni_callback,
        ]

    before = settings()
    async with over_tcp(server_context(), context=context) as (tls, _):
        await tls.aclose()
    assert settings() == before


# --- handshakes that fail


def long_ago(*names: str) -> trustme.LeafCert:
    return certificate(
        *names,
        not_before=datetime(2001, 1, 1, tzinfo=timezone.utc),
        not_after=datetime(2002, 3, 4, tzinfo=timezone.utc),
    )


def not_yet(*names: str) -> trustme.LeafCert:
    return certificate(*names, not_before=datetime(2999, 1, 2, tzinfo=timezone.utc))


def self_signed(tmp_path: Path) -> ssl.SSLContext:
    own, path = trustme.CA(), str(tmp_path / "own.pem")
    own.private_key_pem.write_to_path(path)
    own.cert_pem.write_to_path(path, append=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def without_alternative_names(common_name: str) -> trustme.LeafCert:
    """A certificate without subjectAltName, as before RFC 2818. trustme cannot make one."""
    named = certificate(NAME, common_name=common_name)
    old = x509.load_pem_x509_certificate(named.cert_chain_pems[0].bytes())
    builder = x509.CertificateBuilder(
        old.issuer,
        old.subject,
        old.public_key(),
        old.serial_number,
        old.not_valid_before_utc,
        old.not_valid_after_utc,
    )
    for extension in old.extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            builder = builder.add_extension(extension.value, extension.critical)
    key = load_pem_private_key(authority().private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return trustme.LeafCert(named.private_key_pem.bytes(), pem, [])


@pytest.mark.parametrize(
    ("common_name", "host"), [("127.0.0.1", "127.0.0.1"), ("else.example", NAME)]
)
async def test_a_certificate_without_names(common_name: str, host: str) -> None:
    server = server_context(None, without_alternative_names(common_name))
    error = await failing(serving(server), server_hostname=host)
    assert str(error) == (
        f"no TLS with the peer: its certificate is not for '{host}' but for no name: "
        "it has no subjectAltName, and a common name does not count"
    )


async def test_the_default_context_ignores_common_names() -> None:
    """OpenSSL would accept one, if the certificate has no other name."""
    alpn = ("no-common-name",)  # so that the context is this test's own
    authority().configure_trust(await _tls_contexts._contexts.get(alpn))
    server = server_context(None, without_alternative_names(NAME))
    error = await failing(serving(server), context=None, alpn=alpn)
    assert str(error).startswith(f"no TLS with the peer: its certificate is not for '{NAME}'")


@each_version
@pytest.mark.parametrize(
    ("cert", "host", "code", "message"),
    [
        (long_ago, NAME, 10, r"its certificate expired on Mar +4 00:00:00 2002 GMT$"),
        (not_yet, NAME, 9, r"not valid before Jan +2 00:00:00 2999 GMT: check the clock"),
        (certificate, "else.example", 62, f"not for 'else.example' but for '{NAME}', '192.0.2.1'"),
        (certificate, "192.0.2.2", 64, f"not for '192.0.2.2' but for '{NAME}', '192.0.2.1'"),
    ],
)
async def test_a_certificate_that_is_rejected(
    version: ssl.TLSVersion,
    cert: Callable[..., trustme.LeafCert],
    host: str,
    code: int,
    message: str,
) -> None:
    server = server_context(version, cert(NAME, "192.0.2.1"))
    error = await failing(serving(server), server_hostname=host)
    assert isinstance(error, ConnectError)
    assert isinstance(error, ssl.SSLError)
    assert str(error).startswith("no TLS with the peer: its certificate ")
    assert re.search(message, str(error))
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    assert error.__cause__.verify_code == code
    assert (error.library, error.reason) == ("SSL", "CERTIFICATE_VERIFY_FAILED")


class Issued:
    """A certificate and its key, signed by an issuer or by itself."""

    def __init__(
        self,
        name: str,
        issuer: Issued | None = None,
        *,
        ca: bool = True,
        dates: tuple[int, int] = (2001, 2999),
        names: Sequence[str] = (NAME,),
        bits: int | None = None,
    ) -> None:
        self.key: Any = ec.generate_private_key(ec.SECP256R1())
        if bits is not None:
            self.key = rsa.generate_private_key(65537, bits)
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.issuer = issuer or self
        first, last = (datetime(year, 1, 2, tzinfo=timezone.utc) for year in dates)
        key_of = x509.AuthorityKeyIdentifier.from_issuer_public_key
        builder = (
            x509.CertificateBuilder(
                self.issuer.name, self.name, self.key.public_key(), 1, first, last
            )
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(key_of(self.issuer.key.public_key()), critical=False)
        )
        if not ca:
            alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternative, critical=False)
        signed = builder.sign(self.issuer.key, hashes.SHA256())
        self.pem = signed.public_bytes(Encoding.PEM)

    def serve(self, *also: Issued) -> Callable[[Peer], Awaitable[None]]:
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        trustme.LeafCert(key, self.pem, [one.pem for one in also]).configure_cert(context)
        return serving(context)

    def trusted(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.pem.decode())
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


@pytest.mark.parametrize(
    ("dates", "code", "message"),
    [
        (
            (2001, 2002),
            10,
            "expired on Jan  2 00:00:00 2002 GMT",
        ),
        (
            (2998, 2999),
            9,
            "is not valid before Jan  2 00:00:00 2998 GMT: check the clock of this machine",
        ),
    ],
    ids=["expired", "not yet"],
)
async def test_an_issuer_that_has_expired_or_is_not_valid_yet(
    dates: tuple[int, int], code: int, message: str
) -> None:
    root = Issued("Root")
    middle = Issued("Middle", root, dates=dates)
    leaf = Issued("Leaf", middle, ca=False)
    error = await failing(leaf.serve(middle), context=root.trusted())
    assert str(error) == f"no TLS with the peer: the certificate of its issuer 'Middle' {message}"
    assert isinstance(error, CertificateError)
    assert error.verify_code == code


async def test_every_certificate_that_has_expired_is_named() -> None:
    root = Issued("Root")
    middle = Issued("Middle", root, dates=(2001, 2002))
    leaf = Issued("Leaf", middle, ca=False, dates=(2001, 2003))
    error = await failing(leaf.serve(middle), context=root.trusted())
    assert str(error) == (
        "no TLS with the peer: its certificate expired on Jan  2 00:00:00 2003 GMT, "
        "and the certificate of its issuer 'Middle' expired on Jan  2 00:00:00 2002 GMT"
    )


async def test_an_intermediate_certificate_that_the_peer_does_not_send() -> None:
    root = Issued("Root")
    middle = Issued("Middle", root)
    leaf = Issued("Leaf", middle, ca=False)
    error = await failing(leaf.serve(), context=root.trusted())
    assert str(error) == (
        "no TLS with the peer: its certificate is signed by an authority that is not trusted "
        "here: 'Middle'; if that is an intermediate authority, the peer should have sent its "
        "certificate too; if it should be trusted, pass an ssl_context that trusts it"
    )


@pytest.mark.parametrize("sent", ["root", "middle"])
async def test_the_authority_that_is_not_trusted_is_named(sent: str) -> None:
    root = Issued("Own root")
    middle = Issued("Middle", root)
    leaf = Issued("Leaf", middle, ca=False)
    chain = (middle, root) if sent == "root" else (middle,)
    error = await failing(leaf.serve(*chain), context=Issued("Other root").trusted())
    assert "an authority that is not trusted here: 'Own root'; if " in str(error)


async def test_a_certificate_that_is_too_lax_for_python_313() -> None:
    root = Issued("Root")
    context = root.trusted()
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    error = await failing(Issued("Leaf", root, ca=False).serve(), context=context)
    assert "violates RFC 5280, which Python enforces since 3.13: " in str(error)
    assert "verify_flags lack ssl.VERIFY_X509_STRICT" in str(error)
    assert isinstance(error, CertificateError)
    assert error.verify_message in str(error)


async def test_a_key_that_is_too_weak() -> None:
    root = Issued("Root")
    leaf = Issued("Leaf", root, ca=False, bits=1024)
    context = root.trusted()
    context.set_ciphers("DEFAULT:@SECLEVEL=2")
    error = await failing(leaf.serve(), context=context)
    assert "the key of the peer's certificate is too weak for this machine's OpenSSL" in str(error)
    assert "SECLEVEL=1" in str(error)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("UNSAFE_LEGACY_RENEGOTIATION_DISABLED", "the peer does not support secure renegotiation"),
        ("DH_KEY_TOO_SMALL", "the peer's Diffie-Hellman key is too weak"),
        ("CA_MD_TOO_WEAK", "the signature of the peer's certificate is too weak"),
        ("CA_KEY_TOO_SMALL", "the key of the authority of the peer's certificate is too weak"),
    ],
)
async def test_a_legacy_server(reason: str, message: str) -> None:
    """Python cannot run such an old server, so the context raises the errors of OpenSSL."""

    class Old(ssl.SSLContext):
        def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
            raise ssl.SSLError(1, f"[SSL: {reason}] {reason.lower().replace('_', ' ')} (_ssl.c:1)")

    error = await failing(saying(b""), context=Old(ssl.PROTOCOL_TLS_CLIENT))
    assert message in str(error)
    assert "an ssl_context can allow it" in str(error)


async def test_the_names_in_a_certificate_cannot_make_a_message_long_or_dangerous() -> None:
    long = ".".join("xyz"[n] * 60 for n in range(3))
    names = ["\x1b[2Jevil.example", *(f"{n}.{long}.example" for n in range(500))]
    root = Issued("Root")
    leaf = Issued("Leaf", root, ca=False, names=names)
    error = await failing(leaf.serve(), context=root.trusted())
    assert str(error).isprintable()
    assert "and 497 more" in str(error)
    assert len(str(error)) < 1000


async def test_a_rejected_certificate_is_caught_as_the_standard_librarys_error() -> None:
    server = server_context(None, long_ago(NAME))
    error = await failing(serving(server))
    assert isinstance(error, CertificateError)
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert (error.code, error.verify_code) == ("certificate_rejected", 10)
    assert error.verify_message == "certificate has expired"
    assert error.errno == ssl.SSL_ERROR_SSL
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert vars(same) == vars(error)
        assert (type(same), same.errno) == (CertificateError, error.errno)


async def test_another_failed_handshake_is_no_rejected_certificate() -> None:
    error = await failing(saying(alert(40)))
    assert not isinstance(error, CertificateError)


async def test_a_certificate_of_an_unknown_authority() -> None:
    # The default context does not trust the tests' authority.
    error = await failing(serving(server_context()), context=None)
    assert "signed by an authority that is not trusted here" in str(error)
    assert "pass an ssl_context" in str(error)
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)


async def test_a_self_signed_certificate(tmp_path: Path) -> None:
    error = await failing(serving(self_signed(tmp_path)))
    assert "its certificate is self-signed" in str(error)
    assert "pass an ssl_context" in str(error)


@pytest.mark.parametrize("code", [None, 10, 20, 9999])
async def test_a_verdict_that_is_not_openssls(code: int | None) -> None:
    """truststore lets the system verify, where it can, and makes the exception itself."""

    class Elsewhere(ssl.SSLContext):
        def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
            exc = ssl.SSLCertVerificationError("the system says no")
            if code is not None:
                exc.verify_code, exc.verify_message = code, "the system says no"
            raise exc

    error = await failing(saying(b""), context=Elsewhere(ssl.PROTOCOL_TLS_CLIENT))
    told = {
        10: "its certificate, or that of an issuer, has expired",
        20: "an authority that is not trusted here",
    }
    assert told.get(code or 0, "the system says no") in str(error)
    assert type(error.__cause__) is ssl.SSLCertVerificationError
    assert error.reason is None


async def test_the_peer_gets_an_alert_before_the_connection_ends() -> None:
    heard: list[object] = []

    async def shake(peer: Peer) -> None:
        try:
            await TLSPeer(peer, server_context(TLS12)).shake()
        except ssl.SSLError as exc:
            heard.append(exc.reason)
        heard.append(await peer.receive())

    error = await failing(shake, context=None)
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    assert heard == ["TLSV1_ALERT_UNKNOWN_CA", b""]  # then an end, not a reset


NOT_TLS = (
    "the peer does not speak TLS on this port, or sent data in the clear before the handshake"
)


@pytest.mark.parametrize(
    "banner",
    [
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"220 mail.example ESMTP\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"* OK IMAP4rev1\r\n",
        b"-ERR unknown command\r\n",
        b"J\0\0\0\x0a8.0.36\0",  # MySQL
        b"\0" * 100,
        b"\xff" * 100,
        b"\x16\x03\x03\xff\xff" + b"\0" * 100,  # longer than a record can be
        b"\x16\x03\x03\0\x04\x63\0\0\0",  # a message that TLS does not have
        b"\x17\x03\x03\0\x05hello",
    ],
)
async def test_a_peer_that_does_not_speak_tls(banner: bytes) -> None:
    error = await failing(saying(banner))
    assert NOT_TLS in str(error)
    assert isinstance(error.__cause__, ssl.SSLError)


async def test_data_in_the_clear_before_the_handshake_makes_it_fail() -> None:
    async with listening() as listener:
        transport = dial(listener.address)
        peer = await listener.accept()
        await peer.send(b"220 go ahead\r\n" + b"250 INJECTED\r\n")
        while not (await transport.receive(1)).endswith(b"\n"):
            pass

        async def shake() -> None:
            with suppress(anyio.EndOfStream, ssl.SSLError, OSError):
                await TLSPeer(peer, server_context()).shake()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shake)
            with pytest.raises(TLSError, match=NOT_TLS):
                await start_tls(
                    transport, where="x", server_hostname=NAME, context=client_context()
                )


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (40, "refused every version and cipher that we offered, or wants a client certificate"),
        (
            42,
            "our client certificate is corrupt, or signed wrongly: load one that the peer accepts",
        ),
        (45, "our client certificate has expired, or is not valid yet: load one"),
        (46, "a peer may say this also if we sent no certificate"),
        (48, "our client certificate is signed by an authority that is not trusted there"),
        (70, "no TLS version in common"),
        (80, "reports an error of its own"),
        (112, "does not serve the name that was asked for"),
        (120, "speaks none of the protocols in alpn"),
    ],
)
async def test_the_peers_alert(description: int, message: str) -> None:
    error = await failing(saying(alert(description)))
    assert message in str(error)
    assert isinstance(error.__cause__, ssl.SSLError)


#: The alerts in the table of RFC 8446 section 6, which has those of earlier versions too. Two are
#: left out: close_notify, and export_restriction (60), which came only with export ciphers.
ALERTS = [
    *(10, 20, 21, 22, 30, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 70, 71, 80, 86),
    *(90, 100, 109, 110, 111, 112, 113, 114, 115, 116, 120),
]


@pytest.mark.parametrize("description", ALERTS)
async def test_every_alert_is_put_into_words(description: int) -> None:
    error = await failing(saying(alert(description)))
    assert re.match(r"no TLS with the peer: (the peer|no TLS version) ", str(error))
    assert "SSL" not in str(error)
    assert isinstance(error.__cause__, ssl.SSLError)
    assert error.reason == error.__cause__.reason


async def test_an_alert_without_a_sentence_of_ours_is_shown_as_it_is() -> None:
    error = await failing(saying(alert(60)))  # export_restriction
    assert str(error) == f"no TLS with the peer: {error.__cause__}"
    assert "export restriction" in str(error)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(TLS13, TLS12), (TLS12, TLS13)], ids=["old-peer", "new-peer"]
)
async def test_no_version_in_common(ours: ssl.TLSVersion, theirs: ssl.TLSVersion) -> None:
    error = await failing(serving(server_context(theirs)), context=client_context(ours))
    assert "no TLS version in common" in str(error)


async def test_no_cipher_in_common() -> None:
    server, client = server_context(TLS12), client_context(TLS12)
    server.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    client.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    error = await failing(serving(server), context=client)
    assert "the peer refused every version and cipher that we offered" in str(error)


async def test_a_client_certificate_is_wanted_in_tls_12() -> None:
    server = server_context(TLS12)
    server.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(server)
    error = await failing(serving(server))
    assert "wants a client certificate" in str(error)


async def test_a_client_certificate_is_wanted_in_tls_13() -> None:
    # In TLS 1.3, the client is done before the server sees that there is no certificate
    # (RFC 8446 4.4.2.4).
    server = server_context(TLS13)
    server.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(server)
    async with listening() as listener:
        transport = dial(listener.address)
        peer = TLSPeer(await listener.accept(), server)

        async def shake() -> None:
            with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
                await peer.shake()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shake)
            tls = await start_tls(
                transport, where="x", server_hostname=NAME, context=client_context()
            )
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await tls.receive()
            assert isinstance(caught.value.__cause__, ssl.SSLError)
            assert caught.value.__cause__.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
            assert "wants a client certificate" in str(caught.value)
        await tls.abort()


async def test_a_client_certificate() -> None:
    server, client = server_context(), client_context()
    server.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(server)
    certificate("me@example.com").configure_cert(client)
    async with over_tcp(server, context=client) as (tls, peer):
        await tls.send(b"x")
        assert await peer.receive() == b"x"


async def test_the_peer_ends_the_connection_in_the_handshake() -> None:
    async def end(peer: Peer) -> None:
        await peer.receive()
        peer.fin()

    error = await failing(end)
    assert str(error) == (
        "no TLS with the peer: the connection was closed by the peer during the handshake: "
        "the peer may not speak TLS on this port, or may expect a command first: then use "
        "start_tls()"
    )
    assert isinstance(error.__cause__, anyio.EndOfStream)


@pytest.mark.parametrize("text", [b"?", b"no\r\n", b"-ERR"])
async def test_the_peer_says_something_short_that_is_no_tls_and_ends(text: bytes) -> None:
    """The text is shorter than the head of a record, so OpenSSL waits for the rest."""

    async def refuse(peer: Peer) -> None:
        await peer.receive()
        await peer.send(text[:1])
        await peer.send(text[1:])
        peer.fin()

    error = await failing(refuse)
    assert NOT_TLS in str(error)
    assert isinstance(error.__cause__, anyio.EndOfStream)


@pytest.mark.parametrize("beginning", [alert(40)[:6], b"\x16\x03\x03\0\x04\x02\0"])
async def test_the_peer_ends_the_connection_after_it_has_begun_to_speak_tls(
    beginning: bytes,
) -> None:
    async def begin(peer: Peer) -> None:
        await peer.receive()
        await peer.send(beginning)
        peer.fin()

    error = await failing(begin)
    assert str(error) == (
        "no TLS with the peer: the connection was closed by the peer during the handshake"
    )


async def test_the_peer_ends_tls_in_the_handshake() -> None:
    error = await failing(saying(bytes([21, 3, 3, 0, 2, 1, 0])))
    assert str(error) == (
        "no TLS with the peer: "
        "the peer ended TLS (close_notify) during the handshake, and did not say why"
    )
    assert isinstance(error.__cause__, ssl.SSLZeroReturnError)


@needs_poll
@pytest.mark.parametrize(
    ("said", "message"),
    [(alert(112), "does not serve the name that was asked for"), (b"no\r\n", NOT_TLS)],
)
async def test_the_peers_last_words_are_read_before_its_reset(said: bytes, message: str) -> None:
    async with listening() as listener:
        transport = dial(listener.address)
        peer = await listener.accept()
        await peer.send(said)
        peer.rst()
        poll = select.poll()
        poll.register(transport.extra(SocketAttribute.raw_socket), 0)
        assert poll.poll(5000)  # a hang-up: the reset has arrived
        with pytest.raises(TLSError, match=message):
            await start_tls(transport, where="x", server_hostname=NAME, context=client_context())


async def test_the_peer_resets_the_connection_in_the_handshake() -> None:
    async def reset(peer: Peer) -> None:
        await peer.receive()
        peer.rst()

    error = await failing(reset)
    assert "the connection broke" in str(error)
    assert "during the handshake: the peer may not speak TLS on this port" in str(error)
    assert isinstance(error.__cause__, ConnectionResetError)


async def test_a_name_that_cannot_be_verified() -> None:
    error = await failing(saying(b""), server_hostname=".")
    assert isinstance(error.__cause__, ValueError)


# --- cancelled


@pytest.mark.parametrize("waits_for", ["room", "the peer"])
async def test_a_cancelled_handshake_drops_the_connection(waits_for: str) -> None:
    wire = Wire()
    if waits_for == "room":
        wire.make_room(10)
    async with anyio.create_task_group() as tasks:

        async def shake() -> TLSTransport:
            return await start_tls(wire, where="x", server_hostname=NAME)

        await _tls_contexts._contexts.get(())  # otherwise, a thread would build it meanwhile
        tasks.start_soon(shake)
        await all_blocked()
        assert wire.sent
        assert wire.calls == []
        tasks.cancel_scope.cancel()
    assert wire.calls == ["abort"]


async def test_a_handshake_in_a_cancelled_scope_drops_the_connection() -> None:
    wire = Wire()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await start_tls(wire, where="x", server_hostname=NAME)
    assert scope.cancelled_caught
    assert wire.calls == ["abort"]
    assert not wire.sent


async def test_a_handshake_that_arrives_byte_by_byte() -> None:
    async def drip(peer: Peer) -> None:
        secure = TLSPeer(peer, server_context())
        whole = peer.send

        async def send(data: bytes) -> None:
            for n in range(len(data)):
                await whole(data[n : n + 1])

        peer.send = send  # type: ignore[method-assign]
        await secure.shake()
        assert await secure.receive() == b"x"

    async with listening() as listener:
        transport = dial(listener.address)
        peer = await listener.accept()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drip, peer)
            tls = await start_tls(
                transport, where="x", server_hostname=NAME, context=client_context()
            )
            await tls.send(b"x")
        await tls.abort()


@pytest.mark.parametrize("missing", [0, 1])
async def test_a_record_that_arrives_with_the_end_of_the_handshake_is_read(missing: int) -> None:
    """With require_close_notify=False, an end in the middle of this record is an error."""
    wire, server = Wire(), Server(server_context(ssl.TLSVersion.TLSv1_2))
    shaken: list[TLSTransport] = []

    async def shake() -> None:
        tls = await start_tls(
            wire,
            where="x",
            server_hostname=NAME,
            context=client_context(),
            require_close_notify=False,
        )
        shaken.append(tls)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shake)
        done = False
        while not done:
            await all_blocked()
            server.incoming.write(wire.take())
            done = server.shake()
            if not done:
                wire.arrive(server.outgoing.read())
        said = server.outgoing.read() + server.encrypt(b"hello")
        wire.arrive(said[: len(said) - missing])
    wire.arrive(ends=anyio.EndOfStream())
    (tls,) = shaken
    if missing:
        with pytest.raises(anyio.BrokenResourceError, match="in the middle of a TLS record"):
            await tls.receive()
    else:
        assert await tls.receive() == b"hello"
        with pytest.raises(anyio.EndOfStream):
            await tls.receive()
