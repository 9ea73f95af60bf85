"""What the controller asks placement, answered by the real service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shuntserve.placement.v1 import placement_pb2
from typer.testing import CliRunner

from services.common.errors import FailedPrecondition
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import NodeFacts, NodeShape
from services.common.phases import PipelinePhase
from services.controller.core.cluster.actions import AskPlan
from services.controller.core.cluster.difference import StageToBe
from services.controller.core.cluster.goals import Aim, Goal
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.node import HeldStage
from services.controller.core.cluster.plan import Plan, PlannedPipeline, PlannedStage
from services.controller.core.cluster.question import (
    Dividing,
    NextPlan,
    NodeAsked,
    Replanning,
    Wishes,
)
from services.controller.core.cluster.replanning import Candidate
from services.controller.core.cluster.workload import Workload
from services.controller.core.model_facts import ModelFacts
from services.controller.diffs import Estimating
from services.controller.planning import Planning
from services.controller.what_ifs import LikeNodes
from services.placement.cli import app
from services.placement.estimate.catalogue import load_catalogue
from services.placement.settings import PlacementSettings
from tests.configs import LLAMA
from tests.contract.placement.conftest import serving

LAYERS = LLAMA["num_hidden_layers"]
HUGE = LLAMA | {"hidden_size": 6144, "intermediate_size": 28672, "num_hidden_layers": 80}
MIXTURE = LLAMA | {
    "model_type": "mixtral",
    "max_position_embeddings": 1024,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
GOAL = Goal(ModelFacts("m", "d", LAYERS, LLAMA["vocab_size"], 1024, json.dumps(LLAMA)))
OTHER = Goal(replace(GOAL.facts, model_id="other"))
SLOW, FAST = NodeShape(2 << 30, 1.0), NodeShape(2 << 30, 8.0)
OFFER = Offer("spot", "big", FAST, count=2, price_per_hour=0.6, pool="b", spot=True)


@pytest.fixture
async def planning() -> AsyncIterator[Planning]:
    async with serving(PlacementSettings(grpc_port=0, shutdown_grace_s=0)) as address:
        found = Planning(address, planner="proportional", timeout_s=10.0)
        yield found
        await found.close()


def node(name: str) -> NodeFacts:
    return NodeFacts(name, f"i-{name}", f"{name}:1", 7, SLOW)


async def first(planning: Planning) -> Plan:
    return await planning.plan(AskPlan(1, (GOAL,), (node("node-1"), node("node-2")), 2))


async def test_a_node_of_two_ranks_runs_its_stage_on_both_where_the_model_divides(
    planning: Planning,
) -> None:
    two = replace(node("node-1"), shape=NodeShape(2 << 30, 1.0, device_count=2))
    degrees = []
    for vocab_size in (515, 516):
        config = json.dumps(LLAMA | {"vocab_size": vocab_size})
        goal = Goal(replace(GOAL.facts, vocab_size=vocab_size, config_json=config))
        plan = await planning.plan(AskPlan(1, (goal,), (two, node("node-2")), 1))
        degrees.append({stage.node_id: stage.tp_degree for stage in plan.stages()})
        assert {stage.shape.device_count for stage in plan.stages()} == {1, 2}
    assert degrees == [{"node-1": 1, "node-2": 1}, {"node-1": 2, "node-2": 1}]


def question(
    running: tuple[PlannedPipeline, ...], *candidates: Candidate, wishes: Wishes | None = None
) -> Replanning:
    nodes = (NodeAsked("node-1", SLOW), NodeAsked("node-2", SLOW))
    chosen = wishes or Wishes()
    return Replanning(2, GOAL, nodes, candidates, running, len(running), True, chosen)


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


async def test_what_is_left_of_a_plan_is_the_plan_where_nothing_better_is_to_be_had(
    planning: Planning,
) -> None:
    whole = await planning.replan(question(()))
    assert whole.plan is not None
    pipelines = whole.plan.deployments[0].pipelines
    assert len(pipelines) == 2, "each node is one"
    asked = question(pipelines)
    gone = replace(asked, nodes=asked.nodes[:1], improve=False)
    left = await planning.replan(gone)
    assert left.plan is not None
    assert [stage.node_id for stage in left.plan.stages()] == ["node-1"]
    vacant = replace(gone, running=pipelines[:1])
    assert (await planning.replan(vacant)).plan is not None, "one of two had a vacant seat"
    assert (await planning.replan(replace(vacant, planned=1))).plan is None


async def test_a_plan_of_live_offers_and_workload_is_the_one_that_plan_solve_finds(
    planning: Planning, tmp_path: Path
) -> None:
    """The question's offers as a cluster file, answered by the command line."""
    config = json.dumps(HUGE)
    facts = replace(GOAL.facts, layer_count=HUGE["num_hidden_layers"], config_json=config)
    goal = Goal(facts, Aim("throughput-per-cost", ttft_target_s=60.0))
    wishes = Wishes(budget_per_hour=9.0)
    offers = tuple(
        Offer(
            name,
            name,
            NodeShape(round(load_catalogue().gpu(gpu).memory_gb * 1e9), 1.0, gpu),
            count=count,
            price_per_hour=price,
            pool=name,
            spot=spot,
        )
        for name, gpu, count, price, spot in (
            ("a", "l4", 3, 0.8, True),
            ("b", "l40s", 2, 1.9, False),
        )
    )
    candidates = [
        Candidate(f"{offer.offer_id}#{n + 1}", offer)
        for offer in offers
        for n in range(offer.count)
    ]
    asked = replace(
        question((), *candidates, wishes=wishes),
        goal=goal,
        nodes=(),
        workload=Workload(0.05, 300.4, 89.6),
    )
    found = await planning.replan(asked)
    assert found.plan is not None

    types = [
        {
            "name": offer.instance_type,
            "gpu": offer.shape.device_type,
            "gpu_count": 1,
            "network_gbps": 10.0,
            "burst_gbps": 10.0,
            "price_per_hour": offer.price_per_hour,
        }
        for offer in offers
    ]
    rows = [
        {
            "type": offer.instance_type,
            "count": offer.count,
            "price_per_hour": offer.price_per_hour,
            "pool": offer.pool,
            "spot": offer.spot,
        }
        for offer in offers
    ]
    (tmp_path / "instances.yaml").write_text(json.dumps({"instances": types}))
    (tmp_path / "cluster.yaml").write_text(json.dumps({"instances": rows}))
    (tmp_path / "config.json").write_text(config)
    files = {"model": "config.json", "cluster": "cluster.yaml", "catalogue": "."}
    more = {"objective": "throughput-per-cost", "budget": 9.0, "ttft": 60.0, "rate": 0.05}
    tokens = {"input-tokens": 300, "output-tokens": 90}
    options = {name: tmp_path / path for name, path in files.items()} | more | tokens
    named = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    result = CliRunner().invoke(app, ["solve", *named, "--json"])
    assert result.exit_code == 0, result.output
    solved = json.loads(result.output)
    layers = [
        [(stage.offer_id, stage.layers.end - stage.layers.start) for stage in pipeline.stages]
        for pipeline in found.plan.deployments[0].pipelines
    ]
    assert sorted(layers) == sorted(
        [(stage["instance_type"], stage["layers"]) for stage in pipeline["stages"]]
        for pipeline in solved["pipelines"]
    )
    assert sum(len(stages) for stages in layers) > 1
    paid = sum(stage.offer_id == "a" for stage in found.plan.stages()) * 0.8
    paid += sum(stage.offer_id == "b" for stage in found.plan.stages()) * 1.9
    assert solved["cost_per_hour"] == pytest.approx(paid)


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
    there = {"node-1": (HeldStage(GOAL.model, stages[0].layers, 1),)}
    found = await planning.estimate(Estimating(GOAL, nodes, [[stage] for stage in stages], there))
    assert found.throughput_tokens_per_s > 0
    assert found.load_bytes[stages[1].node_id] > found.load_bytes["node-1"] == 0
    other = {"node-1": (HeldStage(ModelRef("other", "d"), stages[0].layers, 1),)}
    strange = await planning.estimate(Estimating(GOAL, nodes, [[stage] for stage in stages], other))
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


