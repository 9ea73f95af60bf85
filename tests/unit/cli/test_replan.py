from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.cli.mesh_directory import MeshError
from services.cli.replan import replanned, replanned_text
from tests.unit.cli.controller_rig import played


class Controller(controller_pb2_grpc.ControllerServiceServicer):
    def __init__(self, answer: pb.ReplanResponse | None) -> None:
        self.answer = answer
        self.asked: list[pb.ReplanRequest] = []

    async def Replan(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        if self.answer is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "placement is away")
        return self.answer


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            pb.ReplanResponse(change=True, number=4, gain=0.25, reasons=["1 is new", "0.1 GB"]),
            "plan 4 is carried out, 25.0% better than staying: 1 is new; 0.1 GB"
            " (see shunt plan why)",
        ),
        (
            pb.ReplanResponse(number=3, reasons=["no change gains enough"]),
            "plan 3 stays: no change gains enough",
        ),
    ],
)
async def test_what_came_of_it_is_told(
    tmp_path: Path, answer: pb.ReplanResponse, text: str
) -> None:
    async with played(tmp_path, Controller(answer)) as directory:
        found = await replanned(directory)
    assert found == {
        "change": answer.change,
        "number": answer.number,
        "gain": answer.gain,
        "reasons": list(answer.reasons),
    }
    assert replanned_text(found).plain == text


async def test_without_an_answer_the_plan_stands_and_the_reason_is_told(tmp_path: Path) -> None:
    async with played(tmp_path, Controller(None)) as directory:
        with pytest.raises(MeshError, match="the plan stands: placement is away"):
            await replanned(directory)


async def test_a_budget_is_told_where_one_is_given_and_zero_is_one(tmp_path: Path) -> None:
    controller = Controller(pb.ReplanResponse(number=3))
    async with played(tmp_path, controller) as directory:
        for budget in (None, 0.0, 0.5):
            await replanned(directory, budget)
    told = [(one.HasField("budget_per_hour"), one.budget_per_hour) for one in controller.asked]
    assert told == [(False, 0.0), (True, 0.0), (True, 0.5)]
