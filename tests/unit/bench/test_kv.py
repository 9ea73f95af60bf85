from __future__ import annotations

from itertools import count
from math import inf

from bench.kv import begun


def test_behind_the_limit_no_pair_begins_but_the_first() -> None:
    def at(limit_s: float) -> list[int]:
        return list(begun(5, limit_s, count(100.0, 10.0).__next__))

    assert at(inf) == [0, 1, 2, 3, 4]
    assert at(25.0) == [0, 1, 2]
    assert at(0.0) == [0]
    assert list(begun(0, inf, lambda: 0.0)) == []