async def test_several_models_divide_the_nodes(planning: Planning) -> None:
    other = Goal(replace(GOAL.facts, model_id="other"), Aim("throughput-per-cost"))
    nodes = tuple(node(f"node-{number}") for number in range(1, 5))
    alone = await planning.plan(AskPlan(1, (GOAL,), nodes, 2))
    running = tuple((GOAL.model, pipeline) for pipeline in alone.deployments[0].pipelines)
    plan = await planning.plan(AskPlan(2, (GOAL, other), nodes, 2, running))
    assert [(one.model, one.objective) for one in plan.deployments] == [
        (GOAL.model, "throughput"),
        (other.model, "throughput-per-cost"),
    ]
    assert len(plan.node_ids()) == len(list(plan.stages()))
    kept = {tuple(s.node_id for s in p.stages) for p in plan.deployments[0].pipelines}
    assert kept & {tuple(s.node_id for s in p.stages) for _, p in running}
    assert plan.why.causes == ("deployments",)
    huge = Goal(replace(GOAL.facts, model_id="huge", config_json=json.dumps(HUGE)))
    with pytest.raises(FailedPrecondition, match=r"^huge: huge does not fit: [0-9.]+ GiB short"):
        await planning.plan(AskPlan(3, (GOAL, huge), nodes, 2, running))


