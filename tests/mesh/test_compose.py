"""The mesh as containers: built, started, asked, and robbed of an engine in mid-stream."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from services.common import channels, mesh_token

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "compose"
ENGINE = Path(__file__).with_name("docker_engine.py")
COMPOSE = Path(sys.executable).with_name("docker-compose")
ENGINES = ["engine-1", "engine-2", "engine-3", "engine-4"]
ONCE = {"token", "import"}
SERVICES = ONCE | {"tensorstore", "placement", "controller", "router", *ENGINES}
BUILD_TIMEOUT_S = 900
UP_TIMEOUT_S = 300

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_S + 2 * UP_TIMEOUT_S)


def _config(environment: Mapping[str, str], *arguments: str) -> dict[str, Any]:
    """What `docker compose config` makes of the files; needs no engine."""
    files = [f"--file={FILES / name}" for name in ("compose.yaml", *arguments)]
    command = [str(COMPOSE), *files, "--profile=observability", "config", "--format=json"]
    environment = {**os.environ, **environment}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    config: dict[str, Any] = json.loads(result.stdout)
    return config


def test_every_service_is_confined_and_checked() -> None:
    services = _config({})["services"]
    assert set(services) == SERVICES | {"jaeger", "prometheus"}
    for name in SERVICES:
        service = services[name]
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert name in ONCE or service["healthcheck"]["test"], name
        assert name == "import" or "/var/lib/shunt/mesh" in _mounted(service), name
    speeds = [services[name]["environment"]["SHUNT_ENGINE_RELATIVE_SPEED"] for name in ENGINES]
    assert speeds == ["3", "2", "3", "2"]


def _mounted(service: Mapping[str, Any]) -> list[str]:
    return [volume["target"] for volume in service["volumes"]]


def test_jaeger_and_prometheus_come_only_when_asked_for() -> None:
    services = _config({})["services"]
    for name in ("jaeger", "prometheus"):
        assert services[name]["profiles"] == ["observability"]
    assert all("profiles" not in services[name] for name in SERVICES)


def test_the_gpu_override_gives_each_engine_a_gpu_of_its_own() -> None:
    services = _config({}, "gpu.yaml")["services"]
    devices = [services[n]["deploy"]["resources"]["reservations"]["devices"] for n in ENGINES]
    assert [d[0]["device_ids"] for d in devices] == [["0"], ["1"], ["2"], ["3"]]
    for name in ENGINES:
        assert services[name]["environment"]["SHUNT_ENGINE_DEVICE"] == "cuda"
        assert services[name]["environment"]["SHUNT_ENGINE_STORE"] == "grpc://tensorstore:7004"


@dataclass(frozen=True)
class Containers:
    """The mesh of deploy/compose, up."""

    project: str
    environment: Mapping[str, str]
    files: tuple[str, ...]
    url: str

    def compose(self, *arguments: str, timeout_s: float = 120) -> str:
        files = [f"--file={name}" for name in self.files]
        command = [str(COMPOSE), f"--project-name={self.project}", *files, *arguments]
        return _run(command, self.environment, timeout_s)

    def inspect(self, service: str) -> dict[str, Any]:
        name = self.compose("ps", "--all", "--quiet", service).strip()
        found: list[dict[str, Any]] = json.loads(
            _run(["docker", "inspect", name], self.environment, 30)
        )
        return found[0]

    def address(self, service: str, port: int) -> str:
        networks = self.inspect(service)["NetworkSettings"]["Networks"]
        return f"{next(iter(networks.values()))['IPAddress']}:{port}"


def _run(command: list[str], environment: Mapping[str, str], timeout_s: float) -> str:
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if result.returncode != 0:
        said = (result.stderr + result.stdout)[-3000:]
        raise RuntimeError(f"{shlex.join(command[:8])} failed: {said}")
    return result.stdout


@pytest.fixture(scope="module")
def docker_host() -> Iterator[str]:
    """An engine; with SHUNT_TEST_INSTALL=1 its absence is a failure, else a reason to skip."""
    directory = os.environ.get("SHUNT_TEST_DOCKER_DIR") or f"{tempfile.gettempdir()}/shunt-docker"
    command = [sys.executable, str(ENGINE), "up", directory]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if result.returncode != 0:
        if os.environ.get("SHUNT_TEST_INSTALL") == "1":
            pytest.fail(result.stderr)
        pytest.skip(result.stderr.strip().splitlines()[-1])
    try:
        yield result.stdout.strip()
    finally:
        command[2] = "down"
        subprocess.run(command, timeout=120, check=True)


def _local_torch() -> Path | None:
    """torch's wheel for CPUs in a folder that pip is told to look in, if there is one."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        if key.endswith(".find-links'") or key.endswith(".find-links"):
            for folder in value.strip("'\"").split():
                found = sorted(Path(folder).glob("torch-2.13.0*-cp311-*.whl"))
                if found:
                    return found[-1]
    return None


def _import_wheel(wheel: Path, environment: Mapping[str, str], directory: Path) -> None:
    archive = directory / "wheels.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(wheel, wheel.name)
    _run(["docker", "import", str(archive), "shunt-wheels"], environment, 120)
    archive.unlink()


