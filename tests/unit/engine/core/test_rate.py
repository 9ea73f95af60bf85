"""No more bytes go than are allowed, and those that come first go first."""

from __future__ import annotations

import pytest

from services.engine.core.rate import Rate


def test_bytes_wait_for_those_before_them() -> None:
    rate = Rate(100.0)
    waits = [rate.wait_s(50, now_s) for now_s in (1.0, 1.0, 1.25, 9.0, 9.0)]
    assert waits == pytest.approx([0.0, 0.5, 0.75, 0.0, 0.5])


def test_without_a_rate_nothing_waits() -> None:
    assert [Rate(0.0).wait_s(1 << 30, 1.0) for _ in range(3)] == [0.0] * 3
