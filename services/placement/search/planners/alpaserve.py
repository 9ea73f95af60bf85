"""AlpaServe (OSDI'23): homogeneous pipelines for each instance type.

Its dynamic programme F(s, k) = min over i of max(F(s-1, i-1), latency(i, k)) finds the stages'
layers; as in the paper's comparison the pipeline then gets our split, if that carries more.
"""

from __future__ import annotations

import numpy as np

from services.common.errors import FailedPrecondition
from services.placement.estimate.cluster import PlacedPipeline, PlacedStage
from services.placement.estimate.costs import StageCost
from services.placement.estimate.estimator import estimate_pipeline
from services.placement.estimate.roofline import Array
from services.placement.search.budget import SearchBudget
from services.placement.search.columns import Candidate
from services.placement.search.field import SearchField
from services.placement.search.planners.groups import Groups, groups
from services.placement.search.problem import Problem, Solution, nothing_found
from services.placement.search.splits import Split


def plan(problem: Problem, budget: SearchBudget) -> Solution:
    """For each type the pipeline length whose copies carry most together."""
    known = groups(problem, budget)
    chosen: list[Candidate] = []
    for kind, group in enumerate(known.ground.stock.nodes):
        if chosen and budget.expired():
            break
        best: tuple[float, list[Candidate]] = (0.0, [])
        for stages in range(1, min(len(group), known.ground.columns.tables.longest) + 1):
            candidate = _pipeline(problem, known, kind, stages)
            copies = len(group) // stages
            if candidate and candidate.split.rate_rps * copies > best[0]:
                best = candidate.split.rate_rps * copies, [candidate] * copies
            if budget.expired():
                break
        chosen.extend(best[1])
    if not chosen:
        raise nothing_found(problem, budget)
    return Solution(known.ground.build(chosen), complete=not budget.expired())


def _pipeline(problem: Problem, known: Groups, kind: int, stages: int) -> Candidate | None:
    ours = known.candidate([kind] * stages)
    option, total = known.fastest(kind), problem.costs.model.layers
    if option is None or stages > total:
        return ours
    layers = stage_layers(*_latencies(known.ground.options[option].cost), stages, total)
    theirs = _with_layers(problem, known.ground, (option,) * stages, layers)
    if ours and theirs and theirs.split.rate_rps > ours.split.rate_rps:
        return theirs
    return ours or theirs


def _latencies(cost: StageCost) -> tuple[float, float, float]:
    """Seconds of one request: a layer, the embedding, the lm_head."""
    out = cost.workload.output_tokens
    one = float(cost.prefill_layer_s(1.0)) + out * float(cost.decode_layer_s(1.0))
    embedding = float(cost.embedding_s(1.0, True)) + out * float(cost.embedding_s(1.0, False))
    return one, embedding, float(cost.head_s(1.0)) * (1 + out)


def stage_layers(each: float, embedding: float, head: float, stages: int, total: int) -> list[int]:
    """Layers of each stage by F(s, k), for seconds of a layer, the embedding and the lm_head."""
    best: Array = np.full((stages + 1, total + 1), np.inf)
    cut = np.zeros((stages + 1, total + 1), dtype=np.int64)
    best[0, 0] = 0.0
    for s in range(1, stages + 1):
        ends = (embedding if s == 1 else 0.0) + (head if s == stages else 0.0)
        for k in range(s, total + 1):
            i = np.arange(s - 1, k)
            reach = np.maximum(best[s - 1, i], (k - i) * each + ends)
            cut[s, k] = i[int(reach.argmin())]
            best[s, k] = reach.min()
    out, k = [], total
    for s in range(stages, 0, -1):
        out.append(int(k - cut[s, k]))
        k = int(cut[s, k])
    return out[::-1]


def _with_layers(
    problem: Problem, ground: SearchField, members: tuple[int, ...], layers: list[int]
) -> Candidate | None:
    option = ground.options[members[0]]
    nodes = ground.stock.nodes[option.kind][: len(members)]
    starts = np.concatenate([[0], np.cumsum(layers)]).tolist()
    stages = tuple(
        PlacedStage(node, starts[i], starts[i + 1], option.tp) for i, node in enumerate(nodes)
    )
    try:
        estimate = estimate_pipeline(problem.costs, PlacedPipeline(stages))
    except FailedPrecondition:
        return None
    return Candidate(members, Split(estimate.throughput_rps, estimate.max_batch, tuple(layers)))
