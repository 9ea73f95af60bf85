from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from rich.console import Console
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.cli.mesh_directory import MeshState, ServiceRecord
from services.cli.mesh_status import leading, mesh_status
from services.cli.ports import free_ports
from services.cli.status_table import cost_line, status_table
from services.common.machine import FACTS

STATUS = controller_pb2.GetStatusResponse(
    workloads=[
        controller_pb2.WorkloadStatus(model_id="m", arrival_rate_rps=1.5, input_tokens=80.0, open=2)
    ],
    nodes=[
        controller_pb2.NodeStatus(
            node_id="n0",
            pid=os.getpid(),
            incarnation="i0",
            state=controller_pb2.NODE_STATE_READY,
            pipeline_id="p0",
            stage_index=0,
            offer_id="spot-a",
            declared=True,
            backend="vllm",
            machine=common_pb2.MachineFacts(
                instance_type="big",
                pool="a",
                spot=True,
                relative_speed=3.0,
                cores=2.0,
                memory_bytes=1 << 30,
                devices=common_pb2.Devices(
                    devices=[common_pb2.Device(name="L4", memory_bytes=3 << 29)] * 2
                ),
                declared=["instance_type", "memory_bytes", "pool", "relative_speed", "spot"],
            ),
        ),
        controller_pb2.NodeStatus(node_id="n1", state=controller_pb2.NODE_STATE_STARTING),
        controller_pb2.NodeStatus(
            node_id="n2", pid=os.getpid(), state=controller_pb2.NODE_STATE_LOST
        ),
    ],
    faults=[
        controller_pb2.Fault(
            kind=controller_pb2.FAULT_KIND_LOAD,
            cause="no head_dim of 3",
            node_id="n0",
            pipeline_id="p0",
            since_unix_s=5.0,
            failures=1,
            permanent=True,
        )
    ],
    pipelines=[
        controller_pb2.PipelineStatus(
            pipeline_id="p0",
            state=controller_pb2.PIPELINE_STATE_DRAINING,
            formation_id="f0",
            phase=controller_pb2.PIPELINE_PHASE_PREFILL,
            stages=[
                controller_pb2.StageStatus(
                    node_id="n0",
                    layers=common_pb2.LayerRange(start=0, end=18),
                    tp_degree=1,
                    backend="vllm",
                )
            ],
        )
    ],
    generations=[
        controller_pb2.GenerationStatus(
            generation_id="g0",
            epoch=2,
            pipeline_id="p0",
            journaled_tokens=9,
            standing=controller_pb2.STANDING_RUNNING,
            moved_by=controller_pb2.MOVED_BY_KV,
            inexact_from=[9],
            unread=True,
        )
    ],
    finished_generations=3,
    cancelled_generations=2,
    model=common_pb2.ModelRef(model_id="m", digest="ab"),
    newer_digest="cd",
    deployments=[
        controller_pb2.DeploymentView(
            model=common_pb2.ModelRef(model_id="m", digest="ab"),
            aim=controller_pb2.Aim(objective="throughput", tpot_target_s=0.5, weight=1.0),
            ready_pipelines=1,
            newer_digest="cd",
        ),
        controller_pb2.DeploymentView(
            model=common_pb2.ModelRef(model_id="other", digest="ef"),
            aim=controller_pb2.Aim(objective="goodput-per-cost", weight=2.0),
            unusable="odd head_dim",
        ),
    ],
    plan=controller_pb2.PlanStatus(
        number=3,
        adopted_unix_s=1.5,
        causes=["node_lost", "offers_changed"],
        deployments=[
            controller_pb2.DeploymentStatus(
                model=common_pb2.ModelRef(model_id="m", digest="ab"),
                objective="throughput",
                pipeline_ids=["p0"],
            )
        ],
    ),
    offers=[
        controller_pb2.OfferStatus(
            offer_id="spot-a",
            instance_type="big",
            memory_bytes=1 << 30,
            relative_speed=3.0,
            device_type="cpu",
            backend="vllm",
            count=4,
            running=1,
            price_per_hour=0.5,
            pool="a",
            spot=True,
            interruptions_per_hour=0.25,
            launch_s=2.0,
            declared=True,
        ),
        controller_pb2.OfferStatus(offer_id="own", instance_type="own"),
    ],
    budget_per_hour=0.75,
    strategy="migration",
    cost_per_hour=0.5,
    spares=[
        controller_pb2.SpareStatus(
            node_id="n1",
            model_id="m",
            held=[common_pb2.LayerRange(start=3, end=7), common_pb2.LayerRange(start=0, end=3)],
            lacks=[common_pb2.LayerRange(start=7, end=9)],
            price_per_hour=0.25,
        ),
        controller_pb2.SpareStatus(node_id="n9"),
    ],
    spares_cost_per_hour=0.25,
)


