from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench import mesh as meshes
from bench.speeds import node_speeds
from services.common import channels
from services.common.roles import Role

TOKENS = 120
STREAMS = 4
MARKET = """
offers:
  - {id: spot-3, instance_type: big, count: 3, price_per_hour: 0.3, spot: true, relative_speed: 3}
  - {id: spot-1, instance_type: small, count: 3, price_per_hour: 0.2, spot: true, relative_speed: 1}
  - {id: demand-3, instance_type: big, count: 2, price_per_hour: 0.9, relative_speed: 3}
  - {id: demand-1, instance_type: small, count: 2, price_per_hour: 0.6, relative_speed: 1}
events:
  - {at_s: 10, offer: spot-3, take: 1, notice_s: 5}
  - {at_s: 16, offer: spot-1, take: 1, notice_s: 0}
"""
"""Its time begins with the first pipeline; what there is then is looked at before any is taken."""


class Crowd:
    """Readers that ask the same questions until they are told to stop."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client, self._url = client, url
        bodies = meshes.request_bodies(TOKENS)[:STREAMS]
        self.bodies = [body | {"ignore_eos": True} for body in bodies]
        self.records: list[list[meshes.StreamRecord]] = [[] for _ in self.bodies]
        self.enough = False

    async def read(self, index: int) -> None:
        while not self.enough:
            record = meshes.StreamRecord()
            self.records[index].append(record)
            await meshes.stream_chat(self._client, self._url, self.bodies[index], record)


def _living(status: dict[str, Any]) -> Counter[str]:
    return Counter(n["offer"] for n in status["nodes"] if n["state"] == "ready")


def _ids(status: dict[str, Any]) -> set[str]:
    return {node["id"] for node in status["nodes"] if node["state"] != "lost"}


@pytest.mark.timeout(240)
async def test_a_market_that_takes_nodes_fails_no_stream_and_sells_others(
    tmp_path: Path, store: Path, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUNT_CONTROLLER_REPLAN", "false")  # of nodes like those that were lost
    path = tmp_path / "market.yaml"
    path.write_text(MARKET)
    options = ("--market", str(path), "--node-speeds", "3:1,3:1", "--nodes-max", "8")
    async with meshes.running(tmp_path / "mesh", options=options, store=store) as mesh:
        first = await mesh.status()
        assert _living(first) == {"spot-3": 2, "spot-1": 2}
        assert all(node["declared"] for node in first["nodes"]), first["nodes"]
        for node in first["nodes"]:
            sources = {name: fact["source"] for name, fact in node["machine"].items()}
            assert sources["instance_type"] == sources["memory_bytes"] == "declared"
            assert sources["cores"] == sources["devices"] == "found"
            assert sources["zone"] == "unknown"
        assert first["cost_per_hour"] == pytest.approx(1.0)
        assert first["on_demand_cost_per_hour"] == pytest.approx(3.0)
        crowd = Crowd(client, mesh.url())
        async with asyncio.TaskGroup() as readers:
            for index in range(STREAMS):
                readers.create_task(crowd.read(index))
            try:
                last, taken = first, set[str]()
                async with asyncio.timeout(90):
                    while len(taken) < 2 or _living(last) != {"spot-3": 2, "spot-1": 2}:
                        last = await mesh.until_ready(1)
                        taken = _ids(first) - _ids(last)
                        await asyncio.sleep(0.2)
            finally:
                crowd.enough = True
        offers = {node["id"]: node["offer"] for node in first["nodes"]}
        assert sorted(offers[name] for name in taken) == ["spot-1", "spot-3"]
        oldest = {offer: min(n for n in offers if offers[n] == offer) for offer in offers.values()}
        assert taken == set(oldest.values())
        assert last["cost_per_hour"] == pytest.approx(1.0)
        expected = await meshes.undisturbed(client, mesh.url(), crowd.bodies)
        services = (await mesh.status())["services"]
        controller = next(one["grpc"] for one in services if one["name"] == "controller")
        async with channels.open_channel(controller, Role.CONTROLLER) as channel:
            speeds = await node_speeds(channel)
    slowness = {
        offer: [speed.slowness for speed in speeds if speed.offer_id == offer]
        for offer in ("spot-3", "spot-1")
    }
    assert all(len(nodes) == 2 for nodes in slowness.values()), speeds
    ratio = sum(slowness["spot-1"]) / sum(slowness["spot-3"])
    assert 2 <= ratio <= 4.5, f"a step takes three times as long: {speeds}"
    for records, wanted in zip(crowd.records, expected, strict=True):
        for record in records:
            assert record.complete, record.error
            assert (record.text, record.usage) == (wanted.text, wanted.usage)
