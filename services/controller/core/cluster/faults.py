"""What keeps failing in a cluster, for the status, the log and whoever waits for it."""

from __future__ import annotations

from services.controller.core.cluster.actions import FaultKind, FaultView
from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.state import State


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


def unusable(state: State) -> str:
    """Why no pipeline will ever take requests as things are; empty when one does or may."""
    if any(pipeline.formation is not None for pipeline in state.pipelines.values()):
        return ""
    faults = faults_of(state)
    hopeless = {fault.pipeline_id for fault in faults if fault.permanent}
    all_are = hopeless >= set(state.pipelines)
    return faults[0].cause if hopeless and all_are else ""


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