UNKNOWN = {"value": None, "source": "unknown"}


class _Controller(controller_pb2_grpc.ControllerServiceServicer):
    """Gives its nodes in pages of one."""

    async def GetStatus(self, request: Any, context: Any) -> controller_pb2.GetStatusResponse:
        number = int(request.page_token or 0)
        answer = controller_pb2.GetStatusResponse()
        if not request.page_token:
            answer.MergeFrom(STATUS)
            answer.ClearField("nodes")
        answer.nodes.append(STATUS.nodes[number])
        answer.next_page_token = str(number + 1) if number + 1 < len(STATUS.nodes) else ""
        return answer


@pytest.fixture
async def address() -> AsyncIterator[str]:
    server = grpc.aio.server()
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(_Controller(), server)
    health = health_aio.HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


def _rendered(status: dict[str, Any]) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(status_table(status))
    return console.export_text()


def _state(*services: ServiceRecord) -> MeshState:
    return MeshState("abc", 1, "m", "ready", "ready", services)


async def test_the_status_has_the_documented_shape(address: str) -> None:
    router = ServiceRecord("router-0", 0, f"127.0.0.1:{free_ports(1)[0]}", "http://127.0.0.1:8080")
    status = await mesh_status(
        _state(ServiceRecord("controller", os.getpid(), address, None), router)
    )
    assert status == {
        "faults": [
            {
                "kind": "load",
                "cause": "no head_dim of 3",
                "node": "n0",
                "pipeline": "p0",
                "since_unix_s": 5.0,
                "failures": 1,
                "permanent": True,
            }
        ],
        "model": {"id": "m", "digest": "ab", "newer_in_store": "cd"},
        "deployments": [
            {
                "model": "m",
                "digest": "ab",
                "objective": "throughput",
                "ttft_target_s": None,
                "tpot_target_s": 0.5,
                "weight": 1.0,
                "ready_pipelines": 1,
                "unusable": None,
                "newer_in_store": "cd",
            },
            {
                "model": "other",
                "digest": "ef",
                "objective": "goodput-per-cost",
                "ttft_target_s": None,
                "tpot_target_s": None,
                "weight": 2.0,
                "ready_pipelines": 0,
                "unusable": "odd head_dim",
                "newer_in_store": None,
            },
        ],
        "plan": {
            "number": 3,
            "deployments": [{"model": "m", "objective": "throughput", "pipelines": ["p0"]}],
            "adopted_unix_s": 1.5,
            "causes": ["node_lost", "offers_changed"],
        },
        "services": [
            {
                "name": "controller",
                "pid": os.getpid(),
                "http": None,
                "grpc": address,
                "state": "ready",
                "reason": None,
            },
            {
                "name": "router-0",
                "pid": None,
                "http": "http://127.0.0.1:8080",
                "grpc": router.grpc,
                "state": "down",
                "reason": None,
            },
        ],
        "nodes": [
            {
                "id": "n0",
                "pid": os.getpid(),
                "incarnation": "i0",
                "state": "ready",
                "pipeline": "p0",
                "stage": 0,
                "offer": "spot-a",
                "declared": True,
                "backend": "vllm",
                "machine": {
                    "instance_type": {"value": "big", "source": "declared"},
                    "zone": UNKNOWN,
                    "pool": {"value": "a", "source": "declared"},
                    "spot": {"value": True, "source": "declared"},
                    "relative_speed": {"value": 3.0, "source": "declared"},
                    "cores": {"value": 2.0, "source": "found"},
                    "memory_bytes": {"value": 1 << 30, "source": "declared"},
                    "devices": {
                        "value": ({"name": "L4", "memory_bytes": 3 << 29},) * 2,
                        "source": "found",
                    },
                    "network_gbps": UNKNOWN,
                    "instance_id": UNKNOWN,
                },
            },
            {
                "id": "n1",
                "pid": None,
                "incarnation": None,
                "state": "starting",
                "pipeline": None,
                "stage": None,
                "offer": None,
                "declared": False,
                "backend": None,
                "machine": dict.fromkeys(FACTS, UNKNOWN),
            },
            {
                "id": "n2",
                "pid": None,
                "incarnation": None,
                "state": "lost",
                "pipeline": None,
                "stage": None,
                "offer": None,
                "declared": False,
                "backend": None,
                "machine": dict.fromkeys(FACTS, UNKNOWN),
            },
        ],
        "pipelines": [
            {
                "id": "p0",
                "state": "draining",
                "phase": "prefill",
                "formation": "f0",
                "stages": [{"node": "n0", "layers": [0, 18], "tp": 1, "backend": "vllm"}],
            }
        ],
        "generations": [
            {
                "id": "g0",
                "epoch": 2,
                "pipeline": "p0",
                "journaled": 9,
                "standing": "running",
                "unread": True,
                "moved_by": "kv",
                "inexact_from": [9],
            }
        ],
        "offers": [
            {
                "id": "spot-a",
                "instance_type": "big",
                "count": 4,
                "running": 1,
                "price_per_hour": 0.5,
                "pool": "a",
                "spot": True,
                "interruptions_per_hour": 0.25,
                "relative_speed": 3.0,
                "backend": "vllm",
                "memory_bytes": 1 << 30,
                "device_type": "cpu",
                "launch_s": 2.0,
                "declared": True,
            },
            {
                "id": "own",
                "instance_type": "own",
                "count": 0,
                "running": 0,
                "price_per_hour": None,
                "pool": "",
                "spot": False,
                "interruptions_per_hour": 0.0,
                "relative_speed": 0.0,
                "backend": "",
                "memory_bytes": 0,
                "device_type": "",
                "launch_s": 0.0,
                "declared": False,
            },
        ],
        "budget_per_hour": 0.75,
        "strategy": "migration",
        "cost_per_hour": 0.5,
        "on_demand_cost_per_hour": None,
        "spares": [
            {
                "node": "n1",
                "model": "m",
                "layers": [3, 7],
                "held": [[3, 7], [0, 3]],
                "lacks": [[7, 9]],
                "price_per_hour": 0.25,
            },
            {
                "node": "n9",
                "model": None,
                "layers": None,
                "held": [],
                "lacks": [],
                "price_per_hour": None,
            },
        ],
        "spares_cost_per_hour": 0.25,
        "workloads": [
            {
                "model": "m",
                "arrival_rate_rps": 1.5,
                "input_tokens": 80.0,
                "output_tokens": None,
                "open": 2,
            }
        ],
        "finished_generations": 3,
        "cancelled_generations": 2,
    }


