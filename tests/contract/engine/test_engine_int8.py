"""A real model's generation goes on from blocks in int8, over real gRPC."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from shuntserve.engine.v1 import engine_pb2

from services.common.exchange import Checkpoint, CheckpointResult
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.native.loader import NativeLoader, NativeOptions
from services.tensorstore.client import open_store
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import DEFAULT_MODEL, default_source, open_source
from tests.contract.engine.rig import Rig, Stream, Worker, generate
from tests.contract.engine.test_engine_kv import source_of

LAYERS, TOKENS = 30, 240
PATIENT = {"kv_fetch_s": 60.0, "kv_keep_s": 120.0, "kv_silent_s": 30.0}
PROMPT = tuple(5 + 7 * i % 500 for i in range(70))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("store")
    checkpoint = open_source(default_source())
    try:
        import_checkpoint(checkpoint, DirectoryBackend(path), DEFAULT_MODEL)
    finally:
        checkpoint.close()
    return path


async def journal(worker: Worker, seen: list[Checkpoint], held: int = 0) -> None:
    """Answers for every checkpoint of its generations, as a journal that has them, and so many of
    their ids before."""
    assert worker.engine is not None
    head, lengths = worker.engine.head, dict[str, int]()
    head.checkpoint_stream_opened()
    for message in itertools.count(1):
        for checkpoint in head.take_checkpoints(message):
            seen.append(checkpoint)
            name, epoch = checkpoint.generation_id, checkpoint.epoch
            lengths[name] = max([lengths.get(name, held), *(span.end for span in checkpoint.spans)])
            head.checkpoint_results(message, [CheckpointResult(name, epoch, (lengths[name],))])
        await asyncio.sleep(0.005)


async def moved(
    rig: Rig, asked: GenerationRequest, old: Worker, new: list[Worker], place: int
) -> tuple[list[int], list[Checkpoint], int, int]:
    """Its ids to the end, what its second head told, and the bytes that came and were kept."""
    formation, seen = f"f{place}", list[Checkpoint]()
    await rig.form([old], [], formation)
    stream = generate(old, asked, formation)
    await stream.until(lambda s: len(s.ids.get(0, ())) >= 20)
    drain = engine_pb2.DrainRequest(formation_id=formation, keep_kv=True)
    journaling = asyncio.create_task(journal(old, []))
    await asyncio.gather(stream.end(), old.stub.Drain(drain, timeout=120))
    journaling.cancel()
    assert stream.closed == engine_pb2.CLOSE_REASON_MOVED
    described = await old.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
    await old.stub.Dissolve(engine_pb2.DissolveRequest(formation_id=formation), timeout=60)
    before = sum(worker.engine.kv.fetched_bytes for worker in new if worker.engine is not None)
    await rig.form(new, [12], f"{formation}-next")
    held, source = stream.ids[0], source_of([old], [], formation)
    source.members[0].layers.end = LAYERS
    following: Stream = generate(
        new[0], asked, f"{formation}-next", epoch=2, held=held, start=len(held), kv_source=source
    )
    journaling = asyncio.create_task(journal(new[0], seen, len(held)))
    await following.end()
    journaling.cancel()
    assert following.closed == engine_pb2.CLOSE_REASON_FINISHED
    for worker in new:
        gone = engine_pb2.DissolveRequest(formation_id=f"{formation}-next")
        await worker.stub.Dissolve(gone, timeout=60)
    came = sum(worker.engine.kv.fetched_bytes for worker in new if worker.engine is not None)
    return held + following.ids[0], seen, came - before, described.stats.kept_kv_bytes


async def test_its_blocks_take_half_of_the_bytes_and_its_head_says_so(store: Path) -> None:
    model = ModelRef(DEFAULT_MODEL, open_store(str(store)).model(DEFAULT_MODEL).digest)
    sampling = Sampling(TOKENS, temperature=0.0, ignore_eos=True, kv_int8=True)
    rounds = GenerationRequest("rounds", model, PROMPT, sampling)
    exact = replace(rounds, generation_id="exact", sampling=replace(sampling, kv_int8=False))
    async with AsyncExitStack() as stack:
        rig = Rig(stack, model, layer_count=LAYERS)
        loader = NativeLoader(NativeOptions(str(store), "bf16", "cpu", 1, None))
        old, *new = [await rig.worker(loader=loader, progress_s=60.0, **PATIENT) for _ in range(3)]
        found = [await moved(rig, one, old, new, n) for n, one in enumerate((exact, rounds))]
        await rig.form([old], [], "alone")
        alone = await generate(old, replace(exact, generation_id="alone"), "alone").end()
    (ids, told, came, kept), (others, of_rounds, small, _) = found
    assert ids == alone.ids[0]
    assert not any(one.inexact for one in told)
    assert came == kept
    assert len(others) == TOKENS
    assert others[:20] == ids[:20]
    assert any(one.inexact for one in of_rounds)
    blocks = kept // (LAYERS * 3 * 2 * 16 * 64 * 2)
    assert blocks >= 5
    assert small == pytest.approx(0.502 * came, rel=0.25)
    assert small % (LAYERS * 3 * (8 + 2 * 16 * 64)) == 0
    first = next(one for one in of_rounds if one.spans and one.generation_id == "rounds")
    assert first.inexact, "before or with the first id that is not exact"
