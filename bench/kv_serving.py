"""What it costs a stage to serve blocks: its steps while another process fetches from it, over its
steps without, in turns.

`python -m bench.kv_serving --pairs 9` starts a mesh of one stage in which one stream decodes. This
process is named to its head as an heir, so the stage keeps blocks of the stream for it; in every
second window it fetches them again and again, with all checks, as fast as they come or so many
bytes a second. Beside the time that a step takes stand times on a core: of the steps themselves,
and of the whole process, which tells what serving costs. Where the stage and who fetches share
cores, as here, the first one holds what the other one takes of them, too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import mesh as meshes
from bench import written
from bench.kv_mesh import NO_END, WAIT_S, body_of, controller_of
from services.common import channels, wire
from services.common.channel_options import MAX_MESSAGE_BYTES, options
from services.common.exchange import KvMember, KvSource
from services.common.generation import LayerRange
from services.common.roles import Role
from services.engine import kv_wire
from services.engine.kv_calls import KvReader
from services.engine.kv_exchange import KvExchange
from services.engine.kv_gatherer import KvLimits
from services.engine.peers import Peers

KEEP_S = "600"
BEFORE = 8
"""Events of the stream before the first window."""
TICKS_A_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Window:
    """Some seconds of the stage."""

    steps: int
    stepped_s: float
    computed_s: float
    """Of the steps, on a core."""
    process_s: float
    """Of all threads of the process, on a core."""
    read_bytes: int
    took_s: float

    @property
    def step_s(self) -> float:
        return self.stepped_s / self.steps

    @property
    def computed_step_s(self) -> float:
        return self.computed_s / self.steps

    def for_others_s(self, alone: Window) -> float:
        """On a core for what is no part of the steps, nor comes with them where nothing else is
        asked of the process."""
        return self.process_s - self.steps * alone.process_s / alone.steps


class Heir(engine_pb2_grpc.EngineServiceServicer):
    """Takes whatever it is sent, and remembers what that was."""

    def __init__(self) -> None:
        self.asked: engine_pb2.StoreKvRequest | None = None

    async def StoreKv(
        self,
        request: engine_pb2.StoreKvRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> engine_pb2.StoreKvResponse:
        self.asked = request
        return engine_pb2.StoreKvResponse(stored=len(request.names))


@dataclass(frozen=True)
class Stage:
    """The one that there is."""

    pid: int
    address: str
    layers: LayerRange

    @classmethod
    async def of(cls, mesh: meshes.Mesh) -> Stage:
        async with channels.open_channel(await controller_of(mesh), Role.CONTROLLER) as channel:
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            status = await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
        (node,) = (one for one in status.nodes if one.pid)
        (stage,) = status.pipelines[0].stages
        return cls(node.pid, node.address, wire.layers_from(stage.layers))

    @property
    def process_s(self) -> float:
        """What its process has had of cores so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_A_S

    async def kept(self, generation_id: str) -> engine_pb2.StoreKvRequest:
        """Blocks that it keeps of a generation, as it tells an heir."""
        heir = Heir()  # type: ignore[abstract]
        server = grpc.aio.server(options=options(MAX_MESSAGE_BYTES))
        engine_pb2_grpc.add_EngineServiceServicer_to_server(heir, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            async with channels.open_channel(self.address, Role.ENGINE) as channel:
                stub = engine_pb2_grpc.EngineServiceStub(channel)
                told = await stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
                own = KvMember(self.address, told.incarnation, self.layers)
                there = wire.kv_member_to(KvMember(address, "heir", self.layers))
                copy = engine_pb2.CopyKvRequest(
                    formation_id=told.formation_id,
                    heirs=[engine_pb2.KvHeir(members=[there], generation_ids=[generation_id])],
                    source=wire.kv_source_to(KvSource(told.formation_id, (own,))),
                    limit_s=WAIT_S,
                    max_rounds=1,
                )
                await stub.CopyKv(copy, timeout=WAIT_S)
        finally:
            await server.stop(None)
        if heir.asked is None:
            raise RuntimeError("no blocks went ahead")
        return heir.asked


@asynccontextmanager
async def fetching(
    kept: engine_pb2.StoreKvRequest, bytes_per_s: float
) -> AsyncIterator[Callable[[], int]]:
    """Fetches all of it again and again inside the block; how many bytes came so far."""
    peers = Peers(partial(channels.open_channel, role=Role.ENGINE, apart=True), apart=True)
    source, layout = wire.kv_source_from(kept.source), kv_wire.layout_from(kept.layout)
    layers, names = kv_wire.layers_from(kept.layers), tuple(kept.names)
    came = 0

    async def fetch() -> None:
        nonlocal came
        began_s = time.monotonic()
        while True:
            exchange = KvExchange("heir", KvLimits(), KvReader(peers).read, time.monotonic)
            stored = await exchange.store(source, layout, layers, names, WAIT_S)
            if stored.blocks != len(names):
                raise RuntimeError(f"{stored.blocks} of {len(names)} blocks came")
            came += stored.fetched_bytes
            due_s = came / bytes_per_s if bytes_per_s else 0.0
            await asyncio.sleep(max(0.0, began_s + due_s - time.monotonic()))

    task = asyncio.create_task(fetch())
    try:
        yield lambda: came
        if task.done():
            await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await peers.close()


async def window(stage: Stage, window_s: float, came: Callable[[], int]) -> Window:
    """The stage for so long."""
    async with channels.open_channel(stage.address, Role.ENGINE) as channel:
        stub = engine_pb2_grpc.EngineServiceStub(channel)
        seen = []
        for _ in range(2):
            told = await stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
            seen.append((told.stats, stage.process_s, came(), time.monotonic()))
            if len(seen) == 1:
                await asyncio.sleep(window_s)
    ((before, had_s, read, began_s), (after, has_s, has_read, ended_s)) = seen
    return Window(
        after.steps - before.steps,
        after.stepped_s - before.stepped_s,
        after.computed_s - before.computed_s,
        has_s - had_s,
        has_read - read,
        ended_s - began_s,
    )


def figures(alone: list[Window], served: list[Window]) -> dict[str, Any]:
    """Of pairs, medians; what is of a step over that of the window before."""
    pairs = list(zip(alone, served, strict=True))
    spent_s = [other.for_others_s(one) for one, other in pairs]
    rates = [other.read_bytes / other.took_s for other in served]

    def ratio(of: Callable[[Window], float]) -> float:
        return round(statistics.median(of(other) / of(one) for one, other in pairs), 3)

    return {
        "pairs": len(pairs),
        "read_mb_per_s": round(statistics.median(rates) / 1e6, 1),
        "step_s": [round(statistics.median(w.step_s for w in ws), 4) for ws in (alone, served)],
        "step_ratio": ratio(lambda w: w.step_s),
        "computed_step_ratio": ratio(lambda w: w.computed_step_s),
        "core_s_per_gb": round(sum(spent_s) / sum(w.read_bytes for w in served) * 1e9, 2),
    }


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report, by rate."""
    with tempfile.TemporaryDirectory(prefix="shunt-kv-") as folder:
        up = meshes.running(
            Path(folder) / "mesh",
            env={**os.environ, "SHUNT_ENGINE_KV_KEEP_S": KEEP_S},
            options=("--node-speeds", "1"),
            pipelines=1,
            store=arguments.store,
        )
        async with up as mesh, httpx.AsyncClient(timeout=WAIT_S) as client:
            stage, record = await Stage.of(mesh), meshes.StreamRecord()
            most = arguments.max_tokens
            endless = NO_END | {"max_tokens": most, "min_tokens": most}
            body = body_of(arguments.context, 1) | endless
            reading = asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
            try:
                await meshes.until(lambda: len(record.arrivals_s) >= BEFORE, WAIT_S)
                kept = await stage.kept(record.generation_id)
                report: dict[str, Any] = {"context": arguments.context, "blocks": len(kept.names)}
                for rate in arguments.bytes_per_s:
                    alone, served = list[Window](), list[Window]()
                    for _ in range(arguments.pairs):
                        alone.append(await window(stage, arguments.window_s, lambda: 0))
                        async with fetching(kept, rate) as came:
                            served.append(await window(stage, arguments.window_s, came))
                        if reading.done():
                            raise RuntimeError(f"the stream ended: {record.error}")
                    report[f"{rate:g}"] = figures(alone, served)
            finally:
                await client.delete(f"{mesh.url()}/v1/generations/{record.generation_id}")
                await asyncio.gather(reading, return_exceptions=True)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--window-s", type=float, default=4.0)
    parser.add_argument("--context", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=7_000, help="of the stream")
    parser.add_argument(
        "--bytes-per-s",
        type=float,
        nargs="+",
        default=[0.0, 125e6],
        help="that are fetched; 0: as many as come",
    )
    parser.add_argument("--store", type=Path, help="a tensor store whose files are linked")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    written.show(asyncio.run(run(chosen)), chosen.out)
    sys.exit(0)
