from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.simulate import app
from simulator.fleet.recording import Header, Line, Recording, RequestRow, Stage, WindowRow

STEP_S = 0.1


def recording() -> str:
    """Of a stage whose step takes a tenth of a second, whatever is in it; a request a second."""
    stages = (Stage(node="n", offer="cpu", begin=0, end=4),)
    lines: list[Line] = []
    for number in range(20):
        tokens = tuple((number + STEP_S * (n + 1), n + 1) for n in range(5))
        lines.append(
            RequestRow(
                number=number,
                arrival_s=number,
                prompt=10 + number % 3,
                output=5,
                pipeline="p",
                moves=0,
                outcome="finished",
                tokens=tokens,
            )
        )
        lines.append(
            WindowRow(
                begin_s=number,
                end_s=number + 0.9,
                pipeline="p",
                stage=0,
                steps=5,
                decoded=4,
                prompt_rows=10 + number % 3,
                stepped_s=5 * STEP_S,
            )
        )
    return Recording.of(Header(seconds=20, pipelines={"p": stages}), lines).text()


def test_a_recording_is_fitted_and_replayed(tmp_path: Path) -> None:
    file, profile = tmp_path / "r.jsonl", tmp_path / "p.yaml"
    file.write_text(recording())
    told = CliRunner().invoke(app, ["fit", str(file), "--out", str(profile)])
    assert told.exit_code == 0, told.stderr
    assert "cpu:0-4" in told.stdout
    command = ["replay", str(file), "--profile", str(profile), "--against", str(file)]
    told = CliRunner().invoke(app, [*command, "--json"])
    assert told.exit_code == 0, told.stderr
    accounts = json.loads(told.stdout)
    assert accounts["replay"]["requests"] == 10
    assert abs(accounts["replay"]["metrics"]["e2e_s"]["p50_bias"]) < 0.05
    assert accounts["repeated"]["metrics"]["e2e_s"]["error"] == 0
    assert "tokens/s" in CliRunner().invoke(app, command).stdout


def test_a_mistake_is_a_line_and_exit_status_two(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(recording().replace('"version":1', '"version":7'))
    told = CliRunner().invoke(app, ["fit", str(file), "--out", str(tmp_path / "p.yaml")])
    assert told.exit_code == 2
    assert "r.jsonl:1: version: " in told.stderr
    assert not (tmp_path / "p.yaml").exists()


@pytest.mark.parametrize("command", ["record", "fit"])
def test_what_has_nowhere_to_go_is_told_before_it_is_measured(tmp_path: Path, command: str) -> None:
    file, out = tmp_path / "r.jsonl", tmp_path / "none" / "out"
    file.write_text(recording())
    more = [str(file)] if command == "fit" else ["--duration", "86400"]
    told = CliRunner().invoke(app, [command, *more, "--out", str(out)])
    assert told.exit_code == 1
    assert f"--out: {out}: No such file or directory" in told.stderr


def test_a_request_without_a_prompt_is_no_request(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(recording().replace('"prompt":10', '"prompt":0', 1))
    told = CliRunner().invoke(app, ["fit", str(file), "--out", str(tmp_path / "p.yaml")])
    assert told.exit_code == 2
    assert "r.jsonl:2: request.prompt: " in told.stderr


def test_nothing_is_recorded_where_no_mesh_runs(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    command = ["record", "--out", str(out), "--duration", "1", "--data-dir", str(tmp_path / "no")]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 1
    assert "no mesh runs" in told.stderr
    assert list(tmp_path.iterdir()) == []
