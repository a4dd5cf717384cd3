"""The steps of a scenario: how they are written, and what is reported of each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: How long to wait for something that should not happen, in seconds.
QUIET = 0.25

#: How long to wait for something that should happen, in seconds. It never takes that long.
PATIENCE = 20

#: The outcome of a step that waited in vain.
PENDING = "pending"

#: The outcome if the client's side has not ended.
STILL_OPEN = "open"


@dataclass(frozen=True)
class Step:
    """One line of a scenario.

    ``peer VERB ...`` is a step of the scripted peer: see peer.py. All others are steps of the
    client:

    ``connect [half-open] [tls | starttls] [ADDRESS] [OPTIONS]`` ADDRESS and OPTIONS are JSON, in
        the form that Workers accept. In an address, PORT, REFUSING and SILENT stand for the peer's
        port, a port on which nothing listens, and a port that does not answer. ``startTls
        [OPTIONS]`` The next steps use the new socket. A step with ``old`` before it uses the old
        one. ``other STEP`` A step of a second socket, or of its peer: ``other connect``, ``other
        peer read 5``. ``read [N]``, ``take N``, ``write TEXT``, ``write-str TEXT``,
        ``write-view``, ``flood N``, ``end``, ``cancel``, ``abort``, ``pipe [other [OPTION ...]]``,
        ``close`` A call on a socket. A read waits for at least N bytes, and a take for at most N.
        The writes are of bytes, a str, an array of wider numbers, and N zeros. A pipe goes into
        the socket itself or into the other one; its options are those of ``pipeTo()`` that are
        true. ``opened``, ``closed``, ``upgraded``, ``secure``, ``info remote | local | alpn`` The
        facts about the socket.

    A step waits for its outcome. ``begin STEP`` does not wait, ``finish STEP`` waits for it later,
    and ``quiet STEP`` checks that there is no outcome yet.
    """

    text: str
    #: The name of the step in the ledger: its text, with a number if several steps have this text.
    name: str
    peer: bool = False
    verb: str = ""
    rest: str = ""
    which: str = "now"
    mode: str = ""
    connect: Mapping[str, Any] = field(default_factory=dict)

    @property
    def quiet(self) -> bool:
        """Whether the step expects that nothing happens."""
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
        # By name with TLS, because certificates are valid for names.
        host = "localhost" if "secureTransport" in options else "127.0.0.1"
        address = f"{host}:PORT"
    return {"address": address, "options": options}


def with_ports(value: Any, ports: Mapping[str, int]) -> Any:
    """``value`` with the names of ports replaced by their numbers, also within texts."""
    if isinstance(value, dict):
        return {key: with_ports(item, ports) for key, item in value.items()}
    if isinstance(value, str):
        if value in ports:
            return ports[value]
        for name, port in ports.items():
            value = value.replace(name, str(port))
    return value
