"""A long prompt that one pipeline has read comes to the other one from there, and nobody's answer
shows it; nor that who holds it dies, or stands still, while it is fetched."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import kv_mesh
from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role

CONTEXT = 580
"""What a router saves by going to who has it is worth little more than a place there: so of two who
ask at once the second goes elsewhere."""
TOKENS = 60
BELIEVED = {"SHUNT_ENGINE_KV_PREFIX_BYTES_PER_S": "1e9"}
SLOW = BELIEVED | {"SHUNT_ENGINE_KV_BYTES_PER_S": "1e6"}


class Twins:
    """Asks the same twice at once, behind one who has asked it alone."""

    def __init__(self, mesh: meshes.Mesh, client: httpx.AsyncClient) -> None:
        self._url, self._client = mesh.url(), client
        self._seeds = itertools.count(1)

    async def warm(self) -> None:
        """Both pipelines make steps."""
        bodies = [self._body(60) for _ in range(4)]
        await asyncio.gather(*map(self._answer, bodies))

    async def begin(self) -> tuple[meshes.StreamRecord, list[asyncio.Task[meshes.StreamRecord]]]:
        """What one alone was answered, and two who ask for the same."""
        body = self._body(CONTEXT)
        expected = await self._answer(body)
        again = body | {"max_tokens": 1}
        while (await self._answer(again)).cached_tokens == 0:
            pass  # its router has yet to hear who has it
        return expected, [asyncio.create_task(self._answer(body)) for _ in range(2)]

    def _body(self, context: int) -> dict[str, Any]:
        return kv_mesh.body_of(context, next(self._seeds)) | {"max_tokens": TOKENS}

    async def _answer(self, body: dict[str, Any]) -> meshes.StreamRecord:
        record = meshes.StreamRecord()
        await meshes.stream_chat(self._client, self._url, body, record)
        assert record.complete, record.error
        return record


async def _all_say(
    expected: meshes.StreamRecord, asked: list[asyncio.Task[meshes.StreamRecord]]
) -> None:
    for record in await asyncio.gather(*asked):
        assert (record.text, record.usage) == (expected.text, expected.usage)


@pytest.mark.timeout(300)
async def test_a_prompt_that_the_other_pipeline_has_read_comes_from_there(
    tmp_path: Path, store: Path, client: httpx.AsyncClient
) -> None:
    env = {**os.environ, **BELIEVED}
    async with meshes.running(tmp_path / "mesh", env=env, store=store) as mesh:
        twins = Twins(mesh, client)
        await twins.warm()
        for _ in range(20):  # how long rows take is what decides, and a machine may be busy
            await _all_say(*await twins.begin())
            stats = await kv_mesh.engine_stats(mesh)
            if _filled(stats):
                break
    filled = [one.filled_kv_blocks for one in stats.values() if one.filled_kv_blocks]
    assert len(filled) >= 2, "every stage of a pipeline has what comes"
    assert max(filled) >= CONTEXT // 2 // 16


def _filled(stats: Mapping[str, engine_pb2.EngineStats]) -> int:
    return sum(one.filled_kv_blocks for one in stats.values())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_who_holds_a_prompt_and_is_lost_while_it_is_fetched_is_a_miss(
    tmp_path: Path, store: Path, client: httpx.AsyncClient, how: signal.Signals
) -> None:
    env = {**os.environ, **SLOW}
    async with meshes.running(tmp_path / "mesh", env=env, store=store) as mesh:
        controller = await kv_mesh.controller_of(mesh)
        twins = Twins(mesh, client)
        await twins.warm()
        lost = None
        for _ in range(20):
            expected, asked = await twins.begin()
            while lost is None and not all(task.done() for task in asked):
                lost = await _who_offers(controller)
            if lost is not None:
                os.kill(lost, how)
                break
            await _all_say(expected, asked)
        assert lost is not None, "nobody was asked for what it holds"
        try:
            await _all_say(expected, asked)
        finally:
            if how is signal.SIGSTOP:
                with suppress(ProcessLookupError):  # ended by who missed it
                    os.kill(lost, signal.SIGCONT)


async def _who_offers(controller: str) -> int | None:
    """The process id of one that keeps blocks for another pipeline."""
    async with channels.open_channel(controller, Role.CONTROLLER) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        status = await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    for node in status.nodes:
        async with channels.open_channel(node.address, Role.ENGINE) as channel:
            engine = engine_pb2_grpc.EngineServiceStub(channel)
            with suppress(grpc.aio.AioRpcError):
                told = await engine.Describe(engine_pb2.DescribeRequest(), timeout=60)
                if told.stats.kept_kv_bytes:
                    pid: int = node.pid
                    return pid
    return None
