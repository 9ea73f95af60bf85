"""Answers begin at one pipeline and go on at another, whatever becomes of either."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from pathlib import Path
from typing import Any

import httpx

from bench import mesh as meshes
from tests.mesh import tiny_mesh

TOKENS = 256


def plan(status: dict[str, Any], phases: dict[str, str]) -> str:
    """What runs, with other phases; those that have none do both."""
    pipelines = [
        {
            "id": pipeline["id"],
            "phase": phases.get(pipeline["id"], "both"),
            "stages": [
                {"node": stage["node"], "layers": stage["layers"]} for stage in pipeline["stages"]
            ],
        }
        for pipeline in status["pipelines"]
    ]
    model = status["plan"]["deployments"][0]["model"]
    return json.dumps({"deployments": [{"model": model, "pipelines": pipelines}]})


def longer(body: dict[str, Any]) -> dict[str, Any]:
    """Its prompt fills several blocks behind those that all prompts begin with."""
    (message,) = body["messages"]
    return body | {"messages": [message | {"content": " ".join([message["content"]] * 5)}]}


async def in_phases(mesh: meshes.Mesh, file: Path, **phases: str) -> dict[str, Any]:
    """The status once the pipelines have them."""
    text = plan(await mesh.until_ready(2), phases)
    await asyncio.to_thread(file.write_text, text)
    await mesh.shunt("plan", "apply", str(file))
    status = await mesh.until_ready(2)
    wanted = {
        pipeline["id"]: phases.get(pipeline["id"], "both") for pipeline in status["pipelines"]
    }
    assert {pipeline["id"]: pipeline["phase"] for pipeline in status["pipelines"]} == wanted
    return status


async def test_answers_are_the_same_in_phases_and_when_who_decodes_is_killed(
    ready: meshes.Mesh, client: httpx.AsyncClient, controller: Any, tmp_path: Path
) -> None:
    bodies = [longer(body) | {"ignore_eos": True} for body in meshes.request_bodies(TOKENS)[:3]]
    expected = await meshes.undisturbed(client, ready.url(), bodies)
    before = await ready.until_ready(2)
    formations = {pipeline["id"]: pipeline["formation"] for pipeline in before["pipelines"]}
    first, second = sorted(formations)
    file = tmp_path / "plan.json"
    said = len(await tiny_mesh.events_of(controller))
    try:
        status = await in_phases(ready, file, **{first: "prefill", second: "decode"})
        there = {pipeline["id"]: pipeline["formation"] for pipeline in status["pipelines"]}
        assert there == formations, "a phase is a role: nothing is formed anew"
        records = [meshes.StreamRecord() for _ in bodies]
        salt = {"cache_salt": secrets.token_hex(8)}  # who decodes has not computed their beginnings
        tasks = [
            asyncio.create_task(meshes.stream_chat(client, ready.url(), body | salt, record))
            for body, record in zip(bodies, records, strict=True)
        ]
        await meshes.until(lambda: all(len(r.arrivals_s) > 5 for r in records))
        status = await ready.status()
        lines = {line["id"]: line for line in status["generations"]}
        # On a machine that is busy a node may be silent, or a block late, for a moment.
        went = [lines[r.generation_id] for r in records if r.generation_id in lines]
        assert (second, "kv") in {(line["pipeline"], line["moved_by"]) for line in went}
        stages = next(p["stages"] for p in status["pipelines"] if p["id"] == second)
        pids = {node["id"]: node["pid"] for node in status["nodes"]}
        assert not all(r.done for r in records), "they ended before they were disturbed"
        os.kill(pids[stages[-1]["node"]], signal.SIGKILL)
        await asyncio.gather(*tasks)
        for record, wanted in zip(records, expected, strict=True):
            assert record.complete, record.error
            assert (record.text, record.usage) == (wanted.text, wanted.usage)
        await ready.until_ready(2)
        status = await in_phases(ready, file, **{first: "decode", second: "prefill"})
        again = await meshes.undisturbed(client, ready.url(), bodies)
        texts = [record.text for record in again]
        assert texts == [record.text for record in expected], "the other way round"
    finally:
        await in_phases(ready, file)
    told = (await tiny_mesh.events_of(controller))[said:]
    handed_on = [
        (event.attributes["from"], event.pipeline_id)
        for event in told
        if event.kind == "generation_granted" and "handed_on" in event.attributes
    ]
    assert {(first, second), (second, first)} <= set(handed_on)
    assert len(handed_on) <= 2 * len(bodies), "nothing is handed on twice"
