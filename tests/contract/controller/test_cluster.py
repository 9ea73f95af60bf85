from __future__ import annotations

import asyncio
from itertools import groupby
from typing import Any

import grpc
import pytest
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.common import channels
from services.common.nodes import NodeShape
from services.common.roles import Role
from services.controller import deployments
from services.controller.core.cluster.market import Offer

World = Any
CALL_S = 60.0


async def _until(world: World, holds: Any) -> Any:
    """The first status that holds."""
    async with asyncio.timeout(CALL_S):
        while True:
            status = await world.status()
            if holds(status):
                return status
            await asyncio.sleep(0.01)


async def _kinds(world: World) -> list[str]:
    return [event.kind for event in await world.events()]


async def test_nodes_become_two_pipelines_of_uneven_stages(world: World) -> None:
    await world.start()
    routes = await world.routes(2)
    assert len({route.formation_id for route in routes}) == 2
    status = await world.status()
    layers = [[(s.layers.start, s.layers.end) for s in p.stages] for p in status.pipelines]
    assert layers == [[(0, 4), (4, 6)]] * 2
    assert {node.state for node in status.nodes} == {pb.NODE_STATE_READY}
    assert {p.state for p in status.pipelines} == {pb.PIPELINE_STATE_READY}
    heads = {world.head(route).node_id for route in routes}
    assert heads == {p.stages[0].node_id for p in status.pipelines}
    assert all(route.max_positions == 64 * 16 for route in routes)


async def test_the_head_is_formed_when_the_other_stages_stand(world: World) -> None:
    order: list[str] = []

    def note(engine: Any) -> None:
        form = engine.Form

        async def noted(request: Any, context: Any) -> Any:
            order.append(f"{request.formation_id}/{request.stage_index}")
            return await form(request, context)

        engine.Form = noted

    world.provider.prepare = note
    await world.start()
    routes = await world.routes(2)
    for route in routes:
        mine = [entry for entry in order if entry.startswith(route.formation_id)]
        assert [entry[-1] for entry in mine] == ["1", "0"]


async def test_a_killed_node_is_replaced_by_a_new_one(world: World) -> None:
    await world.start()
    before = await world.routes(2)
    victim = world.head(before[0]).node_id
    await world.provider.kill(victim)
    await world.routes(1)
    after = await world.routes(2)
    assert {route.formation_id for route in after} != {route.formation_id for route in before}
    status = await world.status()
    assert victim not in {s.node_id for p in status.pipelines for s in p.stages}
    assert len(world.provider.launched) == len(set(world.provider.launched)) == 5
    survivor = next(p for p in status.pipelines if p.pipeline_id == before[0].pipeline_id)
    loads = [c for c in world.provider.engines[survivor.stages[1].node_id].calls if c[0] == "hold"]
    assert len(loads) == 1


def turns(engine: Any) -> list[str]:
    """What it was called for, one after another: whose beats name what is no more is told so again,
    until the next formation begins."""
    return [name for name, _ in groupby(name for name, _ in engine.calls)]


async def test_the_members_left_are_told_to_dissolve(world: World) -> None:
    await world.start()
    before = await world.routes(2)
    status = await world.status()
    pipeline = next(p for p in status.pipelines if p.pipeline_id == before[0].pipeline_id)
    await world.provider.kill(pipeline.stages[1].node_id)
    await world.routes(1)
    await world.routes(2)
    assert turns(world.head(before[0])) == ["hold", "form", "dissolve", "form"]


async def test_no_member_is_formed_anew_before_it_has_dissolved(world: World) -> None:
    await world.start(dissolve_timeout_s=CALL_S)
    before = await world.routes(2)
    pipeline = next(
        p for p in (await world.status()).pipelines if p.pipeline_id == before[0].pipeline_id
    )
    survivor = world.provider.engines[pipeline.stages[1].node_id]
    survivor.dissolve_s = 0.3
    await world.provider.kill(pipeline.stages[0].node_id)
    await world.routes(1)
    await world.routes(2)
    assert turns(survivor) == ["hold", "form", "dissolve", "form"]


async def test_a_node_nobody_heard_the_end_of_is_lost_when_it_refuses(world: World) -> None:
    await world.start(node_lost_s=600.0)
    routes = await world.routes(2)
    victim = world.head(routes[0]).node_id
    await world.provider.kill(victim, told=False)
    event = await world.until_event("node_lost", node_id=victim)
    assert event.attributes["cause"] == "connection refused"
    await world.routes(2)


