"""The layers compute what the reference implementation computes."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch

from services.common.errors import InvalidArgument
from services.engine.native.model import (
    NativeModel,
    kv_block_bytes,
    layer_bytes,
    load_stage,
    packer,
)
from services.engine.native.slices import slice_of
from services.engine.stage.spans import Span
from tests.configs import LLAMA, QWEN3

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS = {
    "llama": {},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE},
    "yarn beside parameters": {"rope_parameters": LLAMA3_ROPE, "rope_scaling": YARN},
    "multi-head": {"num_key_value_heads": None},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen3": {"model_type": "qwen3"},
    "qwen2": {"model_type": "qwen2"},
    "all biases": {"attention_bias": True, "mlp_bias": True},
    "qwen3 with biases": {"model_type": "qwen3", "attention_bias": True},
    "window": {"model_type": "mistral", "sliding_window": 37},
    "window of one": {"model_type": "mistral", "sliding_window": 1},
    "windows of some layers": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 50,
        "max_window_layers": 2,
    },
    "odd sizes": {"hidden_size": 90, "intermediate_size": 133, "head_dim": 30},
    "odd sizes with biases": {
        "hidden_size": 102,
        "intermediate_size": 1001,
        "head_dim": 18,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "odd heads with norms": {"model_type": "qwen3", "head_dim": 38, "hidden_size": 61},
    "heads of two": {"head_dim": 2},
}
ROWS = 200
"""More than pass a weight in one go."""
IDS = torch.tensor([[(37 * i * i + 11 * i) % 515 for i in range(ROWS)]])
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _reference(model):
    transformers = pytest.importorskip("transformers")
    raw = json.loads(json.dumps(model.raw))
    config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    reference = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    missing, unexpected = reference.load_state_dict(model.tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    with torch.inference_mode():
        return reference(IDS).logits[0]


def _native(model, **options):
    stage = model.stage(**options)
    hidden = stage._embed(IDS[0])
    spans = [Span(0, ROWS, 0, [3, 9, 4, 0, 7, 1, 20, 13, 2, 5, 31, 30, 6])]
    return stage._arithmetic.logits(stage._arithmetic.forward(hidden, spans))


@pytest.mark.parametrize("arithmetic", ["auto", "torch"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_logits_are_those_of_transformers(tiny_model, changes, tied, arithmetic):
    base = QWEN3 if changes.get("model_type") == "qwen3" else LLAMA
    model = tiny_model(base, tie_word_embeddings=tied, **changes)
    expected = _reference(model)
    wide = _native(model, dtype="fp32", arithmetic=arithmetic)
    assert (wide - expected).abs().max() < 2e-5 * expected.abs().max()
    narrow = _native(model, dtype="bf16", arithmetic=arithmetic)
    assert (narrow - expected).norm() < 3e-2 * expected.norm()


@pytest.mark.parametrize("arithmetic", ["auto", "torch"])
@pytest.mark.parametrize("name", ["all biases", "window", "odd sizes"])
def test_every_variant_is_exact(tiny_model, name, arithmetic):
    model = tiny_model(LLAMA, **VARIANTS[name])
    assert model.stage(self_test=True, arithmetic=arithmetic, kv_blocks=16).facts.exact


def test_only_the_tensors_of_the_range_are_asked_for(tiny_model, llama):
    model = tiny_model(llama)
    asked = set()

    class Watched(dict):
        def get(self, name, default=None):
            asked.add(name)
            return super().get(name, default)

        def __getitem__(self, name):
            asked.add(name)
            return super().__getitem__(name)

    tensors = Watched(model.tensors)
    load_stage(model.config, tensors, range(1, 3), kv_blocks=4, self_test=False).close()
    assert {name.split(".")[2] for name in asked} == {"1", "2"}


@pytest.mark.parametrize("layers", [range(0, 6), range(2, 2), range(-1, 2), range(0, 4, 2)])
def test_a_range_outside_the_model_is_refused(tiny_model, llama, layers):
    model = tiny_model(llama)
    with pytest.raises(InvalidArgument) as refused:
        load_stage(model.config, model.tensors, layers, kv_blocks=4)
    assert refused.value.field == "layers"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: None, "missing"),
        (lambda tensor: tensor.T.contiguous(), "shape"),
        (lambda tensor: tensor.to(torch.int8), "floating"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(tiny_model, llama, change, message):
    model = tiny_model(llama)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = dict(model.tensors)
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    with pytest.raises(InvalidArgument, match=message) as refused:
        load_stage(model.config, tensors, range(1, 2), kv_blocks=4)
    assert refused.value.field == name


def test_a_block_takes_the_bytes_that_are_counted_for_it(tiny_model, llama):
    block = kv_block_bytes(slice_of(tiny_model(llama).config), range(1, 3), "bf16")
    assert block == 2 * 2 * 2 * 32 * 16 * 2  # layers, K and V, KV heads, head size, rows, bytes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_layers_take_the_bytes_that_are_counted_for_them(tiny_model, tied, dtype):
    """Beside norms in fp32, and columns that fill whole blocks."""
    model = tiny_model(LLAMA, tie_word_embeddings=tied)
    config, counted = model.config, layer_bytes(slice_of(model.config), range(5), dtype)
    held = {}
    for layer, resident in model.stage(dtype=dtype).resident_layers().items():
        held[layer] = resident.packed_bytes
    held[0] += config.vocab_size * config.hidden_size * (2 if dtype == "bf16" else 4)
    for layer in range(5):
        assert counted[layer] == pytest.approx(held[layer], rel=0.02)


def _packed(model):
    """A model that packs what it is given, and the layers it was given, in order."""
    native, seen = NativeModel(model.config, "bf16", packer("bf16")), []

    def take(layers):
        for run in native.lacking(layers):
            native.pack(model.tensors, run)
            seen.extend(run)
        return native.stage(layers, self_test=False)

    return native, take, seen


def test_stages_that_share_layers_are_made_of_one_copy_and_say_what_each_alone_says(
    tiny_model, llama, pipeline
):
    model = tiny_model(llama)
    prompt = list(range(3, 40))
    expected = pipeline([model.stage()]).generate(prompt, 12)
    native, take, seen = _packed(model)
    whole, front, back = take(range(0, 5)), take(range(0, 3)), take(range(3, 5))
    assert seen == [0, 1, 2, 3, 4]
    for layer, held in front.resident_layers().items():
        assert held == whole.resident_layers()[layer]
        assert front._layers[layer] is whole._layers[layer]
    for stage in (whole, front, back):
        stage.begin(64)
    assert pipeline([whole]).generate(prompt, 12) == expected
    assert pipeline([front, back]).generate(prompt, 12) == expected
    native.retain(range(0, 3))
    whole.close()
    back.close()
    assert native.lacking(range(0, 5)) == [range(3, 5)]
    again = take(range(2, 5))
    again.begin(64)
    assert seen == [0, 1, 2, 3, 4, 3, 4]
    assert pipeline([front, again]).stages[0].resident_layers().keys() == {0, 1, 2}
    other = take(range(3, 5))
    other.begin(64)
    assert pipeline([front, other]).generate(prompt, 12) == expected
    for stage in (front, again, other):
        stage.close()


def test_memory_of_a_layer_goes_with_its_last_stage(tiny_model, llama):
    model = tiny_model(llama)
    native, take, _ = _packed(model)
    first, second = take(range(0, 3)), take(range(2, 5))
    shared = weakref.ref(first._layers[2].packed.matrices[0])
    native.retain(())
    first.close()
    assert shared() is not None
    second.close()
    gc.collect()
    assert shared() is None


def test_the_last_position_of_the_context_can_be_used(tiny_model, llama, pipeline):
    model = tiny_model(llama, max_position_embeddings=40)
    whole = pipeline([model.stage()])
    assert len(whole.generate(range(35), 6)) == 6
    with pytest.raises(InvalidArgument) as refused:
        whole.generate(range(36), 6)
    assert refused.value.field == "steps.start"
