from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import grpc
import pytest
from rich.console import Console
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.cli.mesh_directory import MeshError
from services.cli.plan_diff import diff_text, plan_diff
from tests.unit.cli.controller_rig import played


def layers(start: int, end: int) -> common_pb2.LayerRange:
    return common_pb2.LayerRange(start=start, end=end)


NEW = pb.PipelineToBe(
    pipeline_id="long",
    stages=[
        pb.StageToBe(node_id="node-1", layers=layers(0, 10), tp_degree=1),
        pb.StageToBe(
            node_id="node-9",
            layers=layers(10, 30),
            tp_degree=1,
            lacks=[layers(10, 30)],
            load_bytes=2_500_000,
        ),
    ],
)
FULL = pb.DiffPlanResponse(
    kept_pipeline_ids=["pipeline-1"],
    new_pipelines=[NEW],
    gone_pipeline_ids=["pipeline-2"],
    launched=[pb.NodeToBe(node_id="node-9", offer_id="spot-a", price_per_hour=0.25)],
    freed_node_ids=["node-3"],
    idle_node_ids=["own-1"],
    cost_per_hour=1.0,
    cost_per_hour_after=0.75,
    throughput_tokens_per_s=100.0,
    throughput_tokens_per_s_after=150.0,
)


class Controller(controller_pb2_grpc.ControllerServiceServicer):
    def __init__(self, answer: pb.DiffPlanResponse | None) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def DiffPlan(self, request: Any, context: Any) -> Any:
        self.asked.append(request.plan_json)
        if self.answer is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "deployments: a list")
        return self.answer


async def found(path: Path, answer: pb.DiffPlanResponse | None) -> dict[str, Any]:
    file, controller = path / "plan.json", Controller(answer)
    file.write_text("{}")
    async with played(path / "mesh", controller) as directory:
        diff = await plan_diff(directory, file)
    assert controller.asked == ["{}"]
    return diff


def shown(diff: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(diff_text(diff))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.fixture(autouse=True)
def _mesh(tmp_path: Path) -> None:
    (tmp_path / "mesh").mkdir()


async def test_what_a_script_gets_and_what_a_person_reads(tmp_path: Path) -> None:
    diff = await found(tmp_path, FULL)
    assert diff == {
        "pipelines": {
            "kept": ["pipeline-1"],
            "new": [
                {
                    "id": "long",
                    "stages": [
                        {
                            "node": "node-1",
                            "layers": [0, 10],
                            "tp_degree": 1,
                            "lacks": [],
                            "load_bytes": None,
                        },
                        {
                            "node": "node-9",
                            "layers": [10, 30],
                            "tp_degree": 1,
                            "lacks": [[10, 30]],
                            "load_bytes": 2_500_000,
                        },
                    ],
                }
            ],
            "gone": ["pipeline-2"],
        },
        "nodes": {
            "launched": [{"id": "node-9", "offer": "spot-a", "price_per_hour": 0.25}],
            "freed": ["node-3"],
            "idle": ["own-1"],
        },
        "cost_per_hour": {"now": 1.0, "after": 0.75},
        "throughput_tokens_per_s": {"now": 100.0, "after": 150.0},
        "estimates_lack": None,
    }
    assert [line.rstrip() for line in shown(diff).splitlines()] == [
        "  pipeline-1 goes on untouched",
        "+ long",
        "    layers 0-9 on node-1, which holds them",
        "    layers 10-29 on node-9 (new), which loads 20 of them, 2.5 MB",
        "- pipeline-2",
        "+ node-9 is launched from spot-a at 0.25 an hour",
        "- node-3 ends",
        "  own-1 has no place any more and stays",
        "  cost an hour: 1 now, 0.75 after",
        "  tokens/s, estimated: 100 now, 150 after",
    ]


async def test_what_is_not_known_is_said_to_be(tmp_path: Path) -> None:
    answer = pb.DiffPlanResponse(
        launched=[pb.NodeToBe(node_id="node-9")], cost_per_hour=1.0, estimates_lack="away"
    )
    text = shown(await found(tmp_path, answer))
    for part in ("nobody offers one", "1 now, not known after", "no estimates: away"):
        assert part in text
    assert "tokens/s" not in text
    assert "nothing changes but" in text


async def test_a_plan_that_cannot_be_is_told_by_file_and_field(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"plan\.json: deployments: a list"):
        await found(tmp_path, None)
