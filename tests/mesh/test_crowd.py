from __future__ import annotations

from typing import Any

from bench import crowd
from bench import mesh as meshes
from tests.mesh import tiny_mesh

REQUESTS = 400
"""Three times what two pipelines run at once."""
AT_EACH = 150
"""The same from two routers, of which neither knows what the other one sends."""


def _nothing_runs(status: dict[str, Any]) -> bool:
    return all(one["standing"] == "parked" for one in status["generations"])


async def test_a_crowd_at_a_busy_mesh_moves_nothing_and_is_answered_or_told_to_return(
    ready: meshes.Mesh,
) -> None:
    report = await crowd.run(ready, requests=REQUESTS, max_tokens=4)
    assert report["failures"] == {}
    assert report["answered"] + report["refused"] == REQUESTS
    assert report["texts_that_differ"] == 0
    assert report["nodes_lost"] == report["pipelines_lost"] == 0
    assert report["epochs_granted"] == report["checkpoints_refused"] == 0
    await ready.until_ready(2)


async def test_two_routers_share_a_crowd_and_none_of_it_is_lost(ready: meshes.Mesh) -> None:
    report = await crowd.run(ready, requests=AT_EACH, max_tokens=4, routers=2)
    print(report)
    assert report["failures"] == {}
    assert report["requests"] == 2 * AT_EACH
    assert report["answered"] + report["refused"] == 2 * AT_EACH
    assert min(report["answered_by_router"]) > 0
    assert report["texts_that_differ"] == 0
    assert report["nodes_lost"] == report["pipelines_lost"] == 0
    assert report["epochs_granted"] == report["checkpoints_refused"] == 0
    await tiny_mesh.until_status(ready, _nothing_runs)
    await ready.until_ready(2)