async def test_a_silent_node_is_lost(world: World) -> None:
    await world.start(node_lost_s=0.4, restart_grace_s=0.1)
    routes = await world.routes(2)
    victim = world.head(routes[0])
    victim.beating.clear()
    event = await world.until_event("node_lost", node_id=victim.node_id)
    assert event.attributes["cause"] == "silence"
    await world.until_event("pipeline_lost", pipeline_id=routes[0].pipeline_id)


async def test_a_notice_moves_the_stage_before_the_node_goes(world: World) -> None:
    await world.start()
    routes = await world.routes(2)
    victim = world.head(routes[0]).node_id
    notice = pb.ReportInterruptionRequest(node_id=victim, notice_s=600.0)
    reply = await world.stub.ReportInterruption(notice, timeout=CALL_S)
    again = await world.stub.ReportInterruption(notice, timeout=CALL_S)
    assert again.event_number == reply.event_number
    await _until(world, lambda s: victim not in {m.node_id for p in s.pipelines for m in p.stages})
    await world.routes(2)
    await _until(world, lambda s: victim not in world.provider.engines)
    kinds = await _kinds(world)
    order = ["interruption_noticed", "stage_loaded", "handover_started", "handover_finished"]
    places = [max(i for i, kind in enumerate(kinds) if kind == name) for name in order]
    assert places == sorted(places)
    assert "pipeline_lost" not in kinds
    events = await world.events()
    assert events[reply.event_number - 1].kind == "interruption_noticed"


async def test_a_noticed_node_is_taken_at_the_deadline_ready_or_not(world: World) -> None:
    await world.start()
    routes = await world.routes(2)
    victim, may_load = world.head(routes[0]).node_id, asyncio.Event()
    world.provider.prepare = lambda engine: setattr(engine, "hold_load", may_load)
    await world.stub.ReportInterruption(
        pb.ReportInterruptionRequest(node_id=victim, notice_s=0.3), timeout=CALL_S
    )
    await world.until_event("node_lost", node_id=victim)
    may_load.set()
    await world.routes(2)


async def test_a_second_shorter_notice_counts(world: World) -> None:
    await world.start()
    routes = await world.routes(2)
    victim = world.head(routes[0]).node_id
    world.provider.prepare = lambda engine: setattr(engine, "hold_load", asyncio.Event())
    for notice_s in (600.0, 0.3, 500.0):
        notice = pb.ReportInterruptionRequest(node_id=victim, notice_s=notice_s)
        await world.stub.ReportInterruption(notice, timeout=CALL_S)
    await world.until_event("node_lost", node_id=victim)
    assert (await _kinds(world)).count("interruption_noticed") == 2


async def test_a_kill_that_nobody_can_carry_out_is_refused(world: World) -> None:
    await world.start()
    routes = await world.routes(2)
    stranger = world.head(routes[0]).node_id
    world.provider.strangers.add(stranger)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.stub.ReportInterruption(
            pb.ReportInterruptionRequest(node_id=stranger, kill=True), timeout=CALL_S
        )
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "kill_ordered" not in await _kinds(world)


async def test_what_every_engine_refuses_is_said_and_costs_no_more_of_them(world: World) -> None:
    reason = "head_dim must be even"
    world.provider.prepare = lambda engine: setattr(engine, "refusal", reason)
    await world.start()
    await _until(world, lambda s: s.unusable)
    status = await world.status()
    assert status.unusable == reason
    fault = status.faults[0]
    assert (fault.kind, fault.cause, fault.permanent) == (pb.FAULT_KIND_LOAD, reason, True)
    call = world.stub.WatchRoutes(pb.WatchRoutesRequest(router_id="r"), timeout=CALL_S)
    told = await call.read()
    assert ([one.unusable for one in told.deployed], list(told.routes)) == ([reason], [])
    call.cancel()
    assert world.provider.launched == [f"node-{number}" for number in range(1, 5)]
    assert (await _kinds(world)).count("load_failed") == 4


async def test_an_order_to_kill_ends_the_process_now(world: World) -> None:
    await world.start()
    routes = await world.routes(2)
    victim = world.head(routes[0]).node_id
    await world.stub.ReportInterruption(
        pb.ReportInterruptionRequest(node_id=victim, kill=True), timeout=CALL_S
    )
    await world.until_event("node_lost", node_id=victim)
    await world.routes(2)


