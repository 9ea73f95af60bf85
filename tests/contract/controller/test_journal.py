from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb

from services.common.errors import ResourceExhausted
from services.controller.journal.journal import JournalRoom
from services.controller.journal.sqlite import SqliteJournal
from tests.log_lines import log_lines
from tests.small_disk import fill, small_disk
from tests.waiting import until

World = Any
CALL_S = 60.0


def _request(name: str = "g", **more: Any) -> common_pb2.GenerationRequest:
    sampling = common_pb2.Sampling(top_p=1.0, repetition_penalty=1.0, max_tokens=1000)
    return common_pb2.GenerationRequest(
        generation_id=name,
        model=common_pb2.ModelRef(model_id="tiny", digest="ab" * 32),
        prompt_ids=[1, 2, 3],
        choices=1,
        sampling=sampling,
        kind=common_pb2.GENERATION_KIND_CHAT,
        **more,
    )


def _run(start: int, *ids: int, choice: int = 0) -> common_pb2.TokenSpan:
    return common_pb2.TokenSpan(choice=choice, start=start, ids=ids)


def _checkpoint(route: Any, *runs: Any, epoch: int = 1, **more: Any) -> pb.Checkpoint:
    return pb.Checkpoint(
        generation_id=more.pop("generation_id", "g"),
        epoch=epoch,
        incarnation=more.pop("incarnation", route.incarnation),
        formation_id=route.formation_id,
        runs=runs,
        **more,
    )


class Head:
    """One checkpoint stream."""

    def __init__(self, world: World) -> None:
        self.call = world.stub.StreamCheckpoints(timeout=CALL_S)
        self.sequence = 0

    async def say(self, *checkpoints: Any) -> list[Any]:
        self.sequence += 1
        await self.call.write(
            pb.StreamCheckpointsRequest(sequence=self.sequence, checkpoints=checkpoints)
        )
        answer = await self.call.read()
        assert answer is not grpc.aio.EOF, await self.call.code()
        assert answer.sequence == self.sequence
        return list(answer.results)

    def close(self) -> None:
        self.call.cancel()


@pytest.fixture(params=["sqlite", "postgres"])
def journal(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return ""
    uri: str = request.getfixturevalue("cluster").new_journal()
    return uri


on_a_disk_of_its_own = pytest.mark.parametrize("journal", ["sqlite"], indirect=True)


@pytest.fixture
async def route(world: World) -> Any:
    await world.start()
    return (await world.routes(2))[0]


async def _held(world: World, name: str = "g") -> Any:
    return await world.stub.GetGeneration(
        pb.GetGenerationRequest(generation_id=name), timeout=CALL_S
    )


async def _resume(world: World, last_epoch: int, *held: Any, **more: Any) -> Any:
    more.setdefault("request", _request())
    return await world.stub.Resume(
        pb.ResumeRequest(generation_id="g", last_epoch=last_epoch, held=held, **more),
        timeout=CALL_S,
    )


async def test_what_was_acknowledged_is_there_after_a_restart(world: World, route: Any) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, request=_request()))
    results = await head.say(_checkpoint(route, _run(0, 5, 6)), _checkpoint(route, _run(2, 7)))
    assert [r.lengths[0].length for r in results] == [2, 3]
    head.close()
    await world.stop()
    await world.start()
    await world.routes(2)
    held = await _held(world)
    assert list(held.runs[0].ids) == [5, 6, 7]
    assert (held.epoch, held.state) == (1, pb.GENERATION_STATE_OPEN)
    assert held.head.incarnation == route.incarnation
    assert held.request.prompt_ids == [1, 2, 3]
    head = Head(world)
    (again,) = await head.say(_checkpoint(route, _run(2, 7, 8)))
    assert (again.refusal, again.lengths[0].length) == (0, 4)
    head.close()


@pytest.mark.group(35)
async def test_a_gap_is_answered_with_the_length_held(world: World, route: Any) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, _run(0, 5), request=_request()))
    (gap,) = await head.say(_checkpoint(route, _run(9, 9)))
    assert (gap.refusal, gap.lengths[0].length) == (0, 1)
    (same,) = await head.say(_checkpoint(route, _run(0, 5)))
    assert same.lengths[0].length == 1
    head.close()


