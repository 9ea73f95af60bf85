"""PlacementService as its callers see it."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.placement.v1 import placement_pb2 as pb

from services.placement.estimate.model import BUILT_IN

TIMEOUT_S = 60.0
PAPER = [("g5.12xlarge", 2, 2.29), ("g6.12xlarge", 3, 1.94), ("g6e.xlarge", 4, 0.70)]


def typed(*rows: tuple[str, int, float], **more) -> list[pb.Node]:
    return [
        pb.Node(node_id=f"{name}-{i}", instance_type=name, price_per_hour=price, **more)
        for name, count, price in rows
        for i in range(count)
    ]


def cpus() -> list[pb.Node]:
    return [
        pb.Node(
            node_id=f"n{i}",
            device_type="cpu",
            device_count=1,
            memory_bytes=2 << 30,
            relative_speed=speed,
        )
        for i, speed in enumerate((3.0, 2.0, 3.0, 2.0))
    ]


def check_layers(reply, layers: int) -> None:
    used = []
    for pipeline in reply.pipelines:
        at = 0
        for stage in pipeline.stages:
            assert stage.layers.start == at < stage.layers.end
            assert stage.tp_degree >= 1
            at = stage.layers.end
            used.append(stage.node_id)
        assert at == layers
    assert len(used) == len(set(used))


def paper_request(**more) -> pb.PlanRequest:
    return pb.PlanRequest(
        model=pb.ModelSpec(name="llama-3.1-70b"),
        nodes=typed(*PAPER),
        workload=pb.Workload(input_tokens=763, output_tokens=232),
        calibration=pb.CALIBRATION_NOMINAL,
        **more,
    )


async def refused(call, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return caught.value.details()


async def test_declared_nodes_get_layers_in_proportion_to_their_speed(stub):
    reply = await stub.Plan(
        pb.PlanRequest(
            model=pb.ModelSpec(config_json=(BUILT_IN / "smollm2-135m.json").read_text()),
            nodes=cpus(),
            planner=pb.PLANNER_PROPORTIONAL,
            pipeline_count=2,
        ),
        timeout=TIMEOUT_S,
    )
    check_layers(reply, 30)
    spans = [[s.layers.end - s.layers.start for s in p.stages] for p in reply.pipelines]
    assert spans == [[18, 12], [18, 12]]
    assert all(e.throughput_tokens_per_s > 0 for e in reply.pipeline_estimates)


async def test_the_default_planner_carries_more_than_the_best_known_plan(stub):
    reply = await stub.Plan(paper_request(), timeout=TIMEOUT_S)
    check_layers(reply, 80)
    assert reply.planner == pb.PLANNER_SHUNTSERVE
    assert reply.estimate.throughput_rps >= 7.333
    assert reply.complete
    assert not reply.HasField("upper_bound_rps")
    assert reply.reasons
    assert reply.solve_time_s > 0
    each = reply.pipeline_estimates
    assert sum(e.throughput_rps for e in each) == pytest.approx(reply.estimate.throughput_rps)
    for estimate, pipeline in zip(each, reply.pipelines, strict=True):
        assert len(estimate.stages) == len(pipeline.stages)
        assert estimate.kv_blocks > 0 < estimate.max_batch
        assert estimate.batch_latency_s > estimate.single_request_latency_s > 0
        assert all(s.weight_bytes_per_device and s.kv_bytes_per_device for s in estimate.stages)
        assert all(s.prefill_s > s.decode_s > 0 and s.bound_by for s in estimate.stages)


@pytest.mark.parametrize("name", [n for n in pb.Planner.keys() if n != "PLANNER_HELIX"])  # noqa: SIM118
async def test_every_planner_answers(stub, name):
    number = pb.Planner.Value(name)
    request = pb.PlanRequest(
        model=pb.ModelSpec(name="llama-3.1-8b"),
        nodes=typed(("g5.xlarge", 2, 0), ("g6.12xlarge", 1, 0)),
        planner=number,
        seed=3,
    )
    reply = await stub.Plan(request, timeout=TIMEOUT_S)
    check_layers(reply, 32)
    assert reply.planner == (number or pb.PLANNER_SHUNTSERVE)
    assert reply.HasField("upper_bound_rps") == (number == pb.PLANNER_EXACT)


async def test_objectives_limits_and_phases_cross_the_wire(stub):
    cheap = pb.Objective(
        kind=pb.OBJECTIVE_KIND_GOODPUT_PER_COST,
        budget_per_hour=9.0,
        ttft_target_s=100.0,
        tpot_target_s=10.0,
        uniform_tp=True,
        min_on_demand_share=0.0,
        recovery_s=60.0,
    )
    nodes = typed(*PAPER, pool="one", spot=True, interruptions_per_hour=1.0)
    request = paper_request(objective=cheap)
    del request.nodes[:]
    request.nodes.extend(nodes)
    request.workload.arrival_rate_rps = 0.5
    reply = await stub.Plan(request, timeout=TIMEOUT_S)
    assert reply.estimate.goodput_rps < 0.5
    assert {s.tp_degree for p in reply.pipelines for s in p.stages} in ({1}, {2}, {4})
    assert 0 < reply.estimate.ttft_s <= 100
    assert 0 < reply.estimate.tpot_s <= 10
    assert reply.estimate.end_to_end_s > reply.estimate.ttft_s
    split = paper_request(
        objective=pb.Objective(allow_phase_split=True), planner=pb.PLANNER_THUNDERSERVE
    )
    apart = await stub.Plan(split, timeout=TIMEOUT_S)
    assert {p.phase for p in apart.pipelines} == {pb.PHASE_PREFILL, pb.PHASE_DECODE}


def large_request() -> pb.PlanRequest:
    request = paper_request()
    del request.nodes[:]
    request.nodes.extend(
        typed(("g5.xlarge", 200, 0), ("g6.xlarge", 200, 0), ("g6e.xlarge", 200, 0))
    )
    return request


async def test_a_search_cut_short_answers_the_best_found_so_far(hurried_stub):
    reply = await hurried_stub.Plan(large_request(), timeout=TIMEOUT_S)
    check_layers(reply, 80)
    assert not reply.complete


async def test_a_plan_is_answered_before_its_deadline(stub):
    check_layers(await stub.Plan(large_request(), timeout=TIMEOUT_S / 2), 80)


async def test_too_short_a_deadline_is_refused_as_such(stub):
    await refused(stub.Plan(large_request(), timeout=0.001), grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_a_cancelled_search_stops_and_the_service_lives(stub):
    request = paper_request(planner=pb.PLANNER_HEXGEN)
    calls = [stub.Plan(request, timeout=TIMEOUT_S) for _ in range(6)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    for call in calls:
        with pytest.raises(asyncio.CancelledError):
            await call
    await stub.Plan(paper_request(planner=pb.PLANNER_VLLM), timeout=TIMEOUT_S)


def stages(*rows: tuple[str, int, int]) -> pb.Pipeline:
    return pb.Pipeline(
        stages=[
            pb.Stage(node_id=name, layers=common_pb2.LayerRange(start=start, end=end))
            for name, start, end in rows
        ]
    )


PUBLISHED = stages(
    ("g6.12xlarge-0", 0, 20),
    ("g6.12xlarge-1", 20, 41),
    ("g6.12xlarge-2", 41, 62),
    ("g6e.xlarge-0", 62, 72),
    ("g6e.xlarge-1", 72, 80),
)


async def test_estimate_and_explain_agree(stub):
    common = {
        "model": pb.ModelSpec(name="llama-3.1-70b"),
        "nodes": typed(*PAPER),
        "pipelines": [PUBLISHED],
        "workload": pb.Workload(input_tokens=763, output_tokens=232),
        "calibration": pb.CALIBRATION_NOMINAL,
    }
    estimate = await stub.Estimate(pb.EstimateRequest(**common), timeout=TIMEOUT_S)
    assert (estimate.pipeline_estimates[0].kv_blocks, estimate.pipeline_estimates[0].max_batch) == (
        28730,
        461,
    )
    explained = (await stub.Explain(pb.ExplainRequest(**common), timeout=TIMEOUT_S)).pipelines[0]
    assert explained.estimate == estimate.pipeline_estimates[0]
    for stage, one in zip(explained.stages, explained.estimate.stages, strict=True):
        assert sum(op.prefill_s for op in stage.operations) == pytest.approx(one.prefill_s)
        assert sum(op.decode_s for op in stage.operations) == pytest.approx(one.decode_s)
        assert all(op.name and op.prefill_bound and op.decode_bound for op in stage.operations)
        assert stage.bound_by == one.bound_by
        assert {"one layer more", "one layer fewer"} <= {a.change for a in stage.alternatives}
        fitting = [a for a in stage.alternatives if a.throughput_rps]
        assert all(a.prefill_s > a.decode_s > 0 for a in fitting)
    assert any(stage.prefill_bottleneck for stage in explained.stages)
    assert any(stage.decode_bottleneck for stage in explained.stages)
    assert any(stage.memory_bottleneck for stage in explained.stages)


async def test_a_lost_node_is_replanned_with_its_moves(stub):
    plan = await stub.Plan(paper_request(), timeout=TIMEOUT_S)
    lost = plan.pipelines[0].stages[0].node_id
    request = pb.ReplanRequest(
        model=pb.ModelSpec(name="llama-3.1-70b"),
        nodes=[node for node in typed(*PAPER) if node.node_id != lost],
        running=plan.pipelines,
        resident=[
            pb.ResidentLayers(
                node_id=plan.pipelines[0].stages[1].node_id,
                layers=common_pb2.LayerRange(start=0, end=5),
                tp_degree=4,
            )
        ],
        workload=pb.Workload(input_tokens=763, output_tokens=232),
        objective=pb.Objective(),
        planner=pb.PLANNER_SHUNTSERVE,
        calibration=pb.CALIBRATION_NOMINAL,
        horizon_s=3600.0,
        notice_s=0.0,
        load_bytes_per_s=2e9,
        generations=[40] * len(plan.pipelines),
        tokens_per_generation=800,
    )
    reply = await stub.Replan(request, timeout=TIMEOUT_S)
    assert reply.change or len(reply.pipelines) == 1
    assert lost not in {s.node_id for p in reply.pipelines for s in p.stages}
    assert len(reply.node_moves) == sum(len(p.stages) for p in reply.pipelines)
    assert len(reply.pipeline_estimates) == len(reply.pipelines)
    assert reply.estimate.throughput_rps >= reply.running_estimate.throughput_rps > 0
    assert all(m.load_s == pytest.approx(m.load_bytes / 2e9) for m in reply.node_moves)
    assert all(m.layers.end > m.layers.start for m in reply.node_moves)
    assert sum(m.resident_bytes for m in reply.node_moves) > 0
    moved = reply.generation_moves[0]
    assert (moved.running_pipeline, moved.handover) == (0, pb.HANDOVER_REPLAY)
    assert (moved.replay_tokens, moved.kv_bytes) == (32_000, 0)
    assert moved.handover_s > 0
    assert reply.reasons
    assert reply.solve_time_s > 0
    request.improve = True
    better = await stub.Replan(request, timeout=TIMEOUT_S)
    assert better.gained_requests - better.lost_requests >= (
        reply.gained_requests - reply.lost_requests - 1e-6
    )
    assert better.time_to_serve_s >= 0


def two_models(**more) -> pb.ReplanDeploymentsRequest:
    """One has lost its node, the other one has both that the budget pays for; a third may be had
    for the same."""
    nodes = typed(("g6e.xlarge", 3, 1.0))
    nodes[2].ready_in_s = 30.0
    return pb.ReplanDeploymentsRequest(
        nodes=nodes,
        deployments=[
            pb.DeploymentSpec(
                model=pb.ModelSpec(name="llama-3.1-8b"),
                running=[stages(("gone", 0, 32))],
                resident=[
                    pb.ResidentLayers(
                        node_id="g6e.xlarge-2",
                        layers=common_pb2.LayerRange(start=0, end=16),
                        tp_degree=1,
                    )
                ],
            ),
            pb.DeploymentSpec(
                model=pb.ModelSpec(name="smollm2-135m"),
                running=[stages((f"g6e.xlarge-{i}", 0, 30)) for i in range(2)],
            ),
        ],
        calibration=pb.CALIBRATION_NOMINAL,
        budget_per_hour=2.0,
        horizon_s=3600.0,
        load_bytes_per_s=2e9,
        **more,
    )


async def test_what_one_model_lost_and_another_has_is_divided_anew(stub):
    reply = await stub.ReplanDeployments(two_models(nodes_min=1, nodes_max=2), timeout=TIMEOUT_S)
    assert reply.change
    assert reply.gain == float("inf")
    again, less = reply.plans
    check_layers(again, 32)
    check_layers(less, 30)
    assert len(again.pipelines) == len(less.pipelines) == 1
    assert again.estimate.cost_per_hour + less.estimate.cost_per_hour == pytest.approx(2.0)
    (near,) = (move for move in reply.node_moves if move.node_id == "g6e.xlarge-2")
    assert near.load_bytes > 0
    assert near.resident_bytes > 0
    assert near.load_s == pytest.approx(near.load_bytes / 2e9)
    assert reply.time_to_serve_s == pytest.approx(30.0 + near.load_s)
    assert [one.lacks for one in reply.alternatives] == ["no pipeline of llama-3.1-8b"]
    assert len(reply.reasons) == 2
    assert reply.solve_time_s > 0
    assert reply.complete

    settled = two_models(hysteresis=0.5, seed=1)
    del settled.nodes[2], settled.deployments[0].resident[:], settled.deployments[1].running[1:]
    settled.deployments[0].running[0].MergeFrom(pb.Pipeline())
    settled.deployments[0].running[0].stages[0].node_id = "g6e.xlarge-1"
    stays = await stub.ReplanDeployments(settled, timeout=TIMEOUT_S)
    assert not stays.change
    assert [len(plan.pipelines) for plan in stays.plans] == [1, 1]


async def test_bad_questions_of_several_models_name_their_field(stub):
    bad = {
        "budget_per_hour": lambda r: setattr(r, "budget_per_hour", float("nan")),
        "nodes_max": lambda r: r.MergeFrom(pb.ReplanDeploymentsRequest(nodes_min=3, nodes_max=2)),
        "horizon_s": lambda r: setattr(r, "horizon_s", float("inf")),
        "hysteresis": lambda r: setattr(r, "hysteresis", -1.0),
        "at least one": lambda r: r.ClearField("nodes"),
        "deployment": lambda r: r.ClearField("deployments"),
        "resident": lambda r: setattr(r.deployments[0].resident[0], "node_id", "gone"),
        "ready_in_s": lambda r: setattr(r.nodes[0], "ready_in_s", -1.0),
    }
    for named, spoil in bad.items():
        request = two_models()
        spoil(request)
        call = stub.ReplanDeployments(request, timeout=TIMEOUT_S)
        said = await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
        assert named.removesuffix("s") in said or "no node" in said, (named, said)


async def test_what_does_not_fit_says_what_is_missing(stub):
    request = paper_request()
    del request.nodes[4:]
    del request.nodes[1:]
    said = await refused(stub.Plan(request, timeout=TIMEOUT_S), grpc.StatusCode.FAILED_PRECONDITION)
    assert "GiB short" in said
    big = pb.EstimateRequest(
        model=pb.ModelSpec(name="llama-3.1-70b"),
        nodes=typed(("g6e.xlarge", 2, 0)),
        pipelines=[stages(("g6e.xlarge-0", 0, 40), ("g6e.xlarge-1", 40, 80))],
    )
    said = await refused(stub.Estimate(big, timeout=TIMEOUT_S), grpc.StatusCode.FAILED_PRECONDITION)
    assert "GiB short on stage 0" in said


BAD = {
    "no nodes": lambda r: r.ClearField("nodes"),
    "no model": lambda r: r.ClearField("model"),
    "a path": lambda r: r.model.MergeFrom(pb.ModelSpec(name="../../etc/passwd")),
    "not JSON": lambda r: r.model.MergeFrom(pb.ModelSpec(config_json="{")),
    "an absurd config": lambda r: r.model.MergeFrom(
        pb.ModelSpec(config_json=json.dumps({"model_type": "llama", "hidden_size": 2**63}))
    ),
    "twice": lambda r: r.nodes.append(r.nodes[0]),
    "nameless": lambda r: r.nodes.append(pb.Node(instance_type="g6.xlarge")),
    "no type": lambda r: r.nodes.append(pb.Node(node_id="x")),
    "nan speed": lambda r: r.nodes.append(
        pb.Node(node_id="x", device_type="l4", relative_speed=float("nan"))
    ),
    "many devices": lambda r: r.nodes.append(
        pb.Node(node_id="x", device_type="l4", device_count=1 << 31)
    ),
    "many tokens": lambda r: r.workload.MergeFrom(pb.Workload(input_tokens=1 << 31)),
    "nan rate": lambda r: r.workload.MergeFrom(pb.Workload(arrival_rate_rps=float("nan"))),
    "nan budget": lambda r: r.objective.MergeFrom(pb.Objective(budget_per_hour=float("nan"))),
    "share over one": lambda r: r.objective.MergeFrom(pb.Objective(min_on_demand_share=1.5)),
    "too many pipelines": lambda r: r.MergeFrom(pb.PlanRequest(pipeline_count=10)),
    "unknown planner": lambda r: setattr(r, "planner", 99),
    "unknown calibration": lambda r: setattr(r, "calibration", 99),
    "unknown objective": lambda r: setattr(r.objective, "kind", 99),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_an_invalid_argument(stub, name):
    request = paper_request()
    BAD[name](request)
    await refused(stub.Plan(request, timeout=TIMEOUT_S), grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("name", [".", "config.json", "text"])
async def test_a_model_is_never_looked_for_among_the_server_s_files(
    stub, tmp_path, monkeypatch, name
):
    (tmp_path / "config.json").write_text((BUILT_IN / "smollm2-135m.json").read_text())
    (tmp_path / "text").write_bytes(b"\xff")
    monkeypatch.chdir(tmp_path)
    request = paper_request()
    request.model.name = name
    said = await refused(stub.Plan(request, timeout=TIMEOUT_S), grpc.StatusCode.NOT_FOUND)
    assert "llama-3.1-70b" in said


async def test_an_unknown_type_is_not_found(stub):
    request = paper_request()
    request.nodes.append(pb.Node(node_id="x", instance_type="g9.huge"))
    said = await refused(stub.Plan(request, timeout=TIMEOUT_S), grpc.StatusCode.NOT_FOUND)
    assert "g6e.xlarge" in said
