"""stubs/, the public API at a glance, agrees with the package.

stubtest (``nox -s stubs``) finds names, parameters and defaults that differ. These tests compare
what it ignores: annotations, base classes, the values of attributes, the keys of a TypedDict, and
whether a dataclass is frozen.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, get_type_hints

import pytest
from typing_extensions import Never

import anyio_connect.testing
from anyio_connect._future import T_co

STUBS = Path(__file__).parent.parent / "stubs"


class Page:
    """The stubs of a public module."""

    def __init__(self, module: Any) -> None:
        self.module = module
        path = STUBS.joinpath(*module.__name__.split("."))
        self.path = path / "__init__.pyi" if path.is_dir() else path.with_suffix(".pyi")
        # A new module has no page yet: the tests say what is missing.
        self.tree = ast.parse(self.path.read_text("utf-8") if self.path.exists() else "")
        self.names = self._names()

    def _names(self) -> dict[str, Any]:
        """What the page's annotations may name: its imports, and the package's own names."""
        imports: list[ast.stmt] = [
            node
            for node in self.tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom, ast.If))  # by version
            or (isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias")
        ]
        names: dict[str, Any] = {}
        exec(compile(ast.Module(imports, []), str(self.path), "exec"), names)
        names.update({name: getattr(self.module, name) for name in self.module.__all__})
        return {**names, "_T_co": T_co}

    def said(self, node: ast.expr) -> Any:
        """The value of an expression on the page."""
        return eval(ast.unparse(node), self.names)

    def public(self, node: ast.stmt) -> Any:
        """The object of the package that a definition on the page describes."""
        return getattr(self.module, name_of(node))


def name_of(node: ast.stmt) -> str:
    """The name that a statement defines; an empty string if it defines none."""
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    return str(getattr(node, "name", ""))


ADAPTERS = sorted(
    f"anyio_connect.adapters.{path.stem}"
    for path in STUBS.parent.glob("anyio_connect/adapters/[!_]*.py")
)
PAGES = [
    Page(module)
    for module in (anyio_connect, anyio_connect.testing, *map(import_module, ADAPTERS))
]


def _each(*kinds: type[ast.stmt]) -> list[Any]:
    """The definitions of these kinds, each with its page."""
    return [
        pytest.param(page, node, id=name_of(node))
        for page in PAGES
        for node in page.tree.body
        if isinstance(node, kinds) and not name_of(node).startswith("_")
    ]


CLASSES = _each(ast.ClassDef)
VALUES = _each(ast.AnnAssign)
FUNCTIONS = _each(ast.FunctionDef, ast.AsyncFunctionDef)


def meant(function: Any) -> dict[str, Any]:
    """The annotations of a function of the package.

    get_type_hints() is not used, because before Python 3.11 it adds None to some of them.
    """
    return {
        name: eval(hint, function.__globals__) if isinstance(hint, str) else hint
        for name, hint in function.__annotations__.items()
    }


def shown(page: Page, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, Any]]:
    """The page's annotations of the parameters and of the result.

    ``Never`` on the page means that a parameter is not for users: it is left out here.
    """
    args = node.args
    for arg in (*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg):
        if arg is not None and arg.annotation is not None:
            hint = page.said(arg.annotation)
            if hint is not Never:
                yield arg.arg, hint
    assert node.returns is not None, f"{node.name}() has no return type"
    yield "return", page.said(node.returns)


def differs(page: Page, name: str) -> str:
    path = page.path.relative_to(STUBS.parent)
    return (
        f"{path} and the package disagree about {name}: make the change there too, in the same "
        "order; and in tests/typing; and in CHANGELOG.md, if users notice it"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.module.__name__)
def test_a_page_defines_every_public_name_and_no_other(page: Page) -> None:
    defined = {case.id for case in (*CLASSES, *FUNCTIONS, *VALUES) if case.values[0] is page}
    public = set(page.module.__all__)
    path = page.path.relative_to(STUBS.parent)
    missing, gone = sorted(public - defined), sorted(defined - public)
    assert not missing, f"add to {path}, with their types and a few words: {', '.join(missing)}"
    assert not gone, f"remove from {path}, because they are not public: {', '.join(gone)}"


@pytest.mark.parametrize(("page", "node"), VALUES)
def test_values_are_of_the_type_that_the_page_says(page: Page, node: ast.AnnAssign) -> None:
    assert type(page.public(node)) is page.said(node.annotation)


@pytest.mark.parametrize(("page", "node"), FUNCTIONS)
def test_functions_have_the_same_annotations(
    page: Page,
    node: ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    function = page.public(node)
    assert inspect.iscoroutinefunction(function) == isinstance(node, ast.AsyncFunctionDef)
    assert dict(shown(page, node)) == meant(function), differs(page, node.name)


@pytest.mark.parametrize(("page", "node"), CLASSES)
def test_methods_have_the_same_annotations(page: Page, node: ast.ClassDef) -> None:
    members = vars(page.public(node))
    for method in node.body:
        if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
            member = members[method.name]
            decorators = [ast.unparse(name) for name in method.decorator_list]
            setter = [f"{method.name}.setter"]
            if isinstance(member, property):
                assert decorators in (["property"], setter)
                function: Any = member.fset if decorators == setter else member.fget
            else:
                static = isinstance(member, staticmethod)
                assert decorators == ["staticmethod"] * static
                function = getattr(member, "__func__", member)
            on_page = dict(shown(page, method))
            hidden = meant(function).keys() - on_page.keys()
            assert not hidden or method.name == "__init__"
            in_package = {name: hint for name, hint in meant(function).items() if name in on_page}
            assert on_page == in_package, differs(page, f"{node.name}.{method.name}")


@pytest.mark.parametrize(("page", "node"), CLASSES)
def test_classes_have_the_same_attributes(page: Page, node: ast.ClassDef) -> None:
    cls = page.public(node)
    on_page = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            assert isinstance(item.target, ast.Name)
            on_page[item.target.id] = page.said(item.annotation)
            value = ... if item.value is None else page.said(item.value)
            if value is not ... and "__slots__" not in vars(cls):
                assert vars(cls)[item.target.id] == value, item.target.id
    hints = get_type_hints(cls)
    own = [name for name in inspect.get_annotations(cls) if not name.startswith("_")]
    in_package = [(name, hints[name]) for name in own]
    assert list(on_page.items()) == in_package, differs(page, node.name)


@pytest.mark.parametrize(("page", "node"), CLASSES)
def test_classes_are_of_the_same_kind(page: Page, node: ast.ClassDef) -> None:
    cls = page.public(node)
    bases = tuple(page.said(base) for base in node.bases) or (object,)
    if bases == (NamedTuple,):
        assert cls.__bases__ == (tuple,)
    elif bases == (TypedDict,):
        assert cls.__bases__ == (dict,)
        assert cls.__total__ == all(page.said(word.value) for word in node.keywords)
    else:
        assert vars(cls).get("__orig_bases__", cls.__bases__) == bases
    decorators = [ast.unparse(name) for name in node.decorator_list]
    if is_dataclass(cls):
        says = [f"frozen={vars(cls)['__dataclass_params__'].frozen}"]
        says += ["slots=True"] * ("__slots__" in vars(cls))
        says += ["eq=False"] * (not vars(cls)["__dataclass_params__"].eq)
        assert decorators == [f"dataclass({', '.join(says)})"]
    else:
        assert decorators == []
