from __future__ import annotations

import json
from math import inf, nan

import pytest

from services.common.errors import DataLoss
from services.controller.providers.ec2.hazards import (
    HALF_LIFE_HOURS,
    PRIOR_HOURS,
    STEP,
    Hazards,
)


def test_before_anything_was_seen_the_tables_word_counts() -> None:
    assert Hazards().per_hour("a", 0.07) == 0.07


def test_what_was_seen_outweighs_the_table_in_time() -> None:
    hazards = Hazards()
    for _ in range(200):
        hazards.lived({"bad": 10, "good": 10}, 1.0)
        for _ in range(5):
            hazards.interrupted("bad")
    assert hazards.per_hour("bad", 0.01) == pytest.approx(0.5, rel=STEP - 1)
    assert hazards.per_hour("good", 0.5) < 0.02


def test_a_rate_is_told_in_steps_so_that_offers_stand_still() -> None:
    hazards, told = Hazards(), set()
    for _ in range(400):
        hazards.lived({"a": 1}, 0.1)
        told.add(hazards.per_hour("a", 0.1))
    assert len(told) <= 6


def test_an_interruption_counts_where_the_table_knows_of_none() -> None:
    hazards = Hazards()
    hazards.interrupted("a")
    assert hazards.per_hour("a", 0.0) == pytest.approx(1 / PRIOR_HOURS, rel=STEP - 1)
    hazards.lived({"b": 1}, 1.0)
    assert hazards.per_hour("b", 0.0) == 0.0


def test_what_was_seen_long_ago_is_forgotten() -> None:
    hazards = Hazards()
    hazards.interrupted("a")
    hazards.lived({}, HALF_LIFE_HOURS)
    assert hazards.to_json()["a"]["interruptions"] == pytest.approx(0.5)
    hazards.lived({}, HALF_LIFE_HOURS * 40)
    assert hazards.to_json() == {}


@pytest.mark.parametrize("hours", [0.0, -1.0, nan])
def test_no_time_changes_nothing(hours: float) -> None:
    hazards = Hazards()
    hazards.lived({"a": 3}, hours)
    assert hazards.to_json() == {}


def test_it_comes_back_as_it_was_kept() -> None:
    hazards = Hazards()
    hazards.interrupted("a")
    hazards.lived({"a": 2}, 0.5)
    kept = json.loads(json.dumps(hazards.to_json()))
    assert Hazards.from_json(kept).to_json() == hazards.to_json()


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"a": {}},
        {"a": {"hours": -1, "interruptions": 0}},
        {"a": {"hours": inf, "interruptions": 0}},
        {"a": 3},
    ],
)
def test_what_it_never_wrote_is_refused(document: object) -> None:
    with pytest.raises(DataLoss):
        Hazards.from_json(document)
