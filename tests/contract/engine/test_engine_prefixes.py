"""Beginnings that a head has computed: used again, told to routers, and counted once."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.engine.v1 import engine_pb2

from services.common import wire
from services.common.errors import FailedPrecondition
from services.common.prefix import chain_of, told
from services.common.statuses import from_rpc_error
from services.engine.backend import BLOCK_SIZE
from tests.contract.engine.rig import DEADLINE_S, Rig, Stream, Worker, generate, request
from tests.contract.engine.tiny import expected_ids

PROMPT = list(range(40))


def _watch(worker: Worker, formation_id: str) -> Any:
    asked = engine_pb2.WatchPrefixesRequest(formation_id=formation_id)
    return worker.stub.WatchPrefixes(asked, timeout=DEADLINE_S)


def _cached(stream: Stream) -> int:
    return next(run.cached_tokens for frame in stream.frames for run in frame.tokens.runs)


async def test_a_router_is_told_what_is_there_and_then_what_changes(rig: Rig) -> None:
    worker = await rig.worker()
    await rig.form([worker], [], "f1", blocks=6)
    await generate(worker, asked := request("g", PROMPT, 1), "f1").end()
    names = list(map(told, chain_of(asked, BLOCK_SIZE)))
    call = _watch(worker, "f1")
    first = await call.read()
    assert (first.whole, first.block_positions, list(first.added)) == (True, BLOCK_SIZE, names)
    await generate(worker, other := request("h", [*reversed(PROMPT), *PROMPT], 1), "f1").end()
    added, removed = [], []
    while len(added) < 5:
        news = await call.read()
        assert not news.whole
        added += news.added
        removed += news.removed
    assert added == list(map(told, chain_of(other, BLOCK_SIZE)))
    assert removed == names[::-1], "the end goes before the beginning"
    await worker.stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f1"), timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(call.read(), 60)
    assert isinstance(from_rpc_error(ended.value), FailedPrecondition)


async def test_who_heads_another_formation_tells_nothing(rig: Rig) -> None:
    worker = await rig.worker()
    await rig.form([worker], [], "f1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _watch(worker, "f2").read()
    error = from_rpc_error(refused.value)
    assert isinstance(error, FailedPrecondition)
    assert error.field == "formation_id"


async def test_a_prompt_that_begins_as_another_is_computed_from_where_it_goes_on(rig: Rig) -> None:
    workers = [await rig.worker(), await rig.worker()]
    await rig.form(workers, [3], "f1")
    streams = []
    for name, prompt in (("a", PROMPT), ("b", [*PROMPT[:32], 7]), ("c", PROMPT[:32])):
        stream = await generate(workers[0], request(name, prompt, 9), "f1").end()
        assert stream.ids[0] == expected_ids(prompt, 9)
        streams.append(stream)
    assert [_cached(stream) for stream in streams] == [0, 32, 16]
    salted = request("d", PROMPT, 9)
    message = engine_pb2.GenerateRequest(
        request=wire.request_to(salted), epoch=1, formation_id="f1"
    )
    message.request.cache_salt = "mine"
    other = await Stream(workers[0].stub.Generate(message, timeout=DEADLINE_S)).end()
    assert (other.ids[0], _cached(other)) == (expected_ids(PROMPT, 9), 0)


async def test_who_goes_on_elsewhere_keeps_the_count_of_its_first_head(rig: Rig) -> None:
    worker = await rig.worker()
    await rig.form([worker], [], "f1")
    ids = expected_ids(PROMPT, 9)
    await generate(worker, request("warm", PROMPT, 9), "f1").end()
    message = engine_pb2.GenerateRequest(
        request=wire.request_to(request("g", PROMPT, 9)), epoch=2, formation_id="f1"
    )
    message.held.append(common_pb2.TokenSpan(choice=0, start=0, ids=ids[:4], cached_tokens=16))
    stream = await Stream(worker.stub.Generate(message, timeout=DEADLINE_S)).end()
    assert (stream.ids[0], _cached(stream)) == (ids, 16)


async def test_with_sharing_off_nothing_is_kept(rig: Rig) -> None:
    worker = await rig.worker(share_prefixes=False)
    await rig.form([worker], [], "f1")
    for name in "ab":
        stream = await generate(worker, request(name, PROMPT, 3), "f1").end()
        assert (stream.ids[0], _cached(stream)) == (expected_ids(PROMPT, 3), 0)
    stats = (await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)).stats
    assert (stats.prefix_hits, stats.cached_kv_blocks, stats.prefix_queries) == (0, 0, 80)
