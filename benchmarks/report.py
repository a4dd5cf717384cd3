"""Shows the results: tables, pictures, and JSON."""

from __future__ import annotations

import json
import math
import platform
import shutil
import ssl
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import OURS, Contender, Result
from benchmarks.work import ROWS, Row

ROOT = Path(__file__).parent.parent
LOOPS = ("asyncio", "uvloop", "trio")

#: The alternatives to ours. The other contenders show the limit.
PEERS = ("streams", "anyio", "trio")


@dataclass
class Run:
    """The machine, the commit, and the results."""

    commit: str
    machine: str
    rounds: int
    share: int
    results: list[Result] = field(default_factory=list)
    imports: dict[str, list[float]] = field(default_factory=dict)

    def of(self, row: str, name: str, loop: str) -> Result | None:
        for result in self.results:
            contender = result.contender
            if (result.row, contender.name, contender.loop) == (row, name, loop):
                return result
        return None

    def rows(self) -> list[str]:
        """The measured contenders, in the order of the tables."""
        measured = {result.row for result in self.results}
        return [name for name in ROWS if name in measured]

    def is_like(self, other: Run) -> bool:
        """Whether the results of both runs may be in one table."""

        def what(run: Run) -> tuple[object, ...]:
            return run.commit, run.machine, run.rounds, run.share

        return what(self) == what(other)


def machine() -> str:
    """The machine and the versions, in one line."""
    model = platform.processor() or platform.machine()
    cores = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            model, cores = names[0], f", {len(names)} cores"
    libraries = [name for name in ("anyio", "trio", "uvloop") if find_spec(name)]
    versions = [f"{name} {version(name)}" for name in libraries]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    parts = [f"{model}{cores}", f"{platform.system()} {platform.release().partition('-')[0]}"]
    return ", ".join([*parts, python, ssl.OPENSSL_VERSION.rpartition(" ")[0][:14], *versions])


