"""Stages on as many ranks as are asked for: one in this process, several in children of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from services.common.generation import ModelRef
from services.common.nodes import StageSpec
from services.engine.backend import StageBackend
from services.engine.core.memory import StageSize
from services.engine.ranks.group import Patience, RankGroup
from services.engine.ranks.messages import OfRank
from services.engine.ranks.stage import RankedStage
from services.engine.stages import Progress, StageLoader


class RankedLoader:
    """Implements StageLoader over the loaders of a backend. Stages of several ranks share nothing,
    for each has processes of its own."""

    def __init__(
        self,
        whole: StageLoader,
        of_rank: OfRank,
        *,
        threads: int = 1,
        patience: Patience | None = None,
        level: str = "INFO",
    ) -> None:
        """`whole` loads what one rank runs, `of_rank` makes the loader of one of several; of each,
        `threads` is what it computes with, and `level` what it logs."""
        self._whole, self._of_rank = whole, of_rank
        self._threads, self._patience, self._level = threads, patience, level

    def warm(self) -> None:
        self._whole.warm()

    def measure(self, model: ModelRef, spec: StageSpec) -> StageSize:
        size = self._whole.measure(model, spec)
        return replace(size, shared=size.shared and spec.tp_degree == 1)

    def load(self, model: ModelRef, spec: StageSpec, progress: Progress) -> StageBackend:
        if spec.tp_degree == 1:
            return self._whole.load(model, spec, progress)
        group = RankGroup(
            spec.tp_degree, threads=self._threads, patience=self._patience, level=self._level
        )
        said = group.load(self._of_rank, model, spec, progress)
        return RankedStage(group, said)

    def prefetch(self, model: ModelRef, spec: StageSpec, progress: Progress) -> None:
        self._whole.prefetch(model, spec, progress)

    def retain(self, layers: Mapping[ModelRef, Collection[int]]) -> None:
        self._whole.retain(layers)