async def test_what_fails_is_tried_again(world: World) -> None:
    world.placement.fails = 1
    world.placement.bad = True
    world.provider.prepare = lambda engine: (
        setattr(engine, "load_fails", 1) or setattr(engine, "form_fails", 1)
    )
    await world.start()
    await world.routes(2)
    kinds = await _kinds(world)
    assert kinds.count("plan_failed") == 2
    assert kinds.count("load_failed") == 4
    assert len(world.placement.requests) == 3


async def test_a_stage_of_another_version_is_none_that_was_asked_for(world: World) -> None:
    world.provider.prepare = lambda engine: setattr(engine, "astray", 1)
    await world.start()
    await world.routes(2)
    assert (await _kinds(world)).count("load_failed") == 4


@pytest.mark.parametrize("times", [1, 3])
async def test_a_stage_that_a_node_only_cached_is_asked_for_again(world: World, times: int) -> None:
    """At once; who says so again though it serves nobody has failed."""
    world.provider.prepare = lambda engine: setattr(engine, "crowded", times)
    await world.start()
    await world.routes(2)
    kinds = await _kinds(world)
    assert (kinds.count("stage_fetched"), kinds.count("load_failed")) == (4, 4 * (times - 1))


async def test_a_plan_that_lacks_an_estimate_is_not_cut_short(world: World) -> None:
    world.placement.lacks_estimate = True
    await world.start()
    await world.routes(2)
    assert (await _kinds(world)).count("plan_failed") == 1


async def test_a_launch_that_finds_no_capacity_is_tried_again(world: World) -> None:
    await world.start()
    routes = await world.routes(2)
    world.provider.fails = 2
    await world.provider.kill(world.head(routes[0]).node_id)
    await world.routes(1)
    await world.routes(2)
    assert len(world.provider.launched) == 5


async def test_a_defect_ends_the_controller(world: World) -> None:
    async def launch(node_id: str, offer: Offer) -> str:
        raise RuntimeError("a defect")

    async def life() -> None:
        try:
            await world.start()
            await asyncio.Event().wait()
        finally:
            await world.stop()

    world.provider.launch = launch
    living = asyncio.create_task(life())
    ended, _ = await asyncio.wait([living], timeout=CALL_S)
    living.cancel()
    assert ended
    with pytest.raises(ExceptionGroup) as why:
        await living
    assert why.group_contains(RuntimeError, match="a defect")


async def test_an_unknown_node_must_register_before_it_beats(world: World) -> None:
    await world.start()
    call = world.stub.Heartbeat(timeout=CALL_S)
    await call.write(pb.HeartbeatRequest(node_id="stranger", incarnation="x"))
    assert (await call.read()).register_again
    call.cancel()


async def test_a_beat_that_waits_for_no_answer_has_one_only_where_something_must_be_told(
    world: World,
) -> None:
    """And who waits for one is told how often to beat: four nodes, ten beats a second. Who
    registers is not: what is told there is not told anew when the cluster is another one."""
    await world.start(beats_per_s=10.0, heartbeat_interval_s=0.05)
    engine = world.head((await world.routes(2))[0])
    registered = await world.stub.Register(engine.facts(), timeout=CALL_S)
    assert registered.heartbeat_interval_s == pytest.approx(0.05)
    beat = {"node_id": engine.node_id, "incarnation": engine.incarnation}
    quiet = {"no_answer": True}
    beats = [pb.HeartbeatRequest(**beat, **quiet) for _ in range(3)]
    beats.append(pb.HeartbeatRequest(**beat))
    beats.append(pb.HeartbeatRequest(node_id=engine.node_id, incarnation="unknown", **quiet))
    answers = [answer async for answer in world.stub.Heartbeat(iter(beats), timeout=CALL_S)]
    assert [answer.register_again for answer in answers] == [False, True]
    assert answers[0].heartbeat_interval_s == pytest.approx(0.4)


@pytest.mark.parametrize("bad", [{"lost_node_ids": ["n"] * 5000}, {"formation_id": "f" * 5000}])
async def test_a_beat_has_limits(world: World, bad: dict[str, Any]) -> None:
    await world.start()
    routes = await world.routes(2)
    engine = world.head(routes[0])
    call = world.stub.Heartbeat(timeout=CALL_S)
    beat = {"node_id": engine.node_id, "incarnation": engine.incarnation, **bad}
    await call.write(pb.HeartbeatRequest(**beat))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_older_incarnation_is_aborted(world: World) -> None:
    await world.start()
    routes = await world.routes(2)
    engine = world.head(routes[0])
    newer = engine.facts()
    newer.incarnation = "newer"
    await world.stub.Register(newer, timeout=CALL_S)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await world.stub.Register(engine.facts(), timeout=CALL_S)
    assert failed.value.code() is grpc.StatusCode.ABORTED


