from __future__ import annotations

import pytest

from simulator.fleet.microbatches import Microbatches

DECODES = (0.01, 0.02, 0.01)
READS = (0.10, 0.30, 0.20)


def test_all_that_decode_wait_behind_one_prompt_at_every_stage() -> None:
    split = Microbatches.of(3, 1000, decoding=60, prompt_rows=800, prompts=1)
    assert (split.count, split.reading, split.decoding, split.prompt_rows) == (3, 1, 20.0, 800)
    assert split.cycle_s(DECODES, READS) == pytest.approx(0.6)


def test_prompts_that_fill_all_microbatches_are_read_side_by_side() -> None:
    split = Microbatches.of(3, 1000, decoding=0, prompt_rows=3000, prompts=4)
    assert (split.reading, split.prompt_rows) == (3, 1000)
    assert split.cycle_s(DECODES, READS) == pytest.approx(3 * 0.3)


def test_the_slowest_stage_bounds_what_only_decodes() -> None:
    split = Microbatches.of(3, 1000, decoding=60, prompt_rows=0, prompts=0)
    assert (split.reading, split.prompt_rows) == (0, 0.0)
    assert split.cycle_s(DECODES, READS) == pytest.approx(3 * 0.02)


def test_one_sequence_alone_takes_its_way() -> None:
    split = Microbatches.of(3, 1000, decoding=1, prompt_rows=0, prompts=0)
    assert split.count == 1
    assert split.cycle_s(DECODES, READS) == pytest.approx(0.04)
