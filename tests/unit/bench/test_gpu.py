from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench.gpu_exactness import OUTPUTS, Agreement, Job, run
from bench.gpu_rates import Ceilings, figures, work
from services.common.generation import TokenLogprob
from services.engine.backend import Batch, Sampled

RAW = {
    "hidden_size": 64,
    "intermediate_size": 100,
    "head_dim": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 1000,
}
LAYER = 2 * 64 * 64 + 2 * 16 * 64 + 3 * 64 * 100
"""Queries and output, keys and values, gate with up and down."""


def said(token_id: int, logprob: float = -1.0, other: float = -2.0) -> Sampled:
    return Sampled(0, 0, token_id, TokenLogprob(logprob, ((token_id, logprob), (99, other))))


def test_a_step_reads_every_weight_once_and_what_its_rows_see() -> None:
    of = work(RAW, 2)
    assert (of.layer_weights, of.head_weights) == (3 * LAYER, 64000)
    assert of.kv_bytes == 3 * 2 * 16 * 2
    assert of.step_bytes(1, 0) == 2 * (3 * LAYER + 64000)
    assert of.step_bytes(4, 10) - of.step_bytes(4, 0) == 4 * 10 * of.kv_bytes


def test_a_floor_is_that_of_bytes_or_that_of_products_whichever_is_longer() -> None:
    of, infinite = work(RAW, 2), float("inf")
    bytes_alone = Ceilings(100.0, infinite)
    assert of.step_floor_s(bytes_alone, 4, 10) == of.step_bytes(4, 10) / 100
    flops = 2 * 4 * (3 * LAYER + 64000) + 4 * 10 * 3 * 4 * 64
    assert of.step_floor_s(Ceilings(infinite, 10.0), 4, 10) == flops / 10
    flops = 2 * 5 * 3 * LAYER + 2 * 64000 + (1 + 2 + 3 + 4 + 5) * 3 * 4 * 64
    assert of.prefill_floor_s(Ceilings(infinite, 10.0), 5) == flops / 10
    assert of.prefill_floor_s(bytes_alone, 5) == of.step_bytes(1, 5) / 100


def test_rates_are_compared_as_times() -> None:
    found = figures(2.0, 3.0, 0.5, per_s=10, unit="steps_per_s")
    assert found == {
        "steps_per_s": 5.0,
        "transformers_steps_per_s": 3.3,
        "roofline_steps_per_s": 20.0,
        "over_transformers": 1.5,
        "of_roofline": 0.25,
    }


def test_generations_that_say_the_same_bits_agree() -> None:
    agreement = Agreement()
    agreement.add([said(1), said(2), said(3)], [said(2), said(3)])
    assert agreement.exact
    assert (agreement.generations, agreement.tokens) == (1, 2)


def test_one_bit_of_one_log_probability_is_seen_whatever_the_ids() -> None:
    agreement = Agreement()
    agreement.add([said(1), said(2)], [said(1), said(2, other=-2.25)])
    assert not agreement.exact
    assert (agreement.other_ids, agreement.other_logprobs, agreement.furthest) == (0, 1, 0.25)


def test_behind_another_id_nothing_is_compared() -> None:
    agreement = Agreement()
    agreement.add([said(1), said(2), said(3)], [said(1), said(7), said(8)])
    assert (agreement.other_ids, agreement.tokens) == (1, 2)


class Counting:
    """A stage whose next id is one more than the last row's, and that notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int, int, bool]]] = []

    def forward(self, batch: Batch, rows: list[int]) -> tuple[Sampled, ...]:
        self.batches.append([(s.slot, s.start, s.count, s.sample) for s in batch.steps])
        answers, first = [], 0
        for step in batch.steps:
            first += step.count
            if step.sample:
                answers.append(Sampled(step.slot, 0, rows[first - 1] + 1))
        return tuple(answers)


def test_jobs_are_cut_join_late_and_are_given_what_follows_what_they_hold() -> None:
    stage = Counting()
    jobs = [Job(0, [10, 20, 30]), Job(1, [5], held=[6, 7], joins=1)]
    found = run(stage, jobs, chunk=2)  # type: ignore[arg-type]
    assert [s.token_id for s in found[0]] == [31 + n for n in range(OUTPUTS)]
    assert [s.token_id for s in found[1]] == [8 + n for n in range(OUTPUTS - 2)]
    assert stage.batches[0] == [(0, 0, 2, False)]
    assert stage.batches[1] == [(0, 2, 1, True), (1, 0, 2, False)]
    assert stage.batches[2] == [(0, 3, 1, True), (1, 2, 1, True)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_and_exits_with_a_status_of_its_own() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bench.gpu"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "no CUDA device" in ended.stderr
    assert not ended.stdout
