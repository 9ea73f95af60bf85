"""Small random checkpoints for the tests of the tensor store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

DTYPES = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def make_config(**changes: Any) -> dict[str, Any]:
    """A tiny Llama whose heads divide by 1, 2, 4 and 8."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "vocab_size": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    } | changes


def smallest_tokenizer() -> Tokenizer:
    """Of two ids: the end, and the unknown word."""
    tokenizer = Tokenizer(models.BPE({"</s>": 0, "<unk>": 1, "a": 2}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    return tokenizer


def make_tensors(
    config: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random bits under Hugging Face's names."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(shape, dtype, generator) for name, shape in shapes_of(config).items()}


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by Hugging Face's name."""
    hidden, rows = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }
    for layer in range(config["num_hidden_layers"]):
        parts: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, query),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (rows, hidden),
            "mlp.up_proj": (rows, hidden),
            "mlp.down_proj": (hidden, rows),
        }
        for part in _biased(config):
            shapes[f"model.layers.{layer}.{part}.bias"] = parts[part][:1]
        if config["model_type"] == "qwen3":
            parts["self_attn.q_norm"] = (config["head_dim"],)
            parts["self_attn.k_norm"] = (config["head_dim"],)
        for part, shape in parts.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _biased(config: Mapping[str, Any]) -> list[str]:
    family, names = config["model_type"], []
    if family == "qwen2" or (family in ("llama", "qwen3") and config.get("attention_bias")):
        names += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    if family in ("llama", "qwen3") and config.get("attention_bias"):
        names.append("self_attn.o_proj")
    if family == "llama" and config.get("mlp_bias"):
        names += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    return names


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    rows = (*shape[:-1], shape[-1] * dtype.itemsize)
    bits = torch.randint(0, 256, rows, dtype=torch.uint8, generator=generator)
    return bits.view(dtype)


def write_checkpoint(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], shards: int = 1
) -> Path:
    """A Hugging Face directory, of one file or of several with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(smallest_tokenizer().to_str())
    (directory / "generation_config.json").write_text('{"eos_token_id": 0}')
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        mine = names[shard::shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in mine}, directory / file)
        weight_map.update(dict.fromkeys(mine, file))
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_gguf(path: Path, config: Mapping[str, Any], seed: int = 0) -> Path:
    """A Llama of random numbers in Q8_0, norms in F32, with a byte-level vocabulary."""
    source = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "he", *(f"<{n}>" for n in range(config["vocab_size"]))]
    writer.add_token_list(words[: config["vocab_size"]])
    kinds = [1 if n <= len(alphabet) else 3 for n in range(config["vocab_size"])]
    writer.add_token_types(kinds)
    writer.add_token_merges(["h e"] if config["vocab_size"] > len(alphabet) else [])
    writer.add_eos_token_id(0)
    for name, shape in shapes_of(config).items():
        values = source.standard_normal(shape, np.float32)
        if len(shape) == 1:
            writer.add_tensor(gguf_name(name), values)
            continue
        blocks = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(gguf_name(name), blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_GGUF_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    if name in _GGUF_WHOLE:
        return _GGUF_WHOLE[name]
    parts = name.split(".")
    return f"blk.{parts[2]}.{_GGUF_PARTS[parts[-2]]}.{parts[-1]}"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes, for comparisons that NaN must not spoil."""
    return tensor.contiguous().view(-1).view(torch.uint8)


_ROWS = {"q_proj": 0, "gate_proj": 0, "up_proj": 0, "embed_tokens": 0, "lm_head": 0}
_COLUMNS = {"o_proj": 1, "down_proj": 1}


def expected_slice(
    config: Mapping[str, Any], name: str, tensor: torch.Tensor, degree: int, rank: int
) -> torch.Tensor:
    """A rank's part of an original tensor, worked out by hand."""
    part = name.split(".")[-2]
    if part in ("k_proj", "v_proj"):
        heads = config["num_key_value_heads"]
        by_head = tensor.view(heads, -1, *tensor.shape[1:])
        mine = (
            by_head[rank * heads // degree : (rank + 1) * heads // degree]
            if heads >= degree
            else by_head[rank // (degree // heads)][None]
        )
        return mine.reshape(-1, *tensor.shape[1:])
    axis = {**_ROWS, **_COLUMNS}.get(part)
    if axis == 1 and tensor.dim() == 1:  # a bias, added once
        axis = None
    return tensor if axis is None else tensor.chunk(degree, axis)[rank]


def rot(path: Path, at: int = 0) -> None:
    """Flips a bit of a cache's file as a failing disk would: its log goes on believing it."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    after = path.stat()
    for log in path.parents[2].glob("verified/*"):
        old, new = (f" {s.st_ino} {s.st_size} {s.st_ctime_ns} " for s in (before, after))
        log.write_text(log.read_text().replace(old, new))
