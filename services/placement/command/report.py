"""Plans and estimates for people and scripts: plain data, and tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from services.common.phases import PipelinePhase
from services.placement.estimate.cluster import PlacedPipeline
from services.placement.estimate.estimator import PipelineEstimate, PlanEstimate


def number(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None


def pipeline_data(pipeline: PlacedPipeline, estimate: PipelineEstimate) -> dict[str, Any]:
    data: dict[str, Any] = {
        "kv_blocks": estimate.kv_blocks,
        "max_batch": estimate.max_batch,
        "batch_latency_s": estimate.batch_latency_s,
        "single_request_latency_s": estimate.single_request_latency_s,
        "throughput_rps": estimate.throughput_rps,
        "cost_per_hour": estimate.cost_per_hour,
        "ttft_s": number(estimate.load.ttft_s),
        "tpot_s": number(estimate.load.tpot_s),
        "end_to_end_s": number(estimate.load.end_to_end_s),
        "stages": [
            {
                "instance_type": stage.node.kind.type_name,
                "layers": stage.layers,
                "tp": stage.tp,
                "prefill_s": one.prefill_s,
                "decode_s": one.decode_s,
                "bound_by": one.bound_by.value,
                "node": stage.node.node_id,
            }
            for stage, one in zip(pipeline.stages, estimate.stages, strict=True)
        ],
    }
    if pipeline.phase is not PipelinePhase.BOTH:
        data["phase"] = pipeline.phase.value
    return data


def plan_data(
    planner: str,
    pipelines: Sequence[PlacedPipeline],
    total: PlanEstimate,
    each: Sequence[PipelineEstimate],
    solve_time_s: float,
    upper_bound_rps: float | None,
    late: str = "",
) -> dict[str, Any]:
    return {
        "planner": planner,
        "pipelines": [pipeline_data(p, e) for p, e in zip(pipelines, each, strict=True)],
        "throughput_rps": total.throughput_rps,
        "cost_per_hour": total.cost_per_hour,
        "solve_time_s": solve_time_s,
        "upper_bound_rps": upper_bound_rps,
        "ttft_s": number(total.load.ttft_s),
        "tpot_s": number(total.load.tpot_s),
        "end_to_end_s": number(total.load.end_to_end_s),
        "late": late or None,
    }


def pipeline_table(title: str, data: dict[str, Any]) -> Table:
    """Stages of one pipeline as JSON data has them."""
    table = Table(title=title, title_justify="left")
    for name in ("stage", "layers", "TP", "prefill s", "decode ms", "bound by"):
        table.add_column(name, justify="left" if name in ("stage", "bound by") else "right")
    for stage in data["stages"]:
        table.add_row(
            stage["instance_type"],
            str(stage["layers"]),
            str(stage["tp"]),
            f"{stage['prefill_s']:.3f}",
            f"{stage['decode_s'] * 1e3:.2f}",
            stage["bound_by"],
        )
    return table


def pipeline_title(data: dict[str, Any]) -> str:
    phase = f", {data['phase']} only" if "phase" in data else ""
    return (
        f"{data['throughput_rps']:.3f} req/s at ${data['cost_per_hour']:.3f}/h{phase}; "
        f"batch {data['max_batch']}, {data['kv_blocks']} KV blocks; batch "
        f"{data['batch_latency_s']:.2f} s, one request {data['single_request_latency_s']:.2f} s"
    )


def explanation_tables(data: dict[str, Any]) -> list[Table]:
    """Operations and alternatives of each stage of a pipeline's data."""
    tables = []
    for stage, opened in zip(data["stages"], data["explanation"], strict=True):
        slow = ", ".join(opened["bottleneck_of"])
        title = f"{stage['instance_type']}: bound by {opened['bound_by']}" + (
            f"; the pipeline's {slow} bottleneck" if slow else ""
        )
        table = Table(title=title, title_justify="left")
        for name in ("operation", "prefill s", "by", "decode ms", "by "):
            table.add_column(name)
        for op in opened["operations"]:
            table.add_row(
                op["name"],
                f"{op['prefill_s']:.4f}",
                op["prefill_bound_by"],
                f"{op['decode_s'] * 1e3:.3f}",
                op["decode_bound_by"],
            )
        for one in opened["alternatives"]:
            rate = f"{one['throughput_rps']:.3f} req/s" if one["throughput_rps"] else "no room"
            table.add_row(
                one["change"], f"{one['prefill_s']:.4f}", "", f"{one['decode_s'] * 1e3:.3f}", rate
            )
        tables.append(table)
    return tables
