"""A stage of vLLM's on two ranks, beside one of one, as an engine loads them."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from services.common.errors import DataLoss, InvalidArgument
from services.common.generation import LayerRange
from services.common.nodes import StageSpec
from services.engine.ranks.loader import RankedLoader
from services.engine.ranks.stage import RankedStage
from services.engine.vllm.loader import VllmLoader, VllmOptions
from services.engine.vllm.upstream.configuration import SHARED_MEMORY
from tests.pipelines import Pipeline
from tests.vllm.conftest import KV_BLOCKS, LLAMA

EIGHT = LLAMA | {"num_attention_heads": 8, "num_key_value_heads": 4}
PROMPTS = [[5 + (7 * i + 13 * n) % 500 for i in range(n)] for n in (1, 17, 40)]


def nothing(done, total):
    """No progress is told."""


@pytest.fixture(params=[("fp32", 516), ("bf16", 512)], ids=["whole fp32", "slices bf16"])
def ranked(stored, request):
    """The model, its element type, and its last layers on two ranks: of a vocabulary that vLLM cuts
    as the store does, and of one that it cuts otherwise."""
    dtype, vocab_size = request.param
    model = stored(EIGHT | {"vocab_size": vocab_size})
    options = VllmOptions(str(model.store), dtype, "cpu", 256, 64)
    loader = RankedLoader(VllmLoader(options), partial(VllmLoader, options))
    before = set(SHARED_MEMORY.iterdir())
    stage = loader.load(model.model, StageSpec(LayerRange(2, 5), 2), nothing)
    assert isinstance(stage, RankedStage)
    stage.begin(KV_BLOCKS)
    left = [path.name for path in set(SHARED_MEMORY.iterdir()) - before]
    assert not any(name.startswith("shunt-ranks") for name in left)
    yield model, dtype, stage
    stage.close()


def test_two_ranks_say_what_one_says_and_stay_by_it(ranked):
    model, dtype, stage = ranked
    whole = Pipeline([model.stage(range(5), dtype)])
    split = Pipeline([model.stage(range(2), dtype), stage])
    assert stage.facts.exact
    assert "-tp2-" in f"{stage.facts.numerics_class}-"
    said = [split.generate(prompt, 12, temperature=0.8, seed=3) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in said}) == 3
    if dtype == "fp32":  # in bf16 another degree rounds otherwise
        assert said == [whole.generate(p, 12, temperature=0.8, seed=3) for p in PROMPTS]
    for cut in (1, 7):
        replayed = split.generate(PROMPTS[2], 12, said[2][:cut], temperature=0.8, seed=3)
        assert replayed == said[2]
    chunked = split.generate(PROMPTS[2], 12, chunks=[7, 16], temperature=0.8, seed=3)
    assert chunked == said[2]
    pids = stage.pids
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(DataLoss, match="rank 1 of 2 ended: -9"):
        split.generate(PROMPTS[1], 4)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_what_two_ranks_take_is_measured_and_what_does_not_divide_is_refused(stored):
    model = stored(EIGHT | {"vocab_size": 512})
    loader = model.loader("bf16")
    one, two = (loader.measure(model.model, StageSpec(LayerRange(2, 4), n)) for n in (1, 2))
    assert two.layer_bytes[2] - one.layer_bytes[2] == 2 * EIGHT["hidden_size"] * 2  # norms
    assert two.kv_block_bytes == one.kv_block_bytes
    with pytest.raises(InvalidArgument, match="does not divide the model's 8 attention heads"):
        loader.measure(model.model, StageSpec(LayerRange(2, 4), 3))
