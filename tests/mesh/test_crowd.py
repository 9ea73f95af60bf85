from __future__ import annotations

from bench import crowd
from bench import mesh as meshes

REQUESTS = 400
"""Three times what two pipelines run at once."""


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
