from __future__ import annotations

import asyncio
from typing import Any

import httpx

from bench import mesh as meshes
from tests.mesh.head_stats import head_stats

MEAN = 4
"""Sequences in a step, of both pipelines together: 2 where each is decoded alone, 8 where nothing
came between their starts, which take some steps each."""


async def test_streams_started_apart_are_decoded_together(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any
) -> None:
    bodies = [body | {"ignore_eos": True} for body in meshes.request_bodies(160)]
    expected: list[meshes.StreamRecord] = []
    for body in bodies:
        expected += await meshes.undisturbed(client, ready.url(), [body])

    before = await head_stats(controller)
    records = [meshes.StreamRecord() for _ in bodies]
    async with asyncio.TaskGroup() as group:
        for body, record in zip(bodies, records, strict=True):
            group.create_task(meshes.stream_chat(client, ready.url(), body, record))
            await meshes.until(lambda one=record: bool(one.arrivals_s))  # it decodes, and one joins
    after = await head_stats(controller)

    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert record.text == wanted.text
    mean = sum(
        (after[p].decoded_sequences - before[p].decoded_sequences)
        / max(1, after[p].decode_steps - before[p].decode_steps)
        for p in after
    )
    assert mean >= MEAN
