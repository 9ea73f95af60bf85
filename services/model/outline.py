"""The sizes of any causal model, whatever computes it: what its config.json tells of itself.

A family that the native backend knows is read as strictly as there. Of another, only sizes are
read, under the names that configuration classes have for them; none is guessed where it is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.model.config import MAX_HEAD_DIM, MAX_LAYERS, ModelConfig, parse_config
from services.model.families import FAMILIES
from services.model.fields import flag, refuse, size
from services.model.quantisation import QUANTISATION
from services.model.tensor_parallel import TensorParallel

MAX_EXPERTS = 4096
_VOCABULARY_PADDING = 64
"""Where weights are stored whole, a backend pads the vocabulary to a multiple of this, then cuts
it (vLLM's `pad_vocab_size`)."""
_NAMES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "intermediate_size": ("n_inner", "ffn_dim", "d_ff", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length", "n_ctx"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("moe_k", "moe_topk", "num_experts_per_token", "top_k_experts"),
    "moe_intermediate_size": ("expert_ffn_dim",),
}
"""What configuration classes call the same thing; the first name given counts."""


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """Sizes of a model of layers with a KV cache."""

    hidden_size: int
    layer_count: int
    heads: int
    kv_heads: int
    head_dim: int
    """Half of what one head's key and value are in the cache, whatever their shares."""
    intermediate_size: int
    """Feed-forward rows; of one expert, where there are experts."""
    vocab_size: int
    context_length: int
    """Positions a sequence may have, prompt and output together."""
    tensor_parallel: TensorParallel
    """Which degrees divide it."""
    tied_embeddings: bool | None
    """None where the config leaves it to its class."""
    experts: int = 0
    experts_per_token: int = 0
    """Those that every token passes among them."""


def is_described(config: Mapping[str, Any]) -> bool:
    """Whether it is of a family of which every tensor is known."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in FAMILIES


def outline_of(config: Mapping[str, Any]) -> ModelOutline:
    """A model's sizes; InvalidArgument names the field that is missing or absurd."""
    if is_described(config):
        quantised = config.get(QUANTISATION) is not None
        return _native(parse_config({**config, QUANTISATION: None}), whole=quantised)
    return _general(config)


def _native(config: ModelConfig, *, whole: bool) -> ModelOutline:
    divided = config.tensor_parallel
    return ModelOutline(
        hidden_size=config.hidden_size,
        layer_count=config.layer_count,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        tensor_parallel=_padded(divided) if whole else divided,
        tied_embeddings=config.tied_embeddings,
    )


def _general(config: Mapping[str, Any]) -> ModelOutline:
    values = _renamed(config)
    hidden, heads = size(values, "hidden_size"), size(values, "num_attention_heads")
    kv_heads, head_dim = _cache(values, hidden, heads)
    experts = size(values, "num_experts", MAX_EXPERTS) if values.get("num_experts") else 0
    inner = _inner(values, hidden, experts)
    chosen = size(values, "num_experts_per_tok", experts) if experts else 0
    shared = values.get("n_shared_experts") or 0
    if type(shared) is not int or not 0 <= shared <= MAX_EXPERTS:
        raise refuse("n_shared_experts", f"must be an integer from 0 to {MAX_EXPERTS}")
    vocab_size = size(values, "vocab_size")
    tied = "tie_word_embeddings"
    return ModelOutline(
        hidden_size=hidden,
        layer_count=size(values, "num_hidden_layers", MAX_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=inner,
        vocab_size=vocab_size,
        context_length=size(values, "max_position_embeddings"),
        tensor_parallel=_padded(TensorParallel(heads, kv_heads, inner, vocab_size)),
        tied_embeddings=flag(values, tied) if values.get(tied) is not None else None,
        experts=experts,
        experts_per_token=chosen + (shared if experts else 0),
    )


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(config)
    for name, others in _NAMES.items():
        for other in others:
            if values.get(name) is None and values.get(other) is not None:
                values[name] = values[other]
    return values


def _cache(values: Mapping[str, Any], hidden: int, heads: int) -> tuple[int, int]:
    """Key-value heads, and half of what one of them adds to the cache at a position."""
    if values.get("qk_nope_head_dim"):  # made of a latent row, but kept by head
        return heads, size(values, "qk_nope_head_dim") + size(values, "qk_rope_head_dim")
    if values.get("head_dim") is None and hidden % heads:
        raise refuse("hidden_size", f"must be a multiple of the {heads} attention heads")
    given = values.get("head_dim")
    head_dim = size({"head_dim": given or hidden // heads}, "head_dim", MAX_HEAD_DIM)
    if values.get("num_key_value_heads") is None:
        return heads, head_dim
    kv_heads = size(values, "num_key_value_heads")
    if heads % kv_heads:
        raise refuse("num_key_value_heads", f"must divide the {heads} attention heads")
    return kv_heads, head_dim


def _inner(values: Mapping[str, Any], hidden: int, experts: int) -> int:
    """Some classes take four times the hidden size where nothing is given."""
    if experts and values.get("moe_intermediate_size") is not None:
        return size(values, "moe_intermediate_size")
    if values.get("intermediate_size") is None and str(values.get("model_type")) in _FOURFOLD:
        return 4 * hidden
    return size(values, "intermediate_size")


def _padded(divided: TensorParallel) -> TensorParallel:
    rows = -(-divided.vocabulary // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    return TensorParallel(divided.heads, divided.kv_heads, divided.intermediate, rows)


_FOURFOLD = ("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "codegen", "mpt")
