"""The mesh as containers: built, started, asked, robbed of an engine in mid-stream, taken down."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.launcher.v1 import launcher_pb2, launcher_pb2_grpc

from bench import mesh as meshes
from services.common import channels, mesh_token
from services.common.roles import Role
from services.common.statuses import from_rpc_error

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "compose"
ENGINE = "tests.mesh.docker_engine"
COMPOSE = Path(sys.executable).with_name("docker-compose")
ONCE = {"token", "keys", "import", "engine"}
SERVICES = ONCE | {"tensorstore", "placement", "launcher", "controller", "router"}
OBSERVERS = {"jaeger", "prometheus", "grafana"}
WITHOUT_TOKEN = {"keys", "import", "engine"}
ASK_FOR_KEYS = {"keys", "router"}
ROOT_BY_ITS_SOCKET = {"launcher"}
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
    assert set(services) == SERVICES | OBSERVERS
    for name in SERVICES:
        service = services[name]
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert name in ONCE or service["healthcheck"]["test"], name
        has_token = "/var/lib/shunt/mesh" in _mounted(service)
        assert has_token != (name in WITHOUT_TOKEN), name
        assert ("/var/run/docker.sock" in _mounted(service)) == (name in ROOT_BY_ITS_SOCKET), name
        assert ("/var/lib/shunt/keys" in _mounted(service)) == (name in ASK_FOR_KEYS), name
    assert services["controller"]["environment"]["SHUNT_CONTROLLER_NODE_SPEEDS"] == "3:2,3:2"
    assert services["engine"]["mem_limit"] == str(4 << 30)


def _mounted(service: Mapping[str, Any]) -> list[str]:
    return [volume["target"] for volume in service["volumes"]]


def test_who_observes_comes_only_when_asked_for() -> None:
    services = _config({})["services"]
    for name in OBSERVERS:
        assert services[name]["profiles"] == ["observability"]
    assert all("profiles" not in services[name] for name in SERVICES)


def test_the_gpu_override_has_a_gpu_for_each_engine() -> None:
    services = _config({"SHUNT_GPU": "l4"}, "gpu.yaml")["services"]
    engine = services["engine"]
    [devices] = engine["deploy"]["resources"]["reservations"]["devices"]
    assert devices["device_ids"] == ["0", "1", "2", "3"]
    assert engine["environment"]["SHUNT_ENGINE_DEVICE"] == "cuda"
    assert engine["environment"]["SHUNT_ENGINE_STORE"] == "grpc://tensorstore:7004"
    assert services["controller"]["environment"]["SHUNT_CONTROLLER_NODE_DEVICE_TYPE"] == "l4"


def test_with_tls_nobody_but_who_issues_certificates_may_write_them() -> None:
    services = _config({}, "tls.yaml")["services"]
    issuer = services.pop("certificates")
    assert issuer["cap_drop"] == ["ALL"]
    assert issuer["read_only"]
    assert issuer["healthcheck"]["test"]
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            if volume["source"].startswith(("tls-", "authority")):
                assert (volume["source"], volume["read_only"]) == (f"tls-{name}", True)
    started = {
        name for name, one in services.items() if "certificates" in one.get("depends_on", ())
    }
    assert started == SERVICES - ONCE


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

    def docker(self, *arguments: str, timeout_s: float = 60) -> str:
        return _run(["docker", *arguments], self.environment, timeout_s)

    def engines(self) -> dict[str, str]:
        """Ids of the engines' containers that run, by node."""
        form = '{{.Label "shuntserve.node"}} {{.ID}}'
        mine = f"label=shuntserve.mesh={self.project}"
        lines = self.docker("ps", "--no-trunc", "--filter", mine, "--format", form).splitlines()
        return dict((*line.split(),) for line in lines)  # type: ignore[misc]

    def registered(self) -> dict[str, int]:
        """How often each engine that runs has found a controller, by container."""
        said = {}
        for container in self.engines().values():
            command = ("docker", "logs", container)
            told = subprocess.run(
                command, env=self.environment, capture_output=True, timeout=60, check=True
            )
            said[container] = (told.stdout + told.stderr).count(b"registered with the controller")
        return said

    def key(self) -> dict[str, str]:
        """Headers that show the key that was made at the first start."""
        made = self.compose("exec", "-T", "router", "cat", "/var/lib/shunt/keys/first-key")
        return {"Authorization": f"Bearer {made.strip()}"}

    def left(self) -> str:
        """What there is yet of the project."""
        mine = f"label=com.docker.compose.project={self.project}"
        kinds = (("ps", "--all"), ("network", "ls"), ("volume", "ls"))
        return "".join(self.docker(*kind, "--quiet", "--filter", mine) for kind in kinds)

    def address(self, service: str, port: int) -> str:
        return f"{self.ip(self.inspect(service)['Id'])}:{port}"

    def ip(self, container: str) -> str:
        [found] = json.loads(self.docker("inspect", container))
        networks = found["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])


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
    command = [sys.executable, "-m", ENGINE, "up", directory]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    if result.returncode != 0:
        if os.environ.get("SHUNT_TEST_INSTALL") == "1":
            pytest.fail(result.stderr)
        pytest.skip(result.stderr.strip().splitlines()[-1])
    try:
        yield result.stdout.strip()
    finally:
        command[3] = "down"
        subprocess.run(command, cwd=ROOT, timeout=120, check=True)


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


@contextmanager
def running(docker_host: str, directory: Path, *overrides: str) -> Iterator[Containers]:
    """The mesh inside the block, by compose.yaml and more files of the folder."""
    first = meshes.free_ports(2)
    environment = {
        **os.environ,
        "SHUNT_HTTP_PORT": str(first),
        "SHUNT_GRPC_PORT": str(first + 1),
        "OTEL_EXPORTER_OTLP_ENDPOINT": "",
    }
    if docker_host:
        environment["DOCKER_HOST"] = docker_host
        environment["SHUNT_DOCKER_SOCKET"] = docker_host.removeprefix("unix://")
    wheel = _local_torch()
    if wheel is not None:
        _import_wheel(wheel, environment, directory)
        environment["SHUNT_WHEELS"] = "shunt-wheels"
    files = [str(FILES / name) for name in ("compose.yaml", *overrides)]
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
        mesh.compose("down", "--volumes", "--timeout", "10")
    assert mesh.left() == ""


@pytest.fixture(scope="module")
def containers(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    with running(docker_host, tmp_path_factory.mktemp("wheels")) as mesh:
        yield mesh


@pytest.fixture
async def controller(containers: Containers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    drawn = containers.compose("exec", "-T", "controller", "cat", "/var/lib/shunt/mesh/token")
    monkeypatch.setenv(mesh_token.VARIABLE, drawn.strip())
    async with channels.open_channel(
        containers.address("controller", 7001), Role.CONTROLLER
    ) as channel:
        yield controller_pb2_grpc.ControllerServiceStub(channel)


@pytest.fixture
async def client(containers: Containers) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=60, headers=containers.key()) as client:
        yield client


async def _until_ready(controller: Any, pipelines: int) -> controller_pb2.GetStatusResponse:
    async with asyncio.timeout(90):
        while True:
            status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
            states = [p.state for p in status.pipelines]
            if states.count(controller_pb2.PIPELINE_STATE_READY) >= pipelines:
                return status
            await asyncio.sleep(0.2)


async def test_no_container_runs_as_root_but_who_holds_the_socket_and_all_are_healthy(
    containers: Containers, controller: Any
) -> None:
    for service in SERVICES - ONCE:
        found = containers.inspect(service)
        root = service in ROOT_BY_ITS_SOCKET
        assert found["Config"]["User"] == ("0:0" if root else "shunt"), service
        assert found["State"]["Health"]["Status"] == "healthy", service
    await _until_ready(controller, 2)
    for container_id in containers.engines().values():
        [found] = json.loads(containers.docker("inspect", container_id))
        assert found["Config"]["User"] == "shunt"
        assert found["HostConfig"]["CapDrop"] == ["ALL"]
        assert found["HostConfig"]["ReadonlyRootfs"]
        assert found["HostConfig"]["Memory"] == 4 << 30
        told = [line for line in found["Config"]["Env"] if line.startswith("SHUNT_MESH_TOKEN=")]
        assert told[0].startswith("SHUNT_MESH_TOKEN=shunt-node."), "its node's, and not the mesh's"


async def test_who_has_not_the_token_of_the_mesh_is_not_heard(containers: Containers) -> None:
    async with channels.open_channel(
        containers.address("controller", 7001), Role.CONTROLLER
    ) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Register(controller_pb2.RegisterRequest(node_id="engine-1"), timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_who_has_no_key_is_not_answered(
    containers: Containers, client: httpx.AsyncClient
) -> None:
    answers = [
        (await one.get(f"{containers.url}/v1/models", headers=headers)).status_code
        for one, headers in ((client, {}), (client, {"Authorization": "Bearer shunt-0-x"}))
    ]
    assert answers == [200, 401]
    assert (await client.get(f"{containers.url}/metrics")).status_code == 404


async def test_a_controller_that_was_made_anew_at_another_address_loses_nobody(
    containers: Containers, controller: Any
) -> None:
    await _until_ready(controller, 2)
    engines = containers.engines()
    events = controller.WatchEvents(controller_pb2.WatchEventsRequest(no_wait=True), timeout=60)
    last = max([event.number async for event in events])
    before, found = containers.address("controller", 7001), containers.registered()
    assert len(found) == 4
    assert min(found.values()) > 0
    containers.compose("rm", "--stop", "--force", "controller")
    async with _taken(containers, before):
        containers.compose("up", "--no-build", "--no-deps", "--detach", "controller")
        after = containers.address("controller", 7001)
        assert after != before
        async with channels.open_channel(after, Role.CONTROLLER) as channel:
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            await asyncio.wait_for(channel.channel_ready(), 60)
            status = await _until_ready(stub, 2)
            await meshes.until(lambda: _more(containers.registered(), found), 60)
            request = controller_pb2.WatchEventsRequest(no_wait=True, from_number=last + 1)
            kinds = [event.kind async for event in stub.WatchEvents(request, timeout=60)]
            assert "node_lost" not in kinds, kinds
            assert _living(status) == set(engines)
            assert containers.engines() == engines


@asynccontextmanager
async def _taken(containers: Containers, address: str) -> AsyncIterator[None]:
    """An address that is free is somebody else's inside the block."""
    network = f"{containers.project}_mesh"
    squat = ["docker", "run", "--detach", "--rm", "--network", network]
    squat += ["--entrypoint", "sleep", "shunt-placement", "600"]
    squatters: list[str] = []
    try:
        for _ in range(32):  # those that are free are given away in turn
            squatters.append(_run(squat, containers.environment, 60).strip())
            if address.startswith(f"{containers.ip(squatters[-1])}:"):
                break
        else:
            pytest.fail(f"nobody else is given {address}")
        yield
    finally:
        for squatter in squatters:
            _run(["docker", "rm", "--force", squatter], containers.environment, 60)


def _living(status: controller_pb2.GetStatusResponse) -> set[str]:
    lost = controller_pb2.NODE_STATE_LOST
    return {node.node_id for node in status.nodes if node.state != lost}


def _more(now: Mapping[str, int], before: Mapping[str, int]) -> bool:
    """Each of those has done it again."""
    return all(now.get(name, 0) > count for name, count in before.items())


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
        status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
        generations = {g.generation_id: g.pipeline_id for g in status.generations}
        pipeline = generations[records[0].generation_id]
        members = [n for n in status.nodes if n.pipeline_id == pipeline]
        victim = max(members, key=lambda node: node.stage_index).node_id
        before = containers.engines()
        containers.docker("kill", before[victim])
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)

    status = await _until_ready(controller, 2)
    after = containers.engines()
    assert victim not in after
    assert _living(status) == set(after)
    assert len(after) == len(before)
    assert len(set(after.values()) - set(before.values())) == 1
    again = await meshes.undisturbed(client, containers.url, bodies[:1])
    assert again[0].text == expected[0].text


async def test_who_restarts_finds_its_engines_and_ends_those_that_nobody_knows(
    containers: Containers, controller: Any
) -> None:
    await _until_ready(controller, 2)
    before = containers.engines()
    mine, nobody = f"shuntserve.mesh={containers.project}", "shuntserve.node=node-999"
    run = ("run", "--detach", "--rm", "--entrypoint", "sleep")
    orphan = containers.docker(*run, "--label", mine, "--label", nobody, "shunt-placement", "600")
    stranger = containers.docker(*run, "--label", nobody, "shunt-placement", "600").strip()
    try:
        for service in ("launcher", "controller"):
            containers.docker("kill", containers.inspect(service)["Id"])
        containers.compose("up", "--no-build", "--wait", timeout_s=UP_TIMEOUT_S)
        async with channels.open_channel(
            containers.address("controller", 7001), Role.CONTROLLER
        ) as channel:
            await _until_ready(controller_pb2_grpc.ControllerServiceStub(channel), 2)
        await meshes.until(lambda: orphan.strip() not in containers.engines().values(), 60)
        assert containers.engines() == before
        assert stranger in containers.docker("ps", "--no-trunc", "--quiet")
    finally:
        containers.docker("rm", "--force", stranger)


def test_a_node_is_the_engines_image_and_says_what_it_cannot_use(
    containers: Containers, tmp_path: Path
) -> None:
    build: dict[str, Any] = {
        "context": str(ROOT),
        "dockerfile": "deploy/images/Dockerfile",
        "target": "node",
    }
    if wheels := containers.environment.get("SHUNT_WHEELS"):
        build["args"] = {"WHEELS": wheels}
    described = tmp_path / "node.yaml"
    described.write_text(
        json.dumps({"services": {"node": {"image": "shunt-node", "build": build}}})
    )
    alone = replace(containers, project=f"{containers.project}-node", files=(str(described),))
    alone.compose("build", timeout_s=BUILD_TIMEOUT_S)
    run = ("docker", "run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL")
    options = ("--controller", "127.0.0.1:1", "--store", "sftp://elsewhere/models")
    ran = subprocess.run(
        (*run, "shunt-node", *options),
        env=containers.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 2, ran.stderr
    assert "SHUNT_NODE_STORE" in ran.stderr, ran.stderr


HOSTILE = {
    "privileged": "privileged: true",
    "volumes": 'volumes: ["/:/host"]',
    "image": "image: shunt-placement",
    "networks": "networks: !reset null\n    network_mode: host",
}


async def test_the_launcher_starts_nothing_else(
    containers: Containers, controller: Any, tmp_path: Path
) -> None:
    await _until_ready(controller, 2)
    engines = containers.engines()
    override = tmp_path / "override.yaml"
    hostile = replace(containers, files=(*containers.files, str(override)))
    up = ("up", "--no-build", "--no-deps", "--detach", "engine")
    try:
        async with channels.open_channel(
            containers.address("launcher", 7005), Role.LAUNCHER
        ) as channel:
            launcher = launcher_pb2_grpc.LauncherServiceStub(channel)
            for field, lines in HOSTILE.items():
                override.write_text(f"services:\n  engine:\n    {lines}\n")
                hostile.compose(*up)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await launcher.Launch(launcher_pb2.LaunchRequest(node_id="evil"), timeout=60)
                assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                assert from_rpc_error(refused.value).field == field
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await launcher.End(launcher_pb2.EndRequest(node_id="controller-1"), timeout=60)
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    finally:
        containers.compose(*up)
    assert containers.engines() == engines
