"""Where the rows of a step belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.engine.backend import SequenceStep


@dataclass(frozen=True, slots=True)
class Span:
    """`count` rows of one sequence from row `first` on, at positions from `start` on."""

    first: int
    count: int
    start: int
    table: Sequence[int]
    """KV blocks from position 0 on."""


def spans_of(steps: Sequence[SequenceStep]) -> list[Span]:
    """The rows of a batch, one step behind the other."""
    spans, first = [], 0
    for step in steps:
        spans.append(Span(first, step.count, step.start, step.block_table))
        first += step.count
    return spans
