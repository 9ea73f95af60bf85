"""Which backends can serve a model, and why the others cannot: a function of its config.json.

Asked at import, whenever a model is shown, and by the node that loads it: nothing of it is stored,
so a model that a later program can serve needs no second import for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.common.errors import FailedPrecondition, InvalidArgument
from services.model.config import parse_config
from services.model.families import FAMILIES
from services.model.fields import refuse
from services.model.outline import is_described, outline_of
from services.model.quantisation import QUANTISATION
from services.model.vllm_models import (
    ARCHITECTURES,
    BY_TRANSFORMERS,
    LATENT,
    STATEFUL,
    UNDIVIDED,
    VERSION,
)
from services.model.vllm_quantisation import check_computed, limits_of

NATIVE, VLLM = "native", "vllm"


@dataclass(frozen=True, slots=True)
class Backends:
    """The backends that serve a model."""

    names: tuple[str, ...]
    reasons: Mapping[str, str]
    """Why each of the others does not."""
    limits: Mapping[str, tuple[str, ...]]
    """Of those that do: on what devices and in what types they do not, where that is known."""

    def check(self, backend: str) -> None:
        """Raises FailedPrecondition, in one line, for one that does not serve the model."""
        if backend not in self.names:
            others = " and ".join(self.names) or "no backend"
            raise FailedPrecondition(
                f"the {backend} backend cannot serve this model: {self.reasons[backend]};"
                f" {others} can",
                field="backend",
            )


def backends_of(config: Mapping[str, Any], *, tiled: bool = True) -> Backends:
    """What serves a model of this config, whose weights are stored cut, or each tensor whole."""
    refusals = {NATIVE: _refusal_of_native(config, tiled=tiled), VLLM: _refusal_of_vllm(config)}
    names = tuple(name for name, why in refusals.items() if why is None)
    limits = {NATIVE: _limits_of_native, VLLM: limits_of}
    return Backends(
        names,
        {name: why.message for name, why in refusals.items() if why is not None},
        {name: tuple(map(str, limits[name](config))) for name in names},
    )


def check_served(config: Mapping[str, Any]) -> Backends:
    """What serves a model of this config. Raises InvalidArgument where nothing does: by the field
    that its own family refuses, or else that keeps it from vLLM."""
    found = backends_of(config)
    if not found.names:
        ours = is_described(config) and config.get(QUANTISATION) is None
        why = _refusal_of_native(config) if ours else _refusal_of_vllm(config)
        assert why is not None
        raise why
    return found


def _limits_of_native(config: Mapping[str, Any]) -> tuple[str, ...]:
    capped = parse_config(config).attention_cap is not None
    return ("not on a GPU: attn_logit_softcapping: scores are not capped there",) if capped else ()


def _refusal_of_native(config: Mapping[str, Any], *, tiled: bool = True) -> InvalidArgument | None:
    try:
        parse_config(config)
    except InvalidArgument as error:
        return error
    if not tiled:
        return InvalidArgument("its weights are stored whole: import it again", field="tiling")
    return None


def _refusal_of_vllm(config: Mapping[str, Any]) -> InvalidArgument | None:
    """A config of a family that is native here is malformed, or of another family, where the native
    reading refuses anything but its quantisation: then nobody serves it."""
    try:
        _check_architecture(config)
        outline_of(config)
        _check_windows(config)
        check_computed(config)
    except InvalidArgument as error:
        return error
    return None


def _check_architecture(config: Mapping[str, Any]) -> None:
    """By name, and by the model type that it is read as; a native family has one class alone."""
    names = config.get("architectures")
    if names is None and is_described(config):
        names = [FAMILIES[config["model_type"]].architecture]
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise refuse("architectures", "must name the model's class")
    name = names[0]
    shown = ascii(name)[1:-1][:80]
    if name in STATEFUL:
        raise refuse("architectures", f"{shown} keeps more than a KV cache, which is not moved")
    if name in LATENT:
        raise refuse("architectures", f"{shown} keeps latent rows (MLA), which no stage here does")
    if name in UNDIVIDED:
        raise refuse("architectures", f"vLLM {VERSION} has no stages of {shown}")
    if name in BY_TRANSFORMERS:
        raise refuse("architectures", f"vLLM {VERSION} runs {shown} by transformers, in no stage")
    if name not in ARCHITECTURES:
        raise refuse(
            "architectures", f"{shown} is none that vLLM {VERSION} serves without its code"
        )
    if config.get("model_type") != ARCHITECTURES[name]:
        raise refuse("model_type", f"must be {ARCHITECTURES[name]} for {shown}")


def _check_windows(config: Mapping[str, Any]) -> None:
    """vLLM's class for these has one window for all layers, or none."""
    if config.get("model_type") in ("qwen2", "qwen3"):
        parsed = parse_config({**config, QUANTISATION: None})
        if len({parsed.window(layer) for layer in range(parsed.layer_count)}) > 1:
            raise refuse("max_window_layers", f"vLLM {VERSION} has no windows on some layers alone")
