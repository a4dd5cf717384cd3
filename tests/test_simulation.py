"""Random histories on a simulated network, and tests of the simulation itself.

See the package ``simulation``. Each run uses new seeds. A failure prints a command that replays
it.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import os
import random
import select
import shutil
import socket
import subprocess
import sys
import time
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anyio_connect

if sys.platform != "linux":
    pytest.skip("what is simulated is Linux's TCP and epoll", allow_module_level=True)
else:
    from select import EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP

    import simulation.plan
    from simulation.broken import BROKEN, Broken
    from simulation.hunt import hunt, without_coverage
    from simulation.kernel import Act, Real, Simulated, differences
    from simulation.known import KNOWN, MENDED, Known, unknown
    from simulation.network import Network
    from simulation.plan import Plan, Step, Subject, plan
    from simulation.polling import Epoll
    from simulation.run import execute
    from simulation.schedulers import SCHEDULERS
    from simulation.shrink import code, command, shrink, story
    from simulation.world import World

TESTS = Path(__file__).parent
SEED = os.environ.get("SIMULATION_SEED")
#: How many random histories to run on each scheduler: by default as many as Hypothesis makes
#: examples. `nox -s simulate` runs many more.
COUNT = int(os.environ.get("SIMULATION_COUNT", settings().max_examples))
#: How long to look for a shorter history that fails as well, in seconds.
SHRINK = float(os.environ.get("SIMULATION_SHRINK", "20"))
#: Faults of ``BROKEN`` that random histories find within seconds.
QUICKLY_FOUND = (4, 8)

on_each_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


@on_each_scheduler
def test_random_histories(scheduler: str) -> None:
    first = random.randrange(1_000_000_000) if SEED is None else int(SEED)
    for seed in range(first, first + COUNT):
        world = execute(plan(seed), scheduler)
        if found := unknown(world.faults):
            shorter = shrink(plan(seed), scheduler, found[0], seconds=SHRINK)
            pytest.fail(
                f"{found}; to see it again:\n{command(scheduler, seed)}\n"
                + story(shorter, execute(shorter, scheduler)),
                pytrace=False,
            )


def test_known_faults_are_still_there() -> None:
    for known in KNOWN:
        for scheduler in known.schedulers:
            faults = execute(known.plan, scheduler).faults
            assert matching(faults, known.fault), (
                f"{known.fault} ({known.why}) is mended: move its history to MENDED in known.py"
            )


def test_unknown_leaves_out_the_known_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known("a due cancellation was lost: *", "of no matter", Plan())
    monkeypatch.setattr("simulation.known.KNOWN", (known,))
    faults = ["a due cancellation was lost: send", "close() hangs", "close() hangs"]
    assert unknown(faults) == ["close() hangs"]


@on_each_scheduler
@pytest.mark.parametrize("number", range(len(MENDED)))
def test_mended_faults_do_not_come_back(number: int, scheduler: str) -> None:
    assert not unknown(execute(MENDED[number], scheduler).faults)


# --- the network behaves as the kernel does

AMOUNTS = (1, 10, 1000, 3000)
ACTS = (
    *("send", "receive", "peek", "error", "shutdown", "close", "abort", "fill", "drain"),
    *("send", "receive", "send", "receive"),  # these more often
)


@given(
    st.lists(
        st.builds(
            Act,
            st.sampled_from((0, 1)),
            st.sampled_from(ACTS),
            st.sampled_from(AMOUNTS),
        ),
        max_size=14,
    )
)
def test_simulated_and_real_sockets_do_the_same(acts: list[Act]) -> None:
    assert not differences(acts)


@pytest.mark.parametrize(
    "acts",
    [
        # A reset behind unread data: the data can be read, then the error once, then the end.
        [Act(0, "send", 10), Act(0, "abort"), *[Act(1, "receive", 10)] * 3, Act(1, "send")],
        # Closed with unread data: a reset.
        [Act(0, "send", 10), Act(1, "send", 10), Act(1, "close"), Act(0, "receive")],
        # After the peer's end, a reset is reported as EPIPE.
        [Act(0, "shutdown"), Act(1, "send"), Act(0, "abort"), Act(1, "error"), Act(1, "receive")],
        # Data that comes to a closed socket is answered with a reset.
        [Act(0, "close"), Act(1, "send"), Act(1, "send"), Act(1, "receive")],
        # Our end counts as one unacknowledged byte. After both ends, we are not connected.
        [Act(0, "shutdown"), Act(1, "shutdown"), Act(0, "shutdown"), Act(1, "error")],
        # When the other side reads, there is room in the buffer again.
        [Act(0, "fill"), Act(1, "drain"), Act(0, "shutdown"), Act(1, "drain")],
    ],
)
def test_simulated_resets_and_ends_are_like_those_of_the_kernel(acts: list[Act]) -> None:
    assert not differences(acts)


def unacknowledged(pair: Simulated | Real) -> int:
    look = pair.look(0)
    assert look is not None
    return look.unacknowledged


def test_data_stays_unacknowledged_if_a_reset_overtakes_the_acknowledgement() -> None:
    """The peer's kernel has received the data, but has not acknowledged it yet."""
    simulated = Simulated(ack_delay=0.04)
    try:
        simulated.ends[0].send(bytes(10))
        simulated.arrive()
        assert simulated.ends[1].recv(10, socket.MSG_PEEK) == bytes(10)
        simulated.ends[1].close()
        simulated.settle()
        assert unacknowledged(simulated) == 10
        assert simulated.act(Act(0, "error"), simulated.settle) == errno.ECONNRESET
    finally:
        simulated.close()
    # The real kernel may send its acknowledgement before the reset now and then.
    assert any(map(real_reset_overtakes_the_acknowledgement, range(100)))


