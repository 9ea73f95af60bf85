"""Stages of a pipeline as text: 0-1:tp1,2-5:tp2 is layers 0 and 1 on one rank, 2 to 5 on two."""

from __future__ import annotations

import re
from itertools import pairwise

from services.common.errors import InvalidArgument
from services.common.generation import LayerRange
from services.common.nodes import StageSpec

MOST_CHARS = 4096
_STAGE = re.compile(r"(\d{1,6})-(\d{1,6})(?::tp(\d{1,3}))?", re.ASCII)


def parse_stages(text: str) -> tuple[StageSpec, ...]:
    """Head first; both ends of a range belong to it, and a stage that names no degree has one rank.
    Raises InvalidArgument for what is none, for layers left out or named twice."""
    found = [_STAGE.fullmatch(part) for part in text[:MOST_CHARS].split(",")]
    if len(text) > MOST_CHARS or None in found:
        raise _refused("stages read 0-1:tp1,2-5:tp2")
    stages = tuple(
        StageSpec(LayerRange(int(match[1]), int(match[2]) + 1), int(match[3] or 1))
        for match in found
        if match is not None and int(match[1]) <= int(match[2])
    )
    if len(stages) < len(found):
        raise _refused("a stage ends behind its first layer")
    if stages[0].layers.start != 0:
        raise _refused("the first stage begins at layer 0")
    for before, stage in pairwise(stages):
        if stage.layers.start != before.layers.end:
            raise _refused(f"a stage begins at layer {before.layers.end}")
    if any(stage.tp_degree < 1 for stage in stages):
        raise _refused("a stage has a rank at least")
    return stages


def _refused(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="stages")
