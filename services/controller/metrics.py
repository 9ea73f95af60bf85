"""What Prometheus sees of the controller."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Sequence

from prometheus_client import Counter, Gauge

from services.common.exchange import Checkpoint, CheckpointRefusal, CheckpointResult
from services.controller.core.cluster.actions import NodeState, PipelineState
from services.controller.core.cluster.views import NodeView, PipelineView
from services.controller.journal.journal import JournalRoom

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
for _refusal in CheckpointRefusal:
    _REFUSED.labels(_refusal.value)


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
