"""Numerics classes: of a stage, and of a pipeline of stages.

Stages of one class give equal ids for equal requests. A backend whose sums change with the number
of ranks ends its stages' class in the degree, -tp2; then the class of a pipeline tells how many
layers run at which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from services.common.nodes import StageSpec

_DEGREE = re.compile(r"-tp\d+$", re.ASCII)


def arithmetic(stage_class: str) -> str:
    """What the stages of one pipeline have in common: their class but for its degree."""
    return _DEGREE.sub("", stage_class)


def form_one(stage_classes: Iterable[str]) -> bool:
    """Stages of these classes may form a pipeline."""
    return len(set(map(arithmetic, stage_classes))) <= 1


def pipeline_class(head_class: str, stages: Sequence[StageSpec]) -> str:
    """Of a pipeline, by its head's: the same, where no degree is part of it or all are equal."""
    if arithmetic(head_class) == head_class or len({stage.tp_degree for stage in stages}) == 1:
        return head_class
    runs: list[tuple[int, int]] = []
    for stage in stages:
        degree, layers = stage.tp_degree, len(stage.layers)
        if runs and runs[-1][0] == degree:
            layers += runs.pop()[1]
        runs.append((degree, layers))
    return arithmetic(head_class) + "".join(f"-tp{degree}x{layers}" for degree, layers in runs)
