"""The README: each block of code runs, and what its tables name is there."""

from __future__ import annotations

import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import trustme

import anyio_connect
from servers import echo, serving

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^<!-- runs -->\n```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
HOST = "echo.example:7"
DATABASE = "db.example:5432"


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
        monkeypatch.setattr("anyio_connect._tls._contexts", {})

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
    assert (HOST in block) != (DATABASE in block)
    run = anyio.run
    monkeypatch.setattr(anyio, "run", lambda main: run(main, backend=backend))
    here = block.replace(HOST, address).replace(DATABASE, database)
    exec(compile(here, "README.md", "exec"), {})


def test_the_first_block_prints_what_it_says(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(BLOCKS[0].replace(HOST, address), {})
    info, data = capsys.readouterr().out.splitlines()
    assert info.startswith("SocketInfo(remote_address=")
    assert data == "b'hello'"


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


def test_the_demo_runs() -> None:
    """What the demo command does once everything is installed."""
    subprocess.run(
        [sys.executable, "-m", "anyio_connect", "demo"],
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        timeout=60,
        check=True,
    )


def test_names_in_the_table_exist() -> None:
    things: dict[str, object] = {
        "socket": anyio_connect.Socket,
        "readable": anyio_connect.ReadableStream,
        "writable": anyio_connect.WritableStream,
    }
    options = anyio_connect.SocketOptions.__annotations__
    checked = 0
    for _, ours in rows("From Workers to Python"):
        for code in re.findall(r"`([^`]+)`", ours):
            name = code.partition("(")[0]
            first, *rest = name.split(".")
            if first in things:
                thing = things[first]
                for part in rest:
                    thing = things.get(part) or getattr(thing, part)
                checked += 1
            elif re.fullmatch("[a-z]+_[a-z_]+", name) and name != "task_group":
                assert name in options
                checked += 1
            elif re.fullmatch("[A-Z][A-Za-z]+", first) and hasattr(anyio_connect, first):
                for part in rest:
                    assert part in getattr(anyio_connect, first).__annotations__
                checked += 1
    assert checked >= 15


def test_error_table() -> None:
    named = set()
    for name, code, also, _ in rows("Errors"):
        error = getattr(anyio_connect, name.strip("`"))
        assert error.code == code.strip("`")
        assert issubclass(error, anyio_connect.SocketError)
        *_, base = also.strip("`").split(".")
        assert base in {cls.__name__ for cls in error.__mro__}
        named.add(name.strip("`"))
    public = {name for name in anyio_connect.__all__ if name.endswith("Error")}
    assert named == public - {"SocketError"}
