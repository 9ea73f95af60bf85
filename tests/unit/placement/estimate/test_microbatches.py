from __future__ import annotations

import pytest

from services.placement.estimate.engine import BatchBounds
from services.placement.estimate.microbatches import Microbatches

BOUNDS = BatchBounds(token_budget=1000, min_overlap_sequences=8)
DECODES = (0.01, 0.02, 0.01)
READS = (0.10, 0.30, 0.20)


def test_all_that_decode_wait_behind_one_prompt_at_every_stage() -> None:
    split = Microbatches.of(3, BOUNDS, decoding=60, prompt_rows=800)
    assert (split.count, split.reading, split.decoding, split.prompt_rows) == (3, 1, 20.0, 800)
    assert split.cycle_s(DECODES, READS) == pytest.approx(0.6)


def test_prompts_that_fill_all_microbatches_are_read_side_by_side() -> None:
    split = Microbatches.of(3, BOUNDS, decoding=0, prompt_rows=3000)
    assert (split.reading, split.prompt_rows) == (3, 1000)
    assert split.cycle_s(DECODES, READS) == pytest.approx(3 * 0.3)


def test_the_slowest_stage_bounds_what_only_decodes() -> None:
    split = Microbatches.of(3, BOUNDS, decoding=60, prompt_rows=0)
    assert (split.reading, split.prompt_rows) == (0, 0.0)
    assert split.cycle_s(DECODES, READS) == pytest.approx(3 * 0.02)


def test_few_sequences_make_one_microbatch_that_takes_its_way() -> None:
    split = Microbatches.of(3, BOUNDS, decoding=15, prompt_rows=0)
    assert (split.count, split.decoding) == (1, 15)
    assert Microbatches.of(3, BOUNDS, decoding=16, prompt_rows=0).count == 2
    assert split.cycle_s(DECODES, READS) == pytest.approx(0.04)
