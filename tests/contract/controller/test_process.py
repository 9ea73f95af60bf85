from __future__ import annotations

import asyncio
import json
import os
import signal
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
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc
from shuntserve.tensorstore.v1 import tensorstore_pb2, tensorstore_pb2_grpc

from services.common import channels

START_S = 60.0
DEFECTIVE = """
from services.controller.__main__ import main
from services.controller.providers.local import LocalProvider

async def launch(self, node_id, offer):
    raise RuntimeError("a defect")

LocalProvider.launch = launch
main()
"""
CONFIG = {"model_type": "llama", "vocab_size": 100, "max_position_embeddings": 512}


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


@asynccontextmanager
async def _process(
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
async def _channel(environment: dict[str, str]) -> AsyncIterator[grpc.aio.Channel]:
    address = f"127.0.0.1:{environment['SHUNT_CONTROLLER_GRPC_PORT']}"
    async with channels.open_channel(address) as channel, asyncio.timeout(START_S):
        await channel.channel_ready()
        yield channel


async def _until_ready(channel: grpc.aio.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(), timeout=START_S
    )
    async for message in watch:
        if message.status == health_pb2.HealthCheckResponse.SERVING:
            break
    watch.cancel()


async def test_what_the_controller_keeps_is_for_its_owner_alone(
    environment: dict[str, str],
) -> None:
    data = Path(environment["SHUNT_CONTROLLER_DATA_DIR"])
    await asyncio.to_thread(data.mkdir, mode=0o755)
    async with _process(environment), _channel(environment) as channel:
        await _until_ready(channel)
        modes = await asyncio.to_thread(_modes, data)
    assert {"journal.db", "journal.db-wal", "journal.db-reserve"} < modes.keys()
    assert {name for name, mode in modes.items() if mode & 0o077} == set()


def _modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode for path in (directory, *directory.rglob("*"))}


def _damage(environment: dict[str, str]) -> tuple[Path, bytes]:
    """Puts something else where the journal should be."""
    journal = Path(environment["SHUNT_CONTROLLER_DATA_DIR"]) / "journal.db"
    journal.parent.mkdir()
    damaged = b"no journal at all" * 1000
    journal.write_bytes(damaged)
    return journal, damaged


async def test_what_a_killed_controller_was_told_is_known_to_the_next(
    environment: dict[str, str],
) -> None:
    cancel = pb.CancelRequest(generation_id="g", reason=common_pb2.CANCEL_REASON_CLIENT)
    async with _process(environment) as first, _channel(environment) as channel:
        await _until_ready(channel)
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        await stub.Cancel(cancel, timeout=START_S)
        first.kill()
        await first.wait()
    async with _process(environment) as second, _channel(environment) as channel:
        await _until_ready(channel)
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Resume(pb.ResumeRequest(generation_id="g"), timeout=START_S)
        assert failed.value.code() is grpc.StatusCode.CANCELLED
        second.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(second.wait(), START_S) == 0


async def test_a_defect_ends_the_process(environment: dict[str, str]) -> None:
    local = {**environment, "SHUNT_CONTROLLER_PROVIDER": "local"}
    async with _process(local, ("-c", DEFECTIVE)) as process:
        _, told = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == 1
    assert b"a defect" in told


async def test_two_controllers_never_share_a_directory(environment: dict[str, str]) -> None:
    async with _process(environment), _channel(environment) as channel:
        await _until_ready(channel)
        async with _process({**environment, "SHUNT_CONTROLLER_GRPC_PORT": "0"}) as other:
            _, told = await asyncio.wait_for(other.communicate(), START_S)
            assert other.returncode == 1
            assert b"another controller uses" in told


async def test_a_damaged_journal_is_told_and_never_replaced(environment: dict[str, str]) -> None:
    journal, damaged = _damage(environment)
    async with _process(environment) as process:
        _, told = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == 1
    assert f"{journal} is damaged".encode() in told
    assert b"move journal.db* away" in told
    assert journal.read_bytes() == damaged


async def test_a_bad_setting_is_named(environment: dict[str, str]) -> None:
    async with _process({**environment, "SHUNT_CONTROLLER_NODE_SPEEDS": "fast"}) as process:
        _, told = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == 2
    assert b"SHUNT_CONTROLLER_NODE_SPEEDS" in told
