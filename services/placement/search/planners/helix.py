"""Helix (ASPLOS'25): layer ranges of nodes by a mixed-integer maximum flow, solved by HiGHS.

Each node holds a range; flow runs from a node to one whose range holds the next layer, within what
both ends and the link carry. Per-request routes over the ranges then become pipelines: disjoint
chains, each node running the layers its predecessor has not. Like the original, the search begins
from a heuristic placement (homogeneous pipelines) and never ends below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from services.common.errors import DeadlineExceeded, FailedPrecondition
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline, PlacedStage
from services.placement.estimate.costs import StageCost
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.estimate.roofline import Array
from services.placement.search.budget import SearchBudget, solver_s
from services.placement.search.planners import alpaserve
from services.placement.search.planners.groups import groups, kinds_of, nodes_of
from services.placement.search.problem import Problem, Solution, nothing_found
from services.placement.search.score import score

SIZES = 10
MAX_NODES = 24
SOLVE_S = 5.0
"""Of the search for the greatest flow, where there is a clock."""
MOST_NODES = 1000
"""Of its tree."""
Range = tuple[int, int]


@dataclass(frozen=True)
class Site:
    """A node, its cost, and what it carries by layers held: [(layers, requests a second)]."""

    node: CandidateNode
    cost: StageCost
    sizes: tuple[tuple[int, float], ...]

    @property
    def backend(self) -> str:
        return self.node.kind.backend


def plan(problem: Problem, budget: SearchBudget) -> Solution:
    """Chains of the best ranges found; FailedPrecondition beyond 24 nodes."""
    if len(problem.nodes) > MAX_NODES:
        raise FailedPrecondition(
            f"helix plans at most {MAX_NODES} nodes: its program grows with their square",
            field="planner",
        )
    known = groups(problem, budget)
    sites = []
    for node, kind in zip(nodes_of(known.ground), kinds_of(known.ground), strict=True):
        option = known.fastest(kind)
        if option is not None:
            cost = known.ground.options[option].cost
            if sizes := _sizes(cost):
                sites.append(Site(node, cost, sizes))
    if not sites:
        raise nothing_found(problem, budget)
    ranges, flow, proven = _solve(sites, problem.costs.model.layers, budget)
    pipelines = tuple(_chains(problem, sites, ranges))
    start = _heuristic(problem, budget)
    if score(problem, start) > score(problem, pipelines):
        pipelines = start
    if not pipelines:
        raise nothing_found(problem, budget)
    reason = f"maximum flow {flow:.3f} req/s in its own model" + ("" if proven else ", not proven")
    return Solution(pipelines, complete=proven, reasons=(reason,))


def _heuristic(problem: Problem, budget: SearchBudget) -> tuple[PlacedPipeline, ...]:
    try:
        return alpaserve.plan(problem, budget).pipelines
    except (FailedPrecondition, DeadlineExceeded):
        return ()


def _sizes(cost: StageCost) -> tuple[tuple[int, float], ...]:
    """Some numbers of layers the node can hold, with its requests a second at each.

    Its batch is what its memory holds, shared by as many microbatches as such stages make.
    """
    total = cost.model.layers
    most = max((n for n in range(1, total + 1) if cost.capacity(n, False, False)), default=0)
    out = cost.workload.output_tokens
    found = []
    for n in np.unique(np.linspace(1, most, SIZES).astype(int)) if most else []:
        batch = cost.capacity(int(n), False, False)
        b = max(1.0, batch * n / total)
        each = float(cost.prefill_layer_s(b)) + out * float(cost.decode_layer_s(b))
        found.append((int(n), b / (n * each)))
    return tuple(found)


def _solve(
    sites: list[Site], layers: int, budget: SearchBudget
) -> tuple[list[Range | None], float, bool]:
    """Ranges by node, the flow, and whether it is proven greatest."""
    import highspy

    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.silent()
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("time_limit", max(0.1, solver_s(budget, SOLVE_S)))
    solver.setOptionValue("mip_max_nodes", MOST_NODES)
    solver.setOptionValue("mip_rel_gap", 1e-3)
    n = len(sites)
    top = sum(max(rate for _, rate in site.sizes) for site in sites)
    start = [solver.addVariable(0, layers) for _ in sites]
    pick = [[solver.addBinary() for _ in site.sizes] for site in sites]
    held = []
    for site, chosen in zip(sites, pick, strict=True):
        solver.addConstr(sum(chosen) <= 1)
        held.append(sum(size * one for (size, _), one in zip(site.sizes, chosen, strict=True)))
    end = [s + h for s, h in zip(start, held, strict=True)]
    entry = [_flow(solver, top) for _ in sites]
    leave = [_flow(solver, top) for _ in sites]
    link: dict[tuple[int, int], Any] = {}
    for i in range(n):
        solver.addConstr(end[i] <= layers)
        solver.addConstr(start[i] <= layers * (1 - entry[i][1]))
        solver.addConstr(end[i] >= layers * leave[i][1])
        for j in range(n):
            if i != j and sites[i].backend == sites[j].backend:
                flow, used = link[i, j] = _flow(solver, top)
                solver.addConstr(start[j] - end[i] <= layers * (1 - used))
                solver.addConstr(end[j] - end[i] >= 1 - (layers + 1) * (1 - used))
                solver.addConstr(flow <= _link_rate(sites[i].cost, sites[j].cost))
    for i in range(n):
        arriving = entry[i][0] + sum(link[j, i][0] for j in range(n) if (j, i) in link)
        going = leave[i][0] + sum(link[i, j][0] for j in range(n) if (i, j) in link)
        solver.addConstr(arriving == going)
        carries = [rate * one for (_, rate), one in zip(sites[i].sizes, pick[i], strict=True)]
        solver.addConstr(arriving <= sum(carries))
    solver.maximize(sum(flow for flow, _ in entry))
    values = np.asarray(solver.getSolution().col_value)
    if not len(values):
        return [None] * n, 0.0, False
    ranges: list[Range | None] = []
    for i, site in enumerate(sites):
        size = sum(
            s * round(values[one.index]) for (s, _), one in zip(site.sizes, pick[i], strict=True)
        )
        first = round(values[start[i].index])
        ranges.append((first, min(layers, first + size)) if size else None)
    proven = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return ranges, float(solver.getInfo().objective_function_value), proven


def _flow(solver: Any, top: float) -> tuple[Any, Any]:
    """A flow and the binary that opens it."""
    flow, used = solver.addVariable(0, top), solver.addBinary()
    solver.addConstr(flow <= top * used)
    return flow, used


def _link_rate(one: StageCost, other: StageCost) -> float:
    """Requests a second whose activations a link carries."""
    rate = min(one.network_bytes_per_s, other.network_bytes_per_s)
    return rate / (one.workload.total_tokens * one.model.hidden * 2)


def _chains(
    problem: Problem, sites: list[Site], ranges: list[Range | None]
) -> list[PlacedPipeline]:
    """Disjoint chains of nodes of one backend whose ranges follow each other, the fewest overlaps
    first."""
    names = dict.fromkeys(site.backend for site in sites)
    return [pipeline for name in names for pipeline in _chains_of(name, problem, sites, ranges)]


def _chains_of(
    backend: str, problem: Problem, sites: list[Site], ranges: list[Range | None]
) -> list[PlacedPipeline]:
    held = (i for i, one in enumerate(ranges) if one is not None)
    free = {i for i in held if sites[i].backend == backend}
    pipelines: list[PlacedPipeline] = []
    while chain := _chain(ranges, free, problem.costs.model.layers):
        stages, at = [], 0
        for i in chain:
            end = ranges[i][1]  # type: ignore[index]
            stages.append(PlacedStage(sites[i].node, at, end, sites[i].cost.tp))
            at = end
        free -= set(chain)
        pipeline = PlacedPipeline(tuple(stages))
        try:
            estimate_pipeline(problem.costs, pipeline)
        except FailedPrecondition:
            continue
        pipelines.append(pipeline)
    return pipelines


def _chain(ranges: list[Range | None], free: set[int], layers: int) -> list[int]:
    """The chain from the first layer to the last that recomputes fewest held layers."""
    waste: Array = np.full(layers + 1, np.inf)
    waste[0] = 0
    via: dict[int, tuple[int, int]] = {}
    for at in range(layers):
        if not np.isfinite(waste[at]):
            continue
        for i in sorted(free):
            first, end = ranges[i]  # type: ignore[misc]
            if first <= at < end and waste[at] + (at - first) < waste[end]:
                waste[end] = waste[at] + (at - first)
                via[end] = (at, i)
    chain: list[int] = []
    at = layers
    while at in via and at > 0:
        at, i = via[at]
        if i in chain:
            return []
        chain.append(i)
    return chain[::-1] if at == 0 and chain else []
