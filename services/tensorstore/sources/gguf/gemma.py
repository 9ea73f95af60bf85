"""What a Gemma's GGUF file says that no other's does: caps, windows of most layers, and a rope of
those layers.

Where a file says nothing, llama.cpp's own defaults count, for its converters leave out what those
say: the pattern of windows, the rope of layers that have one, by what scores are scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.tensorstore.sources.gguf.metadata import Metadata, refuse

_ATTENTION_CAP, _LOGITS_CAP = "attn_logit_softcapping", "final_logit_softcapping"
_PATTERN = "attention.sliding_window_pattern"


@dataclass(frozen=True)
class Gemma:
    """One generation of the family."""

    caps: Mapping[str, float | None]
    """Those that it has, and what each is where the file does not say; None: there is none."""
    window: int | None
    """That of a file which tells none; None: no layer has one."""
    every: int
    """Every so many-th layer looks back on all positions, the others on the window."""
    widest_layers: int
    """Layers of the one size whose scores are scaled by hidden size over heads, not by the size
    of a head."""
    local_rope: bool = False
    """Layers with a window have a rope of their own."""


GEMMA2 = Gemma({_ATTENTION_CAP: 50.0, _LOGITS_CAP: 30.0}, window=4096, every=2, widest_layers=46)
GEMMA3 = Gemma({_LOGITS_CAP: None}, window=None, every=6, widest_layers=62, local_rope=True)


def gemma_fields(
    metadata: Metadata, name: str, gemma: Gemma, sizes: Mapping[str, Any], rope: Mapping[str, Any]
) -> dict[str, Any]:
    """What these keys make of the config; `sizes` are its fields for layers, heads and widths,
    `rope` is that of layers without a window. Raises InvalidArgument."""
    wide = sizes["num_hidden_layers"] == gemma.widest_layers
    scalar = sizes["hidden_size"] // sizes["num_attention_heads"] if wide else sizes["head_dim"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        **{cap: _cap(metadata, f"{name}.{cap}", default) for cap, default in gemma.caps.items()},
        **_windows(metadata, name, gemma, sizes["num_hidden_layers"]),
        "rope_parameters": _ropes(metadata, name, rope) if gemma.local_rope else rope,
    }


def _cap(metadata: Metadata, key: str, default: float | None) -> float | None:
    """Where none is the default, 0 says the same."""
    if default is None and (key not in metadata or metadata.take(key) == 0.0):
        return None
    return metadata.number(key, default)


def _ropes(metadata: Metadata, name: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    """By kind of layer; what stretches the one leaves the other as it is."""
    local = metadata.number(f"{name}.rope.freq_base_swa", 10000.0)
    sliding = {"rope_type": "default", "rope_theta": local}
    return {"full_attention": dict(rope), "sliding_attention": sliding}


def _windows(metadata: Metadata, name: str, gemma: Gemma, layers: int) -> dict[str, Any]:
    """Which layers have a window: by the family's pattern, or the file's own, a truth value a
    layer."""
    key = f"{name}.attention.sliding_window"
    window = metadata.index(key, 1 << 31)
    window = gemma.window if window is None else window
    pattern = metadata.take(f"{name}.{_PATTERN}")
    if pattern is None:
        pattern = gemma.every
    if type(pattern) is int and pattern > 0:
        slides = [bool((layer + 1) % pattern) for layer in range(layers)]
    elif isinstance(pattern, list) and [type(one) for one in pattern] == [bool] * layers:
        slides = pattern
    else:
        raise refuse(f"{name}.{_PATTERN}", f"must be a positive integer or {layers} truth values")
    if not window:
        slides = [False] * layers
    kinds = ["sliding_attention" if sliding else "full_attention" for sliding in slides]
    return {"layer_types": kinds} | ({"sliding_window": window} if window else {})
