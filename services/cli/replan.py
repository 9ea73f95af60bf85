"""`shunt plan now`: has the mesh ask placement for another plan at once."""

from __future__ import annotations

from typing import Any

import grpc
from rich.text import Text
from shuntserve.controller.v1 import controller_pb2

from services.cli.controller_calls import controller_of
from services.cli.mesh_directory import MeshDirectory, MeshError

ANSWER_S = 60.0
"""A change that is being carried out is not waited for; a question that is out is."""


async def replanned(
    directory: MeshDirectory, budget_per_hour: float | None = None
) -> dict[str, Any]:
    """The JSON of `shunt plan now --json`; raises MeshError where there is no answer."""
    request = controller_pb2.ReplanRequest(budget_per_hour=budget_per_hour)
    async with controller_of(directory) as stub:
        try:
            answer = await stub.Replan(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            raise MeshError(f"the plan stands: {error.details()}") from None
    return {
        "change": answer.change,
        "number": answer.number,
        "gain": answer.gain,
        "reasons": list(answer.reasons),
    }


def replanned_text(found: dict[str, Any]) -> Text:
    """What came of it, for people."""
    reasons = "; ".join(found["reasons"])
    if not found["change"]:
        return Text(f"plan {found['number']} stays: {reasons}")
    return Text(
        f"plan {found['number']} is carried out, {found['gain']:.1%} better than staying: {reasons}"
        " (see shunt plan why)"
    )
