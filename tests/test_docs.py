"""docs/: the parts made from the package are up to date, and each page is linked."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import anyio_connect
from anyio_connect._lifecycle import TABLES, Event

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}


def module(name: str) -> Any:
    """A module of docs/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


made = module("made")
links = module("links")


@pytest.mark.parametrize("name", PAGES)
def test_the_parts_made_from_the_package_are_current(name: str) -> None:
    assert made.current(PAGES[name]) == PAGES[name], "update the page: python docs/made.py"


@pytest.mark.parametrize("name", made.FACETS)
def test_the_pictures_are_current(name: str) -> None:
    picture = (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert made.diagram(name) == picture, "update the picture: python docs/made.py"


def test_a_picture_shows_each_state_and_each_move() -> None:
    assert made.FACETS.keys() == TABLES.keys()
    for facet, table in TABLES.items():
        picture = made.diagram(facet)
        for state, events in table.items():
            assert f">{state.name}</text>" in picture
            for event, entry in events.items():
                target = entry[0] if isinstance(entry, tuple) else entry
                shown = [text for text, _ in made.moves(facet)[state].get(target, [])]
                assert target is state or made.EVENTS[event] in shown


def test_each_event_has_words() -> None:
    assert made.EVENTS.keys() == set(Event), (
        "describe each event to users, in EVENTS of docs/made.py"
    )
    assert made.CALLS.keys() <= {*made.EVENTS.values()}


def test_every_part_that_is_made_is_on_a_page() -> None:
    shown = [name for page in PAGES.values() for name in re.findall("<!-- made: (.*) -->", page)]
    assert sorted(shown) == sorted(made.MADE)
    assert sum(page.count("<!-- /made -->") for page in PAGES.values()) == len(shown)


def test_the_table_of_errors_has_every_error() -> None:
    table = made.errors_table()
    for name in anyio_connect.__all__:
        if name.endswith("Error"):
            assert f"**`{name}`**" in table


def test_the_index_lists_every_page() -> None:
    trees = re.findall(r"```{toctree}\n(.*?)```", PAGES["index"], re.DOTALL)
    listed = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    assert sorted(listed) == sorted(PAGES.keys() - {"index"})


def test_links_of_the_packed_readme_lead_to_the_repository() -> None:
    # With patterns, because Python 3.10 cannot read TOML.
    pyproject = (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")
    (repository,) = re.findall(r'^Repository = "(.*)"$', pyproject, re.MULTILINE)
    (pattern,) = re.findall(r"^pattern = '(.*)'$", pyproject, re.MULTILINE)
    (replacement,) = re.findall(r"^replacement = '(.*)'$", pyproject, re.MULTILINE)
    assert replacement == f"]({repository}/"
    links = "[x](docs/x.md) ![y](y.svg) [z](https://z.example/)"
    assert re.sub(pattern, replacement, links) == (
        f"[x]({repository}/docs/x.md) ![y]({repository}/y.svg) [z](https://z.example/)"
    )


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text("<p id='here'>", encoding="utf-8")
    (tmp_path / "page.html").write_text(
        "<a href='there.html#here'><a href='there.html#gone'><a href='https://x.example/y'>"
        "<img src='gone.svg'><a href='#'>",
        encoding="utf-8",
    )
    assert links.dead_links(tmp_path) == ["page.html: there.html#gone", "page.html: gone.svg"]
