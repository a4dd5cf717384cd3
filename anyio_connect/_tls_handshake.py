"""The TLS handshake of a client, over any transport."""

from __future__ import annotations

import ssl
from contextlib import suppress

from ._copies import fresh
from ._log import log
from ._tls import GONE, READ, ROUNDS, Records, TLSTransport
from ._tls_contexts import EngineError, make_engine, threads
from ._tls_errors import handshake_ended, handshake_failed
from ._transport import Transport


async def start_tls(
    transport: Transport,
    *,
    where: str,
    server_hostname: str,
    alpn: tuple[str, ...] | None = None,
    context: ssl.SSLContext | None = None,
    require_close_notify: bool = True,
) -> TLSTransport:
    """Make the client's TLS handshake over ``transport``, and return the encrypted transport.

    ``where`` is the name of the peer in messages. The certificate must be valid for
    ``server_hostname``, which is sent as SNI if it is a name and not an address. ``alpn`` applies
    to the default context only: a ``context`` is never changed, and has its own ALPN protocols.
    ``require_close_notify``: see :class:`TLSTransport`.

    Contexts and engines of another implementation may be slow, so their work runs in a thread. If
    the handshake fails or is cancelled, the transport is closed.

    :raises TLSError: the handshake failed, for any reason
    """
    # Names in certificates have no trailing dot (RFC 6125), and addresses have no zone.
    name = server_hostname.removesuffix(".").partition("%")[0]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine: ssl.SSLObject | None = None
    if log.debugs:
        log.debug("%s: TLS handshake, for %s", where, name)
    # The first bytes from the peer, for messages: the engine does not return an incomplete record.
    said = b""
    records = None if require_close_notify else Records()
    try:
        try:
            # Test the original: "." has no name left either, but must not skip the verification.
            wanted = name if server_hostname else None
            engine = await make_engine(context, alpn or (), incoming, outgoing, wanted)
            while True:
                finished = await _shake(engine)
                if ciphertext := outgoing.read():
                    await transport.send(ciphertext)
                if finished:
                    if log.debugs:
                        log.debug("%s: %s", where, _agreed(engine))
                    return TLSTransport(transport, engine, incoming, outgoing, records)
                ciphertext = await transport.receive(READ)
                if records is not None:
                    records.follow(ciphertext)
                said = said or ciphertext
                incoming.write(ciphertext)
        except EngineError as exc:
            error = handshake_failed(where, name, exc.cause, engine)
        except Exception as exc:  # from the transport; a foreign stream may raise anything
            why, said = await _last_words(transport, engine, incoming, said)
            if why is None:
                error = handshake_ended(where, exc, said)
            else:
                error = handshake_failed(where, name, why, engine)
        with suppress(*GONE):  # send the alert that tells the peer the reason
            transport.send_nowait(outgoing.read())
        with suppress(Exception):  # from a foreign stream, which counts as closed
            await transport.let_go()
    except BaseException:
        await transport.abort()
        raise
    raise fresh(error)


def _agreed(engine: ssl.SSLObject) -> str:
    """The TLS version and the cipher that a handshake agreed on, for the log."""
    try:
        cipher = engine.cipher()
        return f"{engine.version()} with {cipher and cipher[0]}"
    except Exception:  # from an engine of another implementation
        return "TLS"


async def _shake(engine: ssl.SSLObject) -> bool:
    """Continue the handshake; return whether it is complete. False: it needs more ciphertext."""

    def shake() -> bool:
        try:
            engine.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    try:
        # An engine of another implementation may let the system verify the certificate.
        return shake() if type(engine) is ssl.SSLObject else await threads.run(shake)
    except Exception as exc:
        raise EngineError(exc) from None


async def _last_words(
    transport: Transport, engine: ssl.SSLObject | None, incoming: ssl.MemoryBIO, said: bytes
) -> tuple[Exception | None, bytes]:
    """After the transport broke: give the engine the ciphertext that arrived before.

    Returns the engine's error, if any, which may be an alert with the reason; and the first bytes
    that the peer has sent.
    """
    try:
        for _ in range(ROUNDS):
            ciphertext = transport.receive_nowait(READ)
            if ciphertext is None or engine is None:
                break
            said = said or ciphertext
            incoming.write(ciphertext)
            await _shake(engine)
    except EngineError as exc:
        return exc.cause, said
    except Exception:  # from the transport, which has no more ciphertext
        return None, said
    return None, said
