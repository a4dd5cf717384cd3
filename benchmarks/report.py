"""What came of it: a table, the aims, JSON, and a picture."""

from __future__ import annotations

import json
import platform
import ssl
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import OURS, Contender, Result
from benchmarks.work import WORKS


def machine() -> str:
    """What all this ran on, in a line."""
    model = platform.processor() or platform.machine()
    cores = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            model, cores = names[0], f", {len(names)} cores"
    versions = [f"{name} {version(name)}" for name in ("anyio", "trio", "uvloop")]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    parts = [f"{model}{cores}", f"{platform.system()} {platform.release().partition('-')[0]}"]
    return ", ".join([*parts, python, ssl.OPENSSL_VERSION.rpartition(" ")[0][:14], *versions])


# --- the table


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(results: Sequence[Result]) -> Iterator[str]:
    """The medians, as Markdown: a line for each work, a column for each contender."""
    columns = list(dict.fromkeys(result.contender for result in results))
    medians = {(r.work, r.tls, r.contender): r.median for r in results}
    loops = [f"**{c.loop}**" if c.loop else "" for c in columns]
    for tls in (False, True):
        works = [name for name in WORKS if any((name, tls, c) in medians for c in columns)]
        if not works:
            continue
        yield f"| {'TLS 1.3' if tls else 'TCP'} | {' | '.join(loops)} |"
        yield "| --- |" + " ---: |" * len(columns)
        yield "| | " + " | ".join(column.title for column in columns) + " |"
        for name in works:
            cells = [medians.get((name, tls, column)) for column in columns]
            work = WORKS[name]
            shown = [number(cell) if cell is not None else "" for cell in cells]
            yield f"| {work.title}, {work.unit} | {' | '.join(shown)} |"
        yield ""


# --- the aims


@dataclass(frozen=True)
class Aim:
    """A ratio of medians, which is to be at least or at most something."""

    title: str
    ratio: float
    wanted: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.ratio >= self.wanted if self.at_least else self.ratio <= self.wanted

    def __str__(self) -> str:
        word = "at least" if self.at_least else "at most"
        return (
            f"| {self.title} | {word} {self.wanted:g} | {self.ratio:.2f} "
            f"| {'yes' if self.met else 'no'} |"
        )


#: Work, over TLS, of whom, on which loop; as a ratio to which others on it; at least how much.
_AIMS: list[tuple[str, bool, str, tuple[str, ...], float]] = [
    ("receive", False, "asyncio", ("streams",), 3),
    ("receive", False, "asyncio", ("anyio",), 3),
    ("receive", False, "asyncio", ("blocking",), 0.9),
    *(
        (work, False, loop, rivals, 1)
        for work in ("send_64k", "send_1m")
        for loop, rivals in (("asyncio", ("streams", "anyio")), ("trio", ("trio", "anyio")))
    ),
    ("round_trip", False, "asyncio", ("streams",), 1),
    ("round_trip", False, "trio", ("trio",), 1),
    ("connect", False, "asyncio", ("anyio",), 1),
    ("connect", False, "trio", ("anyio",), 1),
    ("receive", True, "asyncio", ("streams",), 2),
    ("connect_default", True, "asyncio", ("anyio",), 1.5),
]


def aims(results: Sequence[Result], imports: dict[str, float]) -> Iterator[Aim]:
    """Those for which everything was measured."""
    medians = {(r.work, r.tls, r.contender.name, r.contender.loop): r.median for r in results}

    def of(work: str, tls: bool, name: str, loop: str) -> float | None:
        return medians.get((work, tls, name, "" if name == "blocking" else loop))

    for work, tls, loop, rivals, wanted in _AIMS:
        ours = of(work, tls, OURS, loop)
        theirs = [value for name in rivals if (value := of(work, tls, name, loop)) is not None]
        if ours is None or len(theirs) != len(rivals):
            continue
        whose = " and ".join(TITLES[name] for name in rivals)
        title = f"{'TLS ' * tls}{WORKS[work].title}, {loop}, to {whose}"
        yield Aim(title, ours / max(theirs), wanted)
    for loop in ("asyncio", "trio"):
        used, raw = of("memory", False, OURS, loop), of("memory", False, "blocking", "")
        if used is not None and raw is not None:
            title = f"memory of a socket above a plain one, {loop}, KiB"
            yield Aim(title, used - raw, 10, at_least=False)
    if imports:
        yield Aim("import, after that of anyio, milliseconds", imports[OURS], 25, at_least=False)


