from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2_grpc

from bench import mesh as meshes
from bench import rolling
from bench.otlp import Receiver
from services.common import channels
from services.common.roles import Role
from tests.mesh.rest import until_at_rest


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, imported once for all meshes that begin with it."""
    path: Path = tmp_path_factory.mktemp("store")
    asyncio.run(meshes.run_shunt("model", "import", "--store", str(path), timeout_s=120))
    return path


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[meshes.Mesh]:
    """One mesh with two routers for all tests; each leaves it in the shape that it had."""
    data_dir: Path = tmp_path_factory.mktemp("mesh")
    with asyncio.Runner() as runner:
        env = {
            **os.environ,
            **rolling.ENVIRONMENT,
            "SHUNT_CONTROLLER_DOCUMENT_LEASE_S": "2",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "SHUNT_CONTROLLER_METRICS_PORT": "0",
            "SHUNT_ENGINE_METRICS_PORT": "0",
            "SHUNT_ENGINE_KV_SILENT_S": "10",
            "SHUNT_ENGINE_KV_FETCH_S": "20",
        }
        context = meshes.running(data_dir, routers=2, env=env)
        running = runner.run(context.__aenter__())
        try:
            yield running
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture
async def ready(mesh: meshes.Mesh) -> meshes.Mesh:
    await until_at_rest(mesh)
    return mesh


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=120.0) as client:
        yield client


@pytest.fixture
async def controller(ready: meshes.Mesh) -> AsyncIterator[Any]:
    services = (await ready.status())["services"]
    address = next(s["grpc"] for s in services if s["name"] == "controller")
    async with channels.open_channel(address, Role.CONTROLLER) as channel:
        yield controller_pb2_grpc.ControllerServiceStub(channel)
