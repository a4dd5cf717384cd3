"""Errors that are raised more than once: each time as a copy, which keeps no frame alive."""

from __future__ import annotations

import errno
import select
import socket as stdlib
import ssl
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from weakref import ref

import anyio
import anyio.lowlevel
import pytest
from anyio.lowlevel import checkpoint

from anyio_connect import (
    AddressNotAllowedError,
    AddressPolicy,
    BrokenError,
    ClosedError,
    ConnectError,
    Connector,
    RefusedError,
    Socket,
    SocketError,
    TLSError,
    connect,
)
from anyio_connect._copies import fresh
from support.cycles import nothing_to_collect
from support.errors import is_copy
from support.peers import Peer, listening, refusing_address
from support.sockets import arrived, connected, needs_poll
from support.tls_peers import NAME, TLSPeer, client_context, server_context
from support.turns import all_blocked

# --- what a copy is


class RefusalError(OSError):
    """An error whose constructor does not take its ``args``."""

    def __init__(self, *, kind: str) -> None:
        super().__init__(errno.EPERM, "not permitted", "file")
        self.kind = kind


class SlottedError(Exception):
    __slots__ = ("__weakref__", "told")
    told: str


def slotted() -> SlottedError:
    error = SlottedError("message")
    error.told = "much"
    return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        PermissionError(errno.EPERM, "it broke"),
        OSError(errno.EIO, "it broke", "one", None, "two"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        BlockingIOError(errno.EAGAIN, "not now", 4),
        stdlib.gaierror(stdlib.EAI_NONAME, "no such name"),
        ssl.SSLCertVerificationError(1, "expired"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ImportError("nothing there", name="nothing"),
        KeyError("key"),
        SystemExit(3),
        subprocess.CalledProcessError(2, "program"),
        RefusalError(kind="kind"),
        slotted(),
        ConnectError("why", attempts=(RefusedError("one"), ConnectError("two"))),
    ],
    ids=lambda error: f"{type(error).__name__}{len(error.args)}",
)
def test_a_copy_says_the_same(error: BaseException) -> None:
    copy = fresh(error)
    assert is_copy(copy, error)
    assert (repr(copy), copy.args) == (repr(error), error.args)
    for name in ("errno", "strerror", "filename", "filename2", "name", "code", "told", "reason"):
        assert getattr(copy, name, None) == getattr(error, name, None)


def test_each_copy_has_its_own_notes() -> None:
    error = ClosedError("why")
    vars(error)["__notes__"] = ["a hint"]
    copy = fresh(error)
    vars(copy)["__notes__"].append("mine")
    assert vars(error)["__notes__"] == ["a hint"]
    assert vars(fresh(error))["__notes__"] == ["a hint"]


def test_causes_and_attempts_are_copied_as_well() -> None:
    error = ConnectError("why", attempts=(RefusedError("one"),))
    error.__cause__ = cause = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    error.attempts[0].__cause__ = cause
    copy = fresh(error)
    assert is_copy(copy, error)
    assert is_copy(copy.__cause__, cause)
    assert copy.__suppress_context__
    assert is_copy(copy.attempts[0], error.attempts[0])
    assert copy.attempts[0].__cause__ is copy.__cause__


if sys.version_info >= (3, 11):

    def test_a_group_is_copied_with_what_is_in_it() -> None:
        error = BaseExceptionGroup(  # noqa: F821
            "several", [ValueError("one"), OSError(errno.EIO, "two")]
        )
        copy = fresh(error)
        assert is_copy(copy, error)
        assert is_copy(copy.exceptions[0], error.exceptions[0])
        assert is_copy(copy.exceptions[1], error.exceptions[1])


def test_a_chain_that_leads_back_is_cut() -> None:
    one, two = SlottedError("one"), SlottedError("two")
    one.__cause__, two.__cause__ = two, one
    with nothing_to_collect():
        copy = fresh(one)
        assert is_copy(copy.__cause__, SlottedError("two"))
        gone = ref(copy)
        del copy
        assert gone() is None
    one.__cause__ = None


def test_an_endless_chain_is_cut() -> None:
    first = last = ValueError(0)
    for number in range(1, 10_000):
        last.__cause__ = ValueError(number)
        last = last.__cause__
    copy, length = fresh(first), 0
    cause: BaseException | None = copy
    while cause is not None:
        cause, length = cause.__cause__, length + 1
    assert length == 51


# --- tracebacks


def foreign(value: str) -> None:
    """Raise as a policy or a resolver might."""
    try:
        {"a": 1}[value]
    except KeyError:
        raise LookupError(value) from None


def caused_by(cause: BaseException) -> ConnectError:
    error = ConnectError("the policy failed")
    error.__cause__ = cause
    return fresh(error)


def met() -> ConnectError:
    try:
        foreign("x")
    except LookupError as exc:
        return caused_by(exc)
    raise AssertionError("unreachable")


