from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.router.__main__ import RunningDoors
from tests.fake_mesh import FakeMesh
from tests.key_rings import KeyRing
from tests.waiting import until


@pytest.fixture
async def mesh() -> AsyncIterator[FakeMesh]:
    """Two heads, a controller and a tensor store that are none."""
    async with FakeMesh(2).serving() as mesh:
        yield mesh


@pytest.fixture
async def router(mesh: FakeMesh) -> AsyncIterator[RunningDoors]:
    async with mesh.router(recover_s=5.0, route_wait_s=0.5) as router:
        await until(lambda: router.router.ready)
        yield router


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    """Keys of three tenants, of whom one may use another model only."""
    ring = KeyRing(tmp_path / "keys.json")
    ring.add("acme")
    ring.add("other")
    ring.add("elsewhere", models=["another-model"])
    return ring


@pytest.fixture
async def keyed(mesh: FakeMesh, ring: KeyRing, tmp_path: Path) -> AsyncIterator[RunningDoors]:
    """A router that asks for keys."""
    settings = {"keys": ring.path, "files": str(tmp_path / "files")}
    async with mesh.router(recover_s=5.0, route_wait_s=0.5, **settings) as router:
        await until(lambda: router.router.ready)
        yield router


@pytest.fixture
async def http(router: RunningDoors) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{router.http_port}"
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def unused_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Told:
    """What one reader of server-sent events was told."""

    generation_id: str = ""
    status: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    """Of an answer that is no stream."""
    ids: list[str] = field(default_factory=list)
    """One an event, those without an id as ''."""
    events: list[dict[str, Any]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    done: int = 0

    def choices(self, index: int = 0) -> list[dict[str, Any]]:
        return [c for e in self.events for c in e.get("choices", ()) if c["index"] == index]

    def text(self, index: int = 0) -> str:
        return "".join(
            c.get("text") or c.get("delta", {}).get("content") or "" for c in self.choices(index)
        )

    def finishes(self, index: int = 0) -> list[str]:
        return [c["finish_reason"] for c in self.choices(index) if c["finish_reason"]]

    @property
    def roles(self) -> int:
        return sum("role" in c.get("delta", {}) for c in self.choices())

    @property
    def usages(self) -> list[dict[str, Any]]:
        return [e["usage"] for e in self.events if e.get("usage")]

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [e["error"] for e in self.events if "error" in e]


Until = Callable[[Told], Any]


async def _read(response: httpx.Response, told: Told, until: Until | None) -> None:
    told.generation_id = response.headers.get("x-generation-id", "")
    told.status = response.status_code
    if response.status_code != 200:
        told.body = json.loads(await response.aread())
        return
    event_id = ""
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith(":"):
            told.comments.append(line)
        elif line == "data: [DONE]":
            told.done += 1
        elif line.startswith("data: "):
            told.events.append(json.loads(line[6:]))
            told.ids.append(event_id)
            event_id = ""
        if until is not None and until(told):
            return


@pytest.fixture
def ask() -> Callable[..., Awaitable[Told]]:
    """Streams a completion until it ends, or until the reader has had enough."""

    async def ask(
        client: httpx.AsyncClient,
        *,
        until: Until | None = None,
        path: str = "/v1/chat/completions",
        told: Told | None = None,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> Told:
        told = told or Told()
        payload = {
            "model": "tiny",
            "stream": True,
            "temperature": 0,
            "stream_options": {"include_usage": True},
            **body,
        }
        if path.endswith("chat/completions"):
            payload.setdefault("messages", [{"role": "user", "content": "hi"}])
        async with client.stream("POST", path, json=payload, headers=headers) as response:
            await _read(response, told, until)
        return told

    return ask


@pytest.fixture
def resume() -> Callable[..., Awaitable[Told]]:
    """Goes on with a generation behind an event."""

    async def resume(
        client: httpx.AsyncClient,
        generation_id: str,
        after: str = "",
        *,
        until: Until | None = None,
    ) -> Told:
        told = Told()
        headers = {"Last-Event-ID": after} if after else {}
        path = f"/v1/generations/{generation_id}/stream"
        async with client.stream("GET", path, headers=headers) as response:
            await _read(response, told, until)
        return told

    return resume
