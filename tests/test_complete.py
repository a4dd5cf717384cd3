"""Every public name is documented everywhere: a test says what is missing, and where to add it.

Other tests check whether the documentation is right: test_stubs, test_options, test_docs.
"""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

import anyio_connect
from anyio_connect import AddressPolicy, Connector, SocketOptions
from anyio_connect._preludes import PRELUDES

ROOT = Path(__file__).parents[1]

#: Where the name of something new belongs, and what to write there.
DOCS = ("README.md", "docs/*.md")
PLACES: dict[tuple[str, ...], str] = {
    DOCS: "say in docs/ what it is for. `python docs/made.py` updates what the pages show "
    "of docstrings",
    ("stubs/**/*.pyi",): "add it to stubs/, the public names on a page, with its type and a few "
    "words",
    ("tests/typing/accepted.py",): "use it in tests/typing/accepted.py as users will, so that its "
    "type is checked",
    ("tests/typing/rejected.py",): "give it a value of a wrong type in tests/typing/rejected.py",
    ("CHANGELOG.md",): "tell users of it in CHANGELOG.md, under [Unreleased], Added",
    ("docs/command-line.md",): "add it to the protocols that docs/command-line.md lists",
}
CHANGELOG = ("CHANGELOG.md",)
PROTOCOL = (("docs/command-line.md",), CHANGELOG)
OPTION = tuple(places for places in PLACES if places != ("docs/command-line.md",))
NAME = tuple(places for places in OPTION if places != ("tests/typing/rejected.py",))

WANTED: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    **{name: (name, NAME) for name in anyio_connect.__all__},
    **{f"option {name}": (name, OPTION) for name in SocketOptions.__annotations__},
    **{f"Connector({field.name}=)": (field.name, OPTION) for field in fields(Connector)},
    **{f"AddressPolicy({field.name}=)": (field.name, NAME) for field in fields(AddressPolicy)},
    **{f"--starttls {name}": (name, PROTOCOL) for name in PRELUDES},
}

#: In a page: a block of code, a heading, or code in a sentence. Elsewhere, the name may be a
#: common word.
CODE = r"^ *```.*?^ *```|^#.*?$|`[^`]+`"


@cache
def words(places: tuple[str, ...]) -> frozenset[str]:
    """All words of these files; of a page, those of its code and its headings."""
    paths = [path for place in places for path in ROOT.glob(place)]
    assert paths, places
    found: set[str] = set()
    for path in paths:
        parts = [path.read_text("utf-8")]
        if path.suffix == ".md":
            parts = re.findall(CODE, parts[0], re.DOTALL | re.MULTILINE)
        found.update(re.findall(r"\w+", " ".join(parts)))
    return frozenset(found)


@pytest.mark.parametrize("what", WANTED)
def test_everything_is_documented_everywhere(what: str) -> None:
    word, everywhere = WANTED[what]
    advice = [PLACES[places] for places in everywhere if word not in words(places)]
    if advice:
        pytest.fail(
            "\n - ".join([f"{what} is not documented everywhere:", *advice]), pytrace=False
        )
