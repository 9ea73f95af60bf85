"""One arithmetic, whatever the batch, the chunks, the stages or the cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import FailedPrecondition
from services.engine.backend import Batch, Hidden
from tests import moved_blocks
from tests.pipelines import Pipeline
from tests.stage_contract import OUTPUTS, SEEDED, StageContract

WAYS = [("auto", "bf16"), ("auto", "fp32"), ("torch", "bf16"), ("torch", "fp32")]
CASES = {
    ("llama", "auto", "bf16"): 8,
    ("qwen3", "auto", "bf16"): 8,
    ("llama", "auto", "fp32"): 4,
    ("qwen3", "auto", "fp32"): 4,
    ("llama", "torch", "bf16"): 2,
    ("qwen3", "torch", "fp32"): 2,
}
"""Random mixes of each: torch takes its time."""
PROMPTS = [[5 + (7 * i + 13 * n) % 500 for i in range(n)] for n in (1, 15, 16, 17, 33, 40, 61)]


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(way))
def way(request):
    return {"arithmetic": request.param[0], "dtype": request.param[1]}


@pytest.fixture(params=["llama", "qwen3"])
def model(request, tiny_model):
    return tiny_model(request.getfixturevalue(request.param))


class TestNativeStages(StageContract):
    """What holds for every backend."""

    @pytest.fixture(params=CASES, ids="-".join)
    def case(self, request):
        return request.param

    @pytest.fixture
    def make(self, case, request, tiny_model):
        family, arithmetic, dtype = case
        model = tiny_model(request.getfixturevalue(family))
        return lambda *layers: Pipeline(
            [model.stage(some, arithmetic=arithmetic, dtype=dtype) for some in layers]
        )

    @pytest.fixture
    def whole(self, make):
        return make(range(0, 5))

    @pytest.fixture
    def split(self, make):
        return make(range(0, 2), range(2, 5))

    @pytest.fixture
    def dtype(self, case):
        return case[2]

    @pytest.fixture
    def mixes(self, case):
        return CASES[case]

    @pytest.fixture
    def outputs(self, case):
        return 16 if case[1] == "torch" else OUTPUTS


@pytest.mark.parametrize("cuts", [(1,), (4,), (2, 3), (1, 2, 3, 4)])
def test_the_split_over_stages_does_not_change_the_ids(model, pipeline, way, cuts):
    reference = pipeline([model.stage(**way)]).generate(PROMPTS[5], 12, **SEEDED)
    bounds = [0, *cuts, 5]
    stages = [model.stage(range(a, b), **way) for a, b in pairwise(bounds)]
    assert pipeline(stages).generate(PROMPTS[5], 12, **SEEDED) == reference


def test_threads_do_not_change_the_ids(model, pipeline):
    reference = pipeline([model.stage()]).generate(PROMPTS[5], 12, **SEEDED)
    assert pipeline([model.stage(threads=3)]).generate(PROMPTS[5], 12, **SEEDED) == reference


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


@pytest.mark.parametrize("arithmetic", ["auto", "torch"])
def test_blocks_go_on_in_stages_of_any_other_layers(tiny_model, llama, pipeline, arithmetic):
    """From two stages to others of two, three and five, and back."""
    model, prompt = tiny_model(llama), PROMPTS[2]

    def stages(*bounds):
        return pipeline(
            [model.stage(range(a, b), arithmetic=arithmetic) for a, b in pairwise(bounds)]
        )

    shapes = [stages(0, 3, 5), stages(0, 2, 5), stages(0, 1, 4, 5), stages(0, 1, 2, 3, 4, 5)]
    alone = shapes[0].generate(prompt, 20, **SEEDED)
    for source, target in pairwise([*shapes, shapes[0]]):
        moved_blocks.check(source, target, prompt, alone, SEEDED)
