"""Nodes that are offered to a mesh while it serves become part of a better plan."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import httpx

from bench import mesh as meshes

TOKENS = 250
MARKET = """
offers:
  - {id: slow, instance_type: small, count: 4, price_per_hour: 0.5, pool: a, spot: true,
     relative_speed: 1}
  - {id: fast, instance_type: big, count: 0, price_per_hour: 0.6, pool: b, spot: true,
     relative_speed: 4}
events:
  - {at_s: 3, offer: fast, count: 2}
"""
REPLAN = {
    "SHUNT_CONTROLLER_REPLAN": "true",
    "SHUNT_CONTROLLER_NODES_MAX": "6",
    "SHUNT_CONTROLLER_REPLAN_STEADY_S": "2",
    "SHUNT_CONTROLLER_REPLAN_COOL_DOWN_S": "3",
}
BETTER_S = 60.0


async def test_nodes_that_are_offered_serve_in_a_better_plan(
    tmp_path: Path, client: httpx.AsyncClient
) -> None:
    market = tmp_path / "market.yaml"
    market.write_text(MARKET)
    options = ("--market", str(market), "--node-speeds", "1:1,1:1")
    async with meshes.running(tmp_path / "mesh", env=os.environ | REPLAN, options=options) as mesh:
        bodies = [body | {"ignore_eos": True} for body in meshes.request_bodies(TOKENS)]
        records = [meshes.StreamRecord() for _ in bodies]
        tasks = [
            asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
            for body, record in zip(bodies, records, strict=True)
        ]
        async with asyncio.timeout(BETTER_S):
            while True:
                if await _fast_nodes_serve(mesh):
                    break
                await asyncio.sleep(0.5)
        status = await mesh.status()
        assert status["plan"]["number"] > 1
        assert len(status["nodes"]) <= 6
        await asyncio.gather(*tasks)
        expected = await meshes.undisturbed(client, mesh.url(), bodies)
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)
    print("longest gap", max(r.longest_gap_s() for r in records))


async def _fast_nodes_serve(mesh: meshes.Mesh) -> bool:
    """Both of them are stages of pipelines that are ready."""
    status = await mesh.status()
    fast = {node["id"] for node in status["nodes"] if node["offer"] == "fast"}
    serving = {
        stage["node"]
        for pipeline in status["pipelines"]
        if pipeline["state"] == "ready"
        for stage in pipeline["stages"]
    }
    return len(fast & serving) == 2
