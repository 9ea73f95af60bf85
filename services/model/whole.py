"""Models whose tensors are kept whole, under whatever names: which layer each belongs to.

Only the families that are native here have a tensor by tensor description. Of the others it is
known how layers are numbered, what an embedding and a head are called, and that experts are equal:
enough to give each stage its part, and to name what is missing before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from services.model.config import parse_config
from services.model.outline import ModelOutline, is_described
from services.model.quantisation import (
    QUANTISATION,
    Shape,
    StoredTensor,
    check_parts,
    parse_quantisation,
    refuse_tensor,
)
from services.model.tensors import LM_HEAD, QUANTISED, stage_shapes

_LAYER = re.compile(
    r"(?:(?:model|language_model|transformer|decoder|encoder|backbone|gpt_neox)\.){0,3}"
    r"(?:layers|layer|blocks|block|h)\.(0|[1-9][0-9]{0,3})\.",
    re.ASCII,
)
_EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9][0-9]{0,3})\.(.+)", re.ASCII)
_TOKENS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
_EMBEDDINGS = (*_TOKENS, "embedding", "embed_positions", "wpe", "word_embeddings_layernorm")
_HEADS = ("lm_head", "embed_out", "output_layer", "output")


def layer_of(name: str, layers: int) -> int:
    """The layer that a tensor belongs to: -1 before the first, `layers` behind the last.

    Embeddings come first. Whatever is neither an embedding nor of one of the layers comes last:
    final norms, heads, and layers behind the model's own that only its training had.
    """
    match = _LAYER.match(name)
    if match is not None and int(match[1]) < layers:
        return int(match[1])
    return -1 if match is None and any(part in _EMBEDDINGS for part in name.split(".")) else layers


def is_tied(outline: ModelOutline, names: Iterable[str]) -> bool:
    """Whether the head is the embedding: as config.json says, else where there is no head."""
    if outline.tied_embeddings is not None:
        return outline.tied_embeddings
    return not any(_is_head(name) for name in names)


def check_whole(
    config: Mapping[str, Any], outline: ModelOutline, tensors: Mapping[str, StoredTensor]
) -> None:
    """Raises InvalidArgument that names a tensor which is missing, foreign or of another shape."""
    how = parse_quantisation(config)
    if not how.method:
        _check_unquantised(tensors)
    matrices = check_parts(how, tensors)
    if is_described(config):
        _check_described(config, tensors, matrices)
        return
    _check_layers(outline, tensors)
    _check_ends(outline, tensors)
    _check_experts(outline, tensors)


def _check_unquantised(tensors: Mapping[str, StoredTensor]) -> None:
    for name in tensors:
        if name.endswith(QUANTISED):
            raise refuse_tensor(
                name, f"is of quantised weights, and config.json has no {QUANTISATION}"
            )


def _check_described(
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    matrices: Mapping[str, Shape],
) -> None:
    """A quantised model of a family that is described: its matrices are there, plain or not."""
    parsed = parse_config({**config, QUANTISATION: None})
    for name, shape in stage_shapes(parsed, range(parsed.layer_count)).items():
        found = matrices.get(name)
        if found is None and name in tensors:
            found = tensors[name].shape
        if found is None:
            raise refuse_tensor(name, "is missing, quantised too; config.json asks for it")
        if not _fits(found, shape):
            shown = list(found)[:8]
            raise refuse_tensor(name, f"has shape {shown}, config.json asks for {list(shape)}")


def _fits(found: Shape, wanted: Shape) -> bool:
    """An extent of 0 is not known."""
    if len(found) != len(wanted):
        return False
    return all(extent in (0, size) for extent, size in zip(found, wanted, strict=True))


def _check_layers(outline: ModelOutline, tensors: Mapping[str, StoredTensor]) -> None:
    layers = outline.layer_count
    held = {layer_of(name, layers) for name in tensors}
    for layer in range(layers):
        if layer not in held:
            raise refuse_tensor(
                f"model.layers.{layer}", f"is missing; config.json asks for {layers} layers"
            )


def _check_ends(outline: ModelOutline, tensors: Mapping[str, StoredTensor]) -> None:
    embeddings = [name for name in tensors if _is_of(name, _TOKENS) and name.endswith(".weight")]
    if not embeddings:
        raise refuse_tensor(
            "model.embed_tokens.weight", f"is missing, as are {', '.join(_TOKENS[1:])}"
        )
    heads = [name for name in tensors if _is_head(name)]
    if outline.tied_embeddings is False and not heads:
        raise refuse_tensor(LM_HEAD, "is missing; config.json asks for it (tie_word_embeddings)")
    for name in (*embeddings, *heads):
        shape = tensors[name].shape
        if name.endswith(".weight") and len(shape) == 2 and shape[0] != outline.vocab_size:
            raise refuse_tensor(
                name, f"has {shape[0]} rows, config.json asks for {outline.vocab_size} (vocab_size)"
            )


def _check_experts(outline: ModelOutline, tensors: Mapping[str, StoredTensor]) -> None:
    """Where experts are numbered, each layer has them all, and they are equal but for numbers."""
    found: dict[str, dict[int, dict[str, Shape]]] = {}
    for name, tensor in tensors.items():
        match = _EXPERT.fullmatch(name)
        if match is not None:
            of_layer = found.setdefault(match[1], {})
            of_layer.setdefault(int(match[2]), {})[match[3]] = tensor.shape
    for prefix, experts in found.items():
        first = experts.get(0) or next(iter(experts.values()))
        for number in range(max(outline.experts, max(experts) + 1)):
            held = experts.get(number, {})
            for part in first.keys() | held.keys():
                name = f"{prefix}.{number}.{part}"
                if part not in held:
                    raise refuse_tensor(name, "is missing; the other experts have it")
                if held[part] != first.get(part):
                    raise refuse_tensor(
                        name, f"has shape {list(held[part])}, unlike other experts'"
                    )


def _is_head(name: str) -> bool:
    return _is_of(name, _HEADS)


def _is_of(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a tensor outside all layers is one of a module of these names."""
    return _LAYER.match(name) is None and any(part in parts for part in name.split("."))
