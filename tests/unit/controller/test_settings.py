from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.nodes import NodeShape
from services.common.settings import read
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.model_facts import ModelFacts
from services.controller.settings import ControllerSettings

FACTS = ModelFacts("tiny", "ab", 6, 100, 512, "{}")


def test_speeds_become_nodes() -> None:
    settings = ControllerSettings(node_speeds="3:2,1.5", node_memory_bytes=7)
    assert settings.initial_nodes == (NodeShape(7, 3.0), NodeShape(7, 2.0), NodeShape(7, 1.5))
    cluster = settings.cluster(FACTS)
    assert (cluster.expected_nodes, cluster.max_positions) == (3, 512)
    assert cluster.can_launch


def test_external_nodes_are_waited_for() -> None:
    cluster = ControllerSettings(provider="external", expected_nodes=6).cluster(FACTS)
    assert (cluster.initial, cluster.expected_nodes, cluster.can_launch) == ((), 6, False)


@pytest.mark.parametrize("speeds", ["", "3:", "3;2", "fast", "-1", "3:0", "1000001"])
def test_speeds_that_are_no_numbers_are_refused(speeds: str) -> None:
    with pytest.raises(ValidationError, match="node_speeds"):
        ControllerSettings(node_speeds=speeds)


@pytest.mark.parametrize("name", ["heartbeat_interval_s", "tick_s"])
def test_a_beat_and_a_look_at_it_come_before_a_node_is_doubted(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        ControllerSettings(**{name: ClusterSettings(FACTS.ref).doubt_s})


def test_a_group_of_commits_never_waits_longer_than_20_ms() -> None:
    with pytest.raises(ValidationError, match="commit_interval_s"):
        ControllerSettings(commit_interval_s=0.021)


def test_the_environment_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHUNT_CONTROLLER_DATA_DIR", "/somewhere")
    monkeypatch.setenv("SHUNT_CONTROLLER_PIPELINES", "3")
    settings = read(ControllerSettings)
    assert (settings.data_dir, settings.pipelines) == (Path("/somewhere"), 3)
    monkeypatch.setenv("SHUNT_CONTROLLER_PIPELINES", "none")
    with pytest.raises(SystemExit) as stopped:
        read(ControllerSettings)
    assert stopped.value.code == 2
    assert "SHUNT_CONTROLLER_PIPELINES" in capsys.readouterr().err
