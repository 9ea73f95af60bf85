"""A controller that is killed between the launch of an instance and its note: none is lost, and
none is there twice."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from tests.contract.controller.controller_process import (
    open_channel,
    running_process,
    until_ready,
)
from tests.ec2.cloud import Cloud
from tests.waiting import until

MESH = "restarted"
NODE_TAG = "shuntserve:node"


@pytest.fixture
def on_ec2(environment: dict[str, str], cloud: Cloud, types_file: Path) -> dict[str, str]:
    settings = {
        "MESH": MESH,
        "LAUNCH_TEMPLATE": "node",
        "TYPES_FILE": str(types_file),
        "FIRST_NODES": "g6e.xlarge:1",
        "LOOK_S": "0.2",
        "PRICE_S": "0.2",
        "SCORE_S": "0",
        "CONSISTENCY_S": "0.5",
    }
    return {
        **environment,
        **cloud.environment(),
        "SHUNT_CONTROLLER_PROVIDER": "ec2",
        "SHUNT_CONTROLLER_STORE": "s3://bucket/models",
        **{f"SHUNT_CONTROLLER_EC2__{name}": value for name, value in settings.items()},
    }


def node_of(instance: Any) -> str:
    return Cloud.tags(instance)[NODE_TAG]


async def register(environment: dict[str, str], instance: Any) -> None:
    """As the instance's engine does."""
    machine = common_pb2.MachineFacts(
        instance_id=instance.id, instance_type=instance.instance_type, spot=True
    )
    request = pb.RegisterRequest(
        node_id=node_of(instance),
        incarnation="of-the-instance",
        address="127.0.0.1:1",
        pid=1,
        memory_bytes=40_000_000_000,
        relative_speed=2.0,
        device_type="l40s",
        machine=machine,
    )
    async with open_channel(environment) as channel:
        await until_ready(channel)
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        await stub.Register(request, timeout=60)


async def looked(cloud: Cloud, times: int = 4) -> None:
    looks = cloud.count("DescribeInstances")
    await until(lambda: cloud.count("DescribeInstances") >= looks + times)


async def test_a_controller_killed_before_it_is_answered_finds_what_was_started(
    on_ec2: dict[str, str], cloud: Cloud
) -> None:
    async with running_process(on_ec2) as first:
        cloud.ordered = lambda: first.send_signal(signal.SIGKILL)
        assert await first.wait() == -signal.SIGKILL
    cloud.ordered = lambda: None
    (instance,) = cloud.instances(MESH)
    async with running_process(on_ec2):
        await register(on_ec2, instance)
        await looked(cloud)
        assert [one.id for one in cloud.instances(MESH)] == [instance.id]
    async with running_process(on_ec2):  # and the one behind it knows it by its note
        await register(on_ec2, instance)
        await looked(cloud)
    assert [one.id for one in cloud.instances(MESH)] == [instance.id]
    assert cloud.count("TerminateInstances") == 0
    assert cloud.count("CreateFleet") == 1


async def test_what_no_journal_knows_is_ended_and_nothing_else(
    on_ec2: dict[str, str], cloud: Cloud
) -> None:
    orphan = cloud.start_stranger({"shuntserve:mesh": MESH, NODE_TAG: "node-77"})
    stranger = cloud.start_stranger({"shuntserve:mesh": "another", NODE_TAG: "node-1"})
    async with running_process(on_ec2):
        await until(lambda: orphan not in {one.id for one in cloud.instances()})
        await until(lambda: cloud.instances(MESH))
        (instance,) = cloud.instances(MESH)
        await register(on_ec2, instance)
    # the journal is lost: its nodes are named anew, and the instance is taken for the first
    await asyncio.to_thread(shutil.rmtree, on_ec2["SHUNT_CONTROLLER_DATA_DIR"])
    async with running_process(on_ec2):
        await register(on_ec2, instance)
        await looked(cloud)
    assert [one.id for one in cloud.instances(MESH)] == [instance.id]
    assert stranger in {one.id for one in cloud.instances()}
