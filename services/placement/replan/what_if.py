"""What another price, a node more or less, or another objective would make of the plan.

Each is the question of a next plan with one thing changed, answered by the very same judgement.
What a price must be is found by halving the interval in which the answer changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from services.common.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline
from services.placement.replan.change import Change
from services.placement.replan.next_plan import NextPlan, replan
from services.placement.search.budget import Part, SearchBudget, check_time
from services.placement.search.problem import ObjectiveKind, Planner, Problem
from services.placement.search.telling import figures, shape

MAX_GROUPS = 8
"""Groups that vary; those that the plan uses first."""
LOWEST, HIGHEST = 0.5, 2.0
"""Shares of today's price that are tried at most."""
HALVINGS = 4
NAMED = 4
"""Groups that an answer names."""
SHARE = 0.25
"""Of the time that is left, what one question may take."""
SAME = "the same plan"


@dataclass(frozen=True)
class NodeGroup:
    """Nodes that are alike and cost the same."""

    name: str
    node_ids: frozenset[str]
    more: CandidateNode | None = None
    """One more of them, which the question does not have."""


@dataclass(frozen=True)
class WhatIf:
    """One thing that is other, and what the plan would be."""

    change: str
    answer: str


@dataclass(frozen=True)
class WhatIfs:
    """`complete` is False when time was out before all was tried."""

    answers: tuple[WhatIf, ...]
    complete: bool


def what_ifs(
    problem: Problem,
    change: Change,
    groups: Sequence[NodeGroup],
    search: Planner,
    budget: SearchBudget,
) -> WhatIfs:
    """As things are, then objectives, nodes less and more, and prices. Raises what the question
    itself does, and InvalidArgument for a group of strange nodes."""
    known = {node.node_id for node in problem.nodes}
    for group in groups:
        if strange := sorted(group.node_ids - known):
            raise InvalidArgument(f"no node {strange[0][:64]!r}", field="groups")
        if group.more is not None and group.more.node_id in known:
            raise InvalidArgument(f"node {group.more.node_id[:64]!r} is there", field="groups")
    asking = _Asking(problem, replace(change, improve=True), groups, search, budget)
    answers: list[WhatIf] = []
    try:
        for answer in asking.answers():
            answers.append(answer)
    except DeadlineExceeded:
        return WhatIfs(tuple(answers), complete=False)
    return WhatIfs(tuple(answers), complete=len(groups) <= MAX_GROUPS)


