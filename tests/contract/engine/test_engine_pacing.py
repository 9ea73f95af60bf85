"""Steps of a stage that was given a share of a core."""

from __future__ import annotations

import asyncio
import math

import pytest
from shuntserve.engine.v1 import engine_pb2

from services.engine.core import throttle
from tests.contract.engine.rig import DEADLINE_S, Rig, Worker, generate, request, until
from tests.contract.engine.tiny import TinyLoader, expected_ids

PROMPT = [5, 6, 7]
COMPUTED_S = 0.01
STEPS = 20


async def described(worker: Worker) -> engine_pb2.DescribeResponse:
    return await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)


def slowness(told: engine_pb2.DescribeResponse) -> float:
    return told.stats.stepped_s / told.stats.computed_s


async def test_each_stage_takes_as_long_as_its_share_says(rig: Rig) -> None:
    shares = (0.2, 0.05)
    workers = [
        await rig.worker(loader=TinyLoader(computed_s=COMPUTED_S), core_share=share)
        for share in shares
    ]
    await rig.form(workers, [3], "f1")
    stream = await generate(workers[0], request("g", PROMPT, STEPS), "f1").end()
    assert stream.ids[0] == expected_ids(PROMPT, STEPS)
    fast, slow = [await described(worker) for worker in workers]
    assert (fast.core_share, slow.core_share) == shares
    assert fast.stats.computed_s >= STEPS * COMPUTED_S
    assert slowness(fast) >= 0.95 / shares[0]
    assert slowness(slow) >= 0.95 / shares[1]
    assert slowness(slow) / slowness(fast) >= 2, "others may use the cores, too"


async def test_a_whole_core_is_not_slowed(rig: Rig) -> None:
    worker = await rig.worker(loader=TinyLoader(computed_s=COMPUTED_S))
    await rig.form([worker], [], "f1")
    await generate(worker, request("g", PROMPT, STEPS), "f1").end()
    told = await described(worker)
    assert told.core_share == 1
    assert told.stats.computed_s >= STEPS * COMPUTED_S


async def test_who_rests_leaves_its_formation_and_joins_the_next_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "LONGEST_REST_S", math.inf)  # for days, as it is slow
    loader = TinyLoader(computed_s=COMPUTED_S)
    worker = await rig.worker(loader=loader, core_share=1e-8)
    await rig.form([worker], [], "f1")
    stream = generate(worker, request("g", PROMPT, STEPS), "f1")

    async def computed() -> bool:
        return bool(loader.backends[0].slots)

    await until(computed)
    assert worker.engine is not None
    async with asyncio.timeout(DEADLINE_S):
        await worker.engine._compute.run(lambda: None)  # no thread rests
    await worker.stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f1"), timeout=60)
    await stream.end()
    assert stream.closed == engine_pb2.CLOSE_REASON_DISSOLVED
    await rig.join([worker], [], "f2")