def real_reset_overtakes_the_acknowledgement(_: int) -> bool:
    real = Real()
    try:
        real.ends[1].setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        real.ends[0].send(bytes(10))
        if real.act(Act(1, "peek", 10), real.settle) != bytes(10):
            return False
        real.ends[1].close()
        return (
            unacknowledged(real) == 10
            and real.act(Act(0, "error"), real.settle) == errno.ECONNRESET
        )
    finally:
        real.close()


def test_the_acknowledgement_of_an_end_covers_the_data_before_it() -> None:
    pair = Simulated(ack_delay=0.04)
    try:
        pair.ends[0].send(bytes(10))
        pair.ends[0].shutdown(socket.SHUT_WR)
        pair.arrive()
        assert unacknowledged(pair) == 11
        pair.arrive()
        assert unacknowledged(pair) == 0
        pair.settle()
        assert unacknowledged(pair) == 0
    finally:
        pair.close()


def test_an_edge_triggered_epoll_wakes_when_our_end_is_acknowledged() -> None:
    mask = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    seen = {}
    for pair, epoll in ((simulated := Simulated(), None), (Real(), select.epoll())):
        sock = pair.ends[0]
        watch: Any = epoll or Epoll(simulated.network)
        try:
            watch.register(sock, mask)
            found = [watch.poll(0), watch.poll(0)]  # "writable" is reported once
            sock.shutdown(socket.SHUT_WR)
            give_up = time.monotonic() + 5
            last: Any = []
            while unacknowledged(pair) and time.monotonic() < give_up:
                pair.settle()
            for _ in range(2):
                last.append(watch.poll(0))
            seen[type(pair).__name__] = [[m for _, m in events] for events in (*found, *last)]
        finally:
            watch.close()
            pair.close()
    assert seen["Simulated"] == seen["Real"] == [[EPOLLOUT], [], [EPOLLOUT], []]


# --- a seed determines the history


def digest(scheduler: str, seeds: range) -> str:
    """A hash of everything that happened in these histories."""
    logs = [execute(plan(seed), scheduler).network.log for seed in seeds]
    return hashlib.sha256(repr(logs).encode()).hexdigest()


