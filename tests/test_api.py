"""The package as a whole: its public names, its errors, and which module may import which."""

from __future__ import annotations

import ast
import copy
import errno
import inspect
import itertools
import json
import pickle
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import anyio
import pytest

import anyio_connect
from anyio_connect import (
    AddressNotAllowedError,
    AddressPolicy,
    BrokenError,
    CertificateError,
    ClosedError,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    DelimiterNotFoundError,
    DetachError,
    EventLoopRunningError,
    HalfCloseError,
    IncompleteReadError,
    InvalidAddressError,
    InvalidOptionError,
    ListenError,
    LoopError,
    PendingError,
    ProxyError,
    ReadableStream,
    RefusedError,
    ResolveError,
    Socket,
    SocketAddress,
    SocketError,
    SocketInfo,
    SocketOptions,
    StartTLSError,
    TLSError,
    WritableStream,
    connect,
    testing,
)
from anyio_connect._dial_errors import note_http

PACKAGE = Path(anyio_connect.__file__).parent
PUBLIC = {name: getattr(anyio_connect, name) for name in anyio_connect.__all__}
PUBLIC_CLASSES = {name: value for name, value in PUBLIC.items() if isinstance(value, type)}
#: The public names of the package and of its public modules, without those for other libraries.
EVERYTHING = {
    **PUBLIC,
    **{f"testing.{name}": getattr(testing, name) for name in testing.__all__},
}
ADAPTERS = [
    import_module(f"anyio_connect.adapters.{path.stem}")
    for path in sorted(PACKAGE.glob("adapters/[!_]*.py"))
]
OF_ADAPTERS = {
    f"adapters.{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for module in ADAPTERS
    for name in module.__all__
}
DOCUMENTED = {**EVERYTHING, **OF_ADAPTERS}
CLASSES = {name: value for name, value in DOCUMENTED.items() if isinstance(value, type)}


# --- names


def test_all_is_exactly_the_public_names_in_order() -> None:
    names = {
        name
        for name, value in vars(anyio_connect).items()
        if not name.startswith("_") and not inspect.ismodule(value)  # submodules do not count
    }
    constants_first = sorted(names, key=lambda name: (not name.isupper(), name))
    assert anyio_connect.__all__ == tuple(constants_first), (
        "__all__ of anyio_connect has to be what its __init__.py imports, constants first"
    )


@pytest.mark.parametrize("value", DOCUMENTED.values(), ids=DOCUMENTED)
def test_everything_public_has_a_docstring(value: Any) -> None:
    # A dataclass or a NamedTuple without a docstring gets "Name(field, ...)".
    assert value.__doc__
    name = getattr(value, "__name__", type(value).__name__)
    assert not value.__doc__.startswith(f"{name}(")


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_every_public_method_has_a_docstring(cls: type) -> None:
    for name, member in vars(cls).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, property)):
            assert member.__doc__, name


def _attributes(cls: str) -> Iterator[tuple[str, str | None]]:
    """The annotated attributes in the body of a class, each with the docstring below it."""
    (body,) = (
        node.body
        for path in PACKAGE.glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == cls
    )
    for item, after in itertools.zip_longest(body, body[1:]):
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.target).startswith("_"):
            doc = after.value if isinstance(after, ast.Expr) else None
            text = str(doc.value) if isinstance(doc, ast.Constant) else None
            yield ast.unparse(item.target), text


@pytest.mark.parametrize(
    "cls", [SocketOptions, Connector, AddressPolicy, SocketAddress, SocketInfo]
)
def test_attributes_are_documented_for_editors_and_for_help(cls: type) -> None:
    assert cls.__doc__ is not None
    paragraphs = {" ".join(text.split()) for text in cls.__doc__.split("\n\n")}
    attributes = list(_attributes(cls.__name__))
    assert [name for name, _ in attributes] == list(inspect.get_annotations(cls))
    for name, doc in attributes:
        where = f"of {cls.__name__}.{name}"
        assert doc, f"write the docstring {where} below the attribute, where editors find it"
        words = " ".join(doc.split())
        assert f"``{name}``: {words[0].lower()}{words[1:]}" in paragraphs, (
            f"copy the docstring {where} into the docstring of the class, where help() finds it, "
            f"as a paragraph that begins with ``{name}``:"
        )


