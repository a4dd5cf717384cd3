"""The steps of a scenario, as they are written, and what is told of each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: How long something that should not happen is given to happen, in seconds.
QUIET = 0.25

#: How long something that should happen may take, in seconds. Nothing is as slow.
PATIENCE = 20

#: What is told of a step that waited in vain.
PENDING = "pending"

#: What is told at last of a client's side that has not ended.
STILL_OPEN = "open"


@dataclass(frozen=True)
class Step:
    """One line of a scenario.

    ``peer VERB ...``: the scripted peer's, see peer.py. All else is the client's:

    ``connect [half-open] [tls | starttls] [ADDRESS] [OPTIONS]``
        ADDRESS and OPTIONS are JSON, as Workers take them; PORT, REFUSING and SILENT in an
        address stand for the peer's port, one where nothing listens, and one without an answer.
    ``startTls [OPTIONS]``
        From here on it is about the new socket, and with ``old`` before it the one before.
    ``other STEP``
        Of a second socket, or of its peer: ``other connect``, ``other peer read 5``.
    ``read [N]``, ``take N``, ``write TEXT``, ``write-str TEXT``, ``write-view``, ``flood N``,
    ``end``, ``cancel``, ``abort``, ``pipe [other [OPTION ...]]``, ``close``
        What is done to a socket. A read waits for at least N bytes, a take for at most N. The
        writes are those of bytes, a str, an array of wider numbers, N zeros. A pipe is into the
        socket itself, or into the other; its options are those of ``pipeTo()`` that are true.
    ``opened``, ``closed``, ``upgraded``, ``secure``, ``info remote | local | alpn``
        What is known of it.

    They wait for what comes of it. ``begin STEP`` does not, ``finish STEP`` does so later, and
    ``quiet STEP`` makes sure that it has not come yet.
    """

    text: str
    #: What names the step in the ledger: the text, and its number where others are the same.
    name: str
    peer: bool = False
    verb: str = ""
    rest: str = ""
    which: str = "now"
    mode: str = ""
    connect: Mapping[str, Any] = field(default_factory=dict)

    @property
    def quiet(self) -> bool:
        """Whether it is about what does not come."""
        return "quiet" in (self.mode, self.verb)


def parse(text: str) -> tuple[Step, ...]:
    """The steps of a scenario, one on each line."""
    steps: list[Step] = []
    seen: dict[str, int] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        seen[line] = seen.get(line, 0) + 1
        name = line if seen[line] == 1 else f"{line} ({seen[line]})"
        steps.append(_parse_line(line, name))
    return tuple(steps)


def _parse_line(line: str, name: str) -> Step:
    verb, _, rest = line.partition(" ")
    which, mode = "now", ""
    if verb in ("old", "other"):
        which = verb
        verb, _, rest = rest.partition(" ")
    if verb == "peer":
        verb, _, rest = rest.partition(" ")
        return Step(line, name, True, verb, rest, which)
    if verb in ("begin", "quiet", "finish"):
        mode = verb
        verb, _, rest = rest.partition(" ")
    connect: dict[str, Any] = {}
    if verb == "connect":
        connect = _parse_connect(rest)
    elif verb == "startTls":
        connect = {"options": json.loads(rest) if rest else {}}
    return Step(line, name, False, verb, rest, which, mode, connect)


_FLAGS: dict[str, dict[str, object]] = {
    "half-open": {"allowHalfOpen": True},
    "tls": {"secureTransport": "on"},
    "starttls": {"secureTransport": "starttls"},
}


def _parse_connect(rest: str) -> dict[str, Any]:
    address: Any = ...
    options: dict[str, Any] = {}
    while rest := rest.lstrip():
        if (flag := re.match(r"[a-z-]+", rest)) and flag[0] in _FLAGS:
            options |= _FLAGS[flag[0]]
            rest = rest[flag.end() :]
            continue
        value, end = json.JSONDecoder().raw_decode(rest)
        rest = rest[end:]
        if address is ...:
            address = value
        else:
            options |= value
    if address is ...:
        # By name where there is TLS, for certificates are for names.
        host = "localhost" if "secureTransport" in options else "127.0.0.1"
        address = f"{host}:PORT"
    return {"address": address, "options": options}


def with_ports(value: Any, ports: Mapping[str, int]) -> Any:
    """``value`` with the names of ports replaced by their numbers, in text and as a number."""
    if isinstance(value, dict):
        return {key: with_ports(item, ports) for key, item in value.items()}
    if isinstance(value, str):
        if value in ports:
            return ports[value]
        for name, port in ports.items():
            value = value.replace(name, str(port))
    return value
