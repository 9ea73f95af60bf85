from __future__ import annotations

import asyncio

import grpc
import pytest
from prometheus_client import REGISTRY
from shuntserve.common.v1 import common_pb2
from shuntserve.engine.v1 import engine_pb2

from services.common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    StaleEpoch,
)
from services.common.statuses import from_rpc_error
from tests.contract.engine.rig import Rig, Worker, generate, request, until
from tests.contract.engine.tiny import REPEATS, VOCAB, expected_ids

PROMPT = [5, 6, 7, 8, 9]


async def _stats(worker: Worker) -> engine_pb2.EngineStats:
    return (await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)).stats


async def _used_blocks_are(worker: Worker, count: int) -> None:
    async def reached() -> bool:
        return (await _stats(worker)).used_kv_blocks == count

    await until(reached)


@pytest.mark.parametrize("cuts", [[], [2], [4], [1, 4], [1, 2, 3, 4, 5]])
async def test_any_layout_gives_the_ids_of_one_stage(rig: Rig, cuts: list[int]) -> None:
    workers = [await rig.worker(token_budget=16, max_sequences=8) for _ in range(len(cuts) + 1)]
    await rig.form(workers, cuts, "f1")
    prompts = [list(range(i, i + 3 + 7 * i)) for i in range(6)]
    streams = [
        generate(workers[0], request(f"g{i}", prompt, 40, seed=i), "f1")
        for i, prompt in enumerate(prompts)
    ]
    ended = await asyncio.gather(*(stream.end() for stream in streams))
    for i, (stream, prompt) in enumerate(zip(ended, prompts, strict=True)):
        assert stream.ids[0] == expected_ids(prompt, 40, seed=i)
        assert stream.closed == engine_pb2.CLOSE_REASON_FINISHED
        assert stream.finishes == {0: common_pb2.FINISH_REASON_LENGTH}
    stats = await _stats(workers[0])
    assert (stats.sampled_tokens, stats.used_kv_blocks) == (6 * 40, 0)
    assert stats.decoded_sequences > stats.decode_steps


@pytest.mark.parametrize("cuts", [[], [1, 4]])
async def test_a_text_that_repeats_itself_takes_fewer_steps_and_is_the_same(
    rig: Rig, cuts: list[int]
) -> None:
    def counted(name: str) -> float:
        return REGISTRY.get_sample_value(f"shunt_engine_{name}_tokens_total") or 0.0

    said, steps, drafted, accepted = [], [], counted("drafted"), counted("accepted")
    for drafts in (0, 8):
        workers = [await rig.worker(max_drafts=drafts) for _ in range(len(cuts) + 1)]
        await rig.form(workers, cuts, "f1")
        asked = request(f"g{drafts}", PROMPT, 200, seed=REPEATS, choices=2, top_logprobs=0)
        stream = await generate(workers[0], asked, "f1").end()
        said.append(stream.ids)
        runs = [run for frame in stream.frames for run in frame.tokens.runs]
        assert all(len(run.logprobs) == len(run.ids) for run in runs)
        stats = await _stats(workers[0])
        assert (stats.sampled_tokens, stats.used_kv_blocks) == (2 * 200, 0)
        steps.append(stats.decoded_sequences)
    assert said[0] == said[1] == {c: expected_ids(PROMPT, 200, REPEATS, c) for c in range(2)}
    assert steps[0] == 2 * 199
    assert steps[1] < 0.8 * steps[0]
    assert counted("accepted") - accepted == steps[0] - steps[1]
    assert counted("drafted") - drafted > steps[0] - steps[1]


async def test_a_generation_goes_on_from_what_it_held(rig: Rig) -> None:
    workers = [await rig.worker(), await rig.worker()]
    await rig.form(workers, [3], "f1")
    expected = expected_ids(PROMPT, 60)
    for cut in (1, 11, 12, 59):
        asked = request(f"g{cut}", PROMPT, 60)
        stream = generate(workers[0], asked, "f1", epoch=2, held=expected[:cut], start=cut)
        await stream.end()
        assert stream.frames[0].accepted.lengths[0].length == cut
        assert stream.ids[0] == expected[cut:]
    stats = await _stats(workers[0])
    assert stats.replayed_tokens == 1 + 11 + (12 - 11) + (59 - 43), "full blocks are there already"
    assert stats.prefix_hits == 16 + 48


