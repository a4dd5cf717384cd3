"""Acts on a TLS transport for tests, and the versions of TLS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
import pytest

from anyio_connect._tls import TLSTransport
from support.tls_peers import (
    TLS12,
    TLS13,
)
from support.turns import all_blocked

each_version = pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])


async def cancelled(call: Callable[..., Coroutine[Any, Any, object]], *args: object) -> None:
    """Start a call, wait until it waits, and cancel it."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, *args)
        await all_blocked()
        tasks.cancel_scope.cancel()


async def cancelled_at_once(call: Callable[..., Awaitable[object]], *args: object) -> bool:
    """Make a call in a scope that is cancelled already; return whether it was cancelled."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await call(*args)
    return scope.cancelled_caught


async def receive_all(tls: TLSTransport, max_bytes: int = 65536) -> bytes:
    chunks = []
    with suppress(anyio.EndOfStream):
        while True:
            chunks.append(await tls.receive(max_bytes))
            assert 0 < len(chunks[-1]) <= max_bytes
    return b"".join(chunks)
