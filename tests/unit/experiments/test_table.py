from __future__ import annotations

from experiments.table import Column, differences, markdown, rounded, without_measured

COLUMNS = (Column("cost", ".2f"), Column("seconds", measured=True))
PLAN = Column("plan", compared=False)


def test_another_figure_is_a_difference_and_rounding_is_none() -> None:
    expected = {"a": {"cost": 10.0, "seconds": 1.0}}
    assert differences(COLUMNS, expected, {"a": {"cost": 10.1, "seconds": 9.0}}) == []
    assert differences(COLUMNS, expected, {"a": {"cost": 11.0}}) == ["a: cost is 11.00, not 10.00"]
    assert differences(COLUMNS, expected, {"a": {}}) == ["a: cost is nothing, not 10.00"]


def test_another_of_several_plans_is_no_difference() -> None:
    assert differences((PLAN,), {"a": {"plan": "x"}}, {"a": {"plan": "y"}}) == []


def test_what_is_of_a_machine_stays_as_it_is_written() -> None:
    written = {"a": {"cost": 10.0, "seconds": 1.0}, "gone": {"seconds": 1.0}}
    found = {"a": {"cost": 11.0, "seconds": 9.0}, "b": {"cost": 2.0, "seconds": 9.0}}
    assert without_measured(COLUMNS, found, written) == {
        "a": {"cost": 11.0, "seconds": 1.0},
        "b": {"cost": 2.0},
    }


def test_rows_that_are_missing_or_new_are_differences() -> None:
    expected, found = {"a": {"cost": 10.0}}, {"b": {"cost": 10.0}}
    told = differences(COLUMNS, expected, found)
    assert told == ["b: was not expected", "a: is missing"]
    assert differences(COLUMNS, expected, {}, whole=False) == []


def test_figures_are_written_down_to_six_digits() -> None:
    assert rounded({"a": {"cost": 1.23456789, "told": "x", "none": None}}) == {
        "a": {"cost": 1.23457, "told": "x", "none": None}
    }


def test_a_readme_has_one_line_for_each_row() -> None:
    lines = markdown(COLUMNS, {"a": {"cost": 1.0}, "b": {"seconds": 0.25}}).splitlines()
    assert lines == ["| | cost | seconds |", "|---|---|---|", "| a | 1.00 |  |", "| b |  | 0.25 |"]