async def test_choices_are_sequences_of_their_own(rig: Rig) -> None:
    worker = await rig.worker()
    await rig.form([worker], [], "f1")
    stream = await generate(worker, request("g", PROMPT, 9, choices=3, seed=4), "f1").end()
    assert stream.ids == {c: expected_ids(PROMPT, 9, seed=4, choice=c) for c in range(3)}


async def test_a_stop_id_ends_a_choice_and_logprobs_come_with_their_tokens(rig: Rig) -> None:
    workers = [await rig.worker(), await rig.worker()]
    await rig.form(workers, [3], "f1")
    expected = expected_ids(PROMPT, 30)
    asked = request("g", PROMPT, 30, stop_token_ids=(expected[10],), top_logprobs=0)
    stream = await generate(workers[0], asked, "f1").end()
    end = expected.index(expected[10]) + 1
    assert stream.ids[0] == expected[:end]
    assert stream.finishes == {0: common_pb2.FINISH_REASON_STOP}
    logprobs = [p for frame in stream.frames for run in frame.tokens.runs for p in run.logprobs]
    assert [p.logprob for p in logprobs] == [-0.5] * end


async def test_a_new_reader_of_the_same_epoch_ends_the_old_one(rig: Rig) -> None:
    worker = await rig.worker(step_s=0.02)
    await rig.form([worker], [], "f1")
    asked = request("g", PROMPT, 40)
    old = generate(worker, asked, "f1")
    await old.until(lambda s: len(s.ids.get(0, [])) >= 5)
    new = generate(worker, asked, "f1", start=2)
    await new.end()
    await old.end()
    assert old.closed == engine_pb2.CLOSE_REASON_SUPERSEDED
    assert new.ids[0] == expected_ids(PROMPT, 40)[2:]
    assert (await _stats(worker)).sampled_tokens == 40


async def test_a_generation_nobody_reads_is_parked_and_frees_its_blocks(rig: Rig) -> None:
    worker = await rig.worker(step_s=0.01, detach_s=0.2)
    await rig.form([worker], [], "f1")
    stream = generate(worker, request("g", PROMPT, 400), "f1")
    await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
    stream.call.cancel()
    await _used_blocks_are(worker, 0)
    assert (await _stats(worker)).sampled_tokens < 100


async def test_a_cancelled_generation_frees_its_blocks(rig: Rig) -> None:
    workers = [await rig.worker(step_s=0.01), await rig.worker()]
    await rig.form(workers, [3], "f1")
    stream = generate(workers[0], request("g", PROMPT, 400), "f1")
    await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
    cancel = engine_pb2.CancelRequest(generation_id="g", reason=common_pb2.CANCEL_REASON_CLIENT)
    for _ in range(2):
        await workers[0].stub.Cancel(cancel, timeout=60)
    await stream.end()
    assert stream.closed == engine_pb2.CLOSE_REASON_CANCELLED
    await _used_blocks_are(workers[0], 0)


async def test_a_reader_hears_from_a_head_that_has_nothing_new(rig: Rig) -> None:
    worker = await rig.worker(progress_s=60.0)
    await rig.form([worker], [], "f1")
    assert worker.loader is not None
    backend = worker.loader.backends[-1]
    backend.stuck.set()
    stream = generate(worker, request("g", PROMPT, 3), "f1")
    await stream.until(lambda s: sum(f.HasField("progress") for f in s.frames) >= 3)
    assert stream.frames[-1].progress.phase == engine_pb2.PHASE_PREFILL
    backend.stuck.clear()
    assert (await stream.end()).ids[0] == expected_ids(PROMPT, 3)


async def test_more_work_than_blocks_is_done_in_turn(rig: Rig) -> None:
    workers = [await rig.worker(), await rig.worker()]
    await rig.form(workers, [3], "f1", blocks=8)
    streams = [generate(workers[0], request(f"g{i}", [i] * 20, 60), "f1") for i in range(5)]
    for i, stream in enumerate(await asyncio.gather(*(s.end() for s in streams))):
        assert stream.ids[0] == expected_ids([i] * 20, 60)
    await _used_blocks_are(workers[0], 0)


