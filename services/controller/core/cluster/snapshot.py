"""What of the cluster must outlive the controller: who is who and who forms what, as JSON.

Times on the controller's clock mean nothing to the next one: a deadline is kept in wall time.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from math import inf
from typing import Any

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member, NodeFacts, NodeShape
from services.controller.core.cluster.handover import Handover, HandoverState
from services.controller.core.cluster.node import HeldStage, Node
from services.controller.core.cluster.pipeline import Formation, FormationState, Pipeline, Seat
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.plan_json import plan_from_json, plan_to_json
from services.controller.core.cluster.state import State

VERSION = 2
"""The first one had no number, one plan, and one model, which its `basis` names."""


def to_json(state: State, unix_offset_s: float) -> str:
    """`unix_offset_s`: wall time less the clock that the state's times are on."""
    return json.dumps(
        {
            "version": VERSION,
            "basis": state.basis,
            "plan": plan_to_json(state.plan) if state.plan is not None else None,
            "last_number": state.last_number,
            "launched": state.launched,
            "named": state.named,
            "nodes": [_node_json(node, unix_offset_s) for node in state.nodes.values()],
            "pipelines": [_pipeline_json(pipeline) for pipeline in state.pipelines.values()],
        },
        sort_keys=True,
    )


def from_json(snapshot: str, now_s: float, unix_offset_s: float) -> State:
    """As it was; nobody is confirmed yet."""
    document = json.loads(snapshot)
    if "version" not in document:
        document = _from_first_version(document)
    state = State(document["basis"])
    state.last_number = document["last_number"]
    state.launched, state.named = document["launched"], document["named"]
    if document["plan"] is not None:
        state.plan = plan_from_json(document["plan"])
    for item in document["nodes"]:
        node = _node(item, now_s, unix_offset_s)
        state.nodes[node.node_id] = node
    for item in document["pipelines"]:
        if formation := item["formation"]:  # it once had no class of its own
            head = state.nodes[formation["members"][0]["node_id"]]
            formation.setdefault("numerics_class", head.numerics_class)
        state.add(_pipeline(item, now_s))
    return state


def _node_json(node: Node, unix_offset_s: float) -> dict[str, Any]:
    deadline_s = node.deadline_s
    return {
        "node_id": node.node_id,
        "shape": asdict(node.shape),
        "launched": node.launched,
        "released": node.released,
        "facts": asdict(node.facts) if node.facts is not None else None,
        "held": asdict(node.held) if node.held is not None else None,
        "served": node.served_s is not None,
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
        "model": asdict(pipeline.model),
        "weight_tokens_per_s": pipeline.weight_tokens_per_s,
        "seats": [_seat_json(seat) for seat in pipeline.seats],
        "formation": asdict(formation) if formation is not None else None,
        "drains": pipeline.drains,
        "retiring": pipeline.retiring,
    }


def _seat_json(seat: Seat) -> dict[str, Any]:
    return {
        "layers": asdict(seat.stage.layers),
        "tp_degree": seat.stage.tp_degree,
        "shape": asdict(seat.shape),
        "node_id": seat.node_id,
        "successor_id": seat.successor_id,
        "planned_node_id": seat.planned.node_id,
        "planned_offer_id": seat.planned.offer_id,
    }


def _pipeline(item: dict[str, Any], now_s: float) -> Pipeline:
    model = ModelRef(**item["model"])
    formation = _formation(item["formation"])
    pipeline = Pipeline(
        item["pipeline_id"],
        model,
        [_seat(seat, model) for seat in item["seats"]],
        item["weight_tokens_per_s"],
        formation,
        retiring=item["retiring"],
    )
    if formation is not None and (item["drains"] or item["retiring"]):
        drains = HandoverState.DRAINING if item["drains"] else HandoverState.PREPARING
        pipeline.handover = Handover(formation.formation_id, state=drains)
    pipeline.down_since_s = None if pipeline.is_ready else now_s
    return pipeline


