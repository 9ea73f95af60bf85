"""A second model is served for a while, on nodes of the first one, which never stops."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx

from bench import mesh as meshes
from tests.mesh import tiny_mesh
from tests.mesh.tiny_mesh import NAME
from tests.tiny_model import tiny_tokenizer

TOKENS = 160
WORDS = "the capital of France and more words"
BODY = {"model": NAME, "prompt": WORDS, "max_tokens": 24, "temperature": 0, "ignore_eos": True}


class Load:
    """Eight streams of the first model, begun again and again until it is enough."""

    def __init__(self, client: httpx.AsyncClient, url: str, bodies: list[dict[str, Any]]) -> None:
        self._enough = asyncio.Event()
        self.records: list[list[meshes.StreamRecord]] = [[] for _ in bodies]
        self._tasks = [
            asyncio.create_task(self._again(client, url, body, records))
            for body, records in zip(bodies, self.records, strict=True)
        ]

    async def _again(
        self,
        client: httpx.AsyncClient,
        url: str,
        body: dict[str, Any],
        records: list[meshes.StreamRecord],
    ) -> None:
        while not self._enough.is_set():
            records.append(meshes.StreamRecord())
            await meshes.stream_chat(client, url, body, records[-1])

    async def flows(self) -> None:
        """Every stream brings something now."""
        before = [sum(len(r.arrivals_s) for r in records) for records in self.records]

        def more() -> bool:
            now = [sum(len(r.arrivals_s) for r in records) for records in self.records]
            return all(later > earlier for earlier, later in zip(before, now, strict=True))

        await meshes.until(more)

    async def end(self) -> None:
        """What runs is read to its end."""
        self._enough.set()
        await asyncio.gather(*self._tasks)


async def names(client: httpx.AsyncClient, url: str) -> list[str]:
    listed = (await client.get(f"{url}/v1/models")).json()["data"]
    return [model["id"] for model in listed]


async def asked(client: httpx.AsyncClient, url: str) -> Any:
    """The second model's answer."""
    answer = await client.post(f"{url}/v1/completions", json=BODY)
    assert answer.status_code == 200, answer.text
    return answer.json()


def both_serve(status: dict[str, Any]) -> bool:
    ready = [deployment["ready_pipelines"] for deployment in status["deployments"]]
    return len(ready) == 2 and all(ready)


def controller_of(status: dict[str, Any]) -> int:
    """Its process."""
    pid: int = next(s["pid"] for s in status["services"] if s["name"] == "controller")
    return pid


async def test_a_second_model_comes_and_goes_and_the_first_ones_streams_go_on(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any, tmp_path: Path
) -> None:
    mesh, url = ready, ready.url()
    await tiny_mesh.import_model(
        tiny_mesh.reference(), tmp_path / "source", mesh.data_dir / "store"
    )
    bodies = [body | {"ignore_eos": True} for body in meshes.request_bodies(TOKENS)]
    expected = await meshes.undisturbed(client, url, bodies)
    load = Load(client, url, bodies)
    try:
        await second_comes_and_goes(mesh, client, load)
    finally:
        await load.end()
        await taken_out(mesh)
    for records, wanted in zip(load.records, expected, strict=True):
        for record in records:
            assert record.complete, record.error
            assert (record.text, record.usage) == (wanted.text, wanted.usage)
    events = await tiny_mesh.events_of(controller)
    changed = [e.attributes["models"] for e in events if e.kind == "deployments_changed"]
    first = (await mesh.status())["deployments"][0]["model"]
    assert changed[-2:] == [f"{first}, {NAME}", first]
    gaps = [record.longest_gap_s() for records in load.records for record in records]
    print("streams", len(gaps), "longest gap", max(gaps))


async def taken_out(mesh: meshes.Mesh) -> None:
    """The second model is served no more, however far its test came."""
    status = await tiny_mesh.until_status(mesh, lambda status: bool(status["deployments"]))
    if NAME in [deployment["model"] for deployment in status["deployments"]]:
        await mesh.shunt("undeploy", NAME)


async def second_comes_and_goes(mesh: meshes.Mesh, client: httpx.AsyncClient, load: Load) -> None:
    url = mesh.url()
    await load.flows()
    first = (await mesh.status())["deployments"][0]["model"]

    said = await mesh.shunt("deploy", NAME, "--objective", "throughput-per-cost")
    assert f"{NAME} is deployed" in said
    status = await mesh.status()
    assert [(d["model"], d["objective"]) for d in status["deployments"]] == [
        (first, "throughput"),
        (NAME, "throughput-per-cost"),
    ]
    assert both_serve(status)
    assert [d["model"] for d in status["plan"]["deployments"]] == [first, NAME]
    answer = await asked(client, url)
    assert answer["usage"]["prompt_tokens"] == len(tiny_tokenizer().encode(WORDS).ids)
    assert await names(client, url) == [first, NAME]
    await load.flows()

    killed = controller_of(status)
    os.kill(killed, signal.SIGKILL)
    await tiny_mesh.until_status(mesh, lambda s: controller_of(s) != killed and both_serve(s))
    again = await asked(client, url)
    assert again["choices"] == answer["choices"]
    await load.flows()

    await mesh.shunt("undeploy", NAME)
    async with asyncio.timeout(60):
        while await names(client, url) != [first]:  # takes a moment by itself
            pass
    refused = await client.post(f"{url}/v1/completions", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    await load.flows()
    await mesh.until_ready(2)
