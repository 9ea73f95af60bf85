from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.controller import __main__ as controller
from tests.contract.controller.controller_process import (
    START_S,
    open_channel,
    running_process,
    until_ready,
)

DEFECTIVE = """
from services.controller.__main__ import main
from services.controller.providers.local import LocalProvider

async def launch(self, node_id, offer):
    raise RuntimeError("a defect")

LocalProvider.launch = launch
main()
"""


async def test_what_the_controller_keeps_is_for_its_owner_alone(
    environment: dict[str, str],
) -> None:
    data = Path(environment["SHUNT_CONTROLLER_DATA_DIR"])
    await asyncio.to_thread(data.mkdir, mode=0o755)
    async with running_process(environment), open_channel(environment) as channel:
        await until_ready(channel)
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
    async with running_process(environment) as first, open_channel(environment) as channel:
        await until_ready(channel)
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        await stub.Cancel(cancel, timeout=START_S)
        first.kill()
        await first.wait()
    async with running_process(environment) as second, open_channel(environment) as channel:
        await until_ready(channel)
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Resume(pb.ResumeRequest(generation_id="g"), timeout=START_S)
        assert failed.value.code() is grpc.StatusCode.CANCELLED
        second.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(second.wait(), START_S) == 0


async def test_a_defect_ends_the_process(environment: dict[str, str]) -> None:
    local = {**environment, "SHUNT_CONTROLLER_PROVIDER": "local"}
    async with running_process(local, ("-c", DEFECTIVE)) as process:
        _, told = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == 1
    assert b"a defect" in told


async def test_two_controllers_never_share_a_directory(environment: dict[str, str]) -> None:
    async with running_process(environment), open_channel(environment) as channel:
        await until_ready(channel)
        async with running_process({**environment, "SHUNT_CONTROLLER_GRPC_PORT": "0"}) as other:
            _, told = await asyncio.wait_for(other.communicate(), START_S)
            assert other.returncode == 1
            assert b"another controller uses" in told


async def test_a_damaged_journal_is_told_and_never_replaced(environment: dict[str, str]) -> None:
    journal, damaged = _damage(environment)
    async with running_process(environment) as process:
        _, told = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == 1
    assert f"{journal} is damaged".encode() in told
    assert b"move journal.db* away" in told
    assert journal.read_bytes() == damaged


async def test_a_bad_setting_is_named(environment: dict[str, str]) -> None:
    async with running_process({**environment, "SHUNT_CONTROLLER_NODE_SPEEDS": "fast"}) as process:
        _, told = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == 2
    assert b"SHUNT_CONTROLLER_NODE_SPEEDS" in told


def test_a_directory_that_cannot_be_had_is_a_bad_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("configure", "shutdown"):
        monkeypatch.setattr(f"services.common.telemetry.{name}", lambda *_, **__: None)
    monkeypatch.setattr("services.common.logs.configure", lambda *_: None)
    monkeypatch.setattr("services.controller.__main__.keep_files_private", lambda: None)
    (tmp_path / "file").write_text("")
    for setting, value in (
        ("DATA_DIR", f"{tmp_path / 'file'}"),
        ("DATA_DIR", f"{tmp_path / 'file' / 'below'}"),
        ("JOURNAL", f"sqlite:{tmp_path / 'file' / 'below' / 'journal.db'}"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv("SHUNT_CONTROLLER_DATA_DIR", str(tmp_path / "data"))
            patched.setenv(f"SHUNT_CONTROLLER_{setting}", value)
            with pytest.raises(SystemExit) as stop:
                controller.main()
        assert stop.value.code == 2
        assert f"bad setting SHUNT_CONTROLLER_{setting}: {tmp_path / 'file'}" in (
            capsys.readouterr().err
        )
