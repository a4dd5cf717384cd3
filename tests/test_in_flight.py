"""A call is in flight from the moment it is made, even while it waits for the connection."""

from __future__ import annotations

import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import permutations
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from anyio_connect import BrokenError, ClosedError, RefusedError, Socket, SocketError
from support.peers import Peer, listening
from support.sockets import BIG, Slow, arrived, connected, dialled, needs_poll, opened_by, settle
from support.turns import all_blocked


class Calls:
    """Makes calls in tasks of their own, and records how each ended."""

    def __init__(self, group: TaskGroup) -> None:
        self.group = group
        self.outcomes: dict[str, object] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def begin(self, **calls: Any) -> None:
        """Make these calls, in this order, and return when each of them waits."""
        for name, call in calls.items():
            self.group.start_soon(self._make, name, call)
        await all_blocked()

    async def _make(self, name: str, call: Any) -> None:
        with anyio.CancelScope() as self.scopes[name]:
            try:
                outcome = await call()
            except (SocketError, anyio.EndOfStream, anyio.BusyResourceError) as exc:
                outcome = type(exc)
            self.outcomes[name] = outcome


@asynccontextmanager
async def calling() -> AsyncIterator[Calls]:
    """At the end, wait until all calls have ended."""
    async with anyio.create_task_group() as group:
        yield Calls(group)


@asynccontextmanager
async def unmade() -> AsyncIterator[tuple[Socket, Peer, Slow, Calls]]:
    """A socket whose connection is made when the test says so, its peer, and calls.

    Another task is already making it, so that every call of the test waits for that task.
    """
    async with listening() as listener:
        opener = Slow(dialled(listener))
        opener.stop.set()
        socket = opened_by(opener)
        async with anyio.create_task_group() as group:
            group.start_soon(settled, socket)
            await all_blocked()
            try:
                async with calling() as calls:
                    yield socket, await listener.accept(), opener, calls
            finally:
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await socket.close()


async def settled(socket: Socket) -> None:
    with suppress(SocketError):
        await socket.opened


async def test_an_end_is_sent_after_the_send_that_was_in_flight() -> None:
    async with unmade() as (socket, peer, opener, calls):
        await calls.begin(send=lambda: socket.send(b"HELLO"))
        await calls.begin(end=socket.writable.aclose)
        # The end has the next turn: no other call gets in between.
        with pytest.raises(ClosedError, match="our side of this socket has ended"):
            await socket.send(b"too late")
        with pytest.raises(anyio.BusyResourceError):
            await socket.send_eof()
        opener.go_on.set()
        assert await peer.receive_all() == b"HELLO"
    assert calls.outcomes == {"send": None, "end": None}


async def test_two_tasks_end_our_side_after_a_send() -> None:
    async with unmade() as (socket, peer, opener, calls):
        await calls.begin(send=lambda: socket.send(b"HELLO"))
        await calls.begin(end=socket.writable.aclose, again=socket.writable.aclose)
        opener.go_on.set()
        assert await peer.receive_all() == b"HELLO"
    assert calls.outcomes == {"send": None, "end": None, "again": None}


async def test_a_second_call_finds_the_first_in_flight() -> None:
    async with unmade() as (socket, peer, opener, calls):
        await calls.begin(send=lambda: socket.send(b"HELLO"), receive=socket.receive)
        for call in (lambda: socket.send(b"x"), socket.send_eof, socket.receive):
            with pytest.raises(anyio.BusyResourceError):
                await call()
        opener.go_on.set()
        assert await peer.receive() == b"HELLO"
        await peer.send(b"WORLD")
    assert calls.outcomes == {"send": None, "receive": b"WORLD"}


async def test_a_second_end_finds_the_first_in_flight() -> None:
    async with unmade() as (socket, peer, opener, calls):
        await calls.begin(end=socket.send_eof)
        for call in (socket.send_eof, lambda: socket.send(b"x")):
            with pytest.raises(anyio.BusyResourceError):
                await call()
        await calls.begin(again=socket.writable.aclose)
        opener.go_on.set()
        assert await peer.receive_all() == b""
    assert calls.outcomes == {"end": None, "again": None}


async def test_a_cancelled_call_gives_up_its_turn() -> None:
    async with unmade() as (socket, peer, opener, calls):
        given_up: dict[str, Any] = {
            "send": lambda: socket.send(b"never sent"),
            "send_eof": socket.send_eof,
            "receive": socket.receive,
        }
        for name, call in given_up.items():
            await calls.begin(**{name: call})
            calls.scopes[name].cancel()
            await all_blocked()
        await calls.begin(receive_again=socket.receive, send_again=lambda: socket.send(b"HELLO"))
        opener.go_on.set()
        assert await peer.receive() == b"HELLO"
        await peer.send(b"WORLD")
    assert calls.outcomes == {"send_again": None, "receive_again": b"WORLD"}


async def test_an_end_that_is_cancelled_before_the_connection_is_made_aborts() -> None:
    async with unmade() as (socket, _, _, calls):
        await calls.begin(send=lambda: socket.send(b"HELLO"))
        await calls.begin(end=socket.writable.aclose)
        calls.scopes["end"].cancel()
        assert isinstance(await settle(socket.closed), BrokenError)
    assert calls.outcomes == {"send": BrokenError}


