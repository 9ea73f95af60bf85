"""What this router is asked for, by model: counts since its start, which only grow, and what is
open now. Whoever is told them twice, or misses one, counts right all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from services.common.demand import Demand

MAX_MODELS = 64
"""A model that is asked for first when there are so many is not counted."""


class DemandCounter:
    """Requests as they begin, answers as they end."""

    def __init__(self) -> None:
        self._demands: dict[str, Demand] = {}
        self._open: Counter[str] = Counter()

    def asked(self, model_id: str, input_tokens: int, choices: int) -> None:
        """A request began."""
        before = self._of(model_id)
        if before is not None:
            self._demands[model_id] = replace(
                before,
                requests=before.requests + choices,
                input_tokens=before.input_tokens + choices * input_tokens,
            )

    def answered(self, model_id: str, output_tokens: int, choices: int) -> None:
        """A request that began here, or elsewhere, has its whole answer, of so many tokens in all
        choices together."""
        before = self._of(model_id)
        if before is not None:
            self._demands[model_id] = replace(
                before,
                answers=before.answers + choices,
                output_tokens=before.output_tokens + output_tokens,
            )

    def opened(self, model_id: str) -> None:
        """Somebody waits for the model, or for an answer of it."""
        if self._of(model_id) is not None:
            self._open[model_id] += 1

    def closed(self, model_id: str) -> None:
        """And does no more."""
        self._open[model_id] -= 1
        self._open += Counter()

    @contextmanager
    def waiting(self, model_id: str) -> Iterator[None]:
        """Somebody waits for a pipeline inside the block."""
        self.opened(model_id)
        try:
            yield
        finally:
            self.closed(model_id)

    def counts(self) -> Mapping[str, Demand]:
        """By model, as of now."""
        return {name: replace(d, open=self._open[name]) for name, d in self._demands.items()}

    def _of(self, model_id: str) -> Demand | None:
        if model_id not in self._demands and len(self._demands) >= MAX_MODELS:
            return None
        return self._demands.setdefault(model_id, Demand())
