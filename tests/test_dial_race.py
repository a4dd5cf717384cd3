"""The addresses of a name are judged and raced, and one connection is kept."""

from __future__ import annotations

import asyncio
import errno
import socket as stdlib
import time
from contextlib import nullcontext, suppress
from itertools import pairwise
from typing import Any

import anyio
import pytest

from anyio_connect import (
    AddressNotAllowedError,
    AddressPolicy,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    RefusedError,
    Socket,
    _dial,
    _judging,
    _lookup,
    _route,
    _tcp_connect,
    connect,
)
from support.names import LOOPBACK, Names
from support.peers import full, listening, refusing_address


def endpoints(*hosts: str) -> list[_lookup.Endpoint]:
    return [
        _lookup.Endpoint(stdlib.AF_INET6 if ":" in host else stdlib.AF_INET, (host, 1))
        for host in hosts
    ]


@pytest.mark.parametrize(
    ("given", "raced"),
    [
        (["a", "b"], ["a", "b"]),
        ([":1", ":2", "a", "b"], [":1", "a", ":2", "b"]),
        (["a", "b", ":1"], ["a", ":1", "b"]),
        ([":1", "a", "b", "c"], [":1", "a", "b", "c"]),
        (["a"], ["a"]),
    ],
)
def test_families_alternate(given: list[str], raced: list[str]) -> None:
    assert _dial._interleave(endpoints(*given)) == endpoints(*raced)


async def test_a_refused_address_starts_the_next_at_once(names: Names) -> None:
    connector = Connector(happy_eyeballs_delay=3600)
    async with listening() as listener:
        names["host.test"] = [refusing_address(), refusing_address(), listener.address]
        with anyio.fail_after(30):
            async with connector.connect("host.test:1") as socket:
                info = await socket.opened
        assert info.remote_address == "{}:{}".format(*listener.address)


async def test_a_silent_address_does_not_hold_up_the_next(names: Names) -> None:
    connector = Connector(happy_eyeballs_delay=0.01)
    async with full() as silent, listening() as listener:
        names["host.test"] = [silent.address, listener.address]
        with anyio.fail_after(30):
            async with connector.connect("host.test:1") as socket:
                info = await socket.opened
        assert info.remote_address == "{}:{}".format(*listener.address)


async def test_an_address_that_is_listed_twice_is_tried_once(names: Names) -> None:
    names["host.test"] = [refusing_address()] * 2
    with pytest.raises(RefusedError) as caught:
        await connect("host.test:1").opened
    assert len(caught.value.attempts) == 1


async def test_one_of_several_winners_is_kept(names: Names) -> None:
    connector = Connector(happy_eyeballs_delay=0)
    async with listening() as first, listening() as second, listening() as third:
        names["host.test"] = [first.address, second.address, third.address]
        async with connector.connect("host.test:1") as socket:
            info = await socket.opened
            assert info.remote_address in {
                "{}:{}".format(*listener.address) for listener in (first, second, third)
            }


