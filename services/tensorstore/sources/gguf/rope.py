"""Rotary embeddings as a GGUF file states them, in the words of a Hugging Face config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from services.common.errors import InvalidArgument
from services.tensorstore.sources.gguf.metadata import Metadata, refuse

ROPE_FREQS = "rope_freqs.weight"
ROPE_SHORT, ROPE_LONG = "rope_factors_short.weight", "rope_factors_long.weight"
# What llama.cpp's converter takes for Llama 3.1's where a config says no other; no published model
# has others.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192
_TOLERANCE = 1e-4  # the converter computes in float32


def rope_parameters(
    metadata: Metadata, family: str, head_dim: int, context: int, factors: Any | None
) -> dict[str, Any]:
    """The config's `rope_parameters`. `factors` is what `rope_freqs.weight` divides each frequency
    by, if the file has one. Raises InvalidArgument for what no config can say."""
    theta = metadata.number(f"{family}.rope.freq_base", 10000.0)
    scaling = _scaling(metadata, family, context)
    if factors is not None and len(factors) != head_dim // 2:
        raise InvalidArgument(f"{ROPE_FREQS} has {len(factors)} factors", field=ROPE_FREQS)
    if factors is not None and not np.all(factors == 1.0):
        if scaling:
            raise refuse(f"{family}.rope.scaling.type", f"stands beside {ROPE_FREQS}")
        scaling = _llama3(factors, theta, head_dim)
    return {"rope_type": "default", **scaling, "rope_theta": theta}


def phi3_rope(
    metadata: Metadata, head_dim: int, context: int, factors: Mapping[str, Any]
) -> dict[str, Any]:
    """What a Phi-3's config says of its rope: a part of each head is rotated, and factors of each
    frequency stand in two tensors. Raises InvalidArgument."""
    rotated = metadata.size("phi3.rope.dimension_count", head_dim)
    original = metadata.size("phi3.rope.scaling.original_context_length", context)
    found = {
        "rope_theta": metadata.number("phi3.rope.freq_base", 10000.0),
        "original_max_position_embeddings": original,
        "partial_rotary_factor": rotated / head_dim,
    }
    attention = "phi3.rope.scaling.attn_factor"
    if not factors:
        metadata.neutral(attention, (0.0, 1.0))
        return found
    scaling: dict[str, Any] = {"rope_type": "longrope"}
    for ours, theirs in (("short_factor", ROPE_SHORT), ("long_factor", ROPE_LONG)):
        if theirs not in factors:
            raise InvalidArgument(f"tensor {theirs} is missing", field="tensors")
        scaling[ours] = [float(str(factor)) for factor in factors[theirs]]
    if attention in metadata:
        scaling["attention_factor"] = metadata.number(attention)
    return found | {"rope_scaling": scaling}


def _scaling(metadata: Metadata, family: str, context: int) -> dict[str, Any]:
    """By metadata. llama.cpp takes a factor without a type for linear, and knew it by another name
    before there were types."""
    prefix, older = f"{family}.rope.scaling", f"{family}.rope.scale_linear"
    metadata.neutral(f"{prefix}.attn_factor", (0.0, 1.0))
    kind = metadata.text(f"{prefix}.type")
    if kind == "none":
        return {}
    if kind not in (None, "linear", "yarn"):
        raise refuse(f"{prefix}.type", f"{ascii(kind)[:40]} is not none, linear or yarn")
    key = older if older in metadata and f"{prefix}.factor" not in metadata else f"{prefix}.factor"
    if kind is None and key not in metadata:
        return {}
    factor = metadata.number(key)
    if factor < 1:
        raise refuse(key, "must not be below 1")
    metadata.flag(f"{prefix}.finetuned", False)  # a note: nothing computes with it
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": factor, **_yarn(metadata, prefix, context)}
    metadata.size(f"{prefix}.original_context_length", 1)  # linear scaling knows no such length
    return {} if factor == 1 else {"rope_type": "linear", "factor": factor}


def _yarn(metadata: Metadata, prefix: str, context: int) -> dict[str, Any]:
    metadata.neutral(f"{prefix}.yarn_log_multiplier", (0.0,))
    metadata.neutral(f"{prefix}.yarn_ext_factor", (-1.0, 1.0))
    metadata.neutral(f"{prefix}.yarn_attn_factor", (1.0,))
    original = metadata.size(f"{prefix}.original_context_length", context)
    found: dict[str, Any] = {"original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        if f"{prefix}.yarn_{name}" in metadata:
            found[name] = metadata.number(f"{prefix}.yarn_{name}")
    return found


def _llama3(factors: Any, theta: float, head_dim: int) -> dict[str, Any]:
    """The one scaling that is written as a tensor, if it is that one."""
    factor = float(np.max(factors))
    if not 1 < factor < 1e6 or not np.allclose(
        factors, llama3_factors(theta, head_dim, factor), rtol=_TOLERANCE, atol=0
    ):
        raise InvalidArgument(
            f"{ROPE_FREQS} is not the scaling of Llama 3.1 (low_freq_factor {_LOW:g},"
            f" high_freq_factor {_HIGH:g}, original context {_ORIGINAL})",
            field=ROPE_FREQS,
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL,
    }


def llama3_factors(theta: float, head_dim: int, factor: float) -> Any:
    """What each rotary frequency is divided by, [head_dim / 2] (Grattafiori et al. 2024, §3.4.2;
    the smooth step between the wavelengths is transformers')."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((_ORIGINAL / wavelengths - _LOW) / (_HIGH - _LOW), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
