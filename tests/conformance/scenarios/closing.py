"""``close()``."""

from __future__ import annotations

from conformance.scenario import scenario

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
    "After close() the kernel refuses what the peer sends.",
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
    "close() finishes a write in flight.",
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
    "close() while there is unread data.",
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
    "close() before the peer's end was noticed.",
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
    "close() before the peer's reset was noticed.",
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
