"""What a plan would change, were it adopted now: found by adopting it in a copy of the state."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from itertools import count

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import NodeShape
from services.controller.core.cluster.actions import LaunchNode
from services.controller.core.cluster.changes import adopt
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.node import HeldStage, Node
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.spares import spares, wanted
from services.controller.core.cluster.state import State
from services.controller.core.cluster.steps import steps


@dataclass(frozen=True, slots=True)
class StageToBe:
    """A stage as it is to be, and what that takes."""

    node_id: str
    """Who is to hold it. A node that is yet to be launched has the name that it would get; empty
    where none can be had."""
    layers: LayerRange
    tp_degree: int
    shape: NodeShape
    lacks: tuple[LayerRange, ...]
    """Layers of it that the node does not hold."""


@dataclass(frozen=True, slots=True)
class Difference:
    """From what runs to the plan."""

    pipelines: dict[str, tuple[StageToBe, ...]]
    """All that there are to be."""
    models: dict[str, ModelRef]
    """Of each of them."""
    kept: tuple[str, ...]
    """Those of them that go on untouched."""
    gone: tuple[str, ...]
    """Those that are no more."""
    launched: dict[str, LaunchNode]
    """Nodes that are ordered at once, by the names they would get."""
    freed: tuple[str, ...]
    """Nodes that end."""
    idle: tuple[str, ...]
    """Nodes that lose their place and stay: as spares, or who launched them is somebody else."""


def difference(
    state: State, settings: ClusterSettings, market: Market, plan: Plan, now_s: float
) -> Difference:
    """Nothing of the state is changed."""
    before = {name for name, p in state.pipelines.items() if not p.retiring}
    had_a_place = _placed(state)
    after = deepcopy(state)
    adopt(after, settings, plan, now_s)
    adopted = {name: p for name, p in after.pipelines.items() if not p.retiring}
    numbers = count()
    actions = steps(after, settings, market, lambda: f"thought-of-{next(numbers)}", now_s)
    unplaced = [
        node
        for node in after.nodes.values()
        if node.node_id in had_a_place and not after.is_seated(node) and node.stays
    ]
    kept = {node.node_id for node in spares(after, settings, market)}
    room = max(0, wanted(after, settings, market) - len(kept))
    over = [n.node_id for n in unplaced if n.launched and n.node_id not in kept]
    ends = over[room:] if settings.can_launch else []
    return Difference(
        kept=tuple(name for name in adopted if name in before),
        pipelines={
            name: tuple(
                StageToBe(
                    seat.node_id,
                    seat.stage.layers,
                    seat.stage.tp_degree,
                    after.nodes[seat.node_id].shape if seat.node_id in after.nodes else seat.shape,
                    _lacks(state.nodes.get(seat.node_id), seat.stage),
                )
                for seat in pipeline.seats
            )
            for name, pipeline in adopted.items()
        },
        models={name: pipeline.model for name, pipeline in adopted.items()},
        gone=tuple(sorted(before - adopted.keys())),
        launched={
            a.node_id: a
            for a in actions
            if isinstance(a, LaunchNode) and after.is_seated(after.nodes[a.node_id])
        },
        freed=tuple(n.node_id for n in unplaced if n.node_id in ends),
        idle=tuple(n.node_id for n in unplaced if n.node_id not in ends),
    )


def _placed(state: State) -> set[str]:
    """Nodes that sit somewhere, or did and have yet to end."""
    seats = (seat for pipeline in state.pipelines.values() for seat in pipeline.seats)
    released = {node.node_id for node in state.nodes.values() if node.released}
    return released | {node_id for seat in seats for node_id in seat.node_ids}


def _lacks(node: Node | None, wanted: HeldStage) -> tuple[LayerRange, ...]:
    """What of the stage the node does not hold in the same slices."""
    lacking = [wanted.layers]
    for held in node.stages if node is not None and node.present else ():
        if (held.model, held.tp_degree) == (wanted.model, wanted.tp_degree):
            lacking = [part for one in lacking for part in _without(one, held.layers)]
    return tuple(lacking)


def _without(layers: LayerRange, held: LayerRange) -> list[LayerRange]:
    start, end = max(layers.start, held.start), min(layers.end, held.end)
    if start >= end:
        return [layers]
    parts = (LayerRange(layers.start, start), LayerRange(end, layers.end))
    return [part for part in parts if part.start < part.end]
