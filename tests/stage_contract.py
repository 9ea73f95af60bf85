"""What every backend's stages hold to, whatever computes them: the tests of one are those of all.

A subclass brings the fixtures `whole` and `split`, pipelines of one model of five layers and 515
tokens in one stage and in two, with empty caches of 64 blocks; `dtype`; and `mixes`, how many
random mixes it has time for.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.engine.backend import Batch, Hidden, HiddenDtype, Sampled, SequenceStep
from tests import drafted, moved_blocks, shared_blocks
from tests.pipelines import Pipeline

PROMPTS = [[5 + (7 * i + 13 * n) % 500 for i in range(n)] for n in (1, 16, 17, 40, 61)]
SIXTEEN = PROMPTS[1]
SEEDED: dict[str, Any] = {
    "temperature": 0.9,
    "top_p": 0.95,
    "seed": 11,
    "frequency_penalty": 0.3,
}
OUTPUTS = 48


def step(**changes: Any) -> SequenceStep:
    """Sixteen rows of slot 0, or what is changed of it."""
    return replace(SequenceStep(0, 0, 16, (1,), True), **changes)


class StageContract:
    """Ids are a function of the request alone, and what cannot be is refused by its field."""

    @pytest.fixture
    def outputs(self) -> int:
        """Ids of a generation."""
        return OUTPUTS

    def test_two_stages_are_one_stage(self, whole: Pipeline, split: Pipeline, outputs: int) -> None:
        for prompt in PROMPTS:
            for sampling in ({}, SEEDED):
                alone = whole.generate(prompt, outputs, **sampling)
                assert split.generate(prompt, outputs, **sampling) == alone

    @pytest.mark.parametrize("chunks", [[1] * 20, [16, 16, 16], [7, 30, 1], [59]])
    def test_the_chunks_of_a_prefill_do_not_change_the_ids(
        self, split: Pipeline, chunks: list[int]
    ) -> None:
        for sampling in ({}, SEEDED):
            alone = split.generate(PROMPTS[4], 12, **sampling)
            assert split.generate(PROMPTS[4], 12, chunks=chunks, **sampling) == alone

    def test_a_generation_replayed_at_any_cut_goes_on_with_the_same_ids(
        self, split: Pipeline, outputs: int
    ) -> None:
        greedy = split.generate(PROMPTS[2], outputs)
        seeded = split.generate(PROMPTS[2], outputs, **SEEDED)
        for cut in range(outputs):
            assert split.generate(PROMPTS[2], cut + 1, greedy[:cut])[cut] == greedy[cut]
        for cut in range(0, outputs, 12):
            assert split.generate(PROMPTS[2], outputs, seeded[:cut], **SEEDED) == seeded

    @pytest.mark.parametrize("seed", range(3))
    def test_a_batch_gives_every_sequence_the_ids_it_has_alone(
        self, split: Pipeline, seed: int, outputs: int
    ) -> None:
        found, preempted = mixed(split, seed, outputs)
        assert found == [split.generate(prompt, outputs) for prompt in PROMPTS]
        assert preempted

    def test_drafts_change_no_id_in_any_mix(
        self, whole: Pipeline, split: Pipeline, mixes: int
    ) -> None:
        drafted.check_mixes(whole.stages, split.stages, mixes)

    def test_blocks_that_others_computed_change_no_id_in_any_mix(
        self, whole: Pipeline, split: Pipeline, mixes: int
    ) -> None:
        shared_blocks.check_mixes(whole.stages, split.stages, mixes)

    @pytest.mark.parametrize("sampling", [{}, SEEDED], ids=["greedy", "seeded"])
    def test_a_generation_goes_on_from_its_blocks_at_every_position(
        self, whole: Pipeline, split: Pipeline, outputs: int, sampling: dict[str, Any]
    ) -> None:
        """Between one stage and two, so that layers are cut and joined; only the rows behind the
        last full block are computed again."""
        prompt = PROMPTS[2]
        alone = whole.generate(prompt, outputs, **sampling)
        for source, target in ((whole, split), (split, whole), (split, split)):
            moved_blocks.check(source, target, prompt, alone, sampling)

    def test_blocks_that_cannot_be_are_refused_by_field_and_change_nothing(
        self, whole: Pipeline
    ) -> None:
        (stage,) = whole.stages
        whole.run(Batch([step()], [whole.open(0, SIXTEEN)]), SIXTEEN)
        (held,) = stage.export_blocks([1])
        assert len(held) == stage.kv_layout.size_bytes(stage.facts.layers)
        for blocks, data, field in (
            ([64], [held], "blocks"),
            ([-1], [held], "blocks"),
            ([1], [held[:-1]], "data"),
            ([1, 2], [held], "data"),
        ):
            with pytest.raises(InvalidArgument) as refused:
                stage.import_blocks(blocks, data)
            assert refused.value.field == field
        with pytest.raises(InvalidArgument, match="below 64"):
            stage.export_blocks([64])
        assert stage.export_blocks([1]) == [held]
        stage.end()
        with pytest.raises(FailedPrecondition, match="no cache"):
            stage.export_blocks([1])

    def test_a_stage_that_is_begun_again_has_forgotten_all_but_its_weights(
        self, whole: Pipeline
    ) -> None:
        (stage,) = whole.stages
        reference = whole.generate(PROMPTS[3], 8)
        whole.run(Batch([step()], [whole.open(0, SIXTEEN)]), SIXTEEN)
        stage.end()
        with pytest.raises(FailedPrecondition, match="no cache"):
            stage.forward(Batch([]), [])
        stage.begin(8)
        assert whole.generate(PROMPTS[3], 8) == reference
        with pytest.raises(InvalidArgument, match="below 8"):
            whole.run(Batch([step(block_table=(8,))], [whole.open(0, SIXTEEN)]), SIXTEEN)

    def test_a_cache_that_another_formation_takes_on_holds_what_it_held(
        self, whole: Pipeline
    ) -> None:
        """Every slot is free, and another size is refused: its blocks would be others."""
        (stage,) = whole.stages
        opened = whole.open(0, SIXTEEN)
        first = whole.run(Batch([step()], [opened]), SIXTEEN)
        held = stage.export_blocks([1])
        with pytest.raises(FailedPrecondition, match="64 blocks, not 8"):
            stage.begin_again(8)
        stage.begin_again(64)
        assert stage.export_blocks([1]) == held
        assert whole.run(Batch([step()], [opened]), SIXTEEN) == first
        stage.end()
        with pytest.raises(FailedPrecondition, match="0 blocks, not 64"):
            stage.begin_again(64)

    def test_an_empty_batch_that_only_closes_passes_every_stage(self, split: Pipeline) -> None:
        assert split.run(Batch([], closes=[3]), []) == ()

    def test_a_slot_can_be_closed_and_taken_again_in_one_batch(self, whole: Pipeline) -> None:
        first = whole.run(Batch([step()], [whole.open(0, SIXTEEN)]), SIXTEEN)
        again = whole.run(Batch([step()], [whole.open(0, SIXTEEN)], [0]), SIXTEEN)
        assert first == again == (Sampled(0, 0, first[0].token_id),)

    def test_a_slot_has_one_step_a_batch(self, whole: Pipeline) -> None:
        batch = Batch([step(), step()], [whole.open(0, SIXTEEN)])
        with pytest.raises(InvalidArgument, match="slot 0 is not open"):
            whole.run(batch, SIXTEEN * 2)

    @pytest.mark.parametrize(
        ("field", "changes"),
        [
            ("steps.slot", {"slot": 1}),
            ("steps.start", {"start": -1}),
            ("steps.start", {"count": 0}),
            ("steps.start", {"start": 500, "count": 16}),
            ("steps.block_table", {"block_table": ()}),
            ("steps.block_table", {"block_table": (64,)}),
            ("steps.block_table", {"block_table": (-1,)}),
            ("steps.sample", {"count": 15}),
            ("rows", {"count": 15, "sample": False}),
        ],
    )
    def test_a_malformed_step_is_refused_by_field_and_changes_nothing(
        self, whole: Pipeline, field: str, changes: dict[str, Any]
    ) -> None:
        opened = whole.open(0, SIXTEEN)
        with pytest.raises(InvalidArgument) as refused:
            whole.run(Batch([step(**changes)], [opened]), SIXTEEN)
        assert refused.value.field == field
        assert len(whole.run(Batch([step()], [opened]), SIXTEEN)) == 1

    def test_rows_of_the_wrong_kind_are_refused(self, split: Pipeline, dtype: HiddenDtype) -> None:
        first, second = split.stages
        batch = Batch([step(sample=False)], [split.open(0, SIXTEEN)])
        hidden = first.forward(batch, SIXTEEN)
        assert isinstance(hidden, Hidden)
        other: HiddenDtype = "fp32" if dtype == "bf16" else "bf16"
        wrong: list[tuple[Any, Any, str]] = [
            (first, hidden, "hidden"),
            (first, [*SIXTEEN[:15], 515], "token_ids"),
            (second, SIXTEEN, "rows"),
            (second, replace(hidden, dtype=other), "hidden.dtype"),
            (second, replace(hidden, data=hidden.data[:-1]), "hidden.data"),
        ]
        for stage, rows, field in wrong:
            stage.begin(64)
            with pytest.raises(InvalidArgument) as refused:
                stage.forward(batch, rows)
            assert refused.value.field == field

    def test_tokens_come_with_log_probabilities(self, whole: Pipeline) -> None:
        opened = whole.open(0, SIXTEEN, top_logprobs=3)
        (sampled,) = whole.run(Batch([step()], [opened]), SIXTEEN)
        assert sampled.logprob is not None
        assert sampled.logprob.top[0][0] == sampled.token_id


def mixed(
    pipeline: Pipeline, seed: int, outputs: int, budget: int = 24
) -> tuple[list[list[int]], int]:
    """Sequences join at random, prefill in chunks beside decodes, are preempted and come back: what
    each says, and how many were preempted."""
    chance = random.Random(seed)
    waiting: list[tuple[int, tuple[int, ...]]] = [(number, ()) for number in range(len(PROMPTS))]
    running: dict[int, list[Any]] = {}
    done, preempted = dict[int, list[int]](), 0
    opens, closes = list[Any](), list[int]()
    while waiting or running:
        while waiting and len(running) < 6 and chance.random() < 0.5:
            number, held = waiting.pop(0)
            opens.append(pipeline.open(number, PROMPTS[number], held))
            running[number] = [list(PROMPTS[number]) + list(held), 0]
        if running and chance.random() < 0.1:
            number = chance.choice(sorted(running))
            ids, _ = running.pop(number)
            opened = [each for each in opens if each.slot == number]
            opens = [each for each in opens if each.slot != number]
            closes += [] if opened else [number]
            waiting.insert(0, (number, tuple(ids[len(PROMPTS[number]) :])))
            preempted += 1
        left, steps, rows = budget, list[SequenceStep](), list[int]()
        for number, state in running.items():
            ids, start = state
            count = min(left, len(ids) - start, chance.choice((1, 5, 16, 99)))
            if count > 0:
                state[1] += count
                left -= count
                steps.append(pipeline.step(number, start, count, start + count == len(ids)))
                rows += ids[start : start + count]
        sampled = pipeline.run(Batch(steps, opens, closes), rows)
        opens, closes = [], []
        for each in sampled:
            ids = running[each.slot][0]
            ids.append(each.token_id)
            if len(ids) == len(PROMPTS[each.slot]) + outputs:
                done[each.slot] = ids[-outputs:]
                del running[each.slot]
                closes.append(each.slot)
    pipeline.run(Batch([], closes=closes), [])
    return [done[number] for number in range(len(PROMPTS))], preempted