async def test_the_second_winner_is_reset(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both attempts succeed before either of them can cancel the other."""
    real, made, both = _tcp_connect.connect, list[_lookup.Endpoint](), anyio.Event()

    async def connect_both(endpoint: _lookup.Endpoint, *how: Any) -> Any:
        transport = await real(endpoint, *how)
        made.append(endpoint)
        if len(made) == 2:
            both.set()
        with anyio.CancelScope(shield=True):
            await both.wait()
        return transport

    monkeypatch.setattr(_dial, "connect", connect_both)
    connector = Connector(happy_eyeballs_delay=0)
    async with listening() as first, listening() as second:
        names["host.test"] = [first.address, second.address]
        async with connector.connect("host.test:1") as socket:
            won = (await socket.opened).remote_address
            assert len(made) == 2
            for listener in (first, second):
                peer = await listener.accept()
                if won == "{}:{}".format(*listener.address):
                    await peer.send(b"1")
                    assert await socket.receive() == b"1"
                else:
                    with pytest.raises(ConnectionResetError):
                        await peer.receive()


def test_the_delay_is_that_of_the_rfc() -> None:
    assert Connector().happy_eyeballs_delay == 0.25
    assert _route.Route().happy_eyeballs_delay == 0.25


@pytest.mark.parametrize("delay", [float("inf"), 1.7e308, 10**308, 0, 0.0])
async def test_every_valid_delay_works(delay: float, names: Names) -> None:
    connector = Connector(happy_eyeballs_delay=delay)
    async with listening() as listener:
        names["host.test"] = [refusing_address(), refusing_address(), listener.address]
        async with connector.connect("host.test:1") as socket:
            assert (await socket.opened).remote_address == "{}:{}".format(*listener.address)


# --- many addresses


MANY = [(f"127.{n >> 16}.{n >> 8 & 255}.{n & 255}", 1) for n in range(1, 4001)]


async def test_at_most_64_addresses_of_a_name_are_dialled(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    class Counting(stdlib.socket):
        def connect(self, address: Any, /) -> None:
            nonlocal made
            made += 1
            raise OSError(errno.EHOSTUNREACH, "no way")

    monkeypatch.setattr("anyio_connect._tcp_connect.socket.socket", Counting)
    names["host.test"] = MANY
    with pytest.raises(ConnectError) as caught:
        await connect("host.test:1").opened
    assert made == len(caught.value.attempts) == _dial.MOST_ADDRESSES
    message = str(caught.value)
    assert "all 64 addresses failed" in message
    assert "and 56 more" in message
    assert "3936 more addresses were left out" in message
    assert len(message) < 1000


async def test_both_families_are_among_the_64_addresses(names: Names) -> None:
    async with listening() as listener:
        names["host.test"] = [*((f"2001:db8::{n:x}", 1) for n in range(1000)), listener.address]
        connector = Connector(LOOPBACK)
        async with connector.connect("host.test:1") as socket:
            assert (await socket.opened).remote_address == "{}:{}".format(*listener.address)


async def test_other_tasks_run_while_addresses_are_judged(names: Names) -> None:
    judged = 0
    seen: list[int] = []

    class Slow(AddressPolicy):
        def refusal(self, address: object, port: int) -> str | None:
            nonlocal judged
            judged += 1
            return "no" * 10_000

    async def look() -> None:
        while True:
            seen.append(judged)
            await anyio.lowlevel.checkpoint()

    names["host.test"] = MANY
    async with anyio.create_task_group() as group:
        group.start_soon(look)
        with pytest.raises(AddressNotAllowedError) as caught:
            await Connector(Slow()).connect("host.test:1").opened
        group.cancel_scope.cancel()
    seen.append(judged)
    assert judged == _dial.MOST_ADDRESSES
    assert max(later - earlier for earlier, later in pairwise(seen)) <= 3
    assert "and 56 more; 3936 more addresses were left out" in str(caught.value)
    assert len(str(caught.value)) < 6000


async def test_other_tasks_run_while_a_chain_of_policies_judges(names: Names) -> None:
    judged = 0
    seen: list[int] = []

    class Counting(AddressPolicy):
        def refusal(self, address: object, port: int) -> str | None:
            nonlocal judged
            judged += 1
            return None

    async def look() -> None:
        while True:
            seen.append(judged)
            await anyio.lowlevel.checkpoint()

    chain = AddressPolicy(also=tuple(Counting() for _ in range(1000)))
    async with listening() as listener, anyio.create_task_group() as group:
        names["host.test"] = [listener.address]
        group.start_soon(look)
        async with Connector(chain).connect("host.test:1"):
            pass
        async with Connector(chain).connect(listener.address):
            pass
        denied = chain & AddressPolicy(deny=["127.0.0.1"])
        with pytest.raises(AddressNotAllowedError, match="in deny"):
            await Connector(denied).connect("host.test:1").opened
        group.cancel_scope.cancel()
    seen.append(judged)
    assert judged == 6000  # by name 2 times, by address 3 times, denied once
    assert max(later - earlier for earlier, later in pairwise(seen)) <= 3 * _judging._AT_A_TIME


async def test_a_time_limit_ends_the_judging(names: Names) -> None:
    class Slow(AddressPolicy):
        def refusal(self, address: object, port: int) -> str | None:
            time.sleep(0.01)
            return None

    names["host.test"] = MANY
    socket = Connector(Slow()).connect("host.test:1", connect_timeout=0.03)
    with pytest.raises(ConnectTimeoutError):
        await socket.opened


# --- a cancelled race


async def test_a_race_cancelled_at_any_moment_leaves_nothing(names: Names) -> None:
    """Cancel at the k-th task switch, for every k until the dial succeeds."""
    connector = Connector(happy_eyeballs_delay=0)
    async with listening() as first, listening() as second:
        names["host.test"] = [refusing_address(), first.address, second.address]
        for switches in range(200):
            socket = connector.connect("host.test:1")
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def cancel(scope: anyio.CancelScope, switches: int) -> None:
                        for _ in range(switches):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()

                    group.start_soon(cancel, scope, switches)
                    await socket.opened
                    group.cancel_scope.cancel()
            if socket.opened.done():
                await socket.close()
                if not scope.cancel_called:
                    break
        else:
            pytest.fail("the dial never succeeded")


@pytest.mark.usefixtures("from_afar")
@pytest.mark.parametrize("native", [False, True], ids=["by scope", "by task.cancel()"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_dial_that_is_cancelled_as_it_connects_leaves_nothing(
    count: int,
    moment: str,
    native: bool,
    names: Names,
    monkeypatch: pytest.MonkeyPatch,
    anyio_backend_name: str,
) -> None:
    """Cancel before the n-th wait for a socket, or when it ends."""
    if native and anyio_backend_name == "trio":
        return  # trio has no task.cancel()
    connector = Connector(LOOPBACK, happy_eyeballs_delay=0, max_connections=1)
    real, waits, number = anyio.wait_writable, 0, 0
    scope = anyio.CancelScope()
    task: Any = None

    async def wait_writable(sock: stdlib.socket) -> None:
        nonlocal waits
        waits += 1
        mine = waits == number
        if mine and moment == "before":
            give_up()
        await real(sock)
        if mine and moment == "after":
            give_up()

    def give_up() -> None:
        if native:
            task.cancel()
        else:
            scope.cancel()

    async def dial(socket: Socket) -> None:
        nonlocal task
        if native:
            task = asyncio.current_task()
        with scope, suppress(asyncio.CancelledError) if native else nullcontext():
            await socket.opened

    monkeypatch.setattr(anyio, "wait_writable", wait_writable)
    async with listening() as one, listening() as two:
        addresses = [one.address, two.address, refusing_address()]
        names["host.test"] = addresses[:count]
        for number in range(1, count + 1):
            waits, task = 0, None
            scope = anyio.CancelScope()
            socket = connector.connect("host.test:1")
            async with anyio.create_task_group() as group:
                group.start_soon(dial, socket)
            assert waits >= min(number, 2)  # if an attempt succeeds, there may be no third wait
            if socket.opened.done():  # the race was over before
                assert socket.opened.exception() is None
            else:
                waits = -100
                with anyio.fail_after(10):
                    await socket.opened  # a new attempt gets the slot
            await socket.close()
            assert socket.closed.exception() is None
