"""Engines hold what they are told, beside what they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import pytest
from shuntserve.engine.v1 import engine_pb2

from services.common.errors import (
    FailedPrecondition,
    InvalidArgument,
    ShuntError,
    Superseded,
    Unavailable,
)
from services.common.statuses import from_rpc_error
from tests.contract.engine.rig import Rig, Worker, generate, request, until
from tests.contract.engine.tiny import LAYER_BYTES, LAYERS, TinyLoader, expected_ids

PROMPT = [5, 6, 7]
SLOW_STEP_S = 0.005


def loader_of(worker: Worker) -> TinyLoader:
    assert worker.loader is not None
    return worker.loader


async def refusal(worker: Worker, hold: engine_pb2.HoldRequest) -> ShuntError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        async for _ in worker.stub.Hold(hold, timeout=60):
            pass
    return from_rpc_error(failed.value)


async def described(worker: Worker) -> engine_pb2.DescribeResponse:
    return await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)


async def ranges_of(worker: Worker) -> list[tuple[int, int]]:
    layers = [holding.stage.layers for holding in (await described(worker)).stages]
    return [(held.start, held.end) for held in layers]


async def dissolve(workers: Sequence[Worker], formation_id: str) -> None:
    for worker in workers:
        asked = engine_pb2.DissolveRequest(formation_id=formation_id)
        await worker.stub.Dissolve(asked, timeout=60)


async def test_two_stages_are_held_and_one_is_dropped_and_shared_layers_are_read_once(
    rig: Rig,
) -> None:
    worker = await rig.worker()
    loader = loader_of(worker)
    both = await rig.hold(worker, (0, 4), (2, 6))
    assert [(h.held, h.cached, h.kv_blocks) for h in both.stages] == [(True, False, 128)] * 2
    assert {h.numerics_class for h in both.stages} == {"exact-tiny"}
    assert sorted(loader.read) == list(range(6))
    assert (both.loaded_bytes, both.total_bytes) == (6 * LAYER_BYTES, 6 * LAYER_BYTES)
    assert await ranges_of(worker) == [(0, 4), (2, 6)]
    told = await described(worker)
    assert [t.name for t in told.tensors] == [f"model.layers.{i}.w" for i in range(6)]
    assert told.packed_bytes == 6 * 64
    again = await rig.hold(worker, (2, 6))
    assert (again.loaded_bytes, again.total_bytes) == (0, 0)
    assert await ranges_of(worker) == [(2, 6)]
    assert [backend.closed for backend in loader.backends] == [True, False]
    # What the next one shares with the last one outlives it; what it does not share is read again.
    await rig.hold(worker, (1, 5))
    assert loader.read[6:] == [1]
    assert not (await rig.hold(worker)).stages
    assert await ranges_of(worker) == []
    assert loader.held == set()


async def test_a_stage_beyond_memory_is_refused_by_how_much_and_nothing_is_dropped(
    rig: Rig,
) -> None:
    worker = await rig.worker(memory_bytes=1 << 20)  # five layers and no sixth
    await rig.hold(worker, (0, 2))
    refused = await refusal(worker, rig.hold_request((2, 4), (0, 6)))
    assert isinstance(refused, FailedPrecondition)
    assert refused.field == "stages.layers"
    lacking = LAYERS * LAYER_BYTES + LAYERS * 1000 - (1 << 20)
    assert f"in {1 << 20}: {lacking} bytes are lacking" in refused.message
    assert await ranges_of(worker) == [(0, 2)]
    assert loader_of(worker).read == [0, 1]


async def test_memory_is_what_was_found_where_that_is_less_than_was_told(rig: Rig) -> None:
    worker = await rig.worker(memory_bytes=1 << 30, there_bytes=1 << 20)
    refused = await refusal(worker, rig.hold_request((0, 6)))
    assert f"in {1 << 20}: " in refused.message


@pytest.mark.parametrize(
    ("ranges", "tp_degree", "field"),
    [
        ([(0, 3)], 2, "stages.tp_degree"),
        ([(0, 3)], 0, "stages.tp_degree"),
        ([(0, 7)], 1, "stages.layers"),
        ([(3, 3)], 1, "layers"),
        ([(0, 3), (0, 3)], 1, "stages"),
        ([(i % 5, 6 - i // 5) for i in range(9)], 1, "stages"),
    ],
)
async def test_what_cannot_be_held_is_refused_by_field(
    rig: Rig, ranges: list[tuple[int, int]], tp_degree: int, field: str
) -> None:
    worker = await rig.worker()
    await rig.hold(worker, (0, 1))
    refused = await refusal(worker, rig.hold_request(*ranges, tp_degree=tp_degree))
    assert isinstance(refused, InvalidArgument)
    assert refused.field == field
    assert await ranges_of(worker) == [(0, 1)]


async def test_a_hold_is_joined_and_a_newer_one_takes_its_place(rig: Rig) -> None:
    worker = await rig.worker()
    loader = loader_of(worker)
    loader.gate.set()
    calls = [worker.stub.Hold(rig.hold_request((0, 3)), timeout=60) for _ in range(3)]
    for call in calls:
        begun = await call.read()
        assert isinstance(begun, engine_pb2.HoldResponse)
        assert not begun.done
    calls.pop(0).cancel()  # the load goes on without the one who asked first
    loader.gate.clear()
    for call in calls:
        while isinstance(message := await call.read(), engine_pb2.HoldResponse):
            last = message
        assert last.stages[0].held
        assert last.loaded_bytes == 3 * LAYER_BYTES
    assert loader.read == [0, 1, 2]
    loader.gate.set()
    older = asyncio.create_task(refusal(worker, rig.hold_request((2, 6))))

    async def loads() -> bool:
        return 1 not in loader.held

    await until(loads)
    newer = asyncio.create_task(rig.hold(worker, (2, 5)))
    assert isinstance(await older, Superseded)
    loader.gate.clear()
    assert (await newer).stages[0].held
    assert await ranges_of(worker) == [(2, 5)]
    assert loader.read == [0, 1, 2, 3, 4]


async def test_a_load_that_broke_off_goes_on_with_what_it_lacked(rig: Rig) -> None:
    worker = await rig.worker()
    loader_of(worker).failures = 1
    assert isinstance(await refusal(worker, rig.hold_request((0, 4))), Unavailable)
    assert await ranges_of(worker) == []
    assert (await rig.hold(worker, (0, 4))).stages[0].held
    assert loader_of(worker).read == [0, 1, 2, 3]


async def test_a_node_that_serves_prepares_its_next_range_and_switches_without_a_load(
    rig: Rig,
) -> None:
    """From [0, 3) [3, 6) to [0, 4) [4, 6): prepared beside a stream, whose ids stay exact."""
    workers = [await rig.worker(step_s=SLOW_STEP_S) for _ in range(2)]
    await rig.form(workers, [3], "f1")
    stream = generate(workers[0], request("g", PROMPT, 400), "f1")
    await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
    loader_of(workers[0]).gate.set()
    preparing = [
        asyncio.create_task(rig.hold(workers[0], (0, 3), (0, 4))),
        asyncio.create_task(rig.hold(workers[1], (3, 6), (4, 6))),
    ]
    had = len(stream.ids[0])
    await stream.until(lambda s: len(s.ids[0]) >= had + 20)  # while it loads
    loader_of(workers[0]).gate.clear()
    for prepared in await asyncio.gather(*preparing):
        assert [holding.held for holding in prepared.stages] == [True, True]
    assert [loader_of(worker).read for worker in workers] == [[0, 1, 2, 3], [3, 4, 5]]
    had = len(stream.ids[0])
    await stream.until(lambda s: len(s.ids[0]) >= had + 20)
    read = [list(loader_of(worker).read) for worker in workers]
    await dissolve(workers, "f1")
    await stream.end()
    assert stream.closed == engine_pb2.CLOSE_REASON_DISSOLVED
    held = stream.ids[0]
    assert held == expected_ids(PROMPT, len(held))
    await rig.join(workers, [4], "f2")
    rest = generate(
        workers[0], request("g", PROMPT, 400), "f2", epoch=2, held=held, start=len(held)
    )
    await rest.until(lambda s: len(s.ids.get(0, [])) >= 20)
    ids = [*held, *rest.ids[0]]
    assert ids == expected_ids(PROMPT, len(ids))
    assert [loader_of(worker).read for worker in workers] == read
    assert await ranges_of(workers[0]) == [(0, 3), (0, 4)]


async def test_a_stage_that_is_left_out_serves_until_its_formation_ends(rig: Rig) -> None:
    worker = await rig.worker(step_s=SLOW_STEP_S)
    await rig.form([worker], [], "f1")
    stream = generate(worker, request("g", PROMPT, 300), "f1")
    await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
    prepared = await rig.hold(worker, (2, 4))
    assert prepared.stages[0].held
    assert sorted(await ranges_of(worker)) == [(0, 6), (2, 4)]
    had = len(stream.ids[0])
    await stream.until(lambda s: len(s.ids[0]) >= had + 20)
    assert stream.ids[0] == expected_ids(PROMPT, len(stream.ids[0]))
    join = rig.form_request([worker], [], "f2", 0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:  # it goes: nobody may count on it
        await worker.stub.Form(join, timeout=60)
    assert isinstance(from_rpc_error(refused.value), FailedPrecondition)
    await dissolve([worker], "f1")
    assert await ranges_of(worker) == [(2, 4)]
    whole = loader_of(worker).backends[0]

    async def closed() -> bool:
        return whole.closed and loader_of(worker).held == {2, 3}

    await until(closed)


async def test_a_stage_asked_for_again_stays_behind_its_formation(rig: Rig) -> None:
    worker = await rig.worker()
    await rig.form([worker], [], "f1")
    await rig.hold(worker, (2, 4))
    await rig.hold(worker, (0, 6))
    (whole, _) = loader_of(worker).backends
    assert whole.kv_blocks == 64
    await dissolve([worker], "f1")
    assert await ranges_of(worker) == [(0, 6)]

    async def cache_gone() -> bool:
        return not whole.kv_blocks

    await until(cache_gone)
    await rig.join([worker], [], "f2")
    assert whole.kv_blocks == 64
    assert loader_of(worker).read == [0, 1, 2, 3, 4, 5]


async def test_what_has_no_room_beside_a_formation_is_cached_and_the_switch_costs_one_copy(
    rig: Rig,
) -> None:
    """Memory of five layers: three and their cache serve, three others have no room beside."""
    worker, other = await rig.worker(memory_bytes=1 << 20), await rig.worker()
    loader = loader_of(worker)
    await rig.form([worker, other], [3], "f1")
    stream = generate(worker, request("g", PROMPT, 20), "f1")
    prepared = await rig.hold(worker, (0, 3), (3, 6))
    assert [(h.held, h.cached) for h in prepared.stages] == [(True, False), (False, True)]
    assert prepared.stages[1].kv_blocks == 0
    assert [(layers.start, layers.end) for layers in loader.prefetched] == [(3, 6)]
    assert await ranges_of(worker) == [(0, 3)]
    await stream.end()
    assert stream.ids[0] == expected_ids(PROMPT, 20)
    await dissolve([worker, other], "f1")
    switched = await rig.hold(worker, (3, 6))
    assert switched.stages[0].held
    assert loader.read == [0, 1, 2, 3, 4, 5]
    await rig.hold(other, (0, 3))
    await rig.join([other, worker], [3], "f2")
    again = await generate(other, request("h", PROMPT, 20), "f2").end()
    assert again.ids[0] == expected_ids(PROMPT, 20)


async def test_room_for_a_cache_is_told_as_it_is_and_no_more_is_given(rig: Rig) -> None:
    worker = await rig.worker(memory_bytes=1_230_000, kv_blocks=1000)
    alone = await rig.hold(worker, (0, 6))
    assert alone.stages[0].kv_blocks == 30_000 // 6_000
    (front,) = (await rig.hold(worker, (0, 3))).stages
    assert front.kv_blocks == 630_000 // 3_000
    both = await rig.hold(worker, (0, 3), (0, 5))
    assert [h.kv_blocks for h in both.stages] == [230_000 // 3_000, 230_000 // 5_000]
    await rig.hold(worker, (0, 6))
    too_much = rig.form_request([worker], [], "f1", 0, blocks=6)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await worker.stub.Form(too_much, timeout=60)
    assert "[1, 5]" in str(refused.value.details())
    await rig.join([worker], [], "f1", blocks=5)
    assert loader_of(worker).backends[-1].kv_blocks == 5
