"""The README and docs/: each block of code runs; what the README's tables name is there."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
import trustme

import anyio_connect
from anyio_connect import _tls
from pages import RECIPES, ROOT, blocks_of
from servers import echo, serving

README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = blocks_of(README)
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
DOC_BLOCKS = [
    pytest.param(block, id=f"{page} {number}")
    for page, text in sorted(DOCS.items())
    if page != RECIPES.stem  # which tests/interop/test_clients.py runs
    for number, block in enumerate(blocks_of(text), 1)
]
COMMANDS = re.findall(r"^<!-- runs -->\n```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
HOST = "echo.example:7"
DATABASE = "db.example:5432"
REFUSED = "127.0.0.1:8080"  # by the policy that the block shows


@pytest.fixture
def address() -> Iterator[str]:
    with serving(echo) as address:
        yield address


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What begins like PostgreSQL, with a certificate that is trusted by default here."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with authority.cert_pem.tempfile() as path:
        monkeypatch.setenv("SSL_CERT_FILE", path)
        monkeypatch.setattr("anyio_connect._tls._contexts", _tls.Contexts())

        def serve(connection: socket.socket) -> None:
            assert connection.recv(8) == bytes.fromhex("0000000804d2162f")
            connection.sendall(b"S")
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1)

        with serving(serve) as address:
            yield address


def rows(title: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    section = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 2, f"no table under {title!r}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_readme_has_code() -> None:
    assert len(BLOCKS) >= 4
    assert COMMANDS
    for name in ("demo", "tests"):
        assert README.count(f"<!-- command: {name} -->\n```sh\n") == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("block", BLOCKS)
def test_block(
    block: str, backend: str, address: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name in block for name in (HOST, DATABASE, REFUSED)].count(True) == 1
    run = anyio.run
    monkeypatch.setattr(anyio, "run", lambda main: run(main, backend=backend))
    here = block.replace(HOST, address).replace(DATABASE, database)
    exec(compile(here, "README.md", "exec"), {})


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("block", DOC_BLOCKS)
def test_block_of_a_page(
    block: str, backend: str, address: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands alone. The tests in it are run as well."""
    run = anyio.run
    with monkeypatch.context() as patch:
        patch.setattr(anyio, "run", lambda main: run(main, backend=backend))
        here: dict[str, Any] = {}
        block = block.replace(HOST, address).replace(DATABASE, database)
        exec(compile(block, "docs", "exec", dont_inherit=True), here)
    for name, test in here.items():
        if name.startswith("test_"):
            run(test, backend=backend) if inspect.iscoroutinefunction(test) else test()


@pytest.mark.parametrize("text", [README, *DOCS.values()], ids=["README", *DOCS])
def test_links_lead_somewhere(text: str) -> None:
    here = ROOT if text is README else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (here / target).exists(), target


def test_the_first_block_prints_what_it_says(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(BLOCKS[0].replace(HOST, address), {})
    info, data = capsys.readouterr().out.splitlines()
    assert info.startswith("SocketInfo(remote_address=")
    assert data == "b'hello'"


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
    """What the demo command does once everything is installed."""
    subprocess.run(
        [sys.executable, "-m", "anyio_connect", "demo"],
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        timeout=60,
        check=True,
    )


def exists(code: str) -> bool:
    """Whether what a cell of the table names is in the package."""
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
    for _, ours in rows("From Workers to Python"):
        before = ""
        for code in re.findall(r"`([^`]+)`", ours):
            if code in ("await", "async for", "async with", "TypedDict"):  # Python's own
                continue
            if code.startswith("."):  # of the same thing as what stands before it
                assert exists(before.rpartition(".")[0] + code), code
            else:
                assert exists(code), code
                before = code
            checked += 1
    assert checked >= 30


def test_error_table() -> None:
    named = set()
    for name, code, also, _ in rows("Errors"):
        error = getattr(anyio_connect, name.strip("`"))
        assert error.code == code.strip("`")
        assert issubclass(error, anyio_connect.SocketError)
        module, _, base = also.strip("`").rpartition(".")
        assert issubclass(error, getattr(importlib.import_module(module or "builtins"), base))
        named.add(name.strip("`"))
    public = {name for name in anyio_connect.__all__ if name.endswith("Error")}
    assert named == public - {"SocketError"}
