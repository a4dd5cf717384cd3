"""The benchmarks: how they compute figures, and that the pages show the committed run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
LOOPS = ("asyncio", "uvloop", "trio")


def load() -> None:
    """Make ``benchmarks`` importable, which is not installed, and nothing that lies beside it."""
    spec = importlib.util.spec_from_file_location(
        "benchmarks", BENCHMARKS / "__init__.py", submodule_search_locations=[str(BENCHMARKS)]
    )
    assert spec is not None
    sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)


if TYPE_CHECKING:
    from benchmarks import __main__ as command_line
    from benchmarks import measure, report, work
else:
    load()
    from benchmarks import __main__ as command_line
    from benchmarks import measure, report, work


# --- the committed run


@pytest.fixture(scope="module")
def committed() -> report.Run:
    return report.from_json(command_line.RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("page", "mark", "made"),
    [
        ("README.md", "benchmarks: small", report.small),
        ("docs/benchmarks.md", "benchmarks", report.full),
    ],
)
def test_the_pages_show_the_committed_run(
    page: str, mark: str, made: Any, committed: report.Run
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = text.partition(f"<!-- {mark} -->\n")[2].partition("<!-- /benchmarks -->")[0]
    assert shown == made(committed) + "\n"


def test_the_committed_run_is_complete(committed: report.Run) -> None:
    assert committed.rounds >= 5
    assert [*committed.imports] == [*measure.IMPORTED]
    missing = [
        (name, contender)
        for name, row in work.ROWS.items()
        for contender in {result.contender for result in committed.results}
        if contender.name not in row.without
        and committed.of(name, contender.name, contender.loop) is None
    ]
    assert not missing
    contenders = {(r.contender.name, r.contender.loop) for r in committed.results}
    assert contenders == {
        *((name, loop) for name in ("anyio_connect", "anyio", "sock") for loop in LOOPS),
        *((name, loop) for name in ("streams", "protocol") for loop in ("asyncio", "uvloop")),
        ("trio", "trio"),
        ("blocking", ""),
        ("node", ""),
        ("workerd", ""),
    }
    for result in committed.results:
        row = work.ROWS[result.row]
        rounds = row.rounds_of(committed.rounds)
        measured = [len(result.costs[measure]) for measure in row.measures if measure != "cpu"]
        assert measured == [rounds] * len(measured)
        if "cpu" in row.measures and result.contender.name != "workerd":
            assert len(result.costs["cpu"]) == rounds
        assert ("calls" in result.costs) == (row.counts and result.contender.python)


def test_the_pictures_show_the_committed_run(committed: report.Run) -> None:
    rows = (BENCHMARKS / "results.svg").read_text(encoding="utf-8")
    for name, title in report.SMALL.items():
        assert title in rows
        for loop in LOOPS:
            result = committed.of(name, "anyio_connect", loop)
            assert result is not None
            assert report.number(result.median("cpu") or 0) in rows
    sockets = (BENCHMARKS / "sockets.svg").read_text(encoding="utf-8")
    for words in (*LOOPS, "anyio_connect", "open_connection", "bare Protocol", "10k"):
        assert words in sockets


def test_the_aims_and_the_small_table_name_rows_that_exist() -> None:
    assert not {*report.AIMS, *report.SMALL} - {*work.ROWS}


# --- ratios and tables


def run_of(costs: dict[str, Sequence[float]], row: str = "connect") -> report.Run:
    """A run on asyncio with the costs of each contender, one for each round."""
    run = report.Run("0123456789ab", "here", 3, 1)
    for name, values in costs.items():
        cost = {"cpu": [*values], "wall": [value * 2 for value in values]}
        run.results.append(measure.Result(row, measure.Contender(name, "asyncio", name), cost))
    return run


def test_a_ratio_over_1_is_ahead_of_the_best_peer() -> None:
    run = run_of({"anyio_connect": [10, 10, 10], "streams": [15, 15, 15], "anyio": [20, 20, 20]})
    found = report.ratio(run, "connect", "asyncio", "cpu")
    assert found is not None
    assert (found.value, found.peer.name) == (1.5, "streams")


def test_a_contender_that_shows_the_limit_is_not_a_peer() -> None:
    run = run_of({"anyio_connect": [10], "streams": [15], "sock": [2], "protocol": [1]})
    found = report.ratio(run, "connect", "asyncio", "cpu")
    assert found is not None
    assert found.peer.name == "streams"
    assert report.ratio(run, "connect", "trio", "cpu") is None


def test_a_ratio_is_taken_in_each_round() -> None:
    # The machine was slow in the first round for one contender, and in the last round for both.
    # The ratio of the medians would be 3.
    run = run_of({"anyio_connect": [10, 10, 90], "streams": [30, 10, 90]})
    found = report.ratio(run, "connect", "asyncio", "cpu")
    assert found is not None
    assert found.value == 1


def test_a_cost_of_zero_gives_an_infinite_ratio() -> None:
    run = run_of({"anyio_connect": [0, 0, 0], "streams": [1, 1, 1]})
    assert "inf" in "\n".join(report.line_by_line(run, "connect"))


@pytest.mark.parametrize(
    ("theirs", "shown"), [(15.0, "| 1.50 |"), (14.96, "| 1.50 |"), (14.9, "| **1.49** |")]
)
def test_a_ratio_below_its_aim_is_bold(theirs: float, shown: str) -> None:
    lines = [*report.ratios_table(run_of({"anyio_connect": [10.0], "streams": [theirs]}))]
    assert len(lines) == 3
    assert lines[2].startswith(f"| {work.ROWS['connect'].title} {shown}")
    assert "≥ 1.5" in lines[2]


def test_memory_and_import_times_above_their_limits_are_bold() -> None:
    run = run_of({})
    for loop, used in zip(LOOPS, (2.3, 2.4, 1.0), strict=True):
        contender = measure.Contender("anyio_connect", loop, "")
        run.results.append(measure.Result("memory", contender, {"memory": [used] * 3}))
    run.imports = {"anyio_connect": [21.0, 21.0, 19.0]}
    lines = [*report.figures_table(run)]
    assert "| 2.30 | **2.40** | 1.00 |" in lines[2]
    assert "**21.00**" in lines[3]


def test_the_page_says_that_a_run_did_only_a_part() -> None:
    run = run_of({"anyio_connect": [10]})
    assert "one part in" not in report.full(run)
    run.share = 50
    assert "one part in 50" in report.full(run)


def test_json_keeps_a_run() -> None:
    run = run_of({"anyio_connect": [10, 11, 12.345], "streams": [1, 2, 3]})
    run.imports = {"anyio_connect": [1.0, 2.0]}
    text = report.as_json(run)
    assert report.from_json(text) == run
    assert len(text.splitlines()) == len(run.results) + 2
    json.loads(text)


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- here -->\nold\n<!-- /benchmarks -->\nb\n", encoding="utf-8")
    report.put_between(page, "here", "new")
    text = page.read_text(encoding="utf-8")
    assert text == "a\n<!-- here -->\nnew\n<!-- /benchmarks -->\nb\n"
    with pytest.raises(SystemExit, match="there"):
        report.put_between(page, "there", "new")
    assert page.read_text(encoding="utf-8") == text


# --- taking turns


class Script:
    """Replaces the object that starts contenders, and records each request."""

    ports: Sequence[Sequence[int]] = ((1,), (2,))

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.started: list[str] = []

    def __call__(self, contender: measure.Contender) -> Script.Process:
        self.started.append(contender.name)
        return Script.Process(self, contender.name)

    class Process:
        def __init__(self, script: Script, name: str) -> None:
            self.script, self.name = script, name

        def ready(self) -> None:
            pass

        def ask(self, **question: Any) -> work.Cost:
            self.script.asked.append((self.name, question))
            if question.get("counts"):
                return {"calls": 1.0}
            row = work.ROWS[question["row"]]
            return dict.fromkeys(row.measures, float(len(self.script.asked)))

        def __enter__(self) -> Script.Process:
            return self

        def __exit__(self, *_: object) -> None:
            pass


def take_turns(name: str, *contenders: str, rounds: int) -> tuple[Script, list[measure.Result]]:
    script = Script()
    found = [measure.Contender(each, "asyncio", each) for each in contenders]
    start: Any = script
    return script, measure.measure(name, found, rounds, 1, start)


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    script, results = take_turns("tls_connect", "anyio_connect", "streams", "sock", rounds=4)
    assert [result.contender.name for result in results] == ["anyio_connect", "streams"]
    names = [name for name, question in script.asked if not question.get("counts")]
    each = [sorted(names[at : at + 2]) for at in range(0, len(names), 2)]
    assert each == [["anyio_connect", "streams"]] * 5
    for result in results:
        assert len(result.costs["cpu"]) == 4
        assert min(result.costs["cpu"]) > 2
        assert result.costs["calls"] == [1.0]
    assert all(question["ports"] == (2,) for _, question in script.asked)
    assert sorted(script.started) == ["anyio_connect", "streams"]


def test_memory_is_measured_in_new_processes_each_time() -> None:
    script, results = take_turns("memory", "anyio_connect", "streams", "node", rounds=9)
    rounds = work.ROWS["memory"].rounds
    assert rounds is not None
    assert [len(result.costs["memory"]) for result in results] == [rounds, rounds]
    assert sorted(script.started) == ["anyio_connect"] * rounds + ["streams"] * rounds


# --- the command line


class Fake:
    """Replaces what measures. It measures nothing, and can interrupt the run at a row."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.interrupt_at = ""
        self.commit = "0123456789ab"
        monkeypatch.setattr(measure, "measure", self.measure)
        monkeypatch.setattr(measure, "peer", self.peer)
        monkeypatch.setattr(measure, "import_times", self.import_times)
        monkeypatch.setattr(report, "commit", lambda: self.commit)
        self._monkeypatch = monkeypatch

    @contextmanager
    def peer(self, directory: Path) -> Iterator[None]:
        yield

    def measure(
        self, name: str, found: Sequence[measure.Contender], *_: object
    ) -> list[measure.Result]:
        if name == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(name)
        measures = work.ROWS[name].measures
        return [measure.Result(name, each, {m: [1.0] for m in measures}) for each in found]

    def import_times(self, rounds: int) -> dict[str, list[float]]:
        self.asked.append("import")
        return {"anyio_connect": [1.0] * rounds}

    def __call__(self, *arguments: object) -> list[str]:
        self.asked = []
        command = ["benchmarks", *map(str, arguments)]
        self._monkeypatch.setattr(sys, "argv", command)
        command_line.main()
        return self.asked


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def test_an_interrupted_run_is_resumed_where_it_stopped(fake: Fake, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    fake.interrupt_at = "busy"
    with pytest.raises(KeyboardInterrupt):
        fake("run", "--json", file)
    before = fake.asked
    fake.interrupt_at = ""
    after = fake("run", "--json", file, "--resume")
    assert before == [*work.ROWS][: len(before)]
    assert before + after == [*work.ROWS, "import"]
    assert fake("run", "--json", file, "--resume") == []
    assert report.from_json(file.read_text(encoding="utf-8")).rows() == [*work.ROWS]


def test_a_run_is_not_resumed_at_another_commit(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    fake("run", "connect", "--json", file)
    fake.commit = "ba9876543210"
    with pytest.raises(SystemExit):
        fake("run", "--json", file, "--resume")
    assert "another commit" in capsys.readouterr().err
    assert fake.asked == []


def test_one_row_on_one_loop(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fake("run", "connect", "--loops", "trio", "--only", "anyio_connect,trio") == ["connect"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["trio", "anyio_connect"],
        ["trio", "trio's"],
    ]
    for arguments in (["connekt"], ["connect", "--loops", "curio"]):
        with pytest.raises(SystemExit):
            fake("run", *arguments)


@pytest.mark.slow
def test_a_small_run_measures_real_work(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    rows = ("round_trip_10", "connect", "receive_into", "tls_first_byte")
    options = ("--only=anyio_connect,protocol", "--rounds=2", "--share=500", f"--json={file}")
    command = [sys.executable, "-m", "benchmarks", "run", *rows, *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    run = report.from_json(file.read_text(encoding="utf-8"))
    assert run.rows() == [*rows]
    for result in run.results:
        calls = result.costs.pop("calls", [])
        assert len(calls) == (result.row != "receive_into")
        assert all(len(values) == 2 and min(values) > 0 for values in result.costs.values())


def test_calls_and_resumed_coroutines_are_counted() -> None:
    def called() -> None:
        pass

    @types.coroutine
    def switch() -> Generator[None, None, None]:
        yield

    async def goes_on() -> None:
        await switch()

    before = sys.getprofile()
    clock = work.Clock(counts=True)
    called()
    coroutine = goes_on()
    for _ in range(2):
        with suppress(StopIteration):
            coroutine.send(None)
    cost = clock.cost(2)
    sys.setprofile(before)
    # One function; two coroutines, each started and resumed once; the three methods of suppress(),
    # twice; and one method of the clock.
    assert cost == {"calls": (1 + 4 + 3 * 2 + 1) / 2}
