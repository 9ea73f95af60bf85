"""What runs on a GPU: its logic on any device, its exactness on one."""

from __future__ import annotations

import json

import pytest
import torch

from services.engine.native import cuda_layers
from services.engine.native.cuda_layers import CudaLayers
from services.engine.native.products import SIZES, Product
from services.engine.native.torch_layers import TorchHead, TorchLayer, TorchPacking
from services.engine.native.weights import final_norm, layer_weights
from services.engine.stage.spans import Span
from services.model.tensors import LM_HEAD
from tests.configs import LLAMA, QWEN3

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of transformers
VARIANTS = {
    "llama": {},
    "qwen3": QWEN3,
    "all biases": {"attention_bias": True, "mlp_bias": True},
    "window": {"model_type": "mistral", "sliding_window": 37},
    "window of one": {"model_type": "mistral", "sliding_window": 1},
    "windows of some layers": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 50,
        "max_window_layers": 2,
    },
    "odd sizes": {"hidden_size": 90, "intermediate_size": 133, "head_dim": 30},
    "factors": {
        **{"model_type": "granite", "attention_multiplier": 0.2, "residual_multiplier": 0.22},
        **{"embedding_multiplier": 12.0, "logits_scaling": 8.0},
    },
    "heads rotated in part": {"model_type": "phi3", "partial_rotary_factor": 0.75},
    "norms behind": {"model_type": "olmo2"},
    "layers without rope": {"model_type": "smollm3", "no_rope_layer_interval": 2},
    "gelu and two ropes": {
        **{"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh"},
        **{"sliding_window": 37, "sliding_window_pattern": 2, "final_logit_softcapping": 3.0},
    },
}
TABLES = [[3, 9, 4, 12, 7], [1, 8, 2], [0, 11], [5, 6, 10, 13]]
STEPS = [
    [Span(0, 30, 0, TABLES[0]), Span(30, 10, 0, TABLES[1])],
    [Span(0, 1, 30, TABLES[0]), Span(1, 20, 0, TABLES[2]), Span(21, 1, 10, TABLES[1])],
    [Span(0, 20, 31, TABLES[0]), Span(20, 20, 11, TABLES[1]), Span(40, 20, 0, TABLES[3])],
    [Span(0, 1, 51, TABLES[0]), Span(1, 1, 31, TABLES[1]), Span(2, 1, 20, TABLES[2])],
    [Span(0, 9, 52, TABLES[0]), Span(9, 1, 32, TABLES[1]), Span(10, 4, 21, TABLES[2])],
    [Span(0, 3, 55, TABLES[0]), Span(3, 7, 33, TABLES[1])],
]
"""Rows alone and among others, that attend together and apart, in order and not."""
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _as_transformers_has_them(model):
    """Tensors by name; Phi-3's are joined."""
    tensors = dict(model.tensors)
    if model.raw["model_type"] == "phi3":
        for layer in range(model.config.layer_count):
            for part, joined, names in (
                ("self_attn", "qkv_proj", ("q_proj", "k_proj", "v_proj")),
                ("mlp", "gate_up_proj", ("gate_proj", "up_proj")),
            ):
                within = f"model.layers.{layer}.{part}"
                parts = [tensors.pop(f"{within}.{name}.weight") for name in names]
                tensors[f"{within}.{joined}.weight"] = torch.cat(parts)
    return tensors


def _as_on_a_gpu(model, dtype=torch.float32):
    """The layers of a model as on a GPU, but on CPU."""

    def product(weight, bias):
        return Product(weight, bias, SIZES)

    config, tensors = model.config, model.tensors
    layers = [
        TorchLayer(
            layer_weights(config, tensors, n, dtype),
            config.window(n),
            config.rope_of(n),
            product,
            CPU,
        )
        for n in range(config.layer_count)
    ]
    head = TorchHead(final_norm(config, tensors), product(tensors[LM_HEAD].to(dtype), None))
    return CudaLayers(config, layers, head, dtype, 14, CPU)


