"""A transformer's shape, read from its config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import InvalidArgument, NotFound
from services.model import config
from services.model.tensor_parallel import TensorParallel
from services.model.tensors import layer_shapes

BUILT_IN = Path(__file__).parent / "data" / "models"
MAX_CONFIG_CHARS = 1 << 20
ELEMENT_BYTES = 2


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with grouped-query attention and a gated FFN; 2 bytes an element."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    layers: int
    tied: bool = False
    qk_norm: bool = False
    biases: int = 0
    """Parameters of one layer that are added, not multiplied."""
    window: int | None = None
    """Positions that every layer looks back on; None where one looks back on all."""

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, its norms and biases among them."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return attention + 3 * self.hidden * self.ffn + norms + self.biases

    @property
    def layer_bytes(self) -> int:
        return self.layer_parameters * ELEMENT_BYTES

    @property
    def vocab_bytes(self) -> int:
        """The embedding, or the lm_head."""
        return self.vocab * self.hidden * ELEMENT_BYTES

    @property
    def kv_bytes_per_token_layer(self) -> int:
        return 2 * self.kv_heads * self.head_dim * ELEMENT_BYTES

    @property
    def total_bytes(self) -> int:
        return self.layers * self.layer_bytes + self.vocab_bytes * (1 if self.tied else 2)

    def kv_heads_per_rank(self, tp: int) -> float:
        """KV heads a rank keeps: its share, or one copied to several ranks."""
        return max(1.0, self.kv_heads / tp)

    def allows_tp(self, tp: int) -> bool:
        """Whether the model's tensors can be cut for this degree."""
        return TensorParallel(self.heads, self.kv_heads, self.ffn, self.vocab).divides(tp)


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


def parse_config(text: str, name: str = "") -> ModelShape:
    """The shape in a config.json; InvalidArgument names the field that is missing or absurd."""
    if len(text) > MAX_CONFIG_CHARS:
        raise InvalidArgument(f"over {MAX_CONFIG_CHARS} characters", field="config_json")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("not JSON", field="config_json") from error
    if not isinstance(raw, dict):
        raise InvalidArgument("not a JSON object", field="config_json")
    return shape_of(config.parse_config(raw), name)


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
        qk_norm=model.qk_norm,
        biases=sum(shape[0] for part, shape in shapes.items() if part.endswith(".bias")),
        window=min(model.windows, default=0) or None,
    )
