"""TLS from the start."""

from __future__ import annotations

from conformance.scenario import MODES, scenario

for _mode, _flag in MODES.items():
    scenario(
        f"tls{_mode}",
        "TLS from the first byte: data goes both ways, we end first, and the peer answers.",
        f"""
        connect tls {_flag}
        quiet opened
        peer handshake
        opened
        peer sni
        secure
        upgraded
        info remote
        write hello
        peer read 5
        peer send hi
        read 2
        end
        peer end
        peer send last
        read 4
        peer notify
        peer fin
        read
        closed
        peer end
        """,
    )
    scenario(
        f"tls, close{_mode}",
        "close() ends TLS and then TCP.",
        f"""
        connect tls {_flag}
        peer handshake
        opened
        close
        closed
        peer end
        peer end
        """,
    )
    scenario(
        f"tls, close_notify alone{_mode}",
        "The peer ends TLS, and TCP stays open.",
        f"""
        connect tls {_flag}
        peer handshake
        opened
        peer notify
        read
        {"quiet closed" if _flag else "closed"}
        """,
    )
    scenario(
        f"tls, close_notify alone while a read is pending{_mode}",
        "The peer ends TLS while a read waits.",
        f"""
        connect tls {_flag}
        peer handshake
        opened
        begin read
        quiet read
        peer notify
        finish read
        """,
    )
    scenario(
        f"tls, close_notify alone, then a write{_mode}",
        "The peer ends TLS, which a read notices; then we write.",
        f"""
        connect tls {_flag}
        peer handshake
        opened
        peer notify
        read
        write x
        """,
    )
scenario(
    "tls, write much",
    "A long write over TLS.",
    """
    connect tls
    peer handshake
    begin flood FLOOD
    quiet flood FLOOD
    peer read FLOOD
    finish flood FLOOD
    """,
)
scenario(
    "tls, close while a write is pending",
    "close() finishes a write in flight, and then ends TLS.",
    """
    connect tls
    peer handshake
    begin flood FLOOD
    quiet flood FLOOD
    begin close
    peer read FLOOD
    finish flood FLOOD
    finish close
    peer end
    """,
)
scenario(
    "tls, close while a read is pending",
    "close() while a read waits.",
    """
    connect tls
    peer handshake
    opened
    begin read
    quiet read
    close
    finish read
    peer end
    """,
)
scenario(
    "tls, abort",
    "The writable is aborted: TLS must not end cleanly.",
    """
    connect tls
    peer handshake
    opened
    write hello
    peer read 5
    abort
    peer torn
    """,
)
scenario(
    "tls, cancel",
    "The readable is cancelled; writing goes on.",
    """
    connect tls
    peer handshake
    opened
    cancel
    write hello
    peer read 5
    """,
)
for _certificate, _intent in {
    "other-name": "The certificate is for another name.",
    "expired": "The certificate has expired.",
    "unknown-authority": "The certificate is signed by an authority that is not trusted.",
}.items():
    scenario(
        f"tls, refused certificate, {_certificate}",
        _intent,
        f"""
        connect tls
        peer handshake {_certificate}
        opened
        closed
        read
        write x
        """,
    )
    scenario(
        f"starttls, refused certificate, {_certificate}",
        _intent,
        f"""
        connect starttls
        opened
        startTls
        peer handshake {_certificate}
        opened
        closed
        old closed
        read
        write x
        """,
    )
scenario(
    "tls, not spoken",
    "The peer does not speak TLS.",
    """
    connect tls
    peer send HTTP/1.1 400 Bad Request
    opened
    closed
    """,
)
scenario(
    "tls, hung up on",
    "The peer ends during the handshake.",
    """
    connect tls
    peer fin
    opened
    closed
    """,
)
scenario(
    "tls, reset",
    "The peer resets during the handshake.",
    """
    connect tls
    peer rst
    opened
    closed
    """,
)
scenario(
    "tls, by address",
    "The certificate of an IP address.",
    """
    connect tls "127.0.0.1:PORT"
    peer handshake
    opened
    peer sni
    """,
)
scenario(
    "tls, alpn",
    "The client offers protocols (ALPN).",
    """
    connect tls "localhost:PORT" {"alpn": ["conformance"]}
    peer handshake
    opened
    info alpn
    peer alpn
    """,
)
scenario(
    "tls, sni",
    "Another name to send and to verify.",
    """
    connect tls "localhost:PORT" {"sni": "other.example"}
    peer handshake other-name
    opened
    peer sni
    """,
)