@pytest.fixture(scope="module")
def containers(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    first = meshes.free_ports(2)
    environment = {
        **os.environ,
        "SHUNT_HTTP_PORT": str(first),
        "SHUNT_GRPC_PORT": str(first + 1),
        "OTEL_EXPORTER_OTLP_ENDPOINT": "",
    }
    if docker_host:
        environment["DOCKER_HOST"] = docker_host
    wheel = _local_torch()
    if wheel is not None:
        _import_wheel(wheel, environment, tmp_path_factory.mktemp("wheels"))
        environment["SHUNT_WHEELS"] = "shunt-wheels"
    files = [str(FILES / "compose.yaml")]
    authorities = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if authorities:
        environment["SHUNT_CA"] = authorities
        files.append(str(FILES / "ca.yaml"))
    url = f"http://127.0.0.1:{first}"
    mesh = Containers(f"shunt-test-{os.getpid()}", environment, tuple(files), url)
    try:
        mesh.compose("build", timeout_s=BUILD_TIMEOUT_S)
        mesh.compose("up", "--no-build", "--wait", timeout_s=UP_TIMEOUT_S)
        yield mesh
    finally:
        mesh.compose("down", "--volumes", "--timeout", "3")


@pytest.fixture
async def controller(containers: Containers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    drawn = containers.compose("exec", "-T", "controller", "cat", "/var/lib/shunt/mesh/token")
    monkeypatch.setenv(mesh_token.VARIABLE, drawn.strip())
    async with channels.open_channel(containers.address("controller", 7001)) as channel:
        yield controller_pb2_grpc.ControllerServiceStub(channel)


async def _until_ready(controller: Any, pipelines: int) -> controller_pb2.GetStatusResponse:
    async with asyncio.timeout(90):
        while True:
            status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=5)
            states = [p.state for p in status.pipelines]
            if states.count(controller_pb2.PIPELINE_STATE_READY) >= pipelines:
                return status
            await asyncio.sleep(0.2)


async def test_no_container_runs_as_root_and_all_are_healthy(containers: Containers) -> None:
    for service in SERVICES - ONCE:
        found = containers.inspect(service)
        assert found["Config"]["User"] == "shunt", service
        assert found["State"]["Health"]["Status"] == "healthy", service


async def test_who_has_not_the_token_of_the_mesh_is_not_heard(containers: Containers) -> None:
    async with channels.open_channel(containers.address("controller", 7001)) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Register(controller_pb2.RegisterRequest(node_id="engine-1"), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_controller_that_was_made_anew_at_another_address_loses_nobody(
    containers: Containers, controller: Any
) -> None:
    await _until_ready(controller, 2)
    events = controller.WatchEvents(controller_pb2.WatchEventsRequest(no_wait=True), timeout=5)
    last = max([event.number async for event in events])
    before = containers.address("controller", 7001)
    containers.compose("rm", "--stop", "--force", "controller")
    network = f"{containers.project}_mesh"
    squatter = [*("docker", "run", "--detach", "--rm", "--network", network), "--entrypoint"]
    name = _run([*squatter, "sleep", "shunt-placement", "600"], containers.environment, 60).strip()
    try:
        containers.compose("up", "--no-build", "--no-deps", "--detach", "controller")
        after = containers.address("controller", 7001)
        assert after != before
        async with channels.open_channel(after) as channel:
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            await asyncio.wait_for(channel.channel_ready(), 60)
            status = await _until_ready(stub, 2)
            assert {node.node_id for node in status.nodes} == set(ENGINES)
            await asyncio.sleep(5)  # who was not found by then counts as lost
            request = controller_pb2.WatchEventsRequest(no_wait=True, from_number=last + 1)
            kinds = [event.kind async for event in stub.WatchEvents(request, timeout=5)]
            assert "node_lost" not in kinds, kinds
    finally:
        _run(["docker", "rm", "--force", name], containers.environment, 60)


async def test_a_stream_outlives_the_engine_container_that_began_it(
    containers: Containers, controller: Any, client: httpx.AsyncClient
) -> None:
    await _until_ready(controller, 2)
    question = {"role": "user", "content": "What is the capital of France?"}
    paris = await meshes.stream_chat(
        client, containers.url, {"messages": [question], "temperature": 0}, meshes.StreamRecord()
    )
    assert "Paris" in paris.text, paris.error

    bodies = meshes.request_bodies(200)[:2]
    expected = await meshes.undisturbed(client, containers.url, bodies)
    records = [meshes.StreamRecord() for _ in bodies]
    async with asyncio.TaskGroup() as group:
        for body, record in zip(bodies, records, strict=True):
            group.create_task(meshes.stream_chat(client, containers.url, body, record))
        await meshes.until(lambda: all(len(r.arrivals_s) > 20 for r in records))
        status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=5)
        generations = {g.generation_id: g.pipeline_id for g in status.generations}
        pipeline = generations[records[0].generation_id]
        members = [n for n in status.nodes if n.pipeline_id == pipeline]
        victim = max(members, key=lambda node: node.stage_index).node_id
        before = containers.inspect(victim)
        os.kill(before["State"]["Pid"], signal.SIGKILL)
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)

    await _until_ready(controller, 2)
    after = containers.inspect(victim)
    assert after["RestartCount"] > before["RestartCount"]
    again = await meshes.undisturbed(client, containers.url, bodies[:1])
    assert again[0].text == expected[0].text
