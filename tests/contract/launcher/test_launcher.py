"""A launcher over gRPC and a played Docker: what it starts, what it leaves alone, what it tells."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from shuntserve.launcher.v1 import launcher_pb2 as pb

from services.common.statuses import from_rpc_error
from tests.contract.launcher.running import running_launcher
from tests.played_docker import PATTERN_LABELS, PROJECT, PlayedDocker, pattern, played_docker
from tests.waiting import until

CALL_S = 60.0


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[PlayedDocker]:
    with played_docker(tmp_path) as played:
        yield played


@pytest.fixture
async def launcher(docker: PlayedDocker) -> AsyncIterator[Any]:
    async with running_launcher(docker) as stub:
        yield stub


async def launched(launcher: Any, node_id: str = "node-1", **variables: str) -> pb.Container:
    request = pb.LaunchRequest(node_id=node_id, offer_id="a", variables=variables)
    container: pb.Container = (await launcher.Launch(request, timeout=CALL_S)).container
    return container


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as found:
        await call
    return found.value.code(), from_rpc_error(found.value).field


def nodes(docker: PlayedDocker) -> list[str]:
    return sorted(one.labels.get("shuntserve.node", "") for one in docker.running())


async def test_a_node_is_launched_from_the_pattern_and_once(
    docker: PlayedDocker, launcher: Any
) -> None:
    docker.start_s = 0.05
    both = await asyncio.gather(*(launched(launcher, SHUNT_ENGINE_X="1") for _ in range(2)))
    assert both[0] == both[1] == await launched(launcher)
    [one] = docker.running()
    assert (one.container_id, one.name) == (both[0].container_id, f"{PROJECT}-node-1")
    assert "SHUNT_ENGINE_X=1" in one.body["Env"]
    assert sum(call.endswith("/create") for call in docker.calls) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"Privileged": True}, "privileged"),
        ({"NetworkMode": "host"}, "network_mode"),
        ({"PidMode": "host"}, "pid"),
        ({"CapAdd": ["SYS_ADMIN"]}, "cap_add"),
        ({"Memory": 0}, "mem_limit"),
    ],
)
async def test_what_leads_out_of_a_container_is_not_started(
    docker: PlayedDocker, launcher: Any, change: dict[str, Any], field: str
) -> None:
    docker.add_pattern(**change)  # the newest counts
    code, named = await refused(launched(launcher))
    assert (code, named) == (grpc.StatusCode.FAILED_PRECONDITION, field)
    assert not docker.running()


async def test_a_mount_of_the_host_and_another_image_are_not_started(
    docker: PlayedDocker, launcher: Any
) -> None:
    made = docker.add_pattern()
    made.body["Mounts"].append({"Type": "bind", "Source": "/", "Destination": "/h", "RW": False})
    assert (await refused(launched(launcher)))[1] == "volumes"
    made.body["Mounts"].pop()
    docker.volumes[f"{PROJECT}_store"]["Options"] = {"device": "/", "o": "bind"}
    assert (await refused(launched(launcher)))[1] == "volumes"
    docker.volumes[f"{PROJECT}_store"]["Options"] = None
    made.body["Config"]["Image"] = "another"
    assert (await refused(launched(launcher)))[1] == "image"
    assert not docker.running()


async def test_variables_of_others_and_names_of_others_are_refused(
    docker: PlayedDocker, launcher: Any
) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert await refused(launched(launcher, LD_PRELOAD="x")) == (invalid, "variables")
    assert await refused(launched(launcher, "../x")) == (invalid, "node_id")
    end = pb.EndRequest(node_id="node-1", grace_s=-1)
    assert await refused(launcher.End(end, timeout=CALL_S)) == (invalid, "grace_s")


async def test_no_more_are_started_than_are_allowed(docker: PlayedDocker) -> None:
    docker.start_s = 0.05
    async with running_launcher(docker, max_containers=2) as launcher:
        calls = (launched(launcher, f"node-{number}") for number in range(5))
        results = await asyncio.gather(*calls, return_exceptions=True)
        failed = [one for one in results if isinstance(one, grpc.aio.AioRpcError)]
        assert [one.code() for one in failed] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
        assert len(docker.running()) == 2
        first = docker.running()[0].labels["shuntserve.node"]
        await launcher.End(pb.EndRequest(node_id=first), timeout=CALL_S)
        await launched(launcher, "node-9")
        assert len(docker.running()) == 2


async def test_what_is_not_of_the_mesh_is_left_alone(docker: PlayedDocker) -> None:
    stranger = docker.add("somebody", {"Labels": {"shuntserve.node": "node-7"}, "Image": "x"})
    taken = docker.add(f"{PROJECT}-node-1", {"Labels": {}, "Image": "x"})
    async with running_launcher(docker) as launcher:
        end = launcher.End(pb.EndRequest(node_id="node-7"), timeout=CALL_S)
        assert (await refused(end))[0] is grpc.StatusCode.NOT_FOUND
        failed = grpc.StatusCode.FAILED_PRECONDITION
        assert await refused(launched(launcher)) == (failed, "labels")
        watch = launcher.Watch(pb.WatchRequest())
        assert not (await watch.read()).running.containers
        watch.cancel()
    assert {one.state for one in (stranger, taken)} == {"running"}


@pytest.mark.parametrize("stubborn", [False, True])
async def test_an_end_has_its_grace_and_is_an_end(
    docker: PlayedDocker, launcher: Any, stubborn: bool
) -> None:
    docker.ignores_term = stubborn
    await launched(launcher)
    await launcher.End(pb.EndRequest(node_id="node-1", grace_s=0.1), timeout=CALL_S)
    assert not docker.running()
    await until(lambda: docker.named(f"{PROJECT}-node-1") is None)
    again = launcher.End(pb.EndRequest(node_id="node-1"), timeout=CALL_S)
    assert (await refused(again))[0] is grpc.StatusCode.NOT_FOUND


async def test_watchers_hear_what_runs_and_then_what_happens(
    docker: PlayedDocker, launcher: Any
) -> None:
    one = await launched(launcher)
    watch = launcher.Watch(pb.WatchRequest())
    assert list((await watch.read()).running.containers) == [one]
    two = await launched(launcher, "node-2")
    assert (await watch.read()).started == two
    docker.die(one.container_id, 2, "bad setting SHUNT_ENGINE_X: no\n")
    ended = (await watch.read()).ended
    assert ended.container == one
    assert ended.reason == "exit status 2: bad setting SHUNT_ENGINE_X: no"
    watch.cancel()
    await until(lambda: docker.named(f"{PROJECT}-node-1") is None)


async def test_a_container_that_ends_as_it_starts_takes_no_place(docker: PlayedDocker) -> None:
    def end_and_wait() -> None:
        """Until its end was heard of; only then is its start answered."""
        (one,) = docker.running()
        docker.die(one.container_id, 2)
        while one.container_id in docker.containers:
            time.sleep(0.01)
        time.sleep(0.05)

    docker.started = end_and_wait
    async with running_launcher(docker, max_containers=1) as launcher:
        watch = launcher.Watch(pb.WatchRequest())
        await watch.read()
        for number in range(3):
            await launched(launcher, f"node-{number}")
            while (said := await watch.read()).WhichOneof("said") != "ended":
                pass
            assert said.ended.container.node_id == f"node-{number}"
        watch.cancel()


async def test_who_starts_anew_finds_what_runs_and_buries_what_ended(docker: PlayedDocker) -> None:
    async with running_launcher(docker) as launcher:
        one, two = await launched(launcher, "node-1"), await launched(launcher, "node-2")
    assert nodes(docker) == ["node-1", "node-2"], "they outlive it"
    docker.die(one.container_id)
    async with running_launcher(docker) as launcher:
        assert await launched(launcher, "node-2") == two
        await until(lambda: docker.named(f"{PROJECT}-node-1") is None)
        assert nodes(docker) == ["node-2"]


async def test_a_container_of_which_nobody_heard_is_found_by_its_name(
    docker: PlayedDocker, launcher: Any
) -> None:
    await launched(launcher)
    body = docker.running()[0].body
    labels = {**body["Labels"], "shuntserve.node": "node-2"}
    unheard = docker.add(f"{PROJECT}-node-2", {**body, "Labels": labels}, "running")
    assert (await launched(launcher, "node-2")).container_id == unheard.container_id


async def test_a_container_that_was_made_and_never_started_is_made_anew(
    docker: PlayedDocker, launcher: Any
) -> None:
    await launched(launcher)
    body = docker.running()[0].body
    labels = {**body["Labels"], "shuntserve.node": "node-2"}
    left = docker.add(f"{PROJECT}-node-2", {**body, "Labels": labels}, "created")
    made = await launched(launcher, "node-2")
    assert made.container_id != left.container_id
    assert nodes(docker) == ["node-1", "node-2"]


async def test_what_happened_while_docker_was_not_heard_is_told_behind(
    docker: PlayedDocker, launcher: Any
) -> None:
    one = await launched(launcher)
    watch = launcher.Watch(pb.WatchRequest())
    await watch.read()
    docker.deaf = True
    docker.break_off()
    assert (await refused(launched(launcher, "node-2")))[0] is grpc.StatusCode.UNAVAILABLE
    docker.die(one.container_id)
    docker.deaf = False
    said = [(await watch.read()).WhichOneof("said") for _ in range(2)]
    assert sorted(said) == ["ended", "running"]
    watch.cancel()
    await launched(launcher, "node-2")


async def test_when_the_mesh_is_taken_down_its_engines_end_with_it(docker: PlayedDocker) -> None:
    other = docker.add("somebody", {"Labels": dict(PATTERN_LABELS, project="x"), "Image": "x"})
    other.labels["com.docker.compose.project"] = "another"
    async with running_launcher(docker) as launcher:
        for number in (1, 2):
            await launched(launcher, f"node-{number}")
        found = docker.named(f"{PROJECT}-engine-1")
        assert found is not None
        del docker.containers[found.container_id]
        gone = refused(launched(launcher, "node-3"))
        assert (await gone)[0] is grpc.StatusCode.NOT_FOUND, "nothing is started any more"
    assert [one.name for one in docker.containers.values()] == ["somebody"]


async def test_gpus_are_dealt_out_one_a_node(docker: PlayedDocker, launcher: Any) -> None:
    request = {"Driver": "nvidia", "DeviceIDs": ["0", "1"], "Capabilities": [["gpu"]]}
    docker.add("newest", pattern(DeviceRequests=[request]), "exited")
    docker.start_s = 0.05
    await asyncio.gather(launched(launcher, "node-1"), launched(launcher, "node-2"))
    assert (await refused(launched(launcher, "node-3")))[1] == "devices"
    dealt = [one.body["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] for one in docker.running()]
    assert sorted(dealt) == [["0"], ["1"]]
