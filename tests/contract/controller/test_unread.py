"""What the controller knows of readers: for the status, and for clients that ask again."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb

from services.common.errors import InvalidArgument, NotFound
from services.common.statuses import from_rpc_error

World = Any
CALL_S = 60.0


def _request(name: str) -> common_pb2.GenerationRequest:
    return common_pb2.GenerationRequest(
        generation_id=name,
        model=common_pb2.ModelRef(model_id="tiny", digest="ab" * 32),
        prompt_ids=[1, 2, 3],
        choices=1,
        sampling=common_pb2.Sampling(top_p=1.0, repetition_penalty=1.0, max_tokens=3),
        kind=common_pb2.GENERATION_KIND_CHAT,
        ask_digest="same",
    )


@pytest.fixture
async def route(world: World) -> Any:
    await world.start()
    return (await world.routes(2))[0]


@pytest.fixture
async def says(world: World, route: Any) -> Any:
    """Says something of one generation, and waits until that is durable."""
    call = world.stub.StreamCheckpoints(timeout=CALL_S)

    async def say(name: str, *ids: int, **more: bool) -> None:
        checkpoint = pb.Checkpoint(
            generation_id=name,
            epoch=1,
            incarnation=route.incarnation,
            formation_id=route.formation_id,
            request=_request(name),
            runs=[common_pb2.TokenSpan(choice=0, start=0, ids=ids)] if ids else [],
            **more,
        )
        await call.write(pb.StreamCheckpointsRequest(checkpoints=[checkpoint]))
        (result,) = (await call.read()).results
        assert result.refusal == pb.CHECKPOINT_REFUSAL_UNSPECIFIED

    yield say
    call.cancel()


async def _claim(world: World) -> pb.GetGenerationResponse | None:
    try:
        asked = pb.ClaimGenerationRequest(ask_digest="same")
        claimed = await world.stub.ClaimGeneration(asked, timeout=CALL_S)
        return claimed.generation  # type: ignore[no-any-return]
    except grpc.aio.AioRpcError as error:
        if not isinstance(from_rpc_error(error), NotFound):
            raise
        return None


async def test_the_status_tells_where_each_generation_stands(
    world: World, route: Any, says: Any
) -> None:
    await says("queued")
    await says("running", 5, 6)
    await says("unread", 5, unread=True)
    await says("parked", 5, unread=True, sealed=True)
    await says("finished", 5, 6, 7)
    await world.stub.Cancel(
        pb.CancelRequest(generation_id="x", reason=common_pb2.CANCEL_REASON_CLIENT), timeout=CALL_S
    )
    status = await world.status()
    assert {g.generation_id: (g.standing, g.unread) for g in status.generations} == {
        "queued": (pb.STANDING_QUEUED, False),
        "running": (pb.STANDING_RUNNING, False),
        "unread": (pb.STANDING_RUNNING, True),
        "parked": (pb.STANDING_PARKED, True),
    }
    assert (status.finished_generations, status.cancelled_generations) == (1, 1)
    line = next(g for g in status.generations if g.generation_id == "running")
    assert (line.epoch, line.journaled_tokens, line.pipeline_id) == (1, 2, route.pipeline_id)


async def test_a_retry_is_given_what_nobody_reads_and_each_once(
    world: World, route: Any, says: Any
) -> None:
    await says("read", 5)
    assert await _claim(world) is None
    await says("running", 5, unread=True)
    await says("parked", 5, 6, unread=True, sealed=True)
    running, parked = await _claim(world), await _claim(world)
    assert running is not None
    assert parked is not None
    assert running.request.generation_id == "running"
    assert running.head.incarnation == route.incarnation
    assert (parked.request.generation_id, list(parked.runs[0].ids)) == ("parked", [5, 6])
    assert not parked.HasField("head")
    assert await _claim(world) is None


async def test_a_digest_that_is_too_long_is_refused_by_name(world: World, route: Any) -> None:
    asked = pb.ClaimGenerationRequest(ask_digest="x" * 65)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub.ClaimGeneration(asked, timeout=CALL_S)
    error = from_rpc_error(refused.value)
    assert isinstance(error, InvalidArgument)
    assert error.field == "ask_digest"
