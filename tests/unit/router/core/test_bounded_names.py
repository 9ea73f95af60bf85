from __future__ import annotations

from services.router.core.bounded_names import OTHER, BoundedNames


def test_the_first_names_stay_and_all_others_are_one() -> None:
    names = BoundedNames(2)
    told = [names.of(f"tenant-{index}") for index in (0, 1, 2, 0, 3, 1)]
    assert told == ["tenant-0", "tenant-1", OTHER, "tenant-0", OTHER, "tenant-1"]


def test_a_bound_of_none_names_nobody() -> None:
    assert BoundedNames(0).of("a") == OTHER
