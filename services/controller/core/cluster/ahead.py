"""When blocks go ahead of what a formation runs: before it is sealed, while it serves, as long as
there is time for it (pre-copy)."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from services.common.nodes import Member
from services.controller.core.cluster.actions import Action, CopyAhead
from services.controller.core.cluster.pipeline import Pipeline
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.state import State

_OF_WHAT_IS_LEFT = 0.5
"""Of the time until a node must be sealed, blocks that go ahead may have so much."""
_LEAST_S = 0.1
"""Less time is not worth a round."""


def copy_ahead(
    state: State,
    settings: ClusterSettings,
    pipeline: Pipeline,
    followers: tuple[Member, ...],
    now_s: float,
    *,
    waited_for: bool = False,
) -> list[Action] | None:
    """Has blocks go ahead of what the pipeline runs, to formations that serve, else to its
    `followers`; to these alone where its readers will have `waited_for` them. None: they have gone,
    or nothing is waited for."""
    formation = pipeline.formation
    if formation is None or pipeline.departing:
        return None  # what departs has them go one by one
    prepare(state, pipeline)
    handover = pipeline.handover
    if handover is None or handover.copied:
        return None
    if handover.copying:
        return []
    limit_s = min(settings.ahead_s, _left_s(state, settings, pipeline, now_s) * _OF_WHAT_IS_LEFT)
    if limit_s < _LEAST_S or not state.has_work(formation):
        return None
    pipeline.copy_ahead()
    return [CopyAhead(formation.formation_id, formation.members, followers, limit_s, waited_for)]


def prepare(state: State, pipeline: Pipeline) -> None:
    """A hand-over of its formation begins, if it has one that serves."""
    if pipeline.is_ready and pipeline.formation is not None:
        pipeline.prepare(state.sampled(pipeline.formation))


def _left_s(state: State, settings: ClusterSettings, pipeline: Pipeline, now_s: float) -> float:
    """Until a node of it must be sealed."""
    nodes = (state.nodes.get(seat.node_id) for seat in pipeline.seats)
    ends_s = (n.deadline_s for n in nodes if n is not None and n.deadline_s is not None)
    return min(ends_s, default=inf) - settings.seal_s - now_s


def seated(state: State, pipeline: Pipeline, node_ids: Iterable[str]) -> tuple[Member, ...]:
    """These nodes, a seat each, as members of a formation; those left out that are not there."""
    nodes = (state.nodes.get(node_id) for node_id in node_ids)
    return tuple(
        Member(
            node.node_id,
            node.facts.incarnation,
            node.facts.address,
            seat.stage.layers,
            seat.stage.tp_degree,
        )
        for node, seat in zip(nodes, pipeline.seats, strict=True)
        if node is not None and node.facts is not None
    )
