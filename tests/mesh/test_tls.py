"""A mesh whose services know one another by certificates, each with its own role."""

from __future__ import annotations

from pathlib import Path

import grpc
import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from services.common import channels
from services.common.settings import TlsSettings
from tests.certificates import Authority

SERVICES = ("router", "controller", "placement", "tensorstore", "engine")


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The command line is an operator; each service has a certificate of its own role."""
    found = Authority(tmp_path)
    for name, path in found.issue("operator").items():
        monkeypatch.setenv(f"SHUNT_TLS_{name.upper()}", str(path))
    for service in SERVICES:
        for name, path in found.issue(service).items():
            monkeypatch.setenv(f"SHUNT_{service.upper()}_TLS__{name.upper()}", str(path))
    return found


async def _refusal(address: str, tls: TlsSettings | None) -> grpc.StatusCode:
    async with channels.open_channel(address, tls=tls) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=5)
    return refused.value.code()


async def test_services_speak_only_to_those_whose_role_may_call_them(
    tmp_path: Path, client: httpx.AsyncClient, authority: Authority
) -> None:
    async with meshes.running(tmp_path / "mesh") as mesh:
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
        record = await meshes.stream_chat(
            client, mesh.url(), {**body, "temperature": 0}, meshes.StreamRecord()
        )
        assert "Paris" in record.text, record.error
        assert "Paris" in await mesh.shunt("chat", "What is the capital of France?")
        services = (await mesh.status())["services"]
        address = next(s["grpc"] for s in services if s["name"] == "controller")
        assert await _refusal(address, None) is grpc.StatusCode.UNAVAILABLE
        asking = TlsSettings(**authority.issue("client"))
        assert await _refusal(address, asking) is grpc.StatusCode.PERMISSION_DENIED