def commit() -> str:
    """The measured commit, and whether the package differs from it."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return "unknown"

    def ask(*arguments: str) -> str:
        command = [git or "", *arguments]
        return subprocess.run(  # noqa: S603
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    changed = ask("status", "--porcelain", "--", "anyio_connect", "benchmarks/*.py")
    return ask("rev-parse", "--short=12", "HEAD") + " and changes" * bool(changed)


# --- ratios


@dataclass(frozen=True)
class Ratio:
    """The cost of the best peer on the same loop, divided by ours. Over 1, ours is ahead."""

    value: float
    peer: Contender


def ratio(run: Run, row: str, loop: str, measure: str) -> Ratio | None:
    """The lowest, over the peers, of the median ratio of all rounds."""
    ours = run.of(row, OURS, loop)
    if ours is None or measure not in ours.costs:
        return None
    found = [
        Ratio(median_ratio(result.costs[measure], ours.costs[measure]), result.contender)
        for name in PEERS
        if (result := run.of(row, name, loop)) is not None
    ]
    return min(found, key=lambda each: each.value, default=None)


def median_ratio(theirs: Iterable[float], ours: Iterable[float]) -> float:
    """Compares round by round, because a slow phase of the machine slows down both."""
    # With a coarse clock, little work may take no time at all.
    pairs = zip(theirs, ours, strict=True)
    return statistics.median(their / our if our else math.inf for their, our in pairs)


#: The lowest ratio of CPU time to reach: on asyncio, on uvloop, on trio.
AIMS: dict[str, tuple[float, float, float]] = {
    "round_trip_1": (1.0, 0.95, 1.2),
    **dict.fromkeys(("round_trip_100", "round_trip_1000", "round_trip_5000"), (1.05, 0.9, 1.15)),
    "busy": (1.0, 0.85, 1.15),
    **dict.fromkeys(("connect", "first_byte"), (1.5, 0.9, 1.5)),
    **dict.fromkeys(("receive", "send_64k", "send_1m", "duplex"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("tls_round_trip_1", "tls_round_trip_100"), (1.2, 0.9, 1.0)),
    **dict.fromkeys(("tls_receive", "tls_send", "tls_duplex"), (1.0, 1.0, 1.0)),
}

#: The highest memory to reach, in KiB.
MEMORY_AIM = (2.3, 2.3, 2.1)

#: The highest import time to reach, in milliseconds.
IMPORT_AIM = 20


def _held_against(value: float, aim: float | None, *, at_least: bool = True) -> tuple[str, str]:
    """The value, in bold if it misses the aim; and the aim."""
    shown = f"{value:.2f}"
    if aim is None:
        return shown, ""
    # Compare the rounded values: 0.997 is shown as 1.00.
    met = float(shown) >= aim if at_least else float(shown) <= aim
    return shown if met else f"**{shown}**", f"{'≥' if at_least else '≤'} {aim:g}"


def ratios_table(run: Run) -> Iterator[str]:
    head = " | ".join(f"{loop}: CPU | wall | aim" for loop in LOOPS)
    yield f"| | {head} |"
    yield "| --- |" + " ---: | ---: | --- |" * len(LOOPS)
    for name in run.rows():
        cells = []
        for index, loop in enumerate(LOOPS):
            cpu, wall = (ratio(run, name, loop, measure) for measure in ("cpu", "wall"))
            if cpu is None or wall is None:
                cells += ["", "", ""]
                continue
            shown, aim = _held_against(cpu.value, AIMS[name][index] if name in AIMS else None)
            cells += [shown, f"{wall.value:.2f}", aim]
        if any(cells):
            yield f"| {ROWS[name].title} | {' | '.join(cells)} |"


def figures_table(run: Run) -> Iterator[str]:
    """The figures that are not a ratio to a peer."""
    yield "| | asyncio | uvloop | trio | aim |"
    yield "| --- | ---: | ---: | ---: | --- |"
    memory = [run.of("memory", OURS, loop) for loop in LOOPS]
    if all(memory):
        cells = [
            _held_against(result.median("memory") or 0, aim, at_least=False)
            for result, aim in zip(memory, MEMORY_AIM, strict=True)
            if result is not None
        ]
        aims = ", ".join(dict.fromkeys(aim for _, aim in cells))
        yield f"| {ROWS['memory'].title}, KiB | {' | '.join(c for c, _ in cells)} | {aims} |"
    beside = [run.of("receive_into", OURS, loop) for loop in LOOPS]
    if all(beside):
        shown = [
            _held_against(median_ratio(result.costs["cpu without"], result.costs["cpu"]), 1)
            for result in beside
            if result is not None
        ]
        cells_ = " | ".join(cell for cell, _ in shown)
        yield f"| CPU time of `receive()` to that of `receive_into()` | {cells_} | {shown[0][1]} |"
    if run.imports:
        median = statistics.median(run.imports[OURS])
        value, aim = _held_against(median, IMPORT_AIM, at_least=False)
        title = "`import anyio_connect`, after `import anyio`, milliseconds"
        yield f"| {title} | {value} | {value} | {value} | {aim} |"


# --- costs


def number(value: float) -> str:
    """Three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def costs_table(run: Run, loop: str) -> Iterator[str]:
    """The medians: a line for each row, a column for each contender on the loop."""
    columns = list(dict.fromkeys(r.contender for r in run.results if r.contender.loop == loop))
    yield "| | " + " | ".join(column.title for column in columns) + " |"
    yield "| --- |" + " ---: |" * len(columns)
    for name in run.rows():
        found = [run.of(name, column.name, column.loop) for column in columns]
        if any(found):
            row = ROWS[name]
            cells = [costs(row, result) if result is not None else "" for result in found]
            yield f"| {row.title}, {row.unit} | {' | '.join(cells)} |"


def costs(row: Row, result: Result) -> str:
    values = [result.median(measure) for measure in row.measures]
    return " / ".join("-" if value is None else number(value) for value in values)


def calls_table(run: Run, loop: str) -> Iterator[str]:
    """Calls of Python functions, and resumed coroutines, for one operation."""
    columns = list(dict.fromkeys(r.contender for r in run.results if r.contender.loop == loop))
    yield "| | " + " | ".join(column.title for column in columns) + " |"
    yield "| --- |" + " ---: |" * len(columns)
    for name in run.rows():
        found = [run.of(name, column.name, column.loop) for column in columns]
        calls = [result and result.median("calls") for result in found]
        if any(calls):
            cells = ["" if value is None else f"{value:.0f}" for value in calls]
            yield f"| {ROWS[name].title} | {' | '.join(cells)} |"


