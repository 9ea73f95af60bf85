from __future__ import annotations

from math import inf, nan

import pytest

from services.common.errors import DataLoss, InvalidArgument
from services.controller.core.cluster.budget import Budget


@pytest.mark.parametrize("amount", [-0.01, nan, inf, 1e9])
def test_what_cannot_be_spent_is_no_budget(amount: float) -> None:
    with pytest.raises(InvalidArgument, match=r"lies in \[0, 1e\+09\)") as caught:
        Budget(amount, 0.0)
    assert caught.value.field == "budget_per_hour"


def test_what_was_said_counts_until_the_settings_name_another() -> None:
    said = Budget.from_json(Budget(0.5, 1.0).to_json())
    assert said == Budget(0.5, 1.0)
    assert said.begun_with(1.0) == 0.5
    assert said.begun_with(2.0) == 2.0
    assert Budget(0.0, 1.0).begun_with(1.0) == 0.0, "no limit is said, too"


@pytest.mark.parametrize("text", ["", "[]", '{"per_hour": -1, "named": 0}', '{"per_hour": 1}'])
def test_a_note_that_nobody_wrote_is_data_loss(text: str) -> None:
    with pytest.raises(DataLoss, match="budget"):
        Budget.from_json(text)
