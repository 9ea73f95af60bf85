from __future__ import annotations

import os
from pathlib import Path

from shuntserve.controller.v1 import controller_pb2

from services.cli.mesh_directory import MeshDirectory, MeshState
from services.cli.recorder import Recorder


def status(*stages: tuple[str, int, int]) -> controller_pb2.GetStatusResponse:
    """Of one pipeline, by node and layers."""
    told = controller_pb2.GetStatusResponse()
    pipeline = told.pipelines.add(pipeline_id="p", state=controller_pb2.PIPELINE_STATE_READY)
    for node, start, end in stages:
        told.nodes.add(node_id=node, address=f"{node}:1")
        stage = pipeline.stages.add(node_id=node)
        stage.layers.start, stage.layers.end = start, end
    return told


def recorder_of(data_dir: Path) -> Recorder:
    directory = MeshDirectory(data_dir)
    directory.write(MeshState("mesh", os.getpid(), "m", "ready", "", ()))
    return Recorder(directory, [], 1.0, 1)


def test_a_pipeline_is_followed_to_its_next_nodes_where_its_stages_are_the_same(
    tmp_path: Path,
) -> None:
    recorder = recorder_of(tmp_path)
    recorder._see_pipelines(status(("a", 0, 2), ("b", 2, 4)))
    recorder._see_pipelines(status(("a", 0, 2), ("c", 2, 4)))
    assert recorder._members == {"p": ["a:1", "c:1"]}
    recorder._see_pipelines(status(("a", 0, 3), ("c", 3, 4)))
    assert recorder._members == {}
    recorder._see_pipelines(status(("d", 0, 2), ("c", 2, 4)))
    assert recorder._members == {"p": ["d:1", "c:1"]}
    assert [(stage.begin, stage.end) for stage in recorder._pipelines["p"]] == [(0, 2), (2, 4)]


def test_a_pipeline_of_whose_node_nothing_was_told_is_seen_the_next_time(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path)
    pages_disagree = status(("a", 0, 2), ("b", 2, 4))
    del pages_disagree.nodes[1]
    recorder._see_pipelines(pages_disagree)
    assert recorder._members == recorder._pipelines == {}
    recorder._see_pipelines(status(("a", 0, 2), ("b", 2, 4)))
    assert recorder._members == {"p": ["a:1", "b:1"]}
    recorder._see_pipelines(pages_disagree)
    assert recorder._members == {"p": ["a:1", "b:1"]}
