"""All planners on one cluster, and our ratio to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from services.common.errors import ShuntError
from services.placement.search.problem import Problem
from services.placement.search.registry import DEFAULT_PLANNER

# Measured by the paper on its cluster: served requests over the better of HexGen and AlpaServe.
PUBLISHED = {"llama-3.1-70b": 1.42, "qwen3-32b": 1.35}
RIVALS = ("hexgen", "alpaserve")
Solve = Callable[[Problem, str, float], dict[str, Any]]


def compare_planners(
    model: str, problem: Problem, names: Sequence[str], solve: Solve, time_limit_s: float
) -> dict[str, Any]:
    """Each planner's plan and our rate over it; a planner that finds none says why."""
    ordered = [DEFAULT_PLANNER, *(name for name in names if name != DEFAULT_PLANNER)]
    rows: list[dict[str, Any]] = []
    for name in ordered:
        plan: dict[str, Any] | None
        error: str | None
        try:
            plan, error = solve(problem, name, time_limit_s), None
        except ShuntError as failed:
            plan, error = None, failed.message
        rows.append({"planner": name, "plan": plan, "error": error})
    ours = rows[0]["plan"]["throughput_rps"] if rows[0]["plan"] else 0.0
    for row in rows:
        rate = row["plan"]["throughput_rps"] if row["plan"] else 0.0
        row["throughput_rps"] = rate
        row["ratio"] = ours / rate if rate else None
        row["cost_per_hour"] = row["plan"]["cost_per_hour"] if row["plan"] else None
        row["solve_time_s"] = row["plan"]["solve_time_s"] if row["plan"] else None
    rivals = [row["throughput_rps"] for row in rows if row["planner"] in RIVALS]
    best = max(rivals, default=0.0)
    return {
        "model": model,
        "planners": rows,
        "ratio_to_better_of_hexgen_and_alpaserve": ours / best if best else None,
        "published_ratio": PUBLISHED.get(model),
    }


def comparison_table(result: dict[str, Any]) -> Table:
    ratio, published = (
        result["ratio_to_better_of_hexgen_and_alpaserve"],
        result["published_ratio"],
    )
    title = result["model"]
    if ratio is not None:
        title += f": {ratio:.2f} x the better of HexGen and AlpaServe at their best"
    if published is not None:
        title += f" (the paper measured {published:.2f}; docs/placement.md explains)"
    table = Table(title=title, title_justify="left")
    for name in ("planner", "req/s", "ours / it", "$/h", "pipelines", "time s"):
        table.add_column(name, justify="left" if name == "planner" else "right")
    for row in result["planners"]:
        if row["plan"] is None:
            table.add_row(row["planner"], "-", "-", "-", "-", (row["error"] or "")[:60])
            continue
        table.add_row(
            row["planner"],
            f"{row['throughput_rps']:.3f}",
            f"{row['ratio']:.3f}",
            f"{row['cost_per_hour']:.2f}",
            str(len(row["plan"]["pipelines"])),
            f"{row['solve_time_s']:.2f}",
        )
    return table
