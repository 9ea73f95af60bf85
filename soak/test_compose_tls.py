"""The mesh as containers with mutual TLS: read, robbed of an engine, and closed to strangers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from services.cli.certs.directory import AuthorityDirectory
from services.common import channels
from services.common.roles import Role
from services.common.settings import TlsSettings
from tests.mesh.test_compose import BUILD_TIMEOUT_S, UP_TIMEOUT_S, Containers, running
from tests.mesh.test_compose import docker_host as docker_host
from tests.mesh.test_tls import strangers_are_refused

PORTS = {
    "controller": 7001,
    "placement": 7003,
    "tensorstore": 7004,
    "launcher": 7005,
    "router": 50051,
}
REPLACED_S = 15.0
"""From the kill of an engine's container to a pipeline that serves with another one, where the
machine does nothing else."""
BOUND = 4.0
"""So many times as long on one that is busy, or slow."""
ENGINE_IMPORTS = ("--entrypoint", "python", "shunt-engine", "-c", "import services.engine.__main__")


@pytest.mark.timeout(BUILD_TIMEOUT_S + 2 * UP_TIMEOUT_S)
async def test_a_mesh_of_containers_with_certificates_replaces_an_engine_that_is_killed(
    docker_host: str, tmp_path: Path
) -> None:
    with running(docker_host, tmp_path, "tls.yaml") as mesh:
        copied = AuthorityDirectory(authority_of(mesh, tmp_path))
        tls = TlsSettings(directory=copied.path / "operator")
        address = mesh.address("controller", 7001)
        bodies = [body | {"ignore_eos": True} for body in meshes.request_bodies(400)[:2]]
        async with (
            httpx.AsyncClient(timeout=120, headers=mesh.key()) as client,
            channels.open_channel(address, Role.CONTROLLER, tls=tls) as channel,
        ):
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            first = await until_two_serve(stub)
            begun_s = time.monotonic()
            mesh.docker("run", "--rm", *ENGINE_IMPORTS)
            alone_s = time.monotonic() - begun_s
            seated = {node.address.partition(".")[2] for node in first.nodes if node.pipeline_id}
            assert seated == {"engine.mesh:7010"}
            expected = await meshes.undisturbed(client, mesh.url, bodies)
            records = [meshes.StreamRecord() for _ in bodies]
            before = mesh.engines()
            async with asyncio.TaskGroup() as group:
                for body, record in zip(bodies, records, strict=True):
                    group.create_task(meshes.stream_chat(client, mesh.url, body, record))
                await meshes.until(lambda: all(len(r.arrivals_s) > 10 for r in records))
                victim = next(node.node_id for node in first.nodes if node.pipeline_id)
                assert not any(record.complete for record in records)
                mesh.docker("kill", before[victim])
                killed_s = time.monotonic()
                await until_two_serve(stub, without=victim)
                replaced_s = time.monotonic() - killed_s
            print(
                f"replaced {replaced_s:.1f} s after it was killed, of {REPLACED_S:.0f};"
                f" a container that imports an engine takes {alone_s:.1f} s"
            )
            assert replaced_s < BOUND * REPLACED_S
            for record, wanted in zip(records, expected, strict=True):
                assert record.complete, record.error
                assert (record.text, record.usage) == (wanted.text, wanted.usage)
            assert victim not in mesh.engines()
            assert len(mesh.engines()) == len(before)

        ports = {mesh.address(role, port): role for role, port in PORTS.items()}
        ports |= {f"{mesh.ip(container)}:7010": "engine" for container in mesh.engines().values()}
        assert len(ports) == len(PORTS) + len(before)
        await strangers_are_refused(ports, copied, tmp_path)


def authority_of(mesh: Containers, directory: Path) -> Path:
    """A copy of the mesh's authority, with what it issued to its operator."""
    copied = directory / "authority"
    mesh.compose("cp", "certificates:/var/lib/shunt/authority", str(copied))
    return copied


async def until_two_serve(stub: Any, without: str = "") -> controller_pb2.GetStatusResponse:
    """Two pipelines are ready, none of which has this node."""
    async with asyncio.timeout(120):
        while True:
            status: controller_pb2.GetStatusResponse = await stub.GetStatus(
                controller_pb2.GetStatusRequest(), timeout=60
            )
            seated = {stage.node_id for one in status.pipelines for stage in one.stages}
            states = [one.state for one in status.pipelines]
            if states.count(controller_pb2.PIPELINE_STATE_READY) >= 2 and without not in seated:
                return status
            await asyncio.sleep(0.2)
