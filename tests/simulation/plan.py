"""Makes a history from a seed: the sockets, the properties of their peers, and the steps."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, get_args

Secure = Literal["off", "on", "starttls"]
#: What a host does with a connection attempt. "lost": an ICMP error is the answer.
Answer = Literal["serve", "refuse", "silent", "lost", "no way"]
#: receive(), receive_into(), receive_exactly() or receive_until()
Way = Literal["some", "into", "exactly", "until"]
Profile = Literal[
    "mixed", "streaming", "dialling", "race", "slots", "listen", "pipe", "rough", "stuck"
]

#: The addresses of a name, in the order in which they are used.
ADDRESSES = ("10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3")
#: The port of the first socket's target. The port of the second one's is one higher.
PORT = 1000


@dataclass(frozen=True)
class Route:
    """One address of a socket's target."""

    answer: Answer = "serve"
    delay: float = 0.0  #: how long it waits before that, in seconds


@dataclass(frozen=True)
class Subject:
    """One socket that is made by ``connect()``."""

    secure: Secure = "off"
    half_open: bool = False
    timeout: float | None = None  #: connect_timeout
    routes: tuple[Route, ...] = (Route(),)
    task_group: bool = False
    keep_alive: float | None = None  #: the simulated kernel accepts it, but sends no probes
    lenient: bool = False  #: require_close_notify=False


