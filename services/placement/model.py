"""A transformer's shape, read from its config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import InvalidArgument, NotFound

FAMILIES = ("llama", "qwen3", "mistral")
BUILT_IN = Path(__file__).parent / "data" / "models"
MAX_CONFIG_CHARS = 1 << 20
ELEMENT_BYTES = 2
_LIMITS = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "num_hidden_layers": 1024,
    "vocab_size": 1 << 24,
    "head_dim": 4096,
    "sliding_window": 1 << 30,
}


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
    window: int | None = None

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, its norms among them."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return attention + 3 * self.hidden * self.ffn + norms

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
        """The heads divide; the KV heads divide or are replicated evenly."""
        if tp < 1 or self.heads % tp:
            return False
        return self.kv_heads % tp == 0 or tp % self.kv_heads == 0


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
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("not JSON", field="config_json") from error
    if not isinstance(config, dict):
        raise InvalidArgument("not a JSON object", field="config_json")
    family = config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InvalidArgument(
            f"unknown family {str(family)[:40]!r}; known: {known}", field="model_type"
        )
    if config.get("num_experts") or config.get("num_local_experts"):
        raise InvalidArgument("mixtures of experts are not supported", field="num_experts")
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise InvalidArgument(
            f"{kv_heads} does not divide {heads} heads", field="num_key_value_heads"
        )
    if config.get("head_dim") is None and hidden % heads:
        raise InvalidArgument(f"{heads} heads do not divide {hidden}", field="head_dim")
    uses_window = config.get("sliding_window") and config.get("use_sliding_window", True)
    return ModelShape(
        name=name,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_size(config, "head_dim", default=hidden // heads),
        ffn=_size(config, "intermediate_size"),
        vocab=_size(config, "vocab_size"),
        layers=_size(config, "num_hidden_layers"),
        tied=bool(config.get("tie_word_embeddings", False)),
        qk_norm=family == "qwen3",
        window=_size(config, "sliding_window") if uses_window else None,
    )


def _size(config: dict[str, object], field: str, default: int | None = None) -> int:
    value = config.get(field)
    if value is None:
        value = default
    limit = _LIMITS[field]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise InvalidArgument(f"{field} must be an integer from 1 to {limit}", field=field)
    return value
