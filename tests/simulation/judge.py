"""Finds faults in the result of a history: checks of the promises in README and docstrings.

The name of a fault has no details of the history, so that faults can be counted and compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from anyio_connect import Socket

from .messages import Nonsense, parse
from .peer import Peer
from .plan import ADDRESSES, PORT
from .reading import held, kept, missed
from .tcp import End
from .world import Call, Party, World

_SENDING = ("send", "send_eof", "w.aclose")
_ENDING = ("send_eof", "w.aclose", "abort")
#: If one of these is cancelled, the peer need not see a clean end of all data.
_FORCING = ("send", "send_eof", "close", "w.aclose", "opened", "pipe")


def idle(world: World, call: Call) -> bool:
    """Whether this call is a receive that waits, with nothing to do now.

    Then a cancellation must not get lost, even if data arrives at the same moment.
    """
    link = world.link(call.party)
    if call.kind != "receive" or link is None or call.tls or call.begun is None:
        return False
    end, _ = link
    taken = len(call.party.received[False]) + len(kept(call.socket))
    return not end.released and not end.readable and end.delivered == taken


# --- while it dials


def dialled(world: World, client: End) -> None:
    """A task begins to connect. Check that it may."""
    plan = world.plan
    if client.remote[0] in [ADDRESSES[number] for number in plan.forbidden]:
        world.fault("an address was dialled that the policy forbids", client.remote)
    alive = {end.remote[1] for end in _dialled(world) if not end.dead}
    if plan.max_connections is not None and len(alive) > plan.max_connections:
        world.fault("there are more connections than max_connections")


def _dialled(world: World) -> list[End]:
    """Our ends of a target that are not closed, connected or connecting. Each target has its
    port."""
    return [end for end in world.network.ends if end.dialling and not end.released]


# --- when nothing moves any more


def quiet(world: World) -> None:
    """Nothing moves any more. Check that each call that waits has a reason."""
    for call in world.calls:
        if call.pending:
            _has_a_reason(world, call)
    for party in world.parties:
        missed(world, party)
        link = world.link(party)
        if link is not None:
            _is_as_it_should_be(world, party, *link)


def _has_a_reason(world: World, call: Call) -> None:
    party, sock = call.party, call.socket
    if call.kind == "closed" and sock.closed.done():
        world.fault("a wait for closed was not woken")
    if call.kind == "opened" and sock.opened.done():
        world.fault("a wait for opened was not woken")
    if call.kind == "close":
        world.fault("close() hangs", repr(sock))
    # To send to its destination, or to end it, a pipe waits for that connection.
    elsewhere = call.kind == "pipe" and not world.parties[1].last.opened.done()
    if not sock.opened.done():
        if not (elsewhere and _done(world, party, sock, "r.aclose")):
            _dial_has_a_reason(world, call)
        return
    if sock is not party.last or elsewhere:
        return
    link = world.link(party)
    if link is None:
        world.fault(f"{call.kind} waits though there is no connection")
        return
    end, _ = link
    if call.kind == "receive":
        if _done(world, party, sock, "r.aclose", "close"):
            world.fault("a receive waits though reading was stopped", repr(sock))
        elif end.released or (end.readable and not call.tls):
            world.fault("a receive was not woken", repr(sock))
    elif call.kind in _SENDING and (end.released or end.writable):
        world.fault(f"{call.kind} was not woken", repr(sock))
    elif call.kind == "closed" and end.dead and not (end.rx or held(sock)) and not call.tls:
        world.fault("closed waits though the connection is gone", repr(sock))
    elif call.kind == "pipe":
        _pipe_has_a_reason(world, call, end)


def _dial_has_a_reason(world: World, call: Call) -> None:
    subject = call.party.subject
    patient = subject.timeout is None
    if patient and any(route.answer == "silent" for route in subject.routes):
        return
    limit = world.plan.max_connections
    if limit is not None and not call.party.upgraded:
        holders = {end.remote[1] for end in _dialled(world)}
        if PORT + call.party.number not in holders and len(holders) < limit:
            world.fault("a slot is free, but a waiting socket does not get it")
        return
    if call.party.upgraded or subject.secure == "on":
        return  # it may wait until the peer continues the handshake
    world.fault(f"{call.kind} waits for the connection, but no call makes it", repr(call.socket))


def _pipe_has_a_reason(world: World, call: Call, source: End) -> None:
    into = world.parties[1]
    link = world.link(into)
    if link is None or link[0].released or into.last.closed.done():
        world.fault("pipe_to() goes on though its destination is over")
        return
    if source.readable and link[0].writable and not call.tls and not into.upgraded:
        world.fault("pipe_to() was not woken")


def _is_as_it_should_be(world: World, party: Party, end: End, peer: Peer) -> None:
    sock = party.last
    calls = [call for call in world.calls if call.party is party and call.socket is sock]
    tls = party.tls(sock)
    ends = [c for c in calls if _met_the_end(c)]
    if ends and any(
        c.kind == "receive" and c.how == "ok" and _later(c.begun, ends[0].over) for c in calls
    ):
        world.fault("data came after the end of stream")
    sending = any(c.kind in (*_SENDING, "pipe") and c.pending for c in world.calls)
    ended = _done(world, party, sock, "send_eof", "w.aclose")
    stopped = _done(world, party, sock, "r.aclose")
    # A lingering connection makes progress only while a task waits for it.
    watched = any(c.kind == "closed" and c.pending for c in calls)
    if sock.opened.done() and not tls and not sending and watched and not sock.closed.done():
        if stopped and ended:
            world.fault("open though we ended both directions", repr(sock))
        if ends and (ended or not half_open(world, party)):
            world.fault("open though both sides ended", repr(sock))
    if not end.released and any(c.kind == "close" and c.how in ("ok", "cancelled") for c in calls):
        world.fault("open after close()", repr(sock))
    clean = sock.closed.done() and sock.closed.exception() is None
    if clean and not _was_ended(party, peer, calls):
        world.fault("closed settled though no side ended the connection", repr(sock))


def _was_ended(party: Party, peer: Peer, calls: list[Call]) -> bool:
    """Whether there is a reason for ``closed`` to have resolved."""
    if peer.fin_wanted or peer.closed or party.piped_to or party.piped_from:
        return True
    kinds = {call.kind for call in calls}
    return "close" in kinds or ("r.aclose" in kinds and not kinds.isdisjoint(_ENDING))


# --- at the end


def final(world: World) -> None:
    """All sockets were closed, and time has passed."""
    waiting = [call for call in world.calls if call.pending]
    if waiting:
        world.fault(f"{waiting[0].kind} hangs", waiting)
    for party in world.parties:
        for sock in party.sockets:
            if not sock.opened.done() or not sock.closed.done():
                world.fault("a future never settled", repr(sock))
    if world.network.dropped:
        world.fault("a socket was dropped without closing it")
    for call in world.calls:
        _was_answered(world, call)
    for party in world.parties:
        link = world.link(party)
        if link is not None:
            _got_what_was_sent(world, party, *link)
            _peer_got_what_was_sent(world, party, *link)
    _piped(world)
    dialled = sum(end.dialling for end in world.network.ends)
    if world.plan.prepare and world.prepared < dialled:
        world.fault("a socket was dialled that was not prepared")


def _was_answered(world: World, call: Call) -> None:
    """Check that cancelled calls were cancelled, and that each refusal had a reason."""
    if call.step.late and call.kind != "start_tls" and call.how != "cancelled":
        world.fault(f"a due cancellation was lost: {call.kind}", call)
    if call.idle_when_cancelled and call.how != "cancelled":
        world.fault(f"a cancellation was lost: {call.kind}", call)
    if call.how == "BusyResourceError":
        _somebody_was_busy(world, call)
    if call.how == "ClosedError" and call.kind == "send":
        _somebody_ended(world, call)
    link = world.link(call.party)
    if link is not None and call.party.subject.lenient and call.kind != "pipe":
        told = str(call.error)
        if "without TLS close_notify" in told:
            world.fault("a missing close_notify was reported, but is not required", call.kind)
        if "in the middle of a TLS record" in told and link[1].bare and not link[1].closed:
            world.fault("an end between records was reported as one within a record", call.kind)
    if call.kind == "receive" and call.how == "BrokenError" and not call.tls and link is not None:
        end, peer = link
        if not end.got_reset and not _forced(world, call.party) and not peer.closed:
            world.fault("a receive failed without a reason", str(call.error))


def _somebody_was_busy(world: World, call: Call) -> None:
    alike: tuple[str, ...] = ("receive", "pipe") if call.kind == "receive" else (*_SENDING, "pipe")
    if call.kind == "pipe":
        alike = ("receive", *_SENDING, "pipe")
    if not any(
        other is not call and other.kind in alike and other.overlaps(call) for other in world.calls
    ):
        world.fault(f"busy, but no other call was in flight: {call.kind}")


def _somebody_ended(world: World, call: Call) -> None:
    """A send was refused because our side ended. A send that began before is finished first."""
    party = call.party
    assert world.closing_began is not None
    if _later(call.over, world.closing_began):
        return
    link = world.link(party)
    if not half_open(world, party) and (
        link is None or link[1].fin_wanted or link[1].closed or link[1].ended[True] is not None
    ):
        return  # the peer's end also ended our side
    enders = [
        other
        for other in world.calls
        if other is not call
        and other.party is party
        and other.kind in ("send_eof", "close", "abort", "w.aclose", "start_tls", "detach")
        and other.how != "BusyResourceError"
        and _later(call.over, other.begun)
    ]
    dropped = any(
        # A TLS socket that is no longer wanted drops the connection that it was to take over.
        other.socket is not call.socket
        and (other.kind in ("close", "abort") or other.how == "cancelled")
        and _later(call.over, other.begun)
        for other in world.calls
        if other.party is party
    )
    if party.piped_to or dropped:
        return
    if not enders:
        world.fault("a send was refused without a reason")
    elif all(
        other.kind in ("w.aclose", "start_tls", "detach") and _later(other.begun, call.begun)
        for other in enders
    ):
        kinds = "+".join(sorted({other.kind for other in enders}))
        world.fault(f"a send was overtaken by {kinds}")


def _got_what_was_sent(world: World, party: Party, end: End, peer: Peer) -> None:
    for tls in (False, True):
        sent, received = bytes(peer.sent[tls]), bytes(party.received[tls])
        ends = [c for c in world.calls if c.party is party and _met_the_end(c) and c.tls == tls]
        early = [
            c
            for c in world.calls
            if c.party is party
            and c.how == "IncompleteReadError"
            and c.tls == tls
            and c.told + c.kept != len(sent)
        ]
        if party.piped_from:
            continue
        if not sent.startswith(received):
            world.fault("what was received was not sent in this form", tls)
        # Over TLS only close_notify is an end, unless that is not required.
        lenient = not tls or party.subject.lenient
        clean = (peer.fin_wanted or (peer.closed and lenient)) and sent == received
        if tls and lenient and peer.closed and not peer.fin_wanted:
            clean = True  # it is not known how much it had sent before
        if tls and ends and peer.bare and not lenient:
            world.fault("an end of TLS without close_notify was reported as the end of stream")
        if early or (ends and not clean):
            if not (peer.reset_sent or end.got_reset):
                world.fault("an early end of stream", tls)
            elif not peer.fin_wanted and (tls or not end._fin_received):
                world.fault("a reset was reported as the end of stream", tls)
    ended = ("abort", "close", "r.aclose", "start_tls", "w.aclose", "pipe")
    for call in world.calls:
        if (
            call.party is party
            and call.kind == "receive"
            and call.how == "BrokenError"
            and not party.tls(party.last)
            and not any(
                other.kind in ended
                and (other.party is party or other.kind == "pipe")
                and _later(call.over, other.begun)
                for other in world.calls
            )
            and call.told + call.kept < end.delivered
        ):
            world.fault("a receive reported a reset before all data was received", call)
            break
    if (
        party.drained
        and not party.tls(party.last)
        and not any(c.kind in ended for c in world.calls if c.party is party)
        and not _forced(world, party)
        and not party.piped_from
        and len(party.received[False]) != end.delivered
    ):
        # Data that arrived before a reset can be read.
        world.fault("unread data was lost", party.drained)


def _peer_got_what_was_sent(world: World, party: Party, end: End, peer: Peer) -> None:
    calls = [call for call in world.calls if call.party is party]
    last = party.last
    failed = _handshake_failed(party)
    error = last.closed.exception() if last.closed.done() else None
    for tls in (False, True):
        if party.piped_to:
            continue
        try:
            whole, piece = parse(bytes(peer.got[tls]))
        except Nonsense as exc:
            world.fault("the peer got what was not sent in this form", str(exc))
            continue
        _in_order(world, whole)
        done = [c for c in calls if c.kind == "send" and c.how == "ok" and c.tls == tls]
        missing = [c for c in done if c.number not in whole]
        how = peer.ended[tls]
        if tls != peer.secured:
            if missing and not tls and peer.secured:
                world.fault("plain text was lost before TLS", missing)
            continue
        if how == "eof" and missing:
            world.fault("a clean end after a loss", missing)
        elif how == "eof" and piece is not None:
            world.fault("a clean end after an incomplete message", piece)
        # If no call used force, all data has to arrive, and the end has to be clean.
        unforced = (
            not _forced(world, party)
            and not peer.closed
            and not failed
            and not (tls and how == "tls error")
        )
        # Some of the bytes that TLS sent are not data.
        if missing and end.lost and not party.tls(last) and error is None:
            world.fault("a reset destroyed what was sent, and closed does not report it", missing)
        if unforced and error is None:
            if missing:
                world.fault(f"a loss: {end.sent_reset or peer.end.sent_reset or how}", missing)
            elif how == "reset":
                world.fault(f"a reset: {end.sent_reset or peer.end.sent_reset}")
            elif how is None:
                world.fault("the peer never sees an end")
            elif (
                how == "truncated"
                and not peer.end.got_reset
                # A call that looks for data to receive finds that the session is lost.
                and not (peer.bare and not party.subject.lenient)
            ):
                world.fault("the peer got no close_notify")
        if error is not None:
            if "aborted on our side" in str(error) and how == "eof":
                world.fault("an aborted connection ended cleanly")
            if "close_timeout" in str(error):
                if not any(s.kind == "p.stop" for s in world.plan.steps):
                    world.fault("close() gave up though the peer reads", repr(error))
            elif "without TLS close_notify" in str(error):
                if party.subject.lenient:
                    world.fault("a missing close_notify was reported, but is not required")
                elif not peer.bare and not peer.closed:
                    world.fault("a missing close_notify was reported, but was sent")
            elif unforced and not end.got_reset and not peer.reset_sent:
                world.fault("closed was rejected without a reason", repr(error))
        ended = [c for c in calls if c.kind == "send_eof" and c.how == "ok" and c.tls == tls]
        if (
            ended
            and how == "reset"
            and not end.got_reset
            and not peer.closed
            and end.sent_reset == "closed with SO_LINGER 0"
            and not any(c.kind == "close" and c.how == "cancelled" for c in calls)
        ):
            world.fault("send_eof() returned, and the peer got a reset")


def _in_order(world: World, whole: list[int]) -> None:
    if len(set(whole)) != len(whole):
        world.fault("a message was sent twice")
    by_number = {call.number: call for call in world.calls}
    for one, two in pairwise(whole):
        over, begun = by_number[two].over, by_number[one].begun
        if over is not None and begun is not None and over < begun:
            world.fault("messages came in another order")


def _piped(world: World) -> None:
    """Check what one socket piped to another: no wrong data, and no end that is too early."""
    pipes = [c for c in world.calls if c.kind == "pipe" and c.how != "BusyResourceError"]
    if len(pipes) != 1 or any(party.upgraded for party in world.parties):
        return
    (pipe,), (source, into) = pipes, world.parties
    from_link, to_link = world.link(source), world.link(into)
    if from_link is None or to_link is None:
        return
    sent = bytes(from_link[1].sent[source.tls(source.last)])
    end, peer = to_link
    got = bytes(peer.got[into.tls(into.last)])
    if not sent.startswith(got):
        world.fault("what a pipe delivered was not sent in this form")
    enders = ("send_eof", "w.aclose", "close", "abort")
    if (
        pipe.how == "BrokenError"
        and from_link[0].got_reset
        and "prevent_abort" not in pipe.step.flags
        and peer.ended[into.tls(into.last)] == "eof"
        and not (peer.fin_wanted or peer.closed)
        and not any(c.party is into and c.kind in enders for c in world.calls)
    ):
        world.fault("a pipe whose source broke ended cleanly")
    if got == sent or any(c.party is into and c.kind in enders for c in world.calls):
        return
    if not half_open(world, into) and (peer.fin_wanted or peer.closed):
        return  # the peer of the destination has ended, which ends our side of it too
    clean = peer.ended[into.tls(into.last)] == "eof"
    broke = pipe.how != "ok" and not pipe.step.flags and _later(world.closing_began, pipe.over)
    if clean and broke:
        world.fault("a pipe that broke delivered a clean end")
    reset = end.got_reset or from_link[0].got_reset
    if any(c.party is source and c.kind == "r.aclose" for c in world.calls):
        return  # an end that discards what was not received
    if pipe.how == "ok" and from_link[1].fin_wanted and not peer.closed and not reset:
        world.fault("a pipe lost something")


# --- shared


def half_open(world: World, party: Party) -> bool:
    return party.subject.half_open


def _handshake_failed(party: Party) -> bool:
    suspects = party.sockets[1:] if party.subject.secure != "on" else party.sockets
    return any(s.opened.done() and s.opened.exception() is not None for s in suspects)


def _forced(world: World, party: Party) -> bool:
    """Whether a call asked for an end that need not be clean."""
    return any(
        call.kind == "abort"
        or (call.kind in _FORCING and call.how == "cancelled")
        or _closing_cancelled(world, call)
        or (call.kind == "pipe" and call.how != "ok")
        for call in world.calls
        if call.party is party or call.kind == "pipe"
    )


def _closing_cancelled(world: World, call: Call) -> bool:
    """Whether this call stopped reading, and was cancelled after our side had ended too.

    Such a call closes the socket. When it is cancelled, it does not wait, like close().
    """
    return (
        call.kind == "r.aclose"
        and call.how == "cancelled"
        and any(
            other.kind in ("send_eof", "w.aclose")
            and other.party is call.party
            and _later(call.over, other.begun)
            for other in world.calls
        )
    )


def _met_the_end(call: Call) -> bool:
    """Whether a receive reported the peer's end, with no data left before it."""
    return call.how == "EndOfStream" or (call.how == "IncompleteReadError" and not call.kept)


def _done(world: World, party: Party, sock: Socket, *kinds: str) -> bool:
    return any(
        c.kind in kinds and c.how == "ok" and c.party is party and c.socket is sock
        for c in world.calls
    )


def _later(one: int | None, two: int | None) -> bool:
    """Whether ``one`` happened after ``two``; false if either has not happened."""
    return one is not None and two is not None and one > two


def names(faults: Iterable[str]) -> list[str]:
    """Each fault once, in the order in which they were found."""
    return list(dict.fromkeys(faults))
