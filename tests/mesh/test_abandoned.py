"""A crowd that closes its connections does not stand in the way of who is there."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from bench import mesh as meshes
from tests.mesh.head_stats import head_stats

CROWD = 160
ANSWER = 400
MOST_STEPS = 200
"""Between the crowd's leaving and the next request's first token, both heads together: the blip
that is forgiven (0.25 s), the steps in flight, its prompt. Who waits for a place that the crowd
keeps waits for an answer's tokens, at both heads."""


async def _standing(mesh: meshes.Mesh) -> dict[str, int]:
    generations = (await mesh.status())["generations"]
    return {
        "read": sum(g["standing"] != "parked" and not g["unread"] for g in generations),
        "unread": sum(g["standing"] != "parked" and g["unread"] for g in generations),
        "parked": sum(g["standing"] == "parked" for g in generations),
    }


async def _steps(controller: Any) -> int:
    return sum(stats.steps for stats in (await head_stats(controller)).values())


async def test_a_live_request_does_not_wait_for_160_streams_that_were_closed(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any
) -> None:
    body = {
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": ANSWER,
        "ignore_eos": True,
        "temperature": 0,
    }
    parked_before = (await _standing(ready))["parked"]
    crowd = [meshes.StreamRecord() for _ in range(CROWD)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120.0, limits=limits) as leaving:
        streams = [
            asyncio.create_task(meshes.stream_chat(leaving, ready.url(number % 2), body, record))
            for number, record in enumerate(crowd)
        ]
        await meshes.until(lambda: sum(bool(record.text) for record in crowd) >= 64)
        stats = (await head_stats(controller)).values()
        assert sum(s.queued for s in stats) > 0, "every place is taken"
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    left_s, left_steps = time.monotonic(), await _steps(controller)

    live = meshes.StreamRecord()
    answer = asyncio.create_task(
        meshes.stream_chat(client, ready.url(), body | {"max_tokens": 8}, live)
    )
    await meshes.until(lambda: bool(live.text))
    first_s, steps = live.arrivals_s[0] - left_s, await _steps(controller) - left_steps
    print(f"first token {first_s:.2f} s and {steps} steps behind {CROWD} closed streams")
    assert steps <= MOST_STEPS
    await answer
    assert live.complete, live.error

    standing = await _standing(ready)
    for _ in range(300):
        if not standing["read"] + standing["unread"]:
            break
        await asyncio.sleep(0.2)
        standing = await _standing(ready)
    assert (standing["read"], standing["unread"]) == (0, 0)
    assert 0 < standing["parked"] - parked_before <= CROWD
