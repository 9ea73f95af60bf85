"""What a window of a stage's steps says of what was served meanwhile."""

from __future__ import annotations

import pytest

from bench.kv_serving import Window, figures

ALONE = Window(steps=100, stepped_s=4.0, computed_s=3.0, process_s=3.5, read_bytes=0, took_s=4.0)


def test_what_is_served_costs_what_the_process_spent_beside_its_steps() -> None:
    """Fewer steps were made meanwhile, and each brings its share of the head's work."""
    served = Window(
        steps=80,
        stepped_s=4.0,
        computed_s=2.64,
        process_s=3.3,
        read_bytes=250_000_000,
        took_s=4.0,
    )
    assert served.for_others_s(ALONE) == pytest.approx(0.5)
    told = figures([ALONE] * 3, [served] * 3)
    assert told["step_ratio"] == 1.25
    assert told["computed_step_ratio"] == 1.1
    assert told["core_s_per_gb"] == 2.0
    assert told["read_mb_per_s"] == 62.5
    assert told["step_s"] == [0.04, 0.05]
