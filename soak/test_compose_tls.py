"""The mesh as containers with mutual TLS: read, robbed of an engine, and closed to strangers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role
from services.common.settings import TlsSettings
from tests.mesh.test_compose import BUILD_TIMEOUT_S, UP_TIMEOUT_S, running
from tests.mesh.test_compose import docker_host as docker_host


@pytest.mark.timeout(BUILD_TIMEOUT_S + 2 * UP_TIMEOUT_S)
async def test_a_mesh_of_containers_with_certificates_replaces_an_engine_that_is_killed(
    docker_host: str,
    tmp_path: Path,
    client: httpx.AsyncClient,
) -> None:
    with running(docker_host, tmp_path, "tls.yaml") as mesh:
        for name in ("certificate.pem", "key.pem", "authority.pem"):
            source = f"certificates:/var/lib/shunt/authority/operator/{name}"
            mesh.compose("cp", source, str(tmp_path / name))
        tls = TlsSettings(directory=tmp_path)
        address = mesh.address("controller", 7001)
        bodies = meshes.request_bodies(120)[:2]
        async with channels.open_channel(address, tls=tls, role=Role.CONTROLLER) as channel:
            stub = controller_pb2_grpc.ControllerServiceStub(channel)

            async def until_two_serve() -> controller_pb2.GetStatusResponse:
                async with asyncio.timeout(120):
                    while True:
                        status = await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
                        ready = controller_pb2.PIPELINE_STATE_READY
                        if sum(one.state == ready for one in status.pipelines) >= 2:
                            return status
                        await asyncio.sleep(0.2)

            first = await until_two_serve()
            seated = {node.address.partition(".")[2] for node in first.nodes if node.pipeline_id}
            assert seated == {"engine.mesh:7010"}
            expected = await meshes.undisturbed(client, mesh.url, bodies)
            records = [meshes.StreamRecord() for _ in bodies]
            before = mesh.engines()
            async with asyncio.TaskGroup() as group:
                for body, record in zip(bodies, records, strict=True):
                    group.create_task(meshes.stream_chat(client, mesh.url, body, record))
                await meshes.until(lambda: all(len(r.arrivals_s) > 10 for r in records))
                victim = next(iter(before))
                mesh.docker("kill", before[victim])
            for record, wanted in zip(records, expected, strict=True):
                assert record.complete, record.error
                assert (record.text, record.usage) == (wanted.text, wanted.usage)
            await until_two_serve()
            assert victim not in mesh.engines()
            assert len(mesh.engines()) == len(before)

        async with channels.open_channel(address, Role.CONTROLLER) as channel:
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
