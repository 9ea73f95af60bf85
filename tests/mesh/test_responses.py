from __future__ import annotations

import asyncio
import math
import os
import secrets
import signal
import time
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2

from bench import mesh as meshes
from tests.mesh.lasting import MORE

ASKED = {
    "model": meshes.MODEL,
    "input": meshes.PROMPTS[0],
    "temperature": 0.9,
    "seed": 77,
    "ignore_eos": True,
}
TOKENS = 400
GOES_ON = ("queued", "in_progress")
LASTS_S = 8.0
"""While no router is there a response goes on: one that ends meanwhile outlives nothing else. Two
routers start on the cores that it is computed on, and a pipeline is killed when they are there."""


class _Response:
    """A response, asked for at any router that answers."""

    def __init__(self, mesh: meshes.Mesh, client: httpx.AsyncClient, name: str) -> None:
        self._mesh = mesh
        self._client = client
        self._name = name

    @property
    def generation_id(self) -> str:
        return self._name.removeprefix("resp_")

    async def now(self) -> dict[str, Any]:
        while True:
            await asyncio.sleep(0.05)
            for router in range(self._mesh.routers):
                url = f"{self._mesh.url(router)}/v1/responses/{self._name}"
                try:
                    answer = await self._client.get(url)
                except httpx.TransportError:
                    continue
                if answer.status_code == 200:
                    found: dict[str, Any] = answer.json()
                    return found

    async def goes_on(self, characters: int) -> None:
        """Waits until its text is longer by so many."""
        length = _length(await self.now())
        while _length(response := await self.now()) < length + characters:
            assert response["status"] in GOES_ON, "it ended before it was disturbed"

    async def whole(self) -> dict[str, Any]:
        """It, once it has ended."""
        while (response := await self.now())["status"] in GOES_ON:
            pass
        return response

    async def events(self) -> str:
        """As they are told, without what names this very response."""
        url = f"{self._mesh.url()}/v1/responses/{self._name}"
        answer = await self._client.get(url, params={"stream": "true", "starting_after": 1})
        created = (await self.now())["created_at"]
        told = answer.text.replace(self.generation_id, "ID")
        return told.replace(f'"created_at":{created}', '"created_at":0')


async def _pids(mesh: meshes.Mesh, name: str) -> list[int]:
    services = (await mesh.status())["services"]
    return [service["pid"] for service in services if service["name"].startswith(name)]


def _length(response: dict[str, Any]) -> int:
    return sum(len(part["text"]) for item in response["output"] for part in item["content"])


async def test_a_background_response_outlives_client_router_pipeline_and_controller(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any
) -> None:
    async def begun(tokens: int) -> _Response:
        async with httpx.AsyncClient(timeout=60) as passer_by:  # gone before there is an answer
            url = f"{ready.url()}/v1/responses"
            # Of a salt of its own, or its usage would tell of a prompt that is cached.
            own = {"max_output_tokens": tokens, "cache_salt": secrets.token_hex(8)}
            asked = {**ASKED, **own, "background": True}
            accepted = await passer_by.post(url, json=asked)
        assert accepted.json()["status"] == "queued"
        return _Response(ready, client, accepted.json()["id"])

    tokens, lasted_s = TOKENS, 0.0
    while lasted_s < LASTS_S:
        tokens = math.ceil(MORE * tokens * LASTS_S / lasted_s) if lasted_s else tokens
        undisturbed, began_s = await begun(tokens), time.monotonic()
        await undisturbed.whole()
        lasted_s = time.monotonic() - began_s
    disturbed = await begun(tokens)
    await disturbed.goes_on(20)
    for router in await _pids(ready, "router"):
        os.kill(router, signal.SIGKILL)
    await disturbed.goes_on(60)
    status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    running = next(g for g in status.generations if g.generation_id == disturbed.generation_id)
    head = next(
        n for n in status.nodes if n.pipeline_id == running.pipeline_id and not n.stage_index
    )
    os.kill(head.pid, signal.SIGKILL)
    await disturbed.goes_on(60)
    for process in await _pids(ready, "controller"):
        os.kill(process, signal.SIGKILL)
    whole = await disturbed.whole()
    assert whole["usage"] == (await undisturbed.now())["usage"]
    assert await disturbed.events() == await undisturbed.events()
    await ready.until_ready(2)
