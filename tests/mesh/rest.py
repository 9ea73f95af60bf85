"""A mesh as each test is to find it: whole, and with nothing under way.

Where a test is cut off in the middle, what it began goes on: a node has its notice yet, a router
comes back, a batch is worked on, streams that nobody reads run for a while. Whoever comes next, the
same test at its second try first of all, would take that for its own.
"""

from __future__ import annotations

from typing import Any

from bench import mesh as meshes
from tests.mesh import tiny_mesh

PIPELINES = 2
WITHIN_S = 180.0
"""A notice is over by then, and a batch worked through."""


async def until_at_rest(mesh: meshes.Mesh) -> dict[str, Any]:
    """The first status at rest; TimeoutError when none comes."""
    return await tiny_mesh.until_status(mesh, _at_rest, WITHIN_S)


def _at_rest(status: dict[str, Any]) -> bool:
    services = {service["state"] for service in status["services"]}
    pipelines = [pipeline["state"] for pipeline in status["pipelines"]]
    leaving = any(node["state"] == "draining" for node in status["nodes"])
    runs = any(generation["standing"] != "parked" for generation in status["generations"])
    whole = services == {"ready"} and pipelines == ["ready"] * PIPELINES
    return whole and not leaving and not runs
