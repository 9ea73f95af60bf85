"""Rotary position embedding: frequencies from what a config says, as transformers derives them.

`rope_scaling`, the older name, replaces `rope_parameters` where both are given; theta and the
partial factor are looked for inside it first, then beside it. The pretrained context length beside
it counts before the one inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.model.fields import flag, number, numbers, optional_number, refuse, size

DEFAULT_THETA = 10000.0
_LOCAL_THETA = "rope_local_base_freq"


@dataclass(frozen=True, slots=True)
class Rope:
    """What a position turns."""

    frequencies: tuple[float, ...]
    """Radians a position, one for each pair of elements: the first ones of a head, all of them
    but in a family whose heads are rotated in part."""
    attention_factor: float = 1.0
    """By which the rotated elements of queries, and of keys, are scaled."""
    position_limit: int | None = None
    """Beyond so many positions the frequencies would be others for the whole sequence."""

    @property
    def dim(self) -> int:
        """Elements of a head that are rotated."""
        return 2 * len(self.frequencies)


def plain_rope(theta: float, head_dim: int) -> Rope:
    """Rotary embedding as it was first (Su et al. 2021, §3.2.2)."""
    return Rope(tuple(_plain(theta, head_dim)))


@dataclass(frozen=True, slots=True)
class _Given:
    """A config's rope, of one type, for heads of `dim` elements."""

    values: Mapping[str, Any]
    theta: float
    dim: int
    context_length: int

    @property
    def plain(self) -> list[float]:
        return _plain(self.theta, self.dim)

    @property
    def original_length(self) -> int:
        return size(self.values, "original_max_position_embeddings")


def parse_rope(
    config: Mapping[str, Any],
    head_dim: int,
    context_length: int,
    names: Mapping[str, str] | None = None,
    *,
    partly: bool = False,
) -> Rope:
    """The rope of a config; InvalidArgument names the field that cannot be followed. `names` are
    the types that a family knows, and what each is; all by their own names without it. Heads may
    be rotated `partly`."""
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    found = config.get(field)
    if found is not None and not isinstance(found, Mapping):
        raise refuse(field, "must be an object")
    found = dict(found or {})
    for key, value in found.items():
        if isinstance(value, Mapping):
            raise refuse(f"{field}.{key}"[:80], "rope by layer type is not served")
    if found.get("mrope_section") is not None:
        raise refuse(f"{field}.mrope_section", "is not served")
    for key, default in (("rope_theta", DEFAULT_THETA), ("partial_rotary_factor", None)):
        found.setdefault(key, config.get(key, default))
    kind = found.get("rope_type", found.get("type", "default"))
    names = names or {name: name for name in _KINDS}
    if not isinstance(kind, str) or kind not in names:
        raise refuse(f"{field}.rope_type", f"must be one of {', '.join(names)}")
    kind = names[kind]
    if partly:
        head_dim = _rotated(found, head_dim)
    elif kind != "proportional" and found["partial_rotary_factor"] not in (None, 1):
        raise refuse("partial_rotary_factor", "must be 1: heads are rotated whole")
    if kind in _STRETCHED:
        _set_original_length(found, config, context_length)
    given = _Given(found, number(found, "rope_theta"), head_dim, context_length)
    return _KINDS[kind](given)


def _rotated(found: Mapping[str, Any], head_dim: int) -> int:
    """Elements of a head that are rotated where a part is."""
    part = number(found, "partial_rotary_factor")
    rotated = int(part * head_dim)
    if part > 1 or rotated % 2 or not rotated:
        raise refuse("partial_rotary_factor", f"must be an even number of a head's {head_dim}")
    return rotated


def parse_layer_ropes(
    config: Mapping[str, Any], head_dim: int, context_length: int
) -> tuple[Rope, Rope]:
    """The ropes of full and of sliding layers where each kind has its own: `rope_parameters` by
    kind of layer, `rope_scaling` for the full ones alone."""
    given = config.get("rope_parameters")
    if given is not None and not isinstance(given, Mapping):
        raise refuse("rope_parameters", "must be an object")
    given = dict(given or {})
    found: list[dict[str, Any]] = []
    for kind, theta in (("full_attention", "rope_theta"), ("sliding_attention", _LOCAL_THETA)):
        of_kind = given.pop(kind, None)
        if of_kind is not None and not isinstance(of_kind, Mapping):
            raise refuse(f"rope_parameters.{kind}", "must be an object")
        if of_kind is None:
            of_kind = {"rope_type": "default"}
        found.append({"rope_theta": number(config, theta), **of_kind})
    if given:
        raise refuse(f"rope_parameters.{min(given)}"[:80], "must stand below a kind of layer")
    if (scaling := config.get("rope_scaling")) is not None:
        if not isinstance(scaling, Mapping):
            raise refuse("rope_scaling", "must be an object")
        if config.get("rope_parameters") is not None:
            raise refuse("rope_scaling", "stands beside rope_parameters")
        found[0] |= scaling
    full, sliding = (
        parse_rope({"rope_parameters": one}, head_dim, context_length) for one in found
    )
    return full, sliding


