"""The command line: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import measure, report
from benchmarks.work import WORKS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure anyio_connect beside its peers, print a table, and write JSON.",
    )
    parser.add_argument(
        "works", nargs="*", metavar="WORK", help=f"some of: {', '.join(WORKS)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="of which medians are taken")
    parser.add_argument(
        "--share", type=int, default=1, metavar="N", help="do an Nth of it, to see that it runs"
    )
    parser.add_argument("--loops", help="only these event loops, as in 'asyncio,trio'")
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"), metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw an SVG as well")
    parser.add_argument(
        "--from-json", action="store_true", help="measure nothing; show what FILE has"
    )
    arguments = parser.parse_args()
    if unknown := {*arguments.works} - {*WORKS}:
        parser.error(f"no such work: {', '.join(sorted(unknown))}")

    if arguments.from_json:
        found = report.from_json(arguments.json.read_text(encoding="utf-8"))
    else:
        found = run(arguments.works, arguments.loops, arguments.rounds, arguments.share)
        arguments.json.write_text(report.as_json(found), encoding="utf-8")
    print(found)
    if arguments.plot:
        report.plot(found.results, arguments.plot)


def run(works: list[str], loops: str | None, rounds: int, share: int) -> report.Report:
    wanted = loops.split(",") if loops else None
    contenders = [
        each for each in measure.contenders() if not wanted or each.loop in ("", *wanted)
    ]
    with tempfile.TemporaryDirectory() as directory:
        results = measure.measure(
            contenders,
            works or [*WORKS],
            rounds,
            share,
            Path(directory),
            lambda line: print(line, file=sys.stderr),
        )
    imports = {} if works else measure.import_times(rounds)
    return report.Report(report.machine(), rounds, imports, results)


if __name__ == "__main__":
    main()