def _public_methods(cls: type) -> dict[str, Any]:
    return {
        name: member
        for name, member in vars(cls).items()
        if not name.startswith("_") and inspect.isfunction(inspect.unwrap(member))
    }


#: The methods of a socket that do the same as those of one of its streams. ``aclose()`` does not:
#: it closes both directions.
TWINS = {
    name: method
    for stream in (ReadableStream, WritableStream)
    for name, method in _public_methods(stream).items()
    if name in _public_methods(Socket) and name != "aclose"
}


@pytest.mark.parametrize("name", TWINS)
def test_a_socket_documents_the_errors_of_its_streams(name: str) -> None:
    theirs: str = TWINS[name].__doc__
    ours: str = getattr(Socket, name).__doc__
    raised = theirs.partition(":raises")
    assert "".join(raised[1:]) in ours, (
        f"Socket.{name}() has to list the errors that {TWINS[name].__qualname__}() lists: "
        "copy that part of the docstring"
    )
    assert ours.splitlines()[0] == theirs.splitlines()[0]


def _functions(names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in names.items():
        if inspect.isfunction(value):
            yield name, value
        elif isinstance(value, type):
            for method, member in _public_methods(value).items():
                yield f"{name}.{method}", member


FUNCTIONS = dict(_functions(DOCUMENTED))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_docstring_of_a_function_explains_each_argument(function: Any) -> None:
    words = inspect.getdoc(function)
    assert words
    if "The arguments are those of that function." in words:
        return
    for name, parameter in inspect.signature(function).parameters.items():
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
            why = f"say in the docstring of {function.__qualname__}() what ``{name}`` is"
            assert f"``{name}" in words, why


#: Functions that raise no error of their own.
RAISE_NOTHING = {
    *("AddressPolicy.refusal", "AddressPolicy.port_refusal", "SocketFuture.done"),
    *("Socket.is_readable", "Socket.close", "Socket.aclose"),
    *("ReadableStream.is_readable", "ReadableStream.aclose", "WritableStream.abort"),
    *("Listener.aclose", "testing.MemoryListener.aclose"),
    *("adapters.aiohttp.socket_factory", "adapters.httpcore.NetworkBackend.sleep"),
    *("adapters.httpx.Transport.aclose", "adapters.trio.Stream.aclose"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_docstring_of_a_function_says_what_it_raises(name: str) -> None:
    told = ":raises " in str(inspect.getdoc(FUNCTIONS[name]))
    assert told != (name in RAISE_NOTHING), (
        f"say in the docstring of {name}() which errors it raises, each with :raises, and when; "
        "or add it to RAISE_NOTHING"
    )


#: Functions that do the same as others, which say it.
CANCELLED_LIKE_OTHERS = {
    *("Socket.aclose", "adapters.trio.Stream.aclose", "adapters.httpx.Transport.aclose"),
    "adapters.httpcore.NetworkBackend.sleep",
}


@pytest.mark.parametrize(
    "name", [n for n, f in FUNCTIONS.items() if inspect.iscoroutinefunction(f)]
)
def test_the_docstring_of_an_async_function_says_what_a_cancelled_call_leaves(name: str) -> None:
    told = "cancel" in str(inspect.getdoc(FUNCTIONS[name])).lower()
    assert told != (name in CANCELLED_LIKE_OTHERS), (
        f"say in the docstring of {name}() what a cancelled call leaves behind; or add it to "
        "CANCELLED_LIKE_OTHERS"
    )


#: Classes of which only the package makes objects.
NOT_MADE_BY_USERS = {
    *("Dialer", "Listener", "ReadableStream", "Socket", "SocketFuture", "SocketOptions"),
    *("WritableStream", "testing.MemoryListener"),
}
CONSTRUCTORS = {
    name: cls
    for name, cls in CLASSES.items()
    if not issubclass(cls, BaseException) and name not in NOT_MADE_BY_USERS
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_the_docstring_of_a_class_explains_how_it_is_made(name: str) -> None:
    cls = CONSTRUCTORS[name]
    words = f"{cls.__doc__}\n{vars(cls).get('__init__', cls).__doc__}"
    for parameter in inspect.signature(cls).parameters.values():
        assert parameter.kind is parameter.VAR_KEYWORD or f"``{parameter.name}" in words, (
            f"say in the docstring of {name}, or of its __init__(), what ``{parameter.name}`` is; "
            "or add the class to NOT_MADE_BY_USERS"
        )


def _by_position(function: Callable[..., object]) -> tuple[str, ...]:
    """The parameters that a caller may give by position, in order."""
    return tuple(
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.name != "self"
    )


#: Users may have given these arguments by position.
POSITIONS: dict[str, tuple[str, ...]] = {
    "AddressPolicy": (
        *("allow", "deny", "allow_ports", "deny_ports", "public_only", "refuse_loops", "also"),
    ),
    "AddressPolicy.refusal": ("address", "port"),
    "Connector": (
        *("policy", "max_connections", "ssl_context", "happy_eyeballs_delay", "local_host"),
        *("close_timeout", "connect_timeout", "keep_alive", "resolver", "prepare", "dialer"),
        "proxy",
    ),
    "Connector.resolve": ("host", "port"),
    "Listener.serve": ("handler", "task_group"),
    "ReadableStream.receive_until": ("delimiter", "max_bytes"),
    "Socket.receive_until": ("delimiter", "max_bytes"),
    "SocketAddress": ("hostname", "port"),
    "SocketInfo": ("remote_address", "local_address", "alpn", "proxy_address"),
    "testing.MemoryListener.serve": ("handler", "task_group"),
    "testing.Network.fail": ("address", "failure"),
    "testing.Network.resolve": ("host", "port"),
    "adapters.httpcore.NetworkBackend.connect_tcp": (
        *("host", "port", "timeout", "local_address", "socket_options"),
    ),
    "adapters.httpcore.NetworkBackend.connect_unix_socket": ("path", "timeout", "socket_options"),
    "adapters.trio.open_tcp_stream": ("host", "port"),
}


def test_arguments_keep_their_positions() -> None:
    found = {
        name: _by_position(function) for name, function in {**FUNCTIONS, **CONSTRUCTORS}.items()
    }
    for name, before in POSITIONS.items():
        assert found[name][: len(before)] == before, (
            f"the arguments of {name} that users give by position have moved: put a new one at "
            "the end, or behind a '*'"
        )
    several = {name: names for name, names in found.items() if len(names) > 1}
    assert several == POSITIONS, (
        "may users give the new argument by position? Then add it to POSITIONS, which lists the "
        "functions with more than one; otherwise put it behind a '*'"
    )


def test_connect_explains_each_option() -> None:
    words = inspect.getdoc(connect)
    assert words
    explained = re.findall(r"^``(\w+)``: ", words, re.MULTILINE)
    assert explained == ["address", "task_group", *SocketOptions.__annotations__], (
        "say in the docstring of connect() what each option is, in the order of SocketOptions"
    )


@pytest.mark.parametrize(("name", "value"), EVERYTHING.items(), ids=EVERYTHING)
def test_tracebacks_and_pickles_name_the_public_module(name: str, value: Any) -> None:
    module = "anyio_connect.testing" if name.startswith("testing.") else "anyio_connect"
    assert value.__module__ == module  # of a constant: the module of its class


@pytest.mark.parametrize("value", EVERYTHING.values(), ids=EVERYTHING)
def test_type_hints_can_be_read_at_run_time(value: Any) -> None:
    get_type_hints(value if callable(value) else type(value))
    if isinstance(value, type):
        for member in vars(value).values():
            if inspect.isfunction(member):
                get_type_hints(member)
            elif isinstance(member, property):
                get_type_hints(member.fget)


# --- errors

#: Codes and bases may never change. Programs compare the codes, and catch the built-in and AnyIO
#: classes.
ERRORS: dict[type[SocketError], tuple[str, tuple[type[Exception], ...]]] = {
    SocketError: ("socket_error", (Exception,)),
    InvalidAddressError: ("invalid_address", (SocketError, ValueError)),
    InvalidOptionError: ("invalid_option", (SocketError, ValueError)),
    PendingError: ("pending", (SocketError, RuntimeError)),
    ConnectError: ("connect_failed", (SocketError, OSError)),
    ResolveError: ("resolve_failed", (ConnectError, socket.gaierror)),
    RefusedError: ("refused", (ConnectError, ConnectionRefusedError)),
    ConnectTimeoutError: ("connect_timeout", (ConnectError, TimeoutError)),
    AddressNotAllowedError: ("address_not_allowed", (ConnectError, PermissionError)),
    ListenError: ("listen_failed", (SocketError, OSError)),
    LoopError: ("loop", (ConnectError,)),
    ProxyError: ("proxy_failed", (ConnectError,)),
    TLSError: ("tls_failed", (ConnectError, ssl.SSLError)),
    CertificateError: ("certificate_rejected", (TLSError, ssl.SSLCertVerificationError)),
    StartTLSError: ("start_tls", (SocketError, RuntimeError)),
    DetachError: ("detach", (SocketError, RuntimeError)),
    EventLoopRunningError: ("event_loop_running", (SocketError, RuntimeError)),
    ClosedError: ("closed", (SocketError, anyio.ClosedResourceError)),
    BrokenError: ("broken", (SocketError, anyio.BrokenResourceError)),
    HalfCloseError: ("half_close", (SocketError, NotImplementedError)),
    IncompleteReadError: ("incomplete_read", (SocketError, anyio.IncompleteRead)),
    DelimiterNotFoundError: ("delimiter_not_found", (SocketError, anyio.DelimiterNotFound)),
}

each_error = pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
each_connect_error = pytest.mark.parametrize(
    "cls", [cls for cls in ERRORS if issubclass(cls, ConnectError)], ids=lambda cls: cls.__name__
)
each_copy = pytest.mark.parametrize(
    "duplicate",
    [
        *(
            pytest.param(lambda error, p=p: pickle.loads(pickle.dumps(error, p)), id=f"pickle {p}")
            for p in (0, pickle.HIGHEST_PROTOCOL)
        ),
        copy.copy,
        copy.deepcopy,
    ],
)


def test_the_table_has_every_error() -> None:
    public = {c for c in PUBLIC_CLASSES.values() if issubclass(c, BaseException)}
    assert set(ERRORS) == public, (
        "add to ERRORS in tests/test_api.py each public error, with its code and its bases"
    )


@each_error
def test_codes_and_bases_never_change(cls: type[SocketError]) -> None:
    assert (cls.code, cls.__bases__) == ERRORS[cls]
    assert cls("message").code == cls.code


def test_codes_are_unique() -> None:
    assert len({code for code, _ in ERRORS.values()}) == len(ERRORS)


@each_error
def test_an_error_can_be_caught_as_each_of_its_bases(cls: type[SocketError]) -> None:
    classes: tuple[type[Exception], ...] = (SocketError, cls, *ERRORS[cls][1])
    for caught in classes:
        with pytest.raises(caught) as raised:
            raise cls("message")
        assert type(raised.value) is cls


@each_error
def test_an_error_reads_as_its_message(cls: type[SocketError]) -> None:
    error = cls("what went wrong: what to do")
    assert str(error) == "what went wrong: what to do"
    assert repr(error) == f"{cls.__name__}('what went wrong: what to do')"


@each_error
@each_copy
def test_a_copy_is_the_same_error(
    cls: type[SocketError], duplicate: Callable[[SocketError], SocketError]
) -> None:
    error = duplicate(cls("message"))
    assert type(error) is cls
    assert (str(error), error.args, error.code) == ("message", ("message",), cls.code)


@each_connect_error
@each_copy
def test_a_copy_keeps_errno_attempts_and_notes(
    cls: type[ConnectError], duplicate: Callable[[ConnectError], ConnectError]
) -> None:
    attempt = RefusedError("192.0.2.1:443: connection refused")
    attempt.errno = errno.ECONNREFUSED
    error = cls("cannot connect to h:443", attempts=(attempt, ConnectError("another")))
    error.errno = errno.ECONNREFUSED
    note_http(error, 443)

    same = duplicate(error)
    assert (type(same), str(same)) == (cls, "cannot connect to h:443")
    assert same.errno == errno.ECONNREFUSED
    assert [type(one) for one in same.attempts] == [RefusedError, ConnectError]
    assert [str(one) for one in same.attempts] == [str(one) for one in error.attempts]
    assert [one.errno for one in same.attempts] == [errno.ECONNREFUSED, None]
    assert vars(same)["__notes__"] == vars(error)["__notes__"]


@pytest.mark.parametrize(
    "cls", [cls for cls in ERRORS if issubclass(cls, OSError)], ids=lambda cls: cls.__name__
)
@each_copy
def test_a_copy_keeps_errno(
    cls: type[SocketError], duplicate: Callable[[Any], SocketError]
) -> None:
    error: Any = cls("message")
    error.errno = errno.EADDRINUSE
    same: Any = duplicate(error)
    assert same.errno == errno.EADDRINUSE


class DerivedError(BrokenError):
    """An error as a user may derive it: its constructor does not take the message."""

    def __init__(self, *, peer: str) -> None:
        super().__init__(f"lost {peer}")
        self.peer = peer


@each_copy
def test_a_copy_of_a_derived_error(duplicate: Callable[[SocketError], SocketError]) -> None:
    error: Any = duplicate(DerivedError(peer="one"))
    assert type(error) is DerivedError
    assert (str(error), error.peer) == ("lost one", "one")


@each_copy
def test_a_copy_of_a_proxy_error_has_its_status(
    duplicate: Callable[[ProxyError], ProxyError],
) -> None:
    error = duplicate(ProxyError("no", status=407, attempts=(ProxyError("before", status=502),)))
    assert (str(error), error.status) == ("no", 407)
    assert [str(attempt) for attempt in error.attempts] == ["before"]
    assert ProxyError("no").status is None


@each_connect_error
def test_a_connect_error_made_by_hand_has_no_attempts(cls: type[ConnectError]) -> None:
    error = cls("message")
    assert error.attempts == ()
    assert error.errno is None


# --- modules

#: From the bottom up. A module may import from the layers below its own, and from no other
#: module of its own layer: so there are no cycles, and each can be read without those above it.
LAYERS = [
    {
        "_cancellation",
        "_copies",
        "_keepalive",
        "_lifecycle",
        "_ranges",
        "_readers",
        "_threads",
        "_waking",
        "_watch",
    },
    {
        "_blocking",
        "_errors",
        "_linger",
        "_memory_tcp",
        "_on_asyncio",
        "_refusals",
        "_tls_contexts",
    },
    {"_readiness"},
    {"_address", "_future", "_log", "_loops", "_policy", "_slots"},
    {"_options", "_proxy", "_tls_errors", "_raw", "_transport", "_dial_errors"},
    {
        *("_dialer", "_proxy_http", "_proxy_socks", "_read_ahead", "_resolver"),
        *("_target", "_tcp", "_tls"),
    },
    {"_lookup", "_memory", "_opener", "_route", "_tls_handshake"},
    {"_connection", "_judging", "_tcp_connect"},
    {"_dial", "_layered", "_streams"},
    {"_tunnel"},
    {"_open"},
    {"_socket"},
    {"_connector", "_listen", "_preludes"},
    {"__init__", "testing"},
    {"_demo"},
    {"__main__"},
]

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
ADAPTER_FILES = sorted(PACKAGE.glob("adapters/*.py"))


def imports(module: str) -> set[str]:
    """What a module imports, anywhere in it: ``"_errors"`` for a module of the package."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            path = node.module or ""
            if node.level or path.split(".")[0] == "anyio_connect":
                inside = path.removeprefix("anyio_connect").removeprefix(".")
                names = {alias.name for alias in node.names}
                found |= {inside} if inside else names & set(MODULES) or {"__init__"}
            else:
                found.add(path)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_the_layers_below_it(module: str) -> None:
    level = next((n for n, layer in enumerate(LAYERS) if module in layer), None)
    assert level is not None, (
        f"add {module} to LAYERS in tests/test_api.py, in the lowest layer above all the modules "
        "that it imports, and to the table of modules in ARCHITECTURE.md"
    )
    below = set().union(*LAYERS[:level])
    above = (imports(module) & set(MODULES)) - below
    assert not above, (
        f"{module} imports {', '.join(sorted(above))}, from its own layer or from one above. Can "
        "a caller pass what is needed as an argument? Can a part of the code move to a lower "
        "module? Move a module in LAYERS only if neither is possible"
    )
    assert "anyio_connect" not in imports(module), "import from the module that defines it"


@pytest.mark.parametrize("path", ADAPTER_FILES, ids=lambda path: path.stem)
def test_an_adapter_uses_only_what_is_public(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "anyio_connect":
            assert {alias.name for alias in node.names} <= set(anyio_connect.__all__)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            assert not str(node.module).startswith("anyio_connect._")


@pytest.mark.parametrize("module", MODULES)
def test_no_module_of_the_package_imports_an_adapter(module: str) -> None:
    assert not {name for name in imports(module) if "adapters" in name}


def test_each_module_of_the_layers_exists() -> None:
    gone = set().union(*LAYERS) - set(MODULES)
    assert not gone, f"remove from LAYERS in tests/test_api.py: {', '.join(sorted(gone))}"


def test_the_architecture_names_each_module_once() -> None:
    page = (Path(__file__).parent.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = page.partition("\n## Modules\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [module for cell in cells for module in re.findall(r"`(\w+)`", cell)]
    missing, gone = set(MODULES) - set(named), set(named) - set(MODULES)
    assert not missing, (
        f"add to the table of modules in ARCHITECTURE.md: {', '.join(sorted(missing))}; and "
        "check what the page says about paths and about what to touch"
    )
    assert not gone, f"remove from the table in ARCHITECTURE.md: {', '.join(sorted(gone))}"
    assert len(named) == len(set(named)), "ARCHITECTURE.md names a module twice in its table"


def test_the_lifecycle_imports_nothing_that_does_io() -> None:
    assert imports("_lifecycle") <= {
        "__future__",
        "collections.abc",
        "dataclasses",
        "enum",
        "functools",
        "typing",
    }


def test_importing_the_package_imports_little_else(tmp_path: Path) -> None:
    # In a new process: in this one, everything has been imported already.
    program = """if True:
        import sys
        import anyio, anyio.abc, anyio.lowlevel, typing_extensions
        before = set(sys.modules)
        import anyio_connect
        import json

        print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))
    """
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True
    ).stdout
    new, everything = json.loads(output)
    foreign = {name.partition(".")[0] for name in new} - sys.stdlib_module_names
    assert foreign - {"anyio"} == {"anyio_connect"}
    # The event loop is chosen at run time, and idna is imported for a name that needs it.
    assert not {"asyncio", "trio", "idna"} & set(new)
    assert not {"trio", "idna", "anyio._backends._asyncio"} & set(everything)