TITLES = {
    "blocking": "blocking sockets",
    "streams": "open_connection",
    "anyio": "anyio.connect_tcp",
    "trio": "trio's streams",
}


def aims_table(found: Iterable[Aim]) -> Iterator[str]:
    yield "| aim | wanted | measured | met |"
    yield "| --- | --- | ---: | --- |"
    yield from map(str, found)


# --- JSON


@dataclass(frozen=True)
class Report:
    """A run: where, and what came of it."""

    machine: str
    rounds: int
    imports: dict[str, float]
    results: Sequence[Result]

    def __str__(self) -> str:
        lines = [f"Medians of {self.rounds} rounds on {self.machine}.", ""]
        lines += table(self.results)
        lines += aims_table(aims(self.results, self.imports))
        return "\n".join(lines)


def as_json(report: Report) -> str:
    found: dict[str, Any] = {
        "machine": report.machine,
        "rounds": report.rounds,
        "import_ms": report.imports,
        "results": [
            {
                "work": result.work,
                "tls": result.tls,
                "name": result.contender.name,
                "loop": result.contender.loop,
                "title": result.contender.title,
                "unit": WORKS[result.work].unit,
                "median": result.median,
                "values": result.values,
            }
            for result in report.results
        ],
    }
    return json.dumps(found, indent=1) + "\n"


def from_json(text: str) -> Report:
    found = json.loads(text)
    results = [
        Result(
            each["work"],
            each["tls"],
            Contender(each["name"], each["loop"], each["title"]),
            each["values"],
        )
        for each in found["results"]
    ]
    return Report(found["machine"], found["rounds"], found["import_ms"], results)


# --- a picture

_COLOURS = {
    OURS: "#d9480f",
    "streams": "#74889c",
    "anyio": "#a9b7c4",
    "trio": "#8aa0b4",
    "blocking": "#343a40",
    "node": "#5c940d",
    "workerd": "#94d82d",
}


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw each work as bars, the longest as wide as the picture, into an SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "anyio_connect"  # the same picture from the same figures
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    charts: dict[tuple[str, bool], list[Result]] = {}
    for result in results:
        if result.work != "memory":
            charts.setdefault((result.work, result.tls), []).append(result)
    if not charts:
        sys.exit("nothing to plot")
    rows = -(-len(charts) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(15, 2.9 * rows), squeeze=False)
    for axis, ((name, tls), chart) in zip(axes.flat, charts.items(), strict=False):
        work = WORKS[name]
        labels = [_label(result.contender) for result in chart]
        values = [result.median for result in chart]
        colours = [_COLOURS[result.contender.name] for result in chart]
        bars = axis.barh(labels, values, color=colours)
        axis.bar_label(bars, [number(value) for value in values], padding=3, fontsize=7)
        axis.invert_yaxis()
        axis.set_title(f"{'TLS: ' * tls}{work.title} ({work.unit})", fontsize=9)
        axis.set_xlim(0, max(values) * 1.18)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_visible(False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    for axis in axes.flat[len(charts) :]:
        axis.remove()
    figure.tight_layout()
    metadata: dict[str, Any] = {"Date": None}
    figure.savefig(path, metadata=metadata)


def _label(contender: Contender) -> str:
    return f"{contender.title}, {contender.loop}" if contender.loop else contender.title
