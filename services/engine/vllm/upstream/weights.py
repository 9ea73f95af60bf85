"""Weights from the store into a model of vLLM's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from services.common.errors import InvalidArgument
from services.model.whole import layer_of

_DEFAULTED = tuple(
    f".{name}_{part}" for name in ("q", "k", "v", "prob") for part in ("scale", "zero_point")
)
"""Parameters for a quantised KV cache, which few checkpoints have: vLLM's own values count."""
NAMED = 8
"""Tensors that a refusal names; more are counted."""


class Loader(BaseModelLoader):
    """Weights from the store alone; what a model lacks is refused by name, for vLLM would compute
    with memory as it is."""

    def __init__(
        self,
        config: VllmConfig,
        layers: range,
        weights: Iterable[tuple[str, Tensor]],
        sliced: bool,
    ):
        super().__init__(config.load_config)
        self._layers = layers
        self._weights = weights
        self.held: dict[str, int] = {}
        """Bytes by parameter, before vLLM packs it for its kernels and keeps it elsewhere."""
        self._sliced = sliced

    def download_model(self, model_config: Any) -> None: ...

    def load_weights(self, model: Any, model_config: Any) -> None:
        given: list[str] = []

        def noted() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in self._weights:
                given.append(name)
                yield name, tensor

        if self._sliced:
            _take_all(model)
        for name, parameter in model.named_parameters():
            weighs = parameter.is_floating_point() and parameter.element_size() > 1
            if weighs and not name.endswith(_DEFAULTED):
                parameter.data.fill_(float("nan"))
        layer_count = model_config.hf_text_config.num_hidden_layers
        ours = _stage_parts(self._layers, layer_count)
        loaded = model.load_weights(noted()) or ()
        self.held = {name: each.nbytes for name, each in model.named_parameters()}
        lacking = [
            lack
            for name, parameter in model.named_parameters()
            if layer_of(name, layer_count) in ours and not name.endswith(_DEFAULTED)
            if name not in loaded or _has_hole(parameter)
            for lack in _stored_names(model, name, given)
        ]
        if lacking:
            raise InvalidArgument(
                f"the store lacks {', '.join(lacking[:8])}" + (" …" if len(lacking) > 8 else ""),
                field="model",
            )


def _stage_parts(layers: range, layer_count: int) -> range:
    """Layers of a stage by number, what comes before the first and behind the last among them. Some
    classes have a head, or a norm, at every stage; only one of them has weights for it."""
    before, behind = layers.start == 0, layers.stop == layer_count
    return range(-1 if before else layers.start, layers.stop + 1 if behind else layers.stop)


def _take_all(model: torch.nn.Module) -> None:
    """Tensors come as this rank's slices: vLLM takes them as they are."""
    for parameter in model.parameters():
        parameter.tp_rank = 0  # type: ignore[attr-defined]
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):

            def fill(parameter: Tensor, tensor: Tensor) -> None:
                parameter.data.zero_()
                parameter.data[: len(tensor)].copy_(tensor)

            module.weight.weight_loader = fill


def _has_hole(parameter: Tensor) -> bool:
    return (
        parameter.is_floating_point()
        and parameter.element_size() > 1
        and bool(parameter.isnan().any())
    )


def _stored_names(model: torch.nn.Module, name: str, given: Sequence[str]) -> list[str]:
    """What a parameter is made of, as checkpoints name it, without what was there."""
    merged: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    for whole, parts in merged.items():
        if f".{whole}." in name:
            names = [name.replace(f".{whole}.", f".{part}.") for part in parts]
            return [part for part in names if part not in given] or names
    return [name]
