"""Which tensors a GGUF model has, by llama.cpp's names and by Hugging Face's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from services.common.errors import InvalidArgument
from services.model.config import ModelConfig
from services.model.tensors import EMBEDDING, FINAL_NORM, LM_HEAD, fused_rows, stage_shapes
from services.tensorstore.sources.gguf.config import GgufArchitecture
from services.tensorstore.sources.gguf.rope import ROPE_FREQS, ROPE_LONG, ROPE_SHORT

TOKEN_EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_WHOLE = {EMBEDDING: TOKEN_EMBEDDING, FINAL_NORM: "output_norm.weight", LM_HEAD: OUTPUT}
_PARTS = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_up_proj": "ffn_up",
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

    name: str
    """llama.cpp's; several of ours may be rows of one of its."""
    shape: tuple[int, ...]
    first_row: int
    """Where in that one it begins."""
    heads: int
    """Into how many heads its rows are reordered; 0 for one whose rows stay."""
    offset: float = 0.0
    """What its values count from in the family's own checkpoints, and not in the file."""


def flags_of(family: GgufArchitecture, names: Collection[str]) -> dict[str, bool]:
    """What the config says of optional tensors, by which are there."""
    flags = {"tie_word_embeddings": OUTPUT not in names}
    for flag, endings in _OPTIONAL_BIASES.items() if family.optional_bias else ():
        flags[flag] = any(name.endswith(endings) for name in names)
    return flags


def expected(
    family: GgufArchitecture, config: ModelConfig, names: Collection[str]
) -> dict[str, Expected]:
    """The model's tensors by Hugging Face's names. Raises InvalidArgument naming one of the file's
    that is missing or that no engine would read."""
    reordered = {"attn_q": config.heads, "attn_k": config.kv_heads} if family.permuted else {}
    whole_of = {part: whole for whole, parts in fused_rows(config).items() for part in parts}
    found: dict[str, Expected] = {}
    rows: Counter[str] = Counter()
    for hf_name, shape in stage_shapes(config, range(config.layer_count)).items():
        whole = whole_of.get(hf_name, hf_name)
        name = _WHOLE.get(whole) or _layer_name(family, whole)
        if name not in names:
            raise InvalidArgument(f"tensor {name} is missing", field="tensors")
        heads = reordered.get(name.split(".")[-2], 0)
        offset = config.norm_offset if hf_name.endswith("norm.weight") else 0.0
        found[hf_name] = Expected(name, shape, rows[name], heads, offset)
        rows[name] += shape[0]
    factors = rope_tensors(family)
    for name in names:
        if name not in rows and name not in factors:
            raise InvalidArgument(
                f"tensor {ascii(name)[:80]} is not part of a {family.architecture}"
                f" of {config.layer_count} layers",
                field="tensors",
            )
    return found


def rope_tensors(family: GgufArchitecture) -> tuple[str, ...]:
    """Tensors of rotary factors that a file may have."""
    if family.model_type == "phi3":
        return ROPE_SHORT, ROPE_LONG
    return (ROPE_FREQS,) if family.rope_freqs else ()


def _layer_name(family: GgufArchitecture, hf_name: str) -> str:
    _, _, layer, rest = hf_name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{family.norms.get(part) or _PARTS[part]}.{kind}"
