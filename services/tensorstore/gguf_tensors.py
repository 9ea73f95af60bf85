"""Which tensors a GGUF model has, by llama.cpp's names and by Hugging Face's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.common.errors import InvalidArgument
from services.model.tensors import EMBEDDING, FINAL_NORM, LM_HEAD
from services.tensorstore.gguf_config import Family
from services.tensorstore.gguf_rope import ROPE_FREQS

TOKEN_EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_WHOLE = {TOKEN_EMBEDDING: EMBEDDING, "output_norm.weight": FINAL_NORM, OUTPUT: LM_HEAD}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = ("attn_q_norm", "attn_k_norm")
_QKV = ("attn_q", "attn_k", "attn_v")
_OPTIONAL_BIASES = {
    "attention_bias": (*_QKV, "attn_output"),
    "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
}


@dataclass(frozen=True)
class Expected:
    """A tensor that belongs to the model."""

    hf_name: str
    shape: tuple[int, ...]
    heads: int = 0
    """Into how many heads its rows are reordered; 0 for one whose rows stay."""


def flags_of(family: Family, names: Collection[str]) -> dict[str, bool]:
    """What the config says of optional tensors, by which are there."""
    flags = {"tie_word_embeddings": OUTPUT not in names}
    for flag, parts in _OPTIONAL_BIASES.items() if family.optional_bias else ():
        endings = tuple(f".{part}.bias" for part in parts)
        flags[flag] = any(name.endswith(endings) for name in names)
    return flags


def expected(
    family: Family, config: Mapping[str, Any], names: Collection[str]
) -> dict[str, Expected]:
    """The model's tensors by llama.cpp's names. Raises InvalidArgument naming one that is missing
    or that no engine would read."""
    found = dict(_expected(family, config))
    for name in found:
        if name not in names:
            raise InvalidArgument(f"tensor {name} is missing", field="tensors")
    for name in names:
        if name not in found and not (name == ROPE_FREQS and family.rope_freqs):
            raise InvalidArgument(
                f"tensor {ascii(name)[:80]} is not part of a {family.architecture}"
                f" of {config['num_hidden_layers']} layers",
                field="tensors",
            )
    return found


def _expected(family: Family, config: Mapping[str, Any]) -> Iterator[tuple[str, Expected]]:
    hidden, rows = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    query, keys = heads * config["head_dim"], kv_heads * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (query, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, query),
        "ffn_norm": (hidden,),
        "ffn_gate": (rows, hidden),
        "ffn_up": (rows, hidden),
        "ffn_down": (hidden, rows),
    }
    if family.qk_norm:
        shapes |= dict.fromkeys(_QK_NORMS, (config["head_dim"],))
    biased = set(_QKV) if family.qkv_bias else set()
    for flag, parts in _OPTIONAL_BIASES.items():
        biased.update(parts if config.get(flag) else ())
    reordered = {"attn_q": heads, "attn_k": kv_heads} if family.permuted else {}
    vocabulary = config["vocab_size"]
    yield TOKEN_EMBEDDING, Expected(EMBEDDING, (vocabulary, hidden))
    for layer in range(config["num_hidden_layers"]):
        for part, shape in shapes.items():
            name, cut = f"model.layers.{layer}.{_PARTS[part]}", reordered.get(part, 0)
            yield f"blk.{layer}.{part}.weight", Expected(f"{name}.weight", shape, cut)
            if part in biased:
                yield f"blk.{layer}.{part}.bias", Expected(f"{name}.bias", shape[:1], cut)
    yield "output_norm.weight", Expected(FINAL_NORM, (hidden,))
    if not config["tie_word_embeddings"]:
        yield OUTPUT, Expected(LM_HEAD, (vocabulary, hidden))
