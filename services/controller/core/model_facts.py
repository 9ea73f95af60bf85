"""What the controller knows of the model it serves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

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

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.model_id, self.digest)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelFacts:
        """Raises DataLoss for what `to_json` never wrote."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise DataLoss(f"the journaled model cannot be read: {error}") from error
