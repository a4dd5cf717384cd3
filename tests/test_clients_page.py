"""docs/clients.md: each recipe and each row of its table has tests, and each test has a row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from support.pages import RECIPES, ROOT, blocks_of, sections, table

PAGE = sections(RECIPES.read_text(encoding="utf-8"))
WITH_CODE = {title: blocks_of(text) for title, text in PAGE.items() if blocks_of(text)}
ROWS = {row[0]: row[1:] for row in table(PAGE["What is protected, and what is not"])}
TESTS = ROOT / "tests"


def found_in(path: Path) -> dict[str, str]:
    """The source of each test of a module, which need not be importable here."""
    text = path.read_text(encoding="utf-8")
    return {
        node.name: ast.get_source_segment(text, node) or ""
        for node in ast.parse(text).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
    }


OF_RECIPES = found_in(TESTS / "interop" / "test_clients.py")
OF_ADAPTERS = found_in(TESTS / "test_adapters.py") | found_in(TESTS / "test_adapters_bypass.py")


def named_for(client: str) -> list[str]:
    return re.findall(r"`(test_\w+)`", ROWS[client][-1])


@pytest.mark.parametrize("title", WITH_CODE)
def test_a_recipe_is_one_block_which_the_tests_run(title: str) -> None:
    (block,) = WITH_CODE[title]
    compile(block, title, "exec")
    assert max(map(len, block.splitlines())) < 100
    used = (TESTS / "interop" / "test_clients.py").read_text(encoding="utf-8")
    assert used.count(f'recipe("{title}"') == 1
    assert title in ROWS


@pytest.mark.parametrize("client", ROWS)
def test_a_row_names_tests_that_exist(client: str) -> None:
    named = named_for(client)
    assert named, f"name tests in the row of {client} in docs/clients.md"
    assert set(named) <= OF_RECIPES.keys() | OF_ADAPTERS.keys()


def test_each_test_of_a_recipe_is_in_its_row() -> None:
    named = [name for client in WITH_CODE for name in named_for(client)]
    assert sorted(named) == sorted(OF_RECIPES)


@pytest.mark.parametrize("client", ROWS)
def test_a_row_says_about_max_connections_what_its_tests_show(client: str) -> None:
    """Some tests find that the client's connections are counted, and others that they are not."""
    sources = {name: {**OF_RECIPES, **OF_ADAPTERS}[name] for name in named_for(client)}
    cell = ROWS[client][2]
    shown = [name for name, source in sources.items() if "is_counted(" in source]
    if client not in WITH_CODE:
        shown = [name for name, source in sources.items() if "max_connections=1" in source]
    assert cell.startswith("counts") == bool(shown)
    over_tls = [name for name in sources if name.endswith("over_tls_is_not_counted")]
    assert cell.endswith("not over TLS") == bool(over_tls) or client == "requests"


def test_each_adapter_has_a_row() -> None:
    modules = {path.stem for path in (ROOT / "anyio_connect" / "adapters").glob("[!_]*.py")}
    rows = ROWS.keys() - WITH_CODE.keys()
    assert not modules - rows, (
        f"add to the last table of docs/clients.md a row for {', '.join(modules - rows)}. It "
        "names tests of test_adapters or test_adapters_bypass, which show that no forbidden "
        "address is dialled, and whether max_connections counts"
    )
    assert not rows - modules, f"no module of adapters is for {', '.join(rows - modules)}"
