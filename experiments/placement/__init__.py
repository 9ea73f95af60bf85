"""What each planner makes of the evaluation's cluster: promised, and served offline and online."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.experiment import Experiment, Ground, Size
from experiments.fleets import Plan, Play, beginning_with, mean, played, scenario_at
from experiments.table import Column, Rows
from services.common.errors import ShuntError
from services.placement.command.comparison import PUBLISHED, RIVALS
from services.placement.estimate.estimator import estimate_pipeline, estimate_plan
from services.placement.search.budget import UNLIMITED
from services.placement.search.problem import Problem
from services.placement.search.registry import DEFAULT_PLANNER, NAMES, planner
from simulator.fleet.scenario import Scenario

FOLDER = Path(__file__).parent
MODELS = {"70B": "llama-3.1-70b", "32B": "qwen3-32b"}
HORIZON_S = {Size.TINY: 120.0, Size.QUICK: 1200.0, Size.FULL: 3600.0}
TINY = ("shuntserve", "alpaserve", "vllm")
BETTER_RIVAL = "the better of HexGen and AlpaServe"
COLUMNS = (
    Column("promised req/s", ".3f"),
    Column("ours / it", ".3f"),
    Column("offline req/s", ".3f"),
    Column("ours / it, offline", ".3f"),
    Column("published", ".2f"),
    Column("online TTFT p99 s", ".1f"),
    Column("online TPOT p50 s", ".3f"),
    Column("$/h", ".2f"),
    Column("req/$", ".0f"),
    Column("pipelines", compared=False),
)


def plans(scenario: Scenario, names: Sequence[str]) -> dict[str, Plan]:
    """By planner; none of one that finds none."""
    nodes = tuple(
        scenario.node(f"{offer.offer_id}/{number}", offer)
        for offer, count in scenario.initial
        for number in range(count)
    )
    problem = Problem(scenario.costs, nodes)
    found: dict[str, Plan] = {}
    for name in names:
        try:
            found[name] = planner(name)(problem, UNLIMITED).pipelines
        except ShuntError:
            found[name] = ()
    return found


def ranking(scenario: Scenario, plan: Plan) -> str:
    """Its pipelines, the best first: requests a second, and layers by instance type."""
    rated = [(estimate_pipeline(scenario.costs, one).throughput_rps, one) for one in plan]
    return "; ".join(
        f"{rate:.2f}: "
        + " ".join(f"{s.node.kind.type_name.split('-')[0]}×{s.layers}" for s in pipeline.stages)
        for rate, pipeline in sorted(rated, key=lambda one: -one[0])
    )


def measure(ground: Ground) -> Rows:
    """The rows of both models; plans that are the same are served once."""
    names = TINY if ground.size is Size.TINY else NAMES
    labels = ["32B"] if ground.size is Size.TINY else list(MODELS)
    horizon_s = HORIZON_S[ground.size]
    plays: dict[str, Play] = {}
    made: dict[str, tuple[Scenario, dict[str, Plan]]] = {}
    for label in labels:
        offline, online = (
            scenario_at(FOLDER / f"{label.lower()}-{kind}.yaml", horizon_s)
            for kind in ("offline", "online")
        )
        made[label] = offline, plans(offline, names)
        for name, plan in made[label][1].items():
            if plan:
                plays[f"{label} {name} offline"] = Play("", beginning_with(offline, plan))
                plays[f"{label} {name} online"] = Play("", beginning_with(online, plan))
    served = _served(plays, ground)
    rows: Rows = {}
    for label in labels:
        rows |= _rows(label, *made[label], served)
    return rows


def _served(plays: dict[str, Play], ground: Ground) -> dict[str, dict[str, float]]:
    once: dict[str, Play] = {}
    same: dict[str, str] = {}
    for row, play in plays.items():
        document = play.scenario.document
        pipelines = sorted(str(one) for one in document.first_plan)
        key = f"{play.scenario.name} {pipelines}"
        same[row] = once.setdefault(key, replace(play, row=row)).row
    found = played(FOLDER.name, list(once.values()), ground)
    figures = {
        row: {
            "rps": mean(group, "throughput_rps"),
            "ttft": mean(group, "ttft_s", "p99"),
            "tpot": mean(group, "tpot_s", "p50"),
        }
        for row, group in found.items()
    }
    return {row: figures[other] for row, other in same.items()}


def _rows(
    label: str, scenario: Scenario, by_name: dict[str, Plan], served: dict[str, dict[str, float]]
) -> Rows:
    costs = scenario.costs
    promised = {
        name: estimate_plan(costs, plan)[0].throughput_rps if plan else 0.0
        for name, plan in by_name.items()
    }
    offline = {
        name: served[f"{label} {name} offline"]["rps"] if plan else 0.0
        for name, plan in by_name.items()
    }
    rows: Rows = {}
    for name, plan in by_name.items():
        row = f"{label} {name}"
        if not plan:
            rows[row] = {"pipelines": "no plan"}
            continue
        online, price = served[f"{label} {name} online"], sum(one.cost_per_hour for one in plan)
        rows[row] = {
            "promised req/s": promised[name],
            "ours / it": promised[DEFAULT_PLANNER] / promised[name],
            "offline req/s": offline[name],
            "ours / it, offline": _share(offline[DEFAULT_PLANNER], offline[name]),
            "online TTFT p99 s": online["ttft"],
            "online TPOT p50 s": online["tpot"],
            "$/h": price,
            "req/$": 3600 * offline[name] / price,
            "pipelines": ranking(scenario, plan),
        }
    rivals = [name for name in RIVALS if by_name.get(name)]
    if rivals:
        best = max(rivals, key=lambda name: offline[name])
        rows[f"{label} {BETTER_RIVAL}"] = rows[f"{label} {best}"] | {
            "published": PUBLISHED[MODELS[label]]
        }
    return rows


def _share(ours: float, theirs: float) -> float | None:
    return ours / theirs if theirs else None


EXPERIMENT = Experiment(
    FOLDER.name,
    "Planners on the evaluation's nine nodes, judged by one estimator and served",
    COLUMNS,
    measure,
    "offline req/s",
)
