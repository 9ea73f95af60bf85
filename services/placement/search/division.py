"""Which nodes each of several models gets, where they share a cluster.

What a model makes of its part is any planner's answer; this searches over the parts. Of two
divisions the better one leaves fewer models without a pipeline, then lacks less memory for those,
then has the greater weighted Nash product of the parts' scores: the sum of weight times logarithm,
which knows no unit, starves nobody, and gives the next node to whom it helps most in proportion
(Nash, The Bargaining Problem, Econometrica 1950; Eisenberg and Gale, 1959). Where that is equal but
for a little, what runs stays where it is.

Few divisions are all looked at; of many, a hill is climbed by moves and swaps of equal nodes from a
deal by need. Equal nodes are interchangeable, so a part is a count of each class.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product

from services.common.errors import FailedPrecondition, InvalidArgument
from services.placement.estimate.cluster import CandidateNode, NodeClass, PlacedPipeline
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import GIB
from services.placement.search.budget import SearchBudget, check_time
from services.placement.search.problem import (
    Objective,
    ObjectiveKind,
    Planner,
    Problem,
    Solution,
    memory_needed,
    memory_usable,
    nothing_fits,
)
from services.placement.search.score import score

MAX_PARTS = 64
ALL_OF = 300
"""Divisions that are all looked at; more are searched."""
MOST_PLANS = 600
"""Parts that a planner is asked about in one search."""
A_LITTLE = 0.05
"""A division that is better by no more, as a share of the product, moves nobody."""
HEADROOM = 1.25
"""What a part carries beyond its arrivals by this factor is of no use."""

Counts = tuple[int, ...]
"""Nodes by class."""


@dataclass(frozen=True)
class Share:
    """A model that is to have a part of the nodes."""

    name: str
    costs: Costs
    planner: Planner
    objective: Objective
    weight: float = 1.0
    pipeline_count: int = 0
    """Of all nodes: a part forms as many in proportion, one at least. 0: as many as fit."""
    running: tuple[PlacedPipeline, ...] = ()
    """What serves it now."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and 0 < self.weight <= 1e6):
            raise InvalidArgument("weight lies in (0, 1e6]", field="weight")


@dataclass(frozen=True)
class Division:
    """A plan for each share, in their order."""

    problems: tuple[Problem, ...]
    solutions: tuple[Solution, ...]
    complete: bool
    reasons: tuple[str, ...]


def divide(
    nodes: Sequence[CandidateNode], shares: Sequence[Share], budget: SearchBudget
) -> Division:
    """The best division that is found. Raises FailedPrecondition, naming who does not fit and by
    how much, and DeadlineExceeded where there is none yet when the budget is over."""
    if not 1 <= len(shares) <= MAX_PARTS:
        raise InvalidArgument(f"1 to {MAX_PARTS} deployments", field="deployments")
    return _Search(nodes, shares, budget).best()


@dataclass(frozen=True)
class _Value:
    """What a share makes of a part."""

    short_bytes: float = 0.0
    score: float = 0.0
    """0 where nothing fits."""

    @property
    def serves(self) -> bool:
        return self.score > 0.0


Rank = tuple[int, float, float]
"""How many are served, what memory the others lack, and the logarithm of the product."""


