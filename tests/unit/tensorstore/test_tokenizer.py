"""The default model's tokenizer and weights against independent readings of the same file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Tokenizer

from services.common.generation import LayerRange
from services.tensorstore.client import StoredModel
from services.tensorstore.sources.opening import default_source

TEXTS = [
    "Hello world",
    "The year 1984, and 3.14159 or 007",
    "don't I'll we've they'd",
    "日本語テキスト and Ελληνικά, עברית",
    "🙂👍🏽 flags 🇫🇷",
    "  spaces\t\ttabs\n\n\nnewline \r\n",
    "é à ü ß ñ \u0000\u0001 \u200b",
    "def f(x):\n    return x ** 2  # squared\n",
    "a" * 300,
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><repo_name>x<issue_start>",
    "",
    " ",
]


@pytest.fixture(scope="module")
def theirs() -> Tokenizer:
    """transformers' own reading of the GGUF."""
    from transformers import AutoTokenizer

    path = default_source()
    loaded = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return loaded.backend_tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_transformers(
    smollm2: StoredModel, theirs: Tokenizer, text: str
) -> None:
    ours = Tokenizer.from_str(smollm2.tokenizer_files()["tokenizer.json"].decode())
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_and_chat_template_come_along(smollm2: StoredModel) -> None:
    files = smollm2.tokenizer_files()
    config = json.loads(files["tokenizer_config.json"])
    assert config["eos_token"] == "<|im_end|>"
    assert "<|im_start|>assistant" in config["chat_template"]
    assert json.loads(files["generation_config.json"])["eos_token_id"] == 2
    ours = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert ours.encode("<|im_start|>").ids == [1]


def test_weights_equal_an_independent_dequantisation(smollm2: StoredModel) -> None:
    found = {tensor.name: tensor for tensor in GGUFReader(default_source()).tensors}
    with smollm2.stage(LayerRange(0, 30)) as stage:
        for ours, name in (
            ("model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight"),
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
        ):
            values = dequantize(found[name].data, found[name].tensor_type)
            wanted = torch.from_numpy(np.array(values, dtype=np.float32)).bfloat16()
            assert torch.equal(stage.tensors[ours], wanted)
        values = dequantize(
            found["blk.3.attn_k.weight"].data, found["blk.3.attn_k.weight"].tensor_type
        )
        halves = torch.from_numpy(values).view(3, 32, 2, 576).transpose(1, 2).reshape(192, 576)
        key = stage.tensors["model.layers.3.self_attn.k_proj.weight"]
        assert torch.equal(key, halves.bfloat16())