def _set_original_length(
    found: dict[str, Any], config: Mapping[str, Any], context_length: int
) -> None:
    key = "original_max_position_embeddings"
    if key in config:
        found[key] = config[key]
    found.setdefault(key, context_length)


def _plain(theta: float, dim: int) -> list[float]:
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


def _default(given: _Given) -> Rope:
    return Rope(tuple(given.plain))


def _linear(given: _Given) -> Rope:
    factor = number(given.values, "factor")
    return Rope(tuple(frequency / factor for frequency in given.plain))


def _dynamic(given: _Given) -> Rope:
    """Within the model's own context nothing is stretched."""
    number(given.values, "factor")
    if given.dim < 4:
        raise refuse("head_dim", "dynamic rope needs heads of 4 elements or more")
    return Rope(tuple(given.plain))


def _llama3(given: _Given) -> Rope:
    """Low frequencies stretched, high ones kept, a ramp between (Grattafiori et al. 2024)."""
    factor, length = number(given.values, "factor"), given.original_length
    low, high = number(given.values, "low_freq_factor"), number(given.values, "high_freq_factor")
    if high <= low:
        raise refuse("high_freq_factor", "must be above low_freq_factor")

    def stretched(frequency: float) -> float:
        turns = length * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - kept) * frequency / factor + kept * frequency

    return Rope(tuple(map(stretched, given.plain)))


def _yarn(given: _Given) -> Rope:
    """Interpolation by parts (Peng et al. 2023, §3.2 and §3.4)."""
    values, dim, length = given.values, given.dim, given.original_length
    if "factor" not in values:
        raise refuse("factor", "yarn needs one")
    factor = optional_number(values, "factor") or given.context_length / length
    if given.theta <= 1:
        raise refuse("rope_theta", "must be above 1 with yarn")
    truncated = flag({"truncate": True, **values}, "truncate")
    fast = _number_or(values, "beta_fast", 32.0)
    slow = _number_or(values, "beta_slow", 1.0)

    def dimension(turns: float) -> float:
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(given.theta))

    low, high = dimension(fast), dimension(slow)
    if truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    stretched = []
    for i, frequency in enumerate(given.plain):
        ramp = min(max((i - low) / width, 0.0), 1.0)
        stretched.append(ramp * frequency / factor + (1 - ramp) * frequency)
    return Rope(tuple(stretched), _yarn_attention(values, factor))


def _yarn_attention(values: Mapping[str, Any], factor: float) -> float:
    stated = optional_number(values, "attention_factor")
    if stated is not None:
        return stated
    scale, scale_all = _number_or(values, "mscale", 0.0), _number_or(values, "mscale_all_dim", 0.0)
    log = math.log(max(factor, 1.0)) / 10
    if scale and scale_all:
        return (scale * log + 1) / (scale_all * log + 1)
    return log + 1


def _longrope(given: _Given) -> Rope:
    """A factor for each frequency (Ding et al. 2024, §3.3). Past the pretrained length others would
    count, for the keys that are cached already too: there the context ends."""
    values, length, half = given.values, given.original_length, given.dim // 2
    if length < 2:
        raise refuse("original_max_position_embeddings", "must be above 1 with longrope")
    numbers(values, "long_factor", half)
    short = numbers(values, "short_factor", half)
    stretched = (one / by for one, by in zip(given.plain, short, strict=True))
    attention = optional_number(values, "attention_factor")
    if attention is None:
        factor = optional_number(values, "factor") or given.context_length / length
        attention = math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(length))
    return Rope(tuple(stretched), attention, position_limit=length)


def _proportional(given: _Given) -> Rope:
    """A part of the pairs turns, the rest stands still."""
    part = given.values["partial_rotary_factor"]
    part = 1.0 if part is None else number(given.values, "partial_rotary_factor")
    if part > 1:
        raise refuse("partial_rotary_factor", "must be 1 or less")
    turned = int(part * given.dim // 2)
    factor = number({"factor": 1.0, **given.values}, "factor")
    turning = [frequency / factor for frequency in given.plain[:turned]]
    return Rope((*turning, *[0.0] * (given.dim // 2 - turned)))


def _number_or(values: Mapping[str, Any], field: str, default: float) -> float:
    """A number, or the default where it is absent, null or zero."""
    return number(values, field) if values.get(field) else default


_KINDS: dict[str, Callable[[_Given], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
_STRETCHED = ("llama3", "yarn", "longrope")
"""Types that know how long the context was in training."""
