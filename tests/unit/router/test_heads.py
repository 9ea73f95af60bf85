from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import grpc
import pytest
from shuntserve.engine.v1 import engine_pb2

from services.common.exchange import GenerateCall, Route
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.common.settings import TlsSettings
from services.router import heads as module
from services.router.heads import FRAMES_AT_ONCE, OPENED_AT_ONCE, Heads

MODEL = ModelRef("m", "d")
ROUTE = Route("p", "f", "i", "127.0.0.1:1", 1.0, MODEL, 100)
CROWD, FRAMES = 60, 5


class Step:
    """A stream whose frames are all here already, as behind a step of a full batch."""

    def __init__(self) -> None:
        self._left = FRAMES

    async def read(self) -> Any:
        self._left -= 1
        if self._left < 0:
            return grpc.aio.EOF
        return engine_pb2.GenerateResponse(
            progress=engine_pb2.Progress(step=1, phase=engine_pb2.PHASE_DECODE)
        )

    def cancel(self) -> None:
        """Nothing is open."""


@pytest.fixture
async def heads() -> AsyncIterator[Heads]:
    heads = Heads(60.0, 60.0, TlsSettings())
    yield heads
    await heads.close()


async def test_a_crowds_streams_leave_turns_of_the_event_loop_to_others(
    heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, read = list[int](), list[int]()

    class Stub:
        def __init__(self, channel: object) -> None:
            """Of any channel."""

        def Generate(self, request: object, **options: object) -> Step:
            opened.append(1)
            return Step()

    monkeypatch.setattr(module.engine_pb2_grpc, "EngineServiceStub", Stub)
    seen = [(0, 0)]

    async def follow(number: int) -> None:
        request = GenerationRequest(str(number), MODEL, (1,), Sampling(5))
        async with aclosing(heads.frames(ROUTE, GenerateCall(request, 1, "f", (), ()))) as frames:
            async for _ in frames:
                read.append(number)

    async def other() -> None:
        while len(read) < CROWD * FRAMES:
            await asyncio.sleep(0)
            seen.append((len(opened), len(read)))

    await asyncio.gather(*(follow(number) for number in range(CROWD)), other())
    for at_once, counts in ((OPENED_AT_ONCE, 0), (FRAMES_AT_ONCE, 1)):
        steps = [after[counts] - before[counts] for before, after in pairwise(seen)]
        assert max(steps) <= at_once
    assert len(opened) == CROWD
