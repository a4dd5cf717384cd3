"""The command line: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure, report
from benchmarks.work import ROWS

IMPORT = "import"
RESULTS = report.ROOT / "benchmarks" / "results.json"

EXAMPLES = """\
all rows, in about a quarter of an hour, on two cores that have nothing else to do:
  python -m benchmarks run --json benchmarks/results.json
  python -m benchmarks report --write
the same, after an interruption:
  python -m benchmarks run --json benchmarks/results.json --resume
one row on one event loop, in some seconds, to try a change:
  python -m benchmarks run round_trip_100 --loops asyncio
  python -m benchmarks run connect --loops trio --only anyio_connect,trio --rounds 15
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare the cost of anyio_connect with that of its peers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="measure, and print each row as soon as it is done",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(call=run_rows)
    run.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"some of: {', '.join([*ROWS, IMPORT])}"
    )
    run.add_argument("--loops", help="only these event loops, as in 'asyncio,trio'")
    run.add_argument("--only", help="only these contenders, as in 'anyio_connect,streams'")
    run.add_argument("--rounds", type=int, default=7, help="the results are medians of the rounds")
    run.add_argument(
        "--share", type=int, default=1, metavar="N", help="do one part in N, to check that it runs"
    )
    run.add_argument("--json", type=Path, metavar="FILE", help="save the results")
    run.add_argument(
        "--resume", action="store_true", help="measure only the rows that FILE does not have"
    )

    shown = commands.add_parser("report", help="show the results")
    shown.set_defaults(call=show)
    shown.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    shown.add_argument("--plots", type=Path, metavar="DIRECTORY", help="draw the pictures there")
    shown.add_argument(
        "--write",
        action="store_true",
        help="put the tables into README.md and docs/benchmarks.md, the pictures into benchmarks/",
    )

    arguments = parser.parse_args()
    arguments.call(parser, arguments)


def run_rows(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if unknown := {*arguments.rows} - {*ROWS, IMPORT}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    if arguments.resume and not arguments.json:
        parser.error("--resume needs --json")
    found = report.Run(
        report.commit(), report.machine(), max(1, arguments.rounds), max(1, arguments.share)
    )
    if arguments.resume and arguments.json.exists():
        earlier = report.from_json(arguments.json.read_text(encoding="utf-8"))
        if not earlier.is_like(found):
            parser.error(f"{arguments.json} is of another commit, machine, or number of rounds")
        found = earlier

    contenders = measure.contenders()
    if arguments.loops:
        contenders = [each for each in contenders if each.loop in arguments.loops.split(",")]
    if arguments.only:
        contenders = [each for each in contenders if each.name in arguments.only.split(",")]
    if not contenders:
        parser.error("no contender is left")

    done = {*found.rows(), *[IMPORT] * bool(found.imports)}
    rows = [row for row in arguments.rows or [*ROWS, IMPORT] if row not in done]
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as directory,
        measure.peer(Path(directory)) as start,
    ):
        for count, name in enumerate(rows, 1):
            if name == IMPORT:
                found.imports = measure.import_times(found.rounds)
                medians = report.import_medians(found)
                print(f"{IMPORT}: {medians}, in addition to anyio", flush=True)
            else:
                found.results += measure.measure(
                    name, contenders, found.rounds, found.share, start
                )
                print(*report.line_by_line(found, name), sep="\n", flush=True)
            if arguments.json:
                keep(found, arguments.json)
            minutes, seconds = divmod(round(time.monotonic() - begun), 60)
            print(f"[{count} of {len(rows)} rows, {minutes}:{seconds:02}]", file=sys.stderr)


def keep(found: report.Run, path: Path) -> None:
    """Save everything or change nothing, so that an interruption does no harm."""
    new = path.with_name(path.name + ".new")
    new.write_text(report.as_json(found), encoding="utf-8")
    new.replace(path)


def show(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    found = report.from_json(arguments.json.read_text(encoding="utf-8"))
    print(report.small(found), report.full(found), sep="\n\n")
    plots = arguments.plots
    if arguments.write:
        report.put_between(report.ROOT / "README.md", "benchmarks: small", report.small(found))
        report.put_between(
            report.ROOT / "docs" / "benchmarks.md", "benchmarks", report.full(found)
        )
        plots = plots or report.ROOT / "benchmarks"
    if plots:
        report.plot_rows(found, plots / "results.svg")
        report.plot_sockets(found, plots / "sockets.svg")


if __name__ == "__main__":
    main()
