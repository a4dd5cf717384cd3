"""Runs a history: makes the sockets, does the steps, waits until nothing moves, and closes."""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import random
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

import anyio_connect
from anyio_connect import AddressPolicy, Connector, Listener, Socket, SocketError, SocketFuture
from anyio_connect._lifecycle import Inbound, Link, Outbound
from anyio_connect._memory_tcp import accept, connect
from anyio_connect._tcp import TCPTransport
from support.sockets import Made, opened_by

from . import judge, reading
from .certificates import NAMES, contexts
from .messages import SMALLEST, message
from .network import Deadlock, Network
from .patching import simulated
from .peer import Peer
from .plan import ADDRESSES, PORT, Plan, Route, Step, Subject
from .schedulers import run as run_on
from .tcp import End, Wire
from .world import Call, Party, World

_LISTENER = ("10.0.0.1", 99)
#: After this time without an event, nothing moves any more, in seconds.
_QUIET = 50.0
_PATIENCE = 1000.0
#: The interval between the moments at which a server answers, in seconds.
_TICK = 0.005
_SENDING = ("send", "send_eof", "w.aclose")
#: Within how many turns of the loop a cancelled receive has to end.
_TURNS = 3
#: How much CPU time a history may take, in seconds. Most take a few milliseconds.
_MOST_WORK = 10.0


def execute(plan: Plan, scheduler: str) -> World:
    """Run the history until it ends, and judge it."""
    contexts()  # made once, before the simulation begins
    network = Network(plan.seed ^ 0x5EED)
    history = _History(plan, scheduler, network)
    collecting = gc.isenabled()
    gc.disable()  # a finalizer that runs at another time would change the history
    try:
        with simulated(network, history.wires, history.names, plan.resolving):
            try:
                with _no_spinning(history.world):
                    run_on(scheduler, network, history.main, plan.seed)
            except Deadlock as exc:
                history.world.fault("deadlock", str(exc))
            except BaseException as exc:
                if isinstance(exc, KeyboardInterrupt):
                    raise
                text = "".join(traceback.format_exception(exc))
                history.world.fault(f"crash: {type(exc).__name__}", text[-3000:])
    finally:
        if collecting:
            gc.enable()
    return history.world


@contextmanager
def _no_spinning(world: World) -> Iterator[None]:
    """Stop a history in which a task runs for ever, and lets no other task run."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal arrives here
        return

    def stop(*_: object) -> None:
        world.fault("a task never waits", "".join(traceback.format_stack(limit=8)))
        raise Deadlock("a task never waits")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _MOST_WORK, 1.0)  # repeatedly, in case it is caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _family(address: str) -> tuple[int, str]:
    return (socket.AF_INET6 if ":" in address else socket.AF_INET), address


def _tick(when: float) -> float:
    """The next of these moments. So attempts that began at different times succeed together."""
    return math.ceil(when / _TICK - 1e-6) * _TICK


class _Server:
    """The server at one address of a socket's target."""

    def __init__(self, history: _History, party: int, route: Route) -> None:
        self._history = history
        self._party = party
        self._route = route

    def syn(self, client: End) -> None:
        answer, delay = self._route.answer, self._route.delay
        network = self._history.world.network
        judge.dialled(self._history.world, client)
        if answer == "serve":
            network.at(_tick(network.now + delay), self._serve, client)
        elif answer == "refuse":
            network.later(delay + client.wire.delay, client.refuse, errno.ECONNREFUSED)
        elif answer == "lost":
            network.later(delay + client.wire.delay, client.refuse, errno.EHOSTUNREACH)

    def _serve(self, client: End) -> None:
        history = self._history
        network = history.world.network
        _, wire = history.wires()
        server = End(network, f"server{len(network.ends)}", wire)
        party = history.world.parties[self._party]
        peer = Peer(network, server, history.world.plan)
        peer.may_upgrade = party.subject.secure == "on" or party.upgraded

        def ready(end: End) -> None:
            network.note(end.name, "is connected to", party.number)
            party.peers.append(peer)
            peer.may_upgrade = peer.may_upgrade or party.upgraded
            peer.stir()

        port = client.local[1]
        history.world.ours[port], history.world.theirs[port] = client, peer
        accept(client, server, ready)


