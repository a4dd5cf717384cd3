"""Compares errors that are equal, but not the same object."""

from __future__ import annotations

from typing import Any


def is_copy(one: BaseException | None, other: BaseException | None) -> bool:
    """Whether they are two objects with the same text and the same causes."""
    return one is not other and _said(one) == _said(other)


def _said(error: Any) -> object:
    if not isinstance(error, BaseException):
        return error
    state = {name: _said(value) for name, value in vars(error).items() if name != "attempts"}
    attempts = [_said(attempt) for attempt in getattr(error, "attempts", ())]
    numbers = [getattr(error, name, None) for name in ("errno", "strerror", "filename")]
    return type(error), str(error), numbers, state, attempts, _said(error.__cause__)
