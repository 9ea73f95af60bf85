from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from rich.console import Console
from shuntserve.common.v1.common_pb2 import LayerRange
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.cli.mesh_directory import MeshError
from services.cli.why import explained, why_text
from tests.unit.cli.controller_rig import played

FULL = pb.ExplainPlanResponse(
    number=4,
    reasons=["1 pipelines stay, 1 are new, 0 end"],
    alternatives=[pb.RejectedPlan(plan="a plan of all nodes", lacks="2.0% worse")],
    causes=["offers_changed"],
    gain=0.25,
    horizon_s=1800.0,
    adopted_unix_s=1.0,
    what_ifs=[pb.WhatIf(change="objective [b]throughput[/b]", answer="the same plan")],
    what_ifs_lack="there was no time for more",
    late="TTFT 2.0 s against 1.0 s",
    spares=[
        pb.SpareStatus(
            node_id="n9",
            model_id="m",
            held=[LayerRange(start=3, end=7), LayerRange(start=0, end=3)],
            lacks=[LayerRange(start=7, end=9)],
            price_per_hour=0.25,
        ),
        pb.SpareStatus(node_id="n10"),
    ],
)


class Controller(controller_pb2_grpc.ControllerServiceServicer):
    def __init__(self, answer: pb.ExplainPlanResponse | None) -> None:
        self.answer = answer
        self.asked: list[bool] = []

    async def ExplainPlan(self, request: Any, context: Any) -> Any:
        self.asked.append(request.what_ifs)
        if self.answer is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "there is no plan yet")
        return self.answer


def shown(why: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(why_text(why))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


async def test_what_scripts_rely_on_and_what_people_read(tmp_path: Path) -> None:
    controller = Controller(FULL)
    async with played(tmp_path, controller) as directory:
        why = await explained(directory, True)
    assert {k: why[k] for k in ("number", "reasons", "alternatives")} == {
        "number": 4,
        "reasons": ["1 pipelines stay, 1 are new, 0 end"],
        "alternatives": [{"plan": "a plan of all nodes", "lacks": "2.0% worse"}],
    }
    assert why["causes"] == ["offers_changed"]
    assert (why["gain"], why["horizon_s"]) == (0.25, 1800.0)
    assert why["what_ifs"] == [{"change": "objective [b]throughput[/b]", "answer": "the same plan"}]
    assert controller.asked == [True]
    assert why["late"] == "TTFT 2.0 s against 1.0 s"
    text = shown(why)
    assert "late, for no plan keeps the targets: TTFT 2.0 s against 1.0 s" in text
    for part in ("plan 4", "offers_changed", "beats staying by 25.0% over 1800 s", "2.0% worse"):
        assert part in text
    assert "objective [b]throughput[/b]" in text, "what others say is no markup"
    assert "there was no time for more" in text
    spare = why["spares"][0]
    assert (spare["node"], spare["held"], spare["lacks"]) == ("n9", [[3, 7], [0, 3]], [[7, 9]])
    assert "n9 holds 3-6, 0-2 of m, has no room for 7-8, costs 0.25 an hour" in text
    assert "n10 holds nothing yet" in text


async def test_a_plan_of_a_time_that_kept_no_reasons_says_so(tmp_path: Path) -> None:
    async with played(tmp_path, Controller(pb.ExplainPlanResponse(number=1))) as directory:
        why = await explained(directory, False)
    assert (why["gain"], why["horizon_s"], why["adopted_unix_s"]) == (None, None, None)
    assert (why["what_ifs"], why["what_ifs_lack"], why["late"]) == ([], None, None)
    assert "nobody said" in shown(why)
    assert "late" not in shown(why)


async def test_an_age_is_never_below_nothing(tmp_path: Path) -> None:
    answer = pb.ExplainPlanResponse(number=1, adopted_unix_s=time.time() + 500)
    async with played(tmp_path, Controller(answer)) as directory:
        assert "adopted 0:00:00 ago" in shown(await explained(directory, False))


async def test_without_a_plan_the_controllers_word_is_told(tmp_path: Path) -> None:
    async with played(tmp_path, Controller(None)) as directory:
        with pytest.raises(MeshError, match="there is no plan yet"):
            await explained(directory, True)
