"""Placement for a fleet: the production planner over the nodes of a market."""

from __future__ import annotations

from services.common.errors import ShuntError
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.plan import Plan
from services.placement.search.budget import UNLIMITED
from services.placement.search.planners import spotserve
from services.placement.search.problem import Objective, ObjectiveKind, Problem
from simulator.environment.network import Reply
from simulator.processes.placement import Known, SimulatedPlacement, deployment


class FleetPlacement(SimulatedPlacement):
    """Makes the first plan as it makes every other one: by the judge's planner."""

    def plan(self, reply: Reply, ask: AskPlan) -> None:
        """A first plan, of the nodes that have registered."""
        judge, uniform = self.judge, self.environment.settings.cluster.strategy.uniform
        (goal,) = ask.goals
        known = {
            one.node_id: Known(judge.node(one.node_id, one.shape, None), one.shape, one.node_id)
            for one in ask.nodes
        }
        nodes = tuple(one.node for one in known.values())
        try:
            problem = Problem(judge.costs, nodes, Objective(ObjectiveKind(goal.aim.objective)))
            planner = spotserve.plan if uniform else judge.planner
            found = planner(problem, UNLIMITED)
            made = deployment(goal, found.pipelines, judge.costs, known)
            reply(Plan(ask.number, (made,)))
        except ShuntError as error:
            reply(error)
