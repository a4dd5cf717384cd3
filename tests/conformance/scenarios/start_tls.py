"""TLS on a socket that is open: ``startTls()``."""

from __future__ import annotations

from conformance.scenario import MODES, scenario

for _mode, _flag in MODES.items():
    scenario(
        f"starttls{_mode}",
        "The connection goes over to TLS, the old socket is over, the new one works.",
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
    "Without secureTransport there is no startTls().",
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
    "startTls() on a socket whose connection is TLS already.",
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
    "startTls() where the peer has ended, which was read.",
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
    "startTls() where we have ended.",
    """
    connect starttls half-open
    opened
    end
    startTls
    """,
)
scenario(
    "starttls while a read is pending",
    "startTls() while a read waits, which could take the peer's handshake for data.",
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
    "What was written in the clear goes out before the handshake.",
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
    "startTls() where the connection could not be made.",
    """
    connect starttls "localhost:REFUSING"
    opened
    startTls
    """,
)
scenario(
    "starttls, no answer",
    "startTls() where the connection is being made, and will not be.",
    """
    connect starttls "127.0.0.1:SILENT"
    startTls
    quiet opened
    quiet closed
    """,
)
scenario(
    "starttls, lost before it",
    "startTls() where the connection was reset, which nobody has noticed yet.",
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
    "The peer, or somebody between, sends in the clear what is to be read as if over TLS.",
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
    "As before, in one piece with the go-ahead, of which a short read leaves the rest.",
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
    "As before, and nothing was read at all.",
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
    "Whom the certificate must be for is said in the call.",
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
    "The certificate is for the name connected to, and another was expected.",
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
    "close() of the new socket while the handshake is under way.",
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
