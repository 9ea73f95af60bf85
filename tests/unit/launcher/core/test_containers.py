from __future__ import annotations

from typing import Any

import pytest

from services.launcher.core.containers import (
    MESH_LABEL,
    NODE_LABEL,
    OFFER_LABEL,
    Container,
    container_of,
    runs,
    why_ended,
)


@pytest.mark.parametrize(
    "labels",
    [{}, {MESH_LABEL: "m"}, {NODE_LABEL: "n"}, {MESH_LABEL: "another", NODE_LABEL: "n"}],
)
def test_without_the_label_of_the_mesh_and_a_node_it_is_nobodys(labels: dict[str, str]) -> None:
    assert container_of("c", labels, "m") is None


def test_labels_say_which_node_it_is() -> None:
    labels = {MESH_LABEL: "m", NODE_LABEL: "n", OFFER_LABEL: "a"}
    assert container_of("c", labels, "m") == Container("c", "n", "a")


@pytest.mark.parametrize(
    ("state", "expected"),
    [("running", True), ("paused", True), ("created", False), ("exited", False), ("dead", False)],
)
def test_a_paused_container_is_still_one(state: str, expected: bool) -> None:
    assert runs(state) == expected


@pytest.mark.parametrize(
    ("state", "said", "expected"),
    [
        ({"ExitCode": 0}, "bye\n", "exit status 0"),
        ({"ExitCode": 2}, "bad setting X: y\n\n", "exit status 2: bad setting X: y"),
        ({"ExitCode": 1}, 'trace\n{"level": "info"}\n', "exit status 1"),
        ({"ExitCode": 137}, "engine node-1: grpc on 0.0.0.0:7010\n", "exit status 137"),
        ({"ExitCode": 137, "OOMKilled": True}, "", "exit status 137: it was out of memory"),
        ({"ExitCode": 127, "Error": "no such file"}, "", "exit status 127: no such file"),
        ({}, "", "exit status 0"),
    ],
)
def test_an_end_is_told_with_its_cause(state: dict[str, Any], said: str, expected: str) -> None:
    assert why_ended(state, said) == expected
