"""A controller that is killed between the launch of a container and its note, and a launcher that
starts anew: no container is lost, and none is there twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from bench.mesh import free_ports
from tests.contract.controller.controller_process import (
    open_channel,
    running_process,
    until_ready,
)
from tests.played_docker import PROJECT, PlayedContainer, PlayedDocker, played_docker
from tests.waiting import until

LAUNCHER = ("-m", "services.launcher")


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[PlayedDocker]:
    with played_docker(tmp_path) as played:
        yield played


@pytest.fixture
def in_docker(environment: dict[str, str], docker: PlayedDocker) -> dict[str, str]:
    port = free_ports(1)
    return {
        **environment,
        "SHUNT_CONTROLLER_PROVIDER": "docker",
        "SHUNT_CONTROLLER_LAUNCHER_ADDRESS": f"127.0.0.1:{port}",
        "SHUNT_CONTROLLER_NODE_SPEEDS": "1",
        "SHUNT_LAUNCHER_GRPC_PORT": str(port),
        "SHUNT_LAUNCHER_PROJECT": PROJECT,
        "SHUNT_LAUNCHER_SOCKET": docker.socket,
    }


async def register(environment: dict[str, str], container: PlayedContainer) -> None:
    """As the container's engine does."""
    request = pb.RegisterRequest(
        node_id=container.labels["shuntserve.node"],
        incarnation="of-the-container",
        address="127.0.0.1:1",
        pid=1,
        memory_bytes=2 << 30,
        relative_speed=1.0,
        device_type="cpu",
        machine=common_pb2.MachineFacts(instance_id=container.container_id),
    )
    async with open_channel(environment) as channel:
        await until_ready(channel)
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        await stub.Register(request, timeout=60)


def creations(docker: PlayedDocker) -> int:
    return sum(call.endswith("/create") for call in docker.calls)


async def looked(docker: PlayedDocker) -> None:
    """A container of which nobody knows is ended: so is any other by then that was to be."""
    labels = {"shuntserve.mesh": PROJECT, "shuntserve.node": f"node-{len(docker.calls) + 1000}"}
    orphan = docker.add(f"orphan-{len(docker.calls)}", {"Labels": labels, "Image": "x"})
    docker.tell("start", orphan)
    await until(lambda: orphan.container_id not in docker.containers, 60)


async def test_a_controller_killed_before_it_is_answered_finds_what_was_started(
    in_docker: dict[str, str], docker: PlayedDocker
) -> None:
    async with running_process(in_docker, LAUNCHER):
        async with running_process(in_docker) as first:
            docker.started = lambda: first.send_signal(signal.SIGKILL)
            assert await first.wait() == -signal.SIGKILL
        docker.started = lambda: None
        (container,) = docker.running()
        async with running_process(in_docker):
            await register(in_docker, container)
            await looked(docker)
            assert docker.running() == [container]
    assert creations(docker) == 1


async def test_a_launcher_killed_in_mid_launch_is_asked_again_and_starts_none_twice(
    in_docker: dict[str, str], docker: PlayedDocker
) -> None:
    async with running_process(in_docker):
        async with running_process(in_docker, LAUNCHER) as first:
            docker.started = lambda: first.send_signal(signal.SIGKILL)
            assert await first.wait() == -signal.SIGKILL
        docker.started = lambda: None
        (before,) = docker.running()
        async with running_process(in_docker, LAUNCHER):
            await register(in_docker, before)
            await looked(docker)
            assert docker.running() == [before]
        assert creations(docker) == 1
        docker.die(before.container_id)  # while nobody looks
        async with running_process(in_docker, LAUNCHER):
            await until(docker.running, 60)
            (after,) = docker.running()
    assert after.labels["shuntserve.node"] != before.labels["shuntserve.node"]