def line_by_line(run: Run, name: str) -> Iterator[str]:
    """A row, for the terminal."""
    row = ROWS[name]
    measures = (*row.measures, *["calls"] * row.counts)
    yield f"{name}: {row.title}, {row.unit}: {', '.join(measures)}"
    for result in run.results:
        if result.row != name:
            continue
        contender = result.contender
        values = [result.median(measure) for measure in measures]
        cells = "".join(f"{'-' if v is None else number(v):>10}" for v in values)
        line = f"  {contender.loop:8} {contender.title:18} {cells}"
        if contender.name == OURS:
            found = [ratio(run, name, contender.loop, measure) for measure in row.measures]
            line += "".join(f"   {each.value:.2f} of {each.peer.title}" for each in found if each)
        if "cpu without" in result.costs:
            beside = median_ratio(result.costs["cpu without"], result.costs["cpu"])
            line += f"   {beside:.2f} of receiving without a buffer"
        yield line


def import_medians(run: Run) -> str:
    found = [f"{name} {statistics.median(times):.1f}" for name, times in run.imports.items()]
    return ", ".join(found) + " ms"


# --- where they are shown

#: The rows of the README, each with a short title.
SMALL = {
    "round_trip_1": "round trip",
    "round_trip_100": "round trip, 100 sockets",
    "connect": "connect and close",
    "tls_round_trip_100": "TLS round trip, 100 sockets",
    "receive": "receive a megabyte",
}


def small(run: Run) -> str:
    """For the README."""
    lines = ["| CPU time, µs | asyncio | uvloop | trio |", "| --- | ---: | ---: | ---: |"]
    for name, title in SMALL.items():
        cells = []
        for loop in LOOPS:
            ours, found = run.of(name, OURS, loop), ratio(run, name, loop, "cpu")
            value = ours and ours.median("cpu")
            cells.append(f"{number(value)} ({found.value:.2f})" if value and found else "")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def full(run: Run) -> str:
    """For docs/benchmarks.md."""
    rounds = f"{run.rounds} rounds, or of fewer for memory and for thousands of sockets"
    lines = [f"Medians of {rounds}. Of commit {run.commit}, on {run.machine}."]
    if run.share > 1:
        lines[0] += f" Only one part in {run.share} of the work was done: no figures to rely on."
    lines += ["", "### Ratio to the best peer", "", *ratios_table(run)]
    lines += ["", *figures_table(run)]
    for loop in (*LOOPS, ""):
        lines += ["", f"### {loop or 'Without an event loop of Python'}", ""]
        lines += costs_table(run, loop)
        calls = [*calls_table(run, loop)]
        if len(calls) > 2 and loop:
            lines += ["", "Calls of Python functions, and resumptions of coroutines:", "", *calls]
    return "\n".join(lines)


def put_between(path: Path, mark: str, text: str) -> None:
    """Replace the text between ``<!-- mark -->`` and ``<!-- /benchmarks -->``."""
    before, opening, rest = path.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, closing, after = rest.partition("<!-- /benchmarks -->")
    if not closing:
        sys.exit(f"{path} has no <!-- {mark} --> that is followed by <!-- /benchmarks -->")
    path.write_text(f"{before}{opening}{text}\n{closing}{after}", encoding="utf-8")


# --- JSON


def as_json(run: Run) -> str:
    """A result a line, so that a diff can be read."""
    head = {
        "commit": run.commit,
        "machine": run.machine,
        "rounds": run.rounds,
        "share": run.share,
        "import_ms": _rounded(run.imports),
    }
    lines = [
        json.dumps(
            {
                "row": result.row,
                "name": result.contender.name,
                "loop": result.contender.loop,
                "title": result.contender.title,
                "costs": _rounded(result.costs),
            }
        )
        for result in run.results
    ]
    results = ",\n".join(lines)
    return f'{json.dumps(head)[:-1]}, "results": [\n{results}\n]}}\n'


def _rounded(found: dict[str, list[float]]) -> dict[str, list[float]]:
    return {key: [float(f"{value:.5g}") for value in values] for key, values in found.items()}


