from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.common import telemetry
from services.common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from services.common.exchange import (
    CheckpointRefusal,
    CheckpointResult,
    Closed,
    CloseReason,
    Frame,
    GenerateCall,
    KvSource,
    Phase,
    Progress,
)
from services.common.generation import (
    CancelReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.engine.backend import Batch, Sampled
from services.engine.core.generations import Generations
from services.engine.core.head_settings import HeadSettings
from services.engine.core.lead import Lead
from services.engine.core.pace import Pace
from services.engine.core.scheduler import Scheduler, SchedulerSettings
from services.engine.core.validation import Bounds
from services.engine.counters import Counters
from services.engine.head import Head, ReaderLimits
from services.engine.kv_moves import Brought, Stored

MODEL = ModelRef("m", "d")


@dataclass
class Stages:
    """Stands in for a formation: takes steps and answers when told to."""

    head: Head
    id: str = "f"
    steps: list[tuple[int, Batch]] = field(default_factory=list)
    slots: dict[int, int] = field(default_factory=dict)
    traced: list[int] = field(default_factory=list)
    """Spans that each step carried."""

    def submit(
        self, step: int, batch: Batch, token_ids: Sequence[int], traceparents: Sequence[str]
    ) -> None:
        for opened in batch.opens:
            self.slots[opened.slot] = len(opened.output_ids)
        self.steps.append((step, batch))
        self.traced.append(len(traceparents))

    def answer(self) -> None:
        step, batch = self.steps.pop(0)
        sampled = []
        for entry in batch.steps:
            if entry.sample:
                position = self.slots[entry.slot]
                sampled.append(Sampled(entry.slot, position, position))
                self.slots[entry.slot] += 1
        self.head.sampled(self, step, sampled)  # type: ignore[arg-type]


@dataclass
class Rig:
    head: Head
    stages: Stages
    scheduler: Scheduler
    now_s: float = 100.0

    def clock(self) -> float:
        return self.now_s


class NothingMoves:
    """Implements KvMoves where nobody asks for it."""

    async def keep(self, *asked: Any, **more: Any) -> int | None:
        raise AssertionError("nothing was to be kept")

    async def store(self, *asked: Any) -> Stored:
        raise AssertionError("nothing was to go ahead")

    async def cache(self, *asked: Any) -> list[int]:
        raise AssertionError("nothing was to go ahead")

    async def offer(self, *asked: Any) -> tuple[int, KvSource]:
        raise AssertionError("nobody was to be asked")

    async def fetch(self, formation: Any, fetch: Any) -> Brought:
        raise AssertionError("nothing was to be fetched")

    async def end(self, formation: Any, number: int) -> bool:
        raise AssertionError("there was nothing to end")


@pytest.fixture
async def rig() -> Rig:
    rig: Rig

    def clock() -> float:
        return rig.now_s

    head = Head(
        Generations("i", HeadSettings()),
        ReaderLimits(max_readers=2, stall_s=60.0),
        Counters(),
        clock,
        NothingMoves(),
    )
    scheduler = Scheduler(SchedulerSettings(), 64, 2)
    rig = Rig(head, Stages(head), scheduler)
    head.form(
        rig.stages,  # type: ignore[arg-type]
        Lead("f", scheduler, Bounds(MODEL, 1000, 512), Pace(1.0, row_s=0.0)),
        "exact",
    )
    return rig


def call(name: str = "g", max_tokens: int = 20, **more: Any) -> GenerateCall:
    request = GenerationRequest(name, MODEL, (1, 2, 3), Sampling(max_tokens))
    return GenerateCall(request, 1, "f", **more)


async def _next(frames: AsyncIterator[Frame]) -> Frame:
    return await asyncio.wait_for(anext(frames), 60)


async def test_tokens_of_a_step_reach_their_reader(rig: Rig) -> None:
    frames = rig.head.read(call(max_tokens=2))
    await _next(frames)
    rig.stages.answer()
    first: Any = await _next(frames)
    assert first.spans == (TokenSpan(0, 0, (0,)),)
    rig.stages.answer()
    await _next(frames)
    closed = await _next(frames)
    assert isinstance(closed, Closed)
    assert closed.reason is CloseReason.FINISHED
    with pytest.raises(StopAsyncIteration):
        await _next(frames)
    assert rig.head.reader_count == 0
    assert rig.scheduler.used_blocks == 0


async def test_the_next_step_departs_before_readers_are_woken(rig: Rig) -> None:
    frames = rig.head.read(call())
    await _next(frames)
    waiting = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0)
    rig.stages.answer()
    assert len(rig.stages.steps) == 1
    assert not waiting.done()
    await waiting
    await frames.aclose()


