"""Calls that are in flight: before the connection is made, and while something else is called."""

from __future__ import annotations

from conformance.scenario import scenario

# --- calls in flight before the connection is made


def connecting(first: str, second: str, then: str) -> None:
    """A call that waits for the connection, and then another call of any kind."""
    scenario(
        f"connecting, {first}, then {second}",
        f"While the connection is being made: {first}, then {second}.",
        f"""
        connect "127.0.0.1:SILENT"
        begin {first}
        quiet {first}
        begin {second}
        peer answer
        {then}
        finish {first}
        finish {second}
        """,
    )


connecting("read", "write hello", "peer read 5\npeer send hi")
connecting("read", "end", "peer send hi")
connecting("read", "cancel", "")
connecting("read", "abort", "peer view")
connecting("read", "close", "peer view")
connecting("write hello", "write more", "peer view open")
connecting("write hello", "read", "peer read 5\npeer send hi")
connecting("write hello", "end", "peer view")
connecting("write hello", "cancel", "peer view open")
connecting("write hello", "abort", "peer view")
connecting("write hello", "close", "peer view\nclosed")
connecting("end", "write hello", "peer view")
connecting("end", "read", "peer end\npeer send hi")
connecting("end", "cancel", "peer view")
connecting("end", "abort", "peer view")
connecting("end", "close", "peer view\nclosed")
scenario(
    "connecting, write hello, then startTls",
    "startTls() finishes the write that waits for the connection, then makes the handshake.",
    """
    connect starttls "localhost:SILENT"
    begin write hello
    quiet write hello
    startTls
    peer answer
    old finish write hello
    peer read 5
    peer handshake
    opened
    """,
)
for _first in ("read", "end"):
    scenario(
        f"connecting, {_first}, then startTls",
        f"startTls() while a {_first} waits for the connection.",
        f"""
        connect starttls "localhost:SILENT"
        begin {_first}
        quiet {_first}
        startTls
        """,
    )

# --- writes in flight

for _name, _open in {
    "": "connect",
    "tls, ": "connect tls\npeer handshake",
    "starttls, ": "connect starttls\nopened\nstartTls\npeer handshake",
}.items():
    scenario(
        f"{_name}cancel while a write is pending",
        "The readable is cancelled while a write waits for room: it goes on.",
        f"""
        {_open}
        begin flood FLOOD
        quiet flood FLOOD
        cancel
        peer read FLOOD
        finish flood FLOOD
        """,
    )
    scenario(
        f"{_name}close while a write is pending, and hung up on",
        "close() waits for a write; the peer ends without reading it.",
        f"""
        {_open}
        begin flood FLOOD
        quiet flood FLOOD
        begin close
        quiet close
        peer fin
        {"peer torn" if _name else "peer read FLOOD"}
        finish flood FLOOD
        finish close
        """,
    )
    scenario(
        f"{_name}close while a write is pending, then abort",
        "close() waits for a write, and then the socket is aborted.",
        f"""
        {_open}
        begin flood FLOOD
        quiet flood FLOOD
        begin close
        begin abort
        peer torn
        finish flood FLOOD
        finish abort
        finish close
        """,
    )
for _name, _open in {
    "tls, ": "connect tls\npeer handshake",
    "starttls, ": "connect starttls\nopened\nstartTls\npeer handshake",
}.items():
    scenario(
        f"{_name}end while a write is pending",
        "Our side is ended while a write waits for room.",
        f"""
        {_open}
        begin flood FLOOD
        quiet flood FLOOD
        begin end
        quiet end
        peer read FLOOD
        finish flood FLOOD
        finish end
        peer end
        """,
    )
    scenario(
        f"{_name}abort while a write is pending",
        "The writable is aborted while a write waits for room.",
        f"""
        {_open}
        begin flood FLOOD
        quiet flood FLOOD
        begin abort
        peer torn
        finish flood FLOOD
        finish abort
        """,
    )
    scenario(
        f"{_name}close while a write is pending, and reset",
        "close() waits for a write; the peer resets.",
        f"""
        {_open}
        begin flood FLOOD
        quiet flood FLOOD
        begin close
        quiet close
        peer rst
        finish flood FLOOD
        finish close
        """,
    )
scenario(
    "starttls while a write is pending, and reset",
    "startTls() waits for a write; the peer resets.",
    """
    connect starttls
    begin flood FLOOD
    quiet flood FLOOD
    startTls
    peer rst
    old finish flood FLOOD
    opened
    closed
    """,
)
scenario(
    "starttls while a write is pending, then close",
    "startTls() waits for a write; the new socket is closed.",
    """
    connect starttls
    begin flood FLOOD
    quiet flood FLOOD
    startTls
    begin close
    peer torn
    opened
    closed
    """,
)