@on_each_scheduler
def test_a_seed_gives_the_same_history_again(scheduler: str) -> None:
    first = random.randrange(1_000_000_000)
    seeds = range(first, first + max(COUNT // 4, 1))
    assert digest(scheduler, seeds) == digest(scheduler, seeds), first


@pytest.mark.slow
@on_each_scheduler
def test_a_seed_gives_the_same_history_in_another_process(scheduler: str) -> None:
    first = random.randrange(1_000_000_000)
    seeds = range(first, first + max(COUNT // 4, 1))
    script = (
        "from test_simulation import digest\n"
        f"print(digest({scheduler!r}, range({seeds.start}, {seeds.stop})))"
    )
    paths = [str(TESTS), *(path for path in sys.path if path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "77"}
    other = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env=env
    )
    assert other.stdout.strip() == digest(scheduler, seeds), first


def test_a_correct_history_has_no_fault() -> None:
    steps = (
        Step(0, "send", size=150_000),
        Step(1, "p.send", size=1000, seconds=0.5),
        Step(2, "receive"),
        Step(3, "p.fin", seconds=0.5),
        Step(4, "receive"),
        Step(5, "closed"),
    )
    for secure in ("off", "on"):
        history = Plan(0, "mixed", (Subject(secure=secure),), steps)
        for scheduler in SCHEDULERS:
            world = execute(history, scheduler)
            assert not world.faults
            assert {call.how for call in world.calls} <= {"ok", "EndOfStream"}


@on_each_scheduler
def test_a_task_that_never_waits_is_stopped(
    scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def spin(*_: object) -> None:
        while True:
            pass

    monkeypatch.setattr("simulation.run._MOST_WORK", 0.1)
    monkeypatch.setattr(anyio_connect.Socket, "send", spin)
    history = Plan(subjects=(Subject(),), steps=(Step(0, "send", turns=3), Step(1, "receive")))
    assert execute(history, scheduler).faults[0] == "a task never waits"


# --- reports of faults


#: A fault that cannot be missed.
LOSSY = Broken(
    "a send passes ten bytes on, and drops the rest",
    "a",
    "_tcp",
    "        sent = self.send_nowait(item)\n        return None",
    "        sent = len(item) if self.send_nowait(item[:10]) else 0\n        return None",
)


def simulate(folder: Path, *arguments: str) -> str:
    """Run the command line with the package in ``folder``; it must find a fault."""
    paths = [str(folder), str(TESTS), *(path for path in sys.path if path)]
    done = subprocess.run(
        [sys.executable, "-m", "simulation", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**without_coverage(), "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def broken_package(tmp_path: Path) -> Path:
    """A directory with a copy of the package that has the fault ``LOSSY``."""
    source = Path(anyio_connect.__file__).parent
    shutil.copytree(source, tmp_path / source.name)
    LOSSY.put_into(tmp_path / source.name)
    return tmp_path


@pytest.mark.slow
def test_a_reported_command_replays_the_fault_and_shrinks_it(
    broken_package: Path,
) -> None:
    found = simulate(broken_package, "run", "asyncio", "--first", "--seed=0", "--count=300")
    told = next(line for line in found.splitlines() if "replay" in line)
    replay = told.partition("python -m simulation ")[2].split()
    once, again = (simulate(broken_package, *replay) for _ in range(2))
    assert once == again
    fault = told.strip().partition(" ")[2].partition(":")[0]
    assert fault in once.partition("faults:")[2]
    steps = once.partition("steps:")[2].partition("log:")[0].split("\n  ")
    assert len(steps) <= 6, once


def test_the_shrinker_keeps_the_fault_and_drops_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def receive_is_wrong(candidate: Plan, scheduler: str) -> World:
        world = World(candidate, scheduler, Network(0))
        kinds = [step.kind for step in candidate.steps]
        if "receive" in kinds and "send" in kinds[kinds.index("receive") :]:
            world.fault("a send after a receive")
        return world

    monkeypatch.setattr("simulation.shrink.execute", receive_is_wrong)
    history = next(
        history
        for history in map(plan, range(1000))
        if len(history.steps) > 20 and receive_is_wrong(history, "trio").faults
    )
    shorter = shrink(history, "trio", "a send after a receive")
    assert [step.kind for step in shorter.steps] == ["receive", "send"]
    kept = {"seed": history.seed, "profile": history.profile, "subjects": shorter.subjects}
    assert shorter == Plan(steps=shorter.steps, **kept)  # type: ignore[arg-type]
    assert set(shorter.steps) <= {Step(s.number, s.kind, s.who) for s in history.steps}
    assert eval(code(shorter), {**vars(simulation.plan)}) == shorter


def test_the_shrinker_refuses_a_history_without_the_fault() -> None:
    with pytest.raises(ValueError, match="no fault 'nothing'"):
        shrink(Plan(), "trio", "nothing")


# --- faults put in by hand


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.what)
def test_each_fault_can_still_be_put_in(broken: Broken, tmp_path: Path) -> None:
    source = Path(anyio_connect.__file__).parent
    module = f"{broken.module}.py"
    shutil.copy(source / module, tmp_path)
    broken.put_into(tmp_path)
    text = (tmp_path / module).read_text(encoding="utf-8")
    assert text != (source / module).read_text(encoding="utf-8")
    ast.parse(text)


def test_a_fault_that_cannot_be_put_in_any_more_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "_tcp.py").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"_tcp\.py has 0 times, instead of once, the text"):
        LOSSY.put_into(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", QUICKLY_FOUND)
def test_random_histories_find_a_fault_put_in_by_hand(number: int) -> None:
    scheduler, told = hunt(BROKEN[number], 60)
    assert scheduler, told
