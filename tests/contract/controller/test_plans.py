"""An operator's plan, while the mesh serves."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from shuntserve.controller.v1 import controller_pb2 as pb

World = Any
CALL_S = 60.0


def plan_json(status: Any, *pipelines: dict[str, list[int]], **more: Any) -> str:
    """Layers by node."""
    made = [
        {
            "id": f"pipeline-{number}",
            "stages": [{"node": node, "layers": layers} for node, layers in stages.items()],
            **more,
        }
        for number, stages in enumerate(pipelines, 1)
    ]
    model = {"model": status.model.model_id, "pipelines": made}
    return json.dumps({"version": 1, "deployments": [model]})


async def apply(world: World, text: str) -> int:
    request = pb.ApplyPlanRequest(plan_json=text)
    return (await world.stub.ApplyPlan(request, timeout=CALL_S)).number


async def carried_out(world: World, number: int, count: int) -> Any:
    async with asyncio.timeout(CALL_S):
        while True:
            status = await world.status()
            ready = [p.state == pb.PIPELINE_STATE_READY for p in status.pipelines]
            if status.plan.number == number and ready == [True] * count:
                return status
            await asyncio.sleep(0.01)


async def test_pipelines_change_their_nodes_while_one_serves(world: World) -> None:
    await world.start()
    await world.routes(2)
    before = await world.status()
    assert (before.plan.number, len(before.plan.deployments)) == (1, 1)
    a, b, c, d = (s.node_id for p in before.pipelines for s in p.stages)
    first, second = {a: [0, 4], d: [4, 6]}, {c: [0, 4], b: [4, 6]}
    assert await apply(world, plan_json(before, first, second)) == 2
    after = await carried_out(world, 2, 2)
    placed = [
        {s.node_id: [s.layers.start, s.layers.end] for s in p.stages} for p in after.pipelines
    ]
    assert placed == [first, second]
    (deployment,) = after.plan.deployments
    assert list(deployment.pipeline_ids) == [p.pipeline_id for p in after.pipelines]
    assert await apply(world, plan_json(before, {a: [0, 4], d: [4, 6]})) == 3
    await carried_out(world, 3, 1)
    for node_id in (b, c):  # those that have no place end
        await world.until_event("node_lost", node_id=node_id)
    assert set(world.provider.engines) == {a, d}


async def test_a_plan_goes_on_over_a_restart(world: World) -> None:
    await world.start()
    await world.routes(2)
    status = await world.status()
    a, b, c, d = (s.node_id for p in status.pipelines for s in p.stages)
    number = await apply(world, plan_json(status, {d: [0, 3], c: [3, 6]}, {b: [0, 3], a: [3, 6]}))
    await world.stop()
    await world.start()
    status = await carried_out(world, number, 2)
    assert [s.node_id for p in status.pipelines for s in p.stages] == [d, c, b, a]


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("no", "no JSON"),
        ("{}", "deployments"),
        ("gaps", "stages[1].layers"),
        ("other layers", "the model has 6 layers"),
        ("other model", "deployments[0].model"),
        ("phase", "one of both, prefill, decode"),
    ],
)
async def test_a_plan_that_cannot_be_is_refused_with_its_field(
    world: World, text: str, about: str
) -> None:
    await world.start()
    await world.routes(2)
    status = await world.status()
    texts = {
        "gaps": plan_json(status, {"a": [0, 3], "b": [4, 6]}),
        "other layers": plan_json(status, {"a": [0, 5]}),
        "other model": plan_json(status, {"a": [0, 6]}).replace(status.model.model_id, "other"),
        "phase": plan_json(status, {"a": [0, 6]}, phase="half"),
    }
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await apply(world, texts.get(text, text))
    error = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert about in f"{error.details()} {error.trailing_metadata()}"
    assert (await world.status()).plan.number == 1


async def why(world: World, what_ifs: bool = False) -> Any:
    return await world.stub.ExplainPlan(pb.ExplainPlanRequest(what_ifs=what_ifs), timeout=CALL_S)


async def test_a_plan_says_why_after_a_restart_too(world: World) -> None:
    world.placement.reasons = ("2 pipelines, for a test",)
    world.placement.runners_up = (("1 pipeline", "30.0% worse"),)
    await world.start()
    await world.routes(2)
    first = await why(world)
    assert (first.number, list(first.causes)) == (1, ["first_plan"])
    assert list(first.reasons) == ["2 pipelines, for a test"]
    assert [(a.plan, a.lacks) for a in first.alternatives] == [("1 pipeline", "30.0% worse")]
    assert not first.HasField("gain")
    assert list(first.what_ifs) == []
    assert first.what_ifs_lack == ""
    status = await world.status()
    assert list(status.plan.causes) == ["first_plan"]
    assert status.plan.adopted_unix_s == first.adopted_unix_s > 1.7e9
    await world.stop()
    await world.start()
    assert await why(world) == first
    a, b, c, d = (s.node_id for p in status.pipelines for s in p.stages)
    text = plan_json(status, {a: [0, 4], d: [4, 6]}, {c: [0, 4], b: [4, 6]})
    given = {**json.loads(text), "why": {**_WHY, "reasons": ["it says so itself"]}}
    request = pb.ApplyPlanRequest(plan_json=json.dumps(given), source="plan.json")
    await world.stub.ApplyPlan(request, timeout=CALL_S)
    await carried_out(world, 2, 2)
    second = await why(world)
    assert list(second.reasons) == ["applied by an operator from plan.json, nothing was compared"]
    assert (second.number, list(second.causes)) == (2, ["operator"])


_WHY = {"reasons": [], "alternatives": [], "causes": []}


async def test_what_else_would_change_the_plan_is_asked_of_placement(world: World) -> None:
    await world.start()
    await world.routes(2)
    away = await why(world, what_ifs=True)
    assert away.what_ifs_lack.startswith("placement has no answer: ")
    world.placement.answers = (("objective goodput-per-cost", "the same plan"),)
    told = await why(world, what_ifs=True)
    assert [(w.change, w.answer) for w in told.what_ifs] == list(world.placement.answers)
    assert told.what_ifs_lack == "there was no time for more"
    (asked,) = world.placement.what_ifs
    assert asked.question.improve
    there = {node_id for group in asked.groups for node_id in group.node_ids}
    assert there == {node.node_id for node in asked.question.nodes}
    groups = {group.name: group for group in asked.groups}
    assert {"node-2", "node-4"} < set(groups["local-2.0"].node_ids)
    assert {"node-1", "node-3"} < set(groups["local-3.0"].node_ids)
    assert groups["local-3.0"].more.node_id not in there
    assert groups["local-3.0"].more.relative_speed == 3.0


async def test_before_there_is_a_plan_there_is_nothing_to_explain(world: World) -> None:
    world.placement.fails = 1 << 30
    await world.start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await why(world)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_every_event_names_the_plan_that_was_carried_out(world: World) -> None:
    await world.start()
    await world.routes(2)
    status = await world.status()
    a, b, c, d = (s.node_id for p in status.pipelines for s in p.stages)
    await apply(world, plan_json(status, {a: [0, 4], d: [4, 6]}, {c: [0, 4], b: [4, 6]}))
    await carried_out(world, 2, 2)
    told = await world.events()
    plans = {event.kind: event.plan for event in reversed(told)}
    assert [plans["node_launched"], plans["node_registered"]] == [0, 0]
    firsts = [e.number for e in told if e.kind == "plan_ready"]
    for event in told:
        assert event.plan == sum(first <= event.number for first in firsts)
    await world.stop()
    await world.start()
    assert (await world.events())[: len(told)] == told
    await world.provider.kill(a)
    assert (await world.until_event("node_lost", node_id=a)).plan == 2


async def diff(world: World, text: str) -> Any:
    return await world.stub.DiffPlan(pb.DiffPlanRequest(plan_json=text), timeout=CALL_S)


async def test_what_a_plan_would_change_is_told_and_nothing_is_changed(world: World) -> None:
    await world.start()
    await world.routes(2)
    status = await world.status()
    a, b, c, d = (s.node_id for p in status.pipelines for s in p.stages)
    text = plan_json(status, {a: [0, 4], b: [4, 6]}, {c: [0, 6]})
    found = await diff(world, text)
    assert list(found.kept_pipeline_ids) == ["pipeline-1"]
    assert list(found.gone_pipeline_ids) == ["pipeline-2"]
    (new,) = found.new_pipelines
    (stage,) = new.stages
    assert (stage.node_id, stage.layers.start, stage.layers.end) == (c, 0, 6)
    assert [(layers.start, layers.end) for layers in stage.lacks] == [(4, 6)]
    assert list(found.freed_node_ids) == [d]
    assert found.estimates_lack, "this placement estimates nothing"
    assert not stage.HasField("load_bytes")
    assert not found.HasField("cost_per_hour_after")
    again = await world.status()
    assert (again.plan, list(again.pipelines)) == (status.plan, list(status.pipelines))
    assert await apply(world, text) == 2
    after = await carried_out(world, 2, 2)
    assert {p.pipeline_id for p in after.pipelines} == {"pipeline-1", new.pipeline_id}


async def test_a_plan_that_could_not_be_applied_has_no_difference(world: World) -> None:
    await world.start()
    await world.routes(2)
    for call in (apply, diff):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(world, '{"deployments": []}')
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "a deployment at least" in (caught.value.details() or "")
