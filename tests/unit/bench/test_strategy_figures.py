from __future__ import annotations

from dataclasses import dataclass, field, replace

from bench.strategy_figures import (
    Again,
    Answer,
    Figures,
    better_than_full,
    computed_again,
    figures_of,
)


@dataclass(frozen=True)
class Told:
    kind: str
    generation_id: str
    attributes: dict[str, str] = field(default_factory=dict)


def test_what_was_computed_again_is_read_from_the_log() -> None:
    events = [
        Told("generation_bound", "g"),
        Told("generation_granted", "g", {"base": "7,3"}),
        Told("generation_granted", "g", {"base": "0,0"}),
        Told("generation_finished", "g", {"computed_again": "12"}),
        Told("generation_finished", "h", {}),
        Told("node_lost", ""),
    ]
    assert computed_again(events, {"g": 5, "h": 100}) == Again(sampled=12, replayed=20)


def test_only_what_was_whole_in_time_is_goodput() -> None:
    answers = [
        Answer(1.0, 10, "a"),
        Answer(9.0, 20, "b"),
        Answer(error="gone"),
        Answer(2.0, 5, "c"),
    ]
    first = [Answer(1.0, 10, "a"), Answer(1.0, 20, "x"), Answer(1.0, 1, "y"), Answer(1.0, 5, "c")]
    found = figures_of(
        "none",
        answers,
        within_s=2.0,
        ran_s=5.0,
        dollars=1.0,
        again=Again(),
        first=first,
    )
    assert (found.asked, found.completed, found.failed, found.differ) == (4, 3, ("gone",), 1)
    assert (found.p50_s, found.p99_s, found.goodput_tokens_per_s) == (2.0, 9.0, 3.0)


def test_who_is_better_than_full_is_said_beyond_noise() -> None:
    full = Figures("full", 1, 1, 1.0, 10.0, 100.0, 1.0, Again())
    near = replace(full, strategy="near", p99_s=9.9, goodput_tokens_per_s=101.0)
    fast = replace(full, strategy="fast", p99_s=5.0, goodput_tokens_per_s=150.0)
    assert better_than_full([full, near, fast]) == ["fast: goodput", "fast: P99"]
    assert better_than_full([near, fast]) == []
