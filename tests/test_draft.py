"""DRAFT.md lists the clauses of the draft: its form, and clauses that no other test covers."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from anyio_connect import InvalidAddressError, Socket, SocketError, connect
from conformance.scenarios import SCENARIOS
from support.errors import is_copy
from support.peers import refusing_address
from support.remotes import MemoryStream

ROOT = Path(__file__).parents[1]


class Clause(NamedTuple):
    """A row of DRAFT.md."""

    text: str
    verdict: str
    why: str
    tests: str


def clauses() -> list[Clause]:
    lines = (ROOT / "tests" / "DRAFT.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    cells = [Clause(*map(str.strip, row)) for row in rows]
    return [clause for clause in cells if clause.text not in ("clause", "---")]


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, functions)}


@pytest.mark.parametrize("clause", clauses(), ids=lambda clause: clause.text)
def test_a_clause_has_a_verdict_a_reason_and_tests_that_exist(clause: Clause) -> None:
    assert clause.text
    assert clause.verdict in ("same", "differs", "not applicable")
    assert clause.why or clause.verdict == "same", "the reason is missing"
    if clause.verdict == "not applicable":
        assert not clause.tests
        return
    named = re.fullmatch(r"`[^`]+`(, `[^`]+`)*", clause.tests)
    assert named, "no test is named"
    for test in re.findall("`([^`]+)`", clause.tests):
        path, _, name = test.partition("::")
        name, _, parameter = name.partition("[")
        assert name.startswith("test_")
        assert name in functions_of(path), f"{path} has no test {name}"
        if parameter:
            assert name == "test_scenario"
            assert parameter.removesuffix("]") in SCENARIOS, f"no such scenario: {parameter}"


def test_the_page_about_workers_counts_the_clauses_correctly() -> None:
    verdicts = [clause.verdict for clause in clauses()]
    same, differs = verdicts.count("same"), verdicts.count("differs")
    said = " ".join((ROOT / "docs" / "workers.md").read_text(encoding="utf-8").split())
    others = len(verdicts) - same - differs
    do = "does" if others == 1 else "do"
    wanted = f"of its {len(verdicts)} clauses {same} hold here, {differs} differ and {others} {do}"
    assert f" {wanted} not apply" in said


# --- clauses that no other test covers


def test_a_socket_has_no_public_constructor() -> None:
    make: Any = Socket
    for arguments in ((), ("127.0.0.1:1",)):
        with pytest.raises(TypeError):
            make(*arguments)


@pytest.mark.parametrize("address", ["", "localhost", "localhost:0", "::1:80", ("localhost", 0)])
def test_connect_raises_for_a_malformed_address(address: str | tuple[str, int]) -> None:
    with pytest.raises(InvalidAddressError) as caught:
        connect(address)
    assert isinstance(caught.value, SocketError)


def test_close_takes_no_reason() -> None:
    assert list(inspect.signature(Socket.close).parameters) == ["self"]


async def test_an_unknown_address_or_protocol_is_none() -> None:
    sender, receiver = anyio.create_memory_object_stream[bytes]()
    async with Socket.wrap(MemoryStream(sender, receiver)) as socket:
        info = await socket.opened
    assert (info.remote_address, info.local_address, info.alpn) == (None, None, None)


async def test_upgraded_is_true_before_the_handshake() -> None:
    plain = connect("127.0.0.1:1", secure_transport="starttls")
    assert not plain.upgraded
    secure = plain.start_tls()
    assert plain.upgraded
    assert not secure.opened.done()
    await secure.close()


async def test_both_futures_reject_with_equal_errors() -> None:
    socket = connect(refusing_address())
    with pytest.raises(SocketError):
        await socket.opened
    opened, closed = socket.opened.exception(), socket.closed.exception()
    assert opened is not None
    assert opened is not closed
    assert is_copy(closed, opened)
