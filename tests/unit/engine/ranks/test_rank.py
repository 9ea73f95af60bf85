"""A rank has a device of its own."""

from __future__ import annotations

import pytest

from services.engine.ranks.rank import Rank


@pytest.mark.parametrize(
    ("first", "devices"),
    [
        ("cpu", ["cpu", "cpu"]),
        ("cuda", ["cuda:0", "cuda:1"]),
        ("cuda:2", ["cuda:2", "cuda:3"]),
    ],
)
def test_each_rank_computes_on_the_next_device(first: str, devices: list[str]) -> None:
    assert [Rank(number, 2, 0, "").device(first) for number in range(2)] == devices
