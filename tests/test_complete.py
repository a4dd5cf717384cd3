"""Every public name is documented everywhere. If not, a test says what to add where.

Other tests check whether the documentation is right: test_stubs, test_options, test_docs.
"""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

import anyio_connect
from anyio_connect import AddressPolicy, Connector, SocketError, SocketOptions
from anyio_connect._preludes import PRELUDES

ROOT = Path(__file__).parents[1]


class Place(NamedTuple):
    """Where the word for something new belongs, and what to write there."""

    advice: str
    files: tuple[str, ...]
    made: bool = False  #: whether the parts that docs/made.py writes into the pages count too


ANY_PAGE = Place(
    "say in a page of docs/ what it is for; what `python docs/made.py` writes does not count",
    ("README.md", "docs/*.md"),
)
MADE_PAGE = Place(
    "bring the pages up to date: `python docs/made.py`",
    ("docs/errors.md", "docs/policies.md"),
    made=True,
)
FOR_WORKERS = Place(
    "add it to the table in docs/workers.md, which has all options; `python docs/made.py` brings "
    "the other pages up to date",
    ("docs/workers.md",),
)
POLICIES = Place(
    "say in docs/policies.md what it does; `python docs/made.py` brings the other pages up to "
    "date",
    ("docs/policies.md",),
)
ADAPTERS = Place("add it to docs/adapters.md, with an example", ("docs/adapters.md",))
REFERENCE = Place("add it to docs/reference.md, under its module", ("docs/reference.md",))
COMMAND_LINE = Place(
    "add it to the protocols that docs/command-line.md lists", ("docs/command-line.md",)
)
STUBS = Place(
    "add it to stubs/, the public names on a page, with its type and a few words",
    ("stubs/**/*.pyi",),
)
ACCEPTED = Place(
    "use it in tests/typing/accepted.py as users will, so that its type is checked",
    ("tests/typing/accepted.py",),
)
REJECTED = Place(
    "give it a value of a wrong type in tests/typing/rejected.py", ("tests/typing/rejected.py",)
)
CHANGELOG = Place("tell users of it in CHANGELOG.md, under [Unreleased], Added", ("CHANGELOG.md",))
RAISED = Place(
    "raise it: no module has it but _errors, where it is defined",
    ("anyio_connect/_[!e_]*.py",),
)
TESTED = Place(
    "show in a test when users meet it: test_api alone does not", ("tests/test_[!a]*.py",)
)

NAME = (ANY_PAGE, REFERENCE, STUBS, ACCEPTED, CHANGELOG)
ERROR = (MADE_PAGE, STUBS, ACCEPTED, CHANGELOG, RAISED, TESTED)
PRESET = (POLICIES, REFERENCE, STUBS, ACCEPTED, CHANGELOG)
OPTION = (FOR_WORKERS, STUBS, ACCEPTED, REJECTED, CHANGELOG)
VALUE = (POLICIES, STUBS, ACCEPTED, REJECTED, CHANGELOG)
RULE = (MADE_PAGE, STUBS, ACCEPTED, CHANGELOG)
PROTOCOL = (COMMAND_LINE, CHANGELOG)
ADAPTER = (ADAPTERS, REFERENCE, STUBS, ACCEPTED, REJECTED)


def places_of(name: str) -> tuple[Place, ...]:
    """Where a public name of the package belongs."""
    value = getattr(anyio_connect, name)
    if isinstance(value, AddressPolicy):
        return PRESET
    return ERROR if isinstance(value, type) and issubclass(value, SocketError) else NAME


def of_adapters() -> dict[str, str]:
    """The public names of the adapters, by what tests call them."""
    modules = sorted(path.stem for path in ROOT.glob("anyio_connect/adapters/[!_]*.py"))
    return {
        f"adapters.{module}.{name}": name
        for module in modules
        for name in import_module(f"anyio_connect.adapters.{module}").__all__
    }


WANTED: dict[str, tuple[str, tuple[Place, ...]]] = {
    **{name: (name, places_of(name)) for name in anyio_connect.__all__},
    **{f"option {name}": (name, OPTION) for name in SocketOptions.__annotations__},
    **{f"Connector({field.name}=)": (field.name, VALUE) for field in fields(Connector)},
    **{f"AddressPolicy({field.name}=)": (field.name, RULE) for field in fields(AddressPolicy)},
    **{f"--starttls {name}": (name, PROTOCOL) for name in PRELUDES},
    **{what: (name, ADAPTER) for what, name in of_adapters().items()},
}

#: A part of a page that docs/made.py writes.
MADE = re.compile(r"<!-- made: .*?<!-- /made -->", re.DOTALL)
#: In a page: a block of code, a heading, or code in a sentence. A name may be a common word too.
CODE = re.compile(r"^ *```.*?^ *```|^#.*?$|`[^`]+`", re.DOTALL | re.MULTILINE)


@cache
def words(place: Place) -> frozenset[str]:
    """All words of its files. In a page, only the words of code and headings count."""
    paths = [path for pattern in place.files for path in ROOT.glob(pattern)]
    assert paths, place.files
    found: set[str] = set()
    for path in paths:
        text = path.read_text("utf-8")
        if path.suffix == ".md":
            text = " ".join(CODE.findall(text if place.made else MADE.sub("", text)))
        found.update(re.findall(r"\w+", text))
    return frozenset(found)


@pytest.mark.parametrize("what", WANTED)
def test_everything_is_documented_everywhere(what: str) -> None:
    word, places = WANTED[what]
    advice = [place.advice for place in places if word not in words(place)]
    if advice:
        pytest.fail(
            "\n - ".join([f"{what} is not documented everywhere:", *advice]), pytrace=False
        )
