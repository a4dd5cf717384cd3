"""The ways to receive: how to call each, and what it may return at once."""

from __future__ import annotations

from anyio_connect import Socket

from .plan import Step
from .world import Call, Party, World


async def receive(call: Call) -> bytes:
    """Receive in the way of the step; return all data that was taken, with the delimiter."""
    step, sock = call.step, call.socket
    if step.way in ("exactly", "until"):
        call.party.may_keep = max(call.party.may_keep, _most(step))
    if step.way == "exactly":
        return await sock.receive_exactly(step.most)
    if step.way == "until":
        line = await sock.receive_until(step.delimiter, _most(step))
        return line + step.delimiter
    if step.way == "into":
        buffer = bytearray(step.most)
        return bytes(buffer[: await sock.receive_into(buffer)])
    return await sock.receive(step.most)


def _most(step: Step) -> int:
    return max(step.most, len(step.delimiter))


def kept(sock: Socket) -> bytes:
    """The data that was taken from the transport and is not received yet."""
    return bytes(sock._connection._kept)


def held(sock: Socket) -> int:
    """How many bytes were taken from the kernel, but not returned by any call yet.

    In addition to the kept data, a transport may hold data of a receive that was cancelled
    natively.
    """
    return sock._connection.held


def over(world: World, call: Call, taken: bytes | None) -> None:
    """A receive has ended. Check what it returned or raised."""
    step, party = call.step, call.party
    left = kept(call.socket)
    call.kept = len(left)
    if len(left) > party.may_keep:
        world.fault("more was read ahead than max_bytes", len(left))
    if taken is not None:
        _returned(world, step, taken)
    elif call.how == "IncompleteReadError" and _is_whole(step, left):
        world.fault("a receive does not return the data that has arrived", step.way)
    elif call.how == "DelimiterNotFoundError":
        most = _most(step)
        if len(left) < most or step.delimiter in left[:most]:
            world.fault("a delimiter was given up too early", len(left))
    if call.sure_at not in (None, world.network.now) and call.how != "cancelled":
        world.fault("is_readable() was True, but a receive had to wait")


def _returned(world: World, step: Step, taken: bytes) -> None:
    if not taken:
        world.fault("receive() returned nothing")
    if len(taken) > (_most(step) if step.way == "until" else step.most):
        world.fault("a receive returned more than was requested", step.way)
    if step.way == "exactly" and len(taken) != step.most:
        world.fault("receive_exactly() returned less than was requested")
    if step.way == "until" and taken.index(step.delimiter) != len(taken) - len(step.delimiter):
        world.fault("receive_until() did not stop at the first delimiter")


def _is_whole(step: Step, left: bytes) -> bool:
    if step.way == "exactly":
        return len(left) >= step.most
    return len(left) >= _most(step) or step.delimiter in left


def look(world: World, party: Party) -> bool:
    """Call is_readable(); return whether a receive that begins now must not wait."""
    sock = party.last
    answer = sock.is_readable()
    busy = party.piped_from or any(
        call.pending and call.kind == "receive" and call.party is party for call in world.calls
    )
    world.network.note("is_readable", party.number, answer)
    if busy or not sock.opened.done():
        return False
    link = world.link(party)
    if (
        link is not None
        and not party.tls(sock)
        and not answer
        and (link[0].readable or kept(sock))
    ):
        world.fault("is_readable() is False, but there is something")
    return answer


def missed(world: World, party: Party) -> None:
    """Nothing moves any more. If is_readable() is False, there must be no data, also over TLS."""
    sock = party.last
    if party.piped_from or not sock.opened.done() or sock.opened.exception() is not None:
        return
    peer = party.peer
    if peer is None or peer.closed or peer.reset_sent or not peer.all_has_arrived:
        return
    if sock.is_readable():
        return
    tls = party.tls(sock)
    if len(peer.sent[tls]) > len(party.received[tls]) and peer.shaken == tls:
        world.fault("is_readable() is False, but there is data")
