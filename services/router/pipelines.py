"""The series of each pipeline, for as long as there is one and a while longer: the last of what was
counted is to be scraped yet."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.exchange import Route
from services.router import metrics
from services.router.metrics import PipelineSeries

KEPT_S = 600.0
"""Behind the end of a pipeline."""


class PipelineTable:
    """By model and pipeline."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], PipelineSeries] = {}
        self._present: frozenset[tuple[str, str]] = frozenset()
        self._absent_since_s: dict[tuple[str, str], float] = {}

    def of(self, model_id: str, pipeline_id: str) -> PipelineSeries:
        """Those of a pipeline that somebody reads from."""
        key = (model_id, pipeline_id)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = PipelineSeries(*key)
        return series

    def update(self, routes: Iterable[Route]) -> None:
        """These take requests now."""
        self._present = frozenset((route.model.model_id, route.pipeline_id) for route in routes)
        for model_id, pipeline_id in self._present:
            metrics.show_model(model_id)
            self.of(model_id, pipeline_id)

    def tick(self, now_s: float) -> None:
        """Lets those go that have been away for long."""
        since_s = self._absent_since_s
        self._absent_since_s = {
            key: since_s.get(key, now_s) for key in self._series if key not in self._present
        }
        for key, absent_s in list(self._absent_since_s.items()):
            if now_s - absent_s >= KEPT_S:
                self._series.pop(key).drop()
                del self._absent_since_s[key]
