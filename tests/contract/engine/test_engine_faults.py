from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common.errors import FailedPrecondition, InvalidArgument, StaleEpoch
from services.common.statuses import from_rpc_error
from tests.contract.engine.rig import (
    DEADLINE_S,
    Rig,
    Stream,
    Worker,
    generate,
    request,
    until,
)
from tests.contract.engine.tiny import expected_ids

PROMPT = [5, 6, 7, 8, 9]


async def _left(worker: Worker) -> None:
    async def gone() -> bool:
        answer = await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
        return not answer.formation_id and not answer.stats.used_kv_blocks

    await until(gone)


async def _running(worker: Worker, formation_id: str, count: int = 3) -> list[Stream]:
    streams = [
        generate(worker, request(f"g{formation_id}{i}", [i, *PROMPT], 400), formation_id)
        for i in range(count)
    ]
    for stream in streams:
        await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
    return streams


async def _dissolved(streams: list[Stream]) -> None:
    for i, stream in enumerate(streams):
        await stream.end()
        assert stream.closed == engine_pb2.CLOSE_REASON_DISSOLVED
        ids = stream.ids[0]
        assert ids == expected_ids([i, *PROMPT], 400)[: len(ids)]
        assert stream.frames[-1].closed.lengths[0].length == len(ids)


@pytest.mark.parametrize("victim", [1, 2])
async def test_a_killed_stage_dissolves_the_formation_and_is_named(rig: Rig, victim: int) -> None:
    head, survivor = await rig.worker(), await rig.worker(step_s=0.005)
    killed = await rig.process()
    workers = [head, killed, survivor] if victim == 1 else [head, survivor, killed]
    await rig.form(workers, [2, 4], "f1")
    streams = await _running(head, "f1")
    assert killed.process is not None
    killed.process.kill()
    await _dissolved(streams)
    await _left(head)
    await _left(survivor)
    assert head.engine is not None
    assert survivor.engine is not None
    told = {*head.engine.lost_node_ids, *survivor.engine.lost_node_ids}
    assert told == {killed.node_id}


async def test_survivors_serve_again_with_the_weights_they_hold(rig: Rig) -> None:
    head, killed, spare = await rig.worker(), await rig.process(step_s=0.005), await rig.worker()
    await rig.form([head, killed], [2], "f1")
    streams = await _running(head, "f1")
    assert killed.process is not None
    killed.process.kill()
    await _dissolved(streams)
    await rig.form([head, spare], [2], "f2")
    assert head.loader is not None
    assert len(head.loader.backends) == 1
    for i, stream in enumerate(streams):
        held = stream.ids[0]
        again = request(f"gf1{i}", [i, *PROMPT], 400)
        resumed = generate(head, again, "f2", epoch=2, held=held, start=len(held))
        await resumed.end()
        assert held + resumed.ids[0] == expected_ids([i, *PROMPT], 400)


async def test_a_stopped_stage_is_noticed_and_nothing_it_says_later_counts(rig: Rig) -> None:
    head, frozen = await rig.worker(progress_s=1.0), await rig.process(step_s=0.005)
    spare = await rig.worker()
    await rig.form([head, frozen], [2], "f1")
    streams = await _running(head, "f1")
    assert frozen.process is not None
    os.kill(frozen.process.pid, signal.SIGSTOP)
    try:
        await _dissolved(streams)
        await _left(head)
        assert head.engine is not None
        assert head.engine.lost_node_ids == (frozen.node_id,)
        await rig.form([head, spare], [2], "f2")
    finally:
        os.kill(frozen.process.pid, signal.SIGCONT)
    stream = await generate(head, request("after", PROMPT, 200), "f2").end()
    assert stream.ids[0] == expected_ids(PROMPT, 200)
    await _left(frozen)


async def test_a_lost_head_leaves_its_stages_free(rig: Rig) -> None:
    head, second, third = await rig.process(), await rig.worker(), await rig.worker()
    await rig.form([head, second, third], [2, 4], "f1")
    await generate(head, request("g", PROMPT, 5), "f1").end()
    assert head.process is not None
    head.process.kill()
    await _left(second)
    await _left(third)
    assert second.engine is not None
    assert third.engine is not None
    assert second.engine.lost_node_ids == (head.node_id,)
    assert third.engine.lost_node_ids == ()


async def test_dissolve_reaches_every_member_and_blames_nobody(rig: Rig) -> None:
    workers = [await rig.worker(step_s=0.005), await rig.worker(), await rig.worker()]
    for number, first in enumerate(workers):
        formation_id = f"f{number}"
        await rig.form(workers, [2, 4], formation_id)
        streams = await _running(workers[0], formation_id)
        for _ in range(2):
            dissolve = engine_pb2.DissolveRequest(formation_id=formation_id)
            await first.stub.Dissolve(dissolve, timeout=60)
        await _dissolved(streams)
        for worker in workers:
            await _left(worker)
            assert worker.engine is not None
            assert worker.engine.lost_node_ids == ()
        await workers[0].stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f9"), timeout=60)


