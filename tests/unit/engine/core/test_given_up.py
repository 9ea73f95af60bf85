"""What is given up stays so, and what is remembered of it has an end."""

from __future__ import annotations

from services.engine.core.given_up import GivenUp


def test_what_was_given_up_is_and_nothing_else() -> None:
    given_up = GivenUp()
    for number in (3, 7, 3):
        given_up.add(number)
    assert [number for number in range(9) if number in given_up] == [3, 7]
    assert len(given_up) == 2


def test_of_many_the_latest_are_remembered_and_all_that_are_older_count() -> None:
    given_up = GivenUp(kept=4)
    for number in range(1, 1000, 2):
        given_up.add(number)
        assert number in given_up
        assert number + 1 not in given_up
        assert len(given_up) <= 4
    assert all(number in given_up for number in range(1, 1000, 2))
    assert 990 in given_up
    assert 992 not in given_up, "it lies among those that are remembered"
    given_up.add(500)
    assert len(given_up) == 4