async def test_without_its_controller_a_mesh_still_has_a_status() -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    status = await mesh_status(_state(ServiceRecord("controller", os.getpid(), nobody, None)))
    assert status["services"][0]["state"] == "starting"
    assert status["model"] == {"id": None, "digest": None, "newer_in_store": None}
    assert status["nodes"] == status["pipelines"] == status["generations"] == []


async def test_the_controller_that_leads_is_asked_and_the_other_stands_by(address: str) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    follows = ServiceRecord("controller", os.getpid(), nobody, None)
    leads = ServiceRecord("standby-1", os.getpid(), address, None)
    status = await mesh_status(_state(follows, leads))
    assert [service["state"] for service in status["services"]] == ["standby", "ready"]
    assert status["nodes"]
    assert await leading(_state(follows, leads)) == address
    gone = ServiceRecord("standby-1", 0, address, None)
    assert await leading(_state(follows, gone)) == nobody
    assert await leading(_state(gone)) is None


async def test_a_service_whose_process_is_dead_is_down_and_names_no_pid(address: str) -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await child.wait()
    status = await mesh_status(_state(ServiceRecord("controller", child.pid, address, None)))
    assert (status["services"][0]["pid"], status["services"][0]["state"]) == (None, "down")


async def test_what_keeps_failing_stands_first(address: str) -> None:
    status = await mesh_status(_state(ServiceRecord("controller", os.getpid(), address, None)))
    first = _rendered(status).splitlines()[0]
    assert first == "n0 cannot load its stage of p0, not tried again: no head_dim of 3"


