"""Speeds of local nodes as text: 3:2,3:2 is four nodes for two pipelines."""

from __future__ import annotations

import re

from services.common.errors import InvalidArgument

MAX_SPEED = 1e6
"""No node says of itself that it is faster."""
_SPEEDS = re.compile(r"\d+(\.\d+)?([:,]\d+(\.\d+)?)*", re.ASCII)


def parse_speeds(text: str) -> tuple[tuple[float, ...], ...]:
    """The speeds by pipeline. Raises InvalidArgument for what is none, and for one out of range."""
    if not _SPEEDS.fullmatch(text):
        raise InvalidArgument("speeds read 3:2,3:2", field="node_speeds")
    parts = tuple(tuple(map(float, part.split(":"))) for part in text.split(","))
    if not all(0 < speed <= MAX_SPEED for part in parts for speed in part):
        raise InvalidArgument(f"speeds lie in (0, {MAX_SPEED:g}]", field="node_speeds")
    return parts
