"""Checks that no object is left to the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def nothing_to_collect() -> Iterator[None]:
    """Fail if the block leaves reference cycles behind."""
    enabled, debug = gc.isenabled(), gc.get_debug()
    gc.disable()
    gc.collect()  # ignore earlier garbage
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [thing for thing in gc.garbage if is_ours(thing)]
        assert not left, f"reference cycles were left: {left}"
    finally:
        gc.set_debug(debug)
        gc.garbage.clear()
        if enabled:
            gc.enable()


def is_ours(thing: object) -> bool:
    if isinstance(thing, FrameType):
        return str(thing.f_globals["__name__"]).startswith("anyio_connect")
    return type(thing).__module__.partition(".")[0] == "anyio_connect"


class Local:
    """An object that only the frame of a caller refers to."""