async def test_readable_aclose_wakes_a_receive_that_waits_for_the_connection() -> None:
    async with unmade() as (socket, peer, opener, calls):
        await calls.begin(receive=socket.receive)
        await socket.readable.aclose()
        await all_blocked()
        assert calls.outcomes == {"receive": ClosedError}
        opener.go_on.set()
        await socket.send(b"still open for writing")
        assert await peer.receive() == b"still open for writing"


async def test_readable_aclose_wakes_the_receive_that_makes_the_connection() -> None:
    async with listening() as listener:
        opener = Slow(dialled(listener))
        opener.stop.set()
        socket = opened_by(opener)
        async with calling() as calls:
            await calls.begin(receive=socket.receive)
            await socket.readable.aclose()
        assert calls.outcomes == {"receive": ClosedError}
        assert not socket.opened.done()
        opener.go_on.set()
        await socket.opened  # another task takes over
        await socket.close()


async def test_close_finishes_a_send_that_waits_for_the_connection() -> None:
    async with unmade() as (socket, peer, opener, calls):
        await calls.begin(send=lambda: socket.send(b"HELLO"), receive=socket.receive)
        await calls.begin(close=socket.close)
        assert calls.outcomes == {"receive": ClosedError}
        opener.go_on.set()
        assert await peer.receive_all() == b"HELLO"
    assert calls.outcomes == {"receive": ClosedError, "send": None, "close": None}
    assert socket.closed.result() is None


@pytest.mark.parametrize("cancelled", ["send", "close"])
async def test_close_makes_no_connection_if_the_send_or_the_close_is_cancelled(
    cancelled: str,
) -> None:
    async with unmade() as (socket, _, opener, calls):
        await calls.begin(send=lambda: socket.send(b"HELLO"))
        await calls.begin(close=socket.close)
        assert not calls.outcomes
        calls.scopes[cancelled].cancel()
        await all_blocked()
        assert opener.discarded
        assert isinstance(socket.opened.exception(), ClosedError)
        assert socket.closed.result() is None
    rest = {"send": ClosedError, "close": None}
    del rest[cancelled]
    assert calls.outcomes == rest


async def test_a_dial_that_fails_while_close_waits_for_a_send() -> None:
    async with unmade() as (socket, _, opener, calls):
        await calls.begin(send=lambda: socket.send(b"HELLO"))
        await calls.begin(close=socket.close)
        opener.error = RefusedError("no way there")
        opener.go_on.set()
    assert calls.outcomes == {"send": RefusedError, "close": None}
    assert isinstance(socket.closed.exception(), RefusedError)


ENDERS = ("send", "send_eof", "aclose", "abort", "close")


@pytest.mark.parametrize("order", [*permutations(ENDERS, 3)], ids="+".join)
async def test_what_closed_says_is_what_the_peer_sees(order: tuple[str, ...]) -> None:
    """Three calls in one turn of the event loop, in every order."""
    async with connected(half_open=True) as (socket, peer):
        ways: dict[str, Any] = {
            "send": lambda: socket.send(b"a message"),
            "send_eof": socket.send_eof,
            "aclose": socket.writable.aclose,
            "abort": socket.writable.abort,
            "close": socket.close,
        }
        async with calling() as calls:
            await calls.begin(**{name: ways[name] for name in order})
        try:
            got, reset = await peer.receive_all(), False
        except ConnectionResetError:
            got, reset = b"", True
        await socket.close()
        error = socket.closed.exception()
        assert (error is not None) == reset, (calls.outcomes, got, error)
        if calls.outcomes.get("send", "") is None and not reset:
            assert got == b"a message"
        if "close" in order:
            assert calls.outcomes["close"] is None


@needs_poll
@pytest.mark.parametrize("ending", ["send_eof", "aclose", "send"])
async def test_a_call_that_finds_a_reset_raises_it_even_during_a_close(ending: str) -> None:
    async with connected() as (socket, peer):
        ways: dict[str, Any] = {
            "send_eof": socket.send_eof,
            "aclose": socket.writable.aclose,
            "send": lambda: socket.send(b"x"),
        }
        peer.rst()
        arrived(socket, select.POLLERR)
        async with calling() as calls:
            await calls.begin(**{ending: ways[ending], "close": socket.close})
        if socket.closed.exception() is None:  # close() was first, and nothing was lost
            assert calls.outcomes[ending] in (ClosedError, None)
        else:
            assert calls.outcomes[ending] is BrokenError
        assert calls.outcomes["close"] is None


async def test_an_end_that_a_reset_prevents_is_an_error() -> None:
    async with connected(receive_buffer=4096) as (socket, peer):
        async with calling() as calls:
            await calls.begin(send=lambda: socket.send(bytes(BIG)))
            await calls.begin(aclose=socket.writable.aclose)
            peer.rst()
        assert calls.outcomes == {"send": BrokenError, "aclose": BrokenError}
        await socket.writable.aclose()  # no error again: the failure was raised already
        with pytest.raises(BrokenError):
            await socket.send_eof()
