"""Which nodes each of several models gets, where they share a cluster.

What a model makes of its part is any planner's answer; this searches over the parts. Of two
divisions the better one leaves fewer models without a pipeline, then lacks less memory for those,
then has fewer that miss a latency target, then the greater weighted Nash product of the parts'
scores: the sum of weight times logarithm, which knows no unit, starves nobody, and gives the next
node to whom it helps most in proportion (Nash, The Bargaining Problem, Econometrica 1950; Eisenberg
and Gale, 1959). Where that is equal but for a little, what runs stays where it is.

Where money or their number is limited, or nodes are only on offer, some are nobody's: then a
division that keeps to the limits is looked for from what runs.

Few divisions are all looked at; of many, a hill is climbed by moves and swaps of equal nodes from a
deal by need. Equal nodes are interchangeable, so a part is a count of each class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product

from services.common.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from services.placement.estimate.cluster import CandidateNode, NodeClass, PlacedPipeline
from services.placement.estimate.estimator import GIB
from services.placement.search.budget import Part, SearchBudget, out_of_time
from services.placement.search.problem import (
    Objective,
    ObjectiveKind,
    Problem,
    Solution,
    memory_needed,
    memory_usable,
    nothing_fits,
)
from services.placement.search.score import score, violation
from services.placement.search.shares import (
    Counts,
    Limits,
    Share,
    kept,
    moved,
    named,
    owners,
    splits,
)

MAX_PARTS = 64
ALL_OF = 300
"""Divisions that are all looked at; more are searched."""
MOST_PLANS = 600
"""Parts that a planner is asked about in one search."""
A_LITTLE = 0.05
"""A division that is better by no more, as a share of the product, moves nobody."""
STAYS = ("what runs on these nodes stays",)
NONE = Solution(())
HEADROOM = 1.25
"""What a part carries beyond its arrivals by this factor is of no use."""


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
    """The best division of all nodes that is found. Raises FailedPrecondition, naming who does not
    fit and by how much, and DeadlineExceeded where there is none yet when the budget is over."""
    search = _Search(nodes, shares, budget)
    found = search.best()
    search.check_all_serve(found)
    parts = search.named(found)
    made = [search.found(i, found[i], part) for i, part in enumerate(parts)]
    problems, solutions = zip(*made, strict=True)
    return Division(problems, solutions, not search.cut, search.reasons(parts))


@dataclass(frozen=True)
class Allotment:
    """What one share has of a division within limits: no pipelines where it cannot be served
    beside the others."""

    nodes: tuple[CandidateNode, ...]
    pipelines: tuple[PlacedPipeline, ...]


def allot(
    nodes: Sequence[CandidateNode],
    shares: Sequence[Share],
    limits: Limits,
    budget: SearchBudget,
) -> tuple[tuple[Allotment, ...], bool]:
    """The best division within the limits that is found, some nodes being nobody's, and whether the
    search ended by itself. Raises FailedPrecondition where nobody can be served within them, and
    DeadlineExceeded where nothing was found when the budget is over."""
    search = _Search(nodes, shares, budget, limits)
    found = search.best()
    parts = search.named(found)
    plans = [
        search.found(i, found[i], part)[1] if search.serves(i, found[i]) else NONE
        for i, part in enumerate(parts)
    ]
    pairs = zip(parts, plans, strict=True)
    allotted = tuple(Allotment(part, solution.pipelines) for part, solution in pairs)
    return allotted, not search.cut


@dataclass(frozen=True)
class _Value:
    """What a share makes of a part."""

    short_bytes: float = 0.0
    score: float = 0.0
    """0 where nothing fits."""
    solution: Solution = NONE
    """On the first nodes of each class."""

    @property
    def serves(self) -> bool:
        return self.score > 0.0


Rank = tuple[int, float, float, int, float, float]
"""How many are served, by how much that is beyond the limits, what memory the others lack, how many
are late (all three negative), the logarithm of the product, and within limits what it costs
(negative)."""


class _Search:
    """One question."""

    def __init__(
        self,
        nodes: Sequence[CandidateNode],
        shares: Sequence[Share],
        budget: SearchBudget,
        limits: Limits | None = None,
    ) -> None:
        """Without limits every node is somebody's."""
        if not 1 <= len(shares) <= MAX_PARTS:
            raise InvalidArgument(f"1 to {MAX_PARTS} deployments", field="deployments")
        self._nodes, self._shares, self._budget = tuple(nodes), tuple(shares), budget
        self._limits = limits
        self._nobody = None if limits is None else len(shares)
        """Whose part is the last."""
        self._parts = len(shares) + (limits is not None)
        self._classes: dict[NodeClass, list[CandidateNode]] = {}
        for node in self._nodes:
            self._classes.setdefault(node.kind, []).append(node)
        self._totals = tuple(len(group) for group in self._classes.values())
        self._values: dict[tuple[int, Counts], _Value] = {}
        self._ranks: dict[tuple[Counts, ...], Rank] = {}
        self.cut = False
        """Time was over, of one part too, or enough was looked at, before all was."""
        self._ran_out = False
        """A part's planner had no plan in its time: nobody knows whether it serves, nor what the
        divisions that were not looked at because of it would have come to."""

    def best(self) -> tuple[Counts, ...]:
        """Nodes of each class by part."""
        if self._limits is None:  # so that time that is short is enough to serve everybody
            self._rank(self._dealt())
        every = math.prod(
            math.comb(total + self._parts - 1, self._parts - 1) for total in self._totals
        )
        if every <= ALL_OF:
            self._look_at_all()
        else:
            self._climb(self._as_it_is())
            if self._limits is None:
                self._climb(self._dealt())
        return self._nearest_of_the_best()

    # Where to look

    def _look_at_all(self) -> None:
        by_class = [list(splits(total, self._parts)) for total in self._totals]
        for chosen in product(*by_class):
            self._rank(tuple(tuple(s[i] for s in chosen) for i in range(self._parts)))
            if self._over():
                break

    def _climb(self, parts: tuple[Counts, ...]) -> None:
        """Takes one step after another, until none is better."""
        rank = self._rank(parts)
        while not self._over():
            found, parts = self._step(parts, rank)
            if found <= rank:
                break
            rank = found

    def _step(self, parts: tuple[Counts, ...], rank: Rank) -> tuple[Rank, tuple[Counts, ...]]:
        """The best one; within limits the first that serves more or is nearer to them, for what
        follows does the rest."""
        best = rank, parts
        for neighbour in self._neighbours(parts):
            found = self._rank(neighbour)
            best = max(best, (found, neighbour))
            if self._over() or (self._limits is not None and found[:3] > rank[:3]):
                break
        return best

    def _nearest_of_the_best(self) -> tuple[Counts, ...]:
        """Of those within the limits that are as good as the best but for a little, the one that
        moves the fewest."""
        within = {parts: rank for parts, rank in self._ranks.items() if rank[1] == 0}
        if not within or (self._limits is not None and not max(within.values())[0]):
            self._check_told()
            raise FailedPrecondition("nothing that serves keeps to the limits", field="nodes")
        serving, _, short, late, product_log, _ = max(within.values())
        near = [
            parts
            for parts, rank in within.items()
            if (rank[0], *rank[2:4]) == (serving, short, late) and rank[4] >= product_log - A_LITTLE
        ]
        return max(near, key=lambda parts: (self._kept_count(parts), within[parts]))

    def _kept_count(self, parts: tuple[Counts, ...]) -> int:
        return sum(map(len, kept(self._classes, self._shares, parts)))

    def _neighbours(self, parts: tuple[Counts, ...]) -> Iterator[tuple[Counts, ...]]:
        for giver, taker in self._turns(parts):
            for place, held in enumerate(parts[giver]):
                some = {1} if giver == self._nobody else {1, held // 2, held}
                for count in sorted(some - {0}):
                    if count <= held:
                        yield moved(parts, giver, taker, place, count)
        for one, other in combinations(range(self._parts), 2):
            for mine, theirs in permutations(range(len(self._totals)), 2):
                if parts[one][mine] and parts[other][theirs]:
                    yield moved(moved(parts, one, other, mine, 1), other, one, theirs, 1)

    def _turns(self, parts: tuple[Counts, ...]) -> list[tuple[int, int]]:
        """Givers and takers: first who has no pipeline takes, rather what is nobody's, then what is
        too much is given up."""

        def later(pair: tuple[int, int]) -> tuple[bool, bool, bool]:
            giver, taker = pair
            free = taker == self._nobody
            return free or self.serves(taker, parts[taker]), giver != self._nobody, not free

        return sorted(permutations(range(self._parts), 2), key=later)

    def _as_it_is(self) -> tuple[Counts, ...]:
        """Every node is the model's that runs there, or has its weights there; what is idle is
        nobody's, or else the first one's."""
        idle = self._nobody or 0
        ran = owners(self._shares)
        return tuple(
            tuple(
                sum(ran.get(node.node_id, idle) == index for node in group)
                for group in self._classes.values()
            )
            for index in range(self._parts)
        )

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
        self.cut = self.cut or over
        return over

    # What it is worth

    def _rank(self, parts: tuple[Counts, ...]) -> Rank:
        known = self._ranks.get(parts)
        if known is not None:
            return known
        values = [self._value(i, parts[i]) for i in range(len(self._shares))]
        serving = sum(value.serves for value in values)
        short = sum(value.short_bytes for value in values)
        late = sum(bool(value.solution.late) for value in values)
        product_log = sum(
            share.weight * math.log(value.score)
            for share, value in zip(self._shares, values, strict=True)
            if value.serves
        ) / sum(share.weight for share in self._shares)
        excess = cost = 0.0
        if self._limits is not None:
            pipelines = [pipeline for value in values for pipeline in value.solution.pipelines]
            excess = self._limits.excess(pipelines)
            cost = sum(pipeline.cost_per_hour for pipeline in pipelines)
        rank = self._ranks[parts] = serving, -excess, -short, -late, product_log, -cost
        return rank

    def serves(self, index: int, part: Counts) -> bool:
        """The share has a pipeline of this part."""
        return self._value(index, part).serves

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
        except DeadlineExceeded:  # another part may be planned in its time
            self.cut = self._ran_out = True
            return _Value(short)
        self.cut = self.cut or not solution.complete
        return _Value(0.0, _useful(problem, solution.pipelines), solution)

    def _plan(self, index: int, nodes: tuple[CandidateNode, ...]) -> tuple[Problem, Solution]:
        """Of ever fewer pipelines where so many do not fit; what runs on these nodes stays where
        the planner's own answer is no better but for a little. It takes a part of the time that
        leaves each share one, and as much for what is looked at behind them."""
        share, budget = self._shares[index], Part(self._budget, 1 / (len(self._shares) + 1))
        count = min(len(nodes), share.pipeline_count * len(nodes) // len(self._nodes))
        counts = range(max(1, count), 0, -1) if share.pipeline_count else (0,)
        refusal: FailedPrecondition | None = None
        for count in counts:
            problem = Problem(share.costs, nodes, _objective(share, nodes), count, share.seed)
            try:
                solution = share.planner(problem, budget)
            except FailedPrecondition as error:
                refusal = error
                continue
            return problem, self._rather(share, problem, solution)
        raise refusal or nothing_fits(Problem(share.costs, nodes))

    def _rather(self, share: Share, problem: Problem, solution: Solution) -> Solution:
        """What runs, if that is as good but for a little, and late only where the other is."""
        there = {node.node_id for node in problem.nodes}
        stays = tuple(p for p in share.running if there.issuperset(p.node_ids))
        if not stays or len(stays) != len(solution.pipelines):
            return solution
        if score(problem, stays) < score(problem, solution.pipelines) * (1 - A_LITTLE):
            return solution
        late, _ = violation(problem, stays)
        if late and not solution.late:
            return solution
        return replace(solution, pipelines=stays, reasons=STAYS, late=late)

    def found(
        self, index: int, part: Counts, nodes: Sequence[CandidateNode]
    ) -> tuple[Problem, Solution]:
        """What was found for a part that serves, on these of the equal nodes; what runs on them
        stays where it is as good, and within limits takes no more of them: what was found was
        counted."""
        share, solution = self._shares[index], self._value(index, part).solution
        problem = Problem(share.costs, tuple(nodes), _objective(share, nodes), 0, share.seed)
        stands_for: dict[str, CandidateNode] = {}
        for kind, group in self._classes.items():
            own = (node for node in nodes if node.kind == kind)
            stands_for |= {first.node_id: node for first, node in zip(group, own, strict=False)}
        placed = tuple(pipeline.on(stands_for) for pipeline in solution.pipelines)
        there = placed == solution.pipelines or solution.reasons != STAYS
        late = solution.late or violation(problem, placed)[0]  # few planners say it
        reasons = solution.reasons if there else ()
        solution = replace(solution, pipelines=placed, reasons=reasons, late=late)
        rather = self._rather(share, problem, solution)
        counted = self._limits is not None and _takes_more(rather.pipelines, placed)
        return problem, solution if counted else rather

    def named(self, parts: tuple[Counts, ...]) -> list[tuple[CandidateNode, ...]]:
        """Nodes by share."""
        return named(self._nodes, self._classes, self._shares, parts)

    # What is said of it

    def check_all_serve(self, parts: tuple[Counts, ...]) -> None:
        """Raises FailedPrecondition, naming who does not fit, and DeadlineExceeded where there was
        no time to look further. Who fits on no part of the nodes is sure, whoever ran out of time;
        all else is where every division was looked at."""
        lacking = [i for i, part in enumerate(parts) if not self.serves(i, part)]
        if not lacking:
            return
        for index in lacking:
            try:
                self._plan(index, self._nodes)
            except FailedPrecondition as error:
                raise FailedPrecondition(
                    f"{self._shares[index].name}: {error.message}", field="nodes"
                ) from error
            except DeadlineExceeded:
                self._ran_out = True
        self._check_told()
        names = ", ".join(self._shares[i].name for i in lacking)
        short = sum(self._value(i, parts[i]).short_bytes for i in lacking)
        others = ", ".join(s.name for i, s in enumerate(self._shares) if i not in lacking)
        found = "is not served" if self.cut else "does not fit"
        looked = f", as far as {len(self._values)} parts tell" if self.cut else ""
        raise FailedPrecondition(
            f"{names} {found} beside {others}: {short / GIB:.2f} GiB short on "
            f"{len(self._nodes)} nodes{looked}",
            field="nodes",
        )

    def _check_told(self) -> None:
        """Raises DeadlineExceeded where what was not found may be there."""
        if self._ran_out or self._budget.expired():
            raise out_of_time()

    def reasons(self, parts: list[tuple[CandidateNode, ...]]) -> tuple[str, ...]:
        """For people."""
        looked = f"{len(self._values)} parts were planned"
        each = (
            f"{share.name} has {len(part)} of {len(self._nodes)} nodes"
            for share, part in zip(self._shares, parts, strict=True)
        )
        return (*each, looked)


def _takes_more(some: Sequence[PlacedPipeline], others: Sequence[PlacedPipeline]) -> bool:
    """More dollars an hour, or more nodes."""

    def taken(pipelines: Sequence[PlacedPipeline]) -> tuple[float, int]:
        cost_per_hour = sum(pipeline.cost_per_hour for pipeline in pipelines)
        return cost_per_hour, sum(len(pipeline.stages) for pipeline in pipelines)

    return any(one > other for one, other in zip(taken(some), taken(others), strict=True))


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