@pytest.mark.group(35)
async def test_other_ids_another_head_and_an_old_epoch_are_refused(
    world: World, route: Any
) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, _run(0, 5), request=_request()))
    results = await head.say(
        _checkpoint(route, _run(0, 6)),
        _checkpoint(route, _run(1, 6), incarnation="another"),
        _checkpoint(route, _run(1, 6), epoch=2),
    )
    assert [r.refusal for r in results] == [
        pb.CHECKPOINT_REFUSAL_DIVERGED,
        pb.CHECKPOINT_REFUSAL_STALE_EPOCH,
        pb.CHECKPOINT_REFUSAL_STALE_EPOCH,
    ]
    assert list((await _held(world)).runs[0].ids) == [5]
    head.close()


@pytest.mark.parametrize(
    "bad",
    [
        {"runs": [_run(1, 1000)]},
        {"epoch": 0},
        {"incarnation": ""},
        {"generation_id": "../x"},
        {"request": _request("other")},
        {"request": common_pb2.GenerationRequest(generation_id="g")},
        {"runs": [_run(0, 1)] * 400},
        {"runs": [_run(0, 1, choice=9)]},
        {"runs": [_run(1, 6), _run(1, 7)]},
        {"runs": [_run(1, 6), _run(1, 6, 7)]},
    ],
)
async def test_an_impossible_checkpoint_ends_the_stream_and_changes_nothing(
    world: World, route: Any, bad: dict[str, Any]
) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, _run(0, 5), request=_request()))
    runs, more = bad.get("runs", ()), {name: bad[name] for name in bad if name != "runs"}
    await head.call.write(
        pb.StreamCheckpointsRequest(
            sequence=2, checkpoints=[_checkpoint(route, *runs, **{"epoch": 1, **more})]
        )
    )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await head.call.read()
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert list((await _held(world)).runs[0].ids) == [5]
    other = Head(world)
    (result,) = await other.say(_checkpoint(route, _run(1, 6)))
    assert result.lengths[0].length == 2
    other.close()


async def test_the_same_question_gets_the_same_epoch(world: World, route: Any) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, _run(0, 5, 6), request=_request()))
    first = await _resume(world, 1, _run(0, 5, 6, 7))
    again = await _resume(world, 1, _run(0, 5, 6, 7))
    assert first == again
    assert first.epoch == 2
    assert list(first.base[0].ids) == [5, 6, 7]
    assert first.head.incarnation != route.incarnation
    (late,) = await head.say(_checkpoint(route, _run(2, 7)))
    assert late.refusal == pb.CHECKPOINT_REFUSAL_STALE_EPOCH
    head.close()


async def test_silence_of_a_head_that_serves_moves_nothing_and_a_line_that_breaks_does(
    world: World, route: Any
) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, _run(0, 5, 6), request=_request()))
    left, held = {"left_formation_id": route.formation_id}, _run(0, 5, 6)
    silent = await _resume(world, 1, held, reason=pb.LEAVE_REASON_SILENT, **left)
    assert (silent.epoch, silent.head.incarnation) == (1, route.incarnation)
    (taken,) = await head.say(_checkpoint(route, _run(2, 7)))
    assert taken.refusal == pb.CHECKPOINT_REFUSAL_UNSPECIFIED
    cut_off = await _resume(world, 1, held, reason=pb.LEAVE_REASON_UNREACHABLE, **left)
    assert cut_off.epoch == 2
    assert list(cut_off.base[0].ids) == [5, 6, 7]
    assert cut_off.head.incarnation != route.incarnation
    head.close()


async def test_a_grant_outlives_the_controller(world: World, route: Any) -> None:
    first = await _resume(world, 1, _run(0, 5, 6, 7))
    await world.stop()
    await world.start()
    await world.routes(2)
    assert await _resume(world, 1, _run(0, 5, 6, 7)) == first


async def test_a_reader_that_differs_gets_data_loss(world: World, route: Any) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, _run(0, 5, 6), request=_request()))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _resume(world, 1, _run(0, 5, 9))
    assert failed.value.code() is grpc.StatusCode.DATA_LOSS
    head.close()


