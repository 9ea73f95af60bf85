"""What falls due is asked for in time, and nothing before."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from math import inf
from random import Random

import pytest

from services.common.generation import LayerRange
from services.controller.core.cluster.actions import (
    Action,
    AskPlan,
    Beat,
    DrainFormation,
    FormPipeline,
    LaunchNode,
    LoadStage,
)
from services.controller.core.cluster.market import NO_CAPACITY
from services.controller.core.cluster.plan import Plan
from tests.unit.controller.small_cluster import (
    BACK,
    FRONT,
    PATIENT,
    SHAPE,
    Prompt,
    drawer,
    facts,
    loaded,
    planned,
)

HOURS = replace(
    PATIENT,
    initial=(SHAPE,) * 4,
    glance_s=inf,
    stall_s=1e6,
    progress_s=1e6,
    expected_nodes=4,
    settle_s=3.0,
    launch_timeout_s=7.0,
    lost_kept_s=11.0,
    stable_s=2.0,
)
"""Nobody needs to beat: what falls due is the cluster's own."""


class World:
    """Whatever may happen to a cluster, at any time."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.cluster = Prompt(HOURS, drawer(), 0.0, 0.0)
        self.now_s = 0.0
        self.waiting: list[Action] = []
        self.changed = 0
        """Probes that would have done something at a time that was named."""
        self.done(self.cluster.start(0.0))

    def done(self, actions: list[Action]) -> None:
        wanted = (LaunchNode, LoadStage, FormPipeline, DrainFormation, AskPlan)
        self.waiting += [action for action in actions if isinstance(action, wanted)]

    def answer(self, action: Action) -> list[Action]:
        cluster, now_s = self.cluster, self.now_s
        fails = self.random.random() < 0.25
        match action:
            case LaunchNode(node_id):
                if self.random.random() < 0.1:
                    return []  # nobody hears of it again
                if fails:
                    return cluster.launch_failed(node_id, NO_CAPACITY, now_s)
                return cluster.register(facts(node_id), now_s)
            case LoadStage(node_id, layers=layers):
                if fails:
                    permanent = self.random.random() < 0.1
                    return cluster.load_failed(action, "no", permanent, now_s)
                return loaded(cluster, node_id, layers, now_s)
            case FormPipeline(formation_id):
                if fails:
                    return cluster.form_failed(formation_id, "no", now_s)
                return cluster.formed(formation_id, now_s)
            case DrainFormation(formation_id):
                return cluster.drained(formation_id, 1, now_s)
            case AskPlan(number):
                if fails:
                    return cluster.plan_failed("no", False, now_s)
                return cluster.plan_ready(self.plan(number), now_s)
        raise AssertionError(action)

    def plan(self, number: int) -> Plan:
        nodes = [n.node_id for n in self.cluster.view.nodes()]
        self.random.shuffle(nodes)
        whole = LayerRange(0, BACK.end)
        stages = [{nodes[0]: FRONT, nodes[1]: BACK}] if len(nodes) > 1 else [{"?1": whole}]
        stages += [{name: whole} for name in nodes[2 : 2 + self.random.randrange(3)]]
        return planned(*stages, number=number)

    def strike(self) -> list[Action]:
        """Something that nobody asked for."""
        cluster, random, now_s = self.cluster, self.random, self.now_s
        living = [n for n in cluster.view.nodes() if n.state.value != "lost"]
        if not living:
            return []
        node = random.choice(living)
        match random.randrange(5):
            case 0:
                return cluster.node_gone(node.node_id, node.incarnation, "exit", now_s)
            case 1:
                return cluster.interrupt(node.node_id, 6.0 * random.random(), False, now_s)
            case 2 if node.incarnation:
                departs = Beat(node.node_id, node.incarnation, "", departs_in_s=4.0)
                return cluster.heartbeat(departs, now_s)
            case 3 if cluster.plan is not None:
                return cluster.plan_ready(self.plan(cluster.view.next_plan_number), now_s)
        return cluster.offers_changed(now_s)

    def turn(self) -> None:
        if self.waiting and self.random.random() < 0.7:
            action = self.waiting.pop(self.random.randrange(len(self.waiting)))
            self.done(self.answer(action))
        elif self.random.random() < 0.3:
            self.done(self.strike())
        self.pass_time()

    def pass_time(self) -> None:
        wakes_at_s = self.cluster.wakes_at_s()
        assert wakes_at_s > self.now_s
        until_s = min(wakes_at_s, self.now_s + 20.0)
        for _ in range(3):
            probed_s = self.now_s + (until_s - self.now_s) * self.random.random()
            if probed_s < wakes_at_s:
                assert advanced_anyway(self.cluster, probed_s) == []
        if self.random.random() < 0.6:
            self.now_s = until_s
            if until_s == wakes_at_s:
                actions = self.cluster.tick(until_s)
                self.changed += bool(actions)
                self.done(actions)
        else:
            self.now_s += min(0.3 * self.random.random(), (until_s - self.now_s) / 2)


def advanced_anyway(cluster: Prompt, now_s: float) -> list[Action]:
    """What the cluster would do if it were asked, though it asks for nobody to."""
    other = deepcopy(cluster.core)
    other._due_s = now_s
    return other.advance(now_s)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_due_before_the_cluster_wakes(seed: int) -> None:
    world = World(seed)
    for _ in range(60):
        world.turn()
    assert world.changed, "nothing ever fell due"
