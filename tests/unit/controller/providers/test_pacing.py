from __future__ import annotations

import pytest

from services.controller.providers.pacing import FOR_STEPS, cores_per_speed


@pytest.mark.parametrize(
    ("counts", "most_nodes", "cores", "worth"),
    [
        ({3.0: 2, 2.0: 2}, 4, 2.0, FOR_STEPS * 2 / 10),
        ({3.0: 2, 2.0: 2}, 2, 2.0, FOR_STEPS * 2 / 6),
        ({3.0: 1, 2.0: 10_000}, 3, 2.0, FOR_STEPS * 2 / 7),
        ({3.0: 2, 2.0: 2}, 9, 2.0, FOR_STEPS * 2 / 10),
        ({3.0: 1}, 1, 64.0, 1 / 3),
        ({1.0: 1, 4.0: 1}, 2, 8.0, 1 / 4),
    ],
)
def test_a_speed_is_worth_what_lets_all_that_may_run_at_once_fit(
    counts: dict[float, int], most_nodes: int, cores: float, worth: float
) -> None:
    assert cores_per_speed(counts, most_nodes, cores) == pytest.approx(worth)
