"""What of the cluster must outlive the controller: who is who and who forms what, as JSON.

Times on the controller's clock mean nothing to the next one: a deadline is kept in wall time.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from math import inf
from typing import Any

from services.common.generation import LayerRange
from services.common.nodes import Member, NodeFacts, NodeShape
from services.controller.core.cluster.membership import (
    Formation,
    FormationState,
    Membership,
    Node,
    Pipeline,
    Stage,
)


def to_json(state: Membership, unix_offset_s: float) -> str:
    """`unix_offset_s`: wall time less the clock that the state's times are on."""
    return json.dumps(
        {
            "basis": state.basis,
            "counter": state.counter,
            "nodes": [_node_json(node, unix_offset_s) for node in state.nodes.values()],
            "pipelines": [_pipeline_json(pipeline) for pipeline in state.pipelines],
        },
        sort_keys=True,
    )


def from_json(snapshot: str, now_s: float, unix_offset_s: float) -> Membership:
    """As it was; nobody is confirmed yet."""
    document = json.loads(snapshot)
    state = Membership(document.get("basis", ""))
    state.counter = document["counter"]
    nodes = (_node(item, now_s, unix_offset_s) for item in document["nodes"])
    state.nodes = {node.node_id: node for node in nodes}
    state.pipelines = [_pipeline(item, now_s) for item in document["pipelines"]]
    return state


def _node_json(node: Node, unix_offset_s: float) -> dict[str, Any]:
    deadline_s = node.deadline_s
    return {
        "node_id": node.node_id,
        "shape": asdict(node.shape),
        "facts": asdict(node.facts) if node.facts is not None else None,
        "layers": [node.layers.start, node.layers.end] if node.layers is not None else None,
        "kv_blocks": node.kv_blocks,
        "numerics_class": node.numerics_class,
        "deadline_unix_s": None if deadline_s is None else round(deadline_s + unix_offset_s, 3),
        "departs": node.departs,
        "leaving": node.leaving,
        "lost": node.lost,
    }


def _pipeline_json(pipeline: Pipeline) -> dict[str, Any]:
    formation = pipeline.formation
    return {
        "pipeline_id": pipeline.pipeline_id,
        "throughput_tokens_per_s": pipeline.throughput_tokens_per_s,
        "stages": [_stage_json(stage) for stage in pipeline.stages],
        "formation": asdict(formation) if formation is not None else None,
    }


def _stage_json(stage: Stage) -> dict[str, Any]:
    return {
        "layers": asdict(stage.layers),
        "tp_degree": stage.tp_degree,
        "shape": asdict(stage.shape),
        "node_id": stage.node_id,
        "spare_id": stage.spare_id,
    }


def _pipeline(item: dict[str, Any], now_s: float) -> Pipeline:
    pipeline = Pipeline(
        item["pipeline_id"],
        [_stage(stage) for stage in item["stages"]],
        item["throughput_tokens_per_s"],
        _formation(item["formation"]),
    )
    pipeline.down_since_s = None if pipeline.is_ready else now_s
    return pipeline


def _node(item: dict[str, Any], now_s: float, unix_offset_s: float) -> Node:
    facts = item["facts"]
    shape = NodeShape(**item["shape"])
    deadline_unix_s = item.get("deadline_unix_s")
    return Node(
        item["node_id"],
        shape,
        now_s,
        NodeFacts(**{**facts, "shape": NodeShape(**facts["shape"])}) if facts else None,
        lost=item.get("lost", False),
        leaving=item["leaving"],
        departs=item.get("departs", False),
        served_s=None if item["layers"] is None else -inf,
        layers=LayerRange(*item["layers"]) if item["layers"] else None,
        kv_blocks=item["kv_blocks"],
        numerics_class=item.get("numerics_class", ""),
        heard_s=now_s,
        stepped_s=now_s,
        confirmed=False,
        deadline_s=None if deadline_unix_s is None else deadline_unix_s - unix_offset_s,
    )


def _stage(item: dict[str, Any]) -> Stage:
    return Stage(
        LayerRange(**item["layers"]),
        item["tp_degree"],
        NodeShape(**item["shape"]),
        item["node_id"],
        item["spare_id"],
    )


def _formation(item: dict[str, Any] | None) -> Formation | None:
    if item is None:
        return None
    members = tuple(
        Member(**{**member, "layers": LayerRange(**member["layers"])}) for member in item["members"]
    )
    state = FormationState(item["state"])
    return Formation(item["formation_id"], members, item["kv_blocks"], state)
