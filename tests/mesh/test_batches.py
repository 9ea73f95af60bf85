from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from bench import mesh as meshes
from tests.mesh.head_stats import head_stats


async def test_streams_started_apart_are_decoded_together(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any
) -> None:
    bodies = [body | {"ignore_eos": True} for body in meshes.request_bodies(160)]
    started = time.monotonic()
    alone = (await meshes.undisturbed(client, ready.url(), bodies[:1]))[0]
    one_rate = 160 / (time.monotonic() - started)
    expected = [alone]
    for body in bodies[1:]:
        expected += await meshes.undisturbed(client, ready.url(), [body])

    before = await head_stats(controller)
    records = [meshes.StreamRecord() for _ in bodies]
    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for body, record in zip(bodies, records, strict=True):
            group.create_task(meshes.stream_chat(client, ready.url(), body, record))
            await asyncio.sleep(0.1)
    rate = 8 * 160 / (time.monotonic() - started)
    after = await head_stats(controller)

    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert record.text == wanted.text
    mean = sum(
        (after[p].decoded_sequences - before[p].decoded_sequences)
        / max(1, after[p].decode_steps - before[p].decode_steps)
        for p in after
    )
    print(f"mean decode batch {mean:.2f}, {rate:.0f} tokens/s over {one_rate:.0f} alone")
    assert mean >= 6
    assert rate >= 3 * one_rate
