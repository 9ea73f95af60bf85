"""Placement for a fleet: the production planner over the nodes of a market."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from services.common.errors import ShuntError
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.given_phases import in_phases
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.why import Why
from services.placement.estimate.cluster import CandidateNode, PlacedPipeline, PlacedStage
from services.placement.search.budget import UNLIMITED
from services.placement.search.planners import spotserve
from services.placement.search.problem import Problem
from simulator.environment.environment import Environment
from simulator.environment.network import Reply
from simulator.fleet.scenario import StageRow
from simulator.processes.placement import (
    Judge,
    Known,
    SimulatedPlacement,
    deployment,
    in_proportion,
    objective_of,
)


class FleetPlacement(SimulatedPlacement):
    """Makes the first plan as it makes every other one: by the judge's planner, unless a scenario
    says it."""

    def __init__(
        self,
        environment: Environment,
        judge: Judge,
        first: Sequence[Sequence[StageRow]],
        offer_of: Callable[[str], str],
    ) -> None:
        """`offer_of`: the offer that a node was launched from."""
        super().__init__(environment, judge)
        self._first, self._offer_of = first, offer_of

    def plan(self, reply: Reply, ask: AskPlan) -> None:
        """A first plan, of the nodes that have registered."""
        judge, uniform = self.judge, self.environment.settings.cluster.strategy.uniform
        (goal,) = ask.goals
        known = {
            one.node_id: Known(judge.node(one.node_id, one.shape, None), one.shape, one.node_id)
            for one in ask.nodes
        }
        nodes = tuple(one.node for one in known.values())
        why = Why()
        try:
            pipelines = self._said({node.node_id: node for node in nodes})
            if not pipelines:
                problem = Problem(judge.costs, nodes, objective_of(goal.aim))
                planner = spotserve.plan if uniform else judge.planner
                found = planner(problem, UNLIMITED)
                pipelines, why = found.pipelines, Why(found.reasons, late=found.late)
            plan = Plan(ask.number, (deployment(goal, pipelines, judge.costs, known),), why)
            (made,) = in_phases(plan, self.environment.settings.cluster.phases).deployments
            phased = [
                replace(one, phase=given.phase)
                for one, given in zip(pipelines, made.pipelines, strict=True)
            ]
            reply(replace(plan, deployments=(in_proportion(made, phased, judge.costs),)))
        except ShuntError as error:
            reply(error)

    def _said(self, nodes: dict[str, CandidateNode]) -> tuple[PlacedPipeline, ...]:
        """The scenario's first plan on the nodes there are; none where one of them is missing."""
        of: defaultdict[str, deque[CandidateNode]] = defaultdict(deque)
        for node_id, node in nodes.items():
            of[self._offer_of(node_id)].append(node)
        pipelines = []
        for rows in self._first:
            start, stages = 0, []
            for row in rows:
                if not of[row.offer]:
                    return ()
                stages.append(
                    PlacedStage(of[row.offer].popleft(), start, start + row.layers, row.tp)
                )
                start += row.layers
            pipelines.append(PlacedPipeline(tuple(stages)))
        return tuple(pipelines)
