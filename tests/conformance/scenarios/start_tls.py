"""TLS on a socket that is open: ``startTls()``."""

from __future__ import annotations

from conformance.scenario import MODES, scenario

for _mode, _flag in MODES.items():
    scenario(
        f"starttls{_mode}",
        "The connection changes to TLS: the old socket ends, and the new one works.",
        f"""
        connect starttls {_flag}
        secure
        peer send ready
        read 5
        write go
        peer read 2
        upgraded
        startTls
        peer handshake
        opened
        peer sni
        old upgraded
        old closed
        old secure
        upgraded
        secure
        info remote
        write hello
        peer read 5
        peer send hi
        read 2
        end
        peer end
        peer notify
        peer fin
        read
        closed
        """,
    )
scenario(
    "starttls, unused",
    "Until startTls() it is like any plain socket.",
    """
    connect starttls
    write hello
    peer read 5
    peer send hi
    read 2
    peer fin
    read
    closed
    peer end
    """,
)
scenario(
    "starttls at once",
    "startTls() before the connection is made.",
    """
    connect starttls
    startTls
    peer handshake
    opened
    old opened
    write hello
    peer read 5
    """,
)
scenario(
    "starttls, the old socket",
    "The old socket's streams after startTls().",
    """
    connect starttls
    opened
    startTls
    peer handshake
    opened
    old read
    old write x
    old close
    write hello
    peer read 5
    """,
)
scenario(
    "starttls on a plain socket",
    "startTls() without secureTransport.",
    """
    connect
    opened
    startTls
    write hello
    peer read 5
    """,
)
scenario(
    "starttls on a tls socket",
    "TLS on TLS.",
    """
    connect tls
    peer handshake
    opened
    startTls
    write hello
    peer read 5
    """,
)
scenario(
    "starttls twice",
    "startTls() on a socket that start_tls() returned.",
    """
    connect starttls
    opened
    startTls
    peer handshake
    opened
    startTls
    """,
)
scenario(
    "starttls after close",
    "startTls() on a closed socket.",
    """
    connect starttls
    opened
    close
    startTls
    """,
)
scenario(
    "starttls after fin",
    "startTls() after the peer's end was read.",
    """
    connect starttls
    opened
    peer fin
    read
    startTls
    """,
)
scenario(
    "starttls after end",
    "startTls() after our end.",
    """
    connect starttls half-open
    opened
    end
    startTls
    """,
)
scenario(
    "starttls while a read is pending",
    "startTls() while a read waits. The read could receive the peer's handshake.",
    """
    connect starttls
    opened
    peer accept
    begin read
    quiet read
    startTls
    """,
)
scenario(
    "starttls while a write is pending",
    "What was written unencrypted goes out before the handshake.",
    """
    connect starttls
    begin flood FLOOD
    quiet flood FLOOD
    startTls
    peer read FLOOD
    peer handshake
    opened
    write hello
    peer read 5
    """,
)
scenario(
    "starttls, refused connection",
    "startTls() on a connection that could not be made.",
    """
    connect starttls "localhost:REFUSING"
    opened
    startTls
    """,
)
scenario(
    "starttls, no answer",
    "startTls() on a connection that is being made, but never succeeds.",
    """
    connect starttls "127.0.0.1:SILENT"
    startTls
    quiet opened
    quiet closed
    """,
)
scenario(
    "starttls, lost before it",
    "startTls() before the peer's reset was noticed.",
    """
    connect starttls
    opened
    peer rst
    startTls
    opened
    closed
    """,
)
scenario(
    "starttls, reset",
    "The peer resets during the handshake.",
    """
    connect starttls
    opened
    startTls
    peer rst
    opened
    closed
    """,
)
scenario(
    "starttls, hung up on",
    "The peer ends during the handshake.",
    """
    connect starttls
    opened
    startTls
    peer fin
    opened
    closed
    """,
)
scenario(
    "starttls, smuggled plaintext",
    "The peer, or an attacker, sends unencrypted data that must not be read as if over TLS.",
    """
    connect starttls
    peer send go
    read 2
    peer send smuggled
    startTls
    peer handshake
    opened
    read
    """,
)
scenario(
    "starttls, smuggled with the go-ahead",
    "The same, in one segment with the go-ahead. A short read leaves the rest.",
    """
    connect starttls
    opened
    peer send go, smuggled
    take 2
    startTls
    peer handshake
    opened
    read
    """,
)
scenario(
    "starttls, smuggled, unread",
    "The same, and nothing was read.",
    """
    connect starttls
    opened
    peer send smuggled
    startTls
    peer handshake
    opened
    read
    """,
)
scenario(
    "starttls, expected host",
    "The call names the host that the certificate must be valid for.",
    """
    connect starttls
    opened
    startTls {"expectedServerHostname": "other.example"}
    peer handshake other-name
    opened
    peer sni
    """,
)
scenario(
    "starttls, another expected host",
    "The certificate is valid for the name of the address, but another name is expected.",
    """
    connect starttls
    opened
    startTls {"expectedServerHostname": "other.example"}
    peer handshake
    opened
    """,
)
scenario(
    "starttls, close",
    "close() of the new socket.",
    """
    connect starttls
    opened
    startTls
    peer handshake
    opened
    close
    closed
    peer end
    peer end
    """,
)
scenario(
    "starttls, close before the handshake",
    "close() of the new socket during the handshake.",
    """
    connect starttls
    opened
    peer accept
    startTls
    quiet opened
    close
    opened
    closed
    """,
)
