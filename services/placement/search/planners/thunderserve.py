"""ThunderServe (MLSys'25): tabu search over groups of nodes and their phase.

Moves flip a group's phase, split it, merge two, or move a node; inside, each group's pipeline has
our order and split, and a transportation problem matches prefill to decode groups. Unless the
objective allows split phases every group does both, so that plans of all planners can be compared
and served.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from services.common.phases import PipelinePhase
from services.placement.estimate.cluster import PlacedPipeline
from services.placement.search.budget import SearchBudget
from services.placement.search.columns import Candidate
from services.placement.search.planners.groups import Groups, groups, kinds_of
from services.placement.search.problem import Problem, Solution, nothing_found
from services.placement.search.transport import carried_rps

STARTS = 20
ITERATIONS = 150
NEIGHBOURS = 14
TABU = 60
PATIENCE = 50
Group = tuple[PipelinePhase, tuple[int, ...]]  # phase, classes ascending
State = tuple[Group, ...]
SPLIT = (PipelinePhase.PREFILL, PipelinePhase.DECODE)
TOGETHER = (PipelinePhase.BOTH,)


@dataclass
class Search:
    """Rates of groups in each phase, and of whole states."""

    problem: Problem
    by_phase: dict[PipelinePhase, Groups]
    known: dict[State, float]

    def rate(self, state: State) -> float:
        if state not in self.known:
            pipelines = self.pipelines(state)
            rates = [self.by_phase[phase].rate(kinds) for phase, kinds in state]
            rates = [r for r in rates if r > 0]
            self.known[state] = carried_rps(self.problem.costs, pipelines, rates)
        return self.known[state]

    def best(self, states: Iterable[State], budget: SearchBudget) -> State:
        """The best of these, of which there is one; when time is out, of those looked at."""
        found: State | None = None
        for state in states:
            if found is None or self.rate(state) > self.rate(found):
                found = state
            if budget.expired():
                break
        assert found is not None
        return found

    def pipelines(self, state: State) -> tuple[PlacedPipeline, ...]:
        made: list[tuple[PipelinePhase, Candidate]] = []
        for phase, kinds in state:
            candidate = self.by_phase[phase].candidate(kinds)
            if candidate is not None:
                made.append((phase, candidate))
        ground = next(iter(self.by_phase.values())).ground
        bare = ground.build([candidate for _, candidate in made])
        return tuple(
            PlacedPipeline(pipeline.stages, phase)
            for (phase, _), pipeline in zip(made, bare, strict=True)
        )


def plan(problem: Problem, budget: SearchBudget) -> Solution:
    """The best state met."""
    phases = SPLIT if problem.objective.allow_phase_split else TOGETHER
    by_phase = {phase: groups(problem, budget, phase) for phase in phases}
    search = Search(problem, by_phase, {})
    kinds = kinds_of(by_phase[phases[0]].ground)
    draw = random.Random(problem.seed)
    current = search.best((_start(kinds, phases, draw) for _ in range(STARTS)), budget)
    best, tabu, still = current, [current], 0
    for _ in range(ITERATIONS):
        moves = {_neighbour(current, phases, draw) for _ in range(NEIGHBOURS)} - set(tabu)
        if not moves or budget.expired() or still > PATIENCE:
            break
        current = search.best(sorted(moves, key=str), budget)
        tabu = [*tabu[-TABU:], current]
        still = 0 if search.rate(current) > search.rate(best) + 1e-9 else still + 1
        if not still:
            best = current
    if search.rate(best) <= 0:
        raise nothing_found(problem, budget)
    return Solution(search.pipelines(best), complete=not budget.expired())


def _tidy(made: list[Group]) -> State:
    full = [(phase, tuple(sorted(kinds))) for phase, kinds in made if kinds]
    return tuple(sorted(full, key=lambda group: (group[0].value, group[1])))


def _start(kinds: list[int], phases: tuple[PipelinePhase, ...], draw: random.Random) -> State:
    """Nodes dealt to groups, phases in turn."""
    count = draw.randint(len(phases), max(2, min(6, len(kinds) // 2)))
    dealt: list[list[int]] = [[] for _ in range(count)]
    for kind in kinds:
        draw.choice(dealt).append(kind)
    return _tidy([(phases[i % len(phases)], tuple(group)) for i, group in enumerate(dealt)])


def _neighbour(state: State, phases: tuple[PipelinePhase, ...], draw: random.Random) -> State:
    made = list(state)
    i = draw.randrange(len(made))
    phase, kinds = made[i]
    other = phases[(phases.index(phase) + 1) % len(phases)]
    move = draw.choice(("flip", "split", "merge", "move", "move"))
    if move == "flip":
        made[i] = (other, kinds)
    elif move == "split" and len(kinds) > 1:
        mixed = draw.sample(kinds, len(kinds))
        cut = draw.randint(1, len(kinds) - 1)
        made[i] = (phase, tuple(mixed[:cut]))
        made.append((draw.choice(phases), tuple(mixed[cut:])))
    elif len(made) > 1:
        j = draw.choice([k for k in range(len(made)) if k != i])
        if move == "merge":
            made[j] = (made[j][0], made[j][1] + kinds)
            del made[i]
        else:
            taken = draw.randrange(len(kinds))
            made[j] = (made[j][0], (*made[j][1], kinds[taken]))
            made[i] = (phase, kinds[:taken] + kinds[taken + 1 :])
    return _tidy(made)
