"""The phases of pipelines that stay where they are, for another workload.

ThunderServe (MLSys'25) calls it lightweight rescheduling: its tabu search with flips of phases
alone, so that no weight is loaded, and the transportation problem anew for each state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from services.common.errors import FailedPrecondition
from services.common.phases import PipelinePhase
from services.placement.estimate.cluster import PlacedPipeline
from services.placement.replan.worth import rate_of
from services.placement.search.budget import SearchBudget
from services.placement.search.problem import Problem
from services.placement.search.score import worst_miss

PATIENCE = 8
"""States in a row that are no better than the best."""
MARGIN = 0.8
"""Estimates are means, and requests come in bunches: phases are others for the sake of a target
where they keep to this share of it."""
Pipelines = tuple[PlacedPipeline, ...]
Phases = tuple[PipelinePhase, ...]


@dataclass(frozen=True, slots=True, order=True)
class _Merit:
    """More is better."""

    keeps: float
    """1 where targets are kept, less the more they are missed."""
    rate_rps: float


NOTHING = _Merit(0.0, 0.0)


def best_phases(
    problem: Problem, pipelines: Sequence[PlacedPipeline], budget: SearchBudget
) -> tuple[Pipelines, Pipelines]:
    """The same stages with the best phases met: those that carry most of those under which targets
    are kept by the margin, and those that carry most whatever the targets. As they are where no
    other is better."""
    search = _Search(_stricter(problem), tuple(pipelines))
    first = best = current = tuple(pipeline.phase for pipeline in pipelines)
    still = 0
    search.merit(current)
    tabu = {current}
    while still < PATIENCE and not budget.expired():
        flips = [flip for flip in search.flips(current) if flip not in tabu]
        if not flips:
            break
        current = max(flips, key=search.merit)
        tabu.add(current)
        still = 0 if search.merit(current) > search.merit(best) else still + 1
        if not still:
            best = current
    most = max(search.known, key=lambda phases: search.known[phases].rate_rps)
    kept = best if search.merit(best).keeps == 1 else first
    return search.phased(kept), search.phased(most)


def _stricter(problem: Problem) -> Problem:
    """With targets less the margin."""
    asked = problem.objective
    ttft_s, tpot_s = asked.ttft_target_s * MARGIN, asked.tpot_target_s * MARGIN
    return replace(problem, objective=replace(asked, ttft_target_s=ttft_s, tpot_target_s=tpot_s))


@dataclass(slots=True)
class _Search:
    problem: Problem
    pipelines: tuple[PlacedPipeline, ...]
    known: dict[Phases, _Merit] = field(default_factory=dict)

    def merit(self, phases: Phases) -> _Merit:
        """Computed once."""
        if phases not in self.known:
            self.known[phases] = self._merit(self.phased(phases))
        return self.known[phases]

    def _merit(self, pipelines: Sequence[PlacedPipeline]) -> _Merit:
        try:
            rate = rate_of(self.problem, pipelines)
            miss, _, _ = worst_miss(self.problem, pipelines)
        except FailedPrecondition:  # one has no room for a sequence in this phase
            return NOTHING
        if rate.throughput_rps <= 0:  # one phase alone misses no target, and answers nobody
            return NOTHING
        return _Merit(1 / miss, rate.throughput_rps)

    def flips(self, phases: Phases) -> list[Phases]:
        """One pipeline has another phase; of those that are alike, the first."""
        found: dict[tuple[object, ...], Phases] = {}
        for place, (pipeline, phase) in enumerate(zip(self.pipelines, phases, strict=True)):
            alike, _ = pipeline.alike
            for other in PipelinePhase:
                if other is not phase:
                    flipped = (*phases[:place], other, *phases[place + 1 :])
                    found.setdefault((alike, phase, other), flipped)
        return list(found.values())

    def phased(self, phases: Phases) -> Pipelines:
        pairs = zip(self.pipelines, phases, strict=True)
        return tuple(replace(pipeline, phase=phase) for pipeline, phase in pairs)
