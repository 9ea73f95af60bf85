"""A goal of the weights' bench is missed on its wrong side, and only when it was measured."""

from __future__ import annotations

import pytest

from bench import tensorstore, tensorstore_damage


@pytest.mark.parametrize(
    ("result", "missed"),
    [
        ({}, []),
        ({"warm_over_copy": {"ratio": 20}, "flips": {"missed": 0}}, []),
        ({"warm_over_copy": {"ratio": 19.9}}, ["warm_over_copy.ratio"]),
        ({"memory_of_two_engines": {"ratio": 1.01}}, []),
        ({"memory_of_two_engines": {"ratio": 1.03}}, ["memory_of_two_engines.ratio"]),
        ({"stored_over_checkpoint": 1.02}, ["stored_over_checkpoint"]),
        (
            {"whole_8b": {"stored_over_checkpoint": 1.0, "peak_over_largest_tensor": 2.1}},
            ["whole_8b.peak_over_largest_tensor"],
        ),
        ({"flips": {"missed": 1}, "fuzz": {"crashes": 1}}, ["flips.missed", "fuzz.crashes"]),
    ],
)
def test_a_goal_is_missed_on_its_wrong_side(result: dict[str, object], missed: list[str]) -> None:
    assert tensorstore.goals_missed(result) == missed


def test_a_crash_and_a_missed_flip_are_counted_not_swallowed(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tensorstore_damage.flips(tmp_path / "flips", 20)["missed"] == 0
    assert tensorstore_damage.fuzz(tmp_path / "sound", 100)["crashes"] == 0

    def broken(data: bytes) -> None:
        raise KeyError("format")

    monkeypatch.setattr(tensorstore_damage.manifest, "parse", broken)
    assert tensorstore_damage.fuzz(tmp_path / "broken", 20)["crashes"] == 15
