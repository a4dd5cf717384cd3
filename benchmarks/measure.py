"""Starts the peer and the contenders, and lets the contenders take turns."""

from __future__ import annotations

import json
import os
import random
import shutil
import ssl
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import trustme
from typing_extensions import Self

from benchmarks.services import HOST
from benchmarks.work import ROWS, Cost

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
    """The cost of a row for a contender, in each round."""

    row: str
    contender: Contender
    costs: dict[str, list[float]] = field(default_factory=dict)

    def add(self, cost: Cost) -> None:
        for measure, value in cost.items():
            self.costs.setdefault(measure, []).append(value)

    def median(self, measure: str) -> float | None:
        return statistics.median(self.costs[measure]) if measure in self.costs else None


def contenders() -> list[Contender]:
    """All installed contenders."""
    found = []
    for loop in ("asyncio", *["uvloop"] * bool(find_spec("uvloop"))):
        found += [
            Contender(OURS, loop, OURS),
            Contender("streams", loop, "open_connection"),
            Contender("anyio", loop, "anyio.connect_tcp"),
            Contender("sock", loop, "loop.sock_*"),
            Contender("protocol", loop, "bare Protocol"),
        ]
    found += [
        Contender(OURS, "trio", OURS),
        Contender("trio", "trio", "trio's streams"),
        Contender("anyio", "trio", "anyio.connect_tcp"),
        Contender("sock", "trio", "trio.socket"),
        Contender("blocking", "", "blocking socket"),
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

    def ready(self) -> None:
        """Wait until it has started."""

    def ask(self, **question: object) -> Any: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


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

    def ready(self) -> None:
        self.answer()

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

    def ready(self) -> None:
        pass

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
    """A core for the contenders and one for the peer; empty if that is not possible."""
    if sys.platform != "linux" or not shutil.which("taskset"):
        return "", ""
    mine = sorted(os.sched_getaffinity(0))
    return (str(mine[0]), str(mine[1])) if len(mine) > 1 else ("", "")


def on_core(core: str, *command: str) -> list[str]:
    return ["taskset", "--cpu-list", core, *command] if core else [*command]


class Start:
    """Starts contenders. ``ports`` are those of the peer: the plain ones, and those for TLS."""

    def __init__(self, directory: Path, env: dict[str, str], ports: list[list[int]]) -> None:
        self._directory = directory
        self._env = env
        self.ports = ports

    def __call__(self, contender: Contender) -> Process:
        core = cores()[0]
        if contender.name == "workerd":
            program = workerd()
            assert program is not None
            return WorkerdProcess(program, self._directory, core)
        trusted = str(self._directory / AUTHORITY)
        if contender.name == "node":
            command = on_core(core, "node", str(HERE / "node.mjs"), trusted)
        else:
            command = [sys.executable, "-m", "benchmarks.contenders.serve"]
            command += [contender.name, contender.loop, trusted, core]
        return LineProcess(command, self._env)


AUTHORITY = "authority.pem"


@contextmanager
def peer(directory: Path) -> Iterator[Start]:
    """Run the peer. Yields the object that starts contenders."""
    authority = trustme.CA()
    certificate = directory / "server.pem"
    issued = authority.issue_cert(HOST, key_type=trustme.KeyType.ECDSA)
    issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
    trusted = directory / AUTHORITY
    authority.cert_pem.write_to_path(str(trusted))
    # A client without its own settings trusts the system's authorities, and here this one too.
    system = ssl.get_default_verify_paths().cafile
    everybody = directory / "everybody.pem"
    everybody.write_bytes(trusted.read_bytes() + (Path(system).read_bytes() if system else b""))
    env = os.environ | {"SSL_CERT_FILE": str(everybody), "NODE_EXTRA_CA_CERTS": str(trusted)}
    command = on_core(cores()[1], sys.executable, "-m", "benchmarks.peer", str(certificate))
    with LineProcess(command, env) as process:
        yield Start(directory, env, process.answer())


# --- measuring


def turns(number: int, rounds: int, *, warm_up: bool) -> Iterator[tuple[int, list[int]]]:
    """For each round, its number and a random order in which the contenders take their turns.

    Round 0 is only a warm-up.
    """
    for each in range(0 if warm_up else 1, rounds + 1):
        yield each, random.sample(range(number), number)


def measure(
    name: str, found: Sequence[Contender], rounds: int, share: int, start: Start
) -> list[Result]:
    """Measure a row with all contenders that support it, each in a new process.

    Only one part in ``share`` of the work is done.
    """
    row = ROWS[name]
    results = [Result(name, each) for each in found if each.name not in row.without]

    def ask(process: Process, **more: object) -> Cost:
        amount, sockets = max(1, row.amount // share), max(1, row.sockets // share)
        ports = start.ports[row.tls]
        asked = {"row": name, "ports": ports, "tls": row.tls, "amount": amount}
        cost: Cost = process.ask(**asked | {"sockets": sockets} | more)
        return cost

    with ExitStack() as stack:
        processes: list[Process | None] = [
            None if row.afresh else stack.enter_context(start(result.contender))
            for result in results
        ]
        for process in processes:
            if process is not None:
                process.ready()
        long = row.rounds is not None
        for number, order in turns(len(results), row.rounds_of(rounds), warm_up=not long):
            for result, process in ((results[index], processes[index]) for index in order):
                if process is None:
                    with start(result.contender) as fresh:
                        fresh.ready()
                        result.add(ask(fresh))
                elif number:
                    result.add(ask(process))
                else:
                    ask(process)
        for result, process in zip(results, processes, strict=True):
            if process is not None and row.counts and result.contender.python:
                result.add(ask(process, amount=row.amount // 4, counts=True))
    return results


#: The packages measured with `import`: ours, and two well-known ones.
IMPORTED = (OURS, "asyncio", "trio")


def import_times(rounds: int) -> dict[str, list[float]]:
    """The CPU time that importing adds to ``import anyio``, in milliseconds."""
    program = (
        "import time, anyio; begun = time.process_time(); import {}; "
        "print((time.process_time() - begun) * 1000)"
    )
    command = on_core(cores()[0], sys.executable, "-c")
    # As usual, with the compiled code on the disk.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    found: dict[str, list[float]] = {module: [] for module in IMPORTED}
    for number, order in turns(len(IMPORTED), rounds, warm_up=True):
        for module in (IMPORTED[index] for index in order):
            output = subprocess.run(  # noqa: S603
                [*command, program.format(module)],
                check=True,
                capture_output=True,
                text=True,
                env=env,
            ).stdout
            if number:
                found[module].append(float(output))
    return found
