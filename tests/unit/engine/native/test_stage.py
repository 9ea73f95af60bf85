"""One arithmetic, whatever the batch, the chunks, the stages or the cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import FailedPrecondition, InvalidArgument
from services.engine.backend import Batch, Hidden, Sampled, SequenceStep

WAYS = [("auto", "bf16"), ("auto", "fp32"), ("torch", "bf16"), ("torch", "fp32")]
PROMPTS = [[5 + (7 * i + 13 * n) % 500 for i in range(n)] for n in (1, 15, 16, 17, 33, 40, 61)]
SEEDED = {"temperature": 0.9, "top_p": 0.95, "seed": 11, "frequency_penalty": 0.3}


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(way))
def way(request):
    return {"arithmetic": request.param[0], "dtype": request.param[1]}


@pytest.fixture(params=["llama", "qwen3"])
def model(request, tiny_model):
    return tiny_model(request.getfixturevalue(request.param))


@pytest.mark.parametrize("sampling", [{}, SEEDED], ids=["greedy", "seeded"])
def test_a_generation_replayed_at_any_cut_goes_on_with_the_same_ids(model, pipeline, way, sampling):
    whole = pipeline([model.stage(**way)])
    reference = whole.generate(PROMPTS[4], 24, **sampling)
    for cut in range(0, 24, 5 if way["arithmetic"] == "torch" else 1):
        assert whole.generate(PROMPTS[4], 24, reference[:cut], **sampling) == reference


@pytest.mark.parametrize("chunks", [[1] * 20, [16, 16, 16], [7, 30, 1], [59]])
def test_the_chunks_of_a_prefill_do_not_change_the_ids(model, pipeline, way, chunks):
    whole = pipeline([model.stage(**way)])
    reference = whole.generate(PROMPTS[6], 12, **SEEDED)
    assert whole.generate(PROMPTS[6], 12, chunks=chunks, **SEEDED) == reference


@pytest.mark.parametrize("cuts", [(1,), (4,), (2, 3), (1, 2, 3, 4)])
def test_the_split_over_stages_does_not_change_the_ids(model, pipeline, way, cuts):
    reference = pipeline([model.stage(**way)]).generate(PROMPTS[5], 12, **SEEDED)
    bounds = [0, *cuts, 5]
    stages = [model.stage(range(a, b), **way) for a, b in pairwise(bounds)]
    assert pipeline(stages).generate(PROMPTS[5], 12, **SEEDED) == reference


def test_threads_do_not_change_the_ids(model, pipeline):
    reference = pipeline([model.stage()]).generate(PROMPTS[5], 12, **SEEDED)
    assert pipeline([model.stage(threads=3)]).generate(PROMPTS[5], 12, **SEEDED) == reference


def _together(whole, count):
    """All prompts at once: they join one step apart, decode together, leave when done."""
    outputs, chunked = {}, {}
    for step in range(200):
        opens, steps, rows, closes = [], [], [], []
        for slot, prompt in enumerate(PROMPTS):
            if step < slot or len(outputs.get(slot, ())) == count:
                continue
            if step == slot:
                opens.append(whole.open(slot, prompt, choice=slot % 2, **SEEDED))
                outputs[slot], chunked[slot] = [], 0
            done = chunked[slot]
            if done < len(prompt):  # a prefill in chunks of 9
                size = min(9, len(prompt) - done)
                steps.append(whole.step(slot, done, size, done + size == len(prompt)))
                rows.extend(prompt[done : done + size])
                chunked[slot] += size
            else:
                steps.append(whole.step(slot, len(prompt) + len(outputs[slot]) - 1, 1))
                rows.append(outputs[slot][-1])
        if not steps:
            return outputs
        for sampled in whole.run(Batch(steps, opens, closes), rows):
            outputs[sampled.slot].append(sampled.token_id)
    raise AssertionError("did not end")


def test_a_batch_gives_every_sequence_the_ids_it_has_alone(model, pipeline, way):
    whole = pipeline([model.stage(**way)])
    together = _together(whole, 10)
    whole.stages[0].begin(64)
    for slot, prompt in enumerate(PROMPTS):
        alone = whole.generate(prompt, 10, choice=slot % 2, slot=slot, **SEEDED)
        assert together[slot] == alone


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_hidden_states_are_equal_bit_for_bit_for_any_chunks_and_neighbours(
    model, pipeline, way, data
):
    whole = pipeline([model.stage(range(0, 2), **way)])
    stage, ids = whole.stages[0], PROMPTS[6]
    row_bytes = 96 * (2 if way["dtype"] == "bf16" else 4)

    def hidden(sizes, neighbours):
        start, found = 0, []
        for size in sizes:
            steps = [whole.step(0, start, size, sample=False)]
            rows = ids[start : start + size]
            for slot, count in enumerate(neighbours, 1):
                steps.append(whole.step(slot, 0, count, sample=False))
                rows = rows + ids[:count]
            opens = [whole.open(slot, ids) for slot in range(len(steps))] if not start else []
            found.append(stage.forward(Batch(steps, opens), rows).data[: size * row_bytes])
            start += size
        stage.begin(64)
        return b"".join(found)

    sizes = data.draw(st.lists(st.integers(1, 20), max_size=6))
    while sum(sizes) >= len(ids):
        sizes.pop()
    sizes.append(len(ids) - sum(sizes))
    neighbours = data.draw(st.lists(st.integers(1, 40), max_size=5))
    assert hidden(sizes, neighbours) == hidden([len(ids)], [])
    stage.close()


def test_a_block_taken_over_from_a_broken_sequence_does_not_taint_the_next(
    tiny_model, llama, pipeline
):
    stage = tiny_model(llama).stage(range(3, 5))
    whole = pipeline([stage])

    def run(rows):
        data = rows.bfloat16().view(torch.uint8).numpy().tobytes()
        opened = whole.open(0, range(len(rows)), top_logprobs=5)
        batch = Batch([whole.step(0, 0, len(rows))], [opened], [0])
        return stage.forward(batch, Hidden("bf16", len(rows), data))

    clean = torch.randn(20, 96)
    before = run(clean)
    run(torch.full((32, 96), float("nan")))  # all of the block whose first rows come next
    assert run(clean) == before


def test_matrices_that_lie_transposed_give_the_same_ids(tiny_model, llama, pipeline, way):
    model = tiny_model(llama)
    reference = pipeline([model.stage(**way)]).generate(PROMPTS[3], 8)
    model.tensors = {
        name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor
        for name, tensor in model.tensors.items()
    }
    assert pipeline([model.stage(**way)]).generate(PROMPTS[3], 8) == reference


def test_a_closed_stage_holds_nothing_and_refuses_batches(model, pipeline):
    stage = model.stage()
    stage.close()
    assert stage.resident_layers() == {}
    with pytest.raises(FailedPrecondition, match="closed"):
        stage.forward(Batch([]), [])
    with pytest.raises(FailedPrecondition, match="closed"):
        stage.begin(4)


def test_a_stage_that_is_begun_again_has_forgotten_all_but_its_weights(model, pipeline):
    stage = model.stage()
    whole = pipeline([stage])
    reference = whole.generate(PROMPTS[3], 8)
    stage.forward(Batch([whole.step(0, 0, 16)], [whole.open(0, PROMPTS[2])]), PROMPTS[2])
    stage.end()
    with pytest.raises(FailedPrecondition, match="no cache"):
        stage.forward(Batch([]), [])
    stage.begin(8)
    assert whole.generate(PROMPTS[3], 8) == reference
    with pytest.raises(InvalidArgument, match="below 8"):
        whole.run(Batch([_step(block_table=(8,))], [whole.open(0, PROMPTS[2])]), PROMPTS[2])


def test_an_empty_batch_that_only_closes_passes_every_stage(model, pipeline):
    stages = [model.stage(range(0, 2)), model.stage(range(2, 5))]
    whole = pipeline(stages)
    assert whole.run(Batch([], closes=[3]), []) == ()


def test_a_slot_can_be_closed_and_taken_again_in_one_batch(model, pipeline):
    whole = pipeline([model.stage()])
    first = whole.run(Batch([whole.step(0, 0, 16)], [whole.open(0, PROMPTS[2])]), PROMPTS[2])
    again = whole.run(Batch([whole.step(0, 0, 16)], [whole.open(0, PROMPTS[2])], [0]), PROMPTS[2])
    assert first == again == (Sampled(0, 0, first[0].token_id),)


def _step(**changes):
    return replace(SequenceStep(0, 0, 16, (1,), True), **changes)


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
    tiny_model, llama, pipeline, field, changes
):
    whole = pipeline([tiny_model(llama).stage()])
    opened = whole.open(0, PROMPTS[2])
    with pytest.raises(InvalidArgument) as refused:
        whole.run(Batch([_step(**changes)], [opened]), PROMPTS[2])
    assert refused.value.field == field
    assert len(whole.run(Batch([_step()], [opened]), PROMPTS[2])) == 1


@pytest.mark.parametrize(
    ("field", "sampling"),
    [
        ("logit_bias", {"logit_bias": {515: 1.0}}),
        ("stop_token_ids", {"stop_token_ids": (-1,)}),
        ("eos_token_ids", {"eos_token_ids": (600,)}),
    ],
)
def test_ids_outside_the_vocabulary_are_refused_by_field(
    tiny_model, llama, pipeline, field, sampling
):
    whole = pipeline([tiny_model(llama).stage()])
    with pytest.raises(InvalidArgument) as refused:
        whole.run(Batch([_step()], [whole.open(0, PROMPTS[2], **sampling)]), PROMPTS[2])
    assert refused.value.field == field


def test_rows_of_the_wrong_kind_are_refused(tiny_model, llama, pipeline):
    model = tiny_model(llama)
    first, second = model.stage(range(0, 2)), model.stage(range(2, 5))
    whole = pipeline([first, second])
    batch = Batch([_step(sample=False)], [whole.open(0, PROMPTS[2])])
    hidden = first.forward(batch, PROMPTS[2])
    for stage, rows, field in [
        (first, hidden, "hidden"),
        (first, [*PROMPTS[2][:15], 515], "token_ids"),
        (second, PROMPTS[2], "rows"),
        (second, replace(hidden, dtype="fp32"), "hidden.dtype"),
        (second, replace(hidden, data=hidden.data[:-1]), "hidden.data"),
    ]:
        stage.begin(64)
        with pytest.raises(InvalidArgument) as refused:
            stage.forward(batch, rows)
        assert refused.value.field == field


def test_a_taken_slot_is_not_opened_twice(tiny_model, llama, pipeline):
    whole = pipeline([tiny_model(llama).stage()])
    batch = Batch([_step()], [whole.open(0, PROMPTS[2])])
    whole.run(batch, PROMPTS[2])
    with pytest.raises(InvalidArgument, match="taken"):
        whole.run(batch, PROMPTS[2])
