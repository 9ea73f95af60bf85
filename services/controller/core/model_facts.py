"""What the controller knows of the model it serves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from services.common.errors import DataLoss
from services.common.generation import ModelRef


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A stored model in numbers; the tensor store's word, journaled for when it is away."""

    model_id: str
    digest: str
    layer_count: int
    vocab_size: int
    context_length: int
    config_json: str
    """The model's config.json, for placement."""
    part_bytes: tuple[int, ...] = ()
    """Before the first layer, of each layer, and behind the last, where they do not follow from the
    config; for placement."""
    backends: tuple[str, ...] = ()
    """That serve it; empty where the store says nothing of it."""

    def is_served_by(self, backend: str) -> bool:
        """As far as is known; the node that is to load it looks for itself."""
        return not self.backends or backend in self.backends

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.model_id, self.digest)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelFacts:
        """Raises DataLoss for what `to_json` never wrote."""
        try:
            return cls.of(json.loads(text))
        except (TypeError, ValueError) as error:
            raise DataLoss(f"the journaled model cannot be read: {error}") from error

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> ModelFacts:
        """From the fields of a JSON object; raises TypeError for others."""
        lists = ("part_bytes", "backends")
        return cls(**{**fields, **{name: tuple(fields.get(name, ())) for name in lists}})