async def test_what_can_never_run_is_refused_with_its_field(rig: Rig) -> None:
    worker = await rig.worker()
    await rig.form([worker], [], "f1", blocks=4)
    for asked, field in (
        (request("g", [VOCAB], 3), "prompt_ids"),
        (request("g", PROMPT, 3, logit_bias={VOCAB: 1.0}), "logit_bias"),
        (request("g", PROMPT, 3, stop_token_ids=(2**31,)), "stop_token_ids"),
        (request("g", PROMPT, 3, top_logprobs=21), "top_logprobs"),
        (request("g", PROMPT, 60), "max_tokens"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await generate(worker, asked, "f1").end()
        error = from_rpc_error(failed.value)
        assert isinstance(error, InvalidArgument)
        assert error.field == field
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await generate(worker, request("g", PROMPT, 3), "f1", epoch=2, held=[VOCAB]).end()
    assert from_rpc_error(failed.value).field == "held"
    stream = await generate(worker, request("g", PROMPT, 59), "f1").end()
    assert stream.ids[0] == expected_ids(PROMPT, 59)


async def test_an_unknown_formation_an_old_epoch_and_another_request_are_refused(rig: Rig) -> None:
    worker = await rig.worker()
    asked = request("g", PROMPT, 3)
    for formation_id in ("f1", "f2"):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await generate(worker, asked, formation_id).end()
        assert isinstance(from_rpc_error(failed.value), FailedPrecondition)
        await rig.form([worker], [], "f1")
    await generate(worker, asked, "f1", epoch=5).end()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await generate(worker, asked, "f1", epoch=4).end()
    assert isinstance(from_rpc_error(failed.value), StaleEpoch)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await generate(worker, request("g", PROMPT, 4), "f1", epoch=5).end()
    assert isinstance(from_rpc_error(failed.value), AlreadyExists)


async def test_a_batch_of_another_formation_is_refused(rig: Rig) -> None:
    workers = [await rig.worker(), await rig.worker()]
    await rig.form(workers, [3], "f1")
    call = workers[1].stub.Forward(timeout=60)
    await call.write(engine_pb2.ForwardRequest(formation_id="f0"))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert isinstance(from_rpc_error(failed.value), FailedPrecondition)
    intruder = workers[1].stub.Forward(timeout=60)
    await intruder.write(engine_pb2.ForwardRequest(formation_id="f1"))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await intruder.read()
    assert isinstance(from_rpc_error(failed.value), AlreadyExists)
    stream = await generate(workers[0], request("g", PROMPT, 9), "f1").end()
    assert stream.ids[0] == expected_ids(PROMPT, 9)


async def test_a_step_that_names_another_formation_ends_the_stream(rig: Rig) -> None:
    absent, stage = await rig.worker(), await rig.worker()
    await rig.hold(stage, (3, 6))
    await stage.stub.Form(rig.form_request([absent, stage], [3], "f1", 1), timeout=60)
    call = stage.stub.Forward(timeout=60)
    await call.write(engine_pb2.ForwardRequest(formation_id="f1"))
    assert isinstance(await call.read(), engine_pb2.ForwardResponse)
    await call.write(engine_pb2.ForwardRequest(formation_id="f0", step=1))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert isinstance(from_rpc_error(failed.value), StaleEpoch)
    description = await stage.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
    assert description.formation_id == ""


async def test_readers_that_hang_up_by_the_hundred_leave_nothing(rig: Rig) -> None:
    workers = [await rig.worker(detach_s=0.1), await rig.worker()]
    await rig.form(workers, [3], "f1")
    calls = [generate(workers[0], request(f"g{i}", PROMPT, 400), "f1").call for i in range(300)]
    await asyncio.gather(*(call.read() for call in calls[::3]))
    for call in calls:
        call.cancel()
    assert workers[0].engine is not None
    head = workers[0].engine.head

    async def quiet() -> bool:
        return not head.reader_count and not head.open_generations

    await until(quiet)
    await _used_blocks_are(workers[0], 0)
    stats = await _stats(workers[0])
    assert (stats.running, stats.queued) == (0, 0)
    stream = await generate(workers[0], request("after", PROMPT, 9), "f1").end()
    assert stream.ids[0] == expected_ids(PROMPT, 9)