async def test_where_no_plan_keeps_the_targets_the_first_one_and_the_next_say_how_late_they_are(
    planning: Planning,
) -> None:
    hasty = Aim("throughput", tpot_target_s=1e-6)
    goal, other = replace(GOAL, aim=hasty), replace(OTHER, aim=hasty)
    nodes = tuple(node(f"node-{number}") for number in range(1, 3))
    of_two = await planning.plan(AskPlan(1, (goal, other), nodes, 2))
    assert all(one.pipelines for one in of_two.deployments)
    first, second = of_two.why.late.split("; ")
    assert first.startswith("m: TPOT ")
    assert second.startswith("other: TPOT ")
    asked = replace(question(()), goal=goal, workload=Workload(0.01, 300.0, 90.0))
    answer = await planning.replan(asked)
    assert answer.plan is not None
    assert answer.plan.why.late.startswith("TPOT ")
    running = answer.plan.deployments[0].pipelines
    stays = await planning.replan(replace(asked, running=running, planned=len(running)))
    assert stays.plan is None
    assert any(one.startswith("it is late: TPOT ") for one in stays.reasons), stays.reasons
    everyone = tuple(NodeAsked(one.node_id, one.shape, None) for one in nodes)
    dividing = Dividing(2, (goal, other), everyone, (), (), Wishes(), (None, None))
    divided = await planning.divide(dividing)
    assert divided.plan is not None
    assert [part.split()[:2] for part in divided.plan.why.late.split("; ")] == [
        ["m:", "TPOT"],
        ["other:", "TPOT"],
    ]
    assert "late: TPOT" in divided.reasons[0]
    timely = await planning.replan(replace(asked, goal=GOAL))
    assert timely.plan is not None
    assert not timely.plan.why.late


