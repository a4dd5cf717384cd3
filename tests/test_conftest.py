"""The checks that conftest.py puts around every test: they catch what they should, and no more."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree as ET

import anyio
import anyio.abc
import anyio.to_thread
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from support import guards

ROOT = Path(__file__).parent.parent

needs_fds = pytest.mark.skipif(
    not guards.CAN_LIST_FDS, reason="only Linux lists the descriptors of a process"
)


def run_pytest(where: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``tests``, the text of a test file, under this suite's configuration."""
    (where / "tests").mkdir()
    shutil.copy(ROOT / "pyproject.toml", where)
    shutil.copy(ROOT / "tests" / "conftest.py", where / "tests")
    shutil.copytree(ROOT / "tests" / "support", where / "tests" / "support")
    (where / "tests" / "test_it.py").write_text(tests, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=where,
        env={name: value for name, value in os.environ.items() if "COVERAGE" not in name},
        check=False,
        capture_output=True,
        text=True,
    )


# --- what must be caught

BAD = """
import asyncio, os, select, socket, warnings
import anyio, pytest, trio
from hypothesis import Phase, given, settings, strategies as st
from support import guards

guards.GRACE = 0.05
kept = []


def test_socket_kept():
    kept.append(socket.socket())


def test_pipe_kept():
    kept.append(os.pipe())


def test_descriptor_in_a_cycle():
    cycle = [select.epoll()]
    cycle.append(cycle)


def test_socket_in_a_cycle():
    cycle = [socket.socket()]
    cycle.append(cycle)


def test_socket_dropped():
    socket.socket()


async def test_async_socket_kept():
    kept.append(socket.socket())


def spawn(anyio_backend_name):
    if anyio_backend_name == "trio":
        trio.lowlevel.spawn_system_task(trio.sleep_forever, name="stray")
    else:
        task = asyncio.get_running_loop().create_task(anyio.sleep_forever(), name="stray")
        kept.append(task)


async def test_task_left(anyio_backend_name):
    spawn(anyio_backend_name)


@pytest.fixture
async def careless(anyio_backend_name):
    spawn(anyio_backend_name)


async def test_task_left_by_fixture(careless):
    pass


async def test_coroutine_never_awaited():
    anyio.sleep(0)


async def test_warning():
    warnings.warn("old", DeprecationWarning)


async def wait_for_nothing():
    await anyio.Event().wait()


@pytest.mark.time_limit(0.05)
async def test_waits_for_ever():
    async with anyio.create_task_group() as group:
        group.start_soon(wait_for_nothing)
        await anyio.sleep_forever()


@pytest.mark.time_limit(0.05)
@given(st.none())
@settings(max_examples=1, phases=[Phase.generate])
async def test_example_waits_for_ever(nothing):
    await wait_for_nothing()
"""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What pytest said about each test of BAD, on each event loop."""
    where = tmp_path_factory.mktemp("bad")
    result = run_pytest(where, BAD, "--junitxml=report.xml", "--tb=short")
    said: dict[str, str] = {}
    for case in ET.parse(where / "report.xml").iter("testcase"):
        for trouble in (*case.iter("failure"), *case.iter("error")):
            name = case.get("name", "")
            said[name] = said.get(name, "") + str(trouble.text)
    assert said, result.stdout + result.stderr
    return said


@pytest.mark.slow
@needs_fds
@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("test_socket_kept", ["left open:", "-> socket:["]),
        ("test_pipe_kept", ["left open:", "-> pipe:["]),
        ("test_descriptor_in_a_cycle", ["eventpoll", "until the garbage collector closed it"]),
        ("test_socket_in_a_cycle", ["-> socket:[", "until the garbage collector closed it"]),
    ],
)
def test_descriptor_leak_fails(complaints: dict[str, str], test: str, words: list[str]) -> None:
    for word in words:
        assert word in complaints[test]


@pytest.mark.slow
def test_unclosed_socket_fails(complaints: dict[str, str]) -> None:
    assert "ResourceWarning: unclosed <socket" in complaints["test_socket_dropped"]


@pytest.mark.slow
def test_failures_on_every_loop(
    complaints: dict[str, str], request: pytest.FixtureRequest, anyio_backend: object
) -> None:
    loop = request.node.callspec.id

    def said(test: str) -> str:
        return complaints[f"{test}[{loop}]"]

    if guards.CAN_LIST_FDS:
        assert "-> socket:[" in said("test_async_socket_kept")
    assert "left running:\nstray:\n" in said("test_task_left")
    assert "in sleep_forever" in said("test_task_left")
    assert "left running:\nstray:\n" in said("test_task_left_by_fixture")
    assert "was never awaited" in said("test_coroutine_never_awaited")
    assert "DeprecationWarning: old" in said("test_warning")
    assert "took more than 0.05 seconds" in said("test_waits_for_ever")
    assert "in wait_for_nothing\n    await anyio.Event().wait()" in said("test_waits_for_ever")
    assert "took more than 0.05 seconds" in said("test_example_waits_for_ever")


SLOW = """
import time
import anyio, pytest
from hypothesis import given, settings, strategies as st
from support import guards

