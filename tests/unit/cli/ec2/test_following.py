from __future__ import annotations

from dataclasses import replace

import pytest
from shuntserve.controller.v1 import controller_pb2

from services.cli.ec2.following import Changes
from services.cli.ec2.gateway import Told
from services.cli.ec2.machines import Machine

NODE = Machine("i-1", "node", "node-1", "o", "g6e.xlarge", "us-east-1a", "pending", True)
FAULT = {
    "kind": "load",
    "cause": "no room",
    "node": "node-1",
    "pipeline": "pipeline-1",
    "failures": 1,
    "permanent": False,
}


@pytest.fixture
def said() -> list[str]:
    return []


def told(state: str, *numbers: int) -> Told:
    status = {"pipelines": [{"id": "pipeline-1", "state": state}], "faults": [FAULT]}
    events = [controller_pb2.WatchEventsResponse(number=n, kind="stage_loaded") for n in numbers]
    return Told(status, tuple(events))


def test_a_machine_is_told_of_when_it_comes_changes_and_goes(said: list[str]) -> None:
    changes = Changes(said.append)
    changes.machines([NODE])
    changes.machines([NODE])
    changes.machines([replace(NODE, state="running")])
    changes.machines([])
    assert [line.split()[0] for line in said] == ["pending", "running", "gone"]
    assert "node node-1: i-1, g6e.xlarge in us-east-1a, spot" in said[0]


def test_what_the_controller_said_is_not_told_twice(said: list[str]) -> None:
    changes = Changes(said.append)
    changes.controller(told("starting", 3, 4))
    assert changes.next_event == 5
    changes.controller(told("starting"))
    changes.controller(told("ready", 5))
    assert [line for line in said if "pipeline pipeline-1" in line] == [
        "  starting   pipeline pipeline-1",
        "  ready      pipeline pipeline-1",
    ]
    assert sum("stage_loaded" in line for line in said) == 3
    assert sum("no room" in line for line in said) == 1


def test_why_the_gateway_waits_is_told_when_it_is_another_reason(said: list[str]) -> None:
    changes = Changes(said.append)
    for reason in ("it does not answer", "it does not answer", "no pipeline is ready"):
        changes.gateway(reason)
    assert said == [
        "the gateway is not ready: it does not answer",
        "the gateway is not ready: no pipeline is ready",
    ]
