"""Many tasks at the same time: the same for all on one event loop.

Not AnyIO's task groups, which cost more than asyncio's gather(): that would be counted as the
socket's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.work import Call


class OnAsyncio:
    async def at_once(self, calls: Sequence[Call]) -> None:
        await asyncio.gather(*(call() for call in calls))


class OnTrio:
    async def at_once(self, calls: Sequence[Call]) -> None:
        import trio

        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(call)
