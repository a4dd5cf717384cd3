"""How a socket is opened: the steps, what a failure leaves behind, and the time limits."""

from __future__ import annotations

import ast
import errno
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from anyio_connect import (
    ConnectError,
    Connector,
    ConnectTimeoutError,
    Socket,
    SocketError,
    SocketOptions,
    _lookup,
    _open,
    connect,
)
from anyio_connect._transport import Transport
from support.names import LOOPBACK, Names
from support.peers import Peer, full, listening, refusing_address


class Told(NamedTuple):
    """How a step is documented, and which tests show it."""

    words: str  #: these are in the docstring of the option connect_timeout
    late: str  #: the test in which connect_timeout runs out during the step
    swept: str  #: the test that cancels the step at each of its checkpoints


LATE = "test_a_timeout_says_in_which_phase_it_happened"
#: The steps of all openers, by the function that makes the error if the time runs out.
STEPS = {
    "no_slot": Told(
        "the wait for a slot of ``max_connections``",
        LATE,
        "test_waiting_for_a_slot_cancelled_at_every_checkpoint",
    ),
    "way.too_late": Told(
        "name resolution, all attempts to connect", LATE, "test_cancelled_at_every_checkpoint"
    ),
    "handshake_timed_out": Told("the TLS handshake", LATE, "test_cancelled_at_every_checkpoint"),
    "not_opened": Told(
        "",  # Socket.wrap() documents it
        "test_a_pending_socket_that_is_not_opened_in_time",
        "test_opening_a_wrapped_socket_cancelled_at_every_checkpoint",
    ),
    "not_flushed": Told(
        "the wait for a send in flight",
        "test_a_flush_that_takes_too_long_fails_like_a_handshake",
        "test_start_tls_cancelled_at_every_checkpoint",
    ),
}