guards.SHRINK_LIMIT = 0.5


@given(st.lists(st.integers(0, 1000), min_size=8, max_size=8))
def test_each_example_is_slow(numbers):
    if sum(numbers) > 1000:
        time.sleep(0.1)  # so that the search for the simplest example takes a minute
        raise ValueError("too much")


@pytest.mark.time_limit(1)
@given(st.lists(st.integers(0, 1000), min_size=8, max_size=8))
async def test_each_example_hangs(numbers):
    if sum(numbers) > 1000:
        await anyio.sleep_forever()


def test_profile():
    assert not settings().derandomize
    assert settings().print_blob
"""


@pytest.mark.slow
def test_a_slow_search_for_a_simpler_example_ends_with_the_example(tmp_path: Path) -> None:
    """Also in CI. Unbounded, it would take each of the two tests more than a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "1")
        patch.delenv("HYPOTHESIS_PROFILE", raising=False)
        result = run_pytest(tmp_path, SLOW, "-o", "faulthandler_timeout=30", "-k", "not uvloop")
    assert result.returncode == 1
    assert "1 passed" in result.stdout
    assert "Flaky" not in result.stdout
    for said in ("ValueError: too much", "the test took more than 0.5 seconds"):
        assert said in result.stdout
    tests = (
        "test_each_example_is_slow",
        "test_each_example_hangs[asyncio]",
        "test_each_example_hangs[trio]",
    )
    for test in tests:
        assert f"nox -- {shlex.quote(f'tests/test_it.py::{test}')}" in result.stdout
    assert result.stdout.count("Failing test case: ") >= len(tests)
    assert result.stdout.count("@reproduce_failure('") >= len(tests)


@pytest.mark.slow
def test_blocked_thread_ends_the_run(tmp_path: Path) -> None:
    blocked = "import threading\n\n\ndef test_blocks():\n    threading.Event().wait()\n"
    result = run_pytest(tmp_path, blocked, "-o", "faulthandler_timeout=0.2")
    assert result.returncode == 1
    assert "Timeout" in result.stderr
    assert "in test_blocks" in result.stderr


# --- what must not be reported


@pytest.fixture
async def group() -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()


async def test_tasks_of_a_fixture(group: anyio.abc.TaskGroup) -> None:
    group.start_soon(anyio.sleep_forever)


async def test_abandoned_thread() -> None:
    def hold_a_pipe() -> None:
        ends = os.pipe()
        time.sleep(0.05)
        for end in ends:
            os.close(end)

    with anyio.move_on_after(0.01):
        await anyio.to_thread.run_sync(hold_a_pipe, abandon_on_cancel=True)


async def test_cancelled_task_that_was_not_awaited() -> None:
    if not trio.lowlevel.in_trio_run():
        asyncio.get_running_loop().create_task(anyio.sleep_forever()).cancel()


def test_loop_of_its_own(anyio_backend: tuple[str, dict[str, object]]) -> None:
    name, options = anyio_backend
    anyio.run(anyio.sleep, 0.001, backend=name, backend_options=options)


# --- the event loops


async def test_loop_is_as_named(request: pytest.FixtureRequest) -> None:
    loop = request.node.callspec.id
    assert (loop == "trio") == trio.lowlevel.in_trio_run()
    if loop != "trio":
        running = asyncio.get_running_loop()
        assert running.get_debug() == bool(os.environ.get("PYTHONASYNCIODEBUG"))
        assert (loop == "uvloop") == type(running).__module__.startswith("uvloop")
        assert (loop == "asyncio-eager") == (running.get_task_factory() is not None)


seen: set[bool] = set()


@given(st.none())
async def test_examples_run_on_each_loop(nothing: None) -> None:
    seen.add(trio.lowlevel.in_trio_run())


def test_examples_ran_on_each_loop() -> None:
    assert seen == {False, True}
