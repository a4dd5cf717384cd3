"""The scenarios as data. steps.py explains their steps."""

from __future__ import annotations

from importlib import import_module

from conformance.scenario import SCENARIOS, Scenario

__all__ = ["SCENARIOS", "Scenario"]

#: The modules, in the order of their scenarios.
PARTS = (
    "opening",
    "peer_ends",
    "ending",
    "closing",
    "moving",
    "in_flight",
    "pipes",
    "tls",
    "start_tls",
    "addresses",
)

for part in PARTS:
    import_module(f"conformance.scenarios.{part}")
