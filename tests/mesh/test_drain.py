from __future__ import annotations

import asyncio
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role
from tests.mesh import tiny_mesh
from tests.mesh.lasting import lasting
from tests.mesh.slowness import slowness

TOKENS = 700
LASTS_S, NOTICE_S = 12.0, 20.0
"""A node has to start and load, and blocks to go ahead, before a hand-over begins: a stream that is
over by then moves nowhere, and a notice that is over by then takes the pipeline away."""


async def _sampled(controller: Any) -> dict[str, int]:
    status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    counts = {}
    for node in status.nodes:
        if node.state not in (
            controller_pb2.NODE_STATE_READY,
            controller_pb2.NODE_STATE_DRAINING,
        ):
            continue
        async with channels.open_channel(node.address, Role.ENGINE) as channel:
            stub = engine_pb2_grpc.EngineServiceStub(channel)
            answer = await stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
            counts[answer.incarnation] = answer.stats.sampled_tokens
    return counts


async def test_a_drain_moves_streams_without_sampling_a_position_twice(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any
) -> None:
    slow = await slowness()
    asked = await lasting(client, ready.url(), TOKENS, slow * LASTS_S)
    bodies, expected = asked.bodies, asked.expected
    before_events = len(await tiny_mesh.events_of(controller))
    before = await _sampled(controller)
    records = [meshes.StreamRecord() for _ in bodies]
    tasks = [
        asyncio.create_task(meshes.stream_chat(client, ready.url(), body, record))
        for body, record in zip(bodies, records, strict=True)
    ]
    await meshes.until(lambda: all(len(r.arrivals_s) > 10 for r in records))
    status = await ready.status()
    carried = {g["id"]: g["pipeline"] for g in status["generations"]}
    pipeline = next(p for p in status["pipelines"] if p["id"] == carried[records[0].generation_id])
    moving = [r for r in records if carried[r.generation_id] == pipeline["id"]]
    tail = pipeline["stages"][-1]["node"]
    await ready.shunt("interrupt", tail, "--notice", str(slow * NOTICE_S))
    await asyncio.gather(*tasks)
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)

    events = (await tiny_mesh.events_of(controller))[before_events:]
    kinds = [event.kind for event in events]
    noticed = kinds.index("interruption_noticed")
    replaced = kinds.index("replacement_ready")
    handover = kinds.index("handover_started")
    # A reader that was told to move may ask before the journal has heard of the seal.
    moves = ("generation_sealed", "generation_granted")
    sealed = [i for i, kind in enumerate(kinds) if kind in moves]
    assert noticed < replaced < handover, kinds
    assert sealed, kinds
    assert min(sealed) > handover, "a hand-over came before the replacement was ready"
    assert not {"node_lost", "pipeline_lost"} & set(kinds[: max(sealed)]), kinds
    between = int(events[handover].attributes["tokens_while_preparing"])
    assert between > 0, "the old head said nothing while the replacement was prepared"
    finished = events[kinds.index("handover_finished")]
    sealed_ids = {events[i].generation_id for i in sealed}
    assert int(finished.attributes["sealed"]) == len(sealed_ids)
    assert sealed_ids <= {r.generation_id for r in moving}
    after = await _sampled(controller)
    sampled = sum(count - before.get(name, 0) for name, count in after.items())
    assert sampled == asked.tokens * len(bodies), "some position was sampled twice, or never"
    print("longest gap", max(r.longest_gap_s() for r in moving))
    await ready.until_ready(2)