def _node(item: dict[str, Any], now_s: float, unix_offset_s: float) -> Node:
    facts, held = item["facts"], item["held"]
    deadline_unix_s = item["deadline_unix_s"]
    return Node(
        item["node_id"],
        NodeShape(**item["shape"]),
        now_s,
        item["launched"],
        NodeFacts(**{**facts, "shape": NodeShape(**facts["shape"])}) if facts else None,
        lost=item["lost"],
        leaving=item["leaving"],
        departs=item["departs"],
        released=item["released"],
        served_s=-inf if item.get("served", held is not None) else None,
        held=None if held is None else _held(held),
        kv_blocks=item["kv_blocks"],
        numerics_class=item["numerics_class"],
        heard_s=now_s,
        stepped_s=now_s,
        confirmed=False,
        deadline_s=None if deadline_unix_s is None else deadline_unix_s - unix_offset_s,
    )


def _held(item: dict[str, Any]) -> HeldStage:
    return HeldStage(ModelRef(**item["model"]), LayerRange(**item["layers"]), item["tp_degree"])


def _seat(item: dict[str, Any], model: ModelRef) -> Seat:
    layers, shape = LayerRange(**item["layers"]), NodeShape(**item["shape"])
    tp_degree = item["tp_degree"]
    planned_node_id = item["planned_node_id"]
    return Seat(
        PlannedStage(layers, tp_degree, shape, planned_node_id, item["planned_offer_id"]),
        HeldStage(model, layers, tp_degree),
        shape,
        item["node_id"],
        item["successor_id"],
    )


def _formation(item: dict[str, Any] | None) -> Formation | None:
    if item is None:
        return None
    members = tuple(
        Member(**{**member, "layers": LayerRange(**member["layers"])}) for member in item["members"]
    )
    state = FormationState(item["state"])
    return Formation(
        item["formation_id"], members, item["kv_blocks"], state, item["numerics_class"]
    )


def _from_first_version(old: dict[str, Any]) -> dict[str, Any]:
    basis = old.get("basis", "")
    model = json.loads(basis)["model"] if basis else {"model_id": "", "digest": ""}
    pipelines = [_first_pipeline(item, model) for item in old["pipelines"]]
    return {
        "basis": basis,
        "plan": _first_plan(pipelines, model),
        "last_number": 1 if pipelines else 0,
        "launched": old["counter"],
        "named": len(pipelines),
        "nodes": [_first_node(item, model) for item in old["nodes"]],
        "pipelines": pipelines,
    }


def _first_node(item: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    layers = item.get("layers")
    held = None
    if layers is not None:
        held = {"model": model, "layers": {"start": layers[0], "end": layers[1]}, "tp_degree": 1}
    known = {"deadline_unix_s": None, "departs": False, "lost": False, "numerics_class": ""}
    return {**known, **item, "held": held, "launched": True, "released": False}


def _first_pipeline(item: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    formation = item["formation"]
    drains = formation is not None and formation["state"] == "handing_over"
    if drains:
        formation = {**formation, "state": FormationState.READY.value}
    return {
        "pipeline_id": item["pipeline_id"],
        "model": model,
        "weight_tokens_per_s": item["throughput_tokens_per_s"],
        "formation": formation,
        "drains": drains,
        "retiring": False,
        "seats": [
            {
                "layers": stage["layers"],
                "tp_degree": stage["tp_degree"],
                "shape": stage["shape"],
                "node_id": stage["node_id"],
                "successor_id": stage["spare_id"],
                "planned_node_id": stage["node_id"],
                "planned_offer_id": "",
            }
            for stage in item["stages"]
        ],
    }


def _first_plan(pipelines: list[dict[str, Any]], model: dict[str, Any]) -> str | None:
    if not pipelines:
        return None
    planned = tuple(
        PlannedPipeline(
            item["pipeline_id"],
            tuple(_seat(seat, ModelRef(**model)).planned for seat in item["seats"]),
            item["weight_tokens_per_s"],
        )
        for item in pipelines
    )
    return plan_to_json(Plan(1, (Deployment(ModelRef(**model), THROUGHPUT, planned),)))