class _History:
    def __init__(self, plan: Plan, scheduler: str, network: Network) -> None:
        self.world = World(plan, scheduler, network)
        self.names: dict[str, list[tuple[int, str]]] = {}
        self._data = random.Random(plan.seed)
        self._group: Any = None
        self._listener: Listener | None = None

    def wires(self) -> tuple[Wire, Wire]:
        plan = self.world.plan
        ours = Wire(
            plan.delays[0],
            plan.buffers[0],
            plan.buffers[1],
            plan.jitter,
            plan.mss,
            plan.ack_delay,
            plan.short,
        )
        theirs = Wire(
            plan.delays[1],
            plan.buffers[2],
            plan.buffers[3],
            plan.jitter,
            plan.mss,
            plan.ack_delay,
        )
        return ours, theirs

    async def main(self) -> None:
        world, plan, network = self.world, self.world.plan, self.world.network
        before = network.opened()
        async with anyio.create_task_group() as self._group:
            connector = self._connector()
            for number, subject in enumerate(plan.subjects):
                self._connect(connector, number, subject)
            if plan.profile == "listen":
                await self._listen()
            for step in plan.steps:
                if step.kind == "detach":
                    await self._detach(step)
                else:
                    self._take(step)
                for _ in range(step.turns):
                    await checkpoint()
                if step.seconds:
                    await anyio.sleep(step.seconds)
            network.most_descriptors = math.inf
            await anyio.sleep(_QUIET)
            judge.quiet(world)
            for party in world.parties:
                for peer in party.peers:
                    peer.go_on()
            await anyio.sleep(_QUIET)
            judge.quiet(world)
            await self._finish()
            judge.final(world)
            left = [fd for fd in network.opened() if fd not in before]
            if left:
                world.fault("a descriptor was left open", left)
            self._group.cancel_scope.cancel()

    # --- making sockets

    def _connector(self) -> Connector:
        plan = self.world.plan
        denied = [ADDRESSES[number] for number in plan.forbidden]
        return Connector(
            policy=AddressPolicy(deny=denied) if denied else None,
            max_connections=plan.max_connections,
            resolver=self._resolve if plan.resolver else None,
            prepare=self._prepare if plan.prepare else None,
        )

    async def _resolve(self, host: str, port: int) -> list[str]:
        await anyio.sleep(self.world.plan.resolving)
        return [address for _, address in self.names[host]]

    def _prepare(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.world.prepared += 1

    def _connect(self, connector: Any, number: int, subject: Subject) -> None:
        world, network = self.world, self.world.network
        port = PORT + number
        several = len(subject.routes) > 1
        for address, route in zip(ADDRESSES, subject.routes, strict=False):
            if route.answer == "no way":
                network.unreachable.add((address, port))
            else:
                network.hosts[address, port] = _Server(self, number, route)
        name = NAMES[0] if several else ADDRESSES[0]
        if several:
            self.names[name] = [_family(a) for a in ADDRESSES[: len(subject.routes)]]
        options: dict[str, Any] = {
            "allow_half_open": subject.half_open,
            "secure_transport": subject.secure,
        }
        if subject.secure != "off":
            options["require_close_notify"] = not subject.lenient
        options["keep_alive"] = subject.keep_alive
        if subject.timeout is not None:
            options["connect_timeout"] = subject.timeout
        if subject.secure == "on":
            options["ssl_context"] = contexts()[0]
        if subject.task_group:
            options["task_group"] = self._group
        party = Party(number, subject, [])
        world.parties.append(party)
        party.sockets.append(connector.connect((name, port), **options))

    async def _listen(self) -> None:
        half_open = self.world.plan.half_open
        self._listener = await anyio_connect.listen(_LISTENER, allow_half_open=half_open)
        self._group.start_soon(self._serve)

    async def _serve(self) -> None:
        assert self._listener is not None
        try:
            await self._listener.serve(self._handle, self._group)
        except anyio.ClosedResourceError:
            self.world.network.note("the listener is closed")

    async def _handle(self, accepted: Socket) -> None:
        """Let the steps use the socket. At the end, it is closed if they left it open."""
        world = self.world
        number = len(world.parties)
        party = Party(number, Subject(half_open=world.plan.half_open), [accepted])
        remote = accepted.opened.result().remote_address
        assert remote is not None
        port = int(remote.rpartition(":")[2])
        peer = world.theirs[port]
        party.peers.append(peer)
        party.accepted = peer.end.partner
        world.network.note("accepted", number)
        world.parties.append(party)

    def _knock(self) -> None:
        """A scripted client connects to our listener."""
        world, network = self.world, self.world.network
        _, wire = self.wires()
        client = End(network, f"client{len(network.ends)}", wire)
        client.local = ("10.0.0.9", network.port())
        peer = Peer(network, client, world.plan)
        world.theirs[client.local[1]] = peer
        connect(network.hosts, client, _LISTENER)

    # --- steps

    def _take(self, step: Step) -> None:
        world = self.world
        if step.kind in ("cancel", "native"):
            self._cancel(step)
        elif step.kind == "starve":
            world.network.most_descriptors = len(world.network.opened())
        elif step.kind == "feed":
            world.network.most_descriptors = math.inf
        elif step.kind == "knock":
            self._knock()
        elif step.kind == "l.close":
            self._group.start_soon(self._close_listener)
        elif step.who >= len(world.parties):
            pass  # no client has connected
        elif step.kind.startswith("p."):
            self._act(step, world.parties[step.who])
        elif step.kind == "readable?":
            party = world.parties[step.who]
            if reading.look(world, party):
                self._call(replace(step, kind="receive", way="some"), party, sure=True)
        else:
            self._call(step, world.parties[step.who])

    async def _close_listener(self) -> None:
        if self._listener is not None:
            await self._listener.aclose()

    def _act(self, step: Step, party: Party) -> None:
        peer = party.peer
        if peer is None:
            return
        self.world.network.note(step.kind, party.number)
        if step.kind == "p.send":
            peer.send(message(step.number, step.size))
        elif step.kind == "p.fin":
            peer.finish()
        elif step.kind == "p.bare":
            peer.finish(notify=False)
        elif step.kind == "p.reset":
            peer.reset()
        elif step.kind == "p.close":
            peer.close()
        elif step.kind == "p.stop":
            peer.stop()
        elif step.kind == "p.read":
            peer.go_on()

    def _cancel(self, step: Step) -> None:
        world = self.world
        pending = [call for call in world.calls if call.pending]
        if not pending:
            return
        self._cancel_call(pending[-min(step.back, len(pending))], native=step.kind == "native")

    def _cancel_call(self, call: Call, *, native: bool) -> None:
        world = self.world
        if call.cancelled_at is not None:
            return
        call.cancelled_at = world.tick()
        if call.scope is None:
            return  # it has not begun, and will find its scope cancelled
        world.network.note("native" if native else "cancel", call.kind, call.number)
        call.idle_when_cancelled = judge.idle(world, call)
        if native and call.task is not None:
            call.native = True
            call.task.cancel()
        else:
            call.scope.cancel()

    def _call(self, step: Step, party: Party, *, sure: bool = False) -> None:
        world = self.world
        sock = party.sockets[0] if step.old else party.last
        call = Call(step, party, sock, party.tls(sock))
        if sure:
            call.sure_at = world.network.now
        world.calls.append(call)
        if step.kind == "start_tls":
            self._start_tls(call)
            return
        act = self._action(call)
        if step.kind == "pipe":
            party.piped_from = world.parties[1].piped_to = True
        self._group.start_soon(self._make, call, act)

    def _action(self, call: Call) -> Callable[[], Awaitable[Any]]:
        step, sock, kind = call.step, call.socket, call.kind
        if kind == "receive":
            return lambda: reading.receive(call)
        if kind == "send":
            return lambda: sock.send(message(step.number, max(step.size, SMALLEST)))
        if kind == "pipe":
            into = self.world.parties[1].last
            flags = {flag: True for flag in step.flags if flag != "whole"}
            destination: Any = into if "whole" in step.flags else into.writable
            return lambda: sock.readable.pipe_to(destination, **flags)
        acts: dict[str, Callable[[], Awaitable[Any]]] = {
            "send_eof": sock.send_eof,
            "w.aclose": sock.writable.aclose,
            "r.aclose": sock.readable.aclose,
            "close": sock.close,
            "abort": sock.writable.abort,
            "opened": lambda: _wait(sock.opened),
            "closed": lambda: _wait(sock.closed),
        }
        return acts[kind]

    def _start_tls(self, call: Call) -> None:
        world, party = self.world, call.party
        call.begun = world.tick()
        try:
            party.sockets.append(call.socket.start_tls(ssl_context=contexts()[0]))
        except SocketError as exc:
            call.how, call.error = type(exc).__name__, exc
        else:
            call.how = "ok"
            party.upgraded = True
            for peer in party.peers:
                peer.may_upgrade = True
        call.over = world.tick()
        world.network.note("start_tls", call.number, call.how)

    async def _detach(self, step: Step) -> None:
        """Detach the kernel's socket, and continue with another socket over it."""
        world = self.world
        if step.who >= len(world.parties) or world.plan.profile in ("pipe", "slots"):
            return  # with a slot, it is a socket of the standard library
        party = world.parties[step.who]
        if step.back > 1:  # a receive that waits would prevent it
            for call in world.calls:
                if call.pending and call.party is party and call.kind == "receive":
                    self._cancel_call(call, native=step.back == 2)
            for _ in range(_TURNS):
                await checkpoint()
        sock = party.last
        state = sock._connection.state
        if state.inbound is Inbound.CANCELLED or state.outbound is Outbound.ENDED:
            return  # the data would be detached too, but the next socket would not know of it
        call = Call(step, party, sock, party.tls(sock))
        world.calls.append(call)
        call.begun = world.tick()
        held = sock._connection.held
        try:
            given: Any = sock.detach()
        except SocketError as exc:
            call.how, call.error = type(exc).__name__, exc
            self._may_refuse(call)
        else:
            call.how = "ok"
            if held:
                world.fault("a detach lost bytes that were read ahead", held)
            if given.watchers:
                world.fault("an event loop watches a detached socket")
            transport = TCPTransport(given, remote=given.end.remote)  # it may have been reset
            party.handed.append(opened_by(Made(transport), half_open=party.subject.half_open))
            party.sockets.append(party.handed[-1])
        call.over = world.tick()
        world.network.note("detach", call.number, call.how)
        if call.how == "ok":
            await party.last.opened

    def _may_refuse(self, call: Call) -> None:
        """Check that there was a reason to refuse."""
        link = self.world.link(call.party)
        busy = any(
            other.pending and other.party is call.party and other.kind in ("receive", *_SENDING)
            for other in self.world.calls
        )
        connection = call.socket._connection
        over = connection.state.link is not Link.OPEN
        reasons = (call.tls, busy, over, link is None, connection.held)
        if call.how == "DetachError" and not any(reasons):
            self.world.fault("a detach was refused without a reason", str(call.error))

    async def _make(self, call: Call, act: Callable[[], Awaitable[Any]]) -> None:
        """Make the call in its own scope, and record its outcome."""
        world = self.world
        note = world.network.note
        asynchronous = world.scheduler != "trio"
        if asynchronous:
            call.task = asyncio.current_task()
        try:
            with anyio.CancelScope() as scope:
                call.scope = scope
                if call.step.late or call.cancelled_at is not None:
                    scope.cancel()
                elif call.step.deadline is not None:
                    scope.deadline = anyio.current_time() + call.step.deadline
                call.begun = world.tick()
                note("begin", call.kind, call.number)
                value = None
                try:
                    value = await act()
                    call.how = "ok"
                    if call.kind == "receive":
                        call.received = len(value)
                        call.party.received[call.tls] += value
                except anyio.get_cancelled_exc_class():
                    call.how = "cancelled"
                    raise
                except Exception as exc:  # noqa: BLE001 - all of them are judged
                    call.how, call.error = type(exc).__name__, exc
                    allowed = (SocketError, anyio.EndOfStream, anyio.BusyResourceError)
                    if not isinstance(exc, allowed):
                        text = "".join(traceback.format_exception(exc))
                        world.fault(f"a foreign error: {call.kind}: {call.how}", text[-2000:])
                finally:
                    call.over = world.tick()
                    call.told = len(call.party.received[call.tls])
                    if call.kind == "receive":
                        reading.over(world, call, value)
                    note("end", call.kind, call.number, call.how, call.received or "")
        except asyncio.CancelledError:
            if not call.native:
                raise
            if sys.version_info >= (3, 11):
                call.task.uncancel()

    # --- the end

    async def _finish(self) -> None:
        world, plan = self.world, self.world.plan
        if plan.drain:
            for party in world.parties:
                await self._drain(party)
        world.closing_began = world.tick()
        if self._listener is not None:
            await self._listener.aclose()
        for party in world.parties:
            for sock in party.sockets:
                with anyio.move_on_after(_PATIENCE) as scope:
                    await sock.close()
                if scope.cancelled_caught:
                    world.fault("close() hangs", repr(sock))
        await anyio.sleep(2 * _QUIET)

    async def _drain(self, party: Party) -> None:
        """Read to the end, as a user would."""
        if party.piped_from or any(
            c.pending and c.kind == "receive" and c.party is party for c in self.world.calls
        ):
            return
        sock = party.last
        with anyio.move_on_after(2 * _QUIET):
            while party.drained is None:
                try:
                    party.received[party.tls(sock)] += await sock.receive()
                except (SocketError, anyio.EndOfStream) as exc:
                    party.drained = type(exc).__name__
                    self.world.network.note("drained", party.number, party.drained)


async def _wait(future: SocketFuture[Any]) -> Any:
    return await future
