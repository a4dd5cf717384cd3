"""Serious faults, written by hand, to put into the package. The simulation finds all of them.

Each fault replaces a piece of text that its module contains exactly once. If the code has changed,
that raises an error, and the fault has to be adapted to the new code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Broken:
    """One fault."""

    what: str
    #: The kind of promise that it breaks. a: moving data; b: calls in flight; c: closing and its
    #: reasons; d: nothing is kept and nothing blocks; e: policies and limits.
    part: str
    module: str
    old: str
    new: str
    schedulers: tuple[str, ...] = ()  #: on which it can be found; empty means all

    def put_into(self, package: Path) -> None:
        """Break the package in that directory.

        :raises ValueError: the code has changed
        """
        path = package / f"{self.module}.py"
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.module}.py has {text.count(self.old)} times, instead of once, the text "
                f"that the fault {self.what!r} replaces:\n{self.old}"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


BROKEN: tuple[Broken, ...] = (
    Broken(
        "the peer's end ends our side though a send is in flight",
        "a",
        "_lifecycle",
        '"outbound": (_O.OPEN, _O.DUE),',
        '"outbound": (_O.OPEN, _O.SENDING, _O.DUE),',
    ),
    Broken(
        "the rest of a long send sometimes begins one byte late",
        "a",
        "_tcp",
        "                sent += self.send_nowait(view[sent:])\n",
        "                sent += self.send_nowait(view[sent + (sent > 70_000) :])\n",
    ),
    Broken(
        "close() does not wait for a send in flight",
        "b",
        "_lifecycle",
        "            _E.CLOSE: _O.FLUSHING,\n            _E.UPGRADE: _O.FLUSHING,\n",
        "            _E.CLOSE: _O.CLOSED,\n            _E.UPGRADE: _O.FLUSHING,\n",
    ),
    Broken(
        "pipe_to() ends its destination cleanly though its source failed",
        "b",
        "_streams",
        "                    if not prevent_abort:\n"
        "                        await _abort(destination, exc)\n",
        "                    if not prevent_abort:\n"
        "                        await destination.aclose()\n",
    ),
    Broken(
        "close() ends cleanly after a send that was cut short",
        "c",
        "_tcp",
        "            self.torn = self.torn or sent > 0\n",
        "            self.torn = self.torn or sent > 100_000\n",
    ),
    Broken(
        "a reset that a send meets discards what the peer sent before",
        "c",
        "_connection",
        "            await self._tell(Event.RESET_UNREAD, error)\n            if not unread",
        "            await self._tell(Event.RESET, error)\n            if not unread",
    ),
    Broken(
        "a cancelled dial does not give its slot back",
        "d",
        "_open",
        "        except BaseException:\n            slot.release()\n            raise\n",
        "        except SocketError:\n            slot.release()\n            raise\n",
    ),
    Broken(
        "if a race makes several connections, those that lost stay open",
        "d",
        "_dial",
        "        else:\n            await transport.abort()\n\n    try:\n",
        "        else:\n            kept.append(transport)\n\n"
        "    kept: list[Transport] = []\n    try:\n",
    ),
    Broken(
        "an address that the policy forbids is dialled if another is allowed",
        "e",
        "_judging",
        "        if error is None:\n            allowed.append(endpoint)\n",
        "        if error is None or allowed:\n            allowed.append(endpoint)\n",
    ),
    Broken(
        "an end of TLS without close_notify is reported as a clean end",
        "e",
        "_tls",
        "        raise self._lost(self._error) from self._error\n\n    def _check_session",
        "        raise anyio.EndOfStream\n\n    def _check_session",
    ),
    Broken(
        "a receive that waits for more data loses what came before the peer's end",
        "a",
        "_connection",
        "        if not self._kept:\n            if ended:\n",
        "        if ended or not self._kept:\n            if ended:\n",
    ),
    Broken(
        "receive_until() reads further ahead than it may",
        "e",
        "_read_ahead",
        "min(max_bytes - len(self), DEFAULT_MAX_BYTES)",
        "DEFAULT_MAX_BYTES",
    ),
)
