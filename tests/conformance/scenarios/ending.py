"""Ending our side, stopping to read, and giving up."""

from __future__ import annotations

from conformance.scenario import MODES, scenario

# --- ending our side

for _mode, _flag in MODES.items():
    scenario(
        f"end first{_mode}",
        "We end first, and read until the peer ends. Then the socket is closed.",
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
        "We end both directions: first the writable, then the readable.",
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
        "We end both directions: first the readable, then the writable.",
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
    "With allow_half_open, the peer ends. We answer, and then end too.",
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
    "Our end waits for the write in flight.",
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
    "After our end the peer may go on sending.",
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

# --- stopping to read

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
    "The peer may send after the readable was cancelled.",
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
    "The readable is cancelled while there is unread data.",
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
    "The writable is aborted: the state of the connection, and what the peer sees.",
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
