"""Every check of this repository. ``nox`` runs the tests; ``nox -l`` lists all sessions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from itertools import chain
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_external_run = True
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests"]  # the README asks newcomers to run only this

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml("pyproject.toml")
SUPPORTED = nox.project.python_versions(PYPROJECT)
CURRENT = f"{sys.version_info.major}.{sys.version_info.minor}"

#: For `on`: include the Python that runs nox, even if it is newer than the supported ones.
PYTHONS = [*SUPPORTED, *{CURRENT}.difference(SUPPORTED)]

#: Where `on` saves the coverage data, for `coverage`: a directory for each Python.
COVERED = ROOT / ".nox" / "covered"

#: Branch coverage in percent, all tested Pythons together, below which `coverage` fails.
COVERAGE_FLOOR = 95


#: The tests run in one process for each core. This is not in the configuration of pytest, because
#: a single test is better run in one process.
SPREAD = ("--numprocesses=auto", "--dist=worksteal")

#: Lets Python keep its bytecode, even if the environment forbids that. Compiling the tests takes
#: long, because pytest rewrites each `assert`, and many tests start another Python process.
COMPILED: dict[str, str | None] = {"PYTHONDONTWRITEBYTECODE": None}

#: The runtime of Workers that `conformance` compares with: the package's version on npm.
WORKERD = "1.20261117.1"

#: The environment variable that skips workerd.
SKIP_CONFORMANCE = "ANYIO_CONNECT_SKIP_CONFORMANCE"


#: For `lint`.
WORKFLOWS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(".github/workflows/*.yml"))]

#: For `types`.
CHECKED = (
    *("anyio_connect", "tests", "benchmarks"),
    *("docs/made.py", "docs/links.py", "noxfile.py"),
)

#: For `stubs`: the settings of pyproject.toml for tests/typing, with the types from stubs/.
PYRIGHT_ON_THE_PAGE = {
    "include": ["tests/typing"],
    "exclude": [],
    "stubPath": "stubs",
    "pythonVersion": SUPPORTED[0],
    "strict": ["tests/typing"],
    "enableTypeIgnoreComments": False,
    "reportUnnecessaryTypeIgnoreComment": "error",
}


def runs(version: str) -> bool:
    """Whether this machine has that Python. Being on PATH is not enough: it has to start."""
    command = ["py", f"-{version}"] if os.name == "nt" else [f"python{version}"]
    try:
        subprocess.run([*command, "-c", ""], check=True, capture_output=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def found() -> list[str]:
    """The Pythons of this machine that are worth testing, the newest last."""
    return [version for version in PYTHONS if version == CURRENT or runs(version)]


def group(*names: str) -> list[str]:
    """The requirements of these dependency groups of pyproject.toml.

    They are read here because pip knows ``--group`` only since 25.1.
    """
    return list(nox.project.dependency_groups(PYPROJECT, *names))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the Python that runs nox. Arguments go to pytest."""
    # Install the package as users do. The tests then import it from there and not from the work
    # tree, so they notice if a file is missing from the wheel.
    session.install(".", *group("test"))
    session.run("pytest", *SPREAD, *session.posargs, env=COMPILED)


@nox.session
def quick(session: nox.Session) -> None:
    """Run most of the tests in less than a minute, while you work. Arguments go to pytest.

    It leaves out the tests that are marked `slow`, which seldom find a fault that the others
    miss: each operation cancelled at each checkpoint, faults at every moment, the real sockets
    compared with a model, thousands of sockets one after another, changed tables, tests that
    wait until a time limit runs out or move many megabytes, and tests that start a process, most
    of them of the command line. Hypothesis makes 20 examples instead of 100, and the simulation
    20 histories.
    """
    session.install(".", *group("test"))
    quickly = {**COMPILED, "HYPOTHESIS_PROFILE": "quick"}
    session.run("pytest", *SPREAD, "-m", "not slow", *session.posargs, env=quickly)


@nox.session(venv_backend="none")
def every(session: nox.Session) -> None:
    """Run `on` for every supported Python of this machine. Arguments go to pytest."""
    here = found()
    if missing := [version for version in PYTHONS if version not in here]:
        session.warn(f"not tested, because not found here: Python {', '.join(missing)}")
    shutil.rmtree(COVERED, ignore_errors=True)
    # The Python that runs nox is always tested, so one Python is enough. Its directory comes
    # first on PATH: without it, PATH may have no Python of that name, or one that does not start.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = (sys.executable, "-m", "nox", "-s", *(f"on-{version}" for version in here))
    session.run(*command, "--", *session.posargs, env={"PATH": path}, external=True)


