"""The scenarios, as data. What their steps mean: steps.py."""

from __future__ import annotations

import json
from dataclasses import dataclass

from conformance.steps import Step, parse

#: More than both kernels hold, in bytes: to send as much takes a peer that reads.
FLOOD = 1 << 24


@dataclass(frozen=True)
class Scenario:
    name: str
    #: What it is about, in a line.
    intent: str
    steps: tuple[Step, ...]


SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, intent: str, steps: str) -> None:
    assert name not in SCENARIOS, name
    SCENARIOS[name] = Scenario(name, intent, parse(steps.replace("FLOOD", str(FLOOD))))


# --- opening

scenario(
    "open",
    "A connection opens, and says what is known of it.",
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
    "connect() by itself makes the connection.",
    """
    connect
    peer accept
    peer quiet
    quiet closed
    """,
)
scenario(
    "open, by name",
    "What is known of a connection to a name.",
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
    "What waits for a connection fails with it.",
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
    "The connection is being made, and will not be.",
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
    "What waits for a connection that is closed before it is made.",
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

# --- the peer's FIN and RST, at each moment, in both modes, plain and over TLS


def moments(
    name: str, connect: str, does: str, what: str, closed: str, after_cancel: str, stays: str
) -> None:
    """Scenarios of which each has the peer do that at another moment.

    ``closed`` is the step that looks at what becomes of it, ``after_cancel`` the one where the
    readable was cancelled. In the end the peer looks at what it got and how that ended, unless it
    is gone; ``stays``: where our side does not end by itself, "open".
    """
    gone = does == "peer rst"
    view = "" if gone else "peer view"
    then = view and f"{view} {stays}"
    cancelled = view and f"{view} {'open' if after_cancel.startswith('quiet') else ''}"
    still = view and f"{view} open"
    scenario(
        name.format("before the first read"),
        f"The peer {what} before anything was read.",
        f"""
        {connect}
        opened
        {does}
        read
        {closed}
        {then}
        """,
    )
    scenario(
        name.format("unread"),
        f"The peer {what}, and nobody reads.",
        f"""
        {connect}
        opened
        {does}
        {closed}
        {then}
        """,
    )
    scenario(
        name.format("behind unread data"),
        f"The peer {what} after data that nobody has read yet.",
        f"""
        {connect}
        opened
        peer send hi
        {does}
        read 2
        read
        {closed}
        {then}
        """,
    )
    scenario(
        name.format("between reads"),
        f"The peer {what} after a read, and before the next.",
        f"""
        {connect}
        peer send hi
        read 2
        {does}
        read
        {closed}
        {then}
        """,
    )
    scenario(
        name.format("while a read is pending"),
        f"The peer {what} while a read waits.",
        f"""
        {connect}
        opened
        begin read
        quiet read
        {does}
        finish read
        {closed}
        {then}
        """,
    )
    scenario(
        name.format("then writes"),
        f"The peer {what}; a write, and another, before that is noticed.",
        f"""
        {connect}
        opened
        {does}
        write x
        write y
        {still}
        """,
    )
    scenario(
        name.format("noticed, then a write"),
        f"The peer {what}, which a read notices; a write after that.",
        f"""
        {connect}
        opened
        {does}
        read
        write x
        end
        {view}
        """,
    )
    scenario(
        name.format("noticed, then all again"),
        f"The peer {what}, which a read notices; everything else after that.",
        f"""
        {connect}
        opened
        {does}
        read
        read
        cancel
        abort
        close
        closed
        {view}
        """,
    )
    scenario(
        name.format("after our end"),
        f"We end first, then the peer {what}.",
        f"""
        {connect}
        end
        peer end
        {does}
        read
        closed
        {view}
        """,
    )
    scenario(
        name.format("after our end, unread"),
        f"We end first, then the peer {what}, and nobody reads.",
        f"""
        {connect}
        end
        peer end
        {does}
        closed
        {view}
        """,
    )
    scenario(
        name.format("after cancel"),
        f"The readable is cancelled, then the peer {what}.",
        f"""
        {connect}
        opened
        cancel
        {does}
        {after_cancel}
        {cancelled}
        """,
    )
    scenario(
        name.format("after cancel, then a write"),
        f"The readable is cancelled, then the peer {what}, then we write.",
        f"""
        {connect}
        opened
        cancel
        {does}
        write x
        {still}
        """,
    )
    scenario(
        name.format("while watched"),
        f"The peer {what} while `closed` is awaited and nobody reads.",
        f"""
        {connect}
        opened
        begin closed
        quiet closed
        {does}
        {"quiet" if "quiet" in closed else "finish"} closed
        {then}
        """,
    )


_MODES = {"": "", ", half-open": "half-open"}

for _mode, _flag in _MODES.items():
    # With allow_half_open our side has not ended yet.
    _waits = "quiet closed" if _flag else "closed"
    for _kind, _does, _what, _closed, _after_cancel in (
        ("fin", "peer fin", "ends", _waits, _waits),
        ("rst", "peer rst", "resets", "closed", "closed"),
    ):
        _connect, _stays = f"connect {_flag}", "open" if _flag else ""
        moments(f"{_kind} {{}}{_mode}", _connect, _does, _what, _closed, _after_cancel, _stays)
    for _transport, _connect in {
        "tls": f"connect tls {_flag}\npeer handshake",
        "starttls": f"connect starttls {_flag}\nopened\nstartTls\npeer handshake",
    }.items():
        for _kind, _does, _what, _closed, _after_cancel in (
            ("close_notify", "peer notify\npeer fin", "ends TLS and TCP", _waits, _waits),
            ("cut off", "peer fin", "ends TCP and not TLS", "closed", _waits),
            ("rst", "peer rst", "resets", "closed", "closed"),
        ):
            _name = f"{_transport}, {_kind} {{}}{_mode}"
            _stays = "open" if _flag and _kind != "cut off" else ""
            moments(_name, _connect, _does, _what, _closed, _after_cancel, _stays)
    for _prefix, _end, _connect, _ends in (
        ("", "fin", f"connect {_flag}", "peer fin"),
        (
            "tls, ",
            "close_notify",
            f"connect tls {_flag}\npeer handshake\nopened",
            "peer notify\npeer fin",
        ),
        (
            "starttls, ",
            "close_notify",
            f"connect starttls {_flag}\nopened\nstartTls\npeer handshake\nopened",
            "peer notify\npeer fin",
        ),
    ):
        scenario(
            f"{_prefix}{_end} while a write is pending{_mode}",
            "The peer ends in the middle of a long write, reads that, and then looks for our end.",
            f"""
            {_connect}
            begin flood FLOOD
            quiet flood FLOOD
            {_ends}
            read
            quiet closed
            peer read FLOOD
            finish flood FLOOD
            {"peer quiet" if _flag else "peer end"}
            {"quiet closed" if _flag else "closed"}
            """,
        )
        scenario(
            f"{_prefix}{_end} while a write and a read are pending{_mode}",
            "The peer ends in the middle of a long write, while a read waits.",
            f"""
            {_connect}
            begin flood FLOOD
            begin read
            quiet flood FLOOD
            {_ends}
            finish read
            peer read FLOOD
            finish flood FLOOD
            {"peer quiet" if _flag else "peer end"}
            """,
        )
        scenario(
            f"{_prefix}rst while a write is pending{_mode}",
            "The peer resets in the middle of a long write.",
            f"""
            {_connect}
            begin flood FLOOD
            quiet flood FLOOD
            peer rst
            finish flood FLOOD
            closed
            read
            """,
        )
        scenario(
            f"{_prefix}rst while a write and a read are pending{_mode}",
            "The peer resets in the middle of a long write, while a read waits.",
            f"""
            {_connect}
            begin flood FLOOD
            begin read
            quiet flood FLOOD
            peer rst
            finish flood FLOOD
            finish read
            """,
        )
    scenario(
        f"fin, seen by the peer{_mode}",
        "What the peer sees after its end was read.",
        f"""
        connect {_flag}
        opened
        peer fin
        read
        {"peer quiet" if _flag else "peer end"}
        """,
    )
    scenario(
        f"fin, unread, seen by the peer{_mode}",
        "What the peer sees while its end was not read.",
        f"""
        connect {_flag}
        opened
        peer fin
        peer quiet
        """,
    )
    scenario(
        f"write after fin{_mode}",
        "After the peer's end was read, data still goes out or does not, and our end.",
        f"""
        connect {_flag}
        opened
        peer fin
        read
        write hello
        end
        peer end
        closed
        """,
    )

# --- ending our side

for _mode, _flag in _MODES.items():
    scenario(
        f"end first{_mode}",
        "We end first, read on to the peer's end, and then it is over.",
        f"""
        connect {_flag}
        write hello
        end
        peer end
        quiet closed
        peer send answer
        read 6
        peer fin
        read
        closed
        """,
    )
    scenario(
        f"end, then write{_mode}",
        "Nothing can be written after our end.",
        f"""
        connect {_flag}
        end
        write x
        peer end
        """,
    )
    scenario(
        f"end twice{_mode}",
        "Our side is ended a second time.",
        f"""
        connect {_flag}
        end
        end
        peer end
        quiet closed
        """,
    )
    scenario(
        f"end, then cancel{_mode}",
        "Both directions are ended by us, one after the other.",
        f"""
        connect {_flag}
        end
        cancel
        closed
        peer end
        """,
    )
    scenario(
        f"cancel, then end{_mode}",
        "Both directions are ended by us, the other one first.",
        f"""
        connect {_flag}
        opened
        cancel
        quiet closed
        end
        closed
        peer end
        """,
    )
scenario(
    "end, then close",
    "close() after our end.",
    """
    connect
    end
    close
    closed
    peer end
    """,
)
scenario(
    "end after fin",
    "With allow_half_open, the peer ends, we answer, and end too.",
    """
    connect half-open
    peer send request
    peer fin
    read 7
    read
    quiet closed
    write answer
    end
    peer end
    closed
    """,
)
scenario(
    "end while a write is pending",
    "Our end waits for the write before it.",
    """
    connect
    begin flood FLOOD
    begin end
    quiet end
    peer read FLOOD
    finish flood FLOOD
    finish end
    peer end
    """,
)
scenario(
    "end, the peer lives on",
    "After our end the peer may send whatever it likes.",
    """
    connect
    end
    peer end
    begin read 1000000
    peer send *1000000
    finish read 1000000
    peer send last
    read 4
    quiet closed
    """,
)

# --- not reading any more

scenario(
    "cancel",
    "The readable is cancelled; writing goes on.",
    """
    connect
    opened
    cancel
    write hello
    peer read 5
    quiet closed
    """,
)
scenario(
    "cancel, then read",
    "A read after the readable was cancelled.",
    """
    connect
    opened
    cancel
    read
    """,
)
scenario(
    "cancel while a read is pending",
    "The readable is cancelled while a read waits.",
    """
    connect
    opened
    begin read
    quiet read
    cancel
    finish read
    write hello
    peer read 5
    """,
)
scenario(
    "cancel twice",
    "The readable is cancelled a second time.",
    """
    connect
    opened
    cancel
    cancel
    """,
)
scenario(
    "cancel, the peer sends",
    "What the peer sends after the readable was cancelled is no error to it.",
    """
    connect
    opened
    cancel
    peer send hello
    write still
    peer read 5
    """,
)
scenario(
    "cancel, then close",
    "close() after the readable was cancelled.",
    """
    connect
    opened
    cancel
    close
    closed
    peer end
    """,
)
scenario(
    "cancel with unread data",
    "The readable is cancelled while there is data in it.",
    """
    connect
    opened
    peer send hello
    cancel
    write still
    peer read 5
    """,
)

# --- giving up

scenario(
    "abort",
    "The writable is aborted: what becomes of the connection, and what the peer sees.",
    """
    connect
    opened
    peer accept
    abort
    write x
    read
    closed
    peer end
    """,
)
scenario(
    "abort while a write is pending",
    "The writable is aborted in the middle of a long write.",
    """
    connect
    begin flood FLOOD
    quiet flood FLOOD
    begin abort
    finish flood FLOOD
    finish abort
    peer torn
    """,
)
scenario(
    "abort while a read is pending",
    "The writable is aborted while a read waits.",
    """
    connect
    opened
    peer accept
    begin read
    quiet read
    abort
    finish read
    """,
)
scenario(
    "abort after end",
    "The writable is aborted after it was ended.",
    """
    connect
    end
    peer end
    abort
    peer send hi
    read 2
    quiet closed
    """,
)
scenario(
    "abort, then end",
    "The writable is ended after it was aborted.",
    """
    connect
    opened
    abort
    end
    """,
)
scenario(
    "abort, then close",
    "close() after the writable was aborted.",
    """
    connect
    opened
    abort
    close
    """,
)

# --- close()

scenario(
    "close",
    "close() gives the peer a clean end.",
    """
    connect
    opened
    peer accept
    close
    closed
    peer end
    """,
)
scenario(
    "close, really",
    "After close() the kernel has no use for what the peer sends.",
    """
    connect
    opened
    peer accept
    close
    peer end
    peer gone
    """,
)
scenario(
    "close, half-open",
    "close() ends both directions, also with allow_half_open.",
    """
    connect half-open
    opened
    peer accept
    close
    closed
    peer end
    peer gone
    """,
)
scenario(
    "close twice",
    "The second close() does nothing.",
    """
    connect
    opened
    close
    close
    closed
    """,
)
scenario(
    "close while a read is pending",
    "close() while a read waits.",
    """
    connect
    opened
    peer accept
    begin read
    quiet read
    close
    finish read
    closed
    peer end
    """,
)
scenario(
    "close while a write is pending",
    "close() finishes the write that it finds.",
    """
    connect
    begin flood FLOOD
    quiet flood FLOOD
    begin close
    quiet close
    peer read FLOOD
    finish flood FLOOD
    finish close
    peer end
    """,
)
scenario(
    "close while a write is pending, and reset",
    "close() waits for a write; the peer resets.",
    """
    connect
    begin flood FLOOD
    quiet flood FLOOD
    begin close
    quiet close
    peer rst
    finish flood FLOOD
    finish close
    closed
    """,
)
scenario(
    "close, then everything",
    "The streams after close().",
    """
    connect
    opened
    close
    read
    write x
    end
    cancel
    abort
    """,
)
scenario(
    "close with unread data",
    "close() while there is data that nobody has read.",
    """
    connect
    opened
    peer send hello
    close
    closed
    peer end
    """,
)
scenario(
    "close after fin",
    "The peer's end was read; close() has nothing left to do.",
    """
    connect
    opened
    peer fin
    read
    close
    closed
    peer end
    """,
)
scenario(
    "close after fin, half-open",
    "With allow_half_open, the peer's end was read; close() ends our side.",
    """
    connect half-open
    opened
    peer fin
    read
    quiet closed
    close
    closed
    peer end
    """,
)
scenario(
    "close after fin, unread",
    "The peer has ended, which nobody has noticed yet.",
    """
    connect
    opened
    peer fin
    close
    closed
    peer end
    """,
)
scenario(
    "close after rst, unread",
    "The peer has reset, which nobody has noticed yet.",
    """
    connect
    opened
    peer rst
    close
    closed
    """,
)
scenario(
    "close sends what was written",
    "What was written before close() arrives.",
    """
    connect
    opened
    write hello
    begin close
    peer read 5
    peer end
    finish close
    """,
)

# --- reading and writing

scenario(
    "write a str",
    "Text is not data.",
    """
    connect
    opened
    write-str hello
    write hello
    """,
)
scenario(
    "write a view",
    "Numbers of more than a byte are written as their bytes.",
    """
    connect
    write-view
    peer read 2
    """,
)
scenario(
    "write nothing",
    "An empty write is none.",
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
    "A long write takes a peer that reads.",
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
    "A long read, in however many pieces.",
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
        "A read waits while a write is under way.",
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
    "An echo, in the mode in which the peer's end is ours too.",
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

# --- calls in flight before the connection is made


def connecting(first: str, second: str, then: str) -> None:
    """A call that waits for the connection, and another behind it, of any kind."""
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

# --- pipes from one socket into another

for _mode, _flag in _MODES.items():
    _two = f"connect {_flag}\nother connect {_flag}\nopened\nother opened"
    for _when, _begin, _finish in (
        ("before the pipe", "", "pipe other"),
        ("during the pipe", "begin pipe other\nquiet pipe other", "finish pipe other"),
    ):
        for _what, _step, _view in (
            ("the peer ends", "peer fin", "other peer view"),
            ("the peer resets", "peer rst", "other peer torn"),
            ("the source is closed", "begin close", "other peer view"),
        ):
            scenario(
                f"pipe to another, {_what} {_when}{_mode}",
                f"One socket is piped into another; {_what} {_when}.",
                f"""
                {_two}
                {_begin}
                {_step}
                {_finish}
                {_view}
                """,
            )
    for _what, _step in (
        ("is closed", "other begin close"),
        ("is ended", "other end"),
        ("is aborted", "other abort"),
    ):
        scenario(
            f"pipe to another, which {_what} before the pipe{_mode}",
            f"One socket is piped into another, which {_what} before.",
            f"""
            {_two}
            {_step}
            peer send hi
            pipe other
            read
            """,
        )
        scenario(
            f"pipe to another, which {_what} before the pipe, preventCancel{_mode}",
            "The same; the source is to be left alone.",
            f"""
            {_two}
            {_step}
            peer send hi
            pipe other preventCancel
            read
            """,
        )
    for _what, _step, _finish in (
        ("is closed", "other begin close", "finish"),
        ("is ended by its peer", "other peer fin", "quiet"),
        ("is reset", "other peer rst", "finish"),
    ):
        scenario(
            f"pipe to another, which {_what} during the pipe{_mode}",
            f"One socket is piped into another, which {_what} while nothing comes; then it does.",
            f"""
            {_two}
            begin pipe other
            quiet pipe other
            {_step}
            peer send hi
            peer send more
            {_finish} pipe other
            """,
        )
    scenario(
        f"pipe to another, cancelled before the pipe{_mode}",
        "What is piped was cancelled before.",
        f"""
        {_two}
        cancel
        pipe other
        other peer view
        """,
    )
    scenario(
        f"pipe to another, preventClose{_mode}",
        "The destination goes on after the end of what was piped into it.",
        f"""
        {_two}
        begin pipe other preventClose
        peer send hi
        other peer read 2
        peer fin
        finish pipe other preventClose
        other write more
        other peer read 4
        """,
    )
    scenario(
        f"pipe to another, preventAbort{_mode}",
        "The destination goes on after what was piped into it was reset.",
        f"""
        {_two}
        begin pipe other preventAbort
        peer send hi
        other peer read 2
        peer rst
        finish pipe other preventAbort
        other write more
        other peer read 4
        """,
    )
    scenario(
        f"pipe to another, both ways{_mode}",
        "Two sockets are piped into each other, until one peer ends, then the other.",
        f"""
        {_two}
        begin pipe other
        other begin pipe now
        peer send hello
        other peer read 5
        other peer send answer
        peer read 6
        peer fin
        finish pipe other
        other peer end
        other peer fin
        other finish pipe now
        peer end
        """,
    )
scenario(
    "pipe to another, before both are open",
    "Both sockets wait for their connections.",
    """
    connect tls
    other connect tls
    begin pipe other
    quiet pipe other
    peer handshake
    peer send hi
    quiet pipe other
    other peer handshake
    other peer read 2
    peer notify
    peer fin
    finish pipe other
    """,
)
scenario(
    "pipe to another, a chunk under way, and closed",
    # More than a kernel holds of one connection, and less than it holds of two.
    "The destination is closed while a chunk waits for room.",
    """
    connect
    other connect
    opened
    other opened
    begin pipe other
    peer send *5000000
    quiet pipe other
    other begin close
    quiet pipe other
    other peer torn
    finish pipe other
    """,
)

# --- TLS

for _mode, _flag in _MODES.items():
    scenario(
        f"tls{_mode}",
        "TLS from the first byte: it talks, we end first, the peer answers that.",
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
        "The peer ends TLS, which is read; then we write.",
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
    "close() finishes the write that it finds, then ends TLS.",
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
    "The writable is aborted: no end of TLS may follow.",
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
    "unknown-authority": "Nobody trusted has signed the certificate.",
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
    "Protocols to choose from.",
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
    "Another name to ask for, and to verify.",
    """
    connect tls "localhost:PORT" {"sni": "other.example"}
    peer handshake other-name
    opened
    peer sni
    """,
)

# --- startTls()

for _mode, _flag in _MODES.items():
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

# --- addresses


def address(value: object, *, opens: bool = True) -> None:
    """A scenario that connects there; a step ``opened`` unless it leads out of this machine."""
    text = json.dumps(value)
    opened = "opened" if opens else ""
    scenario(f"address {text}", "An address, as it is written.", f"connect {text}\n{opened}")


for _address in (
    # A name and a port.
    "localhost:PORT",
    "LOCALHOST:PORT",
    "LocalHost:PORT",
    "localhost.:PORT",
    "localhost..:PORT",
    ".localhost:PORT",
    "local_host.invalid:PORT",
    "name.invalid:PORT",
    "-name.invalid:PORT",
    "bücher.invalid:PORT",
    "xn--bcher-kva.invalid:PORT",
    "\u24c1ocalhost:PORT",
    "local\u00adhost:PORT",
    "local%68ost:PORT",
    "%6cocalhost:PORT",
    f"{'a' * 64}.invalid:PORT",
    f"{'a.' * 130}invalid:PORT",
    # No name, no port, no number of a port.
    "",
    ":",
    ":PORT",
    "localhost",
    "localhost:",
    "localhost:0",
    "localhost:65536",
    "localhost:99999",
    "localhost:-1",
    "localhost:+PORT",
    "localhost:0PORT",
    "localhost:http",
    "localhost:PORT:PORT",
    "localhost:PORT ",
    " localhost:PORT",
    "local host:PORT",
    "localhost :PORT",
    "localhost: PORT",
    "local\thost:PORT",
    "localhost:PORT\n",
    "localhost\u0000:PORT",
    "localhost:\u0661",
    # IPv4, as it is written, and as C reads it.
    "127.0.0.1:PORT",
    "127.0.0.1.:PORT",
    "127.0.0.01:PORT",
    "127.0.1:PORT",
    "127.1:PORT",
    "2130706433:PORT",
    "0x7f000001:PORT",
    "0x7f.1:PORT",
    "0177.0.0.1:PORT",
    "017700000001:PORT",
    "127.0.0.256:PORT",
    "127.0.0.1.1:PORT",
    "256:PORT",
    "0.0.0.0:PORT",
    "\uff11\uff12\uff17.0.0.1:PORT",
    # IPv6.
    "[::1]:PORT",
    "[0:0:0:0:0:0:0:1]:PORT",
    "[::ffff:127.0.0.1]:PORT",
    "[::FFFF:7F00:1]:PORT",
    "[::1%lo]:PORT",
    "[::1%25lo]:PORT",
    "[::1]",
    "[::1]:",
    "[::1]PORT",
    "[::1:PORT",
    "::1]:PORT",
    "::1:PORT",
    "[[::1]]:PORT",
    "[localhost]:PORT",
    "[127.0.0.1]:PORT",
    "[]:PORT",
    "[:::1]:PORT",
    "[::g]:PORT",
    "[v1.a]:PORT",
    # Parts of a URL.
    "tcp://localhost:PORT",
    "http://localhost:PORT",
    "//localhost:PORT",
    "localhost:PORT/",
    "localhost:PORT/path",
    "localhost/path:PORT",
    "localhost:PORT?query",
    "localhost:PORT#fragment",
    "user@localhost:PORT",
    "user:secret@localhost:PORT",
    "localhost\\:PORT",
    "localhost:PORT\\",
    "localhost,other.invalid:PORT",
    "localhost;:PORT",
    "local*:PORT",
    "unix:/nowhere",
    # A pair.
    {"hostname": "localhost", "port": "PORT"},
    {"hostname": "LOCALHOST", "port": "PORT"},
    {"hostname": "localhost.", "port": "PORT"},
    {"hostname": "127.0.0.1", "port": "PORT"},
    {"hostname": "127.1", "port": "PORT"},
    {"hostname": "::1", "port": "PORT"},
    {"hostname": "[::1]", "port": "PORT"},
    {"hostname": "[localhost]", "port": "PORT"},
    {"hostname": "bücher.invalid", "port": "PORT"},
    {"hostname": "localhost:1", "port": "PORT"},
    {"hostname": "", "port": "PORT"},
    {"hostname": " localhost", "port": "PORT"},
    {"hostname": "user@localhost", "port": "PORT"},
    {"hostname": "localhost/", "port": "PORT"},
    {"hostname": "localhost", "port": 0},
    {"hostname": "localhost", "port": 65536},
    {"hostname": "localhost", "port": -1},
    {"hostname": "localhost", "port": 1.5},
    {"hostname": "localhost", "port": "http"},
    {"hostname": "localhost", "port": ""},
    {"hostname": "localhost", "port": None},
    {"hostname": "localhost"},
    {"port": "PORT"},
    {"hostname": None, "port": "PORT"},
    {"hostname": 1, "port": "PORT"},
    {},
    # Something else.
    None,
    1,
    True,
    [],
    ["localhost", "PORT"],
):
    address(_address)

# --- options

for _options in (
    "{}",
    '{"secureTransport": "off"}',
    '{"secureTransport": "starttls"}',
    '{"secureTransport": "maybe"}',
    '{"secureTransport": "ON"}',
    '{"secureTransport": ""}',
    '{"secureTransport": null}',
    '{"secureTransport": true}',
    '{"allowHalfOpen": true}',
    '{"allowHalfOpen": 1}',
    '{"allowHalfOpen": "no"}',
    '{"allowHalfOpen": null}',
    '{"sni": "localhost"}',
    '{"alpn": ["h2"]}',
    '{"unknown": 1}',
    '{"expectedServerHostname": "localhost"}',
):
    scenario(
        f"options {_options}",
        "Options, as they are written.",
        f"""
        connect "localhost:PORT" {_options}
        opened
        """,
    )
