"""The forms that the cluster's notes had before each entity had one of its own: one note of it
all."""

from __future__ import annotations

import json
from typing import Any

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import NodeShape
from services.controller.core.cluster.pipeline import FormationState
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.plan_json import plan_to_json


def in_second_version(document: dict[str, Any]) -> dict[str, Any]:
    """A note in the second version, from one in any. The first one had no number, one plan, and
    one model, which its `basis` names; the second one has nodes and pipelines as their notes have
    them."""
    return document if "version" in document else _from_first_version(document)


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
            tuple(_first_stage(seat) for seat in item["seats"]),
            item["weight_tokens_per_s"],
        )
        for item in pipelines
    )
    return plan_to_json(Plan(1, (Deployment(ModelRef(**model), THROUGHPUT, planned),)))


def _first_stage(seat: dict[str, Any]) -> PlannedStage:
    return PlannedStage(
        LayerRange(**seat["layers"]),
        seat["tp_degree"],
        NodeShape(**seat["shape"]),
        seat["planned_node_id"],
    )