def test_a_foreign_traceback_is_kept() -> None:
    for error in (met(), fresh(met()), fresh(fresh(met()))):
        assert error.__traceback__ is None
        assert error.__cause__ is not None
        entries = traceback.extract_tb(error.__cause__.__traceback__)
        assert [entry.name for entry in entries] == ["met", "foreign"]
        assert [entry.filename for entry in entries] == [__file__] * 2
        assert entries[1].line == "raise LookupError(value) from None"


def test_a_foreign_traceback_keeps_no_frame() -> None:
    """On Python 3.12, a frame still refers to its callers after they have returned."""

    class Big:
        pass

    def call() -> tuple[ConnectError, ref[Big]]:
        big = Big()
        return met(), ref(big)

    error, big = call()
    assert error.__cause__ is not None
    assert error.__cause__.__traceback__ is not None
    assert error.__cause__.__traceback__.tb_frame.f_back is None
    assert not error.__cause__.__traceback__.tb_frame.f_locals
    assert big() is None


def test_a_context_is_kept_only_if_foreign_code_met_it() -> None:
    def policy() -> None:
        try:
            {"a": 1}["inner"]
        except KeyError:
            raise LookupError("outer")  # noqa: B904

    def call() -> BaseException:
        try:
            policy()
        except LookupError as exc:
            return fresh(caused_by(exc))
        raise AssertionError("unreachable")

    try:
        raise ValueError("the caller's own affair")  # noqa: TRY301
    except ValueError:
        error = call()
    assert error.__context__ is None
    assert error.__cause__ is not None
    assert isinstance(error.__cause__.__context__, KeyError)
    assert error.__cause__.__context__.__context__ is None


def test_the_kernels_traceback_is_dropped() -> None:
    with stdlib.socket() as sock:
        try:
            stdlib.create_connection(sock.getsockname())
        except OSError as exc:
            error = exc
    wrapped = ConnectError("why")
    wrapped.__cause__ = error
    copy = fresh(wrapped).__cause__
    assert is_copy(copy, error)
    # This test is foreign code too, and its own frame is the first.
    assert copy is not None
    names = [entry.name for entry in traceback.extract_tb(copy.__traceback__)]
    assert names[0] == "test_the_kernels_traceback_is_dropped"


class Buggy(AddressPolicy):
    def refusal(self, address: Any, port: int) -> str | None:
        raise LookupError(address)


async def test_the_traceback_of_a_policy_is_kept() -> None:
    async def call() -> tuple[SocketError, ref[Request]]:
        request = Request()
        socket = Connector(policy=Buggy()).connect(refusing_address())
        with pytest.raises(AddressNotAllowedError):
            await socket.opened
        error = socket.closed.exception()
        assert error is not None
        return error, ref(request)

    error, request = await call()
    assert isinstance(error.__cause__, LookupError)
    entries = traceback.extract_tb(error.__cause__.__traceback__)
    assert [(entry.name, entry.filename) for entry in entries] == [("refusal", __file__)]
    assert error.__traceback__ is None
    assert request() is None


# --- of a socket


async def refused() -> Socket:
    socket = connect(refusing_address())
    with pytest.raises(RefusedError):
        await socket.opened
    return socket


async def test_each_call_and_each_use_of_a_future_gives_an_error_of_its_own() -> None:
    socket = await refused()
    errors: list[SocketError | None] = []
    for future in (socket.opened, socket.closed):
        errors += [future.exception(), future.exception()]
        with pytest.raises(RefusedError) as caught:
            future.result()
        errors.append(caught.value)
        with pytest.raises(RefusedError) as caught:
            await future
        errors.append(caught.value)
    for call in (socket.receive, socket.send_eof):
        with pytest.raises(RefusedError) as caught:
            await call()
        errors.append(caught.value)
    for number, error in enumerate(errors):
        assert isinstance(error, RefusedError)
        assert error.errno == errno.ECONNREFUSED
        assert error.attempts
        assert isinstance(error.__cause__, ConnectionRefusedError)
        assert error.__cause__.__traceback__ is None
        assert all(is_copy(error, other) for other in errors[:number])


async def test_tasks_that_meet_one_failure_share_nothing() -> None:
    async with connected(half_open=True) as (socket, peer):
        seen: dict[str, BrokenError] = {}

        async def reading() -> None:
            try:
                await socket.receive()
            except BrokenError as exc:
                vars(exc)["__notes__"] = ["reading"]
                seen["reading"] = exc

        async def writing() -> None:
            try:
                while True:
                    await socket.send(b"x")
                    await anyio.lowlevel.checkpoint()
            except BrokenError as exc:
                vars(exc)["__notes__"] = ["writing"]
                seen["writing"] = exc

        async with anyio.create_task_group() as group:
            group.start_soon(reading)
            await all_blocked()
            group.start_soon(writing)
            await peer.receive()
            peer.rst()
        for name, error in seen.items():
            frames = {entry.name for entry in traceback.extract_tb(error.__traceback__)}
            assert frames & {"reading", "writing"} == {name}
            assert vars(error)["__notes__"] == [name]
        assert not hasattr(socket.closed.exception(), "__notes__")


