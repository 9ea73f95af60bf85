"""From the store into vLLM's models: what a stage takes, and what is refused."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidArgument, NotFound, Superseded, Unavailable
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec
from services.engine.vllm.loader import VllmLoader, VllmOptions
from services.engine.vllm.upstream.configuration import Options, shape
from services.engine.vllm.upstream.layers import Layers
from tests.pipelines import Pipeline
from tests.vllm.conftest import LLAMA, QWEN3, random_tensors

WHOLE = StageSpec(LayerRange(0, 5))


def nothing(done, total):
    """No progress is told."""


@pytest.mark.parametrize(("dtype", "item"), [("bf16", 2), ("fp32", 4)])
def test_a_stage_is_measured_as_vllm_holds_it(stored, dtype, item):
    model = stored(LLAMA)
    size = model.loader(dtype).measure(model.model, StageSpec(LayerRange(2, 5)))
    of_layer = sum(t.numel() for n, t in model.tensors.items() if n.startswith("model.layers.3."))
    beside = model.tensors["model.norm.weight"].numel()
    beside += model.tensors["model.embed_tokens.weight"].numel()
    assert size.layer_bytes == {
        2: of_layer * item,
        3: of_layer * item,
        4: (of_layer + beside) * item,
    }
    assert size.kv_block_bytes == 3 * 2 * 2 * 32 * 16 * item  # layers, K and V, heads, head_dim
    assert not size.shared
    stage = model.stage(range(2, 5), dtype)
    held = sum(layer.packed_bytes for layer in stage.resident_layers().values())
    assert held == pytest.approx(size.weight_bytes, rel=0.02)  # ids are padded to 64
    stage.close()


def test_a_range_that_the_model_does_not_have_is_refused(stored):
    model = stored(LLAMA)
    with pytest.raises(InvalidArgument, match=r"layers \[0, 6\) of 5") as refused:
        model.loader().measure(model.model, StageSpec(LayerRange(0, 6)))
    assert refused.value.field == "stages.layers"


def test_a_model_or_a_store_that_is_not_there_is_refused(stored, tmp_path):
    model = stored(LLAMA)
    with pytest.raises(NotFound):
        model.loader().measure(ModelRef("nobody", ""), WHOLE)
    with pytest.raises(Unavailable):
        VllmLoader(VllmOptions("", "bf16", "cpu", 256, 64)).measure(model.model, WHOLE)


def test_a_load_tells_its_bytes_and_ends_when_it_is_told_to(stored):
    model, told = stored(LLAMA), []
    loader = model.loader()
    loader.prefetch(model.model, WHOLE, lambda done, total: told.append((done, total)))
    stage = loader.load(model.model, WHOLE, lambda done, total: told.append((done, total)))
    stage.close()
    total = {total for _, total in told}
    assert len(total) == 1
    assert told[-1] == (min(total), min(total))

    def superseded(done, total):
        if done == total:
            raise Superseded("something else is wanted", field="stages")

    with pytest.raises(Superseded):
        loader.load(model.model, WHOLE, superseded)


@pytest.mark.parametrize(
    "lacking",
    [
        "model.layers.3.self_attn.q_proj.weight",
        "model.layers.3.mlp.up_proj.weight",
        "model.layers.2.input_layernorm.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_a_tensor_that_the_store_lacks_is_refused_by_name(lacking):
    tensors = random_tensors(QWEN3)
    del tensors[lacking]
    with pytest.raises(InvalidArgument) as refused:
        Layers(QWEN3, range(5), tensors.items(), Options())
    assert refused.value.message == f"the store lacks {lacking}"
    assert refused.value.field == "model"


def test_a_model_that_vllm_cannot_run_is_refused_with_its_reason():
    with pytest.raises(InvalidArgument, match=r"^vLLM 0\.32\.0 cannot run this model: .*NoSuch"):
        shape(LLAMA | {"architectures": ["NoSuchForCausalLM"]}, Options())
    with pytest.raises(InvalidArgument, match="cannot run this model"):
        shape(LLAMA | {"num_attention_heads": "six"}, Options())


def test_what_computes_a_model_without_architectures_is_known_by_its_type(stored):
    config = {name: value for name, value in QWEN3.items() if name != "architectures"}
    assert shape(config, Options()) == shape(QWEN3, Options())
    reference = Pipeline([stored(QWEN3).stage()]).generate([5, 6, 7], 4)
    found = Pipeline([stored(config).stage()]).generate([5, 6, 7], 4)
    assert found == reference
