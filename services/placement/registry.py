"""Planners by name; each module is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module

from services.common.errors import InvalidArgument
from services.placement.problem import Planner

DEFAULT_PLANNER = "shuntserve"
NAMES = (
    "proportional",
    "shuntserve",
    "exact",
    "hexgen",
    "alpaserve",
    "vllm",
    "helix",
    "thunderserve",
    "spotserve",
)


def planner(name: str) -> Planner:
    if name not in NAMES:
        raise InvalidArgument(
            f"unknown planner {name[:40]!r}; known: {', '.join(NAMES)}", field="planner"
        )
    found: Planner = import_module(f"services.placement.planners.{name}").plan
    return found
