"""One arithmetic within a class, whatever the batch, the chunks, the stages or the cut."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers

from services.engine.backend import Batch
from tests.pipelines import Pipeline
from tests.stage_contract import OUTPUTS, PROMPTS, SEEDED, StageContract
from tests.vllm.conftest import KV_BLOCKS, LLAMA, QWEN3

WAYS = {"llama-bf16": (LLAMA, "bf16"), "llama-fp32": (LLAMA, "fp32"), "qwen3-bf16": (QWEN3, "bf16")}


@pytest.fixture(scope="module", params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture(scope="module")
def dtype(way):
    return way[1]


@pytest.fixture(scope="module")
def model(way, stored):
    return stored(way[0])


@pytest.fixture(scope="module")
def loaded(model, dtype):
    """All layers in one stage, and in two."""
    ranges = (range(0, 5), range(0, 2), range(2, 5))
    stages = [model.stage(layers, dtype) for layers in ranges]
    yield stages[:1], stages[1:]
    for stage in stages:
        stage.close()


@pytest.fixture
def whole(loaded):
    return begun(loaded[0])


@pytest.fixture
def split(loaded):
    return begun(loaded[1])


def begun(stages):
    """With empty caches."""
    for stage in stages:
        stage.begin(KV_BLOCKS)
    return Pipeline(stages)


class TestStagesOfVllm(StageContract):
    """What holds for every backend."""

    @pytest.fixture
    def mixes(self):
        return 3


def test_a_sequence_goes_on_over_blocks_that_were_copied_to_another_pipeline(whole, model, dtype):
    """Pages are copied whole, for what is inside one is the kernel's own; the blocks have other ids
    there, and nothing is computed again."""
    other = model.stage(dtype=dtype)
    there = Pipeline([other])
    for prompt in PROMPTS[2:]:
        for sampling in ({}, SEEDED):
            alone = whole.generate(prompt, OUTPUTS, **sampling)
            opened = whole.open(1, prompt, **sampling)
            (first,) = whole.run(Batch([whole.step(1, 0, len(prompt))], [opened]), prompt)
            copy_blocks(whole.stages[0], whole.table(1), other, there.table(2))
            whole.run(Batch([], closes=[1]), [])
            ids = [first.token_id]
            opens = [there.open(2, prompt, ids, **sampling)]
            while len(ids) < OUTPUTS:
                batch = Batch([there.step(2, len(prompt) + len(ids) - 1, 1)], opens)
                ids.append(there.run(batch, ids[-1:])[0].token_id)
                opens = []
            there.run(Batch([], closes=[2]), [])
            assert ids == alone
    other.close()


def copy_blocks(source, blocks, target, others):
    """Of every layer, between stages of the same layers."""
    layers = zip(
        source._layers._attention.values(), target._layers._attention.values(), strict=True
    )
    for one, other in layers:
        for block, place in zip(blocks, others, strict=True):
            other.kv_cache[place] = one.kv_cache[block]


def test_every_stage_proves_that_it_is_exact_and_says_what_computes(whole, split, dtype):
    names = {stage.facts.numerics_class for stage in [*whole.stages, *split.stages]}
    assert all(stage.facts.exact for stage in [*whole.stages, *split.stages])
    assert len(names) == 1
    name = names.pop()
    assert name.startswith("exact-vllm0.32.0-torch")
    for part in ("cpu", "cpu_attn", {"bf16": "bfloat16", "fp32": "float32"}[dtype], "tp1"):
        assert f"-{part}" in name
    assert {stage.facts.row_width for stage in whole.stages} == {2 * 96}


@pytest.mark.parametrize("config", [LLAMA, QWEN3], ids=lambda config: config["model_type"])
def test_in_fp32_transformers_says_the_same(stored, config):
    model = stored(config)
    tensors = {name: tensor.float() for name, tensor in model.tensors.items()}
    config = transformers.AutoConfig.for_model(**model.config)
    oracle = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    oracle.load_state_dict(tensors, strict=not model.config["tie_word_embeddings"])
    oracle.tie_weights()
    oracle.generation_config.eos_token_id = None
    stages = [model.stage(layers, "fp32") for layers in (range(0, 3), range(3, 5))]
    pipeline = Pipeline(stages)
    for prompt in PROMPTS:
        given = torch.tensor([prompt])
        answer = oracle.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=24
        )
        assert pipeline.generate(prompt, 24) == answer[0, len(prompt) :].tolist()
    for stage in stages:
        stage.close()


def test_a_stage_is_loaded_while_another_one_serves(stored):
    model = stored(QWEN3)
    serving = Pipeline([model.stage()])
    reference = serving.generate(PROMPTS[4], 16)
    loaded = []
    load = threading.Thread(target=lambda: loaded.append(model.stage(range(1, 4))))
    load.start()
    found = []
    while load.is_alive() or not found:
        found.append(serving.generate(PROMPTS[4], 16))
    load.join()
    assert found == [reference] * len(found)
    assert loaded[0].facts.exact
    assert (loaded[0].facts.first, loaded[0].facts.last) == (False, False)
    for stage in (*serving.stages, *loaded):
        stage.close()


def test_a_process_loads_one_range_after_another(stored):
    model = stored(LLAMA)
    reference = None
    for cut in (2, 4, 1):
        stages = [model.stage(layers) for layers in (range(0, cut), range(cut, 5))]
        found = Pipeline(stages).generate(PROMPTS[3], 8)
        reference = reference or found
        assert found == reference
        for stage in stages:
            assert sorted(stage.resident_layers()) == list(stage.facts.layers)
            stage.close()
            assert stage.resident_layers() == {}


def test_a_layer_is_held_with_its_tensors_and_no_others(stored):
    model = stored(LLAMA)
    stage = model.stage(range(2, 5))
    names = {
        layer: {tensor.name for tensor in held.tensors}
        for layer, held in stage.resident_layers().items()
    }
    assert "model.norm.weight" in names[4]
    assert "model.embed_tokens.weight" in names[4]  # tied
    assert all(name.startswith("model.layers.3.") for name in names[3])
    assert len(names[3]) == 9
    packed = [held.packed_bytes for held in stage.resident_layers().values()]
    assert packed[2] > packed[0] == packed[1] > 0
    stage.close()
