"""What pages show of the package is made from the package: ``python docs/made.py`` writes it.

What stands between ``<!-- made: NAME -->`` and ``<!-- /made -->`` of a page is what ``MADE[NAME]``
returns. A test fails if that is no longer so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import anyio_connect
from anyio_connect import SocketError

DOCS = Path(__file__).parent


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(docstring: str) -> str:
    """A paragraph of a docstring on one line: the same in Markdown."""
    text = " ".join(docstring.split()).replace("``", "`").replace("|", "\\|")
    return re.sub(r":\w+:`(?:~?\w+\.)*(\w+)`", r"`\1`", text)


# --- errors


def errors() -> list[type[SocketError]]:
    """The public errors, each below the one it is a special case of."""
    public = [getattr(anyio_connect, name) for name in anyio_connect.__all__]
    found = [
        error for error in public if isinstance(error, type) and issubclass(error, SocketError)
    ]
    return sorted(found, key=lambda error: [cls.__name__ for cls in reversed(lineage(error))])


def lineage(error: type[SocketError]) -> list[type[SocketError]]:
    """An error and those of this package that it is as well."""
    return [cls for cls in error.__mro__ if issubclass(cls, SocketError)]


def name_of(cls: type) -> str:
    """How to write a class in code."""
    module = {"builtins": "", "_socket": "socket."}.get(cls.__module__)
    if module is None:
        module = f"{cls.__module__.partition('.')[0]}."
    return f"`{module}{cls.__name__}`"


def errors_table() -> str:
    """Each error: its code, what else it is, when it is raised, and what to do."""
    rows = []
    for error in errors():
        first, *others = str(error.__doc__).split("\n\n")
        (remedy,) = (text for text in others if "What to do:" in text)
        remedy = markdown(remedy).removeprefix("What to do: ")
        depth = "↳ " * (len(lineage(error)) - 1)
        rows.append(
            [
                f"{depth}`{error.__name__}`",
                f"`{error.code}`",
                ", ".join(bases_of(error)),
                markdown(first),
                remedy[0].upper() + remedy[1:],
            ]
        )
    return table(["error", "`code`", "also a", "when", "what to do"], rows)


def bases_of(error: type[SocketError]) -> list[str]:
    """The classes of Python's or AnyIO's that an error is made of, or the one above it is."""
    for cls in lineage(error):
        if found := [base for base in cls.__bases__ if not issubclass(base, SocketError)]:
            return [name_of(base) for base in found]
    return []


def errors_reference() -> str:
    """Each error in full, for Sphinx."""
    lines = [
        f".. autoexception:: {error.__name__}\n   :members:\n   :show-inheritance:\n"
        for error in errors()
    ]
    return "```{eval-rst}\n.. py:currentmodule:: anyio_connect\n\n" + "\n".join(lines) + "```"


#: What there is to show, by its name.
MADE: dict[str, Callable[[], str]] = {
    "errors": errors_table,
    "errors in full": errors_reference,
}


# --- the pages

_MADE = re.compile(r"(?<=<!-- made: )([\w ]+)( -->\n).*?(?=\n<!-- /made -->)", re.DOTALL)


def current(page: str) -> str:
    """A page with what is made for it made anew."""
    return _MADE.sub(lambda found: f"{found[1]}{found[2]}{MADE[found[1]]()}", page)


def main() -> None:
    """Bring all pages up to date."""
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        path.write_text(current(page), encoding="utf-8")


if __name__ == "__main__":
    main()
