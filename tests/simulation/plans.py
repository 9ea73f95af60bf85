"""Plans that arrive while the mesh serves: any valid one, at any time."""

from __future__ import annotations

from random import Random

from oracles import Oracle

from services.common.generation import LayerRange
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.why import Alternative, Why
from simulator.environment.settings import SHAPE
from simulator.processes.stages import LAYER_COUNT
from simulator.world import World

MAX_NODES = 6
"""Seats of a plan: four nodes are there at first."""
DEGREES = (1, 1, 1, 2, 4)
"""Ranks of a stage, each as likely."""
WHY = Why(("a schedule has it",), (Alternative("another", "luck"),), ("operator",), 0.5, 60.0)


class Plans:
    """Gives one world plans of a random kind."""

    def __init__(self, world: World, random: Random, oracle: Oracle) -> None:
        self.world = world
        self.random = random
        self.oracle = oracle

    def give(self) -> bool:
        """A plan, if the controller can hear of it."""
        controller = self.world.controller
        if not controller.alive or controller.frozen:
            return False
        cluster = controller.cluster
        if cluster.plan is None:
            return False
        plan, now_s = self.draw(cluster.view.next_plan_number), self.world.clock.now_s
        if self.random.random() < 0.5:  # it comes together with whatever else happens
            controller.adopt(plan)
            return True
        controller.advance()
        told = cluster.view.difference(plan, now_s)
        controller.adopt(plan)
        actions = cluster.advance(now_s)
        self.oracle.came_of(told, cluster, actions)
        controller.act(actions)
        return True

    def draw(self, number: int) -> Plan:
        """Any split of the layers over any of the nodes, and over some that are yet to come."""
        random, nodes = self.random, self.world.controller.cluster._state.nodes.values()
        names = [node.node_id for node in nodes if not node.leaving or random.random() < 0.1]
        random.shuffle(names)
        names += [""] * random.choice((0, 0, 0, 1, 2))
        seats = names[: random.randint(1, MAX_NODES)]
        pipelines: list[PlannedPipeline] = []
        while seats:
            size = random.randint(1, min(3, len(seats)))
            taken, seats = seats[:size], seats[size:]
            cuts = sorted(random.sample(range(1, LAYER_COUNT), size - 1))
            if (
                random.random() < 0.5
            ):  # as placement would, so that survivors may keep what they hold
                cuts = [[], [18], [10, 20]][size - 1]
            ends = [0, *cuts, LAYER_COUNT]
            stages = tuple(
                PlannedStage(LayerRange(ends[i], ends[i + 1]), random.choice(DEGREES), SHAPE, name)
                for i, name in enumerate(taken)
            )
            pipelines.append(PlannedPipeline(f"pipeline-{len(pipelines) + 1}", stages, 50.0))
        goals = self.world.settings.goals.deployed
        while len(pipelines) < len(goals):
            stage = PlannedStage(LayerRange(0, LAYER_COUNT), 1, SHAPE)
            pipelines.append(PlannedPipeline(f"pipeline-{len(pipelines) + 1}", (stage,), 50.0))
        deployments = (
            Deployment(goal.model, THROUGHPUT, tuple(pipelines[turn :: len(goals)]))
            for turn, goal in enumerate(goals)
        )
        return Plan(number, tuple(deployments), WHY)
