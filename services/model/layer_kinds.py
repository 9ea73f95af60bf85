"""Which of a model's layers look back on a window only, and which are rotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.model.families import ModelFamily
from services.model.fields import flag, refuse, size

_FULL = ("full_attention", "attention")
_SLIDING = "sliding_attention"
_GEMMA2_PATTERN = 2


def windows(slides: list[bool], window: int | None, context_length: int) -> tuple[int, ...]:
    """Each layer's window; empty where none is shorter than the context."""
    if window is None or window >= context_length or not any(slides):
        return ()
    return tuple(window if sliding else 0 for sliding in slides)


def window_of(values: Mapping[str, Any], family: ModelFamily) -> int | None:
    """The window of layers that have one; None where the model has none."""
    if "sliding_window" not in family.defaults:
        return None
    if "use_sliding_window" in family.defaults and not flag(values, "use_sliding_window"):
        return None
    if values["sliding_window"] is None and "sliding_window" in family.nullable:
        return None
    return size(values, "sliding_window")


def sliding_layers(
    values: Mapping[str, Any], family: ModelFamily, layer_count: int, *, windowed: bool
) -> list[bool]:
    """Of each layer whether it slides."""
    kinds = values.get("layer_types")
    by_layer = family.slides != "every layer"
    if kinds is None:
        return _by_default(values, family, layer_count, windowed=windowed)
    known = (*_FULL, _SLIDING) if by_layer else _FULL
    if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
        raise refuse("layer_types", f"must be a list of {', '.join(known)}")
    if len(kinds) != layer_count:
        raise refuse("layer_types", f"must have {layer_count} entries, one a layer")
    _by_default(values, family, layer_count, windowed=windowed)  # its fields are held to a type
    if not by_layer:
        return [windowed] * layer_count
    if _SLIDING in kinds and not windowed:
        raise refuse("sliding_window", "a sliding layer needs one")
    return [kind == _SLIDING for kind in kinds]


def _by_default(
    values: Mapping[str, Any], family: ModelFamily, layer_count: int, *, windowed: bool
) -> list[bool]:
    """Where `layer_types` says nothing."""
    match family.slides:
        case "every layer":
            return [windowed] * layer_count
        case "from a layer on":
            first = values["max_window_layers"]
            if type(first) is not int:
                raise refuse("max_window_layers", "must be an integer")
            return [windowed and layer >= first for layer in range(layer_count)]
        case "unrotated layers":
            turned = rotated_layers(values, family, layer_count)
            return [windowed and not turns for turns in turned]
        case "by a pattern":
            every = _GEMMA2_PATTERN
            if "sliding_window_pattern" in family.defaults:
                every = size(values, "sliding_window_pattern")
            return [bool((layer + 1) % every) for layer in range(layer_count)]


def rotated_layers(values: Mapping[str, Any], family: ModelFamily, layer_count: int) -> list[bool]:
    """Of each layer whether its queries and keys are rotated: `no_rope_layers`, in which 1 stands
    for a layer that is, else all but every `no_rope_layer_interval`-th."""
    if "no_rope_layer_interval" not in family.defaults:
        return [True] * layer_count
    turns, every = values["no_rope_layers"], size(values, "no_rope_layer_interval")
    if turns is None:
        return [bool((layer + 1) % every) for layer in range(layer_count)]
    if not isinstance(turns, list) or any(type(one) is not int for one in turns):
        raise refuse("no_rope_layers", "must be a list of integers")
    if len(turns) < layer_count:
        raise refuse("no_rope_layers", f"must have {layer_count} entries, one a layer")
    return [bool(one) for one in turns[:layer_count]]
