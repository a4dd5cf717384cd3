"""Faults of networks and machines, injected.

Nothing hangs, nothing leaks, and each failure is raised as the right error, with its cause.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import signal
import socket as stdlib
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeAlias

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_connect import (
    BrokenError,
    ClosedError,
    ConnectError,
    ConnectTimeoutError,
    ResolveError,
    Socket,
    SocketError,
    TLSError,
    _lookup,
    _tls_contexts,
    connect,
)
from anyio_connect._lifecycle import Outbound
from support import guards
from support.errors import is_copy
from support.peers import Listener, Peer, full_backlog, listening
from support.sockets import arrived, connected, needs_poll, raw, stuck
from support.tls_peers import (
    NAME,
    TLS12,
    TLS13,
    TLSPeer,
    authority,
    client_context,
    server_context,
)

Fault: TypeAlias = Literal["reset", "end", "close", "stall"]

#: What both sides send at the same time, in the middle of a conversation.
MUCH = bytes(range(256)) * 512


@dataclass(frozen=True)
class Kind:
    """A kind of socket: which TLS it uses, and whether it may be half-open."""

    version: ssl.TLSVersion | None = None
    starttls: bool = False
    half_open: bool = False

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"allow_half_open": self.half_open}
        if self.version is not None:
            how = "starttls" if self.starttls else "on"
            options |= {"secure_transport": how, "sni": NAME, "ssl_context": client_context()}
        return options


KINDS = {
    "tcp": Kind(),
    "tcp-half-open": Kind(half_open=True),
    "tls-1.2": Kind(TLS12),
    "tls-1.3": Kind(TLS13),
    "tls-1.3-half-open": Kind(TLS13, half_open=True),
    "starttls": Kind(TLS13, starttls=True),
}


# --- at every moment of a conversation


class Conversation:
    """Our socket talks to a server through a relay, which causes a fault.

    The fault comes at segment number ``at``, counted in both directions. No segment is longer
    than ``largest``.
    """

    def __init__(
        self,
        kind: Kind,
        fault: Fault,
        at: float = float("inf"),
        largest: int = 65536,
        much: bytes = MUCH,
    ) -> None:
        self.kind = kind
        self.context = None if kind.version is None else server_context(kind.version)
        self.fault = fault
        self.at = at
        self.largest = largest
        self.much = much
        self.segments = 0
        self.chunks: list[int] = []  # the sizes in which our side received ``much``
        self.stalled = anyio.Event()
        self.errors: list[Exception] = []
        self.received = 0
        self.done = False

    @property
    def faulty(self) -> bool:
        return self.segments >= self.at

    async def run(self) -> None:
        async with (
            listening() as outer,
            listening() as inner,
            anyio.create_task_group() as group,
        ):

            async def serve() -> None:
                near = await outer.accept()
                far = Peer(stdlib.create_connection(inner.address))
                inner.peers.append(far)
                group.start_soon(self.server, await inner.accept())
                await self.relay(near, far)
                if self.fault != "stall":
                    far.close()

            group.start_soon(serve)
            sockets = [connect(outer.address, **self.kind.options())]
            with anyio.CancelScope() as scope:

                async def give_up() -> None:
                    await self.stalled.wait()
                    # Before that, everything else goes on as far as it can.
                    for _ in range(20):
                        await checkpoint()
                    scope.cancel()

                group.start_soon(give_up)
                await self.catch(self.client, sockets)
            with anyio.fail_after(5):
                await sockets[-1].close()
            group.cancel_scope.cancel()
        for socket in sockets:
            assert socket.opened.done()
            assert socket.closed.done()

    async def catch(self, call: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            await call(*args)
        except (SocketError, anyio.EndOfStream) as exc:
            self.errors.append(exc)

    async def client(self, sockets: list[Socket]) -> None:
        socket = sockets[0]
        await socket.opened
        if self.kind.starttls:
            await socket.send(b"now\n")
            assert await socket.receive(1) == b"!"
            socket = socket.start_tls()
            sockets.append(socket)
            await socket.opened
        await socket.send(b"hello\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += await socket.receive()
        assert answer == b"welcome\n"
        async with anyio.create_task_group() as group:
            group.start_soon(self.catch, socket.send, self.much)
            group.start_soon(self.catch, self.receive_much, socket)
        if self.errors:
            return
        await socket.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()
        self.done = True

    async def receive_much(self, socket: Socket) -> None:
        while self.received < len(self.much):
            self.chunks.append(len(await socket.receive()))
            self.received += self.chunks[-1]

    async def server(self, peer: Peer) -> None:
        with suppress(OSError, ssl.SSLError, anyio.EndOfStream, anyio.ClosedResourceError):
            if self.context is None:
                await self.serve(peer.send, peer.receive)
            else:
                if self.kind.starttls:
                    now = b""
                    while not now.endswith(b"\n"):
                        chunk = await peer.receive(4 - len(now))
                        if not chunk:
                            return
                        now += chunk
                    await peer.send(b"!")
                tls = TLSPeer(peer, self.context)
                await tls.shake()
                await self.serve(tls.send, tls.receive)
                await peer.send(tls.server.close_notify())
            peer.fin()

    async def serve(
        self, send: Callable[[bytes], Awaitable[None]], receive: Callable[[], Awaitable[bytes]]
    ) -> None:
        hello = b""
        while not hello.endswith(b"\n"):
            chunk = await receive()
            if not chunk:
                return
            hello += chunk
        await send(b"welcome\n")
        if not await receive():  # so that "welcome" arrives before ``much``
            return
        lost: list[Exception] = []

        async def send_much() -> None:
            try:
                await send(self.much)
            except OSError as exc:
                lost.append(exc)

        async with anyio.create_task_group() as group:
            group.start_soon(send_much)
            try:
                while await receive():
                    pass
            except (OSError, ssl.SSLError, anyio.EndOfStream) as exc:
                lost.append(exc)
        for error in lost:
            raise error

    async def relay(self, near: Peer, far: Peer) -> None:
        for peer in (near, far):
            peer.sock.setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)
        async with anyio.create_task_group() as group:

            async def one_way(source: Peer, sink: Peer) -> None:
                with suppress(OSError, anyio.ClosedResourceError):
                    while data := await source.receive(self.largest):
                        self.segments += 1
                        if self.faulty:
                            if self.fault == "reset":
                                near.rst()
                            elif self.fault == "close":
                                near.close()  # causes a reset if data is unread
                            elif self.fault == "end":
                                near.fin()
                            else:
                                self.stalled.set()
                            group.cancel_scope.cancel()
                            return
                        await sink.send(data)
                        if self.largest == 1:  # so that few receives get more than one byte
                            for _ in range(3):
                                await checkpoint()
                    sink.fin()

            group.start_soon(one_way, near, far)
            group.start_soon(one_way, far, near)
        if self.faulty and self.fault == "end":
            with suppress(OSError, anyio.ClosedResourceError):
                while await near.receive():  # it still receives, but sends nothing more
                    pass


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["reset", "end", "close", "stall"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_fault_at_every_moment_of_a_conversation(kind: str, fault: Fault) -> None:
    version = KINDS[kind].version
    at = 0
    while True:
        at += 1
        conversation = Conversation(KINDS[kind], fault, at, largest=16384 if at > 8 else 65536)
        with anyio.fail_after(20):
            await conversation.run()
        if conversation.done:
            break
        if fault == "stall":
            continue  # a stall causes no error
        assert conversation.errors, f"at segment {at}"
        for error in conversation.errors:
            if isinstance(error, anyio.EndOfStream):
                # Over TLS, an end without close_notify is never a regular end.
                assert fault in ("end", "close")
                assert version is None or (KINDS[kind].starttls and at < 3)
            elif isinstance(error, TLSError):
                assert version is not None
            elif isinstance(error, ClosedError):
                # The other direction has reported the peer's end, which ended our side too.
                assert fault in ("end", "close")
                assert conversation.errors[0] is not error
            else:
                assert isinstance(error, BrokenError)
                # Without a reset, the connection breaks only if TLS finds it truncated.
                assert fault != "end" or version is not None
            if isinstance(error, SocketError):
                assert str(error)
    assert at > 4, "the conversation is too short"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_one_byte_at_a_time(kind: str) -> None:
    conversation = Conversation(KINDS[kind], "stall", largest=1, much=MUCH[:500])
    with anyio.fail_after(20):
        await conversation.run()
    assert conversation.done
    assert conversation.segments > 1000
    if KINDS[kind].version is None:  # over TLS, our side gets only whole records
        # Nearly all chunks have one byte as a rule, but loopback may deliver several at once.
        assert conversation.chunks.count(1) > 100


# --- no room

Then: TypeAlias = Literal["read", "cancelled", "closed", "close cancelled", "aborted", "reset"]


@asynccontextmanager
async def meeting(
    kind: Kind, buffer: int
) -> AsyncIterator[tuple[Socket, Peer, Callable[[], Awaitable[bytes]]]]:
    """An open socket with small buffers, its peer, and a function that receives at the peer."""
    async with listening(receive_buffer=buffer) as listener:
        socket = connect(listener.address, **kind.options())
        try:
            async with anyio.create_task_group() as group:

                async def open_it() -> None:
                    await socket.opened

                group.start_soon(open_it)
                peer = await listener.accept()
                tls = None
                if kind.version is not None and not kind.starttls:
                    tls = TLSPeer(peer, server_context(kind.version))
                    await tls.shake()
            raw(socket).setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, buffer)
            yield socket, peer, peer.receive if tls is None else tls.receive
        finally:
            await socket.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "then", ["read", "cancelled", "closed", "close cancelled", "aborted", "reset"]
)
@pytest.mark.parametrize("kind", ["tcp", "tls-1.2", "tls-1.3", "tls-1.3-half-open"])
async def test_a_window_of_zero(kind: str, then: Then) -> None:
    got, ended = b"", False
    outcome: list[BaseException | None] = []
    async with (
        meeting(KINDS[kind], 4096) as (socket, peer, receive),
        anyio.create_task_group() as group,
    ):
        scope = anyio.CancelScope()

        async def send() -> None:
            with scope:
                try:
                    await socket.send(MUCH)
                except BaseException as exc:
                    outcome.append(exc)
                    if not isinstance(exc, SocketError):
                        raise
                else:
                    outcome.append(None)

        async def read() -> None:
            nonlocal got, ended
            try:
                while data := await receive():
                    got += data
                ended = True
            except (ConnectionResetError, anyio.EndOfStream, ssl.SSLError):
                pass

        async def close() -> None:
            await socket.close()

        group.start_soon(send)
        with anyio.fail_after(5):
            await stuck(socket)
            if then == "read":
                group.start_soon(read)
                while not outcome:
                    await checkpoint()
                await socket.close()
            elif then == "cancelled":
                scope.cancel()
                while not outcome:
                    await checkpoint()
                with pytest.raises(BrokenError, match="cut short"):
                    await socket.send(b"more")
                await socket.close()
            elif then == "closed":
                group.start_soon(close)
                for _ in range(20):
                    await checkpoint()
                assert not outcome  # close() waits for the send
                assert not socket.closed.done()
                group.start_soon(read)
                await socket.closed
            elif then == "close cancelled":
                with anyio.CancelScope() as closing:
                    closing.cancel()
                    await socket.close()
                assert socket.closed.done()
            elif then == "aborted":
                await socket.writable.abort("no more")
            else:
                peer.rst()
            while not outcome:
                await checkpoint()
            if then not in ("read", "closed", "reset"):
                await read()
            while then in ("read", "closed") and not ended:
                await checkpoint()
    wanted: dict[Then, type[BaseException] | None] = {
        "read": None,
        "cancelled": anyio.get_cancelled_exc_class(),
        "closed": None,
        "close cancelled": ClosedError,
        "aborted": BrokenError,
        "reset": BrokenError,
    }
    found = outcome[0]
    assert (None if found is None else type(found)) is wanted[then]
    assert ended == (wanted[then] is None)
    assert got == MUCH if ended else MUCH.startswith(got) and len(got) < len(MUCH)


# --- errors of the kernel


class Faulty:
    """A socket with a method that fails."""

    def __init__(self, sock: stdlib.socket, method: str, error: OSError) -> None:
        self._sock = sock
        self._method = method
        self._error = error

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            return self._fail
        return getattr(self._sock, name)

    def _fail(self, *args: object) -> None:
        raise self._error


FROM_THE_KERNEL = [
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENOBUFS,
    errno.ENOMEM,
]


@pytest.mark.parametrize("number", FROM_THE_KERNEL, ids=errno.errorcode.__getitem__)
@pytest.mark.parametrize("method", ["recv", "send", "shutdown"])
async def test_a_system_call_that_fails(
    method: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected() as (socket, peer):
        await peer.send(b"data")
        error = OSError(number, os.strerror(number))
        transport: Any = socket._connection.transport
        monkeypatch.setattr(transport, "_sock", Faulty(raw(socket), method, error))
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "recv": socket.receive,
            "send": lambda: socket.send(b"x"),
            "shutdown": socket.send_eof,
        }
        with pytest.raises(BrokenError, match=os.strerror(number)) as caught:
            await calls[method]()
        assert any(is_copy(cause, error) for cause in causes(caught.value))
        assert isinstance(socket.closed.exception(), BrokenError)


def causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__


@contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """Cause a signal every millisecond; yield a function that returns how many there were."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("this system has no interval timers")
    count = 0

    def handler(*_: object) -> None:
        nonlocal count
        count += 1

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        yield lambda: count
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def test_signals_while_the_event_loop_waits() -> None:
    """EINTR is not an error, and no byte is lost (PEP 475)."""
    async with (
        meeting(KINDS["tcp"], 4096) as (socket, peer, receive),
        anyio.create_task_group() as group,
    ):
        received: list[bytes] = []

        async def receive_one() -> None:
            received.append(await socket.receive())

        group.start_soon(receive_one)
        group.start_soon(socket.send, MUCH)
        await stuck(socket)
        with signals() as count:
            # No task is ready, so the event loop is in its system call.
            while count() < 10:  # noqa: ASYNC110  # a signal sets no event
                await anyio.sleep(0.02)
            assert not received
            await peer.send(b"data")
            got = b""
            while len(got) < len(MUCH):
                got += await receive()
        assert got == MUCH
        while not received:
            await checkpoint()
        assert received == [b"data"]


