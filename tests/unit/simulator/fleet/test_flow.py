"""Requests as a flow come to what the same requests come to one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.placement.estimate.cluster import PlacedStage, Workload
from services.placement.estimate.estimator import stage_costs
from services.placement.estimate.step_times import StepTimes
from simulator.fleet.flow import Flow, Lengths, Rate
from simulator.fleet.meter import NotConserved
from simulator.fleet.result import Outcome, weighted
from simulator.fleet.run import FleetRun
from simulator.fleet.scenario import read_scenario
from simulator.fleet.steady import Steady
from tests.unit.simulator.fleet.conftest import SCENARIO

Write = Callable[..., Path]
LENGTHS = Lengths(400, 150)


@pytest.fixture
def steady(write: Write) -> Steady:
    """8B on one L40S."""
    scenario = read_scenario(write())
    (offer, _), *_ = scenario.initial
    stage = PlacedStage(scenario.node("n", offer), 0, 32, 1)
    times = StepTimes(stage_costs(scenario.costs, (stage,)), [32], scenario.costs.engine)
    return Steady(times, Workload(LENGTHS.input, LENGTHS.output))


def flow(*rates: tuple[float, float], migration: bool = True, places: float = 1e6) -> Flow:
    return Flow([Rate(*one) for one in rates], LENGTHS, migration, places, 1.0)


def books(one: Flow) -> float:
    return one.finished + one.refused + one.waiting + one.running


def test_more_load_makes_cycles_longer_and_batches_larger(steady: Steady) -> None:
    loads = [step / 10 for step in range(11)]
    for values in ([steady.cycle_s(load) for load in loads], list(map(steady.sequences, loads))):
        assert values == sorted(values)
        assert values[-1] > 1.5 * values[1]
    assert 0 < steady.reading < 1
    assert [steady.load(steady.sequences(load)) for load in loads] == pytest.approx(loads)


def test_what_comes_slower_than_is_served_never_waits(steady: Steady) -> None:
    one = flow((0.0, 0.5 * steady.capacity_rps))
    one.serve_by([steady], 0.0)
    one.pass_to(100.0)
    assert one.arrived == pytest.approx(50 * steady.capacity_rps)
    assert books(one) == pytest.approx(one.arrived)
    assert one.waiting == pytest.approx(0.0, abs=1e-6)
    assert {round(done.first_s - done.arrival_s, 3) for done in one.done[5:]} == {
        round(1.5 * steady.cycle_s(0.5), 3)
    }


def test_what_comes_faster_waits_ever_longer_until_less_comes(steady: Steady) -> None:
    one = flow((0.0, 2 * steady.capacity_rps), (50.0, 0.0))
    one.serve_by([steady], 0.0)
    one.pass_to(50.0)
    assert one.waiting == pytest.approx(50 * steady.capacity_rps, rel=0.01)
    one.pass_to(300.0)
    assert one.finished == pytest.approx(one.arrived)
    waits = [done.first_s - done.arrival_s for done in one.done]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(50.0, rel=0.1)


def test_two_pipelines_serve_twice_as_much_and_none_serves_nothing(steady: Steady) -> None:
    served = []
    for count in (0, 1, 2):
        one = flow((0.0, 5 * steady.capacity_rps))
        one.serve_by([steady] * count, 0.0)
        one.pass_to(200.0)
        served.append(one.finished)
    assert served[0] == 0
    assert served[2] == pytest.approx(2 * served[1])


def test_of_a_pipeline_that_ends_its_share_goes_on_or_begins_again(steady: Steady) -> None:
    gaps = {}
    for migration in (True, False):
        one = flow((0.0, steady.capacity_rps), migration=migration)
        one.serve_by([steady, steady], 0.0)
        one.pass_to(60.0)
        running = one.running
        one.ended(steady, 2, 60.0)
        one.serve_by([steady], 60.0)
        assert one.moves == pytest.approx(running / 2, rel=0.1)
        assert (one.lost > 0) != migration
        assert books(one) == pytest.approx(one.arrived)
        one.pass_to(600.0)
        assert books(one) == pytest.approx(one.arrived)
        assert sum(moved.requests for moved in one.moved) == pytest.approx(one.moves)
        gaps[migration] = weighted([(moved.gap_s, moved.requests) for moved in one.moved])["mean"]
    assert 0 < 2 * gaps[True] < gaps[False] < LENGTHS.output * steady.cycle_s(1.0)


def test_whoever_finds_no_place_is_refused(steady: Steady) -> None:
    one = flow((0.0, 10.0), places=50)
    one.pass_to(20.0)
    assert (one.waiting, one.refused) == (pytest.approx(50), pytest.approx(150))


def as_both(write: Write, rps: float, strategy: str = "full", **fields: Any) -> tuple[Outcome, ...]:
    """The same load one by one, and as a flow."""
    lengths = {"input_mean": LENGTHS.input, "output_mean": LENGTHS.output}
    drawn = {"requests": 100_000, "rate_rps": rps, "input_cv": 0, "output_cv": 0}
    loads = (
        {"generator": drawn | lengths},
        {"flow": {"rates": [{"at_s": 0, "rps": rps}]} | lengths},
    )
    return tuple(
        FleetRun(read_scenario(write(workload=load, **fields)), strategy, 0).outcome()
        for load in loads
    )


@pytest.mark.parametrize("rps", [4.0, 20.0])
def test_a_flow_comes_to_what_the_same_requests_come_to_one_by_one(
    write: Write, rps: float
) -> None:
    singly, flowing = as_both(write, rps)
    assert flowing.counts.finished == pytest.approx(singly.counts.finished, rel=0.05)
    assert flowing.cost == pytest.approx(singly.cost, rel=0.02)
    for name in ("tpot_s", "e2e_s"):
        one, other = getattr(singly, name)["mean"], getattr(flowing, name)["mean"]
        assert other == pytest.approx(one, rel=0.1), name
    assert flowing.tokens_out == pytest.approx(singly.tokens_out, rel=0.05)
    assert len(flowing.interruptions) == len(singly.interruptions) == 2
    assert all(one.moves > 0 for one in flowing.interruptions)


def test_too_much_waits_as_long_as_one_by_one(write: Write) -> None:
    market = {
        "offers": [{"id": "firm", "instance_type": "g6e.xlarge", "count": 1, "price_per_hour": 1.8}]
    }
    singly, flowing = as_both(
        lambda **fields: write(market, **fields), 60.0, horizon_s=300, replans=False
    )
    assert singly.preempted, "a flow has no such thing, and serves more by that"
    assert flowing.counts.finished == pytest.approx(singly.counts.finished, rel=0.15)
    assert flowing.ttft_s["p50"] == pytest.approx(singly.ttft_s["p50"], rel=0.15)


def test_the_same_flow_gives_the_same_bytes_and_its_books_are_checked(write: Write) -> None:
    load = {"flow": {"rates": [{"at_s": 0, "rps": 4}], "input_mean": 400, "output_mean": 150}}
    path = write(workload=load, horizon_s=100)
    one, again = (FleetRun(read_scenario(path), "full", 0).outcome().as_json() for _ in range(2))
    assert one == again
    run = FleetRun(read_scenario(path), "full", 0)
    front: Any = run._front
    front._flow.arrived += 10
    with pytest.raises(NotConserved, match="requests came"):
        run.outcome()


@pytest.mark.parametrize(("arrived", "finished", "refused"), [(10.4, 9.5, 0.9), (3.5, 2.5, 1.0)])
def test_no_more_requests_are_over_than_came_however_they_are_rounded(
    write: Write, arrived: float, finished: float, refused: float
) -> None:
    load = {"flow": {"rates": [{"at_s": 0, "rps": 4}], "input_mean": 400, "output_mean": 150}}
    front: Any = FleetRun(read_scenario(write(workload=load)), "full", 0)._front
    flow: Flow = front._flow
    flow.arrived, flow.finished, flow.refused = arrived, finished, refused
    counts = front.counts
    assert counts.arrived - counts.finished - counts.refused == 0
    assert abs(counts.finished - finished) <= 1
    assert abs(counts.refused - refused) <= 1


@pytest.mark.parametrize(
    ("flow", "field"),
    [
        ({"rates": [{"at_s": 5, "rps": 1}, {"at_s": 4, "rps": 1}]}, "workload.flow.rates"),
        ({"rates": [{"at_s": 0, "rps": 0}]}, "workload.flow.rates"),
        ({"rates": []}, "workload.flow.rates"),
        ({"rates": [{"at_s": 0, "rps": -1}]}, "workload.flow.rates.0.rps"),
    ],
)
def test_a_mistake_of_a_flow_is_told_with_its_field(
    write: Write, flow: dict[str, Any], field: str
) -> None:
    load = {"flow": {**flow, "input_mean": 4, "output_mean": 4}}
    with pytest.raises(InvalidArgument) as told:
        read_scenario(write(workload=load))
    assert told.value.field == field


def test_a_flow_is_no_trace_and_takes_no_concurrency(write: Write) -> None:
    flow = {"rates": [{"at_s": 0, "rps": 1}], "input_mean": 4, "output_mean": 4}
    for other in ({"generator": SCENARIO["workload"]["generator"]}, {"concurrency": 4}):
        with pytest.raises(InvalidArgument, match="workload: "):
            read_scenario(write(workload={"flow": flow, **other}))
