"""Opening a socket."""

from __future__ import annotations

from conformance.scenario import scenario

scenario(
    "open",
    "A connection opens, and reports the facts about it.",
    """
    connect
    opened
    peer accept
    info remote
    info local
    info alpn
    upgraded
    secure
    quiet closed
    """,
)
scenario(
    "open, unused",
    "connect() alone makes the connection.",
    """
    connect
    peer accept
    peer quiet
    quiet closed
    """,
)
scenario(
    "open, by name",
    "The facts about a connection to a name.",
    """
    connect "localhost:PORT"
    peer accept
    info remote
    """,
)
scenario(
    "talk",
    "Data goes both ways, and in the end both close.",
    """
    connect
    write hello
    peer read 5
    peer send hi
    read 2
    peer send again
    read 5
    write more
    peer read 4
    close
    peer end
    closed
    """,
)
scenario(
    "use before open",
    "The streams can be used at once: they wait for the connection.",
    """
    connect tls
    begin write hello
    begin read
    quiet write hello
    quiet read
    quiet opened
    peer handshake
    finish write hello
    peer read 5
    peer send hi
    finish read
    opened
    """,
)
scenario(
    "use before open, then fail",
    "Calls that wait for a connection fail if it fails.",
    """
    connect tls
    begin write hello
    begin read
    quiet write hello
    peer rst
    finish write hello
    finish read
    opened
    closed
    """,
)
scenario(
    "refused",
    "Nothing listens there.",
    """
    connect "127.0.0.1:REFUSING"
    opened
    closed
    read
    write x
    end
    cancel
    close
    """,
)
scenario(
    "refused, then close",
    "close() after the connection could not be made.",
    """
    connect "127.0.0.1:REFUSING"
    opened
    close
    closed
    """,
)
scenario(
    "refused, tls",
    "Nothing listens there, with TLS.",
    """
    connect tls "localhost:REFUSING"
    opened
    closed
    """,
)
scenario(
    "unresolvable",
    "The name has no address.",
    """
    connect "name.invalid:PORT"
    opened
    closed
    read
    """,
)
scenario(
    "no answer",
    "The connection is being made, but never succeeds.",
    """
    connect "127.0.0.1:SILENT"
    quiet opened
    quiet closed
    begin read
    quiet read
    """,
)
scenario(
    "close before open",
    "close() while the connection is being made does not wait for it.",
    """
    connect "127.0.0.1:SILENT"
    quiet opened
    close
    opened
    closed
    """,
)
scenario(
    "close before open, streams",
    "Calls wait for a connection, which is closed before it is made.",
    """
    connect "127.0.0.1:SILENT"
    begin read
    begin write x
    quiet read
    begin close
    finish read
    finish write x
    """,
)
scenario(
    "close before open, tls",
    "close() during the TLS handshake.",
    """
    connect tls
    peer accept
    quiet opened
    close
    opened
    closed
    peer torn
    """,
)
scenario(
    "end before open",
    "Our side is ended before the connection is made.",
    """
    connect tls
    begin end
    quiet end
    peer handshake
    finish end
    peer end
    """,
)
scenario(
    "cancel before open",
    "The readable is cancelled before the connection is made.",
    """
    connect tls
    cancel
    quiet opened
    peer handshake
    opened
    write hello
    peer read 5
    """,
)
scenario(
    "abort before open",
    "The writable is aborted before the connection is made.",
    """
    connect "127.0.0.1:SILENT"
    quiet opened
    abort
    opened
    closed
    """,
)
