"""`shunt plan` prints what scripts rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from services.placement.cli import app

PAPER = """
instances:
  - {type: g5.12xlarge, count: 2, price_per_hour: 2.29}
  - {type: g6.12xlarge, count: 3, price_per_hour: 1.94}
  - {type: g6e.xlarge, count: 4, price_per_hour: 0.70}
"""
PIPELINE = "g6.12xlarge:20,g6.12xlarge:21,g6.12xlarge:21,g6e.xlarge:10,g6e.xlarge:8"
PIPELINE_KEYS = {
    "kv_blocks",
    "max_batch",
    "batch_latency_s",
    "single_request_latency_s",
    "throughput_rps",
    "cost_per_hour",
    "stages",
}
STAGE_KEYS = {"instance_type", "layers", "tp", "prefill_s", "decode_s", "bound_by"}


@pytest.fixture
def paper(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(PAPER)
    return path


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def test_estimate_prints_the_published_pipeline():
    tokens = ("--input-tokens", 763, "--output-tokens", 232)
    result = run(
        "estimate", "--model", "llama-3.1-70b", "--pipeline", PIPELINE, *tokens,
        "--calibration", "nominal", "--json",
    )  # fmt: skip
    data = json.loads(result.stdout)
    assert set(data) >= PIPELINE_KEYS
    assert (data["kv_blocks"], data["max_batch"]) == (28730, 461)
    assert all(set(stage) >= STAGE_KEYS for stage in data["stages"])
    assert [stage["tp"] for stage in data["stages"]] == [4, 4, 4, 1, 1]


def test_estimate_is_a_table_without_json_and_explains_itself():
    said = run("estimate", "--model", "llama-3.1-70b", "--pipeline", PIPELINE, "--explain").stdout
    assert "gate_up" in said
    assert "one layer more" in said


def test_solve_prints_pipelines_and_the_sum(paper, tmp_path):
    picture = tmp_path / "plan.png"
    result = run(
        "solve", "--cluster", paper, "--model", "llama-3.1-70b", "--input-tokens", 763,
        "--output-tokens", 232, "--planner", "shuntserve", "--objective", "throughput",
        "--calibration", "nominal", "--plot", picture, "--json",
    )  # fmt: skip
    data = json.loads(result.stdout)
    assert data["planner"] == "shuntserve"
    assert data["upper_bound_rps"] is None
    assert data["throughput_rps"] >= 7.3
    assert data["cost_per_hour"] == pytest.approx(13.2)
    assert data["solve_time_s"] > 0
    assert all(set(p) >= PIPELINE_KEYS for p in data["pipelines"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_exact_prints_its_bound(paper):
    arguments = ("solve", "--cluster", paper, "--model", "qwen3-32b", "--planner", "exact")
    data = json.loads(run(*arguments, "--json").stdout)
    assert data["upper_bound_rps"] == pytest.approx(data["throughput_rps"], rel=1e-6)


def test_layer_prints_times_that_rise_with_tokens():
    for phase in ("prefill", "decode"):
        data = json.loads(
            run(
                "layer",
                "--model",
                "llama-3.1-70b",
                "--gpu",
                "l4",
                "--tp",
                2,
                "--phase",
                phase,
                "--tokens",
                "250,500,1000",
                "--context",
                1024,
                "--calibration",
                "measured",
                "--json",
            ).stdout
        )
        assert [row["tokens"] for row in data] == [250, 500, 1000]
        times = [row["time_ms"] for row in data]
        assert times == sorted(times)
        assert times[0] > 0


def test_compare_prints_every_ratio_and_the_published_one(paper):
    arguments = ("compare", "--cluster", paper, "--planners", "alpaserve,vllm,proportional")
    data = json.loads(run(*arguments, "--calibration", "nominal", "--json").stdout)
    assert [one["model"] for one in data] == ["llama-3.1-70b", "qwen3-32b"]
    assert [one["published_ratio"] for one in data] == [1.42, 1.35]
    for one in data:
        assert all(row["ratio"] >= 1 - 1e-9 for row in one["planners"])
    assert "alpaserve" in run(*arguments, "--calibration", "nominal").stdout


def test_what_if_prints_the_moves(paper):
    arguments = ("what-if", "--model", "llama-3.1-70b", "--cluster", paper, "--generations", 10)
    data = json.loads(run(*arguments, "--lose", "g6e.xlarge:1", "--json").stdout)
    assert data["throughput_rps"] < data["throughput_before_rps"]
    assert data["node_moves"]
    assert data["generation_moves"][0]["handover"] == "replay"
    more = json.loads(run(*arguments, "--gain", "g6.12xlarge:1", "--json").stdout)
    assert more["throughput_rps"] >= more["throughput_before_rps"]
    run(*arguments, "--lose", "g6e.xlarge:9", code=1)


def test_calibrate_writes_a_calibration_that_fits_better(tmp_path):
    source, out = tmp_path / "mine.csv", tmp_path / "mine.yaml"
    lines = ["gpu,tp,phase,tokens,context,time_ms"]
    lines += [f"l4,1,prefill,{n},,{n * 0.05}" for n in (1000, 2000, 4000)]
    lines += [f"l4,1,decode,{n},1024,{9 + n * 0.02}" for n in (1, 8, 32)]
    source.write_text("\n".join(lines))
    arguments = ("calibrate", source, "--model", "llama-3.1-70b", "--out", out, "--json")
    rows = json.loads(run(*arguments).stdout)
    assert {row["phase"] for row in rows} == {"prefill", "decode"}
    assert all(row["mape"] < 0.1 for row in rows)
    layer = ("layer", "--model", "llama-3.1-70b", "--gpu", "l4", "--phase", "prefill")
    data = json.loads(run(*layer, "--tokens", "2000", "--calibration", out, "--json").stdout)
    assert data[0]["time_ms"] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("instances: []", "zero GPUs"),
        ("instances: [{type: g9.huge}]", "g9.huge"),
        ("instances: [{type: g6.xlarge, count: -1}]", "count"),
        ("instances: [{type: g6.xlarge, count: 1000000}]", "count"),
        ("instances: [{type: g6.xlarge, count: 3, price_per_hour: .nan}]", "price_per_hour"),
        ("nodes: []", "instances"),
        ("&a [*a]", "cluster.yaml"),
        ("[", "YAML"),
    ],
)
def test_a_bad_cluster_is_refused_with_its_place(tmp_path, text, said):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    result = run("solve", "--cluster", path, "--model", "qwen3-32b", code=2)
    assert said in result.stderr


def test_other_bad_input_exits_2(paper, tmp_path):
    solve = ("solve", "--cluster", paper, "--model")
    run(*solve, "no-such-model", code=2)
    run(*solve, "qwen3-32b", "--planner", "best", code=2)
    run(*solve, "qwen3-32b", "--input-tokens", 0, code=2)
    run(*solve, "qwen3-32b", "--calibration", "guessed", code=2)
    run("solve", "--cluster", tmp_path / "none.yaml", "--model", "qwen3-32b", code=2)
    run("estimate", "--model", "qwen3-32b", "--pipeline", "g6.12xlarge", code=2)
    run(
        "layer", "--model", "qwen3-32b", "--gpu", "l4", "--phase", "decode", "--tokens", "0", code=2
    )
    few = tmp_path / "few.yaml"
    few.write_text("instances: [{type: g6.xlarge}]")
    result = run("solve", "--cluster", few, "--model", "llama-3.1-70b", code=1)
    assert "GiB short" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("calibrate", "nowhere.csv", "--model", "llama-3.1-8b", "--out", "x.yaml"),
        ("calibrate", "binary", "--model", "llama-3.1-8b", "--out", "x.yaml"),
        ("calibrate", "fine.csv", "--model", "llama-3.1-8b", "--out", "nowhere/x.yaml"),
        ("solve", "--cluster", "cluster.yaml", "--model", "binary"),
        ("solve", "--cluster", "cluster.yaml", "--model", "n" * 5000),
        ("solve", "--cluster", "cluster.yaml", "--model", "qwen3-32b", "--plot", "nowhere/x.png"),
        ("solve", "--cluster", "cluster.yaml", "--model", "qwen3-32b", "--catalogue", "nowhere"),
    ],
)
def test_a_file_that_cannot_be_read_or_written_is_named(
    paper, tmp_path, monkeypatch: pytest.MonkeyPatch, arguments
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    rows = "gpu,tp,phase,tokens,context,time_ms\nl4,1,decode,1,1024,5.0\n"
    (tmp_path / "fine.csv").write_text(rows)
    assert "error: " in run(*arguments, code=2).stderr


@pytest.mark.parametrize("command", [("solve", "--model", "qwen3-32b"), ("compare",)])
@pytest.mark.parametrize("picture", ["x.gif", "nowhere/x.png"])
def test_a_picture_that_cannot_be_written_is_told_before_a_plan_is_made(
    paper, monkeypatch: pytest.MonkeyPatch, command, picture
):
    def never(*_):
        raise AssertionError("it was planned")

    monkeypatch.setattr("services.placement.cli.planner", never)
    result = run(*command, "--cluster", paper, "--plot", picture, code=2)
    assert "error: --plot: " in result.stderr


def test_an_unknown_planner_is_refused_before_anything_is_compared(paper):
    result = run("compare", "--cluster", paper, "--planners", "vllm,best", code=2)
    assert "unknown planner 'best'" in result.stderr


ESTIMATE = ("estimate", "--model", "qwen3-32b", "--pipeline")
LAYER = ("layer", "--model", "qwen3-32b", "--phase", "decode", "--gpu")
WHAT_IF = ("what-if", "--model", "qwen3-32b", "--cluster", "CLUSTER")
SOLVE = ("solve", "--model", "qwen3-32b", "--cluster", "CLUSTER")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*SOLVE, "--budget", -1), "--budget must be from 0 to 1e9"),
        ((*SOLVE, "--rate", -1), "--rate must be from 0 to 1e9"),
        ((*SOLVE, "--ttft", -1), "--ttft must be from 0 to 1e9"),
        ((*SOLVE, "--tpot", "nan"), "--tpot must be from 0 to 1e9"),
        ((*SOLVE, "--on-demand-share", 2), "--on-demand-share must be from 0 to 1"),
        ((*SOLVE, "--recovery-s", -1), "--recovery-s must be from 0 to 1e9"),
        ((*SOLVE, "--output-tokens", 0), "--output-tokens must be from 1 to 16777216"),
        ((*SOLVE, "--planner", "x"), "--planner: unknown planner 'x'; known: "),
        ((*SOLVE, "--planner", "exact", "--ttft", 1), "takes no account of --ttft: leave it out"),
        ((*SOLVE, "--calibration", "guessed"), "--calibration: the calibration is nominal, "),
        (("compare", "--cluster", "CLUSTER", "--planners", "x"), "--planners: unknown planner 'x'"),
        (("compare", "--cluster", "CLUSTER", "--model", "x"), "--model: no model 'x'; "),
        ((*ESTIMATE, "g6.xlarge:3"), "--pipeline: the stages hold 3 layers, the model has 64"),
        ((*ESTIMATE, "g6.xlarge:64:4"), "--pipeline: stage 0: TP 4 does not suit 1 x l4"),
        ((*ESTIMATE, "g9.huge:64"), "--pipeline: unknown instance type 'g9.huge'; known: "),
        ((*LAYER, "l9", "--tokens", 1), "--gpu: unknown device type 'l9'; known: "),
        ((*LAYER, "l4", "--tokens", "x"), "--tokens are integers from 1 to 16777216"),
        ((*WHAT_IF, "--lose", "a:b"), "--lose: 'a:b' is not type[:count]"),
        ((*WHAT_IF, "--gain", "g9.huge"), "--gain: unknown instance type 'g9.huge'"),
        ((*WHAT_IF, "--horizon-s", -1), "--horizon-s must be from 1 to 1e+08"),
    ],
)
def test_an_error_names_the_option_that_was_given(paper, arguments, said):
    given = [paper if one == "CLUSTER" else one for one in arguments]
    told = run(*given, code=2).stderr
    assert told.startswith("error: --")
    assert said in told


def test_an_error_of_a_file_names_its_place_and_what_does_not_fit_the_cluster(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("instances: [{type: g9.huge}]")
    told = run("solve", "--cluster", path, "--model", "qwen3-32b", code=2).stderr
    assert "--cluster: instances.0.type: unknown instance type 'g9.huge'" in told
    path.write_text("instances: [{type: g6.xlarge}]")
    told = run("solve", "--cluster", path, "--model", "llama-3.1-70b", code=1).stderr
    assert told.startswith("error: --cluster: llama-3.1-70b does not fit: ")
