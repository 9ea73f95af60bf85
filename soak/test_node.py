"""`shunt node` on loopback: what its cloud says reaches the mesh in time, and it ends whole."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench import mesh as meshes
from services.cli.mesh_directory import MeshDirectory
from tests.fake_metadata import FakeEc2, serving

TOKENS = 400
NOTICE_S = 25.0


@dataclass
class Machine:
    """One with a node, and what its cloud says of it."""

    cloud: FakeEc2
    process: asyncio.subprocess.Process

    @property
    def name(self) -> str:
        return self.cloud.told["instance-id"]

    def children(self) -> dict[str, int]:
        """Pids by service."""
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = {}
        for pid in map(int, pids.read_text().split()):
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            found[command[-2]] = pid
        return found


@asynccontextmanager
async def machine(name: str, controller: str, store: Path) -> AsyncIterator[Machine]:
    cloud = FakeEc2(f"i-{name}")
    async with serving(cloud) as url:
        environment = {
            **os.environ,
            "SHUNT_NODE_NOTICE_POLL_S": "0.2",
            "SHUNT_NODE_CLOUD": "ec2",
            "SHUNT_ENGINE_THREADS": "1",
            "SHUNT_ENGINE_MEMORY_BYTES": str(1 << 30),
        }
        options = ("--controller", controller, "--store", str(store), "--metadata", url)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "node", *options), env=environment
        )
        try:
            yield Machine(cloud, process)
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 60)


async def controller_of(data_dir: Path) -> str:
    """Its address, as soon as it is there."""
    async with asyncio.timeout(90):
        while True:
            state = MeshDirectory(data_dir).read()
            services = () if state is None else state.services
            grpc = (s.grpc for s in services if s.name == "controller" and s.pid)
            if found := next(grpc, None):
                return found
            await asyncio.sleep(0.1)


async def events_of(mesh: meshes.Mesh) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await mesh.shunt("events", "--json")).splitlines()]


async def carriers(mesh: meshes.Mesh) -> set[str]:
    """Nodes whose pipelines have generations that are not over."""
    status = await mesh.status()
    nodes = {p["id"]: {stage["node"] for stage in p["stages"]} for p in status["pipelines"]}
    return {name for g in status["generations"] for name in nodes.get(g["pipeline"], ())}


async def until_nodes(mesh: meshes.Mesh, wanted: dict[str, set[str]]) -> dict[str, Any]:
    """By name, in one of these states."""
    async with asyncio.timeout(60):
        while True:
            nodes = {node["id"]: node for node in (await mesh.status())["nodes"]}
            if all(n in nodes and nodes[n]["state"] in states for n, states in wanted.items()):
                return nodes
            await asyncio.sleep(0.1)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(300)
async def test_what_a_nodes_cloud_says_moves_streams_in_time(
    tmp_path: Path, client: httpx.AsyncClient
) -> None:
    settings = {"PROVIDER": "external", "EXPECTED_NODES": "2", "REPLAN": "false"}
    environment = os.environ | {f"SHUNT_CONTROLLER_{k}": value for k, value in settings.items()}
    options = ("--node-speeds", "1,1")
    async with AsyncExitStack() as stack:
        context = meshes.running(tmp_path, env=environment, options=options)
        up = asyncio.create_task(stack.enter_async_context(context))
        controller = await controller_of(tmp_path)
        machines = dict[str, Machine]()
        for name in ("a", "b"):
            one = await stack.enter_async_context(machine(name, controller, tmp_path / "store"))
            machines[one.name] = one
        mesh = await up
        third = await stack.enter_async_context(machine("c", controller, tmp_path / "store"))
        machines[third.name] = third
        nodes = await until_nodes(mesh, {third.name: {"idle"}})
        assert nodes["i-a"]["machine"]["instance_id"] == {"value": "i-a", "source": "found"}
        assert nodes["i-a"]["machine"]["spot"] == {"value": True, "source": "found"}

        bodies = [body | {"ignore_eos": True} for body in meshes.request_bodies(TOKENS)[:2]]
        expected = await meshes.undisturbed(client, mesh.url(), bodies)
        records, tasks = [meshes.StreamRecord() for _ in bodies * 2], []

        async def begin(some: list[meshes.StreamRecord]) -> None:
            for body, record in zip(bodies, some, strict=True):
                stream = meshes.stream_chat(client, mesh.url(), body, record)
                tasks.append(asyncio.create_task(stream))
            await meshes.until(lambda: all(len(record.arrivals_s) > 5 for record in some))

        # Advice: another node takes the place, and the one it is about stays.
        await begin(records[:2])
        machines["i-a"].cloud.recommend()
        await until_nodes(mesh, {third.name: {"ready"}, "i-a": {"idle"}})
        # A notice: the place is handed back, and the node ends before its time is over.
        await begin(records[2:])
        assert third.name in await carriers(mesh)
        third.cloud.mark(NOTICE_S)
        marked_s = time.time()
        assert await asyncio.wait_for(third.process.wait(), NOTICE_S + 10) == 0
        await asyncio.gather(*tasks)
        for record, wanted in zip(records, expected * 2, strict=True):
            assert record.complete, record.error
            assert (record.text, record.usage) == (wanted.text, wanted.usage)
        events = await events_of(mesh)
        advised = next(e for e in events if e["kind"] == "replacement_advised")
        noticed = next(e for e in events if e["kind"] == "interruption_noticed")
        assert (advised["node"], noticed["node"]) == ("i-a", third.name)
        assert noticed["attributes"]["kind"] == "spot"
        first, second = [e for e in events if e["kind"] == "handover_finished"]
        assert first["n"] < noticed["n"] < second["n"]
        assert int(second["attributes"]["sealed"]) > 0
        assert second["at"] < marked_s + NOTICE_S

        # An engine that is killed comes back; a node that is killed takes all it runs with it.
        engine = machines["i-b"].children()["services.engine"]
        os.kill(engine, signal.SIGKILL)
        await until_nodes(mesh, {"i-b": {"lost"}})
        nodes = await until_nodes(mesh, {"i-b": {"ready"}})
        assert nodes["i-b"]["pid"] == machines["i-b"].children()["services.engine"] != engine
        children = machines["i-b"].children()
        assert set(children) == {"services.engine", "services.tensorstore"}
        machines["i-b"].process.kill()
        async with asyncio.timeout(60):
            while any(map(lives, children.values())):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
