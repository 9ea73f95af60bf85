"""What nobody reads gives its place away, over real gRPC and two stages."""

from __future__ import annotations

import asyncio

from shuntserve.engine.v1 import engine_pb2

from tests.contract.engine.rig import Rig, Stream, Worker, generate, request, until
from tests.contract.engine.tiny import expected_ids

PROMPT = [5, 6, 7, 8, 9]
PLACES = 4
LONG = 400


async def _stats(worker: Worker) -> engine_pb2.EngineStats:
    return (await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)).stats


async def _pipeline(rig: Rig) -> Worker:
    """Its head; a detached generation is not parked for as long as a test takes."""
    workers = [
        await rig.worker(
            max_sequences=PLACES, token_budget=32, step_s=0.01, detach_s=60.0, yield_s=0.05
        )
        for _ in range(2)
    ]
    await rig.form(workers, [3], "f1")
    return workers[0]


async def _crowd(head: Worker, count: int) -> list[Stream]:
    """Streams of which `PLACES` run and the others wait."""
    streams = [generate(head, request(f"g{i}", PROMPT, LONG), "f1") for i in range(count)]
    await asyncio.gather(*(stream.until(lambda s: bool(s.frames)) for stream in streams))

    async def full() -> bool:
        stats = await _stats(head)
        return (stats.running, stats.queued) == (PLACES, count - PLACES)

    await until(full)
    return streams


async def test_a_read_generation_is_served_before_a_crowd_that_left(rig: Rig) -> None:
    head = await _pipeline(rig)
    for stream in await _crowd(head, 12):
        stream.call.cancel()
    before = (await _stats(head)).steps
    live = await generate(head, request("live", PROMPT, 20), "f1").until(lambda s: bool(s.ids))
    steps = (await _stats(head)).steps - before
    print(f"first token behind {steps} steps")
    assert steps <= 60, "the crowd alone would take twelve hundred"
    assert (await live.end()).ids[0] == expected_ids(PROMPT, 20)


async def test_who_comes_back_to_a_generation_that_gave_way_misses_nothing(rig: Rig) -> None:
    head = await _pipeline(rig)
    crowd = await _crowd(head, PLACES)
    await crowd[0].until(lambda s: len(s.ids.get(0, ())) >= 10)
    for stream in crowd:
        stream.call.cancel()
    live = [generate(head, request(f"live{i}", PROMPT, LONG), "f1") for i in range(PLACES)]
    await asyncio.gather(*(stream.until(lambda s: bool(s.ids)) for stream in live))
    back = generate(head, request("g0", PROMPT, LONG), "f1")
    for stream in live:
        stream.call.cancel()
    await back.end()
    assert back.ids[0] == expected_ids(PROMPT, LONG)
    assert back.closed == engine_pb2.CLOSE_REASON_FINISHED


async def test_a_parked_generation_leaves_its_place_at_once(rig: Rig) -> None:
    head = await _pipeline(rig)
    crowd = await _crowd(head, 6)
    for number, stream in enumerate(crowd):
        stream.call.cancel()
        gone = engine_pb2.DetachRequest(generation_id=f"g{number}", epoch=1)
        await head.stub.Detach(gone, timeout=60)

    async def idle() -> bool:
        stats = await _stats(head)
        return stats.running == stats.queued == stats.used_kv_blocks == 0

    await until(idle)
    assert (await _stats(head)).sampled_tokens < 6 * LONG
    nobody = engine_pb2.DetachRequest(generation_id="nobody", epoch=1)
    await head.stub.Detach(nobody, timeout=60)
