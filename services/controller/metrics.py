"""What Prometheus sees of the controller."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import Counter, Gauge

from services.common.exchange import Checkpoint, CheckpointRefusal, CheckpointResult
from services.common.notices import NoticeKind
from services.controller.core.cluster.actions import NodeState, PipelineState
from services.controller.core.cluster.faults import FaultKind, FaultView
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.views import NodeView, PipelineView
from services.controller.journal.journal import JournalRoom, LoggedEvent
from services.controller.target_page import TargetPage

_CHECKPOINTS = Counter("shunt_controller_checkpoints", "Checkpoints received.")
_TOKENS = Counter("shunt_controller_checkpoint_tokens", "Token ids received in checkpoints.")
_REFUSED = Counter("shunt_controller_refused_checkpoints", "Checkpoints refused.", ["refusal"])
DIVERGED = Counter("shunt_controller_diverged", "Calls refused for ids unlike those held.")
RESUMES = Counter("shunt_controller_resumes", "Epochs granted to readers that asked.")
NODES_LOST = Counter("shunt_controller_lost_nodes", "Nodes whose process ended.")
LOADED = Gauge("shunt_controller_loaded_bytes", "Bytes a loading node holds so far.", ["node_id"])
OPEN = Gauge("shunt_controller_open_generations", "Generations that have not ended.")
_ROOM = Gauge("shunt_controller_journal_room", "1 at what the journal's disk has left.", ["left"])
_NODES = Gauge("shunt_controller_nodes", "Nodes by state.", ["state"])
_PIPELINES = Gauge("shunt_controller_pipelines", "Pipelines by state.", ["state"])
_DOWN_S = Gauge(
    "shunt_controller_pipeline_down_seconds",
    "How long the plan's pipeline that has not served for longest has not; 0 while all do.",
    ["model"],
)
_FAULTS = Gauge(
    "shunt_controller_faults",
    "Failures in a row of what fails most often, by what is tried.",
    ["kind"],
)
_EVENTS = Counter("shunt_controller_events", "Events of the log.", ["kind"])
_NOTICES = Counter(
    "shunt_controller_notices", "Notices that a node will be taken away, by who gave it.", ["kind"]
)
_COST = Gauge(
    "shunt_controller_cost_dollars_per_hour",
    "What the nodes that run or are ordered cost; NaN where a price is not known.",
)
_ON_DEMAND = Gauge(
    "shunt_controller_on_demand_dollars_per_hour",
    "What the same nodes would cost on demand; NaN where a price is not known.",
)
_BUDGET = Gauge(
    "shunt_controller_budget_dollars_per_hour", "What nodes may cost; 0 where nothing binds."
)
TARGETS = TargetPage()
for _refusal in CheckpointRefusal:
    _REFUSED.labels(_refusal.value)
for _kind in NoticeKind:
    _NOTICES.labels(_kind.value)
for _event in ("interruption_noticed", "node_lost", "pipeline_lost", "pipeline_ready"):
    _EVENTS.labels(_event)


def count_checkpoints(
    checkpoints: Sequence[Checkpoint], results: Iterable[CheckpointResult]
) -> None:
    _CHECKPOINTS.inc(len(checkpoints))
    _TOKENS.inc(sum(len(span.ids) for checkpoint in checkpoints for span in checkpoint.spans))
    for result in results:
        if result.refusal is not None:
            _REFUSED.labels(result.refusal.value).inc()
            DIVERGED.inc(result.refusal is CheckpointRefusal.DIVERGED)


def show_room(room: JournalRoom) -> None:
    for left in JournalRoom:
        _ROOM.labels(left.value).set(left is room)


def show_cluster(nodes: Iterable[NodeView], pipelines: Iterable[PipelineView]) -> None:
    by_node = Tally(node.state for node in nodes)
    by_pipeline = Tally(pipeline.state for pipeline in pipelines)
    for node_state in NodeState:
        _NODES.labels(node_state.value).set(by_node[node_state])
    for pipeline_state in PipelineState:
        _PIPELINES.labels(pipeline_state.value).set(by_pipeline[pipeline_state])


def show_down(down_s: Mapping[str, float], deployed: Iterable[str]) -> None:
    """By model; 0 for one that the plan gives no pipeline."""
    _DOWN_S.clear()
    for model_id in deployed:
        _DOWN_S.labels(model_id).set(down_s.get(model_id, 0.0))


def show_faults(faults: Iterable[FaultView]) -> None:
    most = dict.fromkeys(FaultKind, 0)
    for fault in faults:
        most[fault.kind] = max(most[fault.kind], fault.failures)
    for kind, failures in most.items():
        _FAULTS.labels(kind.value).set(failures)


def show_money(market: Market, budget_per_hour: float) -> None:
    cost, on_demand = market.cost_per_hour(), market.on_demand_cost_per_hour()
    _COST.set(math.nan if cost is None else cost)
    _ON_DEMAND.set(math.nan if on_demand is None else on_demand)
    _BUDGET.set(budget_per_hour)


def count_event(event: LoggedEvent) -> None:
    _EVENTS.labels(event.kind).inc()
    if event.kind == "interruption_noticed":
        _NOTICES.labels(event.attributes.get("kind", NoticeKind.SPOT)).inc()