class _Asking:
    """A question, its answer, and variations."""

    def __init__(
        self,
        problem: Problem,
        change: Change,
        groups: Sequence[NodeGroup],
        search: Planner,
        budget: SearchBudget,
    ) -> None:
        self._problem, self._change = problem, change
        self._search, self._budget = search, budget
        self._group_of = {node_id: group.name for group in groups for node_id in group.node_ids}
        self._group_of |= {g.more.node_id: g.name for g in groups if g.more is not None}
        self._now = self._plan(problem)
        self._groups = sorted(groups, key=lambda group: -len(self._used(group)))[:MAX_GROUPS]

    def answers(self) -> Iterator[WhatIf]:
        """One after the other; raises DeadlineExceeded when time is out."""
        yield WhatIf("as things are", self._present())
        problem = self._problem
        for kind in ObjectiveKind:
            if kind is not problem.objective.kind:
                other = replace(problem, objective=replace(problem.objective, kind=kind))
                yield WhatIf(f"objective {kind.value}", self._words(self._ask(other)))
        for group in self._groups:
            if self._used(group):
                yield WhatIf(f"one node less of {group.name}", self._less(group))
        for group in self._groups:
            if self._spare(group) or group.more is not None:
                yield WhatIf(f"one node more of {group.name}", self._more(group))
        if problem.objective.kind is ObjectiveKind.THROUGHPUT and not _is_bound(problem):
            yield WhatIf("other prices", f"{SAME}: neither objective nor budget asks for them")
            return
        for group in self._groups:
            yield from self._prices(group)

    def _present(self) -> str:
        if not self._now.change:
            return f"the plan that runs stays: {self._figures(self._now)}"
        return f"{self._figures(self._now)}, which gains {self._now.gain:.1%} over what runs"

    def _less(self, group: NodeGroup) -> str:
        lost = self._used(group)[0]
        nodes = tuple(node for node in self._problem.nodes if node.node_id != lost)
        if not nodes:
            return "no plan: there is no other node"
        return self._words(self._ask(replace(self._problem, nodes=nodes)))

    def _more(self, group: NodeGroup) -> str:
        if spare := self._spare(group):
            return f"{SAME}: of those that may be had {spare} are not used"
        return self._words(self._ask(replace(self._problem, nodes=self._nodes(group, more=True))))

    def _prices(self, group: NodeGroup) -> Iterator[WhatIf]:
        """Cheaper where more could be used, dearer where some are."""
        price = next((n.kind.price_per_hour for n in self._nodes(group, more=True, only=True)), 0.0)
        if price <= 0:
            return
        if self._spare(group) or (group.more is not None and self._more(group) == SAME):
            yield self._threshold(group, price, LOWEST)
        if self._used(group):
            yield self._threshold(group, price, HIGHEST)

    def _threshold(self, group: NodeGroup, price: float, furthest: float) -> WhatIf:
        """The price nearest to today's at which the plan is another; else the furthest tried. Where
        it falls, there is one node more if none is to be had."""
        found, other, same = self._ask(self._priced(group, furthest)), furthest, 1.0
        for _ in range(0 if self._is_same(found) else HALVINGS):
            middle = (same + other) / 2
            tried = self._ask(self._priced(group, middle))
            if self._is_same(tried):
                same = middle
            else:
                other, found = middle, tried
        word = "less" if other < 1 else "more"
        change = f"${abs(other - 1) * price:.3g} an hour {word} for a node of {group.name}"
        return WhatIf(change, self._words(found))

    def _priced(self, group: NodeGroup, share: float) -> Problem:
        """The problem with the group at this share of its price."""
        of_group = self._nodes(group, more=share < 1, only=True)
        nodes = [node for node in self._problem.nodes if node.node_id not in group.node_ids]
        return replace(
            self._problem, nodes=(*nodes, *(_at_share(node, share) for node in of_group))
        )

    def _nodes(
        self, group: NodeGroup, *, more: bool, only: bool = False
    ) -> tuple[CandidateNode, ...]:
        """The question's nodes, or `only` the group's; with one more where none is spare."""
        nodes = self._problem.nodes
        if only:
            nodes = tuple(node for node in nodes if node.node_id in group.node_ids)
        if more and group.more is not None and not self._spare(group):
            nodes = (*nodes, group.more)
        return nodes

    def _spare(self, group: NodeGroup) -> int:
        return len(group.node_ids) - len(self._used(group))

    def _ask(self, problem: Problem) -> NextPlan | FailedPrecondition | InvalidArgument:
        """The answer, or why there is none; raises DeadlineExceeded when time is out."""
        check_time(self._budget)
        try:
            return self._plan(problem)
        except (FailedPrecondition, InvalidArgument) as error:
            return error

    def _plan(self, problem: Problem) -> NextPlan:
        running = tuple(_repriced(problem, pipeline) for pipeline in self._change.running)
        change = replace(self._change, running=running)
        return replan(problem, change, self._search, Part(self._budget, SHARE))

    def _words(self, found: NextPlan | FailedPrecondition | InvalidArgument) -> str:
        if not isinstance(found, NextPlan):
            return f"no plan: {found.message}"
        return SAME if self._is_same(found) else self._figures(found)

    def _figures(self, found: NextPlan) -> str:
        groups = Counter(
            self._group_of.get(node_id, node_id) for p in found.pipelines for node_id in p.node_ids
        )
        of = " and ".join(f"{count} {name}" for name, count in sorted(groups.items())[:NAMED])
        return f"{shape(found.pipelines)} ({of}), {figures(self._problem, found.pipelines)}"

    def _is_same(self, found: NextPlan | FailedPrecondition | InvalidArgument) -> bool:
        """Equal but for which nodes of a group it is."""
        if not isinstance(found, NextPlan):
            return False
        return self._form(found.pipelines) == self._form(self._now.pipelines)

    def _form(self, pipelines: Sequence[PlacedPipeline]) -> Counter[object]:
        return Counter(
            tuple(
                (self._group_of.get(s.node.node_id, s.node.node_id), s.start, s.end, s.tp)
                for s in pipeline.stages
            )
            for pipeline in pipelines
        )

    def _used(self, group: NodeGroup) -> list[str]:
        """Nodes of the group that the plan has."""
        pipelines = self._now.pipelines
        return [n for p in pipelines for n in p.node_ids if n in group.node_ids]


def _is_bound(problem: Problem) -> bool:
    return problem.objective.budget_per_hour > 0


def _at_share(node: CandidateNode, share: float) -> CandidateNode:
    price = node.kind.price_per_hour * share
    return replace(node, kind=replace(node.kind, price_per_hour=price))


def _repriced(problem: Problem, pipeline: PlacedPipeline) -> PlacedPipeline:
    """Its stages on the problem's nodes; one that is gone stays as it was."""
    nodes = {node.node_id: node for node in problem.nodes}
    return replace(
        pipeline,
        stages=tuple(replace(s, node=nodes.get(s.node.node_id, s.node)) for s in pipeline.stages),
    )
