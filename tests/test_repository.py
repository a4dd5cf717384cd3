"""The files around the code: CHANGELOG, CONTRIBUTING, the workflow. They must agree."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]

#: The sessions that the workflow leaves out, each with the reason.
NOT_IN_WORKFLOW = {
    "quick": "part of tests",
    "on": "part of every",
    "mutants": "takes an hour, and what survives has to be judged by a person",
}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def sessions() -> set[str]:
    """The sessions that noxfile.py defines."""
    return {
        node.name
        for node in ast.parse(read("noxfile.py")).body
        if isinstance(node, ast.FunctionDef)
        and any("nox.session" in ast.unparse(decorator) for decorator in node.decorator_list)
    }


def in_workflow() -> set[str]:
    """The sessions that the workflow runs."""
    workflow = read(".github/workflows/checks.yml")
    named = re.findall(r"nox -s ([\w ]+)$", workflow, re.MULTILINE)
    named += re.findall(r"^ +session: (\w+)$", workflow, re.MULTILINE)
    named += [", ".join(re.findall(r"session: \[(.*)\]", workflow)).replace(",", " ")]
    return {session for names in named for session in names.split()}


def test_the_changelog_has_the_version_of_the_package() -> None:
    (version,) = re.findall(r'^version = "(.+?)"', read("pyproject.toml"), re.MULTILINE)
    headings = re.findall(r"^## (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]", "the first heading must be [Unreleased]"
    released = [re.fullmatch(r"\[(.+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings[1:]]
    assert all(released), "the heading of a release must be [version] - year-month-day"
    assert released[0]
    assert released[0][1] == version, "see 'To release' in CONTRIBUTING.md"
    dates = [match[2] for match in released if match]
    assert dates == sorted(dates, reverse=True), "the newest release must come first"


def test_the_changelog_has_only_the_kinds_of_change_that_it_promises() -> None:
    kinds = set(re.findall(r"^### (.*)$", read("CHANGELOG.md"), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", read(page)):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_what_the_architecture_names_exists() -> None:
    """The section "To change something" names tests, functions and tables."""
    section = read("ARCHITECTURE.md").partition("\n## To change something\n")[2]
    code = {word for span in re.findall(r"`([^`]+)`", section) for word in span.split()}
    tests = {word for word in code if re.match(r"(interop/)?test_", word)}
    gone = {word for word in tests if not (ROOT / "tests" / f"{word}.py").exists()}
    paths = [*(ROOT / "anyio_connect").glob("**/*.py"), *(ROOT / "tests").glob("**/*.py")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    defined = set(re.findall(r"(?:def|class) (\w+)|^(\w+)(?=: .* = | = )", source, re.MULTILINE))
    names = {name for pair in defined for name in pair} | {path.stem for path in paths}
    for word in code - tests:
        if re.fullmatch(r"(\w+\.)*(_\w+|[A-Z]\w+|\w+\(\))(\.\w+(\(\))?)?", word):
            gone |= {part for part in word.rstrip("()").split(".") if part not in names}
    assert not gone, "ARCHITECTURE.md names tests, functions or tables that do not exist"


def test_each_library_of_an_adapter_is_an_extra() -> None:
    project = read("pyproject.toml")
    (required,) = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    (extras,) = re.findall(
        r"^\[project.optional-dependencies\]\n(.*?)^\[", project, re.DOTALL | re.MULTILINE
    )
    known = {*re.findall(r'^ +"([\w-]+)', required, re.MULTILINE), "typing_extensions"}
    known |= {*re.findall(r"^([\w-]+) = ", extras, re.MULTILINE), "anyio_connect"}
    for path in sorted((ROOT / "anyio_connect" / "adapters").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                libraries = {name.partition(".")[0] for name in names}
                missing = libraries - known - sys.stdlib_module_names
                assert not missing, (
                    f"adapters.{path.stem} imports {', '.join(missing)}: add an extra of that "
                    "name to pyproject.toml, and the library to its group 'test'"
                )


def test_contributing_names_each_session() -> None:
    table = read("CONTRIBUTING.md").partition("\n## Sessions\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {session for cell in cells for session in re.findall(r"`(\w+)`", cell)}
    assert named == sessions(), "see the table of sessions in CONTRIBUTING.md"


def test_the_workflow_runs_each_session() -> None:
    assert in_workflow() == sessions() - set(NOT_IN_WORKFLOW), (
        "add the session to .github/workflows/checks.yml, or to NOT_IN_WORKFLOW with the reason"
    )


def test_the_workflow_tests_each_supported_python() -> None:
    supported = re.findall(r"Programming Language :: Python :: (3\.\d+)", read("pyproject.toml"))
    workflow = read(".github/workflows/checks.yml")
    (matrix,) = re.findall(r"^ +python: \[(.*)\]$", workflow, re.MULTILINE)
    assert matrix.replace('"', "").split(", ") == supported
    (together,) = re.findall(r"^ +python-version: \|\n((?: +3\.\d+\n)+)", workflow, re.MULTILINE)
    assert sorted(together.split()) == sorted(supported)


def test_the_workflow_installs_the_servers_that_are_tested() -> None:
    """The machines of the workflow have Node and npm already."""
    command = r"apt-get install -y --no-install-recommends ([\w\s\\-]+?)\n\n"
    (wanted,) = re.findall(command, read("tests/interop/conftest.py"))
    (installed,) = re.findall(
        r"--no-install-recommends ([\w\s\\-]+?)\n +- run", read(".github/workflows/checks.yml")
    )
    packages = set(wanted.replace("\\", "").split()) - {"nodejs"}
    assert set(installed.replace("\\", "").split()) == packages, (
        ".github/workflows/checks.yml must install what tests/interop/conftest.py asks for"
    )
