"""Reads DIFFERENCES.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

LEDGER = Path(__file__).with_name("DIFFERENCES.md")


class Difference(NamedTuple):
    """The outcome of one step of a scenario, here and in Workers."""

    scenario: str
    step: str
    here: str
    workers: str

    @property
    def row(self) -> str:
        """The row of the ledger."""
        return f"| {' | '.join(f'`{cell}`' for cell in self)} |"


def read() -> dict[str, list[Difference]]:
    """The differences, by their headings. Each heading has a reason below it."""
    text = LEDGER.read_text(encoding="utf-8")
    ledger: dict[str, list[Difference]] = {}
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        reason, *rows = re.split(r"^\| ", body, flags=re.MULTILINE)
        assert reason.strip(), f"no reason under {heading!r}"
        assert heading not in ledger, heading
        ledger[heading] = [
            Difference(*re.findall(r"`(.+?)`(?= \|)", row)) for row in rows if row.startswith("`")
        ]
        assert len(ledger[heading]) == len(rows) - 2, f"a row under {heading!r} has another form"
    return ledger
