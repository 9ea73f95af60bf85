from __future__ import annotations

import mmap
import os
import re
from pathlib import Path
from typing import Any

from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role

LAYER = re.compile(r"^model\.layers\.(\d+)\.")
LAYERS = 30


async def test_a_stage_holds_its_layers_and_no_others(ready: meshes.Mesh, controller: Any) -> None:
    status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    addresses = {node.node_id: node.address for node in status.nodes}
    pids = {node.node_id: node.pid for node in status.nodes}
    assert len(status.pipelines) == 2
    for pipeline in status.pipelines:
        sizes = []
        position = 0
        for stage in pipeline.stages:
            async with channels.open_channel(addresses[stage.node_id], Role.ENGINE) as channel:
                stub = engine_pb2_grpc.EngineServiceStub(channel)
                held = await stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
            layers = {int(m[1]) for t in held.tensors if (m := LAYER.match(t.name))}
            assert layers == set(range(stage.layers.start, stage.layers.end))
            assert stage.layers.start == position
            position = stage.layers.end
            sizes.append(len(layers))
            names = {t.name for t in held.tensors}
            first, last = stage.layers.start == 0, stage.layers.end == LAYERS
            assert ("model.embed_tokens.weight" in names) == (first or last)
            assert ("model.norm.weight" in names) == last
            mapped = _mapped_weight_bytes(pids[stage.node_id])
            assert mapped == 0, "raw weight pages stay resident behind the packed form"
        assert position == LAYERS
        assert len(set(sizes)) == len(sizes), "the split is even"


def test_pages_of_the_store_would_be_seen(mesh: meshes.Mesh) -> None:
    chunk = max(mesh.data_dir.glob("store/objects/??/*"), key=lambda path: path.stat().st_size)
    with chunk.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        read = sum(mapped[at] for at in range(0, len(mapped), mmap.PAGESIZE))
        assert _mapped_weight_bytes(os.getpid()) >= len(mapped) > 0, read


def _mapped_weight_bytes(pid: int) -> int:
    """Resident bytes of the store's files in a process."""
    resident, in_store = 0, False
    with Path(f"/proc/{pid}/smaps").open() as smaps:
        for line in smaps:
            if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
                in_store = "/store/objects/" in line
            elif in_store and line.startswith("Rss:"):
                resident += int(line.split()[1]) * 1024
    return resident
