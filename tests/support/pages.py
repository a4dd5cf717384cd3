"""Reads the pages of docs/: their code and their tables."""

from __future__ import annotations

import re
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "clients.md"


def blocks_of(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def code_of(block: str, path: Path) -> CodeType:
    """Compile a block of a page, with the lines of the page, so that a traceback shows them."""
    before, _, _ = path.read_text(encoding="utf-8").partition(block)
    return compile("\n" * before.count("\n") + block, str(path), "exec", dont_inherit=True)


def sections(text: str) -> dict[str, str]:
    """The text under each heading of the second level."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(text: str) -> list[list[str]]:
    """The cells of the first table, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def recipe(title: str, **names: Any) -> Any:
    """Run the code under a heading of docs/clients.md, and return the names that it defines.

    ``names``: the names that it uses from other recipes.
    """
    (block,) = blocks_of(sections(RECIPES.read_text(encoding="utf-8"))[title])
    defined = {"__name__": f"recipe for {title}", **names}
    exec(code_of(block, RECIPES), defined)
    return SimpleNamespace(**defined)
