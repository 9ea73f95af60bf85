"""What a router tells of what it is asked for, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from tests.fake_mesh import FakeMesh

SELDOM_S = 10.0
"""Longer than all that happens here."""


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SELDOM_S / 2):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


async def test_a_model_that_was_quiet_is_told_to_be_asked_for_at_once(
    mesh: FakeMesh, ask: Any
) -> None:
    mesh.token_s = 0.05
    async with mesh.router(report_s=SELDOM_S) as router:
        await _until(lambda: len(mesh.demands) == 1)
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            first = asyncio.create_task(ask(http))
            await _until(lambda: len(mesh.demands) == 2)
            assert [(m.model_id, m.open) for m in mesh.demands[1].models] == [("tiny", 1)]
            second = asyncio.create_task(ask(http))
            await asyncio.gather(first, second)
    assert len(mesh.demands) == 2, "it is known to be asked for"
