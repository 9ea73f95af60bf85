from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from services.launcher.core.confinement import DANGEROUS, Confinement
from services.launcher.core.containers import container_of
from services.launcher.core.pattern import MAX_VARIABLES, Order, body_of, device_for
from tests.played_docker import IMAGE, NETWORK, PROJECT, pattern

ORDER = Order("node-1", "a", {"SHUNT_ENGINE_MEMORY_BYTES": "7", "SHUNT_ENGINE_NODE_ID": "node-1"})


def devices(*names: str) -> list[dict[str, Any]]:
    return [
        {"Driver": "nvidia", "Count": 0, "DeviceIDs": list(names), "Capabilities": [["gpu"]]},
    ]


def test_a_nodes_container_is_as_the_pattern_and_runs_what_the_image_runs() -> None:
    made = body_of(pattern(NanoCpus=5), ORDER, mesh=PROJECT)
    assert "Entrypoint" not in made
    assert (made["Image"], made["User"], made["Hostname"]) == (IMAGE, "shunt", "node-1")
    assert made["HostConfig"]["NanoCpus"] == 5
    assert made["HostConfig"]["Tmpfs"] == {"/tmp": ""}
    assert made["Healthcheck"]["Test"] == ["CMD", "true"]
    [mounted] = made["HostConfig"]["Mounts"]
    assert mounted == {
        "Type": "volume",
        "Source": f"{PROJECT}_store",
        "Target": "/var/lib/shunt/store",
        "ReadOnly": True,
    }
    aliases = made["NetworkingConfig"]["EndpointsConfig"][NETWORK]["Aliases"]
    assert aliases == ["node-1.engine.mesh", "node-1", "engine"]


def test_what_the_node_is_told_comes_before_what_all_are() -> None:
    told = body_of(pattern(), ORDER, mesh=PROJECT)["Env"]
    assert "SHUNT_ENGINE_MEMORY_BYTES=7" in told
    assert "SHUNT_ENGINE_MEMORY_BYTES=1" not in told
    assert "PATH=/opt/shunt/bin" in told
    assert "SHUNT_ENGINE_ADVERTISE_HOST=node-1.engine.mesh" in told
    wished = replace(ORDER, variables={"SHUNT_ENGINE_ADVERTISE_HOST": "10.0.0.7"})
    told = body_of(pattern(), wished, mesh=PROJECT)["Env"]
    assert [line for line in told if "ADVERTISE" in line] == [
        "SHUNT_ENGINE_ADVERTISE_HOST=10.0.0.7"
    ]


def test_its_labels_say_whose_it_is_and_that_up_is_to_leave_it_alone() -> None:
    labels = body_of(pattern(), ORDER, mesh=PROJECT)["Labels"]
    assert labels["com.docker.compose.oneoff"] == "True"
    assert labels["com.docker.compose.project"] == PROJECT
    found = container_of("id", labels, PROJECT)
    assert found is not None
    assert (found.node_id, found.offer_id, found.device) == ("node-1", "a", "")
    assert container_of("id", labels, "another") is None


@pytest.mark.parametrize("key", sorted(DANGEROUS.keys() - {"Binds"}))
def test_what_is_dangerous_is_not_left_out_in_silence(key: str) -> None:
    made = body_of(pattern(**{key: ["x"]}), ORDER, mesh=PROJECT)
    with pytest.raises(FailedPrecondition) as refused:
        Confinement(PROJECT, IMAGE, NETWORK).check(made)
    assert refused.value.field == DANGEROUS[key]


def test_a_part_of_the_host_is_seen_among_the_mounts() -> None:
    described = pattern()
    described["Mounts"].append({"Type": "bind", "Source": "/", "Destination": "/host", "RW": False})
    made = body_of(described, ORDER, mesh=PROJECT)
    with pytest.raises(FailedPrecondition, match="volumes: / of the host"):
        Confinement(PROJECT, IMAGE, NETWORK).check(made)


def test_each_node_has_a_gpu_of_its_own() -> None:
    described = pattern(DeviceRequests=devices("0", "1"))
    assert device_for(described, set()) == "0"
    assert device_for(described, {"0"}) == "1"
    with pytest.raises(ResourceExhausted):
        device_for(described, {"0", "1"})
    made = body_of(described, ORDER, mesh=PROJECT, device="1")
    assert made["HostConfig"]["DeviceRequests"] == devices("1")
    assert made["Labels"]["shuntserve.device"] == "1"
    Confinement(PROJECT, IMAGE, NETWORK).check(made)


@pytest.mark.parametrize("requests", [devices(), devices("0") * 2])
def test_gpus_that_cannot_be_dealt_out_are_refused(requests: list[dict[str, Any]]) -> None:
    with pytest.raises(FailedPrecondition, match="device_ids"):
        device_for(pattern(DeviceRequests=requests), set())


def test_where_no_gpu_is_asked_for_there_is_none() -> None:
    assert device_for(pattern(), {"0"}) == ""


@pytest.mark.parametrize(
    ("order", "field"),
    [
        (Order("", "a", {}), "node_id"),
        (Order("Node_1", "a", {}), "node_id"),
        (Order("-node", "a", {}), "node_id"),
        (Order("n" * 64, "a", {}), "node_id"),
        (Order("../etc", "a", {}), "node_id"),
        (Order("n", "a" * 129, {}), "offer_id"),
        (Order("n", "a\nb", {}), "offer_id"),
        (Order("n", "a", {"LD_PRELOAD": "x"}), "variables"),
        (Order("n", "a", {"PATH": "x"}), "variables"),
        (Order("n", "a", {"SHUNT_ENGINE_": "x"}), "variables"),
        (Order("n", "a", {"SHUNT_ENGINE_A": "x\nPATH=y"}), "variables"),
        (Order("n", "a", {"SHUNT_ENGINE_A": "x" * 8193}), "variables"),
        (Order("n", "a", {f"SHUNT_ENGINE_{i}": "" for i in range(MAX_VARIABLES + 1)}), "variables"),
    ],
)
def test_an_order_that_cannot_be_is_refused_by_name(order: Order, field: str) -> None:
    ORDER.check()
    with pytest.raises(InvalidArgument) as refused:
        order.check()
    assert refused.value.field == field
