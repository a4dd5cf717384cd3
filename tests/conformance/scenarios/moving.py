"""Reading and writing."""

from __future__ import annotations

from conformance.scenario import scenario

scenario(
    "write a str",
    "A write of text.",
    """
    connect
    opened
    write-str hello
    write hello
    """,
)
scenario(
    "write a view",
    "A write of an array of wider numbers.",
    """
    connect
    write-view
    peer read 2
    """,
)
scenario(
    "write nothing",
    "An empty write sends nothing.",
    """
    connect
    opened
    flood 0
    peer quiet
    write x
    peer read 1
    """,
)
scenario(
    "write much",
    "A long write waits until the peer reads.",
    """
    connect
    begin flood FLOOD
    quiet flood FLOOD
    peer read FLOOD
    finish flood FLOOD
    """,
)
scenario(
    "read much",
    "A long read, in any number of pieces.",
    """
    connect
    opened
    begin read 3000000
    peer send *3000000
    finish read 3000000
    peer fin
    read
    """,
)
for _prefix, _connect in {
    "": "connect",
    "tls, ": "connect tls\npeer handshake",
    "starttls, ": "connect starttls\nopened\nstartTls\npeer handshake",
}.items():
    scenario(
        f"{_prefix}full duplex",
        "A read waits while a write is in flight.",
        f"""
        {_connect}
        opened
        begin read
        begin flood FLOOD
        quiet read
        peer send hi
        finish read
        quiet flood FLOOD
        peer read FLOOD
        finish flood FLOOD
        """,
    )
scenario(
    "read a little",
    "A short read leaves the rest to the next.",
    """
    connect
    opened
    peer send hello
    take 2
    take 10
    """,
)
scenario(
    "two reads",
    "A read while another waits.",
    """
    connect
    opened
    peer accept
    begin read
    begin read 2
    quiet read
    peer send h
    finish read
    peer send hi
    finish read 2
    """,
)
scenario(
    "two writes",
    "A write while another waits.",
    """
    connect
    begin flood FLOOD
    quiet flood FLOOD
    begin write x
    peer read FLOOD
    finish flood FLOOD
    finish write x
    """,
)
scenario(
    "pipe",
    "An echo: the readable is piped to the writable, until the peer ends.",
    """
    connect half-open
    begin pipe
    peer send hello
    peer read 5
    peer fin
    finish pipe
    peer end
    closed
    """,
)
scenario(
    "pipe, in the default mode",
    "An echo, in the mode in which the peer's end also ends our side.",
    """
    connect
    begin pipe
    peer send hello
    peer read 5
    peer fin
    finish pipe
    peer end
    closed
    """,
)
scenario(
    "pipe, and reset",
    "An echo that the peer resets.",
    """
    connect
    begin pipe
    peer send hello
    peer read 5
    peer rst
    finish pipe
    closed
    """,
)
