"""A new division of nodes and money between models, where one lacks what others have.

A model is otherwise planned for within what the others leave. Where it cannot be served within
that, all are planned for together: what serves more models is taken, or as many and fewer of them
late; what is equal in both only where it beats staying by the hysteresis, weights that load
included. Who gives something up keeps a pipeline wherever one is to be had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.common.errors import InvalidArgument
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline
from services.placement.estimate.estimator import check_layers
from services.placement.replan.change import Change
from services.placement.replan.next_plan import NextPlan, Rejected, assess, left_of
from services.placement.replan.options import STAY
from services.placement.replan.parts import filled
from services.placement.replan.worth import cost_per_hour, node_count
from services.placement.search.budget import SearchBudget
from services.placement.search.division import Allotment, allot
from services.placement.search.problem import Problem
from services.placement.search.shares import Limits, Share
from services.placement.search.telling import figures, shape

NEW = "a new division"


@dataclass(frozen=True)
class Redivision:
    """The next plan of each share, in their order; one without pipelines cannot be served beside
    the others. `change` is False when what is left stays."""

    problems: tuple[Problem, ...]
    plans: tuple[NextPlan, ...]
    change: bool
    gain: float
    """Over staying: of the weighted geometric mean of the shares' worths; infinite where more
    models are served."""
    reasons: tuple[str, ...]
    alternatives: tuple[Rejected, ...]
    complete: bool

    @property
    def time_to_serve_s(self) -> float:
        """Until every new stage serves."""
        return max(plan.time_to_serve_s for plan in self.plans)


def redivide(
    nodes: Sequence[CandidateNode],
    shares: Sequence[Share],
    changes: Sequence[Change],
    limits: Limits,
    budget: SearchBudget,
) -> Redivision:
    """The next plans of all shares; `changes` say what runs of each. Raises FailedPrecondition
    where nothing can be served within the limits."""
    if not shares or len(shares) != len(changes):
        raise InvalidArgument("one deployment at least", field="deployments")
    whole = [_problem(share, nodes, limits) for share in shares]
    lefts = []
    for problem, change in zip(whole, changes, strict=True):
        for pipeline in change.running:
            check_layers(problem.costs, pipeline)
        lefts.append(left_of(problem, change))
    fewest = min(limits.nodes_min, sum(map(node_count, lefts)))
    asked = [
        replace(share, running=left, holders=_holders(change), objective=problem.objective)
        for share, left, change, problem in zip(shares, lefts, changes, whole, strict=True)
    ]
    stays = _plans(whole, changes, lefts, lefts, STAY)
    allotted, complete = allot(nodes, asked, replace(limits, nodes_min=fewest), budget)
    allotted = _up_to_the_least(nodes, asked, allotted, limits, budget)
    problems = [_part(problem, part) for problem, part in zip(whole, allotted, strict=True)]
    news = _plans(problems, changes, lefts, [part.pipelines for part in allotted], NEW)
    running = [pipeline for left in lefts for pipeline in left]
    within = not replace(limits, nodes_min=fewest).excess(running)
    grows = node_count(running) < min(limits.nodes_min, sum(node_count(p.pipelines) for p in news))
    more, now, then = _gain(shares, stays, news), _serving(stays), _serving(news)
    hysteresis = max(change.hysteresis for change in changes)
    stay = then < now or (then == now and more <= hysteresis and not grows)
    if within and stay:
        lacks = f"gains {more:.1%} over the horizon"
        if then < now:
            lacks = "serves fewer models" if then[0] < now[0] else "serves more of them late"
        why = "no division serves more models, or gains enough over the horizon"
        late, other = _late(shares, stays), Rejected(NEW, lacks)
        told = (why, f"it is late: {'; '.join(late)}") if late else (why,)
        return Redivision(tuple(whole), stays, False, 0.0, told, (other,), complete)
    reasons = tuple(map(_told, shares, problems, stays, news))
    other = Rejected(STAY, _lacks(shares, stays, news, within, more, grows))
    return Redivision(tuple(problems), news, True, more, reasons, (other,), complete)


def _problem(share: Share, nodes: Sequence[CandidateNode], limits: Limits) -> Problem:
    """As if it had all: no share spends more than there is."""
    objective = replace(share.objective, budget_per_hour=limits.budget_per_hour)
    return Problem(share.costs, tuple(nodes), objective, 0, share.seed)


def _part(problem: Problem, allotted: Allotment) -> Problem:
    return replace(problem, nodes=allotted.nodes) if allotted.pipelines else problem


def _plans(
    problems: Sequence[Problem],
    changes: Sequence[Change],
    lefts: Sequence[tuple[PlacedPipeline, ...]],
    wanted: Sequence[tuple[PlacedPipeline, ...]],
    name: str,
) -> tuple[NextPlan, ...]:
    parts = zip(problems, changes, lefts, wanted, strict=True)
    return tuple(assess(problem, change, left, new, name) for problem, change, left, new in parts)


def _holders(change: Change) -> frozenset[str]:
    """Nodes with weights of the model: told so, or left of a pipeline that was lost."""
    ran = {name for pipeline in change.running for name in pipeline.node_ids}
    return frozenset(ran | change.resident.keys())


def _up_to_the_least(
    nodes: Sequence[CandidateNode],
    shares: Sequence[Share],
    allotted: Sequence[Allotment],
    limits: Limits,
    budget: SearchBudget,
) -> tuple[Allotment, ...]:
    """The division with nodes that are nobody's, where there are to be more: each share that is
    served takes what may be added beside it, the first ones first."""
    parts = list(allotted)
    for index, share in enumerate(shares):
        others = [part for i, part in enumerate(parts) if i != index and part.pipelines]
        theirs = [pipeline for part in others for pipeline in part.pipelines]
        taken = {node.node_id for part in others for node in part.nodes}
        money = limits.budget_per_hour and limits.budget_per_hour - cost_per_hour(theirs)
        own = parts[index]
        if not own.pipelines or money < 0:
            continue
        free = tuple(node for node in nodes if node.node_id not in taken)
        objective = replace(share.objective, budget_per_hour=money)
        problem = Problem(share.costs, free, objective, 0, share.seed)
        least = limits.nodes_min - node_count(theirs)
        most = limits.nodes_max and limits.nodes_max - node_count(theirs)
        options = [p for _, p in filled(problem, own.pipelines, least, most, share.planner, budget)]
        best = max([own.pipelines, *options], key=node_count)
        used = {name for pipeline in best for name in pipeline.node_ids}
        held = used.union(node.node_id for node in own.nodes)
        parts[index] = Allotment(tuple(node for node in free if node.node_id in held), best)
    return tuple(parts)


def _serving(plans: Sequence[NextPlan]) -> tuple[int, int]:
    """How many are served, and how many of them are late (negative)."""
    served = [plan for plan in plans if plan.pipelines]
    return len(served), -sum(bool(plan.late) for plan in served)


def _gain(shares: Sequence[Share], stays: Sequence[NextPlan], news: Sequence[NextPlan]) -> float:
    """Of those that are served either way; infinite where more are."""
    if _serving(news)[0] > _serving(stays)[0]:
        return math.inf
    logs = weights = 0.0
    for share, stay, new in zip(shares, stays, news, strict=True):
        kind = share.objective.kind
        before, after = stay.outlook.worth(kind), new.outlook.worth(kind)
        if before > 0 and after > 0:
            logs += share.weight * math.log(after / before)
            weights += share.weight
    return math.exp(logs / weights) - 1 if weights else 0.0


def _told(share: Share, problem: Problem, stay: NextPlan, new: NextPlan) -> str:
    """What becomes of a share, for people."""
    if not new.pipelines:
        return f"{share.name}: cannot be served beside the others within the limits"
    now = f"{share.name}: {shape(new.pipelines)}, {figures(problem, new.pipelines)}"
    if new.late:
        now += f", late: {new.late}"
    if not stay.pipelines:
        return f"{now}; nothing serves it now"
    if not new.change:
        return f"{now}, as now"
    return f"{now}; now {shape(stay.pipelines)}, {figures(problem, stay.pipelines)}"


def _late(shares: Sequence[Share], plans: Sequence[NextPlan]) -> list[str]:
    """Which of them are, and by how much."""
    return [f"{s.name}: {plan.late}" for s, plan in zip(shares, plans, strict=True) if plan.late]


def _lacks(
    shares: Sequence[Share],
    stays: Sequence[NextPlan],
    news: Sequence[NextPlan],
    within: bool,
    more: float,
    grows: bool,
) -> str:
    """What staying lacks of the new division, for people."""
    pairs = zip(shares, stays, news, strict=True)
    starved = [share.name for share, stay, new in pairs if new.pipelines and not stay.pipelines]
    if starved:
        return f"no pipeline of {', '.join(starved)}"
    if not within:
        return "it is beyond the limits"
    late = _late(shares, stays)
    if len(late) > len(_late(shares, news)):
        return "; ".join(late)
    if grows:
        return "less nodes than the least"
    return f"{more:.1%} less gained over the horizon"
