"""Several models in one mesh: deployed and undeployed while it serves."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb

from services.common.errors import NotFound
from services.controller import deployments
from services.controller.core.model_facts import ModelFacts
from tests.contract.controller.conftest import CALL_S, FACTS, LAYERS

World = Any
OTHER = ModelFacts("other", "cd" * 32, 4, 500, 2048, '{"layers": 4}')
STORED = {facts.model_id: facts for facts in (FACTS, OTHER)}


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has two models."""

    async def facts_now(address: str, model_id: str, *, digest: str, **_: Any) -> ModelFacts:
        facts = STORED.get(model_id)
        if facts is None or digest not in ("", facts.digest):
            raise NotFound("not there")
        return facts

    monkeypatch.setattr(deployments, "facts_now", facts_now)


async def deploy(world: World, name: str = "other", **more: Any) -> Any:
    digest = more.pop("digest", "")
    model = common_pb2.ModelRef(model_id=name, digest=digest)
    request = pb.DeployRequest(model=model, aim=pb.Aim(**more))
    return await world.stub.Deploy(request, timeout=CALL_S)


async def undeploy(world: World, name: str) -> Any:
    return await world.stub.Undeploy(pb.UndeployRequest(model_id=name), timeout=CALL_S)


async def until(world: World, **ready: int) -> Any:
    """The status once each model has so many pipelines that take requests, and nothing else is."""
    async with asyncio.timeout(CALL_S):
        while True:
            status = await world.status()
            found = {d.model.model_id: d.ready_pipelines for d in status.deployments}
            if found == ready and len(status.pipelines) == sum(ready.values()):
                return status
            await asyncio.sleep(0.01)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_a_second_model_is_served_beside_the_first_and_goes_again(world: World) -> None:
    await world.start()
    first = await world.routes(2)
    reply = await deploy(world, objective="throughput-per-cost", ttft_target_s=2.0, weight=3.0)
    assert (reply.plan_number, reply.model.digest) == (2, OTHER.digest)
    status = await until(world, tiny=1, other=1)
    assert (status.model.model_id, status.plan.number) == ("tiny", 2)
    tiny, other = status.deployments
    assert (tiny.aim.objective, tiny.aim.weight) == ("throughput", 1.0)
    told = other.aim.objective, other.aim.ttft_target_s, other.aim.weight
    assert told == ("throughput-per-cost", 2.0, 3.0)
    assert [d.objective for d in status.plan.deployments] == ["throughput", "throughput-per-cost"]
    question = world.placement.requests[-1]
    assert [len(spec.running) for spec in question.deployments] == [2, 0]
    assert [spec.weight for spec in question.deployments] == [1.0, 3.0]
    routes = {route.model.model_id: route for route in await world.routes(2)}
    assert routes["tiny"].pipeline_id in {route.pipeline_id for route in first}
    assert [routes[name].max_positions for name in ("tiny", "other")] == [1024, 1024]
    held, sealed, left, formed = world.head(routes["other"]).calls[-4:]
    assert held == ("hold", (0, 2)), "loaded while it serves"
    assert (sealed[0], left[0]) == ("drain", "dissolve")
    assert formed == ("form", routes["other"].formation_id)
    assert (await undeploy(world, "other")).plan_number == 3
    await until(world, tiny=2)


async def test_what_is_deployed_outlives_the_controller(world: World) -> None:
    await world.start()
    await world.routes(2)
    await deploy(world)
    await world.stop()
    await world.start()
    status = await until(world, tiny=1, other=1)
    assert {r.model.model_id: r.model.digest for r in await world.routes(2)} == {
        "tiny": FACTS.digest,
        "other": OTHER.digest,
    }
    assert status.plan.number == 2
    await undeploy(world, "tiny")
    await world.stop()
    await world.start()  # the settings name it still
    status = await until(world, other=2)
    assert status.model.model_id == "other"


async def test_routers_are_told_what_is_deployed_before_a_pipeline_is_ready(world: World) -> None:
    await world.start()
    await world.routes(2)
    held = asyncio.Event()
    for engine in world.provider.engines.values():
        engine.hold_load = held
    call = world.stub.WatchRoutes(pb.WatchRoutesRequest(router_id="r"), timeout=CALL_S)
    assert [one.model.model_id for one in (await call.read()).deployed] == ["tiny"]
    await deploy(world)
    told = await call.read()
    assert [one.model.model_id for one in told.deployed] == ["tiny", "other"]
    assert {route.model.model_id for route in told.routes} == {"tiny"}
    held.set()
    await until(world, tiny=1, other=1)
    await undeploy(world, "tiny")
    while [one.model.model_id for one in told.deployed] != ["other"]:
        told = await call.read()
    assert {route.model.model_id for route in told.routes} == {"other"}
    call.cancel()


