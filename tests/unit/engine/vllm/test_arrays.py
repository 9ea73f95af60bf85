from __future__ import annotations

import pytest

from services.engine.backend import SequenceStep
from services.engine.stage.spans import Span, spans_of
from services.engine.vllm.arrays import Arrays


def test_spans_become_arrays() -> None:
    arrays = Arrays.of([Span(0, 3, 15, (7, 4)), Span(3, 1, 0, (2,))])
    assert arrays.counts.tolist() == [3, 1]
    assert arrays.starts.tolist() == [0, 3, 4]
    assert arrays.lengths.tolist() == [18, 1]
    assert arrays.tables.tolist() == [[7, 4], [2, 0]]
    assert arrays.positions.tolist() == [15, 16, 17, 0]
    assert arrays.slots.tolist() == [7 * 16 + 15, 4 * 16, 4 * 16 + 1, 2 * 16]
    for name in ("counts", "starts", "lengths", "tables"):
        assert getattr(arrays, name).dtype == "int32", name
    for name in ("positions", "slots"):
        assert getattr(arrays, name).dtype == "int64", name


@pytest.mark.parametrize("counts", [(1,), (4, 1, 7)])
def test_steps_lie_one_behind_the_other(counts: tuple[int, ...]) -> None:
    steps = [SequenceStep(slot, 5, count, (slot,), True) for slot, count in enumerate(counts)]
    spans = spans_of(steps)
    assert [span.count for span in spans] == list(counts)
    assert [span.first for span in spans] == [sum(counts[:n]) for n in range(len(counts))]
