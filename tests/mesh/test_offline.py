"""A batch on a real mesh, of which the parts that work on it are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2

from bench import mesh as meshes

LINES = 40
TOKENS = 24
ENDPOINT = "/v1/chat/completions"


def _holder(mesh: meshes.Mesh, batch_id: str) -> int:
    """Index of the router that took the batch up last."""
    found: list[tuple[str, int]] = []
    for index in range(mesh.routers):
        log = (mesh.data_dir / "logs" / f"router-{index}.log").read_text().splitlines()
        lines = [json.loads(line) for line in log if batch_id in line and "taken up" in line]
        found += [(line["time"], index) for line in lines]
    return max(found)[1]


async def _kill(mesh: meshes.Mesh, name: str) -> None:
    services = (await mesh.status())["services"]
    os.kill(next(s["pid"] for s in services if s["name"] == name), signal.SIGKILL)


async def _asked(client: httpx.AsyncClient, url: str, method: str, **sent: Any) -> Any:
    """What a router answers once it is there again."""
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await client.request(method, url, **sent)
                if answer.status_code == 200:
                    return answer
                assert answer.status_code == 503, answer.text
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)


async def test_each_line_of_a_batch_has_one_answer_whatever_is_killed(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any
) -> None:
    bodies = meshes.request_bodies(TOKENS)
    expected = await meshes.undisturbed(client, ready.url(), bodies)
    lines = [
        {
            "custom_id": f"line-{n}",
            "method": "POST",
            "url": ENDPOINT,
            "body": {"model": meshes.MODEL, **bodies[n % len(bodies)]},
        }
        for n in range(LINES)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    api = f"{ready.url()}/v1"
    sent = await client.post(
        f"{api}/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}
    )
    made = await client.post(
        f"{api}/batches",
        json={
            "input_file_id": sent.json()["id"],
            "endpoint": ENDPOINT,
            "completion_window": "24h",
        },
    )
    batch = made.json()

    async def running() -> dict[str, str]:
        status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
        open_here = {g.generation_id: g.pipeline_id for g in status.generations}
        return {name: at for name, at in open_here.items() if name.startswith("b") and at}

    async def some() -> dict[str, str]:
        async with asyncio.timeout(60):
            found = await running()
            while not found:
                await asyncio.sleep(0.02)
                found = await running()
        return found

    begun = await some()
    first = _holder(ready, batch["id"])
    await _kill(ready, f"router-{first}")
    api = f"{ready.url(1 - first)}/v1"  # whom nobody has to wait for
    while len(set(await running()) - set(begun)) < 2:  # another one goes on with it
        batch = (await _asked(client, f"{api}/batches/{batch['id']}", "GET")).json()
        assert batch["status"] in ("validating", "in_progress"), "it ended before it was disturbed"
        await asyncio.sleep(0.02)
    busy = min((await some()).values())
    status = await controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    head = next(n for n in status.nodes if n.pipeline_id == busy and n.stage_index == 0)
    os.kill(head.pid, signal.SIGKILL)
    await _kill(ready, "controller")

    async with asyncio.timeout(180):
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(0.2)
            batch = (await _asked(client, f"{api}/batches/{batch['id']}", "GET")).json()
    assert batch["status"] == "completed", batch
    assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    answers = await _asked(client, f"{api}/files/{batch['output_file_id']}/content", "GET")
    results = [json.loads(line) for line in answers.content.splitlines()]
    assert sorted(r["custom_id"] for r in results) == sorted(f"line-{n}" for n in range(LINES))
    for result in results:
        wanted = expected[int(result["custom_id"].removeprefix("line-")) % len(bodies)]
        answer = result["response"]["body"]
        assert answer["choices"][0]["message"]["content"] == wanted.text
        assert answer["usage"]["completion_tokens"] == wanted.usage["completion_tokens"]
    await ready.until_ready(2)
