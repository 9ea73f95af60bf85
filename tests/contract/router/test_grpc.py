"""The gRPC door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels
from services.common.errors import (
    AlreadyExists,
    Cancelled,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
)
from services.common.roles import Role
from services.common.statuses import from_rpc_error
from services.router.__main__ import RunningDoors
from tests.fake_mesh import REPLY, FakeMesh
from tests.tiny_model import MAX_POSITIONS, MODEL


@pytest.fixture
async def stub(router: RunningDoors) -> AsyncIterator[router_pb2_grpc.RouterServiceStub]:
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        yield router_pb2_grpc.RouterServiceStub(channel)


def _request(**more: Any) -> router_pb2.GenerateRequest:
    sampling = router_pb2.SamplingOptions(temperature=0.0, **more.pop("sampling", {}))
    chat = router_pb2.Chat(messages=[router_pb2.ChatMessage(role="user", content="hi")])
    prompt = {} if more.keys() & {"text", "token_ids", "chat"} else {"chat": chat}
    return router_pb2.GenerateRequest(model="tiny", sampling=sampling, **prompt, **more)


async def _events(call: Any) -> list[router_pb2.GenerateResponse]:
    try:
        return [event async for event in call]
    finally:
        call.cancel()


def _text(events: list[router_pb2.GenerateResponse], choice: int = 0) -> str:
    return "".join(d.text for e in events for d in e.deltas if d.choice == choice)


async def test_a_generation_streams_text_ids_and_usage(
    stub: router_pb2_grpc.RouterServiceStub, mesh: FakeMesh
) -> None:
    events = await _events(stub.Generate(_request(), timeout=60))
    assert _text(events) == REPLY
    ids = [i for e in events for d in e.deltas for i in d.token_ids]
    assert ids == [*mesh.ids_of(REPLY), mesh.eos]
    assert [e.HasField("usage") for e in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].usage.completion_tokens == len(ids)
    finishes = [d.finish_reason for e in events for d in e.deltas if d.finish_reason]
    assert finishes == [common_pb2.FINISH_REASON_STOP]
    assert len({e.generation_id for e in events}) == 1


async def test_a_stream_resumes_behind_any_event(stub: router_pb2_grpc.RouterServiceStub) -> None:
    events = await _events(stub.Generate(_request(), timeout=60))
    for cut in range(0, len(events), 11):
        again = router_pb2.ResumeRequest(
            generation_id=events[0].generation_id, last_event_id=events[cut].event_id
        )
        rest = [answer.event async for answer in stub.Resume(again, timeout=60)]
        assert _text(events[: cut + 1]) + _text(rest) == REPLY
        assert sum(e.HasField("usage") for e in rest) == 1


async def test_a_finished_stream_has_nothing_more_to_say(
    stub: router_pb2_grpc.RouterServiceStub,
) -> None:
    events = await _events(stub.Generate(_request(), timeout=60))
    again = router_pb2.ResumeRequest(
        generation_id=events[0].generation_id, last_event_id=events[-1].event_id
    )
    assert [answer async for answer in stub.Resume(again, timeout=60)] == []


async def test_text_ids_choices_logprobs_and_names_are_taken(
    stub: router_pb2_grpc.RouterServiceStub, mesh: FakeMesh
) -> None:
    await _events(stub.Generate(_request(text="Once", sampling={"max_tokens": 2}), timeout=60))
    assert list(mesh.calls[0][1].request.prompt_ids) == mesh.ids_of("Once")
    request = _request(
        token_ids=router_pb2.PromptIds(ids=[5, 6, 7]),
        choices=2,
        generation_id="mine-1",
        stop_strings=["France"],
        sampling={"max_tokens": 9, "top_logprobs": 2, "seed": 1 << 63},
    )
    events = await _events(stub.Generate(request, timeout=60))
    sent = mesh.calls[1][1].request
    assert (list(sent.prompt_ids), sent.generation_id, sent.choices) == ([5, 6, 7], "mine-1", 2)
    assert sent.sampling.seed == 1 << 63
    assert _text(events, 1) == "The capital of "
    deltas = [d for e in events for d in e.deltas]
    assert all(len(d.logprobs) == len(d.token_ids) for d in deltas)
    assert all(len(entry.top) == 2 for d in deltas for entry in d.logprobs)


@pytest.mark.parametrize("finished", [True, False])
async def test_asking_twice_by_one_name_is_asking_once(
    stub: router_pb2_grpc.RouterServiceStub, mesh: FakeMesh, finished: bool
) -> None:
    request = _request(generation_id="mine-1")
    request.sampling.ClearField("temperature")  # sampled, with a seed that the router draws
    mesh.limit = mesh.limit if finished else 10
    first = stub.Generate(request, timeout=60)
    if finished:
        first_text = _text(await _events(first))
    else:
        await first.read()
    epochs, seed = mesh.journal["mine-1"].epoch, mesh.journal["mine-1"].request.sampling.seed
    mesh.limit = 1 << 30
    again = await _events(stub.Generate(request, timeout=60))
    assert {event.generation_id for event in again} == {"mine-1"}
    entry = mesh.journal["mine-1"]
    assert (entry.epoch, entry.request.sampling.seed) == (epochs, seed)
    if finished:
        assert _text(again) == first_text
    assert [e.HasField("usage") for e in again].count(True) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"text": "something else"},
        {"sampling": {"seed": 5}},
        {"sampling": {"max_tokens": 7}},
        {"choices": 2},
    ],
)
async def test_a_name_that_another_request_has_is_taken(
    stub: router_pb2_grpc.RouterServiceStub, more: dict[str, Any]
) -> None:
    await _events(stub.Generate(_request(generation_id="mine-1"), timeout=60))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _events(stub.Generate(_request(generation_id="mine-1", **more), timeout=60))
    assert isinstance(from_rpc_error(failed.value), AlreadyExists)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"sampling": {"top_p": 1.5}}, "top_p"),
        ({"sampling": {"max_tokens": MAX_POSITIONS}}, "max_tokens"),
        ({"sampling": {"top_logprobs": 1000}}, "top_logprobs"),
        ({"sampling": {"min_p": float("nan")}}, "min_p"),
        ({"sampling": {"logit_bias": {1: float("inf")}}}, "logit_bias"),
        ({"sampling": {"logit_bias": {999: 1.0}}}, "logit_bias"),
        ({"choices": 1000}, "choices"),
        ({"stop_strings": [""]}, "stop_strings"),
        ({"generation_id": "../x"}, "generation_id"),
        ({"text": ""}, "prompt"),
        ({"text": "a\0b"}, "text"),
        ({"token_ids": router_pb2.PromptIds(ids=[1, 303])}, "prompt"),
        ({"chat": router_pb2.Chat()}, "messages"),
        (
            {"chat": router_pb2.Chat(messages=[router_pb2.ChatMessage(role="robot", content="x")])},
            "chat.messages.role",
        ),
    ],
)
async def test_a_bad_request_names_its_field(
    stub: router_pb2_grpc.RouterServiceStub, more: dict[str, Any], field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _events(stub.Generate(_request(**more), timeout=60))
    error = from_rpc_error(failed.value)
    assert isinstance(error, InvalidArgument)
    assert error.field == field


async def test_an_unknown_model_or_generation_is_not_found(
    stub: router_pb2_grpc.RouterServiceStub,
) -> None:
    unknown = _request()
    unknown.model = "huge"
    for call in (
        stub.Generate(unknown, timeout=60),
        stub.Resume(router_pb2.ResumeRequest(generation_id="nobody"), timeout=60),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await _events(call)
        assert isinstance(from_rpc_error(failed.value), NotFound)


async def test_an_event_behind_the_end_is_out_of_range(
    stub: router_pb2_grpc.RouterServiceStub,
) -> None:
    events = await _events(stub.Generate(_request(), timeout=60))
    again = router_pb2.ResumeRequest(
        generation_id=events[0].generation_id, last_event_id="5000-00000000"
    )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _events(stub.Resume(again, timeout=60))
    assert isinstance(from_rpc_error(failed.value), OutOfRange)


async def test_a_cancelled_stream_ends_cancelled(
    stub: router_pb2_grpc.RouterServiceStub, mesh: FakeMesh
) -> None:
    mesh.limit = 5
    call = stub.Generate(_request(), timeout=60)
    first = await call.read()
    await stub.Cancel(router_pb2.CancelRequest(generation_id=first.generation_id), timeout=60)

    async def rest() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await rest()
    assert isinstance(from_rpc_error(failed.value), Cancelled)


async def test_a_caller_that_leaves_detaches(
    stub: router_pb2_grpc.RouterServiceStub, mesh: FakeMesh, router: RunningDoors
) -> None:
    mesh.limit = 5
    call = stub.Generate(_request(), timeout=60)
    await call.read()
    call.cancel()
    async with asyncio.timeout(60):
        while mesh.readers or router.router.streams:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert mesh.cancels == []


async def test_a_caller_that_never_reads_is_let_go(mesh: FakeMesh) -> None:
    mesh.replies = ["x" * 20]
    request = _request(sampling={"ignore_eos": True}, choices=16)
    narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with (
        mesh.router(write_timeout_s=0.3) as router,
        grpc.aio.insecure_channel(f"127.0.0.1:{router.grpc_port}", narrow) as channel,
    ):
        call = router_pb2_grpc.RouterServiceStub(channel).Generate(request, timeout=60)
        async with asyncio.timeout(60):
            while not mesh.calls or mesh.readers or router.router.streams:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await _events(call)
        assert isinstance(from_rpc_error(failed.value), ResourceExhausted)
    entry = next(iter(mesh.journal.values()))
    assert len(entry.ids[0]) < entry.request.sampling.max_tokens


async def test_models_are_listed(stub: router_pb2_grpc.RouterServiceStub) -> None:
    listed = await stub.ListModels(router_pb2.ListModelsRequest(), timeout=60)
    assert [(m.model_id, m.digest, m.max_positions) for m in listed.models] == [
        (MODEL.model_id, MODEL.digest, MAX_POSITIONS)
    ]
    assert listed.models[0].created_unix_s > 0


@pytest.mark.group(33)
async def test_a_message_over_the_limit_is_refused(mesh: FakeMesh) -> None:
    async with (
        mesh.router(max_message_bytes=1 << 20) as router,
        channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel,
    ):
        stub = router_pb2_grpc.RouterServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await _events(stub.Generate(_request(text="x" * (2 << 20)), timeout=60))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert _text(await _events(stub.Generate(_request(), timeout=60))) == REPLY


BROKEN = {
    "truncated": b"\x0a\xff",
    "a length that is not there": b"\x0a" + b"\xff" * 9 + b"\x01",
    "no message": b"\xff" * 64,
    "groups 1,000 deep": b"\xa3\x06" * 1000,
    "groups 1,000 deep that end": b"\xa3\x06" * 1000 + b"\xa4\x06" * 1000,
}


@pytest.mark.group(36)
@pytest.mark.parametrize("name", BROKEN)
async def test_bytes_that_are_no_message_get_a_status(router: RunningDoors, name: str) -> None:
    method = "/shuntserve.router.v1.RouterService/Generate"
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        call: Any = channel.unary_stream(method)(BROKEN[name], timeout=60)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert failed.value.code() is grpc.StatusCode.UNKNOWN  # the library's own
        assert "Error parsing message" in str(failed.value.details())
        stub = router_pb2_grpc.RouterServiceStub(channel)
        assert _text(await _events(stub.Generate(_request(), timeout=60))) == REPLY


RESETS = 1000
"""`python -m bench.resets` has ten times as many, at every door of a mesh."""


@pytest.mark.group(37)
async def test_a_thousand_resets_do_no_harm_and_leave_nothing_behind(
    stub: router_pb2_grpc.RouterServiceStub, router: RunningDoors
) -> None:
    assert _text(await _events(stub.Generate(_request(), timeout=60))) == REPLY
    tasks = len(asyncio.all_tasks())
    for _ in range(RESETS // 20):
        calls = [stub.Generate(_request(), timeout=60) for _ in range(20)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
    assert _text(await _events(stub.Generate(_request(), timeout=60))) == REPLY
    doors = router.router
    async with asyncio.timeout(60):
        while (  # noqa: ASYNC110
            doors.streams
            or doors._admission.total
            or len(asyncio.all_tasks()) > tasks + RESETS // 50
        ):
            await asyncio.sleep(0.01)
    assert not doors._balancer._running
