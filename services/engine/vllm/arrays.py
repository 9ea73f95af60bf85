"""The spans of a step as the arrays that attention is told it by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.engine.backend import BLOCK_SIZE
from services.engine.stage.spans import Span

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Arrays:
    """Of one step."""

    counts: Int32  # [spans]: rows
    starts: Int32  # [spans + 1]: first rows
    lengths: Int32  # [spans]: positions behind the step
    tables: Int32  # [spans, most blocks]
    positions: Int64  # [rows]
    slots: Int64  # [rows]: where keys and values go

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Arrays:
        counts = np.array([span.count for span in spans], dtype=np.int32)
        before = np.array([span.start for span in spans], dtype=np.int32)
        starts = np.zeros(len(spans) + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        tables = np.zeros((len(spans), max(len(s.table) for s in spans)), dtype=np.int32)
        for row, span in zip(tables, spans, strict=True):
            row[: len(span.table)] = span.table
        positions = np.arange(starts[-1], dtype=np.int64) + np.repeat(before - starts[:-1], counts)
        owner = np.repeat(np.arange(len(spans)), counts)
        blocks = tables[owner, positions // BLOCK_SIZE].astype(np.int64)
        return cls(
            counts,
            starts,
            before + counts,
            tables,
            positions,
            blocks * BLOCK_SIZE + positions % BLOCK_SIZE,
        )
