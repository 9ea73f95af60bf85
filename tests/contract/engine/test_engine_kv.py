"""Generations that go on from the blocks that others kept, over real gRPC."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import grpc
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.engine.v1 import engine_pb2

from services.common.errors import Superseded
from services.common.exchange import CheckpointResult
from services.common.generation import GenerationRequest
from services.common.prefix import chain_of
from services.engine import block_moves, head, kv_calls
from tests.contract.engine.rig import Rig, Stream, Worker, generate, request
from tests.contract.engine.tiny import LAYERS, TinyBackend, expected_ids
from tests.waiting import until

PROMPT = [5 + 7 * i % 500 for i in range(70)]
TOKENS = 120
LONG = 400


async def _stats(worker: Worker) -> engine_pb2.EngineStats:
    return (await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)).stats


def source_of(
    workers: Sequence[Worker], cuts: Sequence[int], formation: str
) -> common_pb2.KvSource:
    """As the controller names them."""
    bounds = [0, *cuts, LAYERS]
    members = [
        common_pb2.KvMember(
            address=worker.address,
            incarnation=worker.incarnation,
            layers=common_pb2.LayerRange(start=start, end=end),
        )
        for worker, start, end in zip(workers, bounds, bounds[1:], strict=False)
    ]
    return common_pb2.KvSource(formation_id=formation, members=members)


async def journal(worker: Worker) -> None:
    """Answers for every checkpoint of its generations, as a journal that has them."""
    assert worker.engine is not None
    head, lengths = worker.engine.head, dict[str, int]()
    head.checkpoint_stream_opened()
    for message in itertools.count(1):
        for checkpoint in head.take_checkpoints(message):
            name, epoch = checkpoint.generation_id, checkpoint.epoch
            lengths[name] = max([lengths.get(name, 0), *(span.end for span in checkpoint.spans)])
            head.checkpoint_results(message, [CheckpointResult(name, epoch, (lengths[name],))])
        await asyncio.sleep(0.005)


async def to_the_end(
    head: Worker, stream: Stream, drain: engine_pb2.DrainRequest
) -> engine_pb2.DrainResponse:
    journaling = asyncio.create_task(journal(head))
    try:
        _, reply = await asyncio.gather(stream.end(), head.stub.Drain(drain, timeout=60))
        return reply
    finally:
        journaling.cancel()


async def drained(
    workers: Sequence[Worker], asked: GenerationRequest, formation: str, least: int, **more: object
) -> list[int]:
    """Its ids when the formation was drained in the middle of it."""
    stream = generate(workers[0], asked, formation)
    await stream.until(lambda s: len(s.ids.get(0, ())) >= least)
    drain = engine_pb2.DrainRequest(formation_id=formation, keep_kv=True, **more)  # type: ignore[arg-type]
    reply = await to_the_end(workers[0], stream, drain)
    assert (stream.closed, reply.sealed_generations) == (engine_pb2.CLOSE_REASON_MOVED, 1)
    assert least <= len(stream.ids[0]) < TOKENS
    for worker in workers:
        await worker.stub.Dissolve(engine_pb2.DissolveRequest(formation_id=formation), timeout=60)
    return stream.ids[0]


async def resumed(
    head: Worker,
    asked: GenerationRequest,
    formation: str,
    held: Sequence[int],
    source: common_pb2.KvSource,
) -> Stream:
    """To the end, at the next epoch."""
    stream = generate(head, asked, formation, epoch=2, held=held, start=len(held), kv_source=source)
    await stream.end()
    assert stream.closed == engine_pb2.CLOSE_REASON_FINISHED
    return stream


@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([2], [4]), ([4], [2]), ([3], [1, 4]), ([1, 2, 4], [])]
)
async def test_a_generation_goes_on_from_its_blocks_in_any_other_layout(
    rig: Rig, before: list[int], after: list[int]
) -> None:
    old = [await rig.worker(step_s=0.004) for _ in range(len(before) + 1)]
    new = [await rig.worker() for _ in range(len(after) + 1)]
    await rig.form(old, before, "f1")
    await rig.form(new, after, "f2")
    asked = request("g", PROMPT, TOKENS)
    held = await drained(old, asked, "f1", 20)
    full = (len(PROMPT) + len(held) - 1) // 16
    kept = [(await _stats(worker)).kept_kv_bytes for worker in old]
    assert sum(kept) == full * LAYERS * 64
    stream = await resumed(new[0], asked, "f2", held, source_of(old, before, "f1"))
    assert held + stream.ids[0] == expected_ids(PROMPT, TOKENS)
    stats = [await _stats(worker) for worker in new]
    assert [one.filled_kv_blocks for one in stats] == [full] * len(new)
    assert stats[0].prefix_hits == full * 16
    assert stats[0].replayed_tokens <= 16
    assert stats[0].used_kv_blocks == 0


def heir_of(workers: Sequence[Worker], cuts: Sequence[int], *generations: str) -> engine_pb2.KvHeir:
    members = source_of(workers, cuts, "").members
    return engine_pb2.KvHeir(members=members, generation_ids=generations)


async def copied(
    head: Worker,
    source: common_pb2.KvSource,
    *heirs: engine_pb2.KvHeir,
    limit_s: float = 60.0,
    max_rounds: int = 0,
) -> engine_pb2.CopyKvResponse:
    """What went ahead of what runs."""
    asked = engine_pb2.CopyKvRequest(
        formation_id=source.formation_id,
        source=source,
        heirs=heirs,
        limit_s=limit_s,
        max_rounds=max_rounds,
    )
    return await head.stub.CopyKv(asked, timeout=2 * limit_s)


@pytest.mark.parametrize(("before", "after"), [([], []), ([2], [4]), ([3], [1, 4])])
async def test_blocks_go_ahead_while_their_generation_runs_on(
    rig: Rig, before: list[int], after: list[int]
) -> None:
    """Behind the seal its heirs lack what it filled since, and no more than that comes: it is sent
    to them while its reader asks who they are, or is fetched, or both."""
    old = [await rig.worker(step_s=0.01) for _ in range(len(before) + 1)]
    new = [await rig.worker() for _ in range(len(after) + 1)]
    await rig.form(old, before, "f1")
    asked, source = request("g", PROMPT, LONG), source_of(old, before, "f1")
    stream = generate(old[0], asked, "f1")
    await stream.until(lambda s: len(s.ids.get(0, ())) >= 4)
    answer = await copied(old[0], source, heir_of(new, after, "g", "another"))
    assert answer.blocks >= len(PROMPT) // 16
    assert answer.rounds >= 1
    assert answer.copied_bytes == answer.blocks * LAYERS * 64
    assert sum([(await _stats(one)).kept_kv_bytes for one in new]) == answer.copied_bytes
    await stream.until(lambda s: len(s.ids[0]) >= 20)
    drain = engine_pb2.DrainRequest(formation_id="f1", keep_kv=True)
    await to_the_end(old[0], stream, drain)
    held = stream.ids[0]
    await rig.form(new, after, "f2")
    filled = (len(PROMPT) + len(held) - 1) // 16
    stream = await resumed(new[0], asked, "f2", held, source)
    assert held + stream.ids[0] == expected_ids(PROMPT, LONG)
    assert [(await _stats(one)).filled_kv_blocks for one in new] == [filled] * len(new)
    fetched = [worker.engine.kv.fetched_bytes for worker in new if worker.engine is not None]
    rest = (filled - answer.blocks) * LAYERS * 64
    assert rest <= sum(fetched) - answer.copied_bytes <= 2 * rest


async def test_the_last_block_of_what_is_sealed_lies_in_caches_before_its_reader_comes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long steps and calls take on a busy machine.
    monkeypatch.setattr(block_moves, "COPYING_AGAIN_S", 60.0)
    monkeypatch.setattr(block_moves, "REST_S", 60.0)
    old = [await rig.worker(step_s=0.02) for _ in range(2)]
    new = [await rig.worker(step_s=0.002) for _ in range(3)]
    await rig.form(old, [2], "f1")
    await rig.form(new, [1, 4], "f2")
    asked, source = request("g", PROMPT, LONG), source_of(old, [2], "f1")
    stream = generate(old[0], asked, "f1")
    await stream.until(lambda s: len(s.ids.get(0, ())) >= 4)
    heir = heir_of(new, [1, 4], "g")
    heir.formation_id = "f2"
    answer = await copied(old[0], source, heir)
    one_more = (answer.cached + 1) * 16 + 2 - len(PROMPT)
    await stream.until(lambda s: len(s.ids[0]) >= one_more)
    drain = engine_pb2.DrainRequest(formation_id="f1", keep_kv=True)
    await to_the_end(old[0], stream, drain)
    held = stream.ids[0]
    filled = (len(PROMPT) + len(held) - 1) // 16
    assert filled > answer.cached
    heads = [worker.engine.head for worker in new[:1] if worker.engine is not None]
    await until(
        lambda: [h.scheduler and h.scheduler.blocks.cached_count for h in heads] == [filled]
    )
    stream = await resumed(new[0], asked, "f2", held, source)
    assert held + stream.ids[0] == expected_ids(PROMPT, LONG)
    stats = await _stats(new[0])
    assert (stats.filled_kv_blocks, stats.prefix_hits) == (filled, filled * 16)


@pytest.mark.parametrize("lost", ["head", "tail"])
async def test_blocks_of_who_follows_in_the_same_seats_lie_in_place_before_it_begins(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Who keeps its seat has them, and who takes one has had them come ahead. Behind the seal no
    block is copied, and none that others write to since is taken for what it was."""
    monkeypatch.setattr(block_moves, "COPYING_AGAIN_S", 60.0)
    monkeypatch.setattr(block_moves, "REST_S", 60.0)
    copied_in, import_blocks = list[list[int]](), TinyBackend.import_blocks

    def counted(backend: TinyBackend, blocks: Sequence[int], data: Sequence[bytes]) -> None:
        copied_in.append(list(blocks))
        import_blocks(backend, blocks, data)

    monkeypatch.setattr(TinyBackend, "import_blocks", counted)
    old, spare = [await rig.worker(step_s=0.02) for _ in range(2)], await rig.worker()
    await rig.form(old, [2], "f1", blocks=32)
    await rig.hold(spare, (0, 2) if lost == "head" else (2, LAYERS))
    new = [spare, old[1]] if lost == "head" else [old[0], spare]
    asked, source = request("g", PROMPT, LONG), source_of(old, [2], "f1")
    stream = generate(old[0], asked, "f1")
    await stream.until(lambda s: len(s.ids.get(0, ())) >= 4)
    answer = await copied(old[0], source, heir_of(new, [2], "g"))
    one_more = (answer.blocks + 1) * 16 + 2 - len(PROMPT)
    await stream.until(lambda s: len(s.ids[0]) >= one_more)
    await to_the_end(old[0], stream, engine_pb2.DrainRequest(formation_id="f1", keep_kv=True))
    held = stream.ids[0]
    filled = (len(PROMPT) + len(held) - 1) // 16
    assert filled > answer.blocks
    engines = [worker.engine for worker in new if worker.engine is not None]
    ahead = [engine.stages._cache for engine in engines if engine.node_id == spare.node_id]
    await until(lambda: [len(one[1].contents) if one else 0 for one in ahead] == [filled])
    for worker in old:
        await worker.stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f1"), timeout=60)
    assert sum(map(len, copied_in)) >= filled
    copied_in.clear()
    for worker in old:
        assert worker.loader is not None
        worker.loader.backends[0].step_s = 0.0
    await rig.join(new, [2], "f2", blocks=32)
    stream = await resumed(new[0], asked, "f2", held, source)
    assert held + stream.ids[0] == expected_ids(PROMPT, LONG)
    assert copied_in == []
    stats = [await _stats(worker) for worker in new]
    assert stats[0].prefix_hits == filled * 16
    assert stats[0].used_kv_blocks == 0
    known = [engine.formation.contents for engine in engines if engine.formation is not None]
    assert all(len(contents) <= filled for contents in known)
    # Another one takes all blocks there are, so what lay in them is gone.
    other = request("h", range(32 * 16 - 4), 4)
    taken = generate(new[0], other, "f2")
    await taken.end()
    assert taken.ids[0] == expected_ids(other.prompt_ids, 4)
    assert [len(contents) for contents in known] == [0, 0]


