"""`shunt` on a mesh that runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from bench import mesh as meshes


def _pid_of(status: dict[str, Any], service: str) -> int | None:
    pid: int | None = next(s["pid"] for s in status["services"] if s["name"] == service)
    return pid


async def test_the_local_pipelines_are_uneven(ready: meshes.Mesh) -> None:
    status = json.loads(await ready.shunt("status", "--json"))
    layers = [[s["layers"] for s in p["stages"]] for p in status["pipelines"]]
    for first, last in layers:
        assert first[0] == 0
        assert first[1] == last[0]
        assert last[1] == 30
        assert first[1] > last[1] - last[0]


async def test_a_second_mesh_in_the_same_directory_is_refused(ready: meshes.Mesh) -> None:
    with pytest.raises(RuntimeError, match="a mesh already runs in"):
        await ready.shunt("up", "--detach")
    assert await ready.until_ready(2)


async def test_what_a_mesh_keeps_is_for_its_owner_alone(ready: meshes.Mesh) -> None:
    for name in ("mesh.json", "logs", "controller/journal.db", "controller/engines"):
        path = ready.data_dir / name
        for found in (path, *path.glob("*.log")):
            assert not found.stat().st_mode & 0o077, found
    assert not ready.data_dir.stat().st_mode & 0o077


async def test_a_taken_port_is_named(ready: meshes.Mesh, tmp_path: Any) -> None:
    port = str(ready.http_port)
    arguments = ("up", "--detach", "--http-port", port, "--data-dir", str(tmp_path))
    with pytest.raises(RuntimeError, match=f"port {port} is taken"):
        await meshes.run_shunt(*arguments, timeout_s=30)


async def test_a_chat_is_answered(ready: meshes.Mesh) -> None:
    assert "Paris" in await ready.shunt("chat", "What is the capital of France?")


async def test_a_node_that_is_killed_is_replaced_by_a_new_one(ready: meshes.Mesh) -> None:
    before = await ready.status()
    node = before["pipelines"][1]["stages"][1]["node"]
    await ready.shunt("interrupt", node, "--kill")
    async with asyncio.timeout(60):
        while True:
            status = await ready.until_ready(2)
            members = [s["node"] for p in status["pipelines"] for s in p["stages"]]
            if node not in members:
                break
            await asyncio.sleep(0.1)
    assert members[3] not in {n["id"] for n in before["nodes"]}


async def test_an_unknown_node_is_refused(ready: meshes.Mesh) -> None:
    with pytest.raises(RuntimeError, match="no-such-node cannot be interrupted: no such node"):
        await ready.shunt("interrupt", "no-such-node", "--kill")


@pytest.mark.parametrize("service", ["placement", "tensorstore"])
async def test_a_service_that_dies_is_started_again(ready: meshes.Mesh, service: str) -> None:
    pid = _pid_of(await ready.status(), service)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while True:
            status = await ready.status()
            found = next(s for s in status["services"] if s["name"] == service)
            if found["state"] == "ready" and found["pid"] != pid:
                break
            await asyncio.sleep(0.1)
    assert "Paris" in await ready.shunt("chat", "What is the capital of France?")