@nox.session(python=PYTHONS)
def on(session: nox.Session) -> None:
    """Run the tests on this Python, and save their coverage. Arguments go to pytest.

    The newest Python that is found also runs in asyncio's debug mode, which finds calls from the
    wrong thread. One Python is enough, because each would find the same calls, and the newest has
    every event loop. Together with coverage, the debug mode makes the tests take half as long
    again. On the oldest Python, the first socket of an asyncio loop already waits through the
    epoll that otherwise serves many sockets only (see anyio_connect/_readers.py).
    """
    session.install(".", *group("test"))
    data = COVERED / str(session.python)
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    # `coverage run -m pytest` would put the work tree on the path. With these variables, coverage
    # starts in each Python process of the environment, including those that tests start.
    env = {
        **COMPILED,
        "COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"),
        "COVERAGE_FILE": str(data / "coverage"),
    }
    if session.python == found()[-1]:
        env["PYTHONASYNCIODEBUG"] = "1"
    epoll = ["--epoll-first"] if session.python == found()[0] else []
    session.run("pytest", *SPREAD, *epoll, *session.posargs, env=env)


@nox.session
def soak(session: nox.Session) -> None:
    """Open and end 40,000 sockets on each event loop: nothing may be left of them."""
    session.install(".", *group("test"))
    env = {"ANYIO_CONNECT_SOAK": "40000"}
    options = ("-o", "faulthandler_timeout=1800")
    session.run("pytest", *SPREAD, "tests/test_soak.py", *options, *session.posargs, env=env)


@nox.session
def simulate(session: nox.Session) -> None:
    """Run many random histories on the simulated network: see tests/simulation.

    Arguments choose another action: ``nox -s simulate -- run trio --seed 0 --count 20000``,
    ``-- replay asyncio 1234 --shrink``, ``-- hunt`` (which looks for faults put in by hand).
    """
    session.install(".", *group("test"))
    session.env["PYTHONPATH"] = str(ROOT / "tests")
    # Not from the root, where Python would import the work tree instead of the package installed.
    with session.chdir(session.create_tmp()):
        session.run("python", "-m", "simulation", *(session.posargs or ["run"]))


@nox.session
def coverage(session: nox.Session) -> None:
    """Report the coverage of the last `every`, and fail if it is too low."""
    session.install(*group("test"))
    covered = [str(path) for path in sorted(COVERED.glob("*/"))]
    if not covered:
        session.error("nothing to report on: run `nox -s every coverage`")
    session.env["COVERAGE_FILE"] = str(COVERED / "coverage")
    session.run("coverage", "combine", "--keep", *covered)
    session.run("coverage", "report", f"--fail-under={COVERAGE_FLOOR}")


@nox.session
def floors(session: nox.Session) -> None:
    """Run the tests with the oldest dependencies that pyproject.toml allows."""
    project = PYPROJECT["project"]
    floors = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    oldest = [requirement.replace(">=", "==") for requirement in floors]
    session.install(".", *oldest, *group("test"))
    session.run("pytest", *SPREAD, *session.posargs, env=COMPILED)


@nox.session
def interop(session: nox.Session) -> None:
    """Talk to real servers, which have to be installed: see tests/interop/conftest.py."""
    session.install(".", *group("test", "interop"))
    session.run("pytest", "tests/interop", *session.posargs)


@nox.session
def conformance(session: nox.Session) -> None:
    """Compare with workerd, the runtime of Workers, which npm installs: see tests/conformance."""
    session.install(".", *group("test"))
    if not os.environ.get(SKIP_CONFORMANCE):
        npm = shutil.which("npm")
        if npm is None:
            session.error(
                "npm was not found, which installs workerd. Install it, "
                f"or set {SKIP_CONFORMANCE}=1 to do without the comparison"
            )
        install_workerd(session, npm)
    session.run("pytest", "tests/conformance", *session.posargs)


def install_workerd(session: nox.Session, npm: str) -> None:
    """Install workerd where the session's tests and benchmarks look for it."""
    tmp = Path(session.create_tmp()).resolve() / "workerd"
    options = ("--no-audit", "--no-fund", "--ignore-scripts", f"--prefix={tmp}")
    session.run(npm, "install", *options, f"workerd@{WORKERD}", external=True)
    session.env["ANYIO_CONNECT_WORKERD"] = str(tmp)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Compare with other clients; with npm, also with workerd and Node.

    Arguments go to ``python -m benchmarks``. Without arguments, every row runs once with little
    work, which only shows that it works.
    """
    session.install(".", *group("benchmarks"))
    if npm := shutil.which("npm"):
        install_workerd(session, npm)
    tmp = Path(session.create_tmp()).resolve()
    results = f"--json={tmp / 'benchmarks.json'}"
    arguments = session.posargs or ["run", "--rounds=1", "--share=32", results]
    session.run("python", "-m", "benchmarks", *arguments)
    if not session.posargs:
        session.run("python", "-m", "benchmarks", "report", results, f"--plots={tmp}")


@nox.session
def mutants(session: nox.Session) -> None:
    """Break the code in every small way, one at a time, and expect a failing test: takes an hour.

    Arguments choose modules, or the changed lines: see tests/mutants.py.
    """
    session.install(*PYPROJECT["project"]["dependencies"], *group("test", "mutants"))
    work = Path(session.create_tmp()).resolve()
    session.run("python", "tests/mutants.py", f"--work={work}", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Run the linter, and check the formatting and the configuration of CI and other tools."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    for schema, *paths in (
        ("vendor.github-workflows", *WORKFLOWS),
        ("vendor.readthedocs", ".readthedocs.yaml"),
    ):
        session.run("check-jsonschema", "--builtin-schema", schema, *paths)
    session.run("zizmor", "--offline", "--no-progress", *WORKFLOWS)
    session.run("pre-commit", "validate-config")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types: the package, the tests, and what users write (tests/typing)."""
    session.install(".", *group("test", "types", "benchmarks"))
    for version in (SUPPORTED[0], SUPPORTED[-1]):
        session.run("mypy", f"--python-version={version}", *CHECKED)
        session.run("pyright", f"--pythonversion={version}")
    for platform in ("darwin", "win32"):
        session.run("mypy", f"--platform={platform}", "anyio_connect")
    # Are the types of all public names known to users, who have only the wheel?
    session.run("pyright", "--verifytypes", "anyio_connect", "--ignoreexternal")


