"""Of the table that is checked in, which other tests hold to what is run."""

from __future__ import annotations

import pytest

from experiments.experiment import Size
from experiments.spot_tolerance import EXPERIMENT, ROWS

WHOLE = sorted({row.whole for row in ROWS})


@pytest.mark.parametrize("whole", WHOLE)
def test_strategies_stand_in_the_published_order_and_each_share_is_near_its_own(whole: str) -> None:
    table = EXPERIMENT.expected()[Size.QUICK]
    names = [row.name for row in ROWS if row.whole == whole and row.published is not None]
    assert len(names) == 5
    found, published = (
        {name: float(table[name][column]) for name in names}
        for column in ("share", "published share")
    )
    assert sorted(names, key=found.__getitem__) == sorted(names, key=published.__getitem__)
    assert found == pytest.approx(published, abs=0.05)


def test_full_is_compared_with_none_under_plans_made_the_same_way() -> None:
    table = EXPERIMENT.expected()[Size.QUICK]
    for row in ROWS:
        over, without = table[row.name]["over none"], table[f"{row.without} none"]
        if row.strategy == "none" or row.scenario == row.whole:
            assert over is None
        else:
            ratio = float(table[row.name]["req/s"]) / float(without["req/s"])
            assert float(over) == pytest.approx(ratio, rel=1e-4)
            assert ("replans" in row.scenario) is ("replans" in row.without)
