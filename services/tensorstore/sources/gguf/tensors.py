"""Which tensors a GGUF model has, by llama.cpp's names and by Hugging Face's."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from services.common.errors import InvalidArgument
from services.model.config import ModelConfig
from services.model.tensors import EMBEDDING, FINAL_NORM, LM_HEAD, stage_shapes
from services.tensorstore.sources.gguf.config import GgufArchitecture
from services.tensorstore.sources.gguf.rope import ROPE_FREQS

TOKEN_EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_WHOLE = {EMBEDDING: TOKEN_EMBEDDING, FINAL_NORM: "output_norm.weight", LM_HEAD: OUTPUT}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OPTIONAL_BIASES = {
    "attention_bias": (".attn_q.bias", ".attn_k.bias", ".attn_v.bias", ".attn_output.bias"),
    "mlp_bias": (".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias"),
}


@dataclass(frozen=True)
class Expected:
    """A tensor that belongs to the model."""

    hf_name: str
    shape: tuple[int, ...]
    heads: int
    """Into how many heads its rows are reordered; 0 for one whose rows stay."""


def flags_of(family: GgufArchitecture, names: Collection[str]) -> dict[str, bool]:
    """What the config says of optional tensors, by which are there."""
    flags = {"tie_word_embeddings": OUTPUT not in names}
    for flag, endings in _OPTIONAL_BIASES.items() if family.optional_bias else ():
        flags[flag] = any(name.endswith(endings) for name in names)
    return flags


def expected(
    family: GgufArchitecture, config: ModelConfig, names: Collection[str]
) -> dict[str, Expected]:
    """The model's tensors by llama.cpp's names. Raises InvalidArgument naming one that is missing
    or that no engine would read."""
    reordered = {"attn_q": config.heads, "attn_k": config.kv_heads} if family.permuted else {}
    found: dict[str, Expected] = {}
    for hf_name, shape in stage_shapes(config, range(config.layer_count)).items():
        name = _WHOLE.get(hf_name) or _layer_name(hf_name)
        found[name] = Expected(hf_name, shape, reordered.get(name.split(".")[-2], 0))
        if name not in names:
            raise InvalidArgument(f"tensor {name} is missing", field="tensors")
    for name in names:
        if name not in found and not (name == ROPE_FREQS and family.rope_freqs):
            raise InvalidArgument(
                f"tensor {ascii(name)[:80]} is not part of a {family.architecture}"
                f" of {config.layer_count} layers",
                field="tensors",
            )
    return found


def _layer_name(hf_name: str) -> str:
    _, _, layer, rest = hf_name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_PARTS[part]}.{kind}"
