"""Makes parts of the pages from the package: ``python docs/made.py`` writes them.

The text between ``<!-- made: NAME -->`` and ``<!-- /made -->`` of a page is the result of
``MADE[NAME]``. A test fails if they differ.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import anyio_connect
from anyio_connect import (
    WORKERS,
    AddressPolicy,
    Connector,
    Socket,
    SocketError,
    SocketOptions,
    _options,
    _ranges,
    connect,
    listen,
)
from anyio_connect import _lifecycle as life

DOCS = Path(__file__).parent


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(docstring: str) -> str:
    """A paragraph of a docstring in Markdown, on one line."""
    text = " ".join(docstring.split()).replace("``", "`").replace("|", "\\|")
    return re.sub(r":\w+:`(?:~?\w+\.)*(\w+)`", r"`\1`", text)


# --- errors


def errors() -> list[type[SocketError]]:
    """The public errors, each below its base class."""
    public = [getattr(anyio_connect, name) for name in anyio_connect.__all__]
    found = [
        error for error in public if isinstance(error, type) and issubclass(error, SocketError)
    ]
    return sorted(found, key=lambda error: [cls.__name__ for cls in reversed(lineage(error))])


def lineage(error: type[SocketError]) -> list[type[SocketError]]:
    """An error and its base classes of this package."""
    return [cls for cls in error.__mro__ if issubclass(cls, SocketError)]


def name_of(cls: type) -> str:
    """How to write a class in code."""
    module = {"builtins": "", "_socket": "socket."}.get(cls.__module__)
    if module is None:
        module = f"{cls.__module__.partition('.')[0]}."
    return f"`{module}{cls.__name__}`"


def errors_table() -> str:
    """Each error: its code, its other base classes, when it is raised, and what to do."""
    rows = []
    for error in errors():
        first, *others = str(error.__doc__).split("\n\n")
        remedies = [text for text in others if "What to do:" in text]
        if len(remedies) != 1:
            raise ValueError(f"give {error.__name__} a paragraph that begins 'What to do:'")
        remedy = markdown(remedies[0]).removeprefix("What to do: ")
        depth = "↳&nbsp;" * (len(lineage(error)) - 1)
        rows.append(
            [
                "<br>".join(
                    [
                        f"{depth}**`{error.__name__}`**",
                        f"code `{error.code}`",
                        f"also {', '.join(bases_of(error))}",
                    ]
                ),
                markdown(first),
                remedy[0].upper() + remedy[1:],
            ]
        )
    return table(["error", "when", "what to do"], rows)


def bases_of(error: type[SocketError]) -> list[str]:
    """The base classes of an error that come from Python or AnyIO, also through its base class."""
    for cls in lineage(error):
        if found := [base for base in cls.__bases__ if not issubclass(base, SocketError)]:
            return [name_of(base) for base in found]
    return []


def errors_reference() -> str:
    """Each error in full, for Sphinx."""
    lines = [
        f".. autoexception:: {error.__name__}\n   :members:\n   :show-inheritance:\n"
        for error in errors()
    ]
    return "```{eval-rst}\n.. py:currentmodule:: anyio_connect\n\n" + "\n".join(lines) + "```"


# --- options


@cache
def classes() -> dict[str, ast.ClassDef]:
    """The classes of the package, as syntax trees."""
    return {
        node.name: node
        for path in Path(anyio_connect.__file__).parent.glob("_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }


#: Annotations that are aliases of a short type.
KINDS = {"SecureTransport": f"Literal[{', '.join(map(repr, get_args(_options.SecureTransport)))}]"}


def described(cls: type) -> Iterator[tuple[str, str, str]]:
    """The attributes of a class: the name, the annotation, and the docstring below it."""
    body = classes()[cls.__name__].body
    for item, after in zip_longest(body, body[1:]):
        if isinstance(item, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(after.value, ast.Constant)
            yield ast.unparse(item.target), ast.unparse(item.annotation), str(after.value.value)


def default(value: object) -> str:
    """How to write a default."""
    if value == math.inf:
        return "`math.inf`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value!r}`"


def sections(cls: type, defaults: dict[str, object]) -> str:
    """Each attribute of a class, with its type, its default and its description."""
    lines = []
    for name, annotation, text in described(cls):
        kind = annotation.strip("'\"").removesuffix(" | None")
        kind = KINDS.get(kind, kind)
        lines += [
            f"### {name}\n",
            f"Type: `{kind}`. Default: {default(defaults[name])}.\n",
            "\n".join(textwrap.wrap(markdown(text), 120, break_on_hyphens=False)) + "\n",
        ]
    return "\n".join(lines).rstrip()


def options_in_full() -> str:
    """Each option of ``connect()``."""
    return sections(SocketOptions, _options.Options()._asdict())


def connector_in_full() -> str:
    """Each option of a ``Connector``."""
    plain = Connector()
    return sections(Connector, {name: getattr(plain, name) for name, *_ in described(Connector)})


def policy_in_full() -> str:
    """Each rule of an ``AddressPolicy``."""
    fields = AddressPolicy.__dataclass_fields__
    return sections(AddressPolicy, {name: fields[name].default for name in fields})


#: The calls that take options, besides ``connect()``.
TAKERS: dict[str, Callable[..., object]] = {
    "Connector": Connector,
    "start_tls()": Socket.start_tls,
    "connect_socket()": Connector.connect_socket,
    "listen()": listen,
}


def options_table() -> str:
    """Which call takes which option."""
    taken = {name: set(inspect.signature(call).parameters) for name, call in TAKERS.items()}
    names = [name for name, *_ in described(SocketOptions)]
    taken["Socket.wrap()"] = set(names) - set(_options.SYSTEM_ONLY)
    rows = [
        [f"[`{name}`](#{name})", "yes", *("yes" if name in taken[x] else "" for x in taken)]
        for name in names
    ]
    alone: dict[str, Callable[..., object]] = {
        "task_group": connect,
        "expected_server_hostname": Socket.start_tls,
        "backlog": listen,
    }
    for name, call in alone.items():
        assert name in inspect.signature(call).parameters
        rows.append(
            [
                f"`{name}`",
                "yes" if call is connect else "",
                *("yes" if name in taken[x] else "" for x in taken),
            ]
        )
    return table(["option", "`connect()`", *(f"`{name}`" for name in taken)], rows)


# --- addresses


def blocks_table() -> str:
    """Each block of addresses, and whether WORKERS allows it."""
    blocks = sorted(
        _ranges.BLOCKS,
        key=lambda block: (
            block.network.version,
            int(block.network.network_address),
            block.network.prefixlen,
        ),
    )
    rows = [
        [f"`{block.network}`", block.name, block.source, "yes" if block.public else "no"]
        for block in blocks
    ]
    return table(["block", "what it is for", "source", "`WORKERS`"], rows)


def metadata_table() -> str:
    """Where clouds keep the credentials of a machine."""
    rows = [[f"`{ip}`", whose] for ip, whose in _ranges.METADATA.items()]
    assert all(WORKERS.refusal(ip, 80) for ip in _ranges.METADATA)
    return table(["address", "cloud"], rows)


# --- the life of a socket

E, V = life.Event, life.Verdict

#: The events in the words of users.
EVENTS: dict[life.Event, str] = {
    E.DIAL: "a task begins to connect",
    E.DIALLED: "connected",
    E.DIAL_CANCELLED: "that task is cancelled",
    E.DIAL_FAILED: "no connection can be made",
    E.RECEIVE: "receive()",
    E.RECEIVE_DONE: "it returns or is cancelled",
    E.PEER_EOF: "the peer has ended",
    E.CANCEL: "readable.aclose()",
    E.SEND: "send()",
    E.SEND_DONE: "the send is done or nothing of it went out",
    E.SEND_TORN: "it is cut short",
    E.END: "send_eof()",
    E.END_LAST: "writable.aclose()",
    E.END_DONE: "our end has gone out",
    E.END_UNDONE: "our end is cancelled before it goes out",
    E.ABORT: "writable.abort()",
    E.RESET: "reset",
    E.RESET_UNREAD: "reset with more to read",
    E.LOST: "lost with data read ahead",
    E.CLOSE: "close()",
    E.FLUSHED: "what was in flight is done",
    E.SHUT: "the transport is closed",
    E.CROWDED: "the peer has not acknowledged all yet",
    E.ROOM: "the peer may have acknowledged all",
    E.FORCE: "close() is cancelled",
    E.LATE: "close_timeout is over",
    E.UPGRADE: "start_tls()",
    E.DISOWN: "the TLS socket is given up",
    E.ABANDON: "the TLS socket is aborted",
    E.DETACH: "detach()",
}

#: The question that each facet of a state answers.
FACETS = {
    "dial": "Has the connection been made?",
    "link": "Is the connection alive?",
    "inbound": "What may be received?",
    "outbound": "What may be sent?",
}

#: The states of each facet.
STATES: dict[str, list[Any]] = {
    "dial": [*life.Dial],
    "link": [*life.Link],
    "inbound": [*life.Inbound],
    "outbound": [*life.Outbound],
}

#: The rows of the table of calls: a description, the settings, and the events that lead there.
SITUATIONS: list[tuple[str, dict[str, bool], list[life.Event]]] = [
    ("pending: no connection yet", {}, []),
    ("open", {}, [E.DIAL, E.DIALLED]),
    ("open, a receive is in flight", {}, [E.DIAL, E.DIALLED, E.RECEIVE]),
    ("open, a send is in flight", {}, [E.DIAL, E.DIALLED, E.SEND]),
    (
        "open, `send_eof()` is in flight: our end is on its way",
        {},
        [E.DIAL, E.DIALLED, E.END],
    ),
    ("the peer has ended", {}, [E.DIAL, E.DIALLED, E.PEER_EOF, E.SHUT]),
    (
        "the peer has ended, `allow_half_open=True`",
        {"half_open": True},
        [E.DIAL, E.DIALLED, E.PEER_EOF],
    ),
    ("we have ended: `send_eof()`", {}, [E.DIAL, E.DIALLED, E.END, E.END_DONE]),
    ("we stopped reading: `readable.aclose()`", {}, [E.DIAL, E.DIALLED, E.CANCEL]),
    ("a send was cut short", {}, [E.DIAL, E.DIALLED, E.SEND, E.SEND_TORN]),
    ("reset", {}, [E.DIAL, E.DIALLED, E.RESET]),
    ("reset, with data left to read", {}, [E.DIAL, E.DIALLED, E.RESET_UNREAD]),
    ("closed", {}, [E.DIAL, E.DIALLED, E.CLOSE, E.FLUSHED, E.SHUT]),
    ("it could not be made", {}, [E.DIAL, E.DIAL_FAILED]),
    ("after `start_tls()`", {"starttls": True}, [E.DIAL, E.DIALLED, E.UPGRADE]),
    ("after `detach()`", {}, [E.DIAL, E.DIALLED, E.DETACH]),
]

#: The calls of that table, and the events by which they ask for permission.
CALLS = {
    "receive()": E.RECEIVE,
    "send()": E.SEND,
    "send_eof()": E.END,
    "writable.aclose()": E.END_LAST,
    "writable.abort()": E.ABORT,
    "start_tls()": E.UPGRADE,
    "detach()": E.DETACH,
}

#: What a verdict means for the caller. start_tls() and detach() treat most refusals alike.
VERDICTS: dict[life.Verdict, str] = {
    V.PROCEED: "done",
    V.OPEN_FIRST: "connects, then done",
    V.WAIT: "waits, then done",
    V.NOTHING_TO_DO: "nothing to do",
    V.BUSY: "`BusyResourceError`",
    V.AT_EOF: "`EndOfStream`",
    V.CLOSED: "`ClosedError`",
    V.BROKEN: "`BrokenError`",
    V.FAILED: "the error of `opened`",
}


def state_after(settings: dict[str, bool], events: list[life.Event]) -> life.State:
    """The state that a socket is in after these events."""
    state = life.initial(**{"half_open": False, "starttls": False, **settings})
    for event in events:
        after = life.step(state, event).state
        assert after is not state, f"{event} means nothing in {state}"
        state = after
    return state


def answer(state: life.State, call: str) -> str:
    """What a call does in a state."""
    event = CALLS[call]
    _, verdict, effects = life.step(state, event)
    assert verdict is not None
    if event is E.ABORT and not effects:  # because there is no connection
        verdict = V.NOTHING_TO_DO
    if event is E.END_LAST and verdict is V.BROKEN:
        return "resets the connection"
    if event in (E.UPGRADE, E.DETACH) and verdict not in (V.PROCEED, V.BROKEN, V.FAILED):
        return "`StartTLSError`" if event is E.UPGRADE else "`DetachError`"
    return VERDICTS[verdict]


def calls_table(calls: list[str]) -> str:
    """What each call does in each situation, according to the tables of the lifecycle."""
    rows = []
    for situation, settings, events in SITUATIONS:
        cells = []
        for call in calls:
            # Without STARTTLS, this call would raise an error in every other state too.
            more = {"starttls": True} if CALLS[call] is E.UPGRADE else {}
            cells.append(answer(state_after({**settings, **more}, events), call))
        rows.append([situation, *cells])
    return table(["the socket is", *(f"`{call}`" for call in calls)], rows)


def together() -> str:
    """The rules by which one facet depends on others."""
    rows = []
    for rule in life.JOINT:
        then = [f"{facet} {state!r}" for facet, state in rule.then.items()]
        effects = [effect.name.replace("_", " ").lower() for effect in rule.effects]
        rows.append([condition(rule.when), ", ".join(then), ", ".join(effects)])
    return table(["as soon as", "it becomes", "and this is done"], rows)


def condition(when: dict[str, tuple[object, ...]]) -> str:
    """The condition of a rule in words."""
    words = []
    for facet, states in when.items():
        if facet in FACETS:
            words.append(f"{facet} is {' or '.join(repr(state) for state in states)}")
        else:
            assert facet == "half_open"
            words.append(f"`allow_half_open` is {states[0]}")
    return ", ".join(words)


# --- diagrams of it

WIDTH_OF_A_STATE = 110
WIDTH_OF_WORDS = 300
LINE = 17  # pixels
GAP = 14
LANE = 15
COLOURS = (
    *("#1b6ca8", "#b3541e", "#2a7f62", "#8e3b8a", "#a3273d"),
    *("#5a6b1f", "#3f4fa3", "#7a5c00", "#00717d", "#6b4a3a"),
)


def moves(facet: str) -> dict[Any, dict[Any, list[tuple[str, bool]]]]:
    """The events and the rules (True) that lead from one state of a facet to another."""
    found: dict[Any, dict[Any, list[tuple[str, bool]]]] = {state: {} for state in STATES[facet]}
    for state, events in life.TABLES[facet].items():
        for event, entry in events.items():
            target = entry[0] if isinstance(entry, tuple) else entry
            if target is not state:
                found[state].setdefault(target, []).append((EVENTS[event], False))
    for rule in life.JOINT:
        for state in rule.when.get(facet, ()):
            target = rule.then.get(facet, state)
            if target is not state:
                rest = {name: states for name, states in rule.when.items() if name != facet}
                words = condition(rest).replace("`", "")
                if (words, True) not in found[state].get(target, []):
                    found[state].setdefault(target, []).append((words, True))
    return found


def diagram(facet: str) -> str:
    """The picture of a facet: states on the left, a lane for each state with an arrow to it."""
    edges = moves(facet)
    targets = [state for state in edges if any(state in to for to in edges.values())]
    colour = dict(zip(targets, COLOURS, strict=False))
    left = WIDTH_OF_A_STATE + 10
    lane = {
        state: left + WIDTH_OF_WORDS + 20 + LANE * number for number, state in enumerate(targets)
    }
    boxes, words, lines = [], [], []
    arrives: dict[Any, int] = {}
    leaves: list[tuple[Any, int, bool]] = []
    y = 10
    for state, ways in edges.items():
        top = y
        y += 6
        if state in lane:
            y += LINE - 4
            arrives[state] = y
            y += 4
        for target, by in ways.items():
            for rule in (False, True):
                texts = [text for text, is_rule in by if is_rule is rule]
                for text in texts if rule else ["; ".join(texts)] if texts else []:
                    shown = f"when {text}" if rule else text
                    for line in textwrap.wrap(shown, 46, break_on_hyphens=False):
                        y += LINE
                        words.append((left + 8, y - 5, line, rule))
                    leaves.append((target, y, rule))
                    y += 2
        y = max(y + 4, top + 30)
        boxes.append((state, top, y - top))
        y += GAP
    width = left + WIDTH_OF_WORDS + 20 + LANE * len(targets) + 5
    svg = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" '
            f'width="{width}" height="{y}" font-family="system-ui, sans-serif" font-size="12">'
        ),
        f"<title>{escape(FACETS[facet])}</title>",
        f'<rect width="{width}" height="{y}" fill="#fff"/>',
    ]
    for state in targets:
        ys = [at for target, at, _ in leaves if target is state] + [arrives[state]]
        x, ink = lane[state], colour[state]
        lines.append(f'<path d="M{x} {min(ys)}V{max(ys)}" stroke="{ink}" fill="none"/>')
        at = arrives[state]
        lines.append(
            f'<path d="M{x} {at}H{left + 8}" stroke="{ink}" fill="none"/>'
            f'<path d="M{left} {at}l9 -4v8z" fill="{ink}"/>'
        )
    for target, at, rule in leaves:
        dashes = ' stroke-dasharray="4 3"' if rule else ""
        ink = colour[target]
        lines.append(
            f'<path d="M{left} {at}H{lane[target]}" stroke="{ink}" fill="none"{dashes}/>'
            f'<circle cx="{lane[target]}" cy="{at}" r="3" fill="{ink}"/>'
        )
    svg += lines
    for x, at, line, rule in words:
        style = ' font-style="italic"' if rule else ""
        svg.append(
            f'<text x="{x}" y="{at}" fill="#222"{style} stroke="#fff" stroke-width="3" '
            f'paint-order="stroke">{escape(line)}</text>'
        )
    for state, top, height in boxes:
        ink = colour.get(state, "#444")
        svg.append(
            f'<rect x="10" y="{top}" width="{WIDTH_OF_A_STATE}" height="{height}" rx="5" '
            f'fill="{ink}"/><text x="{10 + WIDTH_OF_A_STATE // 2}" y="{top + height // 2 + 4}" '
            f'fill="#fff" font-weight="bold" text-anchor="middle">{escape(state.name)}</text>'
        )
    return "\n".join([*svg, "</svg>", ""])


#: The functions that make each part, by its name.
MADE: dict[str, Callable[[], str]] = {
    "errors": errors_table,
    "errors in full": errors_reference,
    "options": options_table,
    "options in full": options_in_full,
    "connector in full": connector_in_full,
    "policy in full": policy_in_full,
    "blocks": blocks_table,
    "metadata": metadata_table,
    "calls of one direction": lambda: calls_table([*CALLS][:4]),
    "calls of the whole": lambda: calls_table([*CALLS][4:]),
    "together": together,
}


# --- the pages

_MADE = re.compile(r"(?<=<!-- made: )([\w ]+)( -->\n).*?(?=\n<!-- /made -->)", re.DOTALL)


def current(page: str) -> str:
    """The page with its generated parts up to date."""
    return _MADE.sub(lambda found: f"{found[1]}{found[2]}{MADE[found[1]]()}", page)


def pictures() -> dict[str, str]:
    """The diagrams, by the names of their files."""
    return {f"{facet}.svg": diagram(facet) for facet in FACETS}


def main() -> None:
    """Bring all pages and pictures up to date."""
    for name, picture in pictures().items():
        (DOCS / "pictures" / name).write_text(picture, encoding="utf-8")
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        path.write_text(current(page), encoding="utf-8")


if __name__ == "__main__":
    main()
