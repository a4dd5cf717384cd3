"""Look names up by a function of the user, instead of the system."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from itertools import islice
from typing import TypeAlias

from ._address import SocketAddress, is_ip
from ._dial_errors import bad_answer, resolve_failed, resolver_failed

#: The type of ``Connector(resolver=)``.
Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

#: The most addresses of an answer that are read. An answer may have any number.
_MOST = 256


async def ask(resolver: Resolver, address: SocketAddress) -> tuple[list[str], int]:
    """Return the IP addresses that ``resolver`` returns for a name, and how many more there are.

    The list has at least one address.

    :raises ResolveError: the resolver returned no address or something else, or raised an error
    """
    host, port = address
    try:
        # Users need not obey the annotations.
        answer: object = resolver(host, port)
        found: object = await answer if isawaitable(answer) else _NoAwaitable(answer)
    except Exception as exc:
        raise resolver_failed(host, port, exc) from exc
    if isinstance(found, _NoAwaitable):
        raise bad_answer(host, port, found.answer, "cannot be awaited: write it with 'async def'")
    if isinstance(found, (str, bytes, bytearray)) or not isinstance(found, Sequence):
        raise bad_answer(host, port, found, "is not a list of IP addresses")
    try:
        listed: list[object] = list(islice(found, _MOST))
        more = len(found) - len(listed)
    except Exception as exc:
        raise resolver_failed(host, port, exc) from exc
    addresses: list[str] = []
    for text in listed:
        if not isinstance(text, str) or not is_ip(text):
            raise bad_answer(host, port, text, "is not an IP address")
        addresses.append(text)
    if not addresses:
        raise resolve_failed(host, port, None)
    return addresses, max(0, more)


class _NoAwaitable:
    """Marks an answer that cannot be awaited."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