class _Search:
    """One question."""

    def __init__(
        self, nodes: Sequence[CandidateNode], shares: Sequence[Share], budget: SearchBudget
    ) -> None:
        self._nodes, self._shares, self._budget = tuple(nodes), tuple(shares), budget
        self._classes: dict[NodeClass, list[CandidateNode]] = {}
        for node in self._nodes:
            self._classes.setdefault(node.kind, []).append(node)
        self._totals = tuple(len(group) for group in self._classes.values())
        self._values: dict[tuple[int, Counts], _Value] = {}
        self._ranks: dict[tuple[Counts, ...], Rank] = {}
        self._cut = False

    def best(self) -> Division:
        every = math.prod(
            math.comb(total + len(self._shares) - 1, len(self._shares) - 1)
            for total in self._totals
        )
        if every <= ALL_OF:
            self._look_at_all()
        else:
            self._climb(self._as_it_is())
            self._climb(self._dealt())
        found = self._nearest_of_the_best()
        if self._cut and not all(self._value(i, part).serves for i, part in enumerate(found)):
            check_time(self._budget)
        self._check_all_serve(found)
        parts = self._named(found)
        made = [self._plan(i, part) for i, part in enumerate(parts)]
        problems, solutions = zip(*made, strict=True)
        complete = not self._cut and all(solution.complete for solution in solutions)
        return Division(problems, solutions, complete, self._reasons(parts))

    # Where to look

    def _look_at_all(self) -> None:
        by_class = [list(_splits(total, len(self._shares))) for total in self._totals]
        for chosen in product(*by_class):
            self._rank(tuple(tuple(s[i] for s in chosen) for i in range(len(self._shares))))
            if self._over():
                break

    def _climb(self, parts: tuple[Counts, ...]) -> None:
        """Takes the best step from each division on, until none is better."""
        rank = self._rank(parts)
        while not self._over():
            ranked = []
            for neighbour in self._neighbours(parts):
                ranked.append((self._rank(neighbour), neighbour))
                if self._over():
                    break
            if not ranked or max(ranked)[0] <= rank:
                break
            rank, parts = max(ranked)

    def _nearest_of_the_best(self) -> tuple[Counts, ...]:
        """Of those that are as good as the best but for a little, the one that moves the fewest."""
        serving, short, product_log = max(self._ranks.values())
        near = [
            parts
            for parts, rank in self._ranks.items()
            if rank[:2] == (serving, short) and rank[2] >= product_log - A_LITTLE
        ]
        return max(near, key=lambda parts: (self._kept_count(parts), self._ranks[parts]))

    def _kept_count(self, parts: tuple[Counts, ...]) -> int:
        return sum(map(len, self._kept(parts)))

    def _neighbours(self, parts: tuple[Counts, ...]) -> Iterator[tuple[Counts, ...]]:
        for giver, taker in permutations(range(len(parts)), 2):
            for place, held in enumerate(parts[giver]):
                for count in sorted({1, held // 2, held} - {0}):
                    if count <= held:
                        yield _moved(parts, giver, taker, place, count)
        for one, other in combinations(range(len(parts)), 2):
            for mine, theirs in permutations(range(len(self._totals)), 2):
                if parts[one][mine] and parts[other][theirs]:
                    yield _moved(_moved(parts, one, other, mine, 1), other, one, theirs, 1)

    def _as_it_is(self) -> tuple[Counts, ...]:
        """Every node is the model's that runs there; what is idle is the first one's."""
        owners = self._owners()
        return tuple(
            tuple(
                sum(owners.get(node.node_id, 0) == index for node in group)
                for group in self._classes.values()
            )
            for index in range(len(self._shares))
        )

    def _owners(self) -> dict[str, int]:
        """Whose pipelines run on a node."""
        return {
            name: index
            for index, share in enumerate(self._shares)
            for pipeline in share.running
            for name in pipeline.node_ids
        }

    def _dealt(self) -> tuple[Counts, ...]:
        """Largest node first, each to the share that has the least for what it needs."""
        kinds = list(self._classes)
        given = [0.0] * len(self._shares)
        parts = [[0] * len(kinds) for _ in self._shares]
        order = sorted(range(len(kinds)), key=lambda place: -kinds[place].memory_bytes)
        for place in order:
            for node in self._classes[kinds[place]]:
                taker = min(range(len(given)), key=lambda i: (given[i], i))
                share = self._shares[taker]
                parts[taker][place] += 1
                usable = max(1.0, memory_usable(share.costs, node))
                given[taker] += usable / memory_needed(share.costs) / share.weight
        return tuple(tuple(part) for part in parts)

    def _over(self) -> bool:
        over = len(self._values) >= MOST_PLANS or self._budget.expired()
        self._cut = self._cut or over
        return over

    # What it is worth

    def _rank(self, parts: tuple[Counts, ...]) -> Rank:
        known = self._ranks.get(parts)
        if known is not None:
            return known
        values = [self._value(i, part) for i, part in enumerate(parts)]
        serving = sum(value.serves for value in values)
        short = sum(value.short_bytes for value in values)
        product_log = sum(
            share.weight * math.log(value.score)
            for share, value in zip(self._shares, values, strict=True)
            if value.serves
        ) / sum(share.weight for share in self._shares)
        rank = self._ranks[parts] = serving, -short, product_log
        return rank

    def _value(self, index: int, part: Counts) -> _Value:
        known = self._values.get((index, part))
        if known is None:
            known = self._values[index, part] = self._asked(index, part)
        return known

    def _asked(self, index: int, part: Counts) -> _Value:
        share = self._shares[index]
        groups = zip(self._classes.values(), part, strict=True)
        nodes = tuple(node for group, count in groups for node in group[:count])
        usable = sum(memory_usable(share.costs, node) for node in nodes)
        short = max(1.0, memory_needed(share.costs) - usable)
        if not nodes:
            return _Value(short)
        try:
            problem, solution = self._plan(index, nodes)
        except FailedPrecondition:
            return _Value(short)
        return _Value(0.0, _useful(problem, solution.pipelines))

    def _plan(self, index: int, nodes: tuple[CandidateNode, ...]) -> tuple[Problem, Solution]:
        """Of ever fewer pipelines where so many do not fit; what runs on these nodes stays where
        the planner's own answer is no better but for a little."""
        share = self._shares[index]
        count = min(len(nodes), share.pipeline_count * len(nodes) // len(self._nodes))
        counts = range(max(1, count), 0, -1) if share.pipeline_count else (0,)
        refusal: FailedPrecondition | None = None
        for count in counts:
            problem = Problem(share.costs, nodes, _objective(share, nodes), count, share.seed)
            try:
                solution = share.planner(problem, self._budget)
            except FailedPrecondition as error:
                refusal = error
                continue
            return problem, self._rather(share, problem, solution)
        raise refusal or nothing_fits(Problem(share.costs, nodes))

    def _rather(self, share: Share, problem: Problem, solution: Solution) -> Solution:
        """What runs, if that is as good but for a little."""
        there = {node.node_id for node in problem.nodes}
        stays = tuple(p for p in share.running if there.issuperset(p.node_ids))
        if not stays or len(stays) != len(solution.pipelines):
            return solution
        if score(problem, stays) < score(problem, solution.pipelines) * (1 - A_LITTLE):
            return solution
        return replace(solution, pipelines=stays, reasons=("what runs on these nodes stays",))

    # Who it is

    def _kept(self, parts: tuple[Counts, ...]) -> list[list[str]]:
        """Nodes of running pipelines that fit their model's part whole, by share."""
        kinds = list(self._classes)
        kept: list[list[str]] = []
        for share, part in zip(self._shares, parts, strict=True):
            room = Counter(dict(zip(kinds, part, strict=True)))
            mine: list[str] = []
            for pipeline in share.running:
                needs = Counter(stage.node.kind for stage in pipeline.stages)
                if all(room[kind] >= count for kind, count in needs.items()):
                    room -= needs
                    mine += pipeline.node_ids
            kept.append(mine)
        return kept

    def _named(self, parts: tuple[Counts, ...]) -> list[tuple[CandidateNode, ...]]:
        """Which of the equal nodes each share has: those of its pipelines that stay whole, then
        others of its own, then whoever is left."""
        left = {kind: {n.node_id: n for n in group} for kind, group in self._classes.items()}
        owner: dict[str, int] = {}
        for index, names in enumerate(self._kept(parts)):
            owner |= dict.fromkeys(names, index)
        ran = self._owners()
        chosen: list[set[str]] = [set() for _ in parts]
        for place, kind in enumerate(self._classes):
            for wanted in (owner, ran, None):
                for index, part in enumerate(parts):
                    lacking = part[place] - sum(n in chosen[index] for n in self._ids(kind))
                    mine = [n for n in left[kind] if wanted is None or wanted.get(n) == index]
                    for name in mine[: max(0, lacking)]:
                        chosen[index].add(name)
                        del left[kind][name]
        return [tuple(n for n in self._nodes if n.node_id in names) for names in chosen]

    def _ids(self, kind: NodeClass) -> list[str]:
        return [node.node_id for node in self._classes[kind]]

    # What is said of it

    def _check_all_serve(self, parts: tuple[Counts, ...]) -> None:
        lacking = [i for i, part in enumerate(parts) if not self._value(i, part).serves]
        if not lacking:
            return
        for index in lacking:
            try:
                self._plan(index, self._nodes)
            except FailedPrecondition as error:
                raise FailedPrecondition(
                    f"{self._shares[index].name}: {error.message}", field="nodes"
                ) from error
        names = ", ".join(self._shares[i].name for i in lacking)
        short = sum(self._value(i, parts[i]).short_bytes for i in lacking)
        others = ", ".join(s.name for i, s in enumerate(self._shares) if i not in lacking)
        raise FailedPrecondition(
            f"{names} does not fit beside {others}: {short / GIB:.2f} GiB short on "
            f"{len(self._nodes)} nodes",
            field="nodes",
        )

    def _reasons(self, parts: list[tuple[CandidateNode, ...]]) -> tuple[str, ...]:
        looked = f"{len(self._values)} parts were planned"
        each = (
            f"{share.name} has {len(part)} of {len(self._nodes)} nodes"
            for share, part in zip(self._shares, parts, strict=True)
        )
        return (*each, looked)


def _objective(share: Share, nodes: Sequence[CandidateNode]) -> Objective:
    """Where nothing has a price, cost counts for nothing."""
    if any(node.kind.price_per_hour for node in nodes):
        return share.objective
    return replace(share.objective, kind=ObjectiveKind.THROUGHPUT)


def _useful(problem: Problem, pipelines: Sequence[PlacedPipeline]) -> float:
    """The score; of requests a second no more than what arrives, but for some headroom."""
    found, arriving = score(problem, pipelines), problem.costs.workload.arrival_rate_rps
    plain = problem.objective.kind is ObjectiveKind.THROUGHPUT
    return min(found, HEADROOM * arriving) if plain and arriving else found


def _splits(total: int, parts: int) -> Iterator[Counts]:
    """Every way to give so many equal nodes to so many parts."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _splits(total - first, parts - 1):
            yield (first, *rest)


def _moved(
    parts: tuple[Counts, ...], giver: int, taker: int, place: int, count: int
) -> tuple[Counts, ...]:
    changed = [list(part) for part in parts]
    changed[giver][place] -= count
    changed[taker][place] += count
    return tuple(tuple(part) for part in changed)