@pytest.mark.parametrize(("before", "after"), [([], []), ([2], [4]), ([3], [1, 4])])
async def test_what_went_ahead_to_a_pipeline_that_serves_lies_in_its_caches(
    rig: Rig, before: list[int], after: list[int]
) -> None:
    """Behind the seal no block of it is touched; the old formation may be gone by then."""
    old = [await rig.worker(step_s=0.01) for _ in range(len(before) + 1)]
    new = [await rig.worker(step_s=0.002) for _ in range(len(after) + 1)]
    await rig.form(old, before, "f1")
    await rig.form(new, after, "f2")
    asked, source = request("g", PROMPT, LONG), source_of(old, before, "f1")
    other = generate(new[0], request("h", PROMPT[::-1], TOKENS), "f2")
    stream = generate(old[0], asked, "f1")
    await stream.until(lambda s: len(s.ids.get(0, ())) >= 4)
    heir = heir_of(new, after, "g")
    heir.formation_id = "f2"
    answer = await copied(old[0], source, heir)
    assert answer.cached == answer.blocks >= len(PROMPT) // 16
    assert [(await _stats(one)).filled_kv_blocks for one in new] == [answer.cached] * len(new)
    await to_the_end(old[0], stream, engine_pb2.DrainRequest(formation_id="f1"))
    held = stream.ids[0]
    for worker in old:
        await worker.stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f1"), timeout=60)
    stream = await resumed(new[0], asked, "f2", held, common_pb2.KvSource(formation_id="f1"))
    assert held + stream.ids[0] == expected_ids(PROMPT, LONG)
    stats = await _stats(new[0])
    assert stats.prefix_hits == answer.cached * 16
    assert stats.filled_kv_blocks == answer.cached
    await other.end()
    assert other.ids[0] == expected_ids(PROMPT[::-1], TOKENS)


