"""What a link gives is what went over it of late."""

from __future__ import annotations

import pytest

from services.common.link import FORGOTTEN_S, UNSEEN_BYTES_PER_S, Link


def test_while_little_went_over_it_nothing_follows() -> None:
    link = Link()
    assert link.bytes_per_s(0.0) == UNSEEN_BYTES_PER_S
    link.carried(10, 0.01, 0.0)
    assert link.bytes_per_s(0.0) == UNSEEN_BYTES_PER_S


def test_what_it_gives_now_counts_most() -> None:
    link = Link()
    link.carried(1_000_000, 0.5, 1.0)
    assert link.bytes_per_s(1.0) == pytest.approx(2e6)
    for at_s in range(2, 12):
        link.carried(250_000, 0.5, float(at_s))
    assert link.bytes_per_s(11.0) == pytest.approx(5e5, rel=0.05)


def test_over_a_dead_link_nothing_goes() -> None:
    link = Link()
    link.carried(0, 0.5, 1.0)
    assert link.bytes_per_s(1.0) == 0.0


def test_what_was_long_ago_counts_no_more() -> None:
    link = Link()
    link.carried(1000, 1.0, 1.0)
    assert link.bytes_per_s(FORGOTTEN_S) == pytest.approx(1000.0)
    assert link.bytes_per_s(1.0 + FORGOTTEN_S) == UNSEEN_BYTES_PER_S
    link.carried(5000, 1.0, 2.0 + FORGOTTEN_S)
    assert link.bytes_per_s(2.0 + FORGOTTEN_S) == pytest.approx(5000.0)
