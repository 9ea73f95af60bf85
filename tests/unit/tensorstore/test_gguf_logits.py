"""A GGUF model computes what transformers computes from the same file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.engine.native.model import load_stage
from services.engine.stage.spans import Span
from services.model.config import parse_config
from services.tensorstore.sources.gguf.checkpoint import GgufCheckpoint
from services.tensorstore.sources.gguf.rope import llama3_factors
from tests import gguf_models
from tests.gguf_models import GgufModel

ROWS = 60
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
FACTORS = llama3_factors(10000.0, 16, 8.0).astype(np.float32)


def biased_llama() -> GgufModel:
    """A Llama with a bias wherever its config knows of one."""
    model = gguf_models.model("llama")
    biases = {
        name.replace(".weight", ".bias"): tensor[:, 0].copy()
        for name, tensor in model.tensors.items()
        if name.startswith("blk.") and tensor.ndim == 2
    }
    return GgufModel(model.metadata, {**model.tensors, **biases})


MODELS: dict[str, tuple[Callable[[], GgufModel], Mapping[str, Any], Any]] = {
    # the file, metadata to add, and by how much llama.cpp divides the rotary frequencies
    "llama": (lambda: gguf_models.model("llama"), {}, 1),
    "tied": (lambda: gguf_models.model("llama", tied=True), {}, 1),
    "sentencepiece": (lambda: gguf_models.model("llama", gguf_models.sentencepiece()), {}, 1),
    "qwen2": (lambda: gguf_models.model("qwen2", gguf_models.byte_level("qwen2")), {}, 1),
    "qwen3": (lambda: gguf_models.model("qwen3", gguf_models.byte_level("qwen2")), {}, 1),
    "linear": (
        lambda: gguf_models.model("llama"),
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        4,
    ),
    "linear by its older name": (
        lambda: gguf_models.model("qwen2", gguf_models.byte_level("qwen2")),
        {"qwen2.rope.scale_linear": 2.0},
        2,
    ),
    "llama 3.1": (
        lambda: gguf_models.model("llama").with_tensors(rope_freqs__weight=FACTORS),
        {},
        FACTORS,
    ),
}


def ours(path: Path, ids: torch.Tensor) -> torch.Tensor:
    with closing(GgufCheckpoint(path)) as checkpoint:
        tensors = {}
        for name, tensor in checkpoint.tensors.items():
            values = bytearray(tensor.size_bytes)
            checkpoint.read_rows(name, 0, tensor.shape[0], memoryview(values))
            tensors[name] = torch.frombuffer(values, dtype=torch.bfloat16).view(tensor.shape)
        config = parse_config(checkpoint.config)
    stage: Any = load_stage(
        config,
        tensors,
        range(config.layer_count),
        dtype="fp32",
        kv_blocks=64,
        self_test=False,
    )
    with closing(stage):
        layers = stage._arithmetic
        hidden = layers.forward(
            stage._layers[0].embedding[ids[0]], [Span(0, ROWS, 0, list(range(8)))]
        )
        logits: torch.Tensor = layers.logits(hidden)
        return logits


def theirs(path: Path, *, mistral: bool = False, **changes: Any) -> Any:
    """Transformers' model of the file, but for what its reader of GGUF files forgets."""
    import transformers
    from transformers import modeling_gguf_pytorch_utils

    auto: Any = transformers.AutoModelForCausalLM
    reader: Any = modeling_gguf_pytorch_utils
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for key, value in changes.items():
        setattr(config, key, value)
    model = auto.from_config(config).float().eval()
    read = reader.load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    if mistral:  # its reader knows the names of a Llama's tensors, which are a Mistral's too
        values = {k: v for k, v in config.to_dict().items() if k != "model_type"}
        model = auto.from_config(transformers.MistralConfig(**values)).float().eval()
    missing, unexpected = model.load_state_dict(read["tensors"], strict=False)
    assert not unexpected
    assert all(name == "lm_head.weight" for name in missing)
    return model


def assert_equal_logits(path: Path, reference: Any) -> None:
    ids = torch.tensor([[(37 * i * i + 11 * i) % 300 for i in range(ROWS)]])
    with torch.inference_mode():
        wanted = reference(ids).logits[0]
    found = ours(path, ids)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    make, metadata, divisor = MODELS[name]
    path = make().changed(metadata).write(tmp_path / "tiny.gguf")
    reference = theirs(path, head_dim=16)  # it forgets Qwen3's key length, and all scaling
    reference.model.rotary_emb.inv_freq /= torch.as_tensor(divisor)
    assert_equal_logits(path, reference)


def test_a_window_is_that_of_transformers_mistral(tmp_path: Path) -> None:
    """Converters write a Mistral as a Llama with a window; all its layers have it."""
    path = (
        gguf_models.model("llama")
        .changed({"llama.attention.sliding_window": 9})
        .write(tmp_path / "tiny.gguf")
    )
    assert_equal_logits(path, theirs(path, mistral=True, sliding_window=9))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("slides", [[True, False], [False, True], [True, True]])
def test_windows_of_some_layers_are_those_of_transformers(
    tmp_path: Path, family: str, slides: list[bool]
) -> None:
    model = gguf_models.model(family, gguf_models.byte_level("qwen2")).changed(
        {
            f"{family}.attention.sliding_window": 9,
            f"{family}.attention.sliding_window_pattern": slides,
        }
    )
    path = model.write(tmp_path / "tiny.gguf")
    kinds = ["sliding_attention" if sliding else "full_attention" for sliding in slides]
    reference = theirs(
        path, head_dim=16, use_sliding_window=True, sliding_window=9, layer_types=kinds
    )
    assert_equal_logits(path, reference)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_gemmas_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    """Norms, caps, windows, ropes and embeddings; its reader knows neither rope nor pattern."""
    made = gguf_models.model(family, gguf_models.gemma_pieces(), layers=7, tied=True)
    metadata = {f"{family}.attention.sliding_window": 9, f"{family}.rope.freq_base": 50000.0}
    every, changes = 2, {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}
    if family == "gemma2":
        metadata |= {"gemma2.attn_logit_softcapping": 2.0, "gemma2.final_logit_softcapping": 5.0}
        changes |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}
    else:
        every = 6
        metadata |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
        changes["rope_parameters"] = {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(7)]
    path = made.changed(metadata).write(tmp_path / "tiny.gguf")
    reference = theirs(path, query_pre_attn_scalar=16, layer_types=kinds, **changes)
    assert reference.config.sliding_window == 9
    assert_equal_logits(path, reference)


def test_yarn_is_that_of_transformers(tmp_path: Path) -> None:
    metadata = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
    }
    path = gguf_models.model("llama").changed(metadata).write(tmp_path / "tiny.gguf")
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    assert_equal_logits(path, theirs(path, rope_parameters=yarn))


def test_biases_of_a_llama_are_those_of_transformers(tmp_path: Path) -> None:
    path = biased_llama().write(tmp_path / "tiny.gguf")
    assert_equal_logits(path, theirs(path, attention_bias=True, mlp_bias=True))
