from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2

from bench import mesh as meshes

ASKED = {
    "model": meshes.MODEL,
    "input": meshes.PROMPTS[0],
    "temperature": 0.9,
    "seed": 77,
    "max_output_tokens": 400,
}


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

    async def goes_on(self, characters: int) -> int:
        """Waits until its text is longer by so many; its length, then."""
        length = _length(await self.now())
        while (grown := _length(await self.now())) < length + characters:
            pass
        return grown

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
    async def begun(salt: str) -> _Response:
        async with httpx.AsyncClient(timeout=60) as passer_by:  # gone before there is an answer
            url = f"{ready.url()}/v1/responses"
            asked = {**ASKED, "background": True, "cache_salt": salt}
            accepted = await passer_by.post(url, json=asked)
        assert accepted.json()["status"] == "queued"
        return _Response(ready, client, accepted.json()["id"])

    undisturbed = await begun("a")
    while (await undisturbed.now())["status"] in ("queued", "in_progress"):
        pass
    disturbed = await begun("b")
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
    while (whole := await disturbed.now())["status"] in ("queued", "in_progress"):
        pass
    assert whole["usage"] == (await undisturbed.now())["usage"]
    assert await disturbed.events() == await undisturbed.events()
    await ready.until_ready(2)
