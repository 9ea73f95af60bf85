"""Each way out of a container that a request can ask for, put in on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from services.common.errors import FailedPrecondition
from services.launcher.core.confinement import DANGEROUS, Confinement
from services.launcher.core.containers import MESH_LABEL, NODE_LABEL
from services.launcher.core.pattern import Order, body_of
from tests.played_docker import IMAGE, NETWORK, PROJECT, pattern

CONFINEMENT = Confinement(PROJECT, IMAGE, NETWORK)
Change = Callable[[dict[str, Any]], None]


def body() -> dict[str, Any]:
    return body_of(pattern(), Order("node-1", "a", {}), mesh=PROJECT)


def host(**changes: Any) -> Change:
    return lambda made: made["HostConfig"].update(changes)


def top(**changes: Any) -> Change:
    return lambda made: made.update(changes)


def mount(**changes: Any) -> Change:
    return lambda made: made["HostConfig"]["Mounts"].append(
        {"Type": "volume", "Source": f"{PROJECT}_store", "Target": "/x", "ReadOnly": True} | changes
    )


def labelled(**changes: Any) -> Change:
    return lambda made: made["Labels"].update(changes)


def test_a_container_as_the_compose_file_has_it_may_be() -> None:
    CONFINEMENT.check(body())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (labelled(**{MESH_LABEL: "another"}), "labels"),
        (labelled(**{NODE_LABEL: ""}), "labels"),
        (top(Labels={}), "labels"),
        (top(Image="another"), "image"),
        (top(Image=f"registry.example/{IMAGE}"), "image"),
        (top(User="root"), "user"),
        (top(User=""), "user"),
        (top(User="0:10001"), "user"),
        (top(Entrypoint=["sh"]), "Entrypoint"),
        (top(Cmd=["-c", "id"]), "Cmd"),
        (top(NetworkingConfig={"EndpointsConfig": {"another": {}}}), "networks"),
        (top(NetworkingConfig={"EndpointsConfig": {NETWORK: {}, "host": {}}}), "networks"),
        (host(NetworkMode="host"), "network_mode"),
        (host(NetworkMode="container:another"), "network_mode"),
        (host(IpcMode="host"), "ipc"),
        (host(IpcMode="container:another"), "ipc"),
        (host(Runtime="mine"), "runtime"),
        (host(CapDrop=["NET_RAW"]), "cap_drop"),
        (host(ReadonlyRootfs=False), "read_only"),
        (host(Memory=0), "mem_limit"),
        (host(PidsLimit=None), "pids_limit"),
        (host(PidsLimit=-1), "pids_limit"),
        (host(RestartPolicy={"Name": "always"}), "restart"),
        (host(SecurityOpt=[]), "security_opt"),
        (host(SecurityOpt=["no-new-privileges:false"]), "security_opt"),
        (host(SecurityOpt=["no-new-privileges:true", "seccomp=unconfined"]), "security_opt"),
        (mount(Type="bind", Source="/"), "volumes"),
        (mount(Type="bind", Source="/var/run/docker.sock"), "volumes"),
        (mount(Source="/etc"), "volumes"),
        (mount(Source="another_store"), "volumes"),
        (mount(Source=f"{PROJECT}_../../etc"), "volumes"),
        (mount(Source=""), "volumes"),
        (mount(ReadOnly=False), "volumes"),
        (mount(VolumeOptions={"DriverConfig": {"Options": {"device": "/"}}}), "volumes"),
        (host(Binds=["/:/host"]), "volumes"),
        (host(MaskedPaths=["/nothing"]), "MaskedPaths"),
        *((host(**{key: ["x"]}), word) for key, word in DANGEROUS.items()),
    ],
)
def test_whatever_leads_out_of_it_is_refused_by_name(change: Change, field: str) -> None:
    made = body()
    change(made)
    with pytest.raises(FailedPrecondition) as refused:
        CONFINEMENT.check(made)
    assert refused.value.field == field
    assert field in refused.value.message


@pytest.mark.parametrize(
    "described",
    [
        {"Driver": "local", "Options": {"type": "none", "o": "bind", "device": "/"}},
        {"Driver": "another", "Options": None},
        {},
    ],
)
def test_a_volume_that_is_a_part_of_the_host_is_refused(described: dict[str, Any]) -> None:
    CONFINEMENT.check_volume("v", {"Driver": "local", "Options": {}})
    with pytest.raises(FailedPrecondition, match="volumes"):
        CONFINEMENT.check_volume("v", described)