async def test_the_plan_stands_in_the_table_with_its_age_and_causes(address: str) -> None:
    status = await mesh_status(_state(ServiceRecord("controller", os.getpid(), address, None)))
    said = _rendered(status)
    assert "plan 3, adopted " in said
    assert " ago, because of node_lost, offers_changed, by the strategy migration" in said
    assert "strategy" not in _rendered({**status, "strategy": "full"})
    assert "m for throughput: p0" in said
    status["plan"]["deployments"][0]["pipelines"] = [f"p{n}" for n in range(7)]
    assert "m for throughput: 7 pipelines" in _rendered(status)
    status["plan"] = None
    assert "no plan yet" in _rendered(status)
    status["model"]["id"] = None
    assert "no plan yet" not in _rendered(status)


async def test_the_machines_stand_in_the_table_with_a_mark_at_what_was_declared(
    address: str,
) -> None:
    status = await mesh_status(_state(ServiceRecord("controller", os.getpid(), address, None)))
    status["nodes"].append(status["nodes"][0] | {"id": "n5"})
    lines = _rendered(status).splitlines()
    (row,) = [line for line in lines if "2 x L4, 1.5 GiB" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["n0, n5", "big*", "3*", "2", "1 GiB*", "2 x L4, 1.5 GiB", "a*", "spot*"]
    assert "* declared by the provider, not found" in lines
    for node in status["nodes"]:
        for fact in node["machine"].values():
            fact["source"] = "found"
    assert "*" not in _rendered(status)
    for node in status["nodes"]:
        node["machine"] = dict.fromkeys(FACTS, UNKNOWN)
    assert "instance type" not in _rendered(status).split("offer")[0]


async def test_the_market_stands_in_the_table_where_it_names_prices(address: str) -> None:
    status = await mesh_status(_state(ServiceRecord("controller", os.getpid(), address, None)))
    said = _rendered(status)
    for part in ("spot-a", "1 of 4", "0.5 an hour now; the on-demand price of some"):
        assert part in said, said
    for offer in status["offers"]:
        offer["price_per_hour"] = None
    assert "an hour" not in _rendered(status)


@pytest.mark.parametrize(
    ("cost", "on_demand", "line"),
    [
        (None, 1.0, "the nodes' cost is not known"),
        (1.0, 4.0, "1 an hour now, 3 (75%) saved against 4 on demand"),
        (0.0, 0.0, "0 an hour now"),
        (2.0, 1.0, "2 an hour now, -1 (-100%) saved against 1 on demand"),
    ],
)
def test_the_cost_is_told_against_on_demand(
    cost: float | None, on_demand: float | None, line: str
) -> None:
    assert cost_line(cost, on_demand) == line


async def test_what_is_asked_of_the_model_stands_in_the_table(address: str) -> None:
    status = await mesh_status(_state(ServiceRecord("controller", os.getpid(), address, None)))
    assert "m: 1.5 requests a second of 80 prompt tokens" in _rendered(status)
