"""`shunt batch` against a router."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from services.cli import batch as command
from services.common import api_keys
from services.router.__main__ import RunningDoors
from tests.fake_mesh import FakeMesh
from tests.key_rings import KeyRing


@pytest.fixture
async def router(mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[RunningDoors]:
    settings: dict[str, Any] = {"batch_poll_s": 0.05}
    async with mesh.router(files=str(tmp_path / "files"), **settings) as router:
        yield router


def written(path: Path, count: int) -> Path:
    line = {"method": "POST", "url": "/v1/completions"}
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 4, "temperature": 0}
    lines = ({**line, "custom_id": f"q{n}", "body": body} for n in range(count))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


async def shunt(router: RunningDoors, *arguments: str) -> Result:
    url = f"http://127.0.0.1:{router.http_port}"
    runner = CliRunner()
    return await asyncio.to_thread(runner.invoke, command.app, [*arguments, "--url", url])


async def test_a_file_is_submitted_watched_and_its_answers_are_written(
    router: RunningDoors, tmp_path: Path
) -> None:
    file, answers = written(tmp_path / "in.jsonl", 6), tmp_path / "answers.jsonl"
    asked = ("submit", str(file), "--endpoint", "/v1/completions", "-o", str(answers), "--json")
    result = await shunt(router, *asked)
    assert result.exit_code == 0, result.output
    batch = json.loads(result.stdout)
    assert batch["status"] == "completed"
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert sorted(line["custom_id"] for line in lines) == [f"q{n}" for n in range(6)]
    shown = await shunt(router, "status", batch["id"])
    assert f"{batch['id']} completed: 6 of 6 lines" in shown.output
    assert batch["output_file_id"] in shown.output


async def test_a_batch_is_cancelled_by_its_name(
    router: RunningDoors, mesh: FakeMesh, tmp_path: Path
) -> None:
    mesh.token_s = 0.2
    file = written(tmp_path / "in.jsonl", 60)
    submitted = await shunt(
        router, "submit", str(file), "--endpoint", "/v1/completions", "--no-wait", "--json"
    )
    batch_id = json.loads(submitted.stdout)["id"]
    assert "cancelling" in (await shunt(router, "cancel", batch_id)).output
    ended = await shunt(router, "status", batch_id, "--wait", "--json")
    assert json.loads(ended.stdout)["status"] == "cancelled"


async def test_who_has_a_key_shows_it(
    keyed: RunningDoors, ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "in.jsonl", 2)
    asked = ("submit", str(file), "--endpoint", "/v1/completions", "--no-wait", "--json")
    refused = await shunt(keyed, *asked)
    assert refused.exit_code == 1
    monkeypatch.setenv(api_keys.VARIABLE, ring.keys["acme"])
    taken = await shunt(keyed, *asked)
    assert taken.exit_code == 0, taken.output
    monkeypatch.setenv(api_keys.VARIABLE, ring.keys["other"])
    theirs = await shunt(keyed, "status", json.loads(taken.stdout)["id"])
    assert "there is no batch" in theirs.output


async def test_what_goes_wrong_is_a_line_and_a_status(router: RunningDoors, tmp_path: Path) -> None:
    unknown = await shunt(router, "status", "batch_none")
    assert unknown.exit_code == 1
    assert "there is no batch batch_none" in unknown.output
    missing = await shunt(router, "submit", str(tmp_path / "none.jsonl"))
    assert missing.exit_code == 1
    assert "No such file" in missing.output
    failed = await shunt(router, "submit", str(written(tmp_path / "in.jsonl", 1)))
    assert failed.exit_code == 1
    assert "line 1: url must be the batch's endpoint" in failed.output
