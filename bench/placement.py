"""Placement's figures: parity, planners against each other and against the proof, times, errors.

`python -m bench.placement [--data DIR] [--quick] [--only PART,...]` prints each figure and writes
bench/out/placement.json. Measured profiles are read from the data directory (or SHUNT_BENCH_DATA)
and never copied. Times are of one process on one core; `cpu_s` is the process's own.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.placement_clusters import (
    PAPER,
    PAPER_PRICES,
    cluster,
    cluster_of_gpus,
    random_cluster,
)
from services.common.errors import ShuntError
from services.placement.cli import solved
from services.placement.command.clusterfile import parse_pipeline
from services.placement.command.comparison import compare_planners
from services.placement.estimate.calibration import Calibration, Efficiency, load_calibration
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import CandidateNode, Workload
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import estimate_pipeline, estimate_plan
from services.placement.estimate.fitting import Measurement, errors, fit
from services.placement.estimate.model import load_model
from services.placement.replan.change import Change
from services.placement.replan.next_plan import replan
from services.placement.search.budget import Unlimited
from services.placement.search.planners import exact, shuntserve
from services.placement.search.problem import Objective, Problem
from services.placement.search.registry import NAMES, planner

MODELS = ("llama-3.1-70b", "qwen3-32b")
PUBLISHED = {
    "g6.12xlarge:20,g6.12xlarge:21,g6.12xlarge:21,g6e.xlarge:10,g6e.xlarge:8": (
        28730,
        461,
        112.791,
        30.803,
    ),
    "g6e.xlarge:13,g5.12xlarge:27,g5.12xlarge:28,g6e.xlarge:12": (15049, 241, 83.501, 22.444),
}
BASELINES = ("proportional", "hexgen", "alpaserve", "vllm", "helix", "thunderserve", "spotserve")
# Cards that hold their clock lend each other their share of peak, and so do those that do not.
PEERS = {"a100": "v100", "v100": "a100", "l4": "t4", "t4": "l4"}
CONTEXT = 512


def costs_of(model: str, calibration: str) -> Costs:
    return Costs(load_model(model), Workload(), load_calibration(calibration), load_catalogue())


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall seconds, CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def rate_of(problem: Problem, name: str) -> float:
    """Requests a second a planner finds; 0 when it finds nothing."""
    try:
        solution = planner(name)(problem, Unlimited())
    except ShuntError:
        return 0.0
    return estimate_plan(problem.costs, solution.pipelines)[0].throughput_rps


def parity() -> dict[str, Any]:
    rows = []
    for text, (blocks, batch, batch_s, alone_s) in PUBLISHED.items():
        got = estimate_pipeline(
            costs_of("llama-3.1-70b", "nominal"), parse_pipeline(text, load_catalogue())
        )
        rows.append(
            {
                "pipeline": text,
                "kv_blocks_exact": got.kv_blocks == blocks,
                "batch_exact": got.max_batch == batch,
                "batch_latency_error": got.batch_latency_s / batch_s - 1,
                "single_request_error": got.single_request_latency_s / alone_s - 1,
            }
        )
    return {"pipelines": rows}


def paper() -> dict[str, Any]:
    """The paper's cluster, every planner, both models."""
    out: dict[str, Any] = {}
    for model in MODELS:
        for calibration in ("nominal", "measured"):
            problem = Problem(costs_of(model, calibration), cluster(PAPER, PAPER_PRICES))
            _, wall, cpu = timed(partial(shuntserve.plan, problem, Unlimited()))
            result = compare_planners(model, problem, NAMES, solved, 60.0)
            out[f"{model} {calibration}"] = {
                "solve_wall_s": wall,
                "solve_cpu_s": cpu,
                "rates": {r["planner"]: r["throughput_rps"] for r in result["planners"]},
                "ratios": {r["planner"]: r["ratio"] for r in result["planners"]},
                "ratio_to_better_of_hexgen_and_alpaserve": result[
                    "ratio_to_better_of_hexgen_and_alpaserve"
                ],
                "published_ratio": result["published_ratio"],
            }
    return out


