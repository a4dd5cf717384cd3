"""Pipes from one socket into another."""

from __future__ import annotations

from conformance.scenario import MODES, scenario

for _mode, _flag in MODES.items():
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
            "The same, but the source must not be cancelled.",
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
            f"One socket is piped into another, which {_what} while it waits for data.",
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
        "The source was cancelled before.",
        f"""
        {_two}
        cancel
        pipe other
        other peer view
        """,
    )
    scenario(
        f"pipe to another, preventClose{_mode}",
        "The destination can be used after the end of the pipe's source.",
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
        "The destination can be used after the pipe's source was reset.",
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