class Request:
    """An object of the caller, which an error must not keep alive."""


async def broken_receive(socket: Socket, _: Peer, __: bytearray) -> None:
    await socket.receive()


async def broken_send(socket: Socket, _: Peer, buffer: bytearray) -> None:
    while True:
        await socket.send(buffer)
        await anyio.lowlevel.checkpoint()


async def broken_end(socket: Socket, _: Peer, __: bytearray) -> None:
    with pytest.raises(BrokenError):
        await socket.closed
    await socket.send_eof()


async def aborted(socket: Socket, _: Peer, buffer: bytearray) -> None:
    try:
        raise LookupError(buffer[1000])
    except IndexError as exc:
        await socket.writable.abort(exc)
    await socket.send(buffer)


async def closed(socket: Socket, _: Peer, buffer: bytearray) -> None:
    await socket.close()
    await socket.send(buffer)


@needs_poll
@pytest.mark.slow
@pytest.mark.parametrize(
    "fail", [broken_receive, broken_send, broken_end, aborted, closed], ids=lambda f: f.__name__
)
async def test_a_handled_error_keeps_nothing_of_the_caller_alive(
    fail: Callable[[Socket, Peer, bytearray], Awaitable[None]],
) -> None:
    async with connected(half_open=True) as (socket, peer):
        if fail not in (aborted, closed):
            peer.rst()
            arrived(socket, select.POLLERR)
        buffer = bytearray(100)

        async def handle() -> ref[Request]:
            request = Request()
            with suppress(SocketError):
                await fail(socket, peer, buffer)
            return ref(request)

        with nothing_to_collect():
            request = await handle()
            assert request() is None
            buffer.clear()  # raises BufferError if anything still uses the buffer


@needs_poll
async def test_an_error_that_is_handled_in_an_except_clause_keeps_nothing_alive() -> None:
    async with connected(half_open=True) as (socket, peer):

        async def call() -> ref[Request]:
            request = Request()
            try:
                raise ValueError(request)  # noqa: TRY301
            except ValueError:
                with suppress(BrokenError):
                    await socket.receive()
            return ref(request)

        peer.rst()
        arrived(socket, select.POLLERR)
        with nothing_to_collect():
            request = await call()
            assert request() is None
        assert isinstance(socket.closed.exception(), BrokenError)


async def test_a_failed_dial_leaves_no_cycle() -> None:
    async def opened() -> None:
        with suppress(RefusedError):
            await connect(refusing_address()).opened

    async def entered() -> None:
        try:
            async with connect(refusing_address()):
                raise AssertionError("unreachable")
        except RefusedError:
            pass

    async def named() -> None:
        socket = connect(refusing_address())
        with suppress(RefusedError):
            await socket.receive()

    with nothing_to_collect():
        for call in (opened, entered, named):
            await call()


async def test_a_failed_handshake_leaves_no_cycle() -> None:
    async with listening() as listener:

        async def handshake() -> None:
            socket = connect(listener.address, secure_transport="on")
            with suppress(TLSError):
                await socket.opened

        async def answer() -> None:
            await (await listener.accept()).send(b"220 hello\r\n")

        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            await handshake()  # the first one builds the default context
        with nothing_to_collect():
            async with anyio.create_task_group() as group:
                group.start_soon(answer)
                await handshake()


@pytest.mark.parametrize("how", ["reset", "no close_notify", "garbage"])
@pytest.mark.parametrize("call", ["receive", "send", "closed"])
async def test_a_broken_session_leaves_no_cycle(how: str, call: str) -> None:
    async with listening() as listener, anyio.create_task_group() as group:
        peers = []

        async def serve() -> None:
            peer = await listener.accept()
            await TLSPeer(peer, server_context()).shake()
            peers.append(peer)

        group.start_soon(serve)
        socket = connect(
            listener.address, secure_transport="on", sni=NAME, ssl_context=client_context()
        )
        await socket.opened
        with anyio.fail_after(10):
            while not peers:
                await checkpoint()

        async def meet() -> ref[Request]:
            request = Request()
            try:
                if call == "closed":
                    with anyio.move_on_after(0.05):
                        await socket.closed
                elif call == "receive":
                    await socket.receive()
                else:
                    while True:
                        await socket.send(b"x")
                        await checkpoint()
            except SocketError:
                pass
            except anyio.EndOfStream:
                pass
            return ref(request)

        if how == "garbage":
            await peers[0].send(bytes(100))
            arrived(socket)
        if how == "reset":
            peers[0].rst()
        else:
            peers[0].close()
        with nothing_to_collect():
            request = await meet()
            assert request() is None
        await socket.close()
