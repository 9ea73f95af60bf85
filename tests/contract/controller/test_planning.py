"""What the controller asks placement, answered by the real service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition
from services.common.generation import ModelRef
from services.common.nodes import NodeFacts, NodeShape
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.difference import StageToBe
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.node import HeldStage
from services.controller.core.cluster.plan import Plan, PlannedPipeline
from services.controller.core.cluster.question import NodeAsked, Replanning, Wishes
from services.controller.core.cluster.replanning import Candidate
from services.controller.core.model_facts import ModelFacts
from services.controller.diffs import Estimating
from services.controller.planning import Planning
from services.controller.what_ifs import LikeNodes
from services.placement.settings import PlacementSettings
from tests.configs import LLAMA
from tests.contract.placement.conftest import serving

MODEL = ModelRef("m", "d")
SLOW, FAST = NodeShape(2 << 30, 1.0), NodeShape(2 << 30, 8.0)
OFFER = Offer("spot", "big", FAST, count=2, price_per_hour=0.6, pool="b", spot=True)


@pytest.fixture
async def planning() -> AsyncIterator[Planning]:
    config = json.dumps(LLAMA)
    facts = ModelFacts("m", "d", LLAMA["num_hidden_layers"], LLAMA["vocab_size"], 1024, config)
    async with serving(PlacementSettings(grpc_port=0, shutdown_grace_s=0)) as address:
        found = Planning(address, facts, planner="proportional", timeout_s=10.0)
        yield found
        await found.close()


def node(name: str) -> NodeFacts:
    return NodeFacts(name, f"i-{name}", f"{name}:1", 7, SLOW)


async def first(planning: Planning) -> Plan:
    return await planning.plan(AskPlan(1, MODEL, (node("node-1"), node("node-2")), 2, "throughput"))


def question(
    running: tuple[PlannedPipeline, ...], *candidates: Candidate, wishes: Wishes | None = None
) -> Replanning:
    nodes = (NodeAsked("node-1", SLOW), NodeAsked("node-2", SLOW))
    chosen = wishes or Wishes()
    return Replanning(2, MODEL, nodes, candidates, running, True, chosen)


async def test_a_faster_node_on_offer_becomes_a_stage_for_its_offer(planning: Planning) -> None:
    plan = await first(planning)
    running = plan.deployments[0].pipelines
    answer = await planning.replan(question(running, Candidate("spot#1", OFFER)))
    assert answer.plan is not None
    assert answer.plan.number == 2
    bought = [stage for stage in answer.plan.stages() if stage.offer_id]
    assert [(stage.offer_id, stage.node_id, stage.shape) for stage in bought] == [
        ("spot", "", FAST)
    ]
    assert answer.gain > 1.0
    assert answer.reasons


async def test_where_nothing_is_better_the_plan_stays(planning: Planning) -> None:
    everything = await planning.replan(question((), Candidate("spot#1", OFFER)))
    assert everything.plan is not None
    best = await planning.replan(question(()))
    assert best.plan is not None
    stays = await planning.replan(question(best.plan.deployments[0].pipelines))
    assert stays.plan is None


async def test_a_first_plan_says_what_else_there_was(planning: Planning) -> None:
    plan = await first(planning)
    assert plan.why.causes == ("first_plan",)
    assert "2 pipelines" in plan.why.reasons[0]
    (other,) = plan.why.alternatives
    assert other.plan == "1 pipeline of 2 nodes"
    assert other.lacks


async def test_a_later_plan_says_what_it_gains_and_for_how_long(planning: Planning) -> None:
    plan = await first(planning)
    running = plan.deployments[0].pipelines
    answer = await planning.replan(question(running, Candidate("spot#1", OFFER)))
    assert answer.plan is not None
    why = answer.plan.why
    assert (why.gain, why.horizon_s) == (answer.gain, Wishes().horizon_s)
    assert why.reasons == answer.reasons
    assert "what is left of the running plan" in [one.plan for one in why.alternatives]


async def test_what_else_would_change_the_plan_is_answered(planning: Planning) -> None:
    running = (await first(planning)).deployments[0].pipelines
    own = LikeNodes("own", ("node-1", "node-2"), None)
    offered = LikeNodes("spot", ("spot#1",), OFFER)
    asked = question(running, Candidate("spot#1", OFFER))
    found = await planning.what_ifs(asked, (own, offered))
    told = dict(found.answers)
    assert found.complete
    assert "spot" in told["as things are"]
    assert told["one node less of spot"] != "the same plan"
    assert {"objective throughput-per-cost", "one node more of spot", "other prices"} <= told.keys()


async def test_what_pipelines_carry_and_what_their_nodes_load_is_estimated(
    planning: Planning,
) -> None:
    plan = await first(planning)
    stages = [
        StageToBe(s.node_id, s.layers, s.tp_degree, s.shape, ())
        for p in plan.deployments[0].pipelines
        for s in p.stages
    ]
    nodes = {stage.node_id: (stage.shape, None) for stage in stages}
    there = {"node-1": HeldStage(MODEL, stages[0].layers, 1)}
    found = await planning.estimate(Estimating(nodes, [[stage] for stage in stages], there))
    assert found.throughput_tokens_per_s > 0
    assert found.load_bytes[stages[1].node_id] > found.load_bytes["node-1"] == 0
    other = {"node-1": HeldStage(ModelRef("other", "d"), stages[0].layers, 1)}
    strange = await planning.estimate(Estimating(nodes, [[stage] for stage in stages], other))
    assert strange.load_bytes["node-1"] > 0


async def test_no_plan_is_dearer_than_the_budget(planning: Planning) -> None:
    plan = await first(planning)
    running = plan.deployments[0].pipelines
    wishes = Wishes(budget_per_hour=0.5)
    answer = await planning.replan(question(running, Candidate("spot#1", OFFER), wishes=wishes))
    assert answer.plan is None or not any(stage.offer_id for stage in answer.plan.stages())


async def test_what_holds_no_pipeline_is_an_error(planning: Planning) -> None:
    tiny = replace(OFFER, shape=NodeShape(1, 1.0))
    asked = replace(question((), Candidate("spot#1", tiny)), nodes=())
    with pytest.raises(FailedPrecondition, match="does not fit"):
        await planning.replan(asked)
