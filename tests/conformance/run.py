"""Runs scenarios on this package and on workerd, and records the outcomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from anyio.from_thread import start_blocking_portal

from conformance import ours, workerd
from conformance.certificates import Certificates
from conformance.peer import Peer
from conformance.scenarios import Scenario
from conformance.steps import PATIENCE, PENDING, QUIET, STILL_OPEN, Step, with_ports


class Client(Protocol):
    """Does the client's steps. Each returns its outcome, and more details for people."""

    def step(self, **arguments: Any) -> tuple[str, str]: ...


Start = Callable[[], AbstractContextManager[Client]]


@dataclass
class Trace:
    """The outcome of each observed step, by its name."""

    outcomes: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Traces:
    """The traces of a scenario: on workerd, and here on each event loop."""

    workers: Trace
    here: Mapping[str, Trace]


def on_workerd(port: int) -> Start:
    return lambda: workerd.scenario(port)


def on_backend(backend: str) -> Start:
    @contextmanager
    def start() -> Iterator[Client]:
        with (
            start_blocking_portal(backend) as portal,
            portal.wrap_async_context_manager(ours.Scenario.begun()) as scenario,
        ):

            class OnLoop:
                def step(self, **arguments: Any) -> tuple[str, str]:
                    return portal.call(lambda: scenario.step(**arguments))

            yield OnLoop()

    return start


def run(
    scenario: Scenario, start: Start, certificates: Certificates, expected: Mapping[str, str]
) -> Trace:
    """Run a scenario.

    If ``expected`` says that a step waits in vain, it waits only briefly. If connect() raises, or
    a step cannot be done, the trace ends.
    """
    trace = Trace()
    peer = Peer(certificates, PATIENCE)
    peers = {"now": peer, "old": peer}
    if any(step.which == "other" for step in scenario.steps):
        peers["other"] = Peer(certificates, PATIENCE)
    ports = {"PORT": peer.port}
    text = " ".join(step.text for step in scenario.steps)
    if "REFUSING" in text:
        ports["REFUSING"] = peer.refusing_port()
    if "SILENT" in text:
        ports["SILENT"] = peer.silent_port()
    try:
        with start() as client:
            for step in scenario.steps:
                awaited = expected.get(step.name, step.rest if step.verb == "view" else "")
                quiet = step.quiet or awaited.endswith((PENDING, STILL_OPEN))
                try:
                    theirs = peers[step.which]
                    where = ports | {"PORT": theirs.port}
                    outcome, detail = _do(
                        step, client, theirs, where, QUIET if quiet else PATIENCE
                    )
                except Exception as exc:  # noqa: BLE001 - it is reported
                    trace.outcomes[step.name] = f"failed: {exc!r}"
                    break
                if outcome is not None:
                    trace.outcomes[step.name] = outcome
                if detail:
                    trace.details[step.name] = detail
                if step.verb == "connect" and outcome == "throws":
                    break
    finally:
        for each in peers.values():
            each.close()
    return trace


def _do(
    step: Step, client: Client, peer: Peer, ports: Mapping[str, int], wait: float
) -> tuple[str | None, str]:
    """Do one step; return its outcome for the trace, if any, and more details for people."""
    if step.peer:
        return peer.step(step.verb, step.rest, wait), ""
    outcome, detail = client.step(
        verb=step.verb,
        rest=step.rest,
        which=step.which,
        mode=step.mode,
        wait=wait,
        connect=with_ports(step.connect, ports),
    )
    if outcome == "begun":
        return None, ""
    if step.verb == "info":
        # These parts differ from run to run, and between machines.
        for name, port in ports.items():
            outcome = outcome.replace(f":{port}", f":{name}")
        outcome = re.sub(r"^(127\.0\.0\.1|\[::1\])", "LOOPBACK", outcome)
        outcome = re.sub(r":[0-9]+$", ":ANY", outcome)
    return outcome, detail