@pytest.mark.parametrize("left", ["f" * 129, "f\n"])
async def test_a_formation_that_a_reader_left_is_named_as_any_other(
    world: World, route: Any, left: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _resume(world, 1, left_formation_id=left)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_resume_waits_for_a_pipeline(world: World) -> None:
    gates: list[asyncio.Event] = []

    def hold(engine: Any) -> None:
        engine.hold_load = asyncio.Event()
        gates.append(engine.hold_load)

    world.provider.prepare = hold
    await world.start(resume_wait_s=0.2)
    await world.until_event("plan_ready")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _resume(world, 0)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    await world.stop()
    await world.start(resume_wait_s=CALL_S)
    asked = asyncio.create_task(_resume(world, 0))
    for gate in gates:
        gate.set()
    assert (await asked).epoch == 1


async def test_an_unknown_generation_without_a_request_is_not_found(
    world: World, route: Any
) -> None:
    for call in (
        world.stub.Resume(pb.ResumeRequest(generation_id="x"), timeout=CALL_S),
        world.stub.GetGeneration(pb.GetGenerationRequest(generation_id="x"), timeout=CALL_S),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_cancel_is_kept_and_reaches_the_head(world: World, route: Any) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, _run(0, 5), request=_request()))
    cancel = pb.CancelRequest(generation_id="g", reason=common_pb2.CANCEL_REASON_CLIENT)
    await world.stub.Cancel(cancel, timeout=CALL_S)
    await world.stub.Cancel(cancel, timeout=CALL_S)
    async with asyncio.timeout(CALL_S):
        await world.head(route).cancelled.wait()
    (late,) = await head.say(_checkpoint(route, _run(1, 6)))
    assert late.refusal == pb.CHECKPOINT_REFUSAL_ENDED
    head.close()
    await world.stop()
    await world.start()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _resume(world, 1)
    assert failed.value.code() is grpc.StatusCode.CANCELLED
    assert (await _held(world)).state == pb.GENERATION_STATE_CANCELLED


async def test_a_head_that_misses_a_cancel_is_told_of_with_the_generations_name(
    world: World, route: Any
) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, _run(0, 5), request=_request()))
    world.head(route).deaf = True
    with log_lines() as lines:
        cancel = pb.CancelRequest(generation_id="g", reason=common_pb2.CANCEL_REASON_CLIENT)
        await world.stub.Cancel(cancel, timeout=CALL_S, metadata=(("x-request-id", "mine-1"),))
        await until(lambda: lines.named("head not told of a cancel"))
    (line,) = lines.named("head not told of a cancel")
    assert (line["generation_id"], line["request_id"]) == ("g", "mine-1")
    head.close()


async def test_a_grants_line_has_the_id_of_the_request_and_all_lines_the_generations(
    world: World, route: Any
) -> None:
    head = Head(world)
    with log_lines() as lines:
        await head.say(_checkpoint(route, _run(0, 5), request=_request()))
        await head.say(_checkpoint(route, sealed=True))
        await world.stub.Resume(
            pb.ResumeRequest(generation_id="g", last_epoch=1, request=_request()),
            timeout=CALL_S,
            metadata=(("x-request-id", "mine-1"),),
        )
    head.close()
    (granted,) = lines.named("generation_granted")
    assert (granted["generation_id"], granted["request_id"]) == ("g", "mine-1")
    about = [line for line in lines.all() if line["message"].startswith("generation_")]
    assert {line["message"] for line in about} >= {
        "generation_bound",
        "generation_sealed",
        "generation_granted",
    }
    assert {line["generation_id"] for line in about} == {"g"}


async def test_a_cancel_before_anything_is_known_holds(world: World, route: Any) -> None:
    await world.stub.Cancel(
        pb.CancelRequest(generation_id="g", reason=common_pb2.CANCEL_REASON_CLIENT),
        timeout=CALL_S,
    )
    head = Head(world)
    (result,) = await head.say(_checkpoint(route, request=_request()))
    assert result.refusal == pb.CHECKPOINT_REFUSAL_ENDED
    head.close()


async def test_a_stop_needs_no_more_than_its_length(world: World, route: Any) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, _run(0, 5, 6, 7), request=_request()))
    await world.stub.Cancel(
        pb.CancelRequest(
            generation_id="g", choice=0, reason=common_pb2.CANCEL_REASON_STOP, length=2
        ),
        timeout=CALL_S,
    )
    assert (await _held(world)).state == pb.GENERATION_STATE_FINISHED
    assert (await _resume(world, 1)).finished
    head.close()


async def _fill(head: Head, route: Any, positions: list[int]) -> None:
    """Appends until the stream fails; `positions` are the lengths acknowledged."""
    while len(positions) < 1000:
        run = _run(positions[-1], *(9,) * 90)
        await head.call.write(pb.StreamCheckpointsRequest(checkpoints=[_checkpoint(route, run)]))
        positions.append((await head.call.read()).results[0].lengths[0].length)


