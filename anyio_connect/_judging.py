"""Whether a policy allows an endpoint: before it is dialled, and once it is connected."""

from __future__ import annotations

from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from ._address import SocketAddress, format_address
from ._dial_errors import forbidden, loop, none_allowed, not_judged, perhaps_loop
from ._errors import ConnectError, LoopError
from ._lookup import Endpoint, literal
from ._loops import leads_back
from ._policy import UNRESTRICTED, AddressPolicy, parts_of
from ._transport import Transport

#: How many policies of a chain judge an address before other tasks get to run.
_AT_A_TIME = 16


async def forbid(address: SocketAddress, policy: AddressPolicy) -> None:
    """Refuse a forbidden port or IP address before any I/O. This is a checkpoint.

    :raises AddressNotAllowedError: the policy forbids the address
    :raises LoopError: this process listens on the address
    """
    await checkpoint()
    where = format_address(*address)
    try:
        why = policy.port_refusal(address.port)
    except Exception as exc:
        raise none_allowed(where, [not_judged(where, exc)]) from exc
    if why is not None:
        raise none_allowed(where, [forbidden(where, why)])
    found = literal(address)
    refused: list[ConnectError] = []
    await keep_allowed(found, policy, refused)
    if refused:
        raise none_allowed(where, refused)


async def keep_allowed(
    endpoints: list[Endpoint], policy: AddressPolicy, refused: list[ConnectError]
) -> list[Endpoint]:
    """The endpoints that the policy allows. It adds an error to ``refused`` for each other one.

    Other tasks run between two endpoints, because a long list of rules takes time.
    """
    if policy is UNRESTRICTED:
        return endpoints
    allowed: list[Endpoint] = []
    for number, endpoint in enumerate(endpoints):
        if number:
            await checkpoint()
        error = await _vet(endpoint, policy)
        if error is None:
            allowed.append(endpoint)
        else:
            refused.append(error)
    return allowed


async def recheck(
    transport: Transport, endpoint: Endpoint, policy: AddressPolicy
) -> ConnectError | None:
    """Judge the address that the kernel reports for a connection that was made."""
    if policy is UNRESTRICTED:
        return None
    remote = transport.extra(SocketAttribute.remote_address, None)
    if not isinstance(remote, tuple):
        return forbidden(str(endpoint), "the system does not say where the connection leads")
    if policy.loops_refused and remote == transport.extra(SocketAttribute.local_address, None):
        # The kernel chose the dialled port as our own port: a TCP simultaneous open.
        return loop(str(endpoint), "the socket was connected to itself")
    error = await _vet(Endpoint(endpoint.family, remote), policy)
    if error is None or isinstance(error, LoopError):
        return error
    found = forbidden(str(endpoint), f"the connection leads to {error}")
    found.__cause__ = error.__cause__
    return found


async def _vet(endpoint: Endpoint, policy: AddressPolicy) -> ConnectError | None:
    """The error if ``policy`` forbids ``endpoint``. A long chain of policies has checkpoints."""
    parts = parts_of(policy)
    if len(parts) <= _AT_A_TIME:
        return _judge(endpoint, policy)
    for number, part in enumerate(parts, 1):
        if error := _judge(endpoint, part):
            return error
        if not number % _AT_A_TIME:
            await checkpoint()
    return None


def _judge(endpoint: Endpoint, policy: AddressPolicy) -> ConnectError | None:
    try:  # the policy may be a user's subclass, which may raise anything
        why = policy.refusal(*endpoint.sockaddr[:2])
        loops_refused = policy.loops_refused
    except Exception as exc:  # noqa: BLE001
        return not_judged(str(endpoint), exc)
    try:
        if loops_refused and leads_back(endpoint.sockaddr):
            return loop(str(endpoint), "this process itself listens there")
    except ValueError:  # the endpoint is not an IP address
        why = why or "it is not an IP address"
    except OSError as exc:
        if why is None:
            return perhaps_loop(str(endpoint), exc)
    return None if why is None else forbidden(str(endpoint), why)
