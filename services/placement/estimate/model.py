"""A transformer's shape, read from its config.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from services.common.errors import InvalidArgument, NotFound
from services.model import config
from services.model.outline import ModelOutline, is_described, outline_of
from services.model.quantisation import QUANTISATION
from services.model.tensor_parallel import TensorParallel
from services.model.tensors import layer_shapes

BUILT_IN = Path(__file__).parent / "data" / "models"
MAX_CONFIG_CHARS = 1 << 20
ELEMENT_BYTES = 2


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with grouped-query attention and a gated FFN, or several of which a token
    passes some; 2 bytes an element, but for weights whose size is known."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    layers: int
    tied: bool = False
    vectors: int = 0
    """Parameters of one layer that are no matrix's: of norms, and biases."""
    window: int | None = None
    """Positions that layers with a window look back on; None where no layer has one."""
    windowed: float = 1.0
    """The share of layers that have it."""
    experts: int = 1
    """FFNs of a layer."""
    experts_per_token: int = 1
    stored_layer_bytes: int = 0
    """Of the largest layer as it is stored; 0 where it follows from the parameters."""
    stored_vocab_bytes: int = 0
    padded_vocab: int = 0
    """Rows that are cut for tensor parallelism, where they are more than the vocabulary."""
    backends: frozenset[str] = frozenset()
    """That can serve it; empty where every one can."""

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, its norms and biases among them."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + self.experts * 3 * self.hidden * self.ffn + self.vectors

    @property
    def layer_bytes(self) -> int:
        return self.stored_layer_bytes or self.layer_parameters * ELEMENT_BYTES

    @cached_property
    def weight_bytes(self) -> float:
        """Of one parameter of a layer."""
        return self.layer_bytes / self.layer_parameters

    @property
    def vocab_bytes(self) -> int:
        """The embedding, or the lm_head."""
        return self.stored_vocab_bytes or self.vocab * self.hidden * ELEMENT_BYTES

    @property
    def kv_bytes_per_token_layer(self) -> int:
        return 2 * self.kv_heads * self.head_dim * ELEMENT_BYTES

    @property
    def total_bytes(self) -> int:
        return self.layers * self.layer_bytes + self.vocab_bytes * (1 if self.tied else 2)

    def seen(self, positions: float) -> float:
        """Of so many positions those that a layer looks back on, in the mean over layers."""
        if self.window is None:
            return positions
        return positions - self.windowed * max(0.0, positions - self.window)

    def kv_heads_per_rank(self, tp: int) -> float:
        """KV heads a rank keeps: its share, or one copied to several ranks."""
        return max(1.0, self.kv_heads / tp)

    def served_by(self, backend: str) -> bool:
        """Whether nodes with this backend can have stages of it."""
        return not self.backends or backend in self.backends

    def allows_tp(self, tp: int) -> bool:
        """Whether the model's tensors can be cut for this degree."""
        vocabulary = self.padded_vocab or self.vocab
        return TensorParallel(self.heads, self.kv_heads, self.ffn, vocabulary).divides(tp)


def built_in_names() -> list[str]:
    return sorted(path.stem for path in BUILT_IN.glob("*.json"))


def built_in(name: str) -> ModelShape:
    """A model that comes with the package."""
    known = built_in_names()
    if name not in known:
        raise NotFound(f"no model {name[:64]!r}; built in: {', '.join(known)}", field="model")
    return parse_config((BUILT_IN / f"{name}.json").read_text(), name)


def load_model(name_or_path: str) -> ModelShape:
    """A built-in model, or the shape in a config.json (or in a directory that holds one)."""
    if name_or_path in built_in_names():
        return built_in(name_or_path)
    name, text = read_config(name_or_path)
    return parse_config(text, name)


def read_config(place: str) -> tuple[str, str]:
    """A model's name, of the directory that it lies in, and its config.json as text."""
    path = Path(place)
    try:
        if path.is_dir():
            path = path / "config.json"
        if not path.is_file():
            known = ", ".join(built_in_names())
            raise NotFound(f"no model {place[:64]!r}; built in: {known}, or a path", field="model")
        if path.stat().st_size > MAX_CONFIG_CHARS:
            raise InvalidArgument(f"config.json is over {MAX_CONFIG_CHARS} bytes", field="model")
        return path.parent.name, path.read_text()
    except OSError as error:
        raise NotFound(f"cannot read {place[:64]!r}: {error.strerror}", field="model") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument("config.json is not text", field="model") from error


def parse_config(text: str, name: str = "", part_bytes: Sequence[int] = ()) -> ModelShape:
    """The shape in a config.json; InvalidArgument names the field that is missing or absurd.

    `part_bytes` are the weights before the first layer, of each layer and behind the last, where
    they do not follow from the config.
    """
    if len(text) > MAX_CONFIG_CHARS:
        raise InvalidArgument(f"over {MAX_CONFIG_CHARS} characters", field="config_json")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("not JSON", field="config_json") from error
    if not isinstance(raw, dict):
        raise InvalidArgument("not a JSON object", field="config_json")
    if is_described(raw) and raw.get(QUANTISATION) is None:
        return shape_of(config.parse_config(raw), name)
    return outlined(outline_of(raw), name, part_bytes)


def shape_of(model: config.ModelConfig, name: str) -> ModelShape:
    """What placement needs of a config."""
    shapes = layer_shapes(model)
    return ModelShape(
        name=name,
        hidden=model.hidden_size,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ffn=model.intermediate_size,
        vocab=model.vocab_size,
        layers=model.layer_count,
        tied=model.tied_embeddings,
        vectors=sum(shape[0] for shape in shapes.values() if len(shape) == 1),
        window=max(model.windows, default=0) or None,
        windowed=sum(map(bool, model.windows)) / model.layer_count,
    )


def outlined(model: ModelOutline, name: str, part_bytes: Sequence[int]) -> ModelShape:
    """What placement needs of a model whose tensors are not described one by one. Each layer counts
    as the largest, so that none is placed where it does not fit."""
    if part_bytes and len(part_bytes) != model.layer_count + 2:
        raise InvalidArgument(
            f"{len(part_bytes)} parts of a model of {model.layer_count} layers", field="part_bytes"
        )
    before, *layers, behind = part_bytes or (0, 0, 0)
    return ModelShape(
        name=name,
        hidden=model.hidden_size,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ffn=model.intermediate_size,
        vocab=model.vocab_size,
        layers=model.layer_count,
        tied=bool(model.tied_embeddings),
        vectors=2 * model.hidden_size,
        experts=model.experts or 1,
        experts_per_token=model.experts_per_token or 1,
        stored_layer_bytes=max(layers),
        stored_vocab_bytes=max(before, behind),
        padded_vocab=model.tensor_parallel.vocabulary,
    )
