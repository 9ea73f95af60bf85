"""What keeps failing in a cluster, for the status, the log and whoever waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from services.common.exchange import DeployedModel
from services.common.generation import ModelRef
from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.state import State


class FaultKind(StrEnum):
    """What keeps failing."""

    START = "start"
    """Nodes are lost, or cannot do what they are for, before they have served for a while."""
    LOAD = "load"
    """A node cannot load its stage."""
    FORM = "form"
    """A pipeline's members do not come to stand."""
    PLAN = "plan"
    """Placement has no plan."""
    SPARE = "spare"
    """Spares are lost, or not to be had."""


@dataclass(frozen=True, slots=True)
class FaultView:
    """Something that keeps failing, as the status shows it."""

    kind: FaultKind
    cause: str
    node_id: str
    """The last one it was seen at, if any."""
    pipeline_id: str
    since_s: float
    failures: int
    """In a row."""
    permanent: bool
    """It is not tried again until something else has changed."""


def faults_of(state: State) -> tuple[FaultView, ...]:
    """The permanent first, then what has failed most often."""
    plans = state.asking.plans
    found = [
        _view(FaultKind.PLAN, plans, ""),
        _view(FaultKind.START, state.first_launches, ""),
        _view(FaultKind.SPARE, state.spare_launches, ""),
    ]
    for pipeline in state.lacking():
        name = pipeline.pipeline_id
        found.append(_view(FaultKind.FORM, pipeline.forms, name))
        for seat in pipeline.seats:
            found.append(_view(FaultKind.START, seat.launches, name))
            for node_id in seat.node_ids:
                node = state.nodes.get(node_id)
                if node is not None and node.refused == seat.stage:
                    found.append(_view(FaultKind.LOAD, node.loads, name))
    failing = (fault for fault in found if fault.failures)
    return tuple(sorted(failing, key=lambda fault: (not fault.permanent, -fault.failures)))


def deployed_models(state: State) -> tuple[DeployedModel, ...]:
    """What is to be served, and what of it never will be as things are."""
    models, asleep = (goal.model for goal in state.goals.deployed), state.asleep
    return tuple(DeployedModel(one, _unusable(state, one), one in asleep) for one in models)


def _unusable(state: State, model: ModelRef) -> str:
    """Why no pipeline of the model will ever take requests; empty when one does or may."""
    own = state.of_model(model)
    if any(pipeline.formation is not None for pipeline in own):
        return ""
    names = {pipeline.pipeline_id for pipeline in own}
    for_good = [f for f in faults_of(state) if f.permanent and f.pipeline_id in (*names, "")]
    all_are = {fault.pipeline_id for fault in for_good} >= names
    return for_good[0].cause if for_good and all_are else ""


def _view(kind: FaultKind, failing: Backoff, pipeline_id: str) -> FaultView:
    return FaultView(
        kind,
        failing.cause,
        failing.node_id,
        pipeline_id,
        failing.since_s,
        failing.failures,
        failing.permanent,
    )