async def test_what_cannot_be_deployed_is_refused_and_nothing_changes(world: World) -> None:
    await world.start()
    await world.routes(2)
    code, said = await refused(deploy(world, "nothing"))
    assert (code, said) == (grpc.StatusCode.NOT_FOUND, "the store has no nothing")
    code, said = await refused(deploy(world, digest="ef" * 32))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "other in version efefefefefef" in said
    code, said = await refused(deploy(world, digest="EF"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    code, said = await refused(deploy(world, objective="fame"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "throughput-per-cost" in said
    code, said = await refused(deploy(world, weight=-1.0))
    assert (code, "weight" in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, said = await refused(deploy(world, "tiny"))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    world.placement.full = "other does not fit beside tiny: 1.20 GiB short"
    code, said = await refused(deploy(world))
    assert (code, said) == (grpc.StatusCode.FAILED_PRECONDITION, world.placement.full)
    code, said = await refused(undeploy(world, "other"))
    assert code is grpc.StatusCode.NOT_FOUND
    code, said = await refused(undeploy(world, "tiny"))
    assert (code, "last" in said) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    status = await world.status()
    assert (status.plan.number, len(status.deployments)) == (1, 1)


async def test_a_model_is_undeployed_though_placement_is_away(world: World) -> None:
    await world.start()
    await world.routes(2)
    await deploy(world)
    await until(world, tiny=1, other=1)
    world.placement.fails = 1
    await undeploy(world, "other")
    status = await until(world, tiny=1)
    assert [d.model.model_id for d in status.plan.deployments] == ["tiny"]


async def test_an_operators_plan_has_pipelines_for_every_model(world: World) -> None:
    await world.start()
    await world.routes(2)
    await deploy(world)
    status = await until(world, tiny=1, other=1)
    stages = ", ".join(
        f'{{"node": "{s.node_id}", "layers": [{s.layers.start}, {s.layers.end}]}}'
        for s in status.pipelines[0].stages
    )
    one = f'{{"model": "tiny", "pipelines": [{{"id": "p", "stages": [{stages}]}}]}}'
    request = pb.ApplyPlanRequest(plan_json=f'{{"deployments": [{one}]}}')
    code, said = await refused(world.stub.ApplyPlan(request, timeout=CALL_S))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "other is deployed and has no pipeline here" in said


def request_of(facts: ModelFacts, *prompt_ids: int) -> common_pb2.GenerationRequest:
    model = common_pb2.ModelRef(model_id=facts.model_id, digest=facts.digest)
    sampling = common_pb2.Sampling(max_tokens=20, top_p=1.0, repetition_penalty=1.0)
    return common_pb2.GenerationRequest(
        generation_id="g1",
        model=model,
        prompt_ids=prompt_ids or (1,),
        choices=1,
        sampling=sampling,
        kind=common_pb2.GENERATION_KIND_COMPLETION,
    )


async def test_a_generation_is_at_a_head_of_its_model_alone(world: World) -> None:
    await world.start()
    await world.routes(2)
    await deploy(world)
    await until(world, tiny=1, other=1)
    routes = {route.model.model_id: route for route in await world.routes(2)}
    assert OTHER.layer_count != LAYERS
    stream = world.stub.StreamCheckpoints(timeout=CALL_S)

    async def bound(route: Any, request: Any) -> Any:
        checkpoint = pb.Checkpoint(
            generation_id="g1",
            epoch=1,
            incarnation=route.incarnation,
            formation_id=route.formation_id,
            request=request,
        )
        await stream.write(pb.StreamCheckpointsRequest(checkpoints=[checkpoint]))
        return (await stream.read()).results[0].refusal

    request = request_of(OTHER)
    refusal = await bound(routes["tiny"], request)
    assert refusal == pb.CHECKPOINT_REFUSAL_UNKNOWN_FORMATION
    asked = pb.ResumeRequest(generation_id="g1", last_epoch=1, request=request)
    granted = await world.stub.Resume(asked, timeout=CALL_S)
    assert granted.head.formation_id == routes["other"].formation_id
    stream.cancel()
    too_high = pb.ResumeRequest(generation_id="g2", request=request_of(OTHER, 700))
    too_high.request.generation_id = "g2"
    code, said = await refused(world.stub.Resume(too_high, timeout=CALL_S))
    assert (code, "below 500" in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    await undeploy(world, "other")
    await until(world, tiny=2)
    asked.last_epoch = granted.epoch
    code, said = await refused(world.stub.Resume(asked, timeout=CALL_S))
    assert (code, said) == (grpc.StatusCode.NOT_FOUND, "other is not deployed any more")
