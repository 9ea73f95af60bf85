"""What may be spent: what an operator said last, while the settings name what they did then."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from services.common.errors import DataLoss, InvalidArgument

NOTE = "budget"
"""The note that holds it."""
VERSION = 1
MAX_PER_HOUR = 1e9


@dataclass(frozen=True, slots=True)
class Budget:
    """Dollars an hour, of all that runs together; 0 does not bind. Raises InvalidArgument."""

    per_hour: float
    named: float
    """What the settings named when it was said."""

    def __post_init__(self) -> None:
        for amount in (self.per_hour, self.named):
            if not 0 <= amount < MAX_PER_HOUR:  # NaN lies nowhere
                raise InvalidArgument(
                    f"budget_per_hour lies in [0, {MAX_PER_HOUR:g})", field="budget_per_hour"
                )

    def begun_with(self, named: float) -> float:
        """What counts after a start whose settings name this: theirs, where it is another."""
        return self.per_hour if named == self.named else named

    def to_json(self) -> str:
        """One line, keys sorted."""
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Budget:
        """Raises DataLoss for what `to_json` never wrote."""
        try:
            document = json.loads(text)
            return cls(float(document["per_hour"]), float(document["named"]))
        except (TypeError, ValueError, KeyError, InvalidArgument) as error:
            raise DataLoss(f"the journaled budget cannot be read: {error}") from error
