from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from services.common import garbage


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def _looks_at_all(objects: int) -> int:
    """How often all there is was looked at while so many objects came to stay."""
    before = gc.get_stats()[2]["collections"]
    stay = [[each] for each in range(objects)]
    assert len(stay) == objects
    return int(gc.get_stats()[2]["collections"]) - before


def test_a_crowd_that_comes_has_nobody_look_at_all_there_is() -> None:
    garbage.spare_what_stays()
    assert _looks_at_all(300_000) == 0


def test_all_there_is_is_looked_at_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LOOKS_BETWEEN", 3)
    garbage.spare_what_stays()
    assert _looks_at_all(100_000) > 0
