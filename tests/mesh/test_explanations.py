"""What operators read of a mesh that runs: its events, and why it has its plan."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import mesh as meshes

WAIT_S = 60.0
KEYS = ["n", "at", "kind", "node", "pipeline", "generation", "plan", "attributes"]


async def _until(reader: asyncio.subprocess.Process, kind: str, node: str = "") -> list[Any]:
    """What it prints until such an event, of this node where one is named."""
    assert reader.stdout is not None
    assert reader.stderr is not None
    told: list[Any] = []
    async with asyncio.timeout(WAIT_S):
        while not told or told[-1]["kind"] != kind or node not in ("", told[-1]["node"]):
            line = await reader.stdout.readline()
            assert line, f"it ended: {(await reader.stderr.read()).decode()}"
            told.append(json.loads(line))
    return told


@asynccontextmanager
async def _following(mesh: meshes.Mesh) -> AsyncIterator[asyncio.subprocess.Process]:
    """A reader of its events, ended with the block."""
    reader = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "events", "--data-dir", str(mesh.data_dir)),
        *("--follow", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield reader
    finally:
        if reader.returncode is None:
            reader.kill()
            await reader.communicate()


async def test_events_are_followed_over_a_controller_that_is_killed(ready: meshes.Mesh) -> None:
    async with _following(ready) as reader:
        await _follows(reader, ready)
    await ready.until_ready(2)


async def _follows(reader: asyncio.subprocess.Process, ready: meshes.Mesh) -> None:
    told = await _until(reader, "pipeline_ready")
    status = await ready.status()
    pid = next(s["pid"] for s in status["services"] if s["name"] == "controller")
    os.kill(pid, signal.SIGKILL)
    await ready.until_ready(2)
    node = status["pipelines"][0]["stages"][1]["node"]
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await ready.shunt("interrupt", node, "--kill")
                break
            except RuntimeError:  # the controller is not back yet
                await asyncio.sleep(0.2)
    told += await _until(reader, "node_lost", node)
    told += await _until(reader, "pipeline_ready")
    reader.send_signal(signal.SIGINT)
    _, complaints = await reader.communicate()
    assert reader.returncode == 0, complaints
    assert all(list(event) == KEYS for event in told)
    numbers = [event["n"] for event in told]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert b"no longer kept" not in complaints
    assert b"lost with a controller" not in complaints
    lost = [event for event in told if event["kind"] == "node_lost"]
    assert (lost[-1]["node"], lost[-1]["plan"]) == (node, status["plan"]["number"])


async def test_a_plan_says_why_and_what_another_would_change(
    ready: meshes.Mesh, tmp_path: Path
) -> None:
    status = await ready.status()
    why = json.loads(await ready.shunt("plan", "why", "--json"))
    assert why["number"] == status["plan"]["number"]
    assert why["reasons"]
    assert [set(one) for one in why["alternatives"]] == [{"plan", "lacks"}] * len(
        why["alternatives"]
    )
    assert why["what_ifs_lack"] is None
    changes = [one["change"] for one in why["what_ifs"]]
    assert {"as things are", "objective throughput-per-cost"} <= set(changes)
    stages = [
        {"node": stage["node"], "layers": stage["layers"]}
        for stage in status["pipelines"][0]["stages"]
    ]
    file = tmp_path / "plan.json"
    pipelines = [{"id": status["pipelines"][0]["id"], "stages": stages}]
    plan = {"deployments": [{"model": status["model"]["id"], "pipelines": pipelines}]}
    file.write_text(json.dumps(plan))
    diff = json.loads(await ready.shunt("plan", "diff", str(file), "--json"))
    kept, other = (pipeline["id"] for pipeline in status["pipelines"])
    assert diff["pipelines"] == {"kept": [kept], "new": [], "gone": [other]}
    assert len(diff["nodes"]["freed"]) == 2
    rates = diff["throughput_tokens_per_s"]
    assert 0 < rates["after"] < rates["now"]
    assert (await ready.status())["plan"] == status["plan"]
    file.write_text(json.dumps({**plan, "deployments": []}))
    for command in ("diff", "apply"):
        with pytest.raises(RuntimeError, match=r"plan\.json: .*a deployment at least"):
            await ready.shunt("plan", command, str(file))