async def test_a_silent_head_still_sends_signs_of_life(rig: Rig) -> None:
    frames = rig.head.read(call())
    await _next(frames)
    waiting = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0)
    rig.now_s += 0.2
    rig.head.tick()
    await asyncio.sleep(0)
    assert not waiting.done()
    rig.now_s += 0.06
    rig.head.tick()
    assert await asyncio.wait_for(waiting, 60) == Progress(0, Phase.PREFILL)
    await frames.aclose()


async def test_a_reader_that_takes_nothing_is_cut_off(rig: Rig) -> None:
    async def read_one_and_hang() -> None:
        async for _ in rig.head.read(call()):
            await asyncio.Event().wait()

    task = asyncio.create_task(read_one_and_hang())
    await asyncio.sleep(0)
    rig.now_s += 59
    rig.head.tick()
    await asyncio.sleep(0)
    assert not task.done()
    rig.now_s += 2
    rig.head.tick()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)


async def test_too_many_readers_are_refused(rig: Rig) -> None:
    open_ones = [rig.head.read(call(name)) for name in ("a", "b")]
    for frames in open_ones:
        await _next(frames)
    with pytest.raises(ResourceExhausted):
        await _next(rig.head.read(call("c")))
    for frames in open_ones:
        await frames.aclose()
    assert rig.head.reader_count == 0


async def test_a_step_that_comes_back_after_the_end_counts_for_nothing(rig: Rig) -> None:
    frames = rig.head.read(call())
    await _next(frames)
    rig.head.dissolve("another")
    assert rig.head.formation_id == "f"
    rig.head.dissolve("f")
    closed = await _next(frames)
    assert isinstance(closed, Closed)
    assert (closed.reason, closed.lengths) == (CloseReason.DISSOLVED, (0,))
    rig.stages.answer()
    assert rig.head.formation_id == ""
    assert rig.head.scheduler is None


async def test_a_step_of_an_old_formation_is_not_taken_for_one_of_the_new(rig: Rig) -> None:
    frames = rig.head.read(call())
    await _next(frames)
    rig.head.dissolve("f")
    await frames.aclose()
    stages = Stages(rig.head, "f2")
    rig.head.form(
        stages,  # type: ignore[arg-type]
        Lead("f2", Scheduler(SchedulerSettings(), 64, 2), Bounds(MODEL, 1000, 512), Pace(1.0)),
        "exact",
    )
    again = replace(call(), epoch=2, formation_id="f2")
    frames = rig.head.read(again)
    await _next(frames)
    assert rig.stages.steps[0][0] == stages.steps[0][0]
    rig.stages.answer()
    waiting = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0)
    assert not waiting.done()
    stages.answer()
    tokens: Any = await waiting
    assert tokens.spans == (TokenSpan(0, 0, (0,)),)
    await frames.aclose()


async def test_a_drain_takes_the_token_in_flight_and_nothing_more(rig: Rig) -> None:
    frames = rig.head.read(call())
    await _next(frames)
    rig.stages.answer()
    await _next(frames)
    draining = asyncio.create_task(rig.head.drain("f"))
    await asyncio.sleep(0)
    rig.stages.answer()
    assert not rig.stages.steps
    last: Any = await _next(frames)
    assert last.spans == (TokenSpan(0, 1, (1,)),)
    closed = await _next(frames)
    assert isinstance(closed, Closed)
    assert (closed.reason, closed.lengths) == (CloseReason.MOVED, (2,))
    assert not draining.done()
    (checkpoint,) = rig.head.take_checkpoints(1)
    assert checkpoint.sealed
    assert checkpoint.spans[0].end == 2
    draining.cancel()


