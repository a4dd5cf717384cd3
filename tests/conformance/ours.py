"""Runs the client's part of a scenario on this package. worker.js does the same for Workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from anyio_connect import Socket, SocketError, connect
from conformance.peer import told
from conformance.steps import PENDING

#: The names of options in Workers, and ours. Other names are passed on unchanged.
_OPTIONS = {
    "secureTransport": "secure_transport",
    "allowHalfOpen": "allow_half_open",
    "expectedServerHostname": "expected_server_hostname",
    "preventClose": "prevent_close",
    "preventAbort": "prevent_abort",
    "preventCancel": "prevent_cancel",
}

#: After this number of turns of the event loop, a call that was begun has either ended or waits.
_TURNS = 10


class _Call:
    """A call in its own task, and its outcome."""

    def __init__(self, function: Callable[[], Awaitable[str]]) -> None:
        self._function = function
        self._over = anyio.Event()
        self.outcome = PENDING
        self.detail = ""

    async def run(self) -> None:
        try:
            self.outcome = await self._function()
        except anyio.EndOfStream:
            self.outcome = "eof"
        except (SocketError, anyio.BusyResourceError, TypeError) as exc:
            self.outcome = "error"
            self.detail = repr(exc)
        self._over.set()

    async def wait(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._over.wait()


class _Client:
    """One socket."""

    def __init__(self, socket: Socket, others: Mapping[str, _Client]) -> None:
        self.socket = socket
        self.others = others
        self.begun: dict[str, _Call] = {}

    async def perform(self, verb: str, rest: str) -> str:
        socket = self.socket
        match verb:
            case "read":
                return await self._read(int(rest or 1))
            case "take":
                return told(await socket.readable.receive(int(rest)))
            case "write":
                await socket.writable.send(rest.encode())
            case "write-str":
                await socket.writable.send(rest)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            case "write-view":
                await socket.writable.send(memoryview(b"hi").cast("H"))
            case "flood":
                await socket.writable.send(bytes(int(rest)))
            case "end":
                await socket.writable.aclose()
            case "abort":
                await socket.writable.abort("enough")
            case "cancel":
                await socket.readable.aclose()
            case "pipe":
                await self._pipe(*rest.split())
            case "close":
                await socket.close()
            case "opened":
                await socket.opened
            case "closed":
                await socket.closed
            case "info":
                info = await socket.opened
                return getattr(info, {"alpn": "alpn"}.get(rest, f"{rest}_address")) or "none"
            case "upgraded":
                return str(socket.upgraded).lower()
            case "secure":
                return socket.secure_transport
            case _:
                raise AssertionError(f"no such step: {verb}")
        return "ok"

    async def _pipe(self, target: str = "", *options: str) -> None:
        into = self.others[target] if target else self
        true = {_OPTIONS[option]: True for option in options}
        await self.socket.readable.pipe_to(into.socket.writable, **true)

    async def _read(self, count: int) -> str:
        data = b""
        while len(data) < count:
            try:
                data += await self.socket.readable.receive()
            except anyio.EndOfStream:
                if not data:
                    raise
                return f"{told(data)} then eof"
        return told(data)


class Scenario:
    """The sockets of one scenario, step by step, like the class of that name in worker.js."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self._clients: dict[str, _Client] = {}

    @classmethod
    @asynccontextmanager
    async def begun(cls) -> AsyncIterator[Scenario]:
        async with anyio.create_task_group() as group:
            scenario = cls(group)
            yield scenario
            group.cancel_scope.cancel()
        for client in scenario._clients.values():
            with anyio.CancelScope() as scope:
                scope.cancel()  # do not wait
                await client.socket.close()

    async def step(
        self, *, verb: str, rest: str, which: str, mode: str, wait: float, connect: dict[str, Any]
    ) -> tuple[str, str]:
        """Do one step; return its outcome, and more details for people."""
        if verb in ("connect", "startTls"):
            return self._new_socket(verb, which, connect)
        client = self._clients[which]
        key = f"{verb} {rest}".strip()
        call = client.begun.get(key)
        if call is None or mode == "begin":
            call = client.begun[key] = _Call(lambda: client.perform(verb, rest))
            self._group.start_soon(call.run)
        if mode == "begin":
            for _ in range(_TURNS):
                await checkpoint()
            return "begun", ""
        await call.wait(wait)
        if call.outcome != PENDING:
            del client.begun[key]
        return call.outcome, call.detail

    def _new_socket(self, verb: str, which: str, arguments: dict[str, Any]) -> tuple[str, str]:
        given: dict[str, Any] = arguments["options"]
        options = {_OPTIONS.get(key, key): value for key, value in given.items()}
        try:
            if verb == "startTls":
                now = self._clients["now"]
                socket = now.socket.start_tls(**options)
                self._clients["old"] = now
                self._begin_opening(socket)
            else:
                address: Any = arguments["address"]
                if isinstance(address, dict):
                    address = address.get("hostname"), address.get("port")
                socket = connect(address, task_group=self._group, **options)
        except (SocketError, TypeError) as exc:
            return "throws", repr(exc)
        self._clients[which] = _Client(socket, self._clients)
        return "ok", ""

    def _begin_opening(self, socket: Socket) -> None:
        """In Workers the handshake begins by itself. Here a task has to wait for it."""

        async def wait() -> str:
            await socket.opened
            return "ok"

        self._group.start_soon(_Call(wait).run)
