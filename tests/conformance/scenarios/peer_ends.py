"""The peer's FIN and RST: at each moment, in both modes, plain and over TLS."""

from __future__ import annotations

from conformance.scenario import MODES, scenario


def moments(
    name: str, connect: str, does: str, what: str, closed: str, after_cancel: str, stays: str
) -> None:
    """Scenarios in which the peer does this at different moments.

    ``closed`` is the step that checks the result, and ``after_cancel`` the same step if the
    readable was cancelled. At the end, the peer reports what it received and how that ended,
    unless it has reset the connection. ``stays`` is "open" if our side does not end by itself.
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
        f"The peer {what}, and no call reads.",
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
        f"The peer {what} after data that was not read yet.",
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
        f"The peer {what}; two writes before that is noticed.",
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
        f"The peer {what}, which a read notices; then all other calls.",
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
        f"We end first, then the peer {what}, and no call reads.",
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
        f"The peer {what} while `closed` is awaited and no call reads.",
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


for _mode, _flag in MODES.items():
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
            "The peer ends in the middle of a long write, reads it, and then expects our end.",
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
        "What the peer sees before its end was read.",
        f"""
        connect {_flag}
        opened
        peer fin
        peer quiet
        """,
    )
    scenario(
        f"write after fin{_mode}",
        "After the peer's end was read: whether our data and our end still go out.",
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
