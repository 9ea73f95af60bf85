"""`shunt plan diff`: what the plan of a file would change, were it applied now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
from rich.console import Group
from rich.text import Text
from shuntserve.controller.v1 import controller_pb2

from services.cli.apply import read_plan
from services.cli.controller_calls import controller_of
from services.cli.mesh_directory import MeshDirectory, MeshError

ESTIMATES_S = 30.0
"""The controller gives placement less, twice."""


async def plan_diff(directory: MeshDirectory, path: Path) -> dict[str, Any]:
    """The JSON of `shunt plan diff --json`; raises MeshError, naming the field that is wrong."""
    text = read_plan(path)
    async with controller_of(directory) as stub:
        try:
            request = controller_pb2.DiffPlanRequest(plan_json=text)
            answer = await stub.DiffPlan(request, timeout=ESTIMATES_S)
        except grpc.aio.AioRpcError as error:
            raise MeshError(f"{path}: {error.details()}") from None
    return {
        "pipelines": {
            "kept": list(answer.kept_pipeline_ids),
            "new": [
                {
                    "id": pipeline.pipeline_id,
                    "stages": [_stage(stage) for stage in pipeline.stages],
                }
                for pipeline in answer.new_pipelines
            ],
            "gone": list(answer.gone_pipeline_ids),
        },
        "nodes": {
            "launched": [
                {
                    "id": node.node_id,
                    "offer": node.offer_id or None,
                    "price_per_hour": _known(node, "price_per_hour"),
                }
                for node in answer.launched
            ],
            "freed": list(answer.freed_node_ids),
            "idle": list(answer.idle_node_ids),
        },
        "cost_per_hour": _pair(answer, "cost_per_hour"),
        "throughput_tokens_per_s": _pair(answer, "throughput_tokens_per_s"),
        "estimates_lack": answer.estimates_lack or None,
    }


def _known(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _pair(answer: controller_pb2.DiffPlanResponse, field: str) -> dict[str, float | None]:
    found = {"now": _known(answer, field), "after": _known(answer, f"{field}_after")}
    return {when: None if value is None else round(value, 6) for when, value in found.items()}


def _stage(stage: controller_pb2.StageToBe) -> dict[str, Any]:
    return {
        "node": stage.node_id or None,
        "layers": [stage.layers.start, stage.layers.end],
        "tp_degree": stage.tp_degree,
        "lacks": [[layers.start, layers.end] for layers in stage.lacks],
        "load_bytes": _known(stage, "load_bytes"),
    }


def diff_text(diff: dict[str, Any]) -> Group:
    """For people: what stays has a space before it, what comes a +, what goes a -."""
    pipelines, nodes = diff["pipelines"], diff["nodes"]
    launched = {node["id"]: node for node in nodes["launched"]}
    lines = [Text(f"  {name} goes on untouched") for name in pipelines["kept"]]
    for pipeline in pipelines["new"]:
        lines.append(Text(f"+ {pipeline['id']}", style="green"))
        lines += [Text(f"    {_stage_line(stage, launched)}") for stage in pipeline["stages"]]
    lines += [Text(f"- {name}", style="red") for name in pipelines["gone"]]
    for node in nodes["launched"]:
        price = (
            "" if node["price_per_hour"] is None else f" at {node['price_per_hour']:.4g} an hour"
        )
        whence = f"from {node['offer']}{price}" if node["offer"] else "though nobody offers one"
        lines.append(Text(f"+ {node['id']} is launched {whence}", style="green"))
    lines += [Text(f"- {name} ends", style="red") for name in nodes["freed"]]
    lines += [Text(f"  {name} has no place any more and stays") for name in nodes["idle"]]
    if not (pipelines["new"] or pipelines["gone"]):
        lines.append(Text("  nothing changes but the plan's number and weights"))
    lines += _figures("cost an hour", diff["cost_per_hour"])
    lines += _figures("tokens/s, estimated", diff["throughput_tokens_per_s"])
    if diff["estimates_lack"]:
        lines.append(Text(f"  no estimates: {diff['estimates_lack']}", style="yellow"))
    return Group(*lines)


def _stage_line(stage: dict[str, Any], launched: dict[str, Any]) -> str:
    first, end = stage["layers"]
    node = stage["node"] or "nobody yet"
    new = " (new)" if node in launched else ""
    line = f"layers {first}-{end - 1} on {node}{new}"
    if not stage["lacks"]:
        return f"{line}, which holds them"
    count = sum(end - start for start, end in stage["lacks"])
    size = "" if stage["load_bytes"] is None else f", {stage['load_bytes'] / 1e6:.4g} MB"
    return f"{line}, which loads {count} of them{size}"


def _figures(name: str, pair: dict[str, float | None]) -> list[Text]:
    now, after = pair["now"], pair["after"]
    if now is None and after is None:
        return []
    words = ["not known" if value is None else f"{value:.4g}" for value in (now, after)]
    return [Text(f"  {name}: {words[0]} now, {words[1]} after")]
