"""The event loops that every asynchronous test runs on, and the checks around each test."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shlex
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from importlib.util import find_spec
from inspect import iscoroutinefunction
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from anyio_connect import _readers
from support import guards
from support.names import Names

#: How long one asynchronous test, or one Hypothesis example of it, may take, in seconds.
#: ``@pytest.mark.time_limit(n)`` sets another limit.
TIME_LIMIT = 60


# --- Hypothesis
#
# There are no deadlines, because benchmarks measure speed. The examples are new in each run, even
# in CI, where Hypothesis would otherwise choose its own profile. The output of a failing example
# says how to replay it: see pytest_runtest_makereport().

COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": False,
    "print_blob": True,
    "suppress_health_check": (HealthCheck.too_slow,),  # the machine may be busy
}
settings.register_profile("default", max_examples=100, **COMMON)
settings.register_profile("quick", max_examples=20, **COMMON)  # nox -s quick
settings.register_profile("thorough", max_examples=2000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "default")


# --- event loops


# In its debug mode, asyncio logs each callback that takes more than a tenth of a second. On a busy
# machine, any callback may. Tests check the log for messages of the package only.
logging.getLogger("asyncio").setLevel(logging.ERROR)


def uvloop_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


HAS_UVLOOP = find_spec("uvloop") is not None

# asyncio's debug mode is off, because it keeps a stack for each future and callback: users do not
# use it, and it takes half the time of most tests. CI turns it on (`nox -s every`, newest Python).
BACKENDS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(
        ("asyncio", {"loop_factory": uvloop_loop}),
        id="uvloop",
        marks=pytest.mark.skipif(
            not HAS_UVLOOP, reason="uvloop is not installed; there is none for Windows and PyPy"
        ),
    ),
    pytest.param(("trio", {}), id="trio"),
]
if sys.version_info >= (3, 12):

    def eager_loop() -> asyncio.AbstractEventLoop:
        """An event loop whose tasks run at once, up to where they first wait."""
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    eager = pytest.param(("asyncio", {"loop_factory": eager_loop}), id="asyncio-eager")
    BACKENDS.insert(1, eager)


def pytest_report_header() -> str:
    loops = ", ".join(str(param.id) for param in BACKENDS)
    missing = "" if sys.version_info >= (3, 12) else "; asyncio-eager needs Python 3.12"
    return f"event loops: {loops}{missing}"


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The event loop of a test, in the form that AnyIO's pytest plugin expects.

    Each test has its own loop, so that leftovers belong to one test.
    """
    return request.param


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: Any
) -> None:
    """Run every ``async def test_...`` through AnyIO's plugin, on each event loop.

    This is what the plugin's own ``anyio_mode = "auto"`` does, and the check for leaked tasks.
    """
    if not collector.istestfunction(obj, name):
        return
    given = getattr(obj, "hypothesis", None)
    test = given.inner_test if given else obj
    if given:
        # Keep the original test, because pytest_pyfunc_call() replaces it.
        obj.given_test = test
    if iscoroutinefunction(test):
        pytest.mark.usefixtures("anyio_backend", "no_leaked_tasks")(obj)


# --- around each test

PASSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--epoll-first",
        action="store_true",
        help="on asyncio, let the first socket already wait through the epoll for many sockets",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--epoll-first"):
        _readers._FEW = 0
    config.addinivalue_line(
        "markers",
        f"time_limit(seconds): the time limit of the test, instead of {TIME_LIMIT} seconds",
    )
    config.addinivalue_line("markers", "slow: `nox -s quick` skips the test")
    if HAS_UVLOOP:
        # The first uvloop of a process opens a pipe for signals, which stays open for all others.
        uvloop_loop().close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names that differ from process to process: pytest-xdist cannot run such tests."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"give the parameters ids, without an address: {item.nodeid}")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let garbage collections look only at objects that tests make.

    Most objects exist already now, above all the test functions, and live until the end. Without
    this, each collection would look at all of them.
    """
    if sys.implementation.name == "cpython":
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
        if report.failed and hasattr(getattr(item, "obj", None), "given_test"):
            how = (
                "Put the decorator @reproduce_failure(...) that is printed above on the test "
                "(from hypothesis import reproduce_failure), then run:\n"
                f".venv/bin/nox -- {shlex.quote(item.nodeid)}"
            )
            report.sections.append(("how to replay the example", how))
    return report


@pytest.fixture
def from_afar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each connection be pending when the system call returns.

    On loopback, the connection is otherwise made already.
    """
    monkeypatch.setattr("anyio_connect._tcp_connect.connected", lambda *_: None)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The names that the package finds, instead of those of the system."""
    names = Names()
    monkeypatch.setattr("anyio_connect._lookup.getaddrinfo", names.getaddrinfo)
    return names


@pytest.fixture(autouse=True)
def no_leaked_descriptors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a socket, a pipe or a file open.

    This fixture is set up before every other fixture of the test, so it checks after them. It does
    not check a failed test, because the traceback keeps all objects of its frames alive.
    """
    if not guards.CAN_LIST_FDS:
        yield
        return
    before = guards.open_fds()
    yield
    if request.node.stash.get(PASSED, False) and (leaked := guards.leaked_fds(before)):
        pytest.fail(leaked, pytrace=False)


@pytest.fixture
async def no_leaked_tasks(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fail an asynchronous test if a task still runs after its fixtures were torn down."""
    before = guards.all_tasks()
    yield
    if request.node.stash.get(PASSED, False) and (leaked := await guards.leaked_tasks(before)):
        pytest.fail(leaked, pytrace=False)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Switch the garbage collector off: objects are freed only when their last reference goes."""
    if sys.implementation.name != "cpython":
        pytest.skip("references are not counted here")
    gc.disable()
    yield
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Put the time limits around a test, just before pytest or AnyIO's plugin runs it."""
    given_test = getattr(pyfuncitem.obj, "given_test", None)
    test = given_test or pyfuncitem.obj
    marker = pyfuncitem.get_closest_marker("time_limit")
    limit = marker.args[0] if marker else TIME_LIMIT
    if given_test:
        pyfuncitem.obj.hypothesis.inner_test = guards.with_shrink_limit(test, limit)
    elif iscoroutinefunction(test):
        pyfuncitem.obj = guards.with_time_limit(limit, test)
