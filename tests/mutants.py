"""Break the code in every small way, one at a time, and check that a test fails.

``nox -s mutants`` runs this, which takes an hour. Arguments limit it::

    nox -s mutants -- _lifecycle _policy        # these modules
    nox -s mutants -- --since main              # only what has changed since that commit
    nox -s mutants -- --lines 120-180 _streams  # only these lines, of one module

It fails if a mutant survives that is not explained in MUTANTS.md. It also fails if an explained
mutant was killed, unless only a part of the module was tried.

Cosmic Ray makes the changes. It must be installed in the environment of the Python that runs this,
with everything that the tests need, but without the package: the tests must import the broken
copy.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

#: The directory of this environment's commands.
BIN = Path(sys.executable).parent

#: The modules to break, and the tests that have to notice it.
MUTATED = {
    "_lifecycle": "tests/test_lifecycle.py tests/test_lifecycle_changed.py",
    "_address": "tests/test_address.py",
    "_policy": "tests/test_policy.py",
    "_ranges": "tests/test_policy.py",
    "_streams": "tests/test_socket.py tests/test_socket_end.py tests/test_pipe.py "
    "tests/test_stream_checks.py",
    "_socket": "tests/test_socket.py tests/test_socket_end.py tests/test_start_tls.py "
    "tests/test_options.py",
    "_tls": "tests/test_tls_transport.py tests/test_tls_end.py tests/test_tls_in_tls.py "
    "tests/test_tls_renegotiation.py tests/test_tls_handshake.py tests/test_trio_checks.py",
    "_tls_contexts": "tests/test_tls_contexts.py tests/test_tls_handshake.py "
    "tests/test_faults.py::test_no_descriptor_for_the_authorities",
    "_tls_handshake": "tests/test_tls_handshake.py tests/test_tls_contexts.py "
    "tests/test_tls_end.py tests/test_tls_in_tls.py",
    # Random histories find most mutants within a second, so they come first.
    "_connection": "tests/test_simulation.py::test_mended_faults_do_not_come_back "
    "tests/test_simulation.py::test_random_histories tests/test_in_flight.py "
    "tests/test_dropped.py tests/test_closing.py tests/test_pipe.py tests/test_socket.py "
    "tests/test_socket_end.py tests/test_start_tls.py tests/test_connector.py "
    "tests/test_slots.py tests/test_detach.py tests/test_loop_closed.py "
    "tests/test_tls_end.py::test_a_task_that_awaits_closed_ends_our_side_when_there_is_room "
    "tests/test_tls_end.py::test_a_task_that_awaited_closed_before_ends_our_side_too "
    "tests/test_tls_in_tls.py::test_an_end_that_is_cancelled_half_way_cuts_a_message",
    "_opener": "tests/test_closing.py tests/test_socket_end.py tests/test_start_tls.py "
    "tests/test_wrap.py",
    "_refusals": "tests/test_stream_checks.py tests/test_start_tls.py tests/test_detach.py "
    "tests/test_socket.py tests/test_socket_end.py tests/test_reading.py",
}

#: The same histories for each mutant. A failing history is not shortened.
SAME_HISTORIES = {
    "SIMULATION_SEED": "0",
    "SIMULATION_COUNT": "400",
    "SIMULATION_SHRINK": "0",
}

#: Changes that make no difference, or none that a test could notice: `|` in an annotation, and an
#: order comparison in place of `is`.
NO_MUTATIONS = [
    "core/ReplaceBinaryOperator_BitOr_.*",
    "core/ReplaceComparisonOperator_Is(Not)?_(Lt|LtE|Gt|GtE|Eq|NotEq)",
]


class Part(NamedTuple):
    """Which mutants of a module are tried."""

    #: Only those in lines that have changed since this commit.
    since: str | None = None
    #: Only those in these lines: ``"120-180"``.
    lines: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """Try the mutants; print the differences from MUTANTS.md, and return the exit status."""
    about = str(__doc__).partition("\n")[0]
    parser = argparse.ArgumentParser(prog="nox -s mutants --", description=about)
    every = ", ".join(MUTATED)
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help=f"some of {every}; by default all"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--since", metavar="COMMIT", help="only lines that have changed since this commit"
    )
    only.add_argument("--lines", metavar="FIRST-LAST", help="only these lines, of one module")
    parser.add_argument("--work", type=Path, required=True, help="a directory for the copies")
    given = parser.parse_args(arguments)
    if unknown := [module for module in given.modules if module not in MUTATED]:
        parser.error(f"these modules are not tried: {', '.join(unknown)}")
    if given.lines and len(given.modules) != 1:
        parser.error("--lines needs the name of one module")
    part = Part(given.since, given.lines)
    work = given.work.resolve()
    explained = survivors_explained((ROOT / "tests" / "MUTANTS.md").read_text(encoding="utf-8"))
    surprises: list[str] = []
    with breakers(work) as urls:
        for module in given.modules or MUTATED:
            found = mutate(module, part, work, urls)
            wanted = explained.get(module, set())
            surprises += (f"{module}: survived\n{diff}" for diff in sorted(found - wanted))
            if part == Part():
                killed = sorted(wanted - found)
                surprises += (f"{module}: explained, but killed\n{diff}" for diff in killed)
    if surprises:
        advice = (
            "Write a test that fails for each survivor. If none can, say why in tests/MUTANTS.md, "
            "under the heading of the module. Remove the mutants that were killed."
        )
        print(*surprises, advice, sep="\n\n", file=sys.stderr)
    return 1 if surprises else 0


@contextmanager
def breakers(work: Path) -> Iterator[list[str]]:
    """Run a process for each core, which breaks and tests its own copy; yield their addresses."""
    # The tests run in this environment, and so does the command.
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    env = {**os.environ, **SAME_HISTORIES, "PATH": path}
    urls = []
    with ExitStack() as stack:
        for number in range(cores()):
            copy = work / f"tree-{number}"
            shutil.rmtree(copy, ignore_errors=True)
            ignored = shutil.ignore_patterns(".*", "__pycache__")
            shutil.copytree(ROOT, copy, ignore=ignored)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command = [str(BIN / "cosmic-ray"), "http-worker", f"--port={port}"]
            worker = stack.enter_context(
                subprocess.Popen(command, cwd=copy, env=env, stdout=subprocess.DEVNULL)
            )
            stack.callback(worker.terminate)
            while not answers(port) and worker.poll() is None:
                time.sleep(0.1)
            urls.append(f"http://127.0.0.1:{port}")
        yield urls


def cores() -> int:
    """The number of cores that this process may use, which ``taskset`` can limit."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def answers(port: int) -> bool:
    """Whether a process listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def mutate(module: str, part: Part, work: Path, urls: list[str]) -> set[str]:
    """Try the mutants of a module, at these addresses; return the diffs of the survivors."""
    tree = work / "tree-0"
    # One event loop is enough, and trio is the strictest. The first failure ends a run.
    tests = f"{MUTATED[module]} -k 'not asyncio and not uvloop and not soak'"
    # A test that blocks its thread for that long hangs. This does not limit the whole run.
    command = f"python -m pytest -p no:cacheprovider -o faulthandler_timeout=120 -x -q {tests}"
    started = time.monotonic()
    run(sys.executable, *shlex.split(command)[1:], cwd=tree)  # without a change, they pass
    took = time.monotonic() - started
    config, results = work / f"{module}.toml", work / f"{module}.sqlite"
    config.write_text(configuration(module, part, command, 10 + 3 * took, urls), encoding="utf-8")
    run(BIN / "cosmic-ray", "init", "--force", config, results, cwd=tree)
    run(BIN / "cr-filter-operators", results, config, cwd=tree)
    if part.lines:
        run(BIN / "cr-filter-lines", results, "--config", config, cwd=tree)
    if part.since:
        run(BIN / "cr-filter-git", results, "--config", config, cwd=ROOT)  # copies have no history
    run(BIN / "cosmic-ray", "exec", config, results, cwd=tree)
    dump = run(BIN / "cosmic-ray", "dump", results, cwd=tree, capture=True)
    killed, other, survivors = 0, 0, []
    for line in dump.splitlines():
        _, result = json.loads(line)
        result = result or {"worker_outcome": "none", "test_outcome": None}
        if result["worker_outcome"] == "skipped":
            continue
        if result["worker_outcome"] == "abnormal":
            raise SystemExit(f"{module}: {result['output']}")
        if result["test_outcome"] == "survived":
            survivors.append(changed_lines(result["diff"]))
        elif result["test_outcome"] == "killed":
            killed += 1
        else:  # it could not be made, so no test ran
            other += 1
    tried = killed + len(survivors)
    print(f"{module}: {killed} of {tried} mutants killed; {other} could not be tried", flush=True)
    return set(survivors)


def configuration(module: str, part: Part, command: str, timeout: float, urls: list[str]) -> str:
    """The configuration of Cosmic Ray, as TOML. A test run longer than ``timeout`` hangs."""
    path = f"anyio_connect/{module}.py"
    tables: dict[str, dict[str, object]] = {
        "cosmic-ray": {
            "module-path": path,
            "timeout": timeout,
            "excluded-modules": [],
            "test-command": command,
        },
        "cosmic-ray.distributor": {"name": "http"},
        "cosmic-ray.distributor.http": {"worker-urls": urls},
        "cosmic-ray.filters.operators-filter": {"exclude-operators": NO_MUTATIONS},
    }
    if part.since:
        tables["cosmic-ray.filters.git-filter"] = {"branch": part.since}
    if part.lines:
        tables["cosmic-ray.filters.line-filter.lines"] = {json.dumps(path): part.lines}
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines)


def run(*command: str | Path, cwd: Path, capture: bool = False) -> str:
    """Run a command, which has to succeed; return its output, if that is captured."""
    words = [str(word) for word in command]
    env = {**os.environ, **SAME_HISTORIES}
    stdout = subprocess.PIPE if capture else None
    ran = subprocess.run(words, cwd=cwd, env=env, stdout=stdout, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"failed, with status {ran.returncode}: {shlex.join(words)}")
    return ran.stdout or ""


def changed_lines(diff: str) -> str:
    """The changed lines of a diff, without their positions."""
    lines = (line.rstrip() for line in diff.splitlines())
    return "\n".join(
        line for line in lines if line[:1] in ("-", "+") and line[:4] not in ("--- ", "+++ ")
    )


def survivors_explained(notes: str) -> dict[str, set[str]]:
    """The diffs in the notes, by the module of their heading."""
    explained: dict[str, set[str]] = {}
    for section in notes.split("\n## ")[1:]:
        module = section.split("`")[1]
        diffs = section.split("```diff\n")[1:]
        explained[module] = {changed_lines(diff.partition("```")[0]) for diff in diffs}
    return explained


if __name__ == "__main__":
    sys.exit(main())