async def test_signals_during_a_conversation() -> None:
    with signals() as count:
        while count() < 10:
            conversation = Conversation(KINDS["tls-1.3"], "stall")
            await conversation.run()
            assert conversation.done


# --- connecting


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Inside this context, no descriptor can be opened."""
    resource = pytest.importorskip("resource", reason="descriptors cannot be limited here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open("rb") as lowest:
        limit = lowest.fileno()  # all lower numbers are taken
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_descriptor_for_the_dial() -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        with no_descriptors(), pytest.raises(ConnectError, match="too many open files") as caught:
            await socket.opened
        assert any(getattr(exc, "errno", 0) == errno.EMFILE for exc in causes(caught.value))
        assert isinstance(socket.closed.exception(), ConnectError)
        async with connect(listener.address) as another:
            await another.send(b"there are again")


@needs_poll
async def test_no_descriptor_to_watch_with() -> None:
    """``closed`` settles as soon as a descriptor is free again."""
    async with connected() as (socket, peer), anyio.create_task_group() as group:

        async def watch() -> None:
            await socket.closed

        with no_descriptors():
            group.start_soon(watch)
            for _ in range(5):
                await checkpoint()
            peer.fin()
            arrived(socket, select.POLLRDHUP)
            for _ in range(20):
                await checkpoint()
            assert not socket.closed.done()
        with anyio.fail_after(10):
            await socket.closed


async def test_no_descriptor_for_the_authorities(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """OpenSSL ignores that: without our check, no certificate would be trusted from then on."""
    file = tmp_path / "authorities"
    authority().cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setattr(_tls_contexts, "_contexts", _tls_contexts.Contexts())
    async with listening() as listener:
        plain = connect(listener.address, secure_transport="starttls", sni=NAME)
        await plain.opened
        secure = plain.start_tls()
        with no_descriptors(), pytest.raises(TLSError, match=r"(?i)too many open files") as caught:
            await secure.opened
        assert any(getattr(exc, "errno", 0) == errno.EMFILE for exc in causes(caught.value))
        assert is_copy(secure.closed.exception(), secure.opened.exception())
        (await listener.accept()).close()

        async with anyio.create_task_group() as group:

            async def serve() -> None:
                await TLSPeer(await listener.accept(), server_context()).shake()

            group.start_soon(serve)
            async with connect(listener.address, secure_transport="on", sni=NAME):
                pass


class Refusing(stdlib.socket):
    """A socket that fails to connect, at once or a little later."""

    number: int
    at_once: bool

    def connect(self, address: Any, /) -> None:
        if self.at_once:
            raise OSError(self.number, os.strerror(self.number))
        raise BlockingIOError(errno.EINPROGRESS, "in progress")

    def getsockopt(self, *args: Any) -> Any:
        if args[:2] == (stdlib.SOL_SOCKET, stdlib.SO_ERROR):
            return self.number
        return super().getsockopt(*args)


@pytest.mark.parametrize(
    ("number", "at_once"),
    [
        pytest.param(number, at_once, id=f"{errno.errorcode[number]}-{when}")
        for number in FROM_THE_KERNEL
        for at_once, when in ((True, "at-once"), (False, "later"))
        # If it is reset later, the connection was made: see test_dial_at_once.py.
        if at_once or number != errno.ECONNRESET
    ],
)
async def test_a_dial_that_fails(
    number: int, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening() as listener:
        with monkeypatch.context() as patch:
            patch.setattr(Refusing, "number", number, raising=False)
            patch.setattr(Refusing, "at_once", at_once, raising=False)
            patch.setattr(stdlib, "socket", Refusing)
            socket = connect(listener.address)
            with pytest.raises(ConnectError, match="cannot connect to") as caught:
                await socket.opened
        assert number in [getattr(exc, "errno", None) for exc in causes(caught.value)]
        assert is_copy(socket.closed.exception(), caught.value)
        async with connect(listener.address):
            pass


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (stdlib.EAI_NONAME, stdlib.EAI_AGAIN, stdlib.EAI_FAIL):

        async def fail(*_: object, code: int = code, **__: object) -> None:
            raise stdlib.gaierror(code, "the resolver's words")

        monkeypatch.setattr(_lookup, "getaddrinfo", fail)
        socket = connect("name.example:80")
        with pytest.raises(ResolveError, match="the resolver's words"):
            await socket.opened
        assert isinstance(socket.closed.exception(), ResolveError)


async def test_a_resolver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    async def never(*args: object, **_: object) -> None:
        asked.append(args)
        await anyio.sleep_forever()

    monkeypatch.setattr(_lookup, "getaddrinfo", never)
    with pytest.raises(ConnectTimeoutError, match=r"name\.example"):
        await connect("name.example:80", connect_timeout=0.01).opened
    # After a cancellation, the socket is still pending, and the next task asks again.
    socket = connect("name.example:80")
    for _ in range(2):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def ask() -> None:
                    await socket.opened

                group.start_soon(ask)
                before = len(asked)
                while len(asked) == before:
                    await checkpoint()
                scope.cancel()
        assert not socket.opened.done()
    await socket.close()


# --- the end of the event loop


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tcp", "tls-1.3"])
def test_the_loop_ends_with_sockets_open(
    anyio_backend: tuple[str, dict[str, Any]], kind: str
) -> None:
    """The socket is freed like any other socket: with a warning, and no descriptor is left."""
    backend, options = anyio_backend
    kept: list[Any] = []
    before = guards.open_fds() if guards.CAN_LIST_FDS else None

    async def main() -> None:
        async with meeting_without_closing(KINDS[kind]) as socket:
            async with anyio.create_task_group() as group:

                async def wait() -> None:
                    await socket.receive()

                group.start_soon(wait)
                for _ in range(5):
                    await checkpoint()
                group.cancel_scope.cancel()
            kept.append(socket)

    def drop() -> None:
        kept.clear()
        gc.collect()  # asyncio's event loops hold the socket in a cycle of their own

    anyio.run(main, backend=backend, backend_options=options)
    with pytest.warns(ResourceWarning, match="unclosed"):
        drop()
    if before is not None:
        assert not guards.leaked_fds(before)


@asynccontextmanager
async def meeting_without_closing(kind: Kind) -> AsyncIterator[Socket]:
    async with listening() as listener, anyio.create_task_group() as group:
        socket = connect(listener.address, **kind.options())

        async def serve() -> None:
            peer = await listener.accept()
            if kind.version is not None:
                await TLSPeer(peer, server_context(kind.version)).shake()

        group.start_soon(serve)
        await socket.opened
        yield socket


class Mishap(Exception):  # noqa: N818  # not an error of the package
    """The exception that ends the program."""


Moment: TypeAlias = Literal["dial", "handshake", "send", "watch"]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["an exception", "cancelled", "left behind"])
@pytest.mark.parametrize("moment", ["dial", "handshake", "send", "watch"])
def test_the_loop_ends_during_an_operation(
    anyio_backend: tuple[str, dict[str, Any]], moment: Moment, ending: str
) -> None:
    """Nothing hangs. After ``async with``, no descriptor is left, and there is no warning."""
    backend, options = anyio_backend
    if ending == "left behind" and backend == "trio":
        pytest.skip("trio leaves no tasks behind")
    kept: list[Socket] = []
    before = guards.open_fds() if guards.CAN_LIST_FDS else None

    async def use(address: tuple[str, int]) -> None:
        secure = KINDS["tls-1.3"].options() if moment == "handshake" else {}
        kept.append(connect(address, **secure))
        async with kept[0] as socket:
            if moment == "send":
                await socket.send(MUCH * 64)
            await socket.closed

    async def until(listener: Listener) -> None:
        """Wait until the socket has come to ``moment``."""
        if moment == "dial":
            while not kept or kept[0]._connection._dialling is None:
                await checkpoint()
        else:
            await (await listener.accept()).receive(1) if moment != "watch" else None
            while moment == "send" and kept[0]._connection.state.outbound is not Outbound.SENDING:
                await checkpoint()
            while moment == "watch" and not (kept and kept[0].opened.done()):
                await checkpoint()
        for _ in range(20):
            await checkpoint()

    async def main() -> None:
        if ending == "left behind":
            tasks.append(asyncio.create_task(use(listener.address)))
            await until(listener)
            return
        async with anyio.create_task_group() as group:
            group.start_soon(use, listener.address)
            await until(listener)
            if ending == "an exception":
                raise Mishap
            group.cancel_scope.cancel()

    listener = Listener(receive_buffer=4096)  # outlives the event loop
    tasks: list[object] = []
    with ExitStack() as fillers, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if moment == "dial":  # with a full backlog, the dial gets no answer
            fillers.enter_context(full_backlog(listener.sock))
        with (
            pytest.RaisesGroup(Mishap, flatten_subgroups=True)
            if ending == "an exception"
            else nullcontext()
        ):
            anyio.run(main, backend=backend, backend_options=options)
        tasks.clear()
        gc.collect()
    assert not warned
    for sock in (listener.sock, *(peer.sock for peer in listener.peers)):
        sock.close()
    (socket,) = kept
    assert socket.closed.done()
    # A send that was cut short breaks the connection. Otherwise, nothing was lost.
    assert isinstance(socket.closed.exception(), BrokenError if moment == "send" else NoneType)
    if before is not None:
        assert not guards.leaked_fds(before)