async def _held_again(world: World) -> Any:
    """What is held, once the journal answers again; until then it says that it is full."""
    async with asyncio.timeout(CALL_S):
        while True:
            try:
                return await _held(world)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
            await asyncio.sleep(0.05)


@on_a_disk_of_its_own
async def test_a_full_disk_is_told_and_nothing_is_lost(world: World, route: Any) -> None:
    head = Head(world)
    await head.say(_checkpoint(route, _run(0, 5), request=_request()))
    connection = world.journal._writer._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    positions = [1]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _fill(head, route, positions)
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    connection.execute("PRAGMA max_page_count=1000000")
    held = await _held_again(world)
    position = positions[-1]
    assert len(held.runs[0].ids) == position
    await until(lambda: world.journal.room is JournalRoom.ENOUGH)
    head = Head(world)
    (result,) = await head.say(_checkpoint(route, _run(position, 1)))
    assert result.lengths[0].length == position + 1
    head.close()


@on_a_disk_of_its_own
async def test_a_stream_moves_while_the_disk_is_full_and_is_journaled_when_there_is_room(
    world: World, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 16 << 20) as disk:
        await world.start(data_dir=disk)
        route = (await world.routes(2))[0]
        head, positions = Head(world), [1]
        await head.say(_checkpoint(route, _run(0, 5), request=_request()))
        fill(disk / "other")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await _fill(head, route, positions)
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        left = await world.until_event("journal_room")
        assert left.attributes == {"left": "reserve"}

        await world.provider.kill(world.head(route).node_id)
        held = _run(0, 5, *(9,) * (positions[-1] + 2))
        grant = await _resume(world, 1, held, left_formation_id=route.formation_id)
        assert (grant.epoch, len(grant.base[0].ids)) == (2, positions[-1] + 3)
        assert grant.head.formation_id != route.formation_id

        (disk / "other").unlink()
        await world.until_event("journal_room", attributes={"left": "enough"})
        head = Head(world)
        checkpoint = _checkpoint(grant.head, _run(positions[-1] + 3, 1), epoch=2)
        (result,) = await head.say(checkpoint)
        assert result.lengths[0].length == positions[-1] + 4
        head.close()
        await world.stop()
        await world.start()
        assert (await _held(world)).epoch == 2
        await world.stop()


@on_a_disk_of_its_own
async def test_a_start_on_a_full_disk_is_told_in_its_own_words(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise ResourceExhausted("the journal cannot be written")

    monkeypatch.setattr(SqliteJournal, "write", full)
    with pytest.raises(ResourceExhausted, match="cannot be written"):
        await world.start()


async def test_many_broken_streams_leave_the_controller_well(world: World, route: Any) -> None:
    for _ in range(300):
        Head(world).close()
    head = Head(world)
    await head.say(_checkpoint(route, request=_request()))
    head.close()


@on_a_disk_of_its_own
@pytest.mark.parametrize("handover", ["replay", "kv"])
async def test_a_hand_over_tells_where_blocks_are_only_where_they_travel(
    world: World, handover: str
) -> None:
    await world.start(handover=handover, handover_keep_s=600.0)
    route = (await world.routes(2))[0]
    status = await world.status()
    left = next(p for p in status.pipelines if p.pipeline_id == route.pipeline_id)
    engine, head = world.head(route), Head(world)
    await head.say(_checkpoint(route, _run(0, 5, 6), request=_request()))
    await world.stub.ReportInterruption(
        pb.ReportInterruptionRequest(node_id=engine.node_id, notice_s=600.0), timeout=CALL_S
    )
    await world.until_event("handover_finished", pipeline_id=route.pipeline_id)
    await head.say(_checkpoint(route, _run(2, 7), sealed=True))
    grant = await _resume(world, 1)
    assert (grant.epoch, engine.keeps_kv) == (2, [handover == "kv"])
    assert grant.head.formation_id != route.formation_id
    assert grant.HasField("kv_source") == (handover == "kv")
    if handover == "kv":
        assert grant.kv_source.formation_id == route.formation_id
        layers = [(member.layers.start, member.layers.end) for member in grant.kv_source.members]
        assert layers == [(stage.layers.start, stage.layers.end) for stage in left.stages]
        assert grant.kv_source.members[0].address == route.address
        assert grant.kv_source.members[0].incarnation == route.incarnation
    again = await _resume(world, 1)
    assert (again.epoch, again.HasField("kv_source")) == (2, handover == "kv")
    head.close()
