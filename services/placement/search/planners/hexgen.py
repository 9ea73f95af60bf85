"""HexGen (ICML'24): a genetic algorithm over partitions of the nodes into pipelines.

A genome gives each node a group; merge, split and swap change it; groups in which the model does
not fit count nothing. As in the paper's comparison, every group gets our order and layer split.
"""

from __future__ import annotations

import random

from deap import base, tools

from services.placement.search.budget import SearchBudget
from services.placement.search.columns import Candidate
from services.placement.search.planners.groups import Groups, groups, kinds_of
from services.placement.search.problem import Problem, Solution, nothing_found

POPULATION = 40
GENERATIONS = 80
PATIENCE = 25
ELITE = 4


class Fitness(base.Fitness):  # type: ignore[misc]
    weights = (1.0,)


class Genome(list[int]):
    """Group of each node, -1 for none."""

    def __init__(self, groups_: list[int]) -> None:
        super().__init__(groups_)
        self.fitness = Fitness()


def plan(problem: Problem, budget: SearchBudget) -> Solution:
    """The best genome after the generations, or when the budget is over."""
    known = groups(problem, budget)
    kinds = kinds_of(known.ground)
    draw = random.Random(problem.seed)
    population = [_random_genome(len(kinds), draw) for _ in range(POPULATION)]
    population += _homogeneous(known, kinds)
    best = tools.HallOfFame(1)
    still = 0
    for _ in range(GENERATIONS):
        for genome in population:
            if not genome.fitness.valid:
                genome.fitness.values = (_rate(known, kinds, genome),)
            if budget.expired():
                break
        scored = [genome for genome in population if genome.fitness.valid]
        before = best[0].fitness.values[0] if len(best) else -1.0
        best.update(scored)
        still = 0 if best[0].fitness.values[0] > before + 1e-9 else still + 1
        if budget.expired() or still >= PATIENCE:
            break
        elite = tools.selBest(scored, ELITE)
        population = [*elite, *(_child(scored, draw) for _ in range(POPULATION - ELITE))]
    chosen = _candidates(known, kinds, best[0])
    if not chosen:
        raise nothing_found(problem, budget)
    return Solution(known.ground.build(chosen), complete=not budget.expired())


def _random_genome(nodes: int, draw: random.Random) -> Genome:
    count = draw.randint(1, max(1, nodes // 2))
    return Genome([draw.randrange(count) for _ in range(nodes)])


def _homogeneous(known: Groups, kinds: list[int]) -> list[Genome]:
    """One group a class, and all together."""
    return [Genome(list(kinds)), Genome([0] * len(kinds))]


def _groups(kinds: list[int], genome: Genome) -> list[tuple[int, ...]]:
    found: dict[int, list[int]] = {}
    for kind, group in zip(kinds, genome, strict=True):
        if group >= 0:
            found.setdefault(group, []).append(kind)
    return [tuple(sorted(members)) for members in found.values()]


def _rate(known: Groups, kinds: list[int], genome: Genome) -> float:
    return sum(known.rate(group) for group in _groups(kinds, genome))


def _candidates(known: Groups, kinds: list[int], genome: Genome) -> list[Candidate]:
    made = [known.candidate(group) for group in _groups(kinds, genome)]
    return [candidate for candidate in made if candidate]


def _child(scored: list[Genome], draw: random.Random) -> Genome:
    """A mutated winner of a tournament of three."""
    parent = max(
        (draw.choice(scored) for _ in range(3)), key=lambda genome: genome.fitness.values[0]
    )
    genes = list(parent)
    for _ in range(draw.randint(1, 3)):
        draw.choice((_merge, _split, _swap, _move))(genes, draw)
    return Genome(genes)


def _merge(genes: list[int], draw: random.Random) -> None:
    names = sorted(set(genes))
    if len(names) > 1:
        one, other = draw.sample(names, 2)
        genes[:] = [one if gene == other else gene for gene in genes]


def _split(genes: list[int], draw: random.Random) -> None:
    one, fresh = draw.choice(genes), max(genes) + 1
    genes[:] = [fresh if gene == one and draw.random() < 0.5 else gene for gene in genes]


def _swap(genes: list[int], draw: random.Random) -> None:
    i, j = draw.randrange(len(genes)), draw.randrange(len(genes))
    genes[i], genes[j] = genes[j], genes[i]


def _move(genes: list[int], draw: random.Random) -> None:
    genes[draw.randrange(len(genes))] = draw.choice(sorted(set(genes)))
