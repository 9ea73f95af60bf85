"""Who reads a prompt, or is to go on with it, is killed while its blocks go from the one to the
other: the answer is the one that nobody disturbed, and its reader waits for little more than for
the prompt to be read again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import kv_mesh
from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role
from services.engine.backend import BLOCK_SIZE

CONTEXT, TOKENS = 900, 40
SETTINGS = {
    "ENGINE_KV_BYTES_PER_S": "1e6",
    "ENGINE_KV_AHEAD_SHARE": "1",
    "ENGINE_KV_FETCH_S": "10",
    "ENGINE_KV_KEEP_S": "600",
    "ENGINE_PROGRESS_S": "30",
    "CONTROLLER_PROGRESS_S": "60",
    "CONTROLLER_STALL_S": "30",
    "CONTROLLER_NODE_LOST_S": "30",
}
"""Blocks take far longer than the prompt takes to be read, and go all the time; and nobody is taken
for lost because the machine is busy."""
CASES = (("prefill", "reading"), ("decode", "reading"), ("prefill", "handed on"))
"""Who is killed, and when."""
WAIT_S = 240.0
LOST_S = 10.0
"""Until a lost node is known for lost, and somebody else asked."""
AGAIN = 3.0
"""So many times as long as a prompt took undisturbed it may take beside the start of a node."""


@dataclass(frozen=True, slots=True)
class Node:
    """One that makes up a pipeline."""

    pid: int
    address: str

    async def told(self) -> engine_pb2.DescribeResponse:
        async with channels.open_channel(self.address, Role.ENGINE) as channel:
            stub = engine_pb2_grpc.EngineServiceStub(channel)
            return await stub.Describe(engine_pb2.DescribeRequest(), timeout=60)


async def in_phases(mesh: meshes.Mesh) -> dict[str, Node]:
    """The node of each phase, once both serve."""
    await mesh.until_ready(2, WAIT_S)
    async with channels.open_channel(await kv_mesh.controller_of(mesh), Role.CONTROLLER) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        told = await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    nodes = {node.node_id: Node(node.pid, node.address) for node in told.nodes}
    pipelines = (await mesh.status())["pipelines"]
    return {one["phase"]: nodes[one["stages"][0]["node"]] for one in pipelines}


@pytest.mark.timeout(900)
async def test_a_kill_while_blocks_go_costs_no_more_than_to_read_the_prompt_again(
    tmp_path: Path, client: httpx.AsyncClient
) -> None:
    env = os.environ | {f"SHUNT_{name}": value for name, value in SETTINGS.items()}
    options = ("--node-speeds", "1,1", "--phases", "prefill,decode")
    async with meshes.running(tmp_path / "mesh", env=env, options=options) as mesh:
        body = kv_mesh.body_of(CONTEXT, 1) | {"max_tokens": TOKENS}
        began_s = time.monotonic()
        (wanted,) = await meshes.undisturbed(client, mesh.url(), [body])
        read_s = wanted.arrivals_s[0] - began_s
        print(f"\nundisturbed: {read_s:.1f} s to read, {wanted.longest_gap_s():.1f} s at most")
        for victim, moment in CASES:
            nodes, record = await in_phases(mesh), meshes.StreamRecord()
            decodes = await nodes["decode"].told()
            had, block_bytes = decodes.stats.kept_kv_bytes, decodes.kv_block_bytes
            asked = body | {"cache_salt": f"{victim} {moment}"}
            task = asyncio.create_task(meshes.stream_chat(client, mesh.url(), asked, record))
            kept = 0
            async with asyncio.timeout(WAIT_S):
                while not (record.arrivals_s if moment == "handed on" else kept):
                    await asyncio.sleep(0.02)
                    kept = (await nodes["decode"].told()).stats.kept_kv_bytes - had
            begun = len(record.arrivals_s)
            assert begun == (moment == "handed on")
            assert 0 < kept < CONTEXT // BLOCK_SIZE * block_bytes, "they are on their way"
            os.kill(nodes[victim].pid, signal.SIGKILL)
            killed_s = time.monotonic()
            await asyncio.wait_for(task, WAIT_S)
            assert record.complete, record.error
            assert (record.text, record.usage) == (wanted.text, wanted.usage)
            gap_s = max(record.arrivals_s[begun] - killed_s, record.longest_gap_s(killed_s))
            print(f"{victim} killed, {moment}, {kept >> 20} MiB there: {gap_s:.1f} s")
            assert gap_s < LOST_S + AGAIN * read_s