@nox.session
def stubs(session: nox.Session) -> None:
    """Compare stubs/, the public API on a page, with the package at run time."""
    session.install(".[aiohttp,httpx,proxy,trio]", *group("types"))
    tmp = Path(session.create_tmp()).resolve()
    copy = tmp / "stubs"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "stubs", copy)
    session.env["MYPYPATH"] = str(copy)
    # The command line is not part of the API.
    allowed = tmp / "allowed"
    allowed.write_text("anyio_connect\\.__main__\n", encoding="utf-8")
    command = ("python", "-m", "mypy.stubtest", "anyio_connect", f"--allowlist={allowed}")
    # Not from the root, where Python would import the work tree instead of the package installed.
    with session.chdir(tmp):
        session.run(*command)
        # The code of users must pass the type checks with the stubs too.
        shutil.copytree(ROOT / "tests" / "typing", tmp / "tests" / "typing", dirs_exist_ok=True)
        (tmp / "pyrightconfig.json").write_text(json.dumps(PYRIGHT_ON_THE_PAGE), encoding="utf-8")
        session.run("mypy", f"--config-file={ROOT / 'pyproject.toml'}", "tests/typing")
        session.run("pyright")
        # Without these settings, mypy would use the package's inline types instead of the stubs,
        # and compare the package with itself. So check each time that it notices a wrong stub.
        with (copy / "anyio_connect" / "__init__.pyi").open("a", encoding="utf-8") as page:
            page.write("\ndef only_in_the_stubs() -> None: ...\n")
        output = session.run(*command, success_codes=[1], silent=True)
    if "only_in_the_stubs" not in str(output):
        session.error(f"a wrong stub went unnoticed:\n{output}")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages of docs/, where a warning is an error, and check that each link works.

    Links to other sites are not checked, because that would need the network. ``nox -s docs --
    made`` first updates the parts that are made from the package.
    """
    session.install(".[aiohttp,httpx,proxy,trio]", *group("docs"))
    if session.posargs == ["made"]:
        session.run("python", "docs/made.py")
    site = Path(session.create_tmp()).resolve() / "site"
    shutil.rmtree(site, ignore_errors=True)
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", str(site))
    session.run("python", "docs/links.py", str(site))
    session.log(f"the pages are in {site}/index.html")


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and, from it, the wheel; check both; install the wheel and use it."""
    session.install(*group("build"))
    tmp = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(tmp, ignore_errors=True)
    session.run("python", "-m", "build", f"--outdir={tmp}", ".")
    (sdist,), (wheel,) = tmp.glob("*.tar.gz"), tmp.glob("*.whl")
    session.run("twine", "check", "--strict", str(sdist), str(wheel))

    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        readme = archive.read(metadata).decode()
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "anyio_connect").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if packed != package or "anyio_connect/py.typed" not in packed:
        session.error(f"the wheel is not exactly the package: {sorted(packed ^ package)}")

    # On a package index, the README has no other files beside it.
    relative = re.findall(r"\]\((?!https?://).*?\)", readme)
    if relative or "](https://" not in readme:
        session.error(f"the README of the wheel has links that are not absolute: {relative}")

    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"stubs/anyio_connect/__init__.pyi", "tests/conftest.py", "docs/conf.py"}
    wanted |= {"noxfile.py", ".ci/run", ".github/workflows/checks.yml", "CONTRIBUTING.md"}
    if not wanted <= shipped:
        session.error(f"missing from the sdist: {sorted(wanted - shipped)}")

    # A clean environment, away from the work tree, which would hide what the wheel lacks.
    session.run("python", "-m", "venv", str(tmp / "clean"))
    scripts = tmp / "clean" / ("Scripts" if os.name == "nt" else "bin")
    with session.chdir(tmp):
        for command in (
            ("python", "-m", "pip", "install", "--quiet", str(wheel)),
            (
                "python",
                "-c",
                "import anyio_connect as a; print(a.__file__, *a.__all__, sep='\\n')",
            ),
            ("python", "-m", "anyio_connect", "--help"),
            ("anyio-connect", "--help"),
        ):
            session.run(str(scripts / command[0]), *command[1:], external=True)
