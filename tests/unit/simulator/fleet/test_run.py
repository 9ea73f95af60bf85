from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.controller.core.strategy import STRATEGIES
from simulator.fleet.meter import NotConserved
from simulator.fleet.result import Outcome
from simulator.fleet.run import Controlled, FleetRun
from simulator.fleet.scenario import read_scenario
from tests.unit.simulator.fleet.conftest import MARKET

Write = Callable[..., Path]


def played(path: Path, strategy: str = "full", seed: int = 0) -> Outcome:
    return FleetRun(read_scenario(path), strategy, seed).outcome()


def test_what_is_asked_is_answered_and_paid_for(write: Write) -> None:
    outcome = played(write())
    requests = outcome.as_json()["requests"]
    assert requests["arrived"] == 100
    assert requests["finished"] + requests["running"] == 100
    assert requests["finished"] > 90
    assert outcome.cost == pytest.approx(sum(outcome.cost_by_offer.values()), rel=0.2)
    assert 0 < outcome.cost < outcome.on_demand_cost


def test_the_same_seed_gives_the_same_bytes(write: Write) -> None:
    path = write()
    one, again, other = (json.dumps(played(path, seed=seed).as_json()) for seed in (3, 3, 4))
    assert one == again
    assert one != other


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_its_books_through_kills_and_notices(
    write: Write, strategy: str
) -> None:
    outcome = played(write(), strategy)
    assert [one.nodes for one in outcome.interruptions] == [1, 1]
    assert outcome.counts.finished > 60


def test_migration_samples_nothing_twice_and_starting_over_does(write: Write) -> None:
    full, none = played(write(), "full"), played(write(), "none")
    assert full.counts.moves > 0
    assert full.counts.lost == 0
    assert none.counts.lost > 0


def test_what_is_taken_without_notice_leaves_a_gap_and_is_told(write: Write) -> None:
    killed = played(write()).interruptions[0]
    assert killed.notice_s == 0
    assert killed.moves > 0
    assert 0 < killed.gap_p50_s <= killed.gap_max_s


def test_no_more_are_followed_than_there_are_places(write: Write) -> None:
    generator = {"requests": 200, "rate_rps": 200.0, "input_mean": 400, "output_mean": 150}
    outcome = played(write(workload={"generator": generator, "places": 20}))
    assert outcome.counts.refused > 100
    assert outcome.slo_attainment < 0.5


def test_a_request_that_no_pipeline_could_hold_fails_and_is_counted(write: Write) -> None:
    path = write(workload={"trace": "trace.csv"}, horizon_s=60)
    (path.parent / "trace.csv").write_text(
        "arrival_s,input,output\n1,1000000,5\n2,100,5\n3,9,1000000\n"
    )
    outcome = played(path)
    assert outcome.counts.finished == 1
    assert outcome.counts.failed == 2


def test_as_many_are_under_way_as_the_concurrency_says(write: Write) -> None:
    generator = {"requests": 100, "rate_rps": 1.0, "input_mean": 400, "output_mean": 150}
    outcome = played(write(workload={"generator": generator, "concurrency": 7}))
    assert {sample.running + sample.waiting for sample in outcome.samples[1:20]} <= set(range(8))
    assert max(sample.running for sample in outcome.samples) == 7


def test_tolerant_work_goes_to_the_pipeline_that_comes_and_other_work_lies_where_it_went(
    write: Write,
) -> None:
    generator = {"requests": 600, "rate_rps": 600.0, "input_mean": 4000, "output_mean": 150}
    market = {
        "offers": [
            {
                "id": "spot",
                "instance_type": "g6e.xlarge",
                "spot": True,
                "count": 2,
                "price_per_hour": 0.7,
                "launch_s": 10,
            }
        ],
        "events": [{"at_s": 20, "offer": "spot", "take": 1, "notice_s": 0}],
    }
    ttft = {}
    for tolerant in (False, True):
        workload = {"generator": generator, "tolerant": tolerant}
        ttft[tolerant] = played(write(market, workload=workload, replans=False)).ttft_s["mean"]
    assert ttft[True] < ttft[False]


def test_without_replans_the_first_plan_stays_and_who_goes_is_followed(write: Write) -> None:
    outcome = played(write(replans=False))
    assert [one.kind for one in outcome.happened].count("plan_chosen") == 0
    assert [one.nodes for one in outcome.interruptions] == [1, 1]
    assert outcome.samples[-1].pipelines == outcome.samples[0].pipelines