@dataclass(frozen=True)
class Step:
    """One act, and how long to wait after it: first some turns of the loop, then some time."""

    number: int
    kind: str
    who: int = 0  #: which socket
    size: int = 8  #: send
    most: int = 65536  #: receive
    way: Way = "some"  #: receive
    delimiter: bytes = b"M"  #: receive, in the way "until"
    back: int = 1  #: cancel: which of the calls in flight, counted from the latest
    late: bool = False  #: the scope of the call is cancelled before the call begins
    deadline: float | None = None  #: the deadline of the scope, in seconds
    old: bool = False  #: on the socket that start_tls() took over
    flags: tuple[str, ...] = ()  #: of pipe_to()
    turns: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The plan of a history, before it runs."""

    seed: int = 0
    profile: Profile = "mixed"
    subjects: tuple[Subject, ...] = ()
    steps: tuple[Step, ...] = ()
    max_connections: int | None = None
    #: The addresses that a policy forbids, as indices into ADDRESSES.
    forbidden: tuple[int, ...] = ()
    half_open: bool = False  #: of the sockets that the listener accepts
    tls12: bool = False  #: peers support no newer TLS
    buffers: tuple[int, int, int, int] = (
        65536,
        65536,
        65536,
        65536,
    )  #: ours to send, receive; the peer's
    delays: tuple[float, float] = (0.0, 0.0)  #: from us to the peer, and from the peer to us
    jitter: float = 0.0
    mss: int = 16384
    short: float = 0.0
    ack_delay: float = 0.0
    read_delay: float = 0.0  #: time between two reads of a peer
    resolving: float = 0.0
    resolver: bool = False  #: a resolver of the user looks names up
    prepare: bool = False  #: a function of the user prepares sockets
    drain: bool = False  #: before closing, read what is left


CALLS = (
    *("receive", "send", "send_eof", "w.aclose", "r.aclose", "close", "abort", "start_tls"),
    *("opened", "closed", "pipe"),
)
_WEIGHTS = {
    "receive": 16.0,
    "readable?": 2.0,
    "send": 16.0,
    "send_eof": 2.0,
    "w.aclose": 2.0,
    "r.aclose": 1.0,
    "close": 1.2,
    "abort": 1.0,
    "start_tls": 1.5,
    "detach": 3.0,
    "opened": 2.0,
    "closed": 4.0,
    "cancel": 6.0,
    "native": 2.0,
    "starve": 0.3,
    "feed": 0.5,
    "p.send": 12.0,
    "p.fin": 1.5,
    "p.bare": 0.5,
    "p.reset": 0.8,
    "p.close": 0.7,
    "p.stop": 3.0,
    "p.read": 4.0,
}
_ENDS = (
    *("send_eof", "w.aclose", "r.aclose", "close", "abort", "start_tls"),
    *("p.fin", "p.bare", "p.reset", "p.close"),
)
_PIPING = {"pipe": 3.0, "send": 0.0, "p.send": 16.0, "p.reset": 2.0, "cancel": 3.0}
_ROUGH = {
    "receive": 6.0,
    "p.reset": 5.0,
    "p.close": 3.0,
    "p.send": 16.0,
    "close": 3.0,
    "w.aclose": 0.5,
}
_STUCK = {"p.stop": 9.0, "p.read": 2.0, "close": 4.0, "closed": 6.0, "receive": 8.0}


def plan(seed: int) -> Plan:
    """The history of a seed."""
    rng = random.Random(seed)
    profile: Profile = rng.choices(get_args(Profile), (15, 12, 14, 12, 10, 10, 12, 9, 9))[0]
    subjects = _subjects(rng, profile)
    return Plan(
        seed,
        profile,
        subjects,
        _steps(rng, profile, subjects),
        max_connections=rng.randint(1, 2) if profile == "slots" else None,
        forbidden=tuple(n for n in range(4) if profile == "race" and rng.random() < 0.15),
        half_open=rng.random() < 0.6,
        tls12=rng.random() < 0.2,
        buffers=(_buffer(rng), _buffer(rng), _buffer(rng), _buffer(rng)),
        delays=(rng.choice((0, 0.0005, 0.02)), rng.choice((0, 0.0005, 0.02))),
        jitter=rng.choice((0, 0, 0.01)),
        mss=rng.choice((100, 1460, 16384)),
        short=rng.choice((0, 0, 0.3)),
        ack_delay=rng.choice((0, 0, 0.04)),
        read_delay=rng.choice((0, 0, 0.003)),
        resolving=rng.choice((0, 0.001, 0.2)),
        resolver=rng.random() < 0.3,
        prepare=rng.random() < 0.3,
        drain=rng.random() < 0.5,
    )


def _buffer(rng: random.Random) -> int:
    return rng.choice((4096, 16384, 65536))


def _subjects(rng: random.Random, profile: Profile) -> tuple[Subject, ...]:
    if profile == "listen":
        return ()
    count = {"slots": rng.randint(2, 4), "pipe": 2}.get(profile, 1)
    return tuple(_subject(rng, profile) for _ in range(count))


def _subject(rng: random.Random, profile: Profile) -> Subject:
    kinds: tuple[Secure, ...] = ("off", "starttls", "on")
    secure = rng.choices(kinds, (60, 25, 15))[0]
    count = rng.randint(2, 4) if profile == "race" else 1
    answers: tuple[Answer, ...] = ("serve", "refuse", "silent", "lost", "no way")
    weights = (40, 20, 20, 10, 10) if profile == "race" else (90, 3, 5, 1, 1)
    delays = (0.0, 0.0, 0.001, 0.3, 1.0)
    if profile in ("dialling", "race"):
        # Together with the delay between two attempts, some of these times are the same.
        delays = (0.005, 0.05, 0.25, 0.255, 0.3)
    return Subject(
        secure,
        half_open=rng.random() < 0.6,
        timeout=rng.choice((None, None, 0.5, 5.0)),
        routes=tuple(
            Route(rng.choices(answers, weights)[0], rng.choice(delays)) for _ in range(count)
        ),
        task_group=rng.random() < 0.3,
        keep_alive=rng.choice((None, None, 1, math.inf)),
        lenient=secure != "off" and rng.random() < 0.4,
    )


def _steps(
    rng: random.Random, profile: Profile, subjects: tuple[Subject, ...]
) -> tuple[Step, ...]:
    weights = dict(_WEIGHTS)
    if profile == "pipe":
        weights.update(_PIPING)
    if profile == "rough":
        weights.update(_ROUGH)
    if profile == "stuck":
        weights.update(_STUCK)
    if any(subject.secure != "off" for subject in subjects):
        weights["p.bare"] = 3.0
    if profile == "listen":
        weights.update({"knock": 6.0, "l.close": 0.4})
    kinds = [*weights]
    calm = [w / 12 if kind in _ENDS else w for kind, w in weights.items()]
    count = rng.randint(8, 50)
    people = {"listen": 3}.get(profile, max(1, len(subjects)))
    steps = []
    for number in range(count):
        quiet = profile == "streaming" and number < count - 12
        kind = rng.choices(kinds, calm if quiet else [*weights.values()])[0]
        who = rng.randrange(people)
        if number == 0 and profile in ("listen", "pipe"):
            kind = "knock" if profile == "listen" else "pipe"
        if kind == "start_tls" and not (subjects and subjects[who].secure == "starttls"):
            kind = "receive" if profile == "pipe" else "send"
        if profile == "pipe":
            who, kind = _piped(rng, who, kind)
        steps.append(_step(rng, number, kind, who))
    return tuple(steps)


def _piped(rng: random.Random, who: int, kind: str) -> tuple[int, str]:
    """The first socket is piped to the second. No other step reads from or sends to them."""
    if kind == "pipe":
        return 0, kind
    if kind == "receive":
        return 1, kind
    if kind == "p.reset":
        return 0, kind
    if kind == "send":
        return 0, kind
    if kind == "p.send":
        return rng.choice((0, 0, 0, 1)), kind
    return who, kind


def _step(rng: random.Random, number: int, kind: str, who: int) -> Step:
    flags = ("prevent_close", "prevent_abort", "prevent_cancel", "whole")
    turns, seconds = rng.choices(
        ((0, 0.0), (1, 0.0), (3, 0.0), (0, 0.0005), (0, 0.004), (0, 1.5), (0, 6.0)),
        (50, 15, 10, 10, 10, 4, 1),
    )[0]
    call = kind in CALLS and kind != "start_tls"
    return Step(
        number,
        kind,
        who,
        way=rng.choices(get_args(Way), (40, 15, 20, 25))[0],
        delimiter=rng.choice((b"M", b"M", b"\0\0", b"\n\n\n", bytes([number]) * 2)),
        size=rng.choice((8, 20, 1000, 9000, 150_000, 150_000)),
        most=rng.choice((1, 10, 1000, 65536)),
        back=rng.randint(1, 4),
        late=call and rng.random() < 0.05,
        deadline=rng.choice((0.0005, 0.01, 0.5)) if call and rng.random() < 0.06 else None,
        old=kind == "send" and rng.random() < 0.1,
        flags=tuple(f for f in flags if rng.random() < 0.2) if kind == "pipe" else (),
        turns=turns,
        seconds=seconds,
    )