async def test_routers_that_watch_are_named(world: World) -> None:
    await world.start()
    call = world.stub.WatchRoutes(pb.WatchRoutesRequest(router_id="r1"), timeout=CALL_S)
    first = await call.read()
    assert list((await world.status()).router_ids) == ["r1"]
    second = await call.read()
    assert second.version > first.version
    call.cancel()
    await _until(world, lambda s: not s.router_ids)


async def test_a_restarted_controller_finds_the_mesh_as_it_was(world: World) -> None:
    await world.start()
    before = await world.routes(2)
    await world.stop()
    await world.start()
    after = await world.routes(2)
    assert {r.formation_id for r in after} == {r.formation_id for r in before}
    assert len(world.provider.launched) == 4
    kinds = await _kinds(world)
    assert "node_lost" not in kinds
    assert "pipeline_lost" not in kinds
    assert kinds.count("pipeline_ready") == 2


async def test_a_hand_over_goes_on_over_a_restart(world: World) -> None:
    await world.start()
    routes = await world.routes(2)
    head = world.head(routes[0])
    draining, never = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        draining.set()
        await never.wait()

    head.on_drain = hold
    await world.stub.ReportInterruption(
        pb.ReportInterruptionRequest(node_id=head.node_id, notice_s=600.0), timeout=CALL_S
    )
    async with asyncio.timeout(CALL_S):
        await draining.wait()
    await world.stop()
    head.on_drain = None
    await world.start()
    await world.routes(2)
    await world.until_event("handover_finished", pipeline_id=routes[0].pipeline_id)
    kinds = await _kinds(world)
    assert kinds.count("handover_started") == 1
    assert "pipeline_lost" not in kinds
    calls = [name for name, _ in head.calls if name != "dissolve"]
    assert calls == ["hold", "form", "drain", "drain"]


async def test_a_restart_with_another_mesh_plans_anew(world: World) -> None:
    await world.start()
    before = await world.routes(2)
    await world.stop()
    await world.start(pipelines=1)
    (route,) = await world.routes(1)
    assert route.formation_id not in {r.formation_id for r in before}
    status = await world.status()
    assert [len(pipeline.stages) for pipeline in status.pipelines] == [4]
    assert len(world.provider.launched) == 4


async def test_first_launches_that_fail_are_tried_again(world: World) -> None:
    world.provider.fails = 3
    await world.start()
    await world.routes(2)
    status = await world.status()
    assert sorted(len(pipeline.stages) for pipeline in status.pipelines) == [2, 2]


async def test_stages_of_different_arithmetic_form_no_pipeline(world: World) -> None:
    def mix(engine: Any) -> None:
        engine.numerics_class = "other" if engine.incarnation == "i2" else "exact"

    world.provider.prepare = mix
    await world.start()
    event = await world.until_event("numerics_differ")
    assert event.attributes["classes"] == "exact, other"
    await world.routes(1)


async def test_a_node_that_died_while_nobody_watched_is_replaced_at_once(world: World) -> None:
    await world.start(restart_grace_s=600.0)
    before = await world.routes(2)
    victim = world.head(before[0]).node_id
    await world.stop()
    await world.provider.kill(victim, told=False)
    await world.start()
    await world.until_event("node_lost", node_id=victim)
    await world.routes(2)


async def test_nodes_end_with_the_controller_when_it_is_told_so(world: World) -> None:
    await world.start(end_nodes_on_stop=True)
    await world.routes(2)
    await world.stop()
    assert world.provider.engines == {}


async def test_nodes_of_their_own_form_pipelines_without_a_launch(world: World) -> None:
    await world.start(provider="external", expected_nodes=4)
    for number in range(4):
        await world.provider.start(f"own-{number}", NodeShape(1 << 30, 3.0 - number % 2))
    await world.routes(2)
    world.provider.strangers.add("own-0")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await world.stub.ReportInterruption(
            pb.ReportInterruptionRequest(node_id="own-0", kill=True), timeout=CALL_S
        )
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await world.provider.kill("own-0")
    await world.routes(1)
    await world.provider.start("own-4", NodeShape(1 << 30, 3.0))
    await world.routes(2)


