from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import InvalidArgument, NotFound
from simulator.fleet.scenario import line_of, read_scenario
from tests.unit.simulator.fleet.conftest import MARKET, SCENARIO

Write = Callable[..., Path]


def test_a_scenario_names_its_nodes_by_the_market(write: Write) -> None:
    scenario = read_scenario(write())
    assert {offer.offer_id: count for offer, count in scenario.initial} == {"firm": 1, "spot": 2}
    assert scenario.offers[0].shape.device_type == "l40s"
    assert len(scenario.requests(1)) == 100


def test_no_request_is_drawn_behind_the_horizon(write: Write) -> None:
    generator = {**SCENARIO["workload"]["generator"], "requests": 10_000}
    requests = read_scenario(write(workload={"generator": generator})).requests(1)
    assert 150 < len(requests) < 250
    assert requests[-1].arrival_s <= SCENARIO["horizon_s"]
    under_way = read_scenario(write(workload={"generator": generator, "concurrency": 5}))
    assert len(under_way.requests(1)) == 10_000
    assert under_way.requests(1)[: len(requests)] == requests


def test_a_cluster_file_is_a_market_where_nothing_happens(write: Write, tmp_path: Path) -> None:
    cluster = "instances:\n  - {type: g6e.xlarge, count: 2, price_per_hour: 0.7}\n"
    (tmp_path / "cluster.yaml").write_text(cluster)
    path = write()
    text = path.read_text().replace("market: market.yaml", "cluster: cluster.yaml")
    path.write_text(text)
    scenario = read_scenario(path)
    assert [(offer.price_per_hour, count) for offer, count in scenario.initial] == [(0.7, 2)]
    assert scenario.events == ()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"horizon_s": -1}, "horizon_s"),
        ({"model": "nobody-70b"}, "model"),
        ({"strategies": ["full", "hope"]}, "strategies.1"),
        ({"nodes": {"spot": 3}}, "nodes.spot"),
        ({"nodes": {"moon": 1}}, "nodes.moon"),
        ({"market": "nowhere.yaml"}, "market"),
        ({"engine_profile": "nowhere.yaml"}, "engine_profile"),
        ({"workload": {"trace": "nowhere.csv"}}, "workload.trace"),
        ({"workload": {**SCENARIO["workload"], "limit": 10**9}}, "workload.limit"),
        (
            {
                "workload": {
                    "generator": {
                        **SCENARIO["workload"]["generator"],
                        "requests": 10**9,
                    }
                }
            },
            "workload.generator.requests",
        ),
        ({"seeds": []}, "seeds"),
        ({"colour": "green"}, "colour"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_field(
    write: Write, fields: dict[str, Any], field: str
) -> None:
    path = write()
    path = write(**fields) if "market" not in fields else _with_market(path, fields["market"])
    with pytest.raises(InvalidArgument) as told:
        read_scenario(path)
    line = line_of(path, field)
    assert told.value.message.startswith(f"scenario.yaml:{line}: {field}: ")
    assert (
        path.read_text()
        .splitlines()[line - 1]
        .strip()
        .lstrip("- ")
        .startswith("hope" if field == "strategies.1" else field.split(".")[-1])
    )


def _with_market(path: Path, name: str) -> Path:
    path.write_text(path.read_text().replace("market: market.yaml", f"market: {name}"))
    return path


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"instance_type": "g99.huge"}, "offers.1.instance_type"),
        ({"price_per_hour": -0.5}, "offers.1.price_per_hour"),
    ],
)
def test_a_mistake_of_the_market_is_told_with_its_line_and_field(
    write: Write, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    market = deepcopy(MARKET)
    market["offers"][1].update(change)
    path = write(market)
    with pytest.raises(InvalidArgument) as told:
        read_scenario(path)
    line = line_of(tmp_path / "market.yaml", field)
    assert told.value.message.startswith(f"market.yaml:{line}: {field}: ")
    assert (
        str(next(iter(change.values())))
        in ((tmp_path / "market.yaml").read_text().splitlines()[line - 1])
    )


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        (["{type: g6e.xlarge, count: 1}", "{type: g99.huge}"], "instances.1.type"),
        (["{type: g6e.xlarge, price_per_hour: -1}"], "instances.0.price_per_hour"),
        (["{type: g6e.xlarge, count: 4096}"] * 2, "instances.1.count"),
        (["{gpu: h999}"], "instances.0.type"),
    ],
)
def test_a_mistake_of_the_cluster_is_told_with_its_line_and_field(
    write: Write, tmp_path: Path, rows: list[str], field: str
) -> None:
    cluster = "instances:\n" + "".join(f"  - {row}\n" for row in rows)
    (tmp_path / "cluster.yaml").write_text(cluster)
    path = write()
    path.write_text(path.read_text().replace("market: market.yaml", "cluster: cluster.yaml"))
    with pytest.raises(InvalidArgument) as told:
        read_scenario(path)
    line = int(field.split(".")[1]) + 2
    assert told.value.message.startswith(f"cluster.yaml:{line}: {field}: ")


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"at_s": -1, "offer": "spot", "take": 1}, "events.0.at_s"),
        ({"at_s": 1, "offer": "moon", "take": 1}, "events.0.offer"),
        ({"at_s": 1, "offer": "spot", "price_per_hour": -1}, "events.0.price_per_hour"),
        ({"at_s": 5, "offer": "spot", "take": 1}, "events.1.at_s"),
    ],
)
def test_a_mistake_of_an_event_is_told_with_its_line_and_field(
    write: Write, tmp_path: Path, event: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as told:
        read_scenario(write({**MARKET, "events": [event, {**event, "at_s": 4}]}))
    line = line_of(tmp_path / "market.yaml", field)
    assert told.value.message.startswith(f"market.yaml:{line}: {field}: ")


@pytest.mark.parametrize(
    ("trace", "place"),
    [
        ("arrival_s,input,output\n5,1,1\n4,1,1\n", "trace.csv:3: arrival_s: "),
        ("arrival_s,input,output\n", "trace.csv:2: arrival_s: "),
    ],
)
def test_a_mistake_of_the_trace_is_told_with_its_line_and_field(
    write: Write, tmp_path: Path, trace: str, place: str
) -> None:
    (tmp_path / "trace.csv").write_text(trace)
    with pytest.raises(InvalidArgument) as told:
        read_scenario(write(workload={"trace": "trace.csv"}))
    assert told.value.message.startswith(place)


def test_a_trace_that_begins_behind_the_horizon_is_told(write: Write, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("arrival_s,input,output\n200,1,1\n")
    path = write(workload={"trace": "trace.csv"})
    with pytest.raises(InvalidArgument, match=r"workload\.trace: its first request comes at 200 s"):
        read_scenario(path)
    for other in ({"concurrency": 1}, {"redrawn": True}, {"scale": 0.5}):
        read_scenario(write(workload={"trace": "trace.csv", **other}))


def test_a_trace_of_too_many_requests_is_refused_at_the_first_that_is_one_too_many(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.fleet.workload.MAX_REQUESTS", 2)
    (tmp_path / "trace.csv").write_text("arrival_s,input,output\n" + "1,1,1\n" * 3)
    with pytest.raises(InvalidArgument, match=r"trace\.csv:4: arrival_s: more than 2 requests"):
        read_scenario(write(workload={"trace": "trace.csv"}))
    assert len(read_scenario(write(workload={"trace": "trace.csv", "limit": 1})).trace) == 1


@pytest.mark.parametrize(
    ("profile", "place"),
    [
        ("step_overhead_s: -1\n", "profile.yaml:1: step_overhead_s: "),
        (
            "name: x\nload_bytes_per_s_of:\n  g6e.xlarge: 1e9\n  g99.huge: 1.0e+9\n",
            "profile.yaml:4: ",
        ),
        ("name: x\nstages: {'node:0-32': {step_s: 0.1}}\n", "profile.yaml:2: stages: "),
        ("name: x\nname\n", "profile.yaml:3: "),
    ],
)
def test_a_mistake_of_the_profile_is_told_with_its_line_and_field(
    write: Write, tmp_path: Path, profile: str, place: str
) -> None:
    (tmp_path / "profile.yaml").write_text(profile)
    with pytest.raises(InvalidArgument) as told:
        read_scenario(write(engine_profile="profile.yaml"))
    assert told.value.message.startswith(place), told.value.message


@pytest.mark.parametrize("supplies", [("market", "cluster"), ()])
def test_a_scenario_has_one_supply(write: Write, supplies: tuple[str, ...]) -> None:
    path = write()
    text = path.read_text().replace("market: market.yaml\n", "")
    path.write_text("".join(f"{name}: market.yaml\n" for name in supplies) + text)
    with pytest.raises(InvalidArgument, match=r"scenario.yaml:1: market: .*cluster or a market"):
        read_scenario(path)


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_scenario(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("stages", "field"),
    [
        ([{"offer": "firm", "layers": 31, "tp": 1}], "first_plan.0"),
        ([{"offer": "firm", "layers": 16, "tp": 1}] * 2, "first_plan.0.1.offer"),
        ([{"offer": "firm", "layers": 32, "tp": 2}], "first_plan.0.0.tp"),
    ],
)
def test_a_first_plan_that_cannot_be_is_told(
    write: Write, stages: list[dict[str, Any]], field: str
) -> None:
    with pytest.raises(InvalidArgument) as told:
        read_scenario(write(first_plan=[stages]))
    assert told.value.field == field
