"""One scenario under every strategy: what each lacks shows, and nobody is better than `full`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import yaml

from bench.scenario import read_scenario
from bench.strategies import SCENARIO
from bench.strategies_simulated import Play, settings_of, simulated
from bench.strategy_figures import Answer, Figures, better_than_full
from services.controller.core.strategy import FULL, STRATEGIES

WORKLOADS = 6
STARTS_OVER = [name for name, one in STRATEGIES.items() if not one.migration]


@pytest.fixture(scope="module")
def runs() -> dict[str, Figures]:
    scenario, found, first = read_scenario(SCENARIO), {}, list[Answer]()
    for name in STRATEGIES:
        found[name], answers = simulated(scenario, name, first)
        first = first or answers
    return found


def test_every_answer_comes_and_is_the_same(runs: dict[str, Figures]) -> None:
    for figures in runs.values():
        assert figures.completed == figures.asked > 20
        assert (figures.failed, figures.differ) == ((), 0)


def test_nobody_is_better_than_full_over_several_workloads(tmp_path: Path) -> None:
    """One workload alone has a P99 of a single answer, that comes at a good moment or a bad one."""
    document, played = yaml.safe_load(SCENARIO.read_text()), list[dict[str, Figures]]()
    for _ in range(WORKLOADS):
        document["load"]["seed"] += 1
        (path := tmp_path / "scenario.yaml").write_text(yaml.safe_dump(document))
        scenario = read_scenario(path)
        played.append({name: simulated(scenario, name)[0] for name in STRATEGIES})
    means = [
        replace(
            played[0][name],
            p99_s=mean(one[name].p99_s for one in played),
            goodput_tokens_per_s=mean(one[name].goodput_tokens_per_s for one in played),
        )
        for name in STRATEGIES
    ]
    assert better_than_full(means) == []


def test_who_starts_over_is_later_and_computes_again(runs: dict[str, Figures]) -> None:
    for name, figures in runs.items():
        assert (figures.again.sampled > 0) is (name in STARTS_OVER)
        if name in STARTS_OVER:
            assert figures.p99_s > 1.15 * runs["full"].p99_s
            assert figures.goodput_tokens_per_s < runs["full"].goodput_tokens_per_s


def test_who_leaves_weights_in_place_waits_for_the_like_of_what_is_lost(
    runs: dict[str, Figures],
) -> None:
    assert runs["thunderserve"].p99_s > 1.5 * runs["full"].p99_s


def handed_over_s(strategy: str) -> list[float]:
    """How long no formation served, of each hand-over."""
    play = Play(read_scenario(SCENARIO), strategy)
    play.run()
    found, began_s = list[float](), None
    for at_s, event in play.kept.happened:
        if event.kind == "handover_started":
            began_s = at_s
        elif event.kind == "pipeline_ready" and began_s is not None:
            found.append(at_s - began_s)
            began_s = None
    return found


def test_who_loads_behind_a_pipeline_serves_nobody_meanwhile() -> None:
    overlapping, waiting = handed_over_s("full"), handed_over_s("migration")
    assert len(overlapping) == len(waiting) >= 3
    assert min(waiting) > 2 * max(overlapping)


def test_settings_differ_by_the_strategy_alone() -> None:
    scenario = read_scenario(SCENARIO)
    full = settings_of(scenario, FULL.name)
    for name, strategy in STRATEGIES.items():
        mine = settings_of(scenario, name)
        assert mine.cluster.strategy == mine.ledger.strategy == strategy
        same = replace(
            mine,
            cluster=replace(mine.cluster, strategy=FULL),
            ledger=replace(mine.ledger, strategy=FULL),
        )
        if strategy.uniform:  # the first plan is of equal layers, the next one comes at any change
            assert len(mine.first_layers) == len(full.first_layers)
            same = replace(same, first_layers=full.first_layers, replanning=full.replanning)
        assert same == full
