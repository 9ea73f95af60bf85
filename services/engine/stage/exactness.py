"""The self-test of a loaded stage: is a row's result its own?

Random rows run through the stage's own layers as one prefill, as chunks, row by row, and among
other sequences of other lengths. What comes out, the logits of the last stage, and so the KV cache
that both are made from, must be equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.engine.backend import BLOCK_SIZE
from services.engine.stage.spans import Span

ROWS = 40
"""Positions of the sequence that is run in all ways: two and a half blocks."""
NEIGHBOURS = (1, 3, 17)
"""Rows of the sequences beside it."""
CUTS = (
    (ROWS,),
    (13, 16, 10, 1),
    (33, *[1] * (ROWS - 33)),
    (*[1] * (BLOCK_SIZE + 2), ROWS - BLOCK_SIZE - 2),
)
"""Behind a block of rows that came one by one, some kernels differ that do not before."""
BLOCKS = 8
"""KV blocks that all of it takes."""

Rows = NDArray[Any]
"""[rows] ids, or [rows, row_width] numbers as fp32, which holds those of any element type."""


class Computes(Protocol):
    """The layers of a stage over a KV cache of its own."""

    def forward(self, rows: Rows, spans: Sequence[Span]) -> Rows:
        """What comes out of the layers."""
        ...

    def logits(self, rows: Rows) -> NDArray[np.float32]:
        """Of rows that came out of the layers of the last stage."""
        ...


def _blocks(first: int, positions: int) -> range:
    return range(first, first + (positions + BLOCK_SIZE - 1) // BLOCK_SIZE)


def _alone(computes: Computes, rows: Rows, cuts: tuple[int, ...], table: range) -> Rows:
    results, start = [], 0
    for count in cuts:
        chunk = rows[start : start + count]
        results.append(computes.forward(chunk, [Span(0, count, start, table)]))
        start += count
    return np.concatenate(results)


def _together(computes: Computes, rows: Rows, others: list[Rows], tables: list[range]) -> Rows:
    """The sequence's first rows as prefill between others, the rest one by one between others."""
    results, half = [], len(rows) // 2
    starts = [0] * len(others)
    for start, count in ((0, half), *((row, 1) for row in range(half, len(rows)))):
        parts, spans, first = [], [], 0
        for index, other in enumerate(others):
            left = min(count if index % 2 else 1, len(other) - starts[index])
            if left <= 0:
                continue
            parts.append(other[starts[index] : starts[index] + left])
            spans.append(Span(first, left, starts[index], tables[index + 1]))
            starts[index] += left
            first += left
        parts.append(rows[start : start + count])
        spans.append(Span(first, count, start, tables[0]))
        found = computes.forward(np.concatenate(parts), spans)
        results.append(found[first : first + count])
    return np.concatenate(results)


def is_exact(
    computes: Computes,
    draw: Callable[[int], Rows],
    *,
    context_length: int,
    kv_blocks: int = BLOCKS,
    last: bool,
) -> bool:
    """Whether every way of running one sequence gives the same bits; about a second.

    `draw` makes so many random rows. Uses KV blocks from 0 on, as many as there are of those it
    needs.
    """
    longest = min(ROWS, kv_blocks * BLOCK_SIZE, context_length)
    rows = draw(longest)
    tables = [_blocks(0, longest)]
    others: list[Rows] = []
    for count in NEIGHBOURS:
        table = _blocks(tables[-1].stop, count)
        if table.stop <= kv_blocks:
            others.append(draw(count))
            tables.append(table)
    reference = _alone(computes, rows, (longest,), tables[0])
    for cuts in CUTS[1:]:
        if sum(cuts) == longest and not np.array_equal(
            reference, _alone(computes, rows, cuts, tables[0])
        ):
            return False
    if not np.array_equal(reference, _together(computes, rows, others, tables)):
        return False
    if not last:
        return True
    logits = computes.logits(reference[: NEIGHBOURS[-1]])
    alone = [computes.logits(reference[row : row + 1]) for row in range(len(logits))]
    return np.array_equal(logits, np.concatenate(alone)) and bool(np.isfinite(reference).all())