def phase_split() -> dict[str, Any]:
    """What prefill and decode on different pipelines would carry, by ThunderServe's search."""
    out = {}
    for model in MODELS:
        for calibration in ("nominal", "measured"):
            problem = Problem(
                costs_of(model, calibration),
                cluster(PAPER, PAPER_PRICES),
                Objective(allow_phase_split=True),
            )
            out[f"{model} {calibration}"] = rate_of(problem, "thunderserve")
    return out


def problems(count: int) -> Iterator[tuple[int, Problem]]:
    """Random clusters that hold the model at all, models and calibrations in turn."""
    number = found = 0
    while found < count:
        costs = costs_of(MODELS[number % 2], ("nominal", "measured")[number // 2 % 2])
        problem = Problem(costs, random_cluster(number))
        if rate_of(problem, "shuntserve"):
            found += 1
            yield number, problem
        number += 1


def against_baselines(count: int) -> dict[str, Any]:
    worst: dict[str, float] = dict.fromkeys(BASELINES, float("inf"))
    beaten = []
    for number, problem in problems(count):
        ours = rate_of(problem, "shuntserve")
        for name in BASELINES:
            theirs = rate_of(problem, name)
            if theirs:
                worst[name] = min(worst[name], ours / theirs)
                if theirs > ours * (1 + 1e-9):
                    beaten.append({"cluster": number, "planner": name, "ratio": ours / theirs})
    return {"clusters": count, "least_ratio": worst, "beaten": beaten}


def against_exact(count: int) -> dict[str, Any]:
    gaps, certified, slowest = [], 0, 0.0
    for _, problem in problems(count):
        ours = rate_of(problem, "shuntserve")
        solution, _, cpu = timed(partial(exact.plan, problem, Unlimited()))
        best = estimate_plan(problem.costs, solution.pipelines)[0].throughput_rps
        bound = solution.upper_bound_rps or 0.0
        certified += best >= bound * (1 - 1e-5)
        slowest = max(slowest, cpu)
        gaps.append(1 - ours / best)
    return {
        "clusters": count,
        "median_gap": statistics.median(gaps),
        "largest_gap": max(gaps),
        "certified": certified,
        "exact_slowest_cpu_s": slowest,
    }


def scale() -> dict[str, Any]:
    rows = []
    singles = dict.fromkeys(("g4dn.xlarge", "g5.xlarge", "g6.xlarge", "g6e.xlarge"), 1)
    for gpus, limit_s in ((24, 1.0), (128, 10.0), (1000, 60.0)):
        grounds: dict[str, tuple[CandidateNode, ...]] = {
            f"random {i}": cluster_of_gpus(gpus, i) for i in range(3)
        }
        grounds["one GPU each"] = cluster(dict.fromkeys(singles, gpus // 4))
        for label, nodes in grounds.items():
            for model in MODELS:
                problem = Problem(costs_of(model, "measured"), nodes)
                rate, wall, cpu = timed(partial(rate_of, problem, "shuntserve"))
                rows.append(
                    {
                        "gpus": sum(node.kind.gpu_count for node in nodes),
                        "cluster": label,
                        "model": model,
                        "nodes": len(nodes),
                        "wall_s": wall,
                        "cpu_s": cpu,
                        "limit_s": limit_s,
                        "rps": rate,
                    }
                )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "peak_memory_mib": peak}


def replanning(count: int) -> dict[str, Any]:
    """One node lost at 128 GPUs."""
    nodes = cluster_of_gpus(128, 0)
    costs = costs_of("llama-3.1-70b", "measured")
    running = shuntserve.plan(Problem(costs, nodes), Unlimited()).pipelines
    walls, cpus = [], []
    serving = [node_id for pipeline in running for node_id in pipeline.node_ids]
    for lost in serving[:: max(1, len(serving) // count)][:count]:
        left = tuple(node for node in nodes if node.node_id != lost)
        change = Change(running, {}, generations=(50,) * len(running), tokens_per_generation=800)
        problem = Problem(costs, left)
        _, wall, cpu = timed(partial(replan, problem, change, shuntserve.plan, Unlimited()))
        walls.append(wall)
        cpus.append(cpu)
    return {
        "changes": len(walls),
        "wall_median_s": statistics.median(walls),
        "wall_max_s": max(walls),
        "cpu_median_s": statistics.median(cpus),
        "cpu_max_s": max(cpus),
    }


def profiles(data: Path) -> list[Measurement]:
    """The Helix per-layer profiles: folders gpu or gpuxN."""
    found = []
    for folder in sorted((data / "helix-profiles" / "llama2_70b").iterdir()):
        gpu, _, tp = folder.name.partition("x")
        for file, prefill in (("prompt_bs2time.csv", True), ("decode_bs2time.csv", False)):
            with (folder / file).open(newline="") as rows:
                for tokens, time_ms in csv.reader(rows):
                    if float(tokens) > 0:
                        found.append(
                            Measurement(
                                gpu, int(tp or 1), prefill, int(tokens), CONTEXT, float(time_ms)
                            )
                        )
    return found


def calibration(data: Path) -> dict[str, Any]:
    """Errors on GPU types the fit did not see: each type is left out in turn.

    Its share of peak arithmetic is its peer's, everything else the median of the other types.
    """
    model, catalogue = load_model("llama-3.1-70b"), load_catalogue()
    measured = profiles(data)
    shipped = load_calibration("measured")
    single = {g: [m for m in measured if m.gpu == g and m.tp == 1] for g in PEERS}
    fitted = {g: fit(model, rows, shipped, catalogue) for g, rows in single.items()}
    unseen: dict[str, Efficiency] = {}
    for gpu, peer in PEERS.items():
        others = [fitted[g] for g in PEERS if g != gpu]
        middle: Any = {
            name: float(np.median([getattr(one, name) for one in others]))
            for name in ("mbu", "attention_mbu", "launch_us")
        }
        unseen[gpu] = Efficiency(mfu=fitted[peer].mfu, tile_tokens=128, **middle)
    left_out = shipped.model_copy(update={"gpus": unseen})
    return {
        "measurements": len(measured),
        "left_out": _mape(model, measured, left_out),
        "shipped": _mape(model, measured, shipped),
    }


def _mape(model: Any, measured: list[Measurement], chosen: Calibration) -> dict[str, Any]:
    missed = np.abs(errors(model, measured, chosen, load_catalogue()))
    out: dict[str, Any] = {}
    for prefill in (True, False):
        phase = "prefill" if prefill else "decode"
        at = np.array([one.prefill == prefill for one in measured])
        out[phase] = float(missed[at].mean())
        for setting in sorted({(one.gpu, one.tp) for one in measured}):
            mine = np.array([(one.gpu, one.tp) == setting for one in measured]) & at
            out[f"{phase} {setting[0]}x{setting[1]}"] = float(missed[mine].mean())
    return out


def main() -> None:
    arguments = sys.argv[1:]
    quick = "--quick" in arguments
    place = os.environ.get("SHUNT_BENCH_DATA", "../shared/data")
    data = Path(arguments[arguments.index("--data") + 1] if "--data" in arguments else place)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "parity": parity,
        "calibration": lambda: calibration(data) if data.is_dir() else {"skipped": str(data)},
        "scale": scale,
        "replanning": lambda: replanning(5 if quick else 20),
        "paper_cluster": paper,
        "phase_split": phase_split,
        "against_exact": lambda: against_exact(20 if quick else 200),
        "against_baselines": lambda: against_baselines(5 if quick else 50),
    }
    out = Path("bench/out/placement.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    if "--only" in arguments:
        wanted = arguments[arguments.index("--only") + 1].split(",")
        parts = {name: part for name, part in parts.items() if name in wanted}
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for name, part in parts.items():
        results[name], wall, cpu = timed(part)
        print(f"== {name} ({wall:.1f} s, {cpu:.1f} s of CPU)", flush=True)
        print(json.dumps(results[name], indent=1), flush=True)
        out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
