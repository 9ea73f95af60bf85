"""A controller as a process of its own, whose only neighbour is a store that describes a model."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from shuntserve.common.v1 import common_pb2
from shuntserve.tensorstore.v1 import tensorstore_pb2, tensorstore_pb2_grpc

from services.common import channels
from services.common.roles import Role
from tests.postgres import Cluster

START_S = 60.0
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 6,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


class _Store(tensorstore_pb2_grpc.TensorStoreServiceServicer):
    async def Describe(self, request: Any, context: Any) -> Any:
        return tensorstore_pb2.DescribeResponse(
            summary=tensorstore_pb2.ModelSummary(
                model=common_pb2.ModelRef(model_id="tiny", digest="ab"), layers=6
            ),
            manifest=json.dumps({"config": CONFIG}).encode(),
        )


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    server = grpc.aio.server(options=channels.options(1 << 20))
    tensorstore_pb2_grpc.add_TensorStoreServiceServicer_to_server(_Store(), server)
    store_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "DATA_DIR": str(tmp_path / "data"),
        "GRPC_PORT": str(port),
        "MODEL_ID": "tiny",
        "PROVIDER": "external",
        "TENSORSTORE_ADDRESS": f"127.0.0.1:{store_port}",
        "PLACEMENT_ADDRESS": "127.0.0.1:1",
    }
    yield {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        **{f"SHUNT_CONTROLLER_{name}": value for name, value in settings.items()},
    }
    await server.stop(0)


@pytest.fixture
def first(environment: dict[str, str], cluster: Cluster) -> dict[str, str]:
    """The environment of a controller."""
    shared = {"SHUNT_CONTROLLER_JOURNAL": cluster.new_journal(), "SHUNT_CONTROLLER_LEASE_S": "1"}
    return environment | shared


@pytest.fixture
def second(first: dict[str, str]) -> dict[str, str]:
    """Of another one, beside it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = Path(first["SHUNT_CONTROLLER_DATA_DIR"]).with_name("second")
    own = {"DATA_DIR": str(directory), "GRPC_PORT": str(port)}
    return first | {f"SHUNT_CONTROLLER_{name}": value for name, value in own.items()}


@asynccontextmanager
async def running_process(
    environment: dict[str, str], program: tuple[str, ...] = ("-m", "services.controller")
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def open_channel(environment: dict[str, str]) -> AsyncIterator[grpc.aio.Channel]:
    address = f"127.0.0.1:{environment['SHUNT_CONTROLLER_GRPC_PORT']}"
    async with channels.open_channel(address, Role.CONTROLLER) as channel, asyncio.timeout(START_S):
        await channel.channel_ready()
        yield channel


async def until_ready(channel: grpc.aio.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(), timeout=START_S
    )
    async for message in watch:
        if message.status == health_pb2.HealthCheckResponse.SERVING:
            break
    watch.cancel()