async def test_a_new_formation_ends_the_one_before(rig: Rig) -> None:
    workers = [await rig.worker(step_s=0.005), await rig.worker()]
    await rig.form(workers, [2], "f1")
    streams = await _running(workers[0], "f1")
    await rig.form(workers, [2], "f2")
    await _dissolved(streams)
    stream = await generate(workers[0], request("g", PROMPT, 50), "f2").end()
    assert stream.ids[0] == expected_ids(PROMPT, 50)


async def test_a_fault_of_the_arithmetic_ends_the_formation_not_the_process(rig: Rig) -> None:
    workers = [await rig.worker(), await rig.worker(step_s=0.005)]
    await rig.form(workers, [2], "f1")
    streams = await _running(workers[0], "f1")
    assert workers[1].loader is not None
    workers[1].loader.backends[-1].slots.clear()
    await _dissolved(streams)
    await rig.form(workers, [2], "f2")
    stream = await generate(workers[0], request("g", PROMPT, 50), "f2").end()
    assert stream.ids[0] == expected_ids(PROMPT, 50)


async def test_members_that_do_not_stand_are_no_formation(rig: Rig) -> None:
    head, other = await rig.worker(form_s=0.3), await rig.worker()
    await rig.hold(head, (0, 2))
    await rig.hold(other, (2, 6))
    form = rig.form_request([head, other], [2], "f1", 0, blocks=8)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await head.stub.Form(form, timeout=60)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    await _left(head)


async def test_a_form_for_another_process_other_layers_or_other_weights_is_refused(
    rig: Rig,
) -> None:
    worker = await rig.worker()
    form = rig.form_request([worker], [], "f1", 0, blocks=8)

    async def refusal(message: engine_pb2.FormRequest) -> Exception:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await worker.stub.Form(message, timeout=60)
        return from_rpc_error(failed.value)

    assert isinstance(await refusal(form), FailedPrecondition)
    await rig.hold(worker, (0, 6))
    for change, kind in (
        ({"members": {"incarnation": "another"}}, StaleEpoch),
        ({"members": {"layers": common_pb2.LayerRange(start=0, end=5)}}, FailedPrecondition),
        ({"members": {"tp_degree": 2}}, FailedPrecondition),
        ({"model": common_pb2.ModelRef(model_id="tiny", digest="d2")}, FailedPrecondition),
        ({"kv_blocks": 129}, InvalidArgument),
        ({"kv_blocks": 0}, InvalidArgument),
        ({"stage_index": 1}, InvalidArgument),
        ({"formation_id": ""}, InvalidArgument),
    ):
        wrong = engine_pb2.FormRequest()
        wrong.CopyFrom(form)
        for name, value in change.items():
            if name == "members":
                for inner, inner_value in value.items():
                    if inner == "layers":
                        wrong.members[0].layers.CopyFrom(inner_value)
                    else:
                        setattr(wrong.members[0], inner, inner_value)
            elif name == "model":
                wrong.model.CopyFrom(value)
            else:
                setattr(wrong, name, value)
        assert isinstance(await refusal(wrong), kind), change
    await worker.stub.Form(form, timeout=60)


class Babbler(engine_pb2_grpc.EngineServiceServicer):
    """A last stage that answers steps nobody sent."""

    async def Forward(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        tokens = [engine_pb2.SampledToken(slot=1, token_id=9)] * 50_000
        while True:
            yield engine_pb2.ForwardResponse(formation_id="f1", tokens=tokens)


async def test_answers_that_nobody_takes_do_not_keep_a_stage_from_ending(rig: Rig) -> None:
    absent, stage = await rig.worker(), await rig.worker()
    server = grpc.aio.server()
    engine_pb2_grpc.add_EngineServiceServicer_to_server(Babbler(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    rig.stack.push_async_callback(server.stop, None)
    babbler = replace(absent, address=f"127.0.0.1:{port}")
    await rig.hold(stage, (2, 4))
    form = rig.form_request([absent, stage, babbler], [2, 4], "f1", 1)
    await stage.stub.Form(form, timeout=60)
    assert stage.engine is not None
    formation = stage.engine.formation
    assert formation is not None
    call = stage.stub.Forward(timeout=DEADLINE_S)
    await call.write(engine_pb2.ForwardRequest(formation_id="f1"))
    await call.read()

    async def full() -> bool:
        return formation._answers.full()

    await until(full)
    await stage.stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f1"), timeout=60)
    await asyncio.wait_for(formation.closed(), 60)
