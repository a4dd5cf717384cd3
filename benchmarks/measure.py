"""Starts the peer and the contenders, and has the contenders take turns."""

from __future__ import annotations

import json
import os
import random
import shutil
import ssl
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import trustme
from typing_extensions import Self

from benchmarks.services import HOST
from benchmarks.work import WORKS

OURS = "anyio_connect"
HERE = Path(__file__).parent / "contenders"

#: The directory into which npm has put workerd.
WORKERD = "ANYIO_CONNECT_WORKERD"


@dataclass(frozen=True)
class Contender:
    """A kind of socket, on an event loop."""

    name: str
    loop: str
    title: str

    @property
    def python(self) -> bool:
        return self.name not in ("node", "workerd")


@dataclass
class Result:
    """What came of one work for one contender, over all rounds."""

    work: str
    tls: bool
    contender: Contender
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def contenders() -> list[Contender]:
    """All that are installed."""
    found = [Contender("blocking", "", "blocking socket")]
    for loop in ("asyncio", *["uvloop"] * bool(find_spec("uvloop"))):
        found += [
            Contender(OURS, loop, OURS),
            Contender("streams", loop, "open_connection"),
            Contender("anyio", loop, "anyio.connect_tcp"),
        ]
    found += [
        Contender(OURS, "trio", OURS),
        Contender("trio", "trio", "trio's streams"),
        Contender("anyio", "trio", "anyio.connect_tcp"),
    ]
    if shutil.which("node"):
        found.append(Contender("node", "", "Node"))
    if workerd() is not None:
        found.append(Contender("workerd", "", "workerd"))
    return found


def workerd() -> Path | None:
    where = os.environ.get(WORKERD)
    if not where:
        return None
    return next(Path(where).glob("node_modules/@cloudflare/workerd-*/bin/*"), None)


# --- processes


class Process(Protocol):
    """Answers each question."""

    def ask(self, **question: object) -> Any: ...


class LineProcess:
    """A line of JSON in, a line of JSON out."""

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} has ended: {self._process.wait()}")
        return json.loads(line)

    def ask(self, **question: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class WorkerdProcess:
    """A request each."""

    def __init__(self, program: Path, directory: Path, core: str) -> None:
        for name in ("workerd.capnp", "worker.js", "works.mjs"):
            shutil.copy(HERE / name, directory)
        reading, writing = os.pipe()
        command = on_core(core, str(program), "serve", "workerd.capnp", f"--control-fd={writing}")
        self._process = subprocess.Popen(  # noqa: S603
            command, cwd=directory, pass_fds=[writing]
        )
        os.close(writing)
        with os.fdopen(reading) as control:
            self._port = json.loads(control.readline())["port"]

    def ask(self, **question: object) -> Any:
        http = HTTPConnection(HOST, self._port)
        try:
            http.request("POST", "/", json.dumps(question))
            answer = http.getresponse().read()
        finally:
            http.close()
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def cores() -> tuple[str, str]:
    """A core for the contenders and one for the peer; empty where that cannot be had."""
    if sys.platform != "linux" or not shutil.which("taskset"):
        return "", ""
    mine = sorted(os.sched_getaffinity(0))
    return (str(mine[0]), str(mine[1])) if len(mine) > 1 else ("", "")


def on_core(core: str, *command: str) -> list[str]:
    return ["taskset", "--cpu-list", core, *command] if core else [*command]


@contextmanager
def started(directory: Path) -> Iterator[tuple[Callable[[Contender], Any], list[list[int]]]]:
    """Start the peer. Yields what starts a contender, and the ports of the peer."""
    authority = trustme.CA()
    certificate = directory / "server.pem"
    issued = authority.issue_cert(HOST, key_type=trustme.KeyType.ECDSA)
    issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
    trusted = directory / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    # Who says nothing about certificates trusts the system's authorities, and here this one too.
    system = ssl.get_default_verify_paths().cafile
    everybody = directory / "everybody.pem"
    everybody.write_bytes(trusted.read_bytes() + (Path(system).read_bytes() if system else b""))
    env = os.environ | {"SSL_CERT_FILE": str(everybody), "NODE_EXTRA_CA_CERTS": str(trusted)}
    ours, theirs = cores()

    def start(contender: Contender) -> LineProcess | WorkerdProcess:
        if contender.name == "workerd":
            program = workerd()
            assert program is not None
            return WorkerdProcess(program, directory, ours)
        if contender.name == "node":
            command = ["node", str(HERE / "node.mjs"), str(trusted)]
        else:
            command = [sys.executable, "-m", "benchmarks.contenders.serve"]
            command += [contender.name, contender.loop, str(trusted)]
        return LineProcess(on_core(ours, *command), env)

    serve = on_core(theirs, sys.executable, "-m", "benchmarks.peer", str(certificate))
    with LineProcess(serve, env) as peer:
        yield start, peer.answer()


# --- measuring


def measure(
    found: Sequence[Contender],
    works: Sequence[str],
    rounds: int,
    share: int,
    directory: Path,
    say: Callable[[str], None],
) -> list[Result]:
    """All the works by all the contenders in turn, in another order each round.

    Only one part in ``share`` of each is done.
    """
    results = [
        Result(name, tls, contender)
        for tls in (False, True)
        for name in works
        for contender in found
        if (WORKS[name].tls_amount if tls else WORKS[name].amount)
        and (contender.python or not WORKS[name].afresh)
    ]
    turns: dict[tuple[str, bool], list[Result]] = {}
    for result in results:
        turns.setdefault((result.work, result.tls), []).append(result)
    with started(directory) as (start, ports), ExitStack() as stack:
        processes = {contender: stack.enter_context(start(contender)) for contender in found}

        def take_turn(process: Process, result: Result) -> float:
            work = WORKS[result.work]
            amount = work.tls_amount if result.tls else work.amount
            value: float = process.ask(
                work=result.work,
                tls=result.tls,
                ports=ports[result.tls],
                amount=max(1, amount // share),
            )
            return value

        for number in range(rounds + 1):
            for (name, _), turn in turns.items():
                for result in random.sample(turn, len(turn)):
                    if not WORKS[name].afresh:
                        value = take_turn(processes[result.contender], result)
                    elif number == 0:
                        continue
                    else:
                        with start(result.contender) as process:
                            value = take_turn(process, result)
                    if number:  # the first round only warms up
                        result.values.append(value)
            say(f"round {number} of {rounds}")
    return results


def import_times(rounds: int) -> dict[str, float]:
    """What importing adds to ``import anyio``, in milliseconds."""
    program = (
        "import time, anyio; begun = time.perf_counter(); import {}; "
        "print((time.perf_counter() - begun) * 1000)"
    )
    command = on_core(cores()[0], sys.executable, "-c")
    # In the usual way: with the compiled code that is on the disk.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

    def once(module: str) -> float:
        output = subprocess.run(  # noqa: S603
            [*command, program.format(module)], check=True, capture_output=True, text=True, env=env
        ).stdout
        return float(output)

    return {
        module: statistics.median([once(module) for _ in range(rounds + 2)][2:])
        for module in (OURS, "asyncio", "trio")
    }
