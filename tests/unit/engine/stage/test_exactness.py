"""What the self-test asks, of an arithmetic that is a sum."""

from __future__ import annotations

import numpy as np
import pytest

from services.engine.backend import BLOCK_SIZE
from services.engine.stage import exactness


class Sums:
    """A row's result is the sum of all rows up to it; logits are what comes out."""

    def __init__(self, flaw=lambda rows, spans: rows):
        self._flaw = flaw
        self.cache, self.widths = {}, set()

    def forward(self, rows, spans):
        found = np.zeros_like(rows)
        for span in spans:
            for offset in range(span.count):
                position = span.start + offset
                self.cache[self._place(span, position)] = rows[span.first + offset]
                context = [self.cache[self._place(span, p)] for p in range(position + 1)]
                found[span.first + offset] = np.sum(context, axis=0)
        return self._flaw(found, spans)

    def logits(self, rows):
        return self._flaw(rows, [None] if len(rows) == 1 else [])

    @staticmethod
    def _place(span, position):
        return span.table[position // BLOCK_SIZE], position % BLOCK_SIZE


def ids(count):
    return np.arange(count, dtype=np.int64)


def numbers(count):
    return np.linspace(0, 1, 4 * count, dtype=np.float32).reshape(count, 4)


FLAWS = {
    "single rows": lambda rows, spans: rows + (len(rows) == 1),
    "chunks": lambda rows, spans: rows + (len(spans) == 1 and spans[0] and spans[0].start > 0),
    "neighbours": lambda rows, spans: rows + (len(spans) > 2),
    "the head": lambda rows, spans: rows + (spans == [None]),
    "not a number": lambda rows, spans: rows * np.nan,
}


@pytest.mark.parametrize("draw", [ids, numbers])
@pytest.mark.parametrize(("kv_blocks", "context_length"), [(8, 512), (1, 512), (8, 9), (4, 33)])
def test_a_row_that_is_its_own_passes(draw, kv_blocks, context_length):
    sums = Sums()
    assert exactness.is_exact(
        sums, draw, context_length=context_length, kv_blocks=kv_blocks, last=True
    )
    assert {block for block, _ in sums.cache} <= set(range(kv_blocks))


@pytest.mark.parametrize("flaw", FLAWS)
def test_every_flaw_is_seen(flaw):
    sums = Sums(FLAWS[flaw])
    assert not exactness.is_exact(sums, numbers, context_length=512, last=True)


class Leaky(Sums):
    """What a row leaves behind in the first block differs when it came alone."""

    def forward(self, rows, spans):
        found = super().forward(rows, spans)
        if len(rows) == 1 and spans[0].start < BLOCK_SIZE - 1:
            self.cache[self._place(spans[0], spans[0].start)] = rows[0] + 1
        return found


def test_rows_that_come_one_by_one_from_the_first_on_are_tried():
    assert not exactness.is_exact(Leaky(), numbers, context_length=512, last=True)