async def test_a_model_is_placed_by_the_sizes_that_are_stored(planning: Planning) -> None:
    """Of a mixture, or of quantised weights, which no config tells."""
    gib = 1 << 30
    sizes = (gib, *[gib] * LAYERS, gib)
    nodes = tuple(
        replace(node(f"node-{n}"), shape=NodeShape((LAYERS // 2 + 4) * gib, 1.0)) for n in (1, 2)
    )
    stored = Goal(replace(GOAL.facts, config_json=json.dumps(MIXTURE), part_bytes=sizes))
    plan = await planning.plan(AskPlan(1, (stored,), nodes, 1))
    assert [len(stage.layers) for stage in plan.stages()] == [LAYERS - LAYERS // 2, LAYERS // 2]
    with pytest.raises(FailedPrecondition, match="does not fit"):
        await planning.plan(AskPlan(1, (stored,), nodes[:1], 1))


LARGE = Goal(ModelFacts("m", "d", 80, HUGE["vocab_size"], 1024, json.dumps(HUGE)))


async def layers_of(planner: str, *, anew: bool) -> list[int]:
    """Of each stage, in plans of a slow and a fast node that hold half of a model each: the first
    plan, and the next one."""
    async with serving(PlacementSettings(grpc_port=0, shutdown_grace_s=0)) as address:
        planning = Planning(address, planner=planner, anew=anew, timeout_s=10.0)
        room = 90 << 30
        asked = tuple(
            NodeAsked(f"node-{n}", NodeShape(room, speed)) for n, speed in ((1, 1), (2, 8))
        )
        there = tuple(replace(node(one.node_id), shape=one.shape) for one in asked)
        first = await planning.plan(AskPlan(1, (LARGE,), there, 1))
        question = Replanning(2, LARGE, asked, (), (), 0, True, Wishes())
        answer = await planning.replan(question)
        await planning.close()
    assert answer.plan is not None
    return [len(stage.layers) for stage in (*first.stages(), *answer.plan.stages())]


async def test_a_planner_of_uniform_degrees_makes_the_next_plan_too() -> None:
    assert await layers_of("spotserve", anew=True) == [40, 40, 40, 40]
    first, second, *_ = await layers_of("proportional", anew=False)
    assert first != second


EACH = Offer("each", "each", NodeShape(2 << 30, 1.0), count=8, price_per_hour=1.0, pool="e")


async def divided(planning: Planning, budget: float, nodes: int) -> tuple[Dividing, NextPlan]:
    """One model has pipelines of all these nodes, the other one nothing."""
    there = [NodeAsked(f"node-{n}", EACH.shape, EACH) for n in range(1, nodes + 1)]
    alone = Replanning(2, OTHER, tuple(there), (), (), 0, True, Wishes())
    whole = (await planning.replan(alone)).plan
    assert whole is not None
    running = tuple((OTHER.model, p) for p in whole.deployments[0].pipelines)
    asked = Dividing(
        3,
        (GOAL, OTHER),
        tuple(there),
        (Candidate("each#1", EACH),),
        running,
        Wishes(budget_per_hour=budget),
        (None, Workload(0.0, 300.0, 90.0)),
    )
    return asked, await planning.divide(asked)


async def test_a_model_gets_back_what_another_one_has_spent(planning: Planning) -> None:
    asked, answer = await divided(planning, budget=3.0, nodes=3)
    plan = answer.plan
    assert plan is not None
    assert plan.number == 3
    assert [one.model for one in plan.deployments] == [GOAL.model, OTHER.model]
    assert all(one.pipelines for one in plan.deployments)
    assert len(list(plan.stages())) <= 3, "a dollar each"
    kept = {tuple(s.node_id for s in p.stages) for p in plan.deployments[1].pipelines}
    assert kept & {tuple(s.node_id for s in p.stages) for _, p in asked.running}
    assert plan.why.gain is None, "nothing served it"
    assert answer.reasons[0].startswith("m: ")
    assert [one.lacks for one in plan.why.alternatives] == ["no pipeline of m"]
    names = [pipeline.pipeline_id for _, pipeline in plan.pipelines()]
    assert len(set(names)) == len(names)

    settled = tuple((d.model, p) for d, p in plan.pipelines())
    again = await planning.divide(replace(asked, number=4, running=settled))
    assert again.plan is None, "the same question again moves nobody back"


async def test_a_model_that_cannot_be_served_beside_another_has_no_plan(planning: Planning) -> None:
    huge = replace(GOAL.facts, model_id="huge", config_json=json.dumps(HUGE))
    nodes = (NodeAsked("node-1", EACH.shape, EACH),)
    asked = Dividing(3, (Goal(huge), OTHER), nodes, (), (), Wishes(), (None, None))
    answer = await planning.divide(asked)
    assert answer.plan is not None
    assert answer.plan.models == {OTHER.model}
    assert "huge: cannot be served beside the others within the limits" in answer.reasons


async def test_what_no_division_pays_for_is_an_error(planning: Planning) -> None:
    with pytest.raises(FailedPrecondition, match="keeps to the limits"):
        await divided(planning, budget=0.5, nodes=1)


async def test_pipelines_have_the_phases_of_the_settings_and_placements_proportions() -> None:
    """Who prefills hands on to both that decode, which are dealt equal nodes, in equal parts."""
    phases = (PipelinePhase.PREFILL, PipelinePhase.DECODE, PipelinePhase.DECODE)
    shapes = (FAST, SLOW, SLOW, FAST, SLOW, FAST)
    nodes = tuple(
        NodeFacts(f"node-{number}", f"i{number}", "h:1", 1, shape)
        for number, shape in enumerate(shapes)
    )
    async with serving(PlacementSettings(grpc_port=0, shutdown_grace_s=0)) as address:
        split = Planning(address, planner="proportional", timeout_s=10.0, phases=phases)
        plan = await split.plan(AskPlan(1, (GOAL,), nodes, 3))
        await split.close()
    (deployment,) = plan.deployments
    assert tuple(pipeline.phase for pipeline in deployment.pipelines) == phases
    first, *rest = deployment.pipelines
    onward = dict(first.onward)
    assert onward.keys() == {pipeline.pipeline_id for pipeline in rest}
    least, most = sorted(onward.values())
    assert 0 < most <= 1.05 * least
    assert not any(pipeline.onward for pipeline in rest)


async def test_where_placement_estimates_no_rate_who_reads_prompts_keeps_its_weight(
    planning: Planning, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = await first(planning)
    (whole,) = plan.deployments
    phases = (PipelinePhase.PREFILL, PipelinePhase.DECODE)
    pair = tuple(
        replace(one, pipeline_id=phase.value, phase=phase)
        for one, phase in zip(whole.pipelines, phases, strict=True)
    )
    split = replace(plan, deployments=(replace(whole, pipelines=pair),))

    async def estimate(request: Any, **_: float) -> placement_pb2.EstimateResponse:
        nothing = [placement_pb2.PipelineEstimate() for _ in pair]
        flow = placement_pb2.Flow(prefill=0, decode=1, rate_rps=2.0)
        return placement_pb2.EstimateResponse(pipeline_estimates=nothing, flows=[flow])

    monkeypatch.setattr(planning, "_stub", SimpleNamespace(Estimate=estimate))
    (made,) = (await planning._in_proportion(split, [GOAL])).deployments
    assert made.pipelines[0].onward == (("decode", 2.0),)
    assert made.pipelines[0].weight_tokens_per_s == pair[0].weight_tokens_per_s


async def test_phases_alone_follow_the_workload_where_weights_stay(planning: Planning) -> None:
    """Where prompts make answers late, they get pipelines of their own."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    config = json.dumps(LLAMA | sizes | heads | {"head_dim": 128})
    goal = Goal(ModelFacts("m", "d", 32, 128256, 8192, config), Aim("throughput", 2.0, 0.065))
    gib = {"l40s": 44, "a10g": 22, "l4": 22}
    names = ("l40s", "a10g", "a10g", "l4")
    devices = [NodeShape(gib[name] << 30, 1.0, name) for name in names]
    asked = tuple(NodeAsked(f"node-{n}", shape) for n, shape in enumerate(devices))
    running = tuple(
        PlannedPipeline(
            f"pipeline-{n}",
            (PlannedStage(LayerRange(0, 32), 1, one.shape, one.node_id),),
            1.0,
        )
        for n, one in enumerate(asked, 4)
    )
    workload = Workload(4.0, 1000.0, 200.0)
    question = Replanning(
        2, goal, asked, (Candidate("spot#1", OFFER),), running, 5, True, Wishes(), workload
    )
    question = replace(question, phases_only=True)
    answer = await planning.replan(question)
    assert answer.plan is not None
    pipelines = answer.plan.deployments[0].pipelines
    assert [one.stages for one in pipelines] == [one.stages for one in running]
    prefill = [one for one in pipelines if one.phase is PipelinePhase.PREFILL]
    assert PipelinePhase.DECODE in [one.phase for one in pipelines]
    assert {name for name, _ in prefill[0].onward} <= {one.pipeline_id for one in pipelines}
    handed_on = sum(rate for _, rate in prefill[0].onward)
    assert prefill[0].weight_tokens_per_s == pytest.approx(200.0 * handed_on, rel=1e-3)
    again = replace(question, running=tuple(pipelines))
    assert (await planning.replan(again)).plan is None, "nothing is better by now"