def _alike(one, other):
    return (one - other).abs().max() < 2e-5 * one.abs().max()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_rows_are_what_they_are_one_by_one(tiny_model, changes):
    changes = {"pad_token_id": None, **changes, "tie_word_embeddings": False}
    model = tiny_model(LLAMA, **changes)
    packing = TorchPacking(model.config, torch.float32)
    layers = [packing.layer(model.tensors, n) for n in range(model.config.layer_count)]
    expected = packing.arithmetic(layers, packing.head(model.tensors), 14)
    found = _as_on_a_gpu(model)
    for spans in STEPS:
        rows = sum(span.count for span in spans)
        hidden = torch.randn(rows, model.config.hidden_size)
        one, other = (layers.forward(hidden.clone(), spans) for layers in (expected, found))
        assert _alike(one, other)
        assert _alike(expected.logits(one[-3:]), found.logits(one[-3:]))


def test_what_a_broken_sequence_left_behind_reaches_no_other(tiny_model, llama):
    layers = _as_on_a_gpu(tiny_model(llama, tie_word_embeddings=False))
    clean, broken = torch.randn(20, 96), torch.full((32, 96), float("nan"))
    span = Span(0, 20, 0, TABLES[2])
    before = layers.forward(clean, [span])
    layers.forward(broken, [Span(0, 32, 0, TABLES[2])])
    beside = Span(20, 20, 0, TABLES[3])
    together = layers.forward(torch.cat((clean, broken[:20])), [span, beside])
    assert _alike(together[:20], before)


def test_a_step_of_decoding_is_made_once_for_all_of_its_size_until_the_cache_is_let_go(
    tiny_model, llama
):
    layers = _as_on_a_gpu(tiny_model(llama, tie_word_embeddings=False))
    hidden = torch.randn(20, 96)
    layers.forward(hidden, [Span(0, 20, 0, TABLES[2])])
    assert not layers._recorded
    for count in (1, 2, 3):
        spans = [Span(row, 1, 20 + row, table) for row, table in enumerate(TABLES[:count])]
        layers.forward(hidden[:count], spans)
    drafted = [Span(0, 9, 21, TABLES[0]), Span(9, 1, 22, TABLES[1])]
    layers.forward(hidden[:10], drafted)
    assert list(layers._recorded) == [(16, 8)]
    layers.close()
    assert not layers._recorded


def test_rows_of_very_many_positions_are_not_recorded(tiny_model, llama, monkeypatch):
    layers = _as_on_a_gpu(tiny_model(llama, tie_word_embeddings=False))
    monkeypatch.setattr(cuda_layers, "MOST_RECORDED", 16 * 8 * 16 - 1)
    layers.forward(torch.randn(1, 96), [Span(0, 1, 0, TABLES[0])])
    assert not layers._recorded


@cuda
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_stage_on_a_gpu_is_exact_and_its_logits_are_those_of_transformers(
    tiny_model, changes, dtype
):
    transformers = pytest.importorskip("transformers")
    model = tiny_model(LLAMA, **{"pad_token_id": None, **changes})
    stage = model.stage(device="cuda", dtype=dtype, self_test=True)
    assert stage.facts.exact
    assert stage.facts.numerics_class.startswith(f"exact-cuda-{dtype}-")
    raw = json.loads(json.dumps(model.raw))
    config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    reference = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    lacking = reference.load_state_dict(_as_transformers_has_them(model), strict=False)
    assert not lacking.unexpected_keys
    assert set(lacking.missing_keys) <= {LM_HEAD}
    ids = torch.tensor([[(37 * i * i + 11 * i) % 515 for i in range(200)]])
    with torch.inference_mode():
        expected = reference(ids).logits[0]
    hidden = stage._arithmetic.forward(stage._embed(ids[0]), [Span(0, 200, 0, range(13))])
    found = stage._arithmetic.logits(hidden)
    if dtype == "fp32":
        assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (found - expected).norm() < 3e-2 * expected.norm()


@cuda
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_generation_on_a_gpu_goes_on_with_the_same_ids_at_any_cut(
    tiny_model, llama, pipeline, dtype
):
    whole = pipeline([tiny_model(llama).stage(device="cuda", dtype=dtype)], blocks_per_slot=16)
    prompt = [5 + 7 * i % 500 for i in range(190)]
    reference = whole.generate(prompt, 24)
    for cut in range(24):
        assert whole.generate(prompt, 24, reference[:cut], chunks=[cut + 1]) == reference
