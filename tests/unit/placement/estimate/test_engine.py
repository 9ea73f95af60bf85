"""What engines take beside the devices: plans promise what a served load gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bench.placement_clusters import PAPER, PAPER_PRICES, cluster
from services.common.errors import InvalidArgument
from services.placement.command.clusterfile import parse_pipeline
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import DATA, load_catalogue
from services.placement.estimate.cluster import PlacedPipeline, Workload
from services.placement.estimate.costs import Costs
from services.placement.estimate.engine import EngineProfile, read_profile
from services.placement.estimate.estimator import estimate_pipeline, stage_costs, stage_times
from services.placement.estimate.model import load_model
from services.placement.estimate.step_times import StepTimes
from services.placement.search.budget import UNLIMITED
from services.placement.search.planners import proportional, shuntserve
from services.placement.search.problem import Objective, Problem
from services.placement.search.score import score

PUBLISHED = (
    "g6.12xlarge:14,g6.12xlarge:14,g6e.xlarge:13,g6e.xlarge:13,g6e.xlarge:13,g6e.xlarge:13",
    "g5.12xlarge:26,g5.12xlarge:26,g6.12xlarge:28",
)
"""Pipelines that served 1.321 requests a second together (FGCS 186, 108760)."""
FITTED = EngineProfile(step_overhead_s=0.0128, prefill_scale=0.89, token_budget=8192)


def costs(engine: EngineProfile | None) -> Costs:
    calibration = load_calibration("measured").model_copy(update={"engine": engine})
    workload = Workload(833, 277)
    return Costs(load_model("llama-3.1-70b"), workload, calibration, load_catalogue())


def pipeline(text: str) -> PlacedPipeline:
    return parse_pipeline(text, load_catalogue())


def promised(engine: EngineProfile | None) -> float:
    made = costs(engine)
    return sum(estimate_pipeline(made, pipeline(text)).throughput_rps for text in PUBLISHED)


def test_with_an_engine_a_plan_promises_what_a_served_trace_gets() -> None:
    assert promised(FITTED) == pytest.approx(1.321, rel=0.2)
    assert promised(None) > 1.8 * 1.321


def test_a_calibration_with_lines_of_a_recording_is_refused(tmp_path: Path) -> None:
    document = load_calibration("measured").model_dump(mode="json")
    path = tmp_path / "mine.yaml"
    for stages, refused in (({}, False), ({"node:0-16": {"step_s": 0.01}}, True)):
        document["engine"] = {"name": "mine", "stages": stages}
        path.write_text(yaml.safe_dump(document))
        load_calibration.cache_clear()
        if refused:
            with pytest.raises(InvalidArgument, match=r"mine.yaml: engine: .*stages: .*replay"):
                load_calibration(str(path))
        else:
            assert load_calibration(str(path)).engine is not None


@pytest.mark.parametrize(
    "slower",
    [{"step_overhead_s": 0.1}, {"decode_scale": 2.0}, {"prefill_scale": 2.0}, {"hop_s": 0.1}],
)
def test_whatever_an_engine_takes_makes_a_plan_promise_less(slower: dict[str, float]) -> None:
    assert promised(EngineProfile(**slower)) < 0.95 * promised(EngineProfile())


def test_an_overhead_is_paid_by_each_stage_and_step() -> None:
    plain, slow = costs(None), costs(EngineProfile(step_overhead_s=0.1))
    stages = pipeline(PUBLISHED[1]).stages
    for one, other in zip(
        stage_times(stage_costs(plain, stages), [26, 26, 28], 8.0).decode_s,
        stage_times(stage_costs(slow, stages), [26, 26, 28], 8.0).decode_s,
        strict=True,
    ):
        assert other - one == pytest.approx(0.1)


def test_prompts_slow_a_cycle_by_their_way_through_all_stages() -> None:
    made = costs(FITTED)
    stages = pipeline(PUBLISHED[0]).stages
    times = StepTimes(stage_costs(made, stages), [14, 14, 13, 13, 13, 13], FITTED)
    none, one = times.cycle_s(240, 900, 0, 0), times.cycle_s(240, 900, 832, 1)
    full = times.cycle_s(240, 900, 6 * 8192, 60)
    assert one > 2 * none
    assert (full - none) / 59 < 0.6 * (one - none)


def test_a_calibration_file_has_an_engine_section_and_a_profile_file_is_one(tmp_path: Path) -> None:
    section = {"name": "mine", "step_overhead_s": 0.01, "token_budget": 256}
    file = tmp_path / "mine.yaml"
    document = yaml.safe_load((DATA / "measured.yaml").read_text())
    file.write_text(yaml.safe_dump(document | {"engine": section}))
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(section))
    assert load_calibration(str(file)).engine == read_profile(tmp_path / "profile.yaml")
    file.write_text(yaml.safe_dump(document | {"engine": section | {"hop_s": -1}}))
    load_calibration.cache_clear()
    with pytest.raises(InvalidArgument, match=r"mine\.yaml: engine\.hop_s"):
        load_calibration(str(file))


def test_a_search_that_knows_the_engine_finds_short_pipelines_where_they_serve_more() -> None:
    nodes = cluster(PAPER, PAPER_PRICES)
    calibration = load_calibration("measured").model_copy(update={"engine": FITTED})
    model, catalogue = load_model("qwen3-32b"), load_catalogue()
    problem = Problem(Costs(model, Workload(), calibration, catalogue), nodes, Objective())
    ours, plain = (planner(problem, UNLIMITED) for planner in (shuntserve.plan, proportional.plan))
    assert score(problem, ours.pipelines) >= score(problem, plain.pipelines)
    bare = replace(problem, costs=Costs(model, Workload(), load_calibration("measured"), catalogue))
    without = shuntserve.plan(bare, UNLIMITED)
    assert score(problem, ours.pipelines) > 1.05 * score(problem, without.pipelines)
