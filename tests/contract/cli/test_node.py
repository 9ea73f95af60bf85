"""`shunt node` as a process, its cloud and its controller played."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2_grpc
from starlette.responses import PlainTextResponse

from services.common import mesh_token
from services.common.machine import Source
from services.common.server import Server
from services.common.settings import ServiceSettings, TlsSettings
from services.common.wire_machine import machine_from
from tests.certificates import Authority
from tests.contract.engine.test_engine_controller import Journal
from tests.fake_metadata import FakeEc2, serving
from tests.waiting import until

ROOT = Path(__file__).parents[3]
TOKEN = "a-token-of-the-mesh"
WITHIN_S = 60.0


@asynccontextmanager
async def controller(journal: Journal, tls: TlsSettings | None = None) -> AsyncIterator[int]:
    settings = ServiceSettings(shutdown_grace_s=0, tls=tls or TlsSettings())
    server = Server(settings, ["shuntserve.controller.v1.ControllerService"])
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(journal, server.grpc_server)
    try:
        yield await server.start()
    finally:
        await server.stop()


@asynccontextmanager
async def node(
    port: int, store: Path, *options: str, **settings: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    environment: Mapping[str, str] = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(store),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "SHUNT_ENGINE_THREADS": "1",
        "SHUNT_NODE_NOTICE_POLL_S": "0.1",
        **{f"SHUNT_NODE_{name.upper()}": value for name, value in settings.items()},
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "node"),
        *("--controller", f"127.0.0.1:{port}", "--store", str(store), *options),
        env=environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ends(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(WITHIN_S):
        return await process.wait()


@pytest.fixture
def journal() -> Journal:
    journal = Journal()
    journal.answering.set()
    return journal


async def test_it_joins_as_what_its_cloud_says_and_leaves_when_that_takes_it(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mesh_token.VARIABLE, TOKEN)
    (tmp_path / "token").write_text(mesh_token.of_node(TOKEN, "i-7"))
    cloud = FakeEc2("i-7")
    async with (
        controller(journal) as port,
        serving(cloud) as url,
        node(
            *(port, tmp_path, "--metadata", url),
            *("--join-token", str(tmp_path / "token")),
            cloud="ec2",
        ) as process,
    ):
        await until(lambda: journal.beats, WITHIN_S)
        said = journal.registered[0]
        facts = machine_from(said.machine)
        assert said.node_id == facts.instance_id == "i-7"
        assert (facts.instance_type, facts.zone, facts.spot) == ("g6.xlarge", "use1-az4", True)
        assert facts.source("spot") is Source.FOUND
        os.kill(said.pid, signal.SIGKILL)
        await until(lambda: len(journal.registered) > 1, WITHIN_S)
        assert journal.registered[-1].incarnation != said.incarnation
        cloud.recommend()
        await until(lambda: journal.beats[-1].notice == common_pb2.NOTICE_KIND_REBALANCE)
        assert process.returncode is None
        cloud.mark(120.0)
        assert await ends(process) == 0
    assert journal.beats[-1].notice == common_pb2.NOTICE_KIND_SPOT
    assert 60 < journal.beats[-1].departs_in_s <= 121


async def test_it_serves_on_whatever_its_metadata_service_does(
    journal: Journal, tmp_path: Path
) -> None:
    cloud = FakeEc2()
    cloud.hangs = True
    async with (
        controller(journal) as port,
        serving(cloud) as url,
        node(
            *(port, tmp_path, "--metadata", url),
            cloud="ec2",
            metadata_timeout_s="0.5",
            metadata_wait_s="1",
        ) as process,
    ):
        await until(lambda: len(journal.beats) > 20, WITHIN_S)
        assert journal.registered[0].node_id == socket.gethostname()
        assert machine_from(journal.registered[0].machine).instance_id is None
        for status, text in ((200, "\x00<html>" * 99), (500, ""), (302, "elsewhere")):
            asked, beats = len(cloud.asked), len(journal.beats)
            answer = PlainTextResponse(text, status, {"Location": "/latest/meta-data/"})
            cloud.hangs, cloud.wrong = False, lambda _, answer=answer: answer
            await until(lambda asked=asked: len(cloud.asked) > asked + 4, WITHIN_S)
            await until(lambda beats=beats: len(journal.beats) > beats, WITHIN_S)
        assert len(journal.registered) == 1
        cloud.wrong = None
        cloud.mark(60.0)
        assert await ends(process) == 0, "it is asked on, and heard when it says something"


async def test_with_certificates_it_proves_whose_it_is(journal: Journal, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    for name, path in authority.issue("engine/n1").items():
        shutil.copy(path, mine / f"{name}.pem")
    tls = TlsSettings.model_validate(authority.issue("controller"))
    async with (
        controller(journal, tls) as port,
        node(port, tmp_path, "--certificates", str(mine), "--id", "n1", cloud="none") as process,
    ):
        await until(lambda: journal.beats, WITHIN_S)
        process.terminate()
        assert await ends(process) == 0
        assert journal.registered[0].node_id == "n1"


async def test_what_it_cannot_use_is_named(tmp_path: Path) -> None:
    for option, value, said in (
        ("--store", "grpc://127.0.0.1:1", "SHUNT_NODE_STORE"),
        ("--certificates", str(tmp_path), "SHUNT_NODE_CERTIFICATES"),
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "node", "--controller", "a:1"),
            *("--store", "/models", option, value),
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await asyncio.wait_for(process.communicate(), WITHIN_S)
        assert (process.returncode, said in err.decode()) == (2, True), err