def from_json(text: str) -> Run:
    found = json.loads(text)
    results = [
        Result(each["row"], Contender(each["name"], each["loop"], each["title"]), each["costs"])
        for each in found["results"]
    ]
    return Run(
        found["commit"],
        found["machine"],
        found["rounds"],
        found["share"],
        results,
        found["import_ms"],
    )


# --- pictures

_COLOURS = {
    OURS: "#d9480f",
    "streams": "#1c7ed6",
    "anyio": "#0b7285",
    "trio": "#5f3dc4",
    "sock": "#868e96",
    "protocol": "#343a40",
}


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "anyio_connect"  # the same picture from the same figures
    mpl.rcParams["svg.fonttype"] = "none"  # text is not drawn as paths
    mpl.rcParams["font.size"] = 9
    return plt


def _save(figure: Any, path: Path) -> None:
    # Draw a white background, so that the picture can be read on a dark page too.
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


def plot_rows(run: Run, path: Path) -> None:
    """Draw the rows of the README as bars: the CPU time of ours and of the peers."""
    plt = _pyplot()
    names = [name for name in SMALL if any(result.row == name for result in run.results)]
    if not names:
        sys.exit("nothing to plot")
    figure, axes = plt.subplots(1, len(names), figsize=(12, 2.9), squeeze=False)
    for index, (axis, name) in enumerate(zip(axes.flat, names, strict=True)):
        bars = [
            result
            for loop in LOOPS
            for result in run.results
            if (result.row, result.contender.loop) == (name, loop)
            and result.contender.name in (OURS, *PEERS)
        ]
        places = [n + 0.6 * LOOPS.index(bar.contender.loop) for n, bar in enumerate(bars)]
        values = [bar.median("cpu") or 0 for bar in bars]
        drawn = axis.barh(places, values, color=[_COLOURS[bar.contender.name] for bar in bars])
        axis.bar_label(drawn, [number(value) for value in values], padding=3, fontsize=8)
        labels = [f"{bar.contender.title}, {bar.contender.loop}" for bar in bars]
        axis.set_yticks(places, labels if index == 0 else [""] * len(bars), fontsize=8)
        axis.invert_yaxis()
        axis.set_title(SMALL[name], fontsize=9)
        axis.set_xlim(0, max(values) * 1.35)
        axis.tick_params(left=False)
        axis.xaxis.set_visible(False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle("CPU time of the client for each, µs: less is better", fontsize=10)
    _save(figure, path)
    plt.close(figure)


def plot_sockets(run: Run, path: Path) -> None:
    """Draw the CPU time of a round trip over the number of sockets."""
    plt = _pyplot()
    names = [name for name in run.rows() if name.startswith("round_trip_")]
    if not names:
        sys.exit("nothing to plot")
    figure, axes = plt.subplots(1, len(LOOPS), figsize=(12, 4.2), sharey=True)
    for axis, loop in zip(axes, LOOPS, strict=True):
        for contender in dict.fromkeys(r.contender for r in run.results):
            if contender.loop != loop:
                continue
            points = _points(run, names, contender)
            limit = contender.name not in (OURS, *PEERS)
            axis.plot(
                [sockets for sockets, _ in points],
                [cost for _, cost in points],
                "--" if limit else "-",
                marker=".",
                linewidth=2.5 if contender.name == OURS else 1.5,
                color=_COLOURS[contender.name],
                label=contender.title,
            )
        axis.set_xscale("log")
        sizes = [ROWS[name].sockets for name in names]
        axis.set_xticks(sizes, [f"{size // 1000}k" if size >= 1000 else size for size in sizes])
        axis.minorticks_off()
        axis.set_title(loop)
        axis.set_xlabel("sockets, all of them busy")
        axis.grid(axis="y", color="#dee2e6")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, loc="upper left", frameon=False)
    axes[0].set_ylim(0, axes[0].get_ylim()[1] * 1.3)
    axes[0].set_ylabel("CPU time of a 64-byte round trip, µs")
    _save(figure, path)
    plt.close(figure)


def _points(run: Run, names: Sequence[str], contender: Contender) -> list[tuple[int, float]]:
    found = []
    for name in names:
        result = run.of(name, contender.name, contender.loop)
        cost = result.median("cpu") if result is not None else None
        if cost is not None:
            found.append((ROWS[name].sockets, cost))
    return found
