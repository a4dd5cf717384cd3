"""What the README shows of the benchmarks is what the committed run has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PICTURE = ROOT / "benchmarks" / "results.svg"


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_readme_shows_the_committed_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("<!-- benchmarks -->\n")[2].partition("<!-- /benchmarks -->")[0]
    command = [sys.executable, "-m", "benchmarks", "--from-json", "--json", str(RESULTS)]
    made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert shown.strip() == made.strip()


def test_the_committed_run_left_nothing_out() -> None:
    found = results()
    assert found["rounds"] >= 5
    done = {(each["work"], each["tls"]) for each in found["results"]}
    program = "from benchmarks.work import WORKS; print(*WORKS)"
    command = [sys.executable, "-c", program]
    works = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for work in works.split():
        assert (work, True) in done
        assert (work, False) in done or work == "connect_default"
    contenders = {(each["name"], each["loop"]) for each in found["results"]}
    assert {
        ("blocking", ""),
        *((name, loop) for name in ("anyio_connect", "anyio") for loop in LOOPS),
        *(("streams", loop) for loop in ("asyncio", "uvloop")),
        ("trio", "trio"),
        ("node", ""),
        ("workerd", ""),
    } == contenders
    assert all(len(each["values"]) == found["rounds"] for each in found["results"])


LOOPS = ("asyncio", "uvloop", "trio")


@pytest.mark.parametrize(
    "name", ["bulk receive", "TLS: bulk receive", "connect, first byte, close"]
)
def test_the_picture_is_of_it(name: str) -> None:
    picture = PICTURE.read_text(encoding="utf-8")
    assert name in picture
    for each in results()["results"]:
        if each["work"] == "receive" and not each["tls"]:
            assert f"{each['median']:,.0f}" in picture
