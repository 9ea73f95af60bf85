from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.cli.conversation import stream
from services.cli.mesh_directory import MeshError
from services.common.errors import Cancelled
from services.common.statuses import abort_with

WORDS = ("The", " sea", " is", " wide")


def _event(position: int) -> router_pb2.GenerateResponse:
    return router_pb2.GenerateResponse(
        generation_id="g1",
        event_id=str(position),
        deltas=[router_pb2.Delta(text=WORDS[position])],
    )


class _Router(router_pb2_grpc.RouterServiceServicer):
    """Tells two words, then dies, or says that the generation was cancelled."""

    def __init__(self, *, cancelled: bool) -> None:
        self._cancelled = cancelled
        self.resumed: list[str] = []

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for position in range(2):
            yield _event(position)
        if self._cancelled:
            await abort_with(context, Cancelled("the generation was cancelled"))
        await context.abort(grpc.StatusCode.CANCELLED, "the server stops")

    async def Resume(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.resumed.append(request.last_event_id)
        for position in range(int(request.last_event_id) + 1, len(WORDS)):
            yield router_pb2.ResumeResponse(event=_event(position))


class _Endless(router_pb2_grpc.RouterServiceServicer):
    """Tells one word, and then nothing more."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield _event(0)
        await asyncio.Event().wait()

    async def Cancel(self, request: Any, context: Any) -> Any:
        self.cancelled.append(request.generation_id)
        return router_pb2.CancelResponse()


async def _read(router: router_pb2_grpc.RouterServiceServicer, told: list[str]) -> None:
    server = grpc.aio.server()
    router_pb2_grpc.add_RouterServiceServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async for event in stream([f"127.0.0.1:{port}"], router_pb2.GenerateRequest()):
            told += [delta.text for delta in event.deltas]
    finally:
        await server.stop(None)


async def test_an_answer_goes_on_behind_the_last_word_when_its_router_stops() -> None:
    router, told = _Router(cancelled=False), list[str]()
    await _read(router, told)
    assert told == list(WORDS)
    assert router.resumed == ["1"]


async def test_an_answer_that_was_cancelled_is_not_asked_for_again() -> None:
    router, told = _Router(cancelled=True), list[str]()
    with pytest.raises(MeshError, match="the generation was cancelled"):
        await _read(router, told)
    assert told == list(WORDS[:2])
    assert router.resumed == []


async def test_an_answer_that_is_not_awaited_any_more_is_cancelled() -> None:
    router, told = _Endless(), list[str]()
    reading = asyncio.create_task(_read(router, told))
    async with asyncio.timeout(60):
        while not told:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert router.cancelled == ["g1"]


class _Locked(router_pb2_grpc.RouterServiceServicer):
    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this needs an API key")
        yield _event(0)


async def test_who_lacks_a_key_is_told_where_a_command_has_it_from() -> None:
    with pytest.raises(MeshError, match=r"needs an API key; .* SHUNT_API_KEY"):
        await _read(_Locked(), [])
