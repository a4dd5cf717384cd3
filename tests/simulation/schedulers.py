"""asyncio and trio, unchanged except that they wait in the simulated network.

Both wait for descriptors with epoll. Here that is :class:`~.polling.Driver`. So all code of
asyncio, trio and AnyIO for sockets runs, with the network's time.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import select
import selectors
from asyncio import selector_events
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio
import trio

from .network import Network
from .polling import Driver, Epoll

#: asyncio; asyncio in the order of uvloop; trio.
SCHEDULERS = ("asyncio", "uvloop", "trio")


def run(scheduler: str, network: Network, main: Callable[[], Awaitable[None]], seed: int) -> None:
    """Run ``main`` to its end."""
    if scheduler == "trio":
        with _trio_beneath(network, seed):
            options: dict[str, Any] = {"clock": _Clock(network)}
            anyio.run(main, backend="trio", backend_options=options)
        return
    loop = {"asyncio": _Loop, "uvloop": _LikeUvloop}[scheduler]
    options = {"loop_factory": lambda: loop(network)}
    anyio.run(main, backend="asyncio", backend_options=options)


# --- asyncio


class _Selector(selectors.EpollSelector):
    def __init__(self, network: Network) -> None:
        # EpollSelector makes its epoll with this.
        self._selector_cls = lambda: Driver(network)
        super().__init__()


class _Task(asyncio.Task[Any]):
    """AnyIO keeps tasks in sets. Their order must not depend on their addresses in memory."""

    def __init__(self, number: int, *args: Any, **kwargs: Any) -> None:
        self._number = number
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number


class _OnNetwork(selector_events.BaseSelectorEventLoop):
    def __init__(self, network: Network) -> None:
        self._network = network
        numbers = itertools.count()
        super().__init__(_Selector(network))

        def make(loop: Any, coro: Any, **kwargs: Any) -> Any:
            return _Task(next(numbers), coro, loop=loop, **kwargs)

        self.set_task_factory(make)

    def time(self) -> float:
        return self._network.now

    # No thread wakes this loop, so it needs no pipe to itself.

    def _make_self_pipe(self) -> None:
        pass

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class _Loop(_OnNetwork, asyncio.SelectorEventLoop):
    pass


class _LikeUvloop(_OnNetwork):
    """Like uvloop, it runs the callbacks of sockets in the poll, before those that were due.

    It is not a SelectorEventLoop, so that the package treats it like uvloop.
    """

    def _process_events(self, event_list: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, mask in event_list:
            for wanted, handle in zip((1, 2), key.data, strict=True):  # a reader, a writer
                if mask & wanted and handle is not None and not handle.cancelled():
                    handle._run()


# --- trio


class _Clock(trio.abc.Clock):
    def __init__(self, network: Network) -> None:
        self._network = network

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._network.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self._network.now


class _Wakeup:
    """A descriptor that becomes readable when it is woken: trio's pipe to itself."""

    def __init__(self, network: Network) -> None:
        self.watchers: list[Epoll] = []
        self._network = network
        self._woken = False
        self._fd = network.open(self)

    def fileno(self) -> int:
        return self._fd

    def flags(self) -> int:
        return select.EPOLLIN if self._woken else 0

    def wake(self) -> None:
        self._woken = True
        self._network.wake(self, select.EPOLLIN)

    def drain(self) -> None:
        self._woken = False

    def close(self) -> None:
        self._network.close(self._fd)


@contextmanager
def _trio_beneath(network: Network, seed: int) -> Iterator[None]:
    """Make the next run of trio wait in the network, in the order that the seed gives."""
    internals: Any = trio._core._run
    core: Any = trio._core
    pair = core._wakeup_socketpair.WakeupSocketpair
    manager = internals.TheIOManager

    def make() -> Any:
        return manager(epoll=Driver(network))  # attrs omits the underscore

    with ExitStack() as undo:

        def put(where: Any, **values: Any) -> None:
            for name, value in values.items():
                undo.callback(setattr, where, name, getattr(where, name))
                setattr(where, name, value)

        put(
            internals,
            TheIOManager=make,
            _ALLOW_DETERMINISTIC_SCHEDULING=True,
            _r=random.Random(seed),
        )
        put(
            pair,
            __init__=lambda self: setattr(self, "wakeup_sock", _Wakeup(network)),
            wakeup_thread_and_signal_safe=lambda self: self.wakeup_sock.wake(),
            wakeup_on_signals=lambda self: None,
            drain=lambda self: self.wakeup_sock.drain(),
            close=lambda self: self.wakeup_sock.close(),
        )
        yield
