"""The circumstances of a change of plan: what runs, what nodes hold, and what a change may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.errors import InvalidArgument
from services.placement.estimate.cluster import PlacedPipeline
from services.placement.replan.moves import LOAD_BYTES_PER_S, ResidentStage

HYSTERESIS = 0.01


@dataclass(frozen=True)
class Change:
    """The circumstances of a change."""

    running: tuple[PlacedPipeline, ...]
    resident: Mapping[str, tuple[ResidentStage, ...]]
    horizon_s: float = 600.0
    notice_s: float = 0.0
    load_bytes_per_s: float = LOAD_BYTES_PER_S
    generations: tuple[int, ...] = ()
    tokens_per_generation: int = 0
    improve: bool = False
    anew: bool = False
    """Pipelines are of one choice: what is left stays whole, or none of it for its own sake."""
    phases_only: bool = False
    """Pipelines stay where they are, whatever nodes there are: what may change is their phases."""
    ready_in_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds until a node that is only on offer can begin to load."""
    hysteresis: float = HYSTERESIS
    """The share of its worth by which a change must beat staying."""
    nodes_min: int = 0
    """Least nodes of a plan, where there are so many."""
    nodes_max: int = 0
    """Most nodes of a plan; 0 does not bind."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("horizon_s", 1.0, 1e8),
            ("notice_s", 0.0, 1e6),
            ("load_bytes_per_s", 1e3, 1e15),
            ("hysteresis", 0.0, 10.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidArgument(f"{name} must be from {low:g} to {high:g}", field=name)
        if 0 < self.nodes_max < self.nodes_min:
            raise InvalidArgument("nodes_max is less than nodes_min", field="nodes_max")
        if len(self.generations) > len(self.running):
            raise InvalidArgument("more entries than running pipelines", field="generations")
