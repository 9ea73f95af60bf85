"""Where Prometheus finds engines, while they come and go."""

from __future__ import annotations

import json
from typing import Any

from services.controller import metrics
from tests.contract.controller.conftest import World
from tests.waiting import until


def listed() -> dict[str, dict[str, str]]:
    """Labels of each engine, by node."""
    groups: list[Any] = json.loads(metrics.TARGETS.read())
    assert all(group["targets"] == ["127.0.0.1:9100"] for group in groups)
    return {group["labels"]["__meta_shunt_node"]: group["labels"] for group in groups}


async def test_an_engine_that_is_lost_leaves_the_list_and_its_replacement_stands_in_it(
    world: World,
) -> None:
    await world.start()
    routes = await world.routes(2)
    await until(lambda: {one["__meta_shunt_pipeline"] for one in listed().values()} - {""})
    before = listed()
    assert len(before) == 4
    assert {one["__meta_shunt_model"] for one in before.values()} == {"tiny"}
    head = world.head(routes[0]).node_id
    place = {name: before[head][f"__meta_shunt_{name}"] for name in ("pipeline", "stage")}
    assert place == {"pipeline": routes[0].pipeline_id, "stage": "0"}
    await world.provider.kill(head)

    def replaced() -> bool:
        now = listed()
        there = [{n: one[f"__meta_shunt_{n}"] for n in place} for one in now.values()]
        return head not in now and place in there and len(now) == 4

    await until(replaced)
