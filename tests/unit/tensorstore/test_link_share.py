"""Sends never exceed their share of the link, at any pattern of requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.tensorstore.link_share import LinkShare


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5000)), min_size=1, max_size=60))
def test_no_window_carries_more_than_rate_and_burst(sends: list[tuple[float, int]]) -> None:
    share, now, sent = LinkShare(1000.0, burst_bytes=2000), 0.0, []
    for pause, size in sends:
        now += pause
        now += share.reserve(now, size)
        sent.append((now, size))
    for first in range(len(sent)):
        total = 0
        for at, size in sent[first:]:
            total += size
            allowed = 2000 + 1000.0 * (at - sent[first][0]) + sent[first][1]
            assert total <= allowed + 1e-3


def test_an_idle_link_sends_at_once() -> None:
    share = LinkShare(1000.0, burst_bytes=2000)
    assert share.reserve(5.0, 2000) == 0
    assert share.reserve(5.0, 1000) == 1.0
