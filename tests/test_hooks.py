"""The functions that a Connector takes: each is called on every way, and may do anything.

What each is for, other tests show: test_resolver, test_prepare, test_dialer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any

import anyio
import pytest

from anyio_connect import AddressPolicy, ConnectError, Connector, InvalidOptionError
from support.connectors import NAMES, VALUES
from support.errors import is_copy
from support.peers import listening
from support.proxies import http, proxying

HOOKS = [name for name in NAMES if callable(VALUES.get(name))]
#: Those that have no effect with a dialer.
REFUSED = {"prepare"}
each_hook = pytest.mark.parametrize("hook", HOOKS)


def test_each_value_of_a_connector_has_an_example() -> None:
    assert [*VALUES] == NAMES, (
        "add to VALUES of tests/support/connectors.py a value that is not the default, in the "
        "order of Connector; if it is a function, it has to work"
    )
    for name, value in VALUES.items():
        assert getattr(Connector(**{name: value}), name) == value
        assert value != getattr(Connector(), name)


class Stop(BaseException):
    """No subclass of Exception."""


def watched(hook: str, calls: list[tuple[Any, ...]]) -> Callable[..., Any]:
    """The function of VALUES, which also notes each call."""
    function = VALUES[hook]

    async def waits(*args: Any) -> Any:
        calls.append(args)
        return await function(*args)

    def returns(*args: Any) -> Any:
        calls.append(args)
        return function(*args)

    return waits if iscoroutinefunction(function) else returns


def connector_with(hook: str, function: object, **values: Any) -> Connector:
    return Connector(**{"resolver": VALUES["resolver"], **values, hook: function})


async def opened(connector: Connector, address: tuple[str, int]) -> None:
    async with connector.connect(address) as socket:
        await socket.opened


async def for_a_library(connector: Connector, address: tuple[str, int]) -> None:
    (await connector.connect_socket(address)).close()


async def in_a_thread(connector: Connector, address: tuple[str, int]) -> None:
    sock = await anyio.to_thread.run_sync(connector.connect_socket_blocking, address)
    sock.close()


#: Each way: what connects, to an IP address or to a name, and further values of the Connector.
WAYS: dict[str, tuple[Callable[[Connector, tuple[str, int]], Awaitable[None]], str, Any]] = {
    "to an IP address": (opened, "127.0.0.1", {}),
    "to a name": (opened, "host.test", {}),
    "with a policy": (opened, "host.test", {"policy": AddressPolicy(deny=["192.0.2.1"])}),
    "after a wait for a slot": (opened, "127.0.0.1", {"max_connections": 1}),
    "connect_socket": (for_a_library, "host.test", {}),
    "connect_socket_blocking": (in_a_thread, "host.test", {}),
}


@pytest.mark.parametrize("way", WAYS)
@each_hook
async def test_each_function_is_called_on_each_way(hook: str, way: str) -> None:
    calls: list[tuple[Any, ...]] = []
    connect_to, host, values = WAYS[way]
    async with listening() as listener:
        connector = connector_with(hook, watched(hook, calls), **values)
        await connect_to(connector, (host, listener.address[1]))
    if hook == "resolver" and host == "127.0.0.1":
        assert not calls
    else:
        assert calls, f"Connector({hook}=) has no effect on a connection {way}"


@each_hook
async def test_each_function_is_called_on_the_way_to_a_proxy_or_refused(hook: str) -> None:
    calls: list[tuple[Any, ...]] = []
    async with proxying(http()) as proxy:
        url = f"http://proxy.test:{proxy.port}"
        if hook == "dialer":
            with pytest.raises(InvalidOptionError, match="proxy and dialer cannot be combined"):
                connector_with(hook, watched(hook, calls), proxy=url)
            return
        connector = connector_with(hook, watched(hook, calls), proxy=url)
        await opened(connector, ("db.example", 80))
    assert calls, f"Connector({hook}=) has no effect on the way to a proxy: see _tunnel"


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "dialer"])
async def test_each_function_is_called_or_refused_with_a_dialer(hook: str) -> None:
    calls: list[tuple[Any, ...]] = []
    # The policy judges addresses. Otherwise, the dialer resolves names itself.
    values = {"dialer": VALUES["dialer"], "policy": VALUES["policy"]}
    if hook in REFUSED:
        with pytest.raises(InvalidOptionError, match=f"{hook}=.* has no effect with a dialer"):
            connector_with(hook, watched(hook, calls), **values)
        return
    async with listening() as listener:
        connector = connector_with(hook, watched(hook, calls), **values)
        await opened(connector, ("host.test", listener.address[1]))
    assert calls, f"Connector({hook}=) has no effect with a dialer: call it, or refuse it"


async def failing(hook: str, function: object) -> ConnectError:
    """The error of a connection with that function."""
    async with listening() as listener:
        host = "host.test" if hook == "resolver" else "127.0.0.1"
        socket = connector_with(hook, function).connect((host, listener.address[1]))
        with pytest.raises(ConnectError) as caught:
            await socket.opened
        assert is_copy(socket.closed.exception(), caught.value)
    return caught.value


@each_hook
async def test_what_a_function_raises_is_the_cause_of_a_connect_error(hook: str) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError("by a user")

    error = await failing(hook, fail)
    assert f"the Connector's {hook} raised ZeroDivisionError: by a user" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)


@each_hook
async def test_a_function_that_should_be_async_or_should_not_is_told(hook: str) -> None:
    async def waits(*_: object) -> None:
        raise AssertionError

    # A lambda hides from the Connector whether it is async.
    wrong = (lambda *_: None) if iscoroutinefunction(VALUES[hook]) else (lambda *_: waits())
    error = await failing(hook, wrong)
    keyword = "async def" if iscoroutinefunction(VALUES[hook]) else "def"
    assert f"the Connector's {hook} " in str(error)
    assert f"write it with '{keyword}'" in str(error)


@each_hook
async def test_what_is_no_exception_passes(hook: str) -> None:
    def stop(*_: object) -> Any:
        raise Stop

    async with listening() as listener:
        host = "host.test" if hook == "resolver" else "127.0.0.1"
        socket = connector_with(hook, stop).connect((host, listener.address[1]))
        with pytest.raises(Stop):
            await socket.opened
        await socket.close()