async def test_nothing_goes_into_caches_of_another_formation_or_without_names(rig: Rig) -> None:
    worker = await rig.worker()
    await rig.form([worker], [], "f1")
    source = source_of([worker], [], "f0")
    for chains, formation, code in (
        ([[b"a"]], "f2", grpc.StatusCode.FAILED_PRECONDITION),
        ([[b"a", b"a"]], "f1", grpc.StatusCode.INVALID_ARGUMENT),
        ([[b"%d" % name for name in range((1 << 16) + 1)]], "f1", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        asked = engine_pb2.CacheKvRequest(
            formation_id=formation,
            source=source,
            chains=[engine_pb2.KvChain(names=names) for names in chains],
            limit_s=60,
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await worker.stub.CacheKv(asked, timeout=60)
        assert refused.value.code() is code


async def test_one_leaves_with_its_blocks_while_another_runs_on(rig: Rig) -> None:
    """Round by round, each going on where the one before was."""
    old = await rig.worker(step_s=0.004)
    new = await rig.worker(kv_silent_s=60.0, kv_fetch_s=60.0)
    await rig.form([old], [], "f1")
    await rig.form([new], [], "f2")
    goes, stays = request("goes", PROMPT, LONG), request("stays", PROMPT[::-1], LONG)
    source = source_of([old], [], "f1")
    streams = {one.generation_id: generate(old, one, "f1") for one in (goes, stays)}
    for stream in streams.values():
        await stream.until(lambda s: len(s.ids.get(0, ())) >= 4)
    first = await copied(old, source, heir_of([new], [], "goes"), max_rounds=1)
    assert first.rounds == 1
    over = await copied(old, source, heir_of([new], [], "goes"))
    assert over.over
    assert over.blocks >= first.blocks >= len(PROMPT) // 16
    own = (over.blocks - first.blocks) * LAYERS * 64
    assert over.copied_bytes == own, "what is over is not sent again"
    drain = engine_pb2.DrainRequest(
        formation_id="f1", keep_kv=True, running_generation_ids=["stays"]
    )
    journaling = asyncio.create_task(journal(old))
    try:
        reply = await old.stub.Drain(drain, timeout=60)
        assert reply.sealed_generations == 1
        held = (await streams["goes"].end()).ids[0]
        stream = await resumed(new, goes, "f2", held, source)
        assert held + stream.ids[0] == expected_ids(PROMPT, LONG)
        assert (await _stats(new)).replayed_tokens <= 32
        stayed = await streams["stays"].end()
    finally:
        journaling.cancel()
    assert stayed.closed == engine_pb2.CLOSE_REASON_FINISHED
    assert stayed.ids[0] == expected_ids(PROMPT[::-1], LONG)


async def test_a_survivor_goes_on_with_what_it_kept_itself(rig: Rig) -> None:
    """Its process has the blocks, and another formation by now."""
    gone, stays, comes = [await rig.worker(step_s=0.004) for _ in range(3)]
    await rig.form([gone, stays], [2], "f1")
    await rig.hold(comes, (0, 2))
    asked = request("g", PROMPT, TOKENS)
    held = await drained([gone, stays], asked, "f1", 20)
    await rig.join([comes, stays], [2], "f2")
    stream = await resumed(comes, asked, "f2", held, source_of([gone, stays], [2], "f1"))
    assert held + stream.ids[0] == expected_ids(PROMPT, TOKENS)
    stats = [await _stats(worker) for worker in (comes, stays)]
    assert stats[0].filled_kv_blocks == stats[1].filled_kv_blocks > 0
    assert stats[0].replayed_tokens <= 16


async def test_whoever_kept_nothing_is_gone_or_is_another_costs_time_and_no_id(rig: Rig) -> None:
    old = [await rig.worker(step_s=0.004) for _ in range(2)]
    stranger = await rig.worker()
    new = await rig.worker(kv_fetch_s=1.0, kv_silent_s=0.5)
    await rig.form(old, [2], "f1")
    await rig.form([new], [], "f2")
    asked = request("g", PROMPT, TOKENS)
    held = await drained(old, asked, "f1", 20)
    wrong = [
        source_of([stranger], [], "f1"),
        source_of([old[0], stranger], [2], "f1"),
        source_of(old, [2], "f0"),
        source_of(old[:1], [], "f1"),
    ]
    port = old[1].address.rpartition(":")[2]
    nobody = source_of(old, [2], "f1")
    nobody.members[1].address = f"127.0.0.2:{port}"
    for epoch, source in enumerate([*wrong, nobody], 2):
        stream = generate(
            new, asked, "f2", epoch=epoch, held=held, start=len(held), kv_source=source
        )
        await stream.until(lambda s: bool(s.ids.get(0)))
        ids = held + stream.ids[0]
        assert ids == expected_ids(PROMPT, TOKENS)[: len(ids)]
        stream.call.cancel()
    assert (await _stats(new)).filled_kv_blocks == 0


async def test_blocks_of_a_stage_that_does_not_answer_are_given_back_when_it_writes_no_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_calls, "ANSWER_S", 0.2)
    old, first = await rig.worker(step_s=0.004), await rig.worker(kv_fetch_s=1.0, kv_blocks=32)
    last = await rig.worker(kv_blocks=32)
    await rig.form([old], [], "f1")
    await rig.form([first, last], [3], "f2", 32)
    asked, source = request("g", PROMPT, TOKENS), source_of([old], [], "f1")
    held = await drained([old], asked, "f1", 20)
    assert last.engine is not None
    fetch, goes_on, late = last.engine.kv.fetch, asyncio.Event(), list[asyncio.Task[object]]()

    async def late_fetch(*asked: object, **more: object) -> object:
        async def behind() -> object:
            await goes_on.wait()
            return await fetch(*asked, **more)  # type: ignore[arg-type]

        late.append(asyncio.create_task(behind()))
        return await asyncio.shield(late[-1])

    monkeypatch.setattr(last.engine.kv, "fetch", late_fetch)
    stream = await resumed(first, asked, "f2", held, source)
    assert held + stream.ids[0] == expected_ids(PROMPT, TOKENS)
    assert first.engine is not None
    scheduler = first.engine.head.scheduler
    assert scheduler is not None
    await until(lambda: not scheduler.used_blocks)
    other = generate(first, request("h", PROMPT[::-1], LONG), "f2")  # in nearly all blocks
    await other.until(lambda s: len(s.ids.get(0, ())) >= 20)
    goes_on.set()
    (behind,) = late
    with pytest.raises(Superseded):
        await behind
    await other.end()
    assert other.ids[0] == expected_ids(PROMPT[::-1], LONG)


async def test_a_generation_leaves_when_its_last_block_is_full(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes on with it computes the row of its last id."""
    monkeypatch.setattr(head, "AT_BLOCK_ENDS_S", 60.0)
    old, new = await rig.worker(step_s=0.004, max_drafts=0), await rig.worker()
    await rig.form([old], [], "f1")
    await rig.form([new], [], "f2")
    asked = request("g", PROMPT, TOKENS)
    held = await drained([old], asked, "f1", 20)
    assert (len(PROMPT) + len(held)) % 16 == 1
    stream = await resumed(new, asked, "f2", held, source_of([old], [], "f1"))
    assert held + stream.ids[0] == expected_ids(PROMPT, TOKENS)
    assert (await _stats(new)).replayed_tokens == 1


async def test_what_leaves_first_is_kept_before_the_last_one_leaves(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each at the end of its own block."""
    monkeypatch.setattr(head, "AT_BLOCK_ENDS_S", 60.0)
    old = await rig.worker(step_s=0.004, max_drafts=0)
    new = await rig.worker(kv_fetch_s=60.0, kv_silent_s=60.0)
    await rig.form([old], [], "f1")
    await rig.form([new], [], "f2")
    source = source_of([old], [], "f1")
    asked = [request(f"g{i}", PROMPT[: 70 - 8 * i], LONG) for i in range(2)]
    streams = [generate(old, one, "f1") for one in asked]
    for stream in streams:
        await stream.until(lambda s: len(s.ids.get(0, ())) >= 4)
    drain = engine_pb2.DrainRequest(formation_id="f1", keep_kv=True)
    journaling = asyncio.create_task(journal(old))
    draining = asyncio.ensure_future(old.stub.Drain(drain, timeout=60))
    await asyncio.gather(*(stream.end() for stream in streams))
    journaling.cancel()
    for one, stream in zip(asked, streams, strict=True):
        assert stream.closed == engine_pb2.CLOSE_REASON_MOVED
        assert (len(one.prompt_ids) + len(stream.ids[0])) % 16 == 1
        goes_on = await resumed(new, one, "f2", stream.ids[0], source)
        assert stream.ids[0] + goes_on.ids[0] == expected_ids(one.prompt_ids, LONG)
    assert (await _stats(new)).replayed_tokens == 2
    draining.cancel()


async def test_what_is_to_be_replayed_is_not_kept(rig: Rig) -> None:
    worker = await rig.worker(step_s=0.004)
    await rig.form([worker], [], "f1")
    await drained([worker], request("g", PROMPT, TOKENS), "f1", 20, replayed_generation_ids=["g"])
    assert (await _stats(worker)).kept_kv_bytes == 0


async def test_nothing_is_kept_unless_it_is_asked_for(rig: Rig) -> None:
    worker = await rig.worker(step_s=0.004)
    await rig.form([worker], [], "f1")
    stream = generate(worker, request("g", PROMPT, TOKENS), "f1")
    await stream.until(lambda s: len(s.ids.get(0, ())) >= 4)
    drain = engine_pb2.DrainRequest(formation_id="f1")
    await to_the_end(worker, stream, drain)
    assert (await _stats(worker)).kept_kv_bytes == 0


async def test_blocks_are_read_by_the_formation_and_layout_that_they_are_of(rig: Rig) -> None:
    worker = await rig.worker(step_s=0.004)
    await rig.form([worker], [], "f1")
    layout = worker.loader.backends[-1].kv_layout.name  # type: ignore[union-attr]
    asked = request("g", PROMPT, TOKENS)
    await drained([worker], asked, "f1", 4)
    names = list(chain_of(asked, 16))

    async def read(**changes: object) -> list[engine_pb2.ReadKvResponse]:
        wanted = engine_pb2.ReadKvRequest(
            formation_id="f1",
            layout=layout,
            layers=common_pb2.LayerRange(start=1, end=4),
            names=names,
        )
        wanted.MergeFrom(engine_pb2.ReadKvRequest(**changes))  # type: ignore[arg-type]
        return [piece async for piece in worker.stub.ReadKv(wanted, timeout=60)]

    pieces = await read()
    assert [piece.name for piece in pieces] == names
    assert {(piece.layers.start, piece.layers.end) for piece in pieces} == {(1, 4)}
    assert {len(piece.data) for piece in pieces} == {3 * 64}
    for field, changes in (
        ("formation", {"formation_id": "f2"}),
        ("blocks lie as", {"layout": "x"}),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match=field) as refused:
            await read(**changes)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


READ = [5 + 7 * i % 500 for i in range(300)]


async def test_blocks_follow_to_where_a_prompt_is_handed_on_while_it_is_read(rig: Rig) -> None:
    """They lie in the caches of what decodes by then, and only the last ones are fetched."""
    old = [await rig.worker(step_s=0.1, token_budget=16, max_sequences=4), await rig.worker()]
    new = [await rig.worker(), await rig.worker()]
    await rig.form(old, [2], "f1")
    await rig.form(new, [4], "f2")
    asked, source = request("g", READ, TOKENS), source_of(old, [2], "f1")
    stream = generate(old[0], asked, "f1", hand_on=True)
    await stream.until(lambda s: bool(s.frames))
    heir = heir_of(new, [4], "g")
    heir.formation_id = "f2"
    follows = engine_pb2.CopyKvRequest(
        formation_id="f1", source=source, heirs=[heir], limit_s=60.0, follows=True
    )
    answer = await old[0].stub.CopyKv(follows, timeout=120)
    assert answer.rounds > 1, "it goes on while the prompt is read, and ends with that"
    await stream.end()
    assert stream.closed == engine_pb2.CLOSE_REASON_HANDED_ON
    held = stream.ids[0]
    assert len(held) == 1
    full = len(READ) // 16
    assert full // 3 <= answer.cached <= full
    assert [(await _stats(one)).filled_kv_blocks for one in new] == [answer.cached] * 2
    stream = await resumed(new[0], asked, "f2", held, source)
    assert held + stream.ids[0] == expected_ids(READ, TOKENS)
    assert [(await _stats(one)).filled_kv_blocks for one in new] == [full] * 2
