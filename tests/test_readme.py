"""The README and docs/: each block of code runs, and the names in docs/workers.md exist."""

from __future__ import annotations

import inspect
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

import anyio_connect
from anyio_connect._ranges import BLOCKS as BLOCKS_OF_ADDRESSES
from anyio_connect._ranges import METADATA
from support.pages import RECIPES, ROOT, blocks_of, code_of
from support.servers import echo, serving

README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = blocks_of(README)
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
README_BLOCKS = [
    pytest.param(block, ROOT / "README.md", id=f"README {number}")
    for number, block in enumerate(BLOCKS, 1)
]
DOC_BLOCKS = [
    pytest.param(block, ROOT / "docs" / f"{page}.md", id=f"{page} {number}")
    for page, text in sorted(DOCS.items())
    if page != RECIPES.stem  # tests/interop/test_clients.py runs these
    for number, block in enumerate(blocks_of(text), 1)
]
COMMANDS = re.findall(
    r"^<!-- runs -->\n```sh\n(.*?)^```", DOCS["command-line"], re.DOTALL | re.MULTILINE
)
#: The made-up host in these commands.
HOST = "echo.example:7"


@pytest.fixture
def address() -> Iterator[str]:
    with serving(echo) as address:
        yield address


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the first table under a heading of a page, without its head."""
    section = DOCS[page].partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 2, f"no table under {title!r}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_readme_is_short_and_has_code() -> None:
    assert len(README.split()) <= 1500
    assert len(BLOCKS) >= 2
    assert COMMANDS
    for name in ("demo", "tests"):
        assert README.count(f"<!-- command: {name} -->\n```sh\n") == 1


def test_the_figures_of_the_readme_are_those_of_the_pages() -> None:
    first, second, _ = re.findall(r"^\d\. (.*?)(?=^\d\.|\n\n)", README, re.DOTALL | re.MULTILINE)
    assert len(figures := re.findall(r"\d{3,}", first)) == 4
    assert all(re.search(rf"\b{figure}\b", DOCS["workers"]) for figure in figures)
    found = [str(len(BLOCKS_OF_ADDRESSES)), str(len(METADATA))]
    assert re.findall(r"\b\d+\b", second) == found, (
        "the README says how many blocks and metadata addresses _ranges has: correct it"
    )


@pytest.fixture
def same_level() -> Iterator[None]:
    """Restore the level of the logger, which a block of code may set."""
    logger = logging.getLogger("anyio_connect")
    level = logger.level
    try:
        yield
    finally:
        logger.setLevel(level)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("block", "page"), [*README_BLOCKS, *DOC_BLOCKS])
@pytest.mark.usefixtures("same_level")
def test_block(
    block: str,
    page: Path,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The block runs as it is, and prints what its comments say. Tests in it run too."""
    run = anyio.run
    with monkeypatch.context() as patch:
        patch.setattr(anyio, "run", lambda main, *args: run(main, *args, backend=backend))
        patch.setattr(logging, "basicConfig", lambda **options: None)
        here: dict[str, Any] = {}
        exec(code_of(block, page), here)
    for name, test in here.items():
        if name.startswith("test_"):
            run(test, backend=backend) if inspect.iscoroutinefunction(test) else test()
    said = re.findall(r"^ *print\(.*\)  # (.+)$", block, re.MULTILINE)
    printed = capsys.readouterr().out
    for line in said:
        wanted = ".*".join(map(re.escape, line.split("...")))
        found = re.search(rf"^{wanted}$", printed, re.MULTILINE)
        assert found, f"{line!r} is not in {printed!r}"
        printed = printed[found.end() :]


@pytest.mark.parametrize("text", [README, *DOCS.values()], ids=["README", *DOCS])
def test_made_up_hosts_are_said_to_be_made_up(text: str) -> None:
    if re.search(r"\w\.example\b", "".join(blocks_of(text))):
        assert "made up" in text


@pytest.mark.parametrize("text", [README, *DOCS.values()], ids=["README", *DOCS])
def test_links_lead_somewhere(text: str) -> None:
    here = ROOT if text is README else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (here / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, address: str) -> None:
    ran = subprocess.run(
        command.replace(HOST, address).replace("python ", f"{shlex.quote(sys.executable)} "),
        shell=True,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == b"hello"
    assert ran.stderr == b""


@pytest.mark.slow
def test_the_demo_runs() -> None:
    """This is what the demo command of the README does once everything is installed."""
    subprocess.run(
        [sys.executable, "-m", "anyio_connect", "demo"],
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        timeout=60,
        check=True,
    )


def exists(code: str) -> bool:
    """Whether the package has what this code, from a cell of the table, names."""
    if code.startswith('"'):  # an address
        with suppress(anyio_connect.InvalidAddressError):
            anyio_connect.connect(code.strip('"').replace("IPv6", "::1").replace("port", "1"))
            return True
        return False
    name, _, arguments = code.partition("(")
    first, _, attribute = name.rpartition(".")
    if first in ("socket.readable", "reader"):
        owner: object = anyio_connect.ReadableStream
    elif first in ("socket.writable", "writer"):
        owner = anyio_connect.WritableStream
    elif first in ("", "socket", "SocketInfo"):
        owner = anyio_connect.SocketInfo if first == "SocketInfo" else anyio_connect.Socket
    else:
        return False
    if not first:
        # Standing alone: a public name, an option, or a method named after its class.
        options = inspect.signature(anyio_connect.connect).parameters
        if name in anyio_connect.SocketOptions.__annotations__ or name in options:
            return True
        owner = anyio_connect if hasattr(anyio_connect, name) else anyio_connect.SocketFuture
    found = getattr(owner, attribute, None) or getattr(owner, "__annotations__", {}).get(attribute)
    keywords = re.findall(r"(\w+)=", arguments)
    return found is not None and (
        not keywords or set(keywords) <= set(inspect.signature(found).parameters)
    )


def test_names_in_the_table_exist() -> None:
    checked = 0
    for _, ours in rows("workers", "From Workers to Python"):
        before = ""
        for code in re.findall(r"`([^`]+)`", ours):
            if code in ("await", "async for", "async with", "TypedDict"):  # Python's own
                continue
            if code.startswith("."):  # an attribute of what is named before it
                assert exists(before.rpartition(".")[0] + code), code
            else:
                assert exists(code), code
                before = code
            checked += 1
    assert checked >= 30
