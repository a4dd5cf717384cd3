"""Faults of the package that the simulation finds and that are not fixed yet.

Each has a history that shows it. A test runs these histories. If a history no longer shows its
fault, the test fails: move the history to ``MENDED``. The list should become empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from .plan import Plan, Route, Step, Subject


@dataclass(frozen=True)
class Known:
    fault: str  #: its name in judge.py; `*` matches any text
    why: str
    plan: Plan
    schedulers: tuple[str, ...] = ("asyncio", "uvloop", "trio")  #: on which the history shows it


KNOWN: tuple[Known, ...] = ()

#: Histories that showed a fault once. None may show any.
MENDED: tuple[Plan, ...] = (
    # A cancelled receive took data that arrived in the same turn.
    Plan(
        subjects=(Subject(),),
        steps=(
            Step(0, "receive", seconds=1.5),
            Step(13, "cancel"),
            Step(14, "receive", late=True),
            Step(16, "p.send"),
        ),
    ),
    # A send that waited for the connection was not in flight yet.
    Plan(
        subjects=(Subject("starttls"),),
        steps=(Step(7, "send"), Step(8, "receive", turns=3), Step(9, "start_tls")),
    ),
    Plan(
        subjects=(Subject("starttls"),),
        steps=(Step(1, "send"), Step(2, "w.aclose", turns=3), Step(12, "start_tls")),
    ),
    # close() of a socket that start_tls() had taken over waited for its dial.
    Plan(
        subjects=(Subject("starttls", routes=(Route("silent"),), task_group=True),),
        steps=(Step(8, "start_tls"),),
    ),
    # close() did not linger until the peer had acknowledged everything.
    Plan(
        subjects=(Subject(),),
        steps=(
            Step(0, "send", size=9000),
            Step(1, "opened", seconds=0.0005),
            Step(2, "close"),
            Step(3, "p.send"),
        ),
        buffers=(16384, 16384, 16384, 4096),
        jitter=0.01,
    ),
    # close() waited for a send that waited for a dial that never ended.
    Plan(subjects=(Subject(routes=(Route("silent"),)),), steps=(Step(28, "w.aclose"),)),
    # close() waited for a send that made no progress.
    Plan(
        subjects=(Subject(),),
        steps=(
            Step(7, "opened", seconds=1.5),
            Step(9, "p.stop"),
            Step(17, "send", size=150_000, seconds=1.5),
            Step(36, "close"),
        ),
    ),
    # abort() of a TLS socket that had not begun ended the plain connection cleanly.
    Plan(
        subjects=(Subject("starttls"),),
        steps=(Step(22, "send", turns=3), Step(24, "start_tls"), Step(25, "abort")),
    ),
    # A wait for `closed` went on making the connection after start_tls().
    Plan(
        subjects=(Subject("starttls", routes=(Route("silent"),)),),
        steps=(Step(6, "closed", turns=2), Step(24, "start_tls")),
    ),
    # Data arrived in the turn in which a cancellation was due.
    Plan(
        subjects=(Subject(),),
        steps=(
            Step(0, "receive", seconds=1.5),
            Step(13, "cancel"),
            Step(14, "receive", late=True),
            Step(16, "p.send"),
        ),
    ),
    # close() had no free descriptor, and did not check whether the peer had received everything.
    Plan(
        subjects=(Subject(),),
        steps=(
            Step(4, "send"),
            Step(9, "opened", seconds=0.5),
            Step(10, "starve"),
            Step(11, "send"),
            Step(12, "close", seconds=6.5),
        ),
        delays=(0.02, 0.02),
    ),
    # pipe_to() looked at its destination only when it had a chunk for it.
    Plan(
        profile="pipe",
        subjects=(Subject(), Subject()),
        steps=(Step(13, "r.aclose", who=1), Step(14, "pipe"), Step(15, "send_eof", who=1)),
    ),
    # An error overtook the cancellation that was due.
    Plan(
        subjects=(Subject(),),
        steps=(Step(3, "send_eof"), Step(4, "send", late=True), Step(7, "close")),
    ),
    # A result overtook the cancellation that was due.
    Plan(
        subjects=(Subject(),),
        steps=(
            Step(9, "w.aclose"),
            Step(10, "p.send", seconds=1.5),
            Step(15, "closed"),
            Step(19, "closed", late=True),
            Step(21, "r.aclose"),
        ),
    ),
    Plan(
        subjects=(Subject(task_group=True),),
        steps=(Step(9, "send", late=True), Step(12, "abort")),
    ),
    # After send_eof() and abort() in one turn, the peer saw a clean end of an aborted stream.
    Plan(
        subjects=(Subject(),),
        steps=(Step(17, "closed", seconds=1.5), Step(20, "send_eof"), Step(21, "abort")),
    ),
    # The simulated network counted an acknowledgement that arrived after a reset.
    Plan(
        subjects=(Subject(),),
        steps=(
            Step(21, "opened", seconds=1.5),
            Step(30, "p.stop"),
            Step(34, "send", seconds=0.004),
            Step(37, "p.reset"),
        ),
        ack_delay=0.04,
    ),
    # readable.aclose() was cancelled while it closed the socket. The judge did not permit it to
    # leave the rest to the kernel, as it permits it to the other calls that close.
    Plan(
        subjects=(Subject(),),
        steps=(
            Step(13, "opened", seconds=6.0),
            Step(15, "send", size=9000, seconds=0.0005),
            Step(16, "send_eof", turns=3),
            Step(18, "r.aclose", turns=3),
            Step(19, "cancel"),
            Step(24, "p.send", size=150_000),
        ),
        buffers=(16384, 65536, 4096, 4096),
        delays=(0.02, 0),
    ),
)


def unknown(faults: list[str]) -> list[str]:
    """The faults that are not known, each once."""
    patterns = [each.fault for each in KNOWN]
    return [
        fault
        for fault in dict.fromkeys(faults)
        if not any(fnmatchcase(fault, pattern) for pattern in patterns)
    ]
