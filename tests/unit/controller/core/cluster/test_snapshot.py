"""Notes of older controllers, which were one for all, are read and become those of today."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.controller.core.cluster.actions import LoadStage, NodeState, PipelineState
from services.controller.core.cluster.snapshot import in_second_version
from tests.unit.controller.small_cluster import (
    BACK,
    PAIR,
    SETTINGS,
    Prompt,
    drawer,
    facts,
    one_of,
    planned,
)

SHAPE = {"device_type": "cpu", "memory_bytes": 1 << 30, "relative_speed": 1.0}
FRONT_LAYERS, BACK_LAYERS = {"start": 0, "end": 18}, {"start": 18, "end": 30}


def _node(name: str, layers: list[int] | None, *, blocks: int = 0, **more: Any) -> dict[str, Any]:
    told = {"address": f"i-{name}:1", "incarnation": f"i-{name}", "node_id": name, "pid": 7}
    return {
        "node_id": name,
        "shape": SHAPE,
        "facts": None if layers is None else {**told, "shape": SHAPE},
        "layers": layers,
        "kv_blocks": blocks,
        "numerics_class": "" if layers is None else "a",
        "deadline_unix_s": None,
        "departs": False,
        "leaving": False,
        "lost": False,
        **more,
    }


def _stage(node: str, layers: dict[str, int], spare: str = "") -> dict[str, Any]:
    return {
        "layers": layers,
        "tp_degree": 1,
        "shape": SHAPE,
        "node_id": node,
        "spare_id": spare,
    }


def before_plans() -> str:
    """A pair that serves, its second node noticed until 1021 s, a replacement on its way."""
    members = [
        {"address": f"i-{name}:1", "incarnation": f"i-{name}", "layers": layers, "node_id": name}
        for name, layers in (("node-1", FRONT_LAYERS), ("node-2", BACK_LAYERS))
    ]
    return json.dumps(
        {
            "basis": SETTINGS.basis,
            "counter": 3,
            "nodes": [
                _node("node-1", [0, 18], blocks=64),
                _node("node-2", [18, 30], blocks=32, deadline_unix_s=1021.0),
                _node("node-3", None),
            ],
            "pipelines": [
                {
                    "pipeline_id": "pipeline-1",
                    "throughput_tokens_per_s": 50.0,
                    "stages": [
                        _stage("node-1", FRONT_LAYERS),
                        _stage("node-2", BACK_LAYERS, "node-3"),
                    ],
                    "formation": {
                        "formation_id": "f1",
                        "kv_blocks": 32,
                        "members": members,
                        "state": "ready",
                    },
                }
            ],
        }
    )


def second_version() -> str:
    """The same as `before_plans`, by a controller that had plans, and one note for all."""
    document = in_second_version(json.loads(before_plans()))
    return json.dumps({**document, "version": 2})


OLDER = {"before plans": before_plans, "one note": second_version}


@pytest.mark.parametrize("form", OLDER)
def test_an_older_form_goes_on_where_it_was(form: str) -> None:
    cluster = Prompt.recover(SETTINGS, drawer(), {"cluster": OLDER[form]()}, 5.0, 1005.0)
    cluster.start(5.0)
    assert cluster.plan is not None
    assert cluster.plan.number == 1
    assert cluster.plan.deployments == planned(PAIR).deployments
    assert cluster.view.deadlines_s() == {"node-2": 21.0}
    assert cluster.view.pipeline_of("f1") == "pipeline-1"
    (pipeline,) = cluster.view.pipelines()
    assert pipeline.state is PipelineState.DRAINING
    states = {node.node_id: node.state for node in cluster.view.nodes()}
    assert states["node-3"] is NodeState.STARTING
    load = one_of(cluster.register(facts("node-3"), 6.0), LoadStage)
    assert load.layers == BACK


@pytest.mark.parametrize("form", OLDER)
def test_todays_notes_are_written_from_an_older_form_at_once(form: str) -> None:
    cluster = Prompt.recover(SETTINGS, drawer(), {"cluster": OLDER[form]()}, 5.0, 1005.0)
    cluster.start(5.0)
    assert sorted(cluster.saved) == [
        "basis",
        "cluster",
        "node/node-1",
        "node/node-2",
        "node/node-3",
        "pipeline/pipeline-1",
        "plan",
    ]
    again = Prompt.recover(SETTINGS, drawer(), cluster.saved, 7.0, 1007.0)
    assert again.plan == cluster.plan
    assert again.view.pipelines() == cluster.view.pipelines()
    assert again.view.nodes() == cluster.view.nodes()
    assert again.view.deadlines_s() == {"node-2": 21.0}


def test_notes_beside_an_older_form_are_from_before_it_and_go() -> None:
    """An older controller ran in between."""
    saved = {"cluster": second_version(), "node/node-9": "{}", "handle/node-1": "a"}
    cluster = Prompt.recover(SETTINGS, drawer(), saved, 5.0, 1005.0)
    cluster.start(5.0)
    assert "node/node-9" not in cluster.saved
    assert cluster.saved["handle/node-1"] == "a"
