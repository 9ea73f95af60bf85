"""Damaged GGUF models: one thing of a sound one changed, as a careless tool or a bad copy would."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests import gguf_models
from tests.gguf_models import GgufModel

_OTHERS: tuple[Any, ...] = (
    "",
    "x",
    -1,
    0,
    3,
    1 << 16,
    1.5,
    -2.0,
    math.nan,
    True,
    False,
    [1],
    ["a"],
)
_SCALING = {
    "rope.scaling.type": ("linear", "yarn", "longrope", "none", 5),
    "rope.scaling.factor": (1.0, 4.0, 0.0, "4"),
    "rope.scale_linear": (1.0, 2.0, -1.0),
    "rope.scaling.original_context_length": (64, 0),
    "attention.sliding_window": (0, 64, 256, 4096),
    "attention.key_length": (16, 32),
    "attention.value_length": (16, 8),
    "attention.causal": (True, False),
    "expert_count": (0, 4),
    "logit_scale": (1.0, 0.5),
}
_GEMMAS = {
    "attn_logit_softcapping": (50.0, 0.0, -1.0),
    "final_logit_softcapping": (30.0, 1),
    "attention.sliding_window_pattern": (2, 6, 0, [True, False]),
    "rope.freq_base_swa": (10000.0, 0.0),
    "attention.scale": (0.25, 0.5),
    "vision.block_count": (0, 27),
}
_TOKENIZER = {
    "add_bos_token": (True, False, "yes"),
    "add_eos_token": (True, False),
    "eot_token_id": (3, 5, -1),
    "eom_token_id": (4,),
    "padding_token_id": (0, 1 << 20),
    "add_sep_token": (True, False),
    "ignore_merges": (False,),
    "remove_extra_whitespaces": (True, False),
}


@dataclass(frozen=True)
class Mutant:
    """What was done, and the file to import."""

    what: str
    key: str
    """The key or tensor that was touched; empty where it was a whole part."""
    path: Path
    value: Any = None


def sound_models() -> tuple[GgufModel, ...]:
    """One of each family and kind of vocabulary."""
    return (
        gguf_models.model("llama", gguf_models.byte_level("smaug-bpe"), layers=1),
        gguf_models.model("llama", gguf_models.sentencepiece(), layers=1, tied=True),
        gguf_models.model("qwen2", gguf_models.byte_level("qwen2"), layers=1, tied=True),
        gguf_models.model("qwen3", gguf_models.byte_level("qwen2"), layers=1),
    )


def sound_gemmas() -> tuple[GgufModel, ...]:
    """What is told of a Gemma is other keys, and other pieces."""
    pieces = gguf_models.gemma_pieces()
    return tuple(
        gguf_models.model(family, pieces, tied=True).changed(
            {f"{family}.attention.sliding_window": 64}
        )
        for family in ("gemma2", "gemma3")
    )


def mutant(models: tuple[GgufModel, ...], directory: Path, seed: int) -> Mutant:
    """The seed's mutant, written to the directory."""
    chaos = random.Random(seed)
    kinds = (_dropped, _retyped, _scaled, _added, _added, _doubled, _tensor, _part)
    return chaos.choice(kinds)(chaos.choice(models), directory, chaos)


def _dropped(model: GgufModel, directory: Path, chaos: random.Random) -> Mutant:
    key = chaos.choice(list(model.metadata))
    return _written("dropped", key, model.changed({key: None}), directory)


def _retyped(model: GgufModel, directory: Path, chaos: random.Random) -> Mutant:
    key, value = chaos.choice(list(model.metadata)), chaos.choice(_OTHERS)
    return _written("another value", key, model.changed({key: value}), directory, value)


def _scaled(model: GgufModel, directory: Path, chaos: random.Random) -> Mutant:
    numbers = [key for key, old in model.metadata.items() if type(old) in (int, float)]
    key = chaos.choice(numbers)
    old = model.metadata[key]
    factor = chaos.choice((2, 10, 1000))
    value = old * factor if chaos.random() < 0.5 else type(old)(old / factor)
    return _written("another size", key, model.changed({key: value}), directory, value)


def _added(model: GgufModel, directory: Path, chaos: random.Random) -> Mutant:
    family = model.metadata["general.architecture"]
    table = {f"{family}.{key}": values for key, values in _SCALING.items()}
    if family.startswith("gemma"):
        table |= {f"{family}.{key}": values for key, values in _GEMMAS.items()}
    table |= {f"tokenizer.ggml.{key}": values for key, values in _TOKENIZER.items()}
    table |= {"general.note": ("x",), "general.license": ("mit", 5), "split.no": (0, 1)}
    key = chaos.choice(list(table))
    value = chaos.choice(table[key])
    return _written("added", key, model.changed({key: value}), directory, value)


def _doubled(model: GgufModel, directory: Path, chaos: random.Random) -> Mutant:
    key = chaos.choice(list(model.metadata))
    other = key[:-1] + "\x01"  # as long, so that it may be spelt like the first afterwards
    found = _written("doubled", key, model.changed({other: model.metadata[key]}), directory)
    found.path.write_bytes(found.path.read_bytes().replace(other.encode(), key.encode()))
    return found


def _tensor(model: GgufModel, directory: Path, chaos: random.Random) -> Mutant:
    name = chaos.choice(list(model.tensors))
    tensor = model.tensors[name]
    changes: dict[str, Any] = {name.replace(".", "__"): None}
    match chaos.randrange(4):
        case 0:
            what = "tensor left out"
        case 1:
            what = "tensor renamed"
            changes[(name + "x").replace(".", "__")] = tensor
        case 2:
            what = "tensor cut"
            changes = {name.replace(".", "__"): np.ascontiguousarray(tensor[: len(tensor) // 2])}
        case _:
            what, name = "tensor added", "blk.0.attn_sinks.weight"
            changes = {name.replace(".", "__"): np.ones(4, np.float32)}
    return _written(what, name, model.with_tensors(**changes), directory)


def _part(model: GgufModel, directory: Path, chaos: random.Random) -> Mutant:
    parts = model.write_parts(directory, 3)
    one = chaos.choice(parts)
    damage: dict[str, Callable[[], Any]] = {
        "parts": lambda: None,
        "part missing": one.unlink,
        "part cut": lambda: one.write_bytes(one.read_bytes()[: chaos.randrange(1000)]),
        "part twice": lambda: one.write_bytes(chaos.choice(parts).read_bytes()),
    }
    what = chaos.choice(list(damage))
    damage[what]()
    return Mutant(what, "", next(part for part in parts if part.exists()))


def _written(what: str, key: str, model: GgufModel, directory: Path, value: Any = None) -> Mutant:
    return Mutant(what, key, model.write(directory / "m.gguf"), value)