async def test_the_event_log_goes_on_over_a_restart(world: World) -> None:
    await world.start()
    await world.routes(2)
    numbers = [event.number for event in await world.events()]
    assert numbers == list(range(1, len(numbers) + 1))
    await world.stop()
    await world.start()
    routes = await world.routes(2)
    await world.provider.kill(world.head(routes[0]).node_id)
    await world.until_event("node_lost")
    later = await world.events()
    assert [event.number for event in later] == list(range(1, len(later) + 1))
    assert len(later) > len(numbers)
    call = world.stub.WatchEvents(
        pb.WatchEventsRequest(from_number=3, no_wait=True), timeout=CALL_S
    )
    assert (await call.read()).number == 3
    call.cancel()


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Register", pb.RegisterRequest(node_id="n", incarnation="i", address="nowhere")),
        ("Register", pb.RegisterRequest(node_id="", incarnation="i", address="h:1")),
        ("Register", pb.RegisterRequest(node_id="n" * 1000, incarnation="i", address="h:1")),
        ("Register", pb.RegisterRequest(node_id="n", incarnation="i", address="h:1")),
        (
            "Register",
            pb.RegisterRequest(
                node_id="n",
                incarnation="i",
                address="h:1",
                memory_bytes=1,
                relative_speed=float("nan"),
            ),
        ),
        ("ReportInterruption", pb.ReportInterruptionRequest(node_id="n", notice_s=float("inf"))),
        ("ReportInterruption", pb.ReportInterruptionRequest(node_id="n", notice_s=-1)),
        ("ReportInterruption", pb.ReportInterruptionRequest(node_id="n", notice_s=1, kill=True)),
        ("Cancel", pb.CancelRequest(generation_id="g")),
        ("Cancel", pb.CancelRequest(generation_id="g", choice=500, reason=1)),
        ("Cancel", pb.CancelRequest(generation_id="../x", reason=1)),
        ("GetGeneration", pb.GetGenerationRequest(generation_id="a\nb")),
        ("Resume", pb.ResumeRequest(generation_id="")),
        ("Resume", pb.ResumeRequest(generation_id="g", last_epoch=2**31)),
    ],
)
async def test_bad_input_is_told_which_field(world: World, method: str, request_: Any) -> None:
    await world.start()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await getattr(world.stub, method)(request_, timeout=CALL_S)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(failed.value.details()) <= 400
    assert b"field" in dict(failed.value.trailing_metadata())["grpc-status-details-bin"]


async def test_an_unknown_node_cannot_be_interrupted(world: World) -> None:
    await world.start()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await world.stub.ReportInterruption(
            pb.ReportInterruptionRequest(node_id="nobody", kill=True), timeout=CALL_S
        )
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_bytes_that_are_no_message_end_in_a_status(world: World) -> None:
    await world.start()
    async with channels.open_channel(world.address, Role.CONTROLLER) as channel:
        for body in (b"\xff" * 7, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 1000):
            call = channel.unary_unary(
                "/shuntserve.controller.v1.ControllerService/Resume",
                request_serializer=lambda raw: raw,
                response_deserializer=lambda raw: raw,
            )
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call(body, timeout=CALL_S)
            assert failed.value.code() in {
                grpc.StatusCode.INTERNAL,
                grpc.StatusCode.UNKNOWN,
                grpc.StatusCode.INVALID_ARGUMENT,
            }
    await world.status()


async def test_a_message_over_the_limit_is_refused(world: World) -> None:
    await world.start(max_message_bytes=1 << 20)
    async with channels.open_channel(world.address, Role.CONTROLLER) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.GetGeneration(
                pb.GetGenerationRequest(generation_id="x" * (2 << 20)), timeout=CALL_S
            )
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await world.status()


async def test_another_version_in_the_store_is_told_and_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = ["ab" * 32]

    async def newest(*_: Any, **__: Any) -> str:
        return stored[-1]

    monkeypatch.setattr(deployments, "newest_digest", newest)
    monkeypatch.setattr(deployments, "STORE_CHECK_S", 0.01)
    await world.start()
    formations = {route.formation_id for route in await world.routes(2)}
    assert (await world.status()).newer_digest == ""
    stored.append("cd" * 32)
    event = await world.until_event("model_newer_in_store")
    assert event.attributes == {"model": "tiny", "served": "ab" * 32, "stored": "cd" * 32}
    status = await _until(world, lambda status: status.newer_digest == "cd" * 32)
    assert (status.model.model_id, status.model.digest) == ("tiny", "ab" * 32)
    assert {route.formation_id for route in await world.routes(2)} == formations
    stored.append("ab" * 32)
    await _until(world, lambda status: not status.newer_digest)
    assert (await _kinds(world)).count("model_newer_in_store") == 1