def _steps() -> set[str]:
    """The functions that make the "too late" errors of the steps in _open."""
    found = set()
    for node in ast.walk(ast.parse(Path(_open.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Step":
            late = node.args[1]
            if isinstance(late, ast.Lambda):
                late = late.body
            if isinstance(late, ast.Call):
                partial = ast.unparse(late.func) == "partial"
                late = late.args[0] if partial else late.func
            found.add(ast.unparse(late))
    return found


def test_each_step_is_documented_and_tested() -> None:
    steps = _steps()
    assert steps == STEPS.keys(), (
        "add each Step of _open to STEPS, with a test in which connect_timeout runs out during "
        "the step, and one that cancels it at each of its checkpoints (test_cancellation has "
        "models)"
    )
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert SocketOptions.__doc__ is not None
    (words,) = (
        " ".join(text.split())
        for text in SocketOptions.__doc__.split("\n\n")
        if text.strip().startswith("``connect_timeout``")
    )
    for step, told in STEPS.items():
        assert told.words in words, f"add to connect_timeout in SocketOptions: {told.words}"
        for test in (told.late, told.swept):
            assert f"async def {test}(" in tests, f"there is no {test}, which STEPS has for {step}"


async def test_a_step_after_the_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken even if the connection is made at once."""

    async def greet(transport: Transport | None) -> Transport:
        assert transport is not None
        await transport.send(b"hello ")
        return transport

    def further(_: object) -> list[_open.Step]:
        return [_open.Step(greet, lambda _: ConnectTimeoutError("never"))]

    monkeypatch.setattr(_open.Dialled, "_further_steps", further)
    async with listening() as listener, connect(listener.address) as socket:
        await socket.send(b"world")
        peer = await listener.accept()
        await socket.send_eof()
        assert await peer.receive_all() == b"hello world"


async def test_a_connection_that_breaks_in_a_step_is_an_error_of_connecting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step need not convert the errors of its transport."""

    async def ask(transport: Transport | None) -> Transport:
        assert transport is not None
        await transport.receive()
        raise AssertionError

    def further(_: object) -> list[_open.Step]:
        return [_open.Step(ask, lambda _: ConnectTimeoutError("never"))]

    monkeypatch.setattr(_open.Dialled, "_further_steps", further)
    async with listening() as listener:
        where = "{}:{}".format(*listener.address)
        for end in (Peer.rst, Peer.fin):
            async with anyio.create_task_group() as group:
                socket = connect(listener.address)
                group.start_soon(settled, socket)
                end(await listener.accept())
            error = socket.opened.exception()
            assert type(error) is ConnectError
            if end is Peer.rst:
                assert str(error) == (
                    f"cannot connect to {where}: it was made, but broke before it was open: "
                    "Connection reset by peer"
                )
                assert error.errno == errno.ECONNRESET
                assert isinstance(error.__cause__, ConnectionResetError)
            else:
                assert str(error) == (
                    f"cannot connect to {where}: it was made, but the peer ended it before it "
                    "was open"
                )
                assert isinstance(error.__cause__, anyio.EndOfStream)


async def test_a_foreign_stream_that_breaks_in_a_step_tells_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unlike ours, its error may have no cause."""

    async def fail(_: object) -> Transport:
        raise anyio.BrokenResourceError("the tunnel is gone")

    def further(_: object) -> list[_open.Step]:
        return [_open.Step(fail, lambda _: ConnectTimeoutError("never"))]

    monkeypatch.setattr(_open.Dialled, "_further_steps", further)
    async with listening() as listener:
        with pytest.raises(ConnectError, match="before it was open: the tunnel is gone") as caught:
            await connect(listener.address).opened
    assert isinstance(caught.value.__cause__, anyio.BrokenResourceError)
    assert caught.value.errno is None


@pytest.mark.parametrize("how", ["an error of ours", "another error", "late", "cancelled"])
async def test_a_step_that_fails_leaves_no_connection(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step need not close the transport itself."""
    began = anyio.Event()

    async def fail(_: object) -> Transport:
        if how == "an error of ours":
            raise ConnectError("no")
        if how == "another error":
            raise ZeroDivisionError
        began.set()
        await anyio.sleep_forever()
        raise AssertionError

    def further(_: object) -> list[_open.Step]:
        return [_open.Step(fail, lambda _: ConnectTimeoutError("late"))]

    monkeypatch.setattr(_open.Dialled, "_further_steps", further)
    async with listening() as listener:
        timeout = 0.01 if how == "late" else math.inf
        socket = Connector(max_connections=1).connect(listener.address, connect_timeout=timeout)
        async with anyio.create_task_group() as group:
            group.start_soon(settled, socket)
            if how == "cancelled":
                await began.wait()
                group.cancel_scope.cancel()
        peer = await listener.accept()
        with pytest.raises(ConnectionResetError):
            await peer.receive()
        await socket.close()


async def settled(socket: Socket) -> None:
    with suppress(SocketError):
        await socket.opened


@pytest.mark.parametrize("step", ["dial", "start_tls"])
async def test_any_exception_of_a_step_becomes_a_socket_error_and_drops_the_connection(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign SSLContext may raise anything, and so may a step that is added later."""

    async def fail(*_: object, **__: object) -> Any:
        await anyio.lowlevel.checkpoint()
        raise ZeroDivisionError("unexpected")

    connector = Connector(max_connections=1)
    async with listening() as listener:
        with monkeypatch.context() as patch:
            patch.setattr(_open, step, fail)
            socket = connector.connect(listener.address, secure_transport="on")
            with pytest.raises(ConnectError, match="ZeroDivisionError: unexpected") as caught:
                await socket.opened
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert isinstance(socket.closed.exception(), ConnectError)
        if step == "start_tls":
            with pytest.raises(ConnectionResetError):
                await (await listener.accept()).receive()
        async with connector.connect(listener.address):  # the slot is free again
            pass


# --- time limits


PHASES = [
    "no slot came free",
    "the name was not resolved",
    "no connection",
    "the handshake did not finish",
]


async def too_late(connector: Connector, text: str, **options: Any) -> ConnectTimeoutError:
    """Connect with too short a time limit, but one that is long enough for ``text``."""
    for seconds in (0.05, 0.5, 5):
        socket = connector.connect("host.test:1", connect_timeout=seconds, **options)
        with pytest.raises(ConnectTimeoutError) as caught:
            await socket.opened
        assert f" within {seconds} seconds" in str(caught.value)
        assert isinstance(socket.closed.exception(), ConnectTimeoutError)
        if text in str(caught.value):
            break
    assert text in str(caught.value)
    return caught.value


@pytest.mark.parametrize("phase", PHASES)
async def test_a_timeout_says_in_which_phase_it_happened(
    phase: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = Connector(max_connections=1)
    async with full() as silent, listening() as listener:
        names["host.test"] = [silent.address if phase == "no connection" else listener.address]
        holder = connector.connect(listener.address)
        if phase == "no slot came free":
            await holder.opened
        elif phase == "the name was not resolved":
            monkeypatch.setattr(_lookup, "getaddrinfo", lambda *_: anyio.sleep_forever())
        error = await too_late(connector, phase, secure_transport="on")
        await holder.close()
    assert [phase] == [each for each in PHASES if each in str(error)]
    assert "host.test:1" in str(error)
    assert error.errno == errno.ETIMEDOUT


async def test_the_time_limit_includes_the_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: object, **__: object) -> list[Any]:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(_lookup, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectTimeoutError):
        await connect("host.test:1", connect_timeout=0.02).opened


async def test_a_timeout_lists_earlier_failures(names: Names) -> None:
    async with full() as silent:
        names["host.test"] = [refusing_address(), silent.address]
        error = await too_late(Connector(), "refused")
        assert len(error.attempts) == 1
        assert isinstance(error.__cause__, ConnectionRefusedError)


async def test_a_timeout_lists_what_the_policy_dropped(names: Names) -> None:
    async with full() as silent:
        names["host.test"] = [("10.0.0.1", 80), silent.address]
        connector = Connector(LOOPBACK)
        error = await too_late(connector, "not tried: 10.0.0.1:80: ")
        assert "forbids" in str(error)


async def test_a_timeout_names_the_addresses_that_never_answered(names: Names) -> None:
    async with full() as one, full() as two:
        names["host.test"] = [one.address, refusing_address(), two.address]
        silent = ", ".join("{}:{}".format(*listener.address) for listener in (one, two))
        connector = Connector(happy_eyeballs_delay=0)
        error = await too_late(connector, f"no answer from {silent}; ")
    assert len(error.attempts) == 1


async def test_a_timeout_of_one_address_names_it_once() -> None:
    async with full() as silent:
        address = "{}:{}".format(*silent.address)
        with pytest.raises(ConnectTimeoutError) as caught:
            await connect(address, connect_timeout=0.02).opened
    assert str(caught.value) == f"cannot connect to {address}: no connection within 0.02 seconds"


async def test_a_timeout_counts_the_addresses_that_were_not_tried(names: Names) -> None:
    async with full() as silent:
        names["host.test"] = [silent.address, ("127.0.0.2", 1), ("127.0.0.3", 1)]
        connector = Connector(happy_eyeballs_delay=3600)
        await too_late(connector, "; 2 more addresses were left out")
