"""A mesh whose services know one another by a token; its engines hold their own node's alone."""

from __future__ import annotations

from pathlib import Path

import grpc
import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from bench import mesh as meshes
from services.common import channels, mesh_token
from services.common.roles import Role

TOKEN = "a-token-of-24-characters"


def _variables(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


async def test_engines_serve_with_their_nodes_tokens_alone(
    tmp_path: Path, store: Path, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mesh_token.VARIABLE, TOKEN)
    async with meshes.running(tmp_path / "mesh", store=store) as mesh:
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
        record = await meshes.stream_chat(
            client, mesh.url(), {**body, "temperature": 0}, meshes.StreamRecord()
        )
        assert "Paris" in record.text, record.error
        assert "Paris" in await mesh.shunt("chat", "What is the capital of France?")
        status = await mesh.status()
        nodes = {node["id"]: node["pid"] for node in status["nodes"]}
        for node_id, pid in nodes.items():
            variables = _variables(pid)
            assert TOKEN not in "\n".join(variables)
            assert f"{mesh_token.VARIABLE}={mesh_token.of_node(TOKEN, node_id)}" in variables
        mine, theirs = sorted(nodes)[:2]
        printed = await meshes.run_shunt("engine", "token", "--node-id", mine, timeout_s=60)
        address = next(s["grpc"] for s in status["services"] if s["name"] == "controller")
        monkeypatch.setenv(mesh_token.VARIABLE, printed.strip())
        async with channels.open_channel(address, Role.CONTROLLER) as channel:
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            for call in (
                stub.GetStatus(pb.GetStatusRequest(), timeout=60),
                stub.Register(pb.RegisterRequest(node_id=theirs), timeout=60),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        monkeypatch.setenv(mesh_token.VARIABLE, TOKEN)