async def test_two_drains_that_wait_for_a_block_do_not_keep_each_other_busy(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one says wakes the other, which then has nothing new to say."""
    frames = rig.head.read(call())
    await _next(frames)
    rig.stages.answer()
    looks, look = 0, rig.head._batching.within_blocks

    def looked() -> frozenset[str]:
        nonlocal looks
        looks += 1
        return look()

    monkeypatch.setattr(rig.head._batching, "within_blocks", looked)
    draining = [asyncio.create_task(rig.head.drain("f", keep_kv=True)) for _ in range(2)]
    for _ in range(200):
        await asyncio.sleep(0)
    assert 2 <= looks <= 6
    for task in draining:
        task.cancel()
    await asyncio.gather(*draining, return_exceptions=True)
    await frames.aclose()


async def test_a_cancelled_generation_leaves_the_batch(rig: Rig) -> None:
    frames = rig.head.read(call())
    await _next(frames)
    rig.head.cancel("g", None, CancelReason.CLIENT)
    closed = await _next(frames)
    assert isinstance(closed, Closed)
    assert closed.reason is CloseReason.CANCELLED
    rig.stages.answer()
    assert rig.scheduler.used_blocks == rig.scheduler.running == 0


async def test_an_overdue_step_is_told(rig: Rig) -> None:
    frames = rig.head.read(call())
    await _next(frames)
    for _ in range(9):
        rig.now_s += 0.1
        assert rig.head.tick()
    for _ in range(3):
        rig.now_s += 0.1
        overdue = not rig.head.tick()
    assert overdue
    await frames.aclose()


async def test_a_difference_is_counted_once(rig: Rig) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("shunt_engine_diverged_total") or 0.0

    before = counted()
    frames = rig.head.read(call())
    await _next(frames)
    (checkpoint,) = rig.head.take_checkpoints(1)
    refusal = CheckpointRefusal.DIVERGED
    answer = CheckpointResult(checkpoint.generation_id, checkpoint.epoch, (0,), refusal)
    rig.head.checkpoint_results(1, [answer])
    for _ in range(2):
        rig.head.tick()
    assert counted() == before + 1
    await frames.aclose()


async def test_a_call_for_another_formation_is_not_judged_by_the_bounds_of_this_one(
    rig: Rig,
) -> None:
    fits_elsewhere = call(max_tokens=600)
    with pytest.raises(FailedPrecondition):
        await _next(rig.head.read(replace(fits_elsewhere, formation_id="f0")))
    with pytest.raises(InvalidArgument):
        await _next(rig.head.read(fits_elsewhere))


async def test_a_finished_generation_stays_readable_when_another_formation_stands(
    rig: Rig,
) -> None:
    frames = rig.head.read(call(max_tokens=1))
    await _next(frames)
    rig.stages.answer()
    await frames.aclose()
    rig.head.dissolve("f")
    rig.head.form(
        Stages(rig.head, "f2"),  # type: ignore[arg-type]
        Lead(
            "f2",
            Scheduler(SchedulerSettings(), 64, 2),
            Bounds(ModelRef("another", "e"), 10, 16),
            Pace(1.0),
        ),
        "exact",
    )
    again = [frame async for frame in rig.head.read(call(max_tokens=1))]
    assert isinstance(again[-1], Closed)
    assert again[-1].reason is CloseReason.FINISHED


async def test_a_reader_that_leaves_or_is_refused_takes_no_trace_along(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "traceparent", lambda: "00-trace")
    old = rig.head.read(call())
    await _next(old)
    new = rig.head.read(replace(call(), epoch=2))
    await _next(new)
    await old.aclose()
    with pytest.raises(AlreadyExists):
        await _next(rig.head.read(replace(call(max_tokens=3), epoch=2)))
    for _ in range(3):
        rig.stages.answer()
    assert rig.stages.traced == [1, 1, 1, 0]
    await new.aclose()


async def test_a_generation_whose_blocks_cannot_be_fetched_starts_without_them(rig: Rig) -> None:
    """Whatever kind of failure it is."""
    request = GenerationRequest("g", MODEL, tuple(range(60)), Sampling(20))
    frames = rig.head.read(GenerateCall(request, 1, "f", kv_source=KvSource("old", ())))
    await _next(frames)
    await asyncio.wait_for(asyncio.gather(*rig.head.moves._moving), 60)
    ((_, batch),) = rig.stages.steps
    assert (batch.steps[0].start, batch.steps[0].count) == (0, 60)
    await frames.aclose()
