"""An operator's plan, while the mesh serves."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from shuntserve.controller.v1 import controller_pb2 as pb

World = Any
CALL_S = 20.0


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
        ("phase", "engines do whole generations"),
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
        "phase": plan_json(status, {"a": [0, 6]}, phase="prefill"),
    }
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await apply(world, texts.get(text, text))
    error = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert about in f"{error.details()} {error.trailing_metadata()}"
    assert (await world.status()).plan.number == 1
