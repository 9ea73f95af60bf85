from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.simulate import app

SCENARIO = """version: 1
cluster: cluster.yaml
model: llama-3.1-8b
workload:
  generator: {requests: 20, rate_rps: 2, input_mean: 100, output_mean: 20}
strategies: [full, none]
objective: {ttft_s: 5}
horizon_s: 30
"""
CLUSTER = "instances:\n  - {type: g6e.xlarge, count: 1, price_per_hour: 3.6}\n"
FIELDS = (
    *("strategy", "requests", "goodput_rps", "slo_attainment", "ttft_s", "tpot_s", "e2e_s", "cost"),
    *("on_demand_cost", "interruptions", "moves", "tokens_replayed"),
)


def written(directory: Path, text: str = SCENARIO) -> str:
    (directory / "cluster.yaml").write_text(CLUSTER)
    path = directory / "scenario.yaml"
    path.write_text(text)
    return str(path)


def written_beside(directory: Path) -> str:
    """The scenario alone."""
    path = directory / "scenario.yaml"
    path.write_text(SCENARIO)
    return str(path)


def test_several_runs_are_a_list_and_one_is_an_object(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["run", written(tmp_path), "--json"])
    assert told.exit_code == 0
    runs = json.loads(told.stdout)
    assert [run["strategy"] for run in runs] == ["full", "none"]
    assert set(FIELDS) <= set(runs[0])
    assert runs[0]["requests"]["finished"] == 20
    assert round(runs[0]["cost"], 9) == 0.03  # 30 s at 3.6 dollars an hour
    alone = SCENARIO.replace("[full, none]", "[full]")
    told = CliRunner().invoke(app, ["run", written(tmp_path, alone), "--json"])
    assert json.loads(told.stdout) == runs[0]


def test_a_table_is_for_people(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["run", written(tmp_path)])
    assert "20 of 20" in told.stdout


def test_a_mistake_is_a_line_and_exit_status_two(tmp_path: Path) -> None:
    path = written(tmp_path, SCENARIO.replace("requests: 20", "requests: 1000000000"))
    told = CliRunner().invoke(app, ["run", path])
    assert told.exit_code == 2
    assert "scenario.yaml:5: workload.generator.requests: " in told.stderr
    assert told.stdout == ""


def test_what_is_no_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, SCENARIO + "seeds: [0")
    told = CliRunner().invoke(app, ["run", path])
    assert told.exit_code == 2
    assert "scenario.yaml:9: is not YAML: " in told.stderr
    (tmp_path / "cluster.yaml").write_text("instances: [")
    told = CliRunner().invoke(app, ["run", written_beside(tmp_path)])
    assert "cluster.yaml:1: is not YAML: " in told.stderr


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_report_that_cannot_be_written_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr("services.cli.simulate._outcomes", never)
    path, report = written(tmp_path), tmp_path / "cluster.yaml"
    told = CliRunner().invoke(app, [command, path, "--report", str(report)])
    assert told.exit_code == 1
    assert "--report: " in told.stderr
    assert "is there and is no report" in told.stderr
    told = CliRunner().invoke(app, [command, path, "--report", str(report / "r")])
    assert told.exit_code == 1
    assert f"--report: {report / 'r'}: Not a directory" in told.stderr


def test_scenarios_of_one_name_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [written(directory) for directory in (tmp_path, tmp_path / "other")]
    told = CliRunner().invoke(app, ["compare", *files])
    assert (told.exit_code, told.stdout) == (2, "")
    assert "two scenarios are called scenario" in told.stderr


def test_strategies_are_compared_and_reported(tmp_path: Path) -> None:
    arguments = ["compare", written(tmp_path), "--json", "--jobs", "1"]
    told = CliRunner().invoke(app, [*arguments, "--report", str(tmp_path / "report")])
    assert told.exit_code == 0
    full, none = json.loads(told.stdout)
    assert full["throughput_ratio"]["mean"] == none["throughput_ratio"]["mean"] == 1.0
    assert (tmp_path / "report" / "index.html").is_file()
