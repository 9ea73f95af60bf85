"""The tensors of a model: their names and shapes, and whether a checkpoint has just these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from services.common.errors import InvalidArgument
from services.model.config import ModelConfig

EMBEDDING, FINAL_NORM, LM_HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
QUANTISED = (
    *("_scale", "_scale_inv", "_zero_point", "_packed", "_shape"),
    *(".scales", ".qweight", ".qzeros", ".g_idx", ".absmax", ".quant_map", ".SCB"),
)
"""How names of tensors end that make numbers of others."""
_NAME_CHARS = 120


class AnyTensor(Protocol):
    """A tensor of a checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def layer_norms(config: ModelConfig) -> dict[str, str]:
    """The names within a layer of its norms, by where they stand: before and behind attention,
    before and behind the feed-forward layer. What stands behind norms what is added."""
    found: dict[str, str] = {}
    if config.pre_norms:
        found["input_norm"] = "input_layernorm"
        found["mlp_norm"] = "post_attention_layernorm"
    if config.post_norms:
        found["attention_post_norm"] = "post_attention_layernorm"
        found["mlp_post_norm"] = "post_feedforward_layernorm"
        if config.pre_norms:
            found["mlp_norm"] = "pre_feedforward_layernorm"
    return found


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """A layer's tensors, by their names within it."""
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.heads * head_dim, config.kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        **{f"{name}.weight": (hidden,) for name in layer_norms(config).values()},
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.qk_norm:
        sizes = (queries, keys) if config.whole_qk_norm else (head_dim, head_dim)
        for name, size in zip("qk", sizes, strict=True):
            shapes[f"self_attn.{name}_norm.weight"] = (size,)
    biased = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] * config.qkv_bias
    biased += ["self_attn.o_proj"] * config.output_bias
    biased += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] * config.mlp_bias
    for name in biased:
        shapes[f"{name}.bias"] = shapes[f"{name}.weight"][:1]
    return shapes


def fused_rows(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Tensors that a checkpoint of the family keeps as one: its name to the rows of each of them,
    in their order."""
    shapes = layer_shapes(config)
    found: dict[str, dict[str, int]] = {}
    for layer in range(config.layer_count):
        for whole, parts in config.fused:
            rows = {f"{part}.weight": shapes[f"{part}.weight"][0] for part in parts}
            prefix = f"model.layers.{layer}."
            found[f"{prefix}{whole}.weight"] = {prefix + name: n for name, n in rows.items()}
    return found


def stage_shapes(config: ModelConfig, layers: range) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that a stage needs, and none besides."""
    matrix = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {}
    if layers.start == 0:
        shapes[EMBEDDING] = matrix
    of_layer = layer_shapes(config)
    for layer in layers:
        for name, shape in of_layer.items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    if layers.stop == config.layer_count:
        shapes[FINAL_NORM] = (config.hidden_size,)
        shapes[EMBEDDING if config.tied_embeddings else LM_HEAD] = matrix
    return shapes


def check_tensors(config: ModelConfig, tensors: Mapping[str, AnyTensor]) -> None:
    """Raises InvalidArgument unless the tensors are those of the whole model, no more, no fewer.

    A tied model may carry its lm_head a second time.
    """
    shapes = stage_shapes(config, range(config.layer_count))
    if config.tied_embeddings and LM_HEAD in tensors:
        shapes[LM_HEAD] = shapes[EMBEDDING]
    for name in tensors:
        if name in shapes:
            continue
        if name.endswith(QUANTISED):
            raise _refuse(name, "belongs to quantised weights, which are not served")
        raise _refuse(name, "is not part of the model that config.json describes")
    for name, shape in shapes.items():
        if name not in tensors:
            raise _refuse(name, "is missing; config.json asks for it")
        if tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape)[:8]
            raise _refuse(name, f"has shape {found}, config.json asks for {list(shape)}")


def _refuse(name: str, message: str) -> InvalidArgument:
    shown = name if name.isascii() else ascii(name)
    return InvalidArgument(f"tensor {shown[:_NAME_CHARS]} {message}", field=shown[:_NAME_CHARS])
