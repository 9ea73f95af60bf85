"""Commands that deploy and undeploy, against a controller that answers as it is told."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from rich.console import Console
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.cli import deploy as commands
from services.cli.deploy import Wish, deploy, undeploy
from services.cli.mesh_directory import MeshDirectory, MeshError, MeshState, ServiceRecord
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.foreign_models import save_quantised

DIGEST = "ab" * 32


class Controller(controller_pb2_grpc.ControllerServiceServicer):
    """Loads for as many looks as the test says."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.refusal = ""
        self.looks = 2
        self.unusable = ""
        self.gone = False
        self.backends: list[str] = []

    async def Deploy(self, request: Any, context: Any) -> pb.DeployResponse:
        self.asked.append(request)
        if self.refusal:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refusal)
        return pb.DeployResponse(plan_number=4, model=request.model)

    async def Undeploy(self, request: Any, context: Any) -> pb.UndeployResponse:
        self.asked.append(request)
        if self.refusal:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refusal)
        return pb.UndeployResponse(plan_number=5)

    async def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:
        self.looks -= 1
        model = common_pb2.ModelRef(model_id="other", digest=DIGEST)
        ready = 0 if self.looks > 0 or self.unusable else 1
        view = pb.DeploymentView(model=model, ready_pipelines=ready, unusable=self.unusable)
        planned = pb.DeploymentStatus(model=model, pipeline_ids=["pipeline-3"])
        return pb.GetStatusResponse(
            deployments=[] if self.gone else [view],
            plan=pb.PlanStatus(number=4, deployments=[planned]),
            faults=[pb.Fault(kind=pb.FAULT_KIND_LOAD, cause="slow", pipeline_id="pipeline-3")],
            nodes=[pb.NodeStatus(node_id=name, backend=name) for name in self.backends],
        )


@pytest.fixture
async def controller() -> AsyncIterator[tuple[Controller, str]]:
    servicer, server = Controller(), grpc.aio.server()
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
def mesh(
    tmp_path: Path, controller: tuple[Controller, str], monkeypatch: pytest.MonkeyPatch
) -> MeshDirectory:
    """It runs; its store has the model."""
    directory = MeshDirectory(tmp_path)
    record = ServiceRecord("controller", os.getpid(), controller[1], None)
    directory.write(MeshState("abc", os.getpid(), "m", "ready", "ready", (record,)))
    monkeypatch.setattr(commands, "LOOK_S", 0.0)
    monkeypatch.setattr(commands.models, "import_if_missing", lambda *_: None)
    monkeypatch.setattr(commands.models, "newest", lambda *_: DIGEST)
    return directory


async def deployed(mesh: MeshDirectory, wish: Wish | None = None) -> str:
    """What the command says."""
    console = Console(file=io.StringIO(), record=True, width=200)
    await deploy(mesh, "other", wish or Wish(), console)
    return console.export_text()


async def test_it_returns_once_the_model_takes_requests(
    mesh: MeshDirectory, controller: tuple[Controller, str]
) -> None:
    said = await deployed(mesh, Wish("goodput-per-cost", 1.5, 0.25, 2.0))
    assert "other is deployed (plan 4)" in said
    servicer, _ = controller
    assert servicer.looks == 0
    (asked,) = servicer.asked
    assert (asked.model.model_id, asked.model.digest) == ("other", DIGEST)
    aim = asked.aim
    told = aim.objective, aim.ttft_target_s, aim.tpot_target_s, aim.weight
    assert told == ("goodput-per-cost", 1.5, 0.25, 2.0)


async def test_what_the_controller_refuses_is_said(
    mesh: MeshDirectory, controller: tuple[Controller, str]
) -> None:
    servicer, _ = controller
    servicer.refusal = "other does not fit beside m: 1.20 GiB short on 4 nodes"
    with pytest.raises(MeshError, match=r"1\.20 GiB short"):
        await deployed(mesh)
    with pytest.raises(MeshError, match=r"1\.20 GiB short"):
        await undeploy(mesh, "m")


async def test_what_its_engines_cannot_compute_is_refused_before_a_plan_is_made(
    mesh: MeshDirectory, controller: tuple[Controller, str], tmp_path: Path
) -> None:
    servicer, _ = controller
    save_quantised("awq", tmp_path / "source")
    with closing(open_source(tmp_path / "source")) as checkpoint:
        import_checkpoint(checkpoint, DirectoryBackend(mesh.store), "other")
    servicer.backends = ["native"]
    with pytest.raises(
        MeshError, match=r"^model other: the native backend cannot serve .*vllm can"
    ):
        await deployed(mesh)
    assert servicer.asked == []
    servicer.backends = ["native", "vllm"]
    assert "other is deployed" in await deployed(mesh)


async def test_it_waits_for_nothing_that_never_comes(
    mesh: MeshDirectory, controller: tuple[Controller, str]
) -> None:
    servicer, _ = controller
    servicer.unusable = "odd head_dim"
    with pytest.raises(MeshError, match="cannot be served: odd head_dim"):
        await deployed(mesh)
    servicer.gone = True
    with pytest.raises(MeshError, match="undeployed meanwhile"):
        await deployed(mesh)


async def test_it_says_what_it_waited_for_in_vain(
    mesh: MeshDirectory, controller: tuple[Controller, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "READY_S", -1.0)
    controller[0].looks = 9
    with pytest.raises(MeshError, match=r"goes on trying: .*slow.*shunt undeploy other"):
        await deployed(mesh)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
async def test_a_model_without_weight_is_refused(
    mesh: MeshDirectory, controller: tuple[Controller, str], weight: float
) -> None:
    with pytest.raises(MeshError, match="--weight is over 0"):
        await deployed(mesh, Wish(weight=weight))
    assert controller[0].asked == []


async def test_undeploying_names_the_model(
    mesh: MeshDirectory, controller: tuple[Controller, str]
) -> None:
    assert await undeploy(mesh, "other") == 5
    assert [request.model_id for request in controller[0].asked] == ["other"]


async def test_without_a_mesh_there_is_nobody_to_ask(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="no mesh"):
        await undeploy(MeshDirectory(tmp_path), "other")
