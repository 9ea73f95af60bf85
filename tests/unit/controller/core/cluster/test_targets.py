from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from services.common.machine import MachineFacts
from services.common.nodes import NodeShape
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.targets import NOBODY, targets
from tests.unit.controller.small_cluster import PATIENT, Prompt, drawer, facts

SPOT = Offer("o", "g6.xlarge", NodeShape(1, 1.0), 4, pool="az1/g6", spot=True)


def listed(cluster: Prompt, offer: Offer | None = None) -> list[Any]:
    body = targets(cluster.view.nodes(), lambda node_id: offer)
    found: list[Any] = json.loads(body)
    return found


def cluster() -> Prompt:
    prompt = Prompt(PATIENT, drawer(), 0.0, 0.0)
    prompt.start(0.0)
    return prompt


def test_nodes_that_come_are_listed_and_those_that_go_are_not() -> None:
    prompt = cluster()
    assert targets(prompt.view.nodes(), lambda node_id: None) == NOBODY
    prompt.register(replace(facts("node-1"), address="10.0.0.1:7010", metrics_port=9100), 1.0)
    prompt.register(replace(facts("node-2"), address="[fd00::2]:7010", metrics_port=9101), 1.0)
    prompt.register(replace(facts("node-3"), address="10.0.0.3:7010"), 1.0)
    assert [group["targets"] for group in listed(prompt)] == [["10.0.0.1:9100"], ["[fd00::2]:9101"]]
    prompt.node_gone("node-1", "i-node-1", "taken away", 2.0)
    assert [group["targets"] for group in listed(prompt)] == [["[fd00::2]:9101"]]


def test_labels_tell_what_the_machine_says_and_what_its_offer_does_where_it_says_nothing() -> None:
    prompt = cluster()
    prompt.register(replace(facts("node-1"), metrics_port=1), 1.0)
    [group] = listed(prompt)
    none = dict.fromkeys(("pipeline", "stage", "model", "zone", "market", "pool"), "")
    assert group["labels"] == _meta({**none, "node": "node-1", "instance_type": ""})
    [group] = listed(prompt, SPOT)
    of_offer = {"market": "spot", "pool": "az1/g6", "instance_type": "g6.xlarge"}
    assert group["labels"] == _meta({**none, "node": "node-1", **of_offer})
    machine = MachineFacts("g5.xlarge", "az2", "az2/g5", spot=False)
    prompt.register(replace(facts("node-1"), metrics_port=1, machine=machine), 2.0)
    [group] = listed(prompt, SPOT)
    found = {"zone": "az2", "market": "on_demand", "pool": "az2/g5", "instance_type": "g5.xlarge"}
    assert group["labels"] == _meta({**none, "node": "node-1", **found})


def _meta(labels: dict[str, str]) -> dict[str, str]:
    return {f"__meta_shunt_{name}": value for name, value in labels.items()}
