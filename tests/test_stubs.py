"""stubs/, the public API on a page, says what the package says.

stubtest (``nox -s stubs``) finds names, parameters and defaults that differ. What it does not
look at is compared here: annotations, base classes, the values of attributes, the keys of a
TypedDict, and whether a dataclass is frozen.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, get_type_hints

import pytest
from typing_extensions import Never

import anyio_connect
from anyio_connect._future import T_co

PAGE = Path(__file__).parent.parent / "stubs" / "anyio_connect" / "__init__.pyi"

TREE = ast.parse(PAGE.read_text(encoding="utf-8"))
CLASSES = [node for node in TREE.body if isinstance(node, ast.ClassDef)]
VALUES = [
    node
    for node in TREE.body
    if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_")
]
FUNCTIONS = [
    node for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
]


def _names() -> dict[str, Any]:
    """What the page's annotations may name: its imports, and the package's own names."""
    imports: list[ast.stmt] = [
        node
        for node in TREE.body
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.If))  # by version
        or (isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias")
    ]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(imports, []), str(PAGE), "exec"), names)
    names.update({name: getattr(anyio_connect, name) for name in anyio_connect.__all__})
    return {**names, "_T_co": T_co}


NAMES = _names()


def said(node: ast.expr) -> Any:
    """The value of an expression on the page."""
    return eval(ast.unparse(node), NAMES)


def meant(function: Any) -> dict[str, Any]:
    """The annotations of a function of the package.

    Not get_type_hints(): that adds None to some of them before Python 3.11.
    """
    return {
        name: eval(hint, function.__globals__) if isinstance(hint, str) else hint
        for name, hint in function.__annotations__.items()
    }


def shown(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, Any]]:
    """What the page says about parameters and the result.

    ``Never`` there means: not for users, whatever it is.
    """
    args = node.args
    for arg in (*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg):
        if arg is not None and arg.annotation is not None:
            hint = said(arg.annotation)
            if hint is not Never:
                yield arg.arg, hint
    assert node.returns is not None, f"{node.name}() has no return type"
    yield "return", said(node.returns)


def test_the_page_defines_every_public_name_and_no_other() -> None:
    defined = [node.name for node in CLASSES] + [node.name for node in FUNCTIONS]
    defined += [ast.unparse(node.target) for node in VALUES]
    assert sorted(defined) == sorted(anyio_connect.__all__)


@pytest.mark.parametrize("node", VALUES, ids=lambda node: ast.unparse(node.target))
def test_values_are_of_the_type_that_the_page_says(node: ast.AnnAssign) -> None:
    assert type(getattr(anyio_connect, ast.unparse(node.target))) is said(node.annotation)


@pytest.mark.parametrize("node", FUNCTIONS, ids=lambda node: node.name)
def test_functions_have_the_same_annotations(
    node: ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    function = getattr(anyio_connect, node.name)
    assert inspect.iscoroutinefunction(function) == isinstance(node, ast.AsyncFunctionDef)
    assert dict(shown(node)) == meant(getattr(anyio_connect, node.name))


@pytest.mark.parametrize("node", CLASSES, ids=lambda node: node.name)
def test_methods_have_the_same_annotations(node: ast.ClassDef) -> None:
    members = vars(getattr(anyio_connect, node.name))
    for method in node.body:
        if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
            member = members[method.name]
            is_property = [ast.unparse(name) for name in method.decorator_list] == ["property"]
            assert isinstance(member, property) == is_property
            function = member.fget if isinstance(member, property) else member
            on_page = dict(shown(method))
            hidden = meant(function).keys() - on_page.keys()
            assert not hidden or method.name == "__init__"
            in_package = {name: hint for name, hint in meant(function).items() if name in on_page}
            assert on_page == in_package, f"{node.name}.{method.name}"


@pytest.mark.parametrize("node", CLASSES, ids=lambda node: node.name)
def test_classes_have_the_same_attributes(node: ast.ClassDef) -> None:
    cls = getattr(anyio_connect, node.name)
    on_page = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            assert isinstance(item.target, ast.Name)
            on_page[item.target.id] = said(item.annotation)
            if not (item.value is None or said(item.value) is ...) and "__slots__" not in vars(
                cls
            ):
                assert vars(cls)[item.target.id] == said(item.value), item.target.id
    hints = get_type_hints(cls)
    own = [name for name in inspect.get_annotations(cls) if not name.startswith("_")]
    assert list(on_page.items()) == [(name, hints[name]) for name in own]


@pytest.mark.parametrize("node", CLASSES, ids=lambda node: node.name)
def test_classes_are_of_the_same_kind(node: ast.ClassDef) -> None:
    cls = getattr(anyio_connect, node.name)
    bases = tuple(said(base) for base in node.bases) or (object,)
    if bases == (NamedTuple,):
        assert cls.__bases__ == (tuple,)
    elif bases == (TypedDict,):
        assert cls.__bases__ == (dict,)
        assert cls.__total__ == all(said(word.value) for word in node.keywords)
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
