"""How Sphinx builds these pages: ``nox -s docs``."""

from __future__ import annotations

from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.pycode import ModuleAnalyzer

import anyio_connect

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "anyio_connect"
project_copyright = "anyio_connect contributors"
version = release = version_of("anyio-connect")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

# --- Markdown

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# --- the reference, from the docstrings

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

# Each reference in a docstring must have a target. References to other projects are not checked,
# because that would need the network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(anyio|asyncio|aiohttp|httpcore|httpx|trio|ssl|socket|stdlib|tls)\b.*"),
    (r"py:.*", r"(collections|contextlib|types|typing|typing_extensions|ipaddress)\b.*"),
    # The names in annotations: of the standard library, of AnyIO, and of private modules.
    (r"py:(class|obj)", r"[A-Za-z_]*(Buffer|ByteStream|Callable|Awaitable|Mapping|Sequence).*"),
    (r"py:(class|obj)", r"(TaskGroup|Self|Unpack|SOCKET_OPTION|optional|Protocol)"),
    (r"py:class", r"anyio_connect\._future\.T_co"),
    (r"py:(class|obj)", r"(IPv[46](Address|Network)|Network|Port|SecureTransport|Iterable|Any)"),
    (r"py:(class|obj)", r"(Connection|Opener|Target|Outcome|Options|Memory|TracebackType)"),
    (r"py:exc", r"(TypeError|ValueError|OSError|Exception)"),
]

# --- the site

html_theme = "furo"
html_title = f"anyio_connect {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave attributes out: the docstring of a class describes them, for ``help()`` as well."""
    return None if callable(obj) or isinstance(obj, property) else True


def _of_the_package(app: Sphinx, env: Any, node: Any, contents: Any) -> Any:
    """Find a public name that a docstring of another module refers to by that name alone."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or target.startswith("anyio_connect."):
        return None
    python = env.domains["py"]
    where, name = node.get("refdoc"), f"anyio_connect.{target}"
    return python.resolve_xref(env, where, app.builder, node["reftype"], name, node, contents)


def _keep_the_order() -> None:
    """Have members in the order of the source, which Sphinx looks for where a class is public."""
    public = ModuleAnalyzer.for_module("anyio_connect")
    public.analyze()
    for path in sorted(Path(anyio_connect.__file__).parent.glob("_[a-z]*.py")):
        private = ModuleAnalyzer.for_module(f"anyio_connect.{path.stem}")
        private.analyze()
        public.tagorder.update(private.tagorder)


def setup(app: Sphinx) -> None:
    """Connect the above."""
    _keep_the_order()
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _of_the_package)