def test_books_that_do_not_balance_are_no_result(write: Write) -> None:
    run = FleetRun(read_scenario(write()), "full", 0)
    run._front.counts.arrived += 1
    with pytest.raises(NotConserved, match="requests"):
        run.outcome()


def test_time_that_nobody_pays_for_is_no_result(write: Write) -> None:
    run = FleetRun(read_scenario(write()), "full", 0)
    run._meter.node_seconds += 1.0
    with pytest.raises(NotConserved, match="node seconds"):
        run.outcome()


def test_a_model_that_does_not_fit_is_told(write: Write) -> None:
    scenario = read_scenario(write(model="llama-3.1-70b"))
    with pytest.raises(TimeoutError, match="nothing serves"):
        FleetRun(scenario, "full", 0).outcome()


def test_the_first_plan_is_the_scenarios_where_it_says_one(write: Write) -> None:
    stages = [{"offer": "spot", "layers": 12, "tp": 1}, {"offer": "spot", "layers": 20, "tp": 1}]
    path = write(first_plan=[stages], horizon_s=20, nodes={"spot": 2})
    run = FleetRun(read_scenario(path), "full", 0)
    assert isinstance(run._service, Controlled)
    cluster = run._service.cluster
    assert run._clock.run(600.0, lambda: cluster.plan is not None)
    plan = cluster.plan
    assert plan is not None
    assert [(stage.layers.start, stage.layers.end) for stage in plan.stages()] == [
        (0, 12),
        (12, 32),
    ]


ONE = [{"offer": "spot", "layers": 32, "tp": 1}]
QUIET: dict[str, Any] = {
    "offers": [
        {
            "id": name,
            "instance_type": f"{name}.xlarge",
            "count": count,
            "price_per_hour": 1.0,
            "launch_s": 10,
        }
        for name, count in (("g6e", 1), ("g5", 2), ("g6", 1))
    ]
}


def test_where_pipelines_have_phases_each_generation_is_handed_on_once(write: Write) -> None:
    """Its tokens behind the first come from who decodes, and what it costs is paid for."""
    phases = ["prefill", "decode"]
    first = [ONE, ONE, [{"offer": "firm", "layers": 32, "tp": 1}]]
    run = FleetRun(read_scenario(write(first_plan=first, phases=phases, replans=False)), "full", 0)
    outcome = run.outcome()
    assert outcome.counts.finished > 60
    assert outcome.counts.failed == outcome.counts.lost == 0
    quiet = {"offers": MARKET["offers"]}
    path = write(quiet, first_plan=[ONE, ONE], phases=phases, nodes={"spot": 2}, replans=False)
    run = FleetRun(read_scenario(path), "full", 0)
    outcome = run.outcome()
    sampled = sorted(node.sampled for node in run._nodes)
    assert outcome.counts.moves == 0
    assert sampled[0] == pytest.approx(outcome.counts.arrived, abs=3), "one token of each"
    assert sampled[1] > 50 * sampled[0]


def test_phases_follow_the_workload_where_weights_stay_and_nothing_loads(write: Write) -> None:
    plan = [[{"offer": name, "layers": 32, "tp": 1}] for name in ("g6e", "g5", "g5", "g6")]
    workload = {
        "generator": {"requests": 600, "rate_rps": 4, "input_mean": 1000, "output_mean": 200}
    }
    objective = {"ttft_s": 2.0, "tpot_s": 0.065, "planned": True}
    path = write(QUIET, first_plan=plan, workload=workload, objective=objective, horizon_s=120)
    run = FleetRun(read_scenario(path), "thunderserve", 0)
    outcome = run.outcome()
    chosen = [one.attributes["reason"] for one in outcome.happened if one.kind == "plan_chosen"]
    assert chosen
    assert all("in another phase, 0 are new, 0 end; 0.00 GB" in reason for reason in chosen)
    assert outcome.counts.moves == 0, "what was begun goes on where it is"
    assert [one.kind for one in outcome.happened].count("pipeline_ready") == len(plan)


def test_a_flow_has_no_phases(write: Write) -> None:
    workload = {"flow": {"rates": [{"at_s": 0, "rps": 1.0}], "input_mean": 400, "output_mean": 50}}
    with pytest.raises(InvalidArgument, match="phases: a flow has none"):
        read_scenario(write(workload=workload, phases=["prefill", "decode"]))
    with pytest.raises(InvalidArgument, match=r"strategies\.1: thunderserve changes phases"):
        read_scenario(write(workload=workload, strategies=["full", "thunderserve"]))
