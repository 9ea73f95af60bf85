from __future__ import annotations

import random

from services.router.core.least_rows import LOOKED_AT, OF_LATE, LeastRows


def told(least: LeastRows, prompt_bytes: int) -> int:
    """Whatever is looked at whole."""
    return max(least.of(prompt_bytes) for _ in range(2))


def test_it_is_as_few_a_byte_as_any_prompt_of_late_took() -> None:
    chance, least, seen = random.Random(7), LeastRows(), list[float]()
    for _ in range(3 * OF_LATE):
        length = chance.randint(1, 4000)
        rows = chance.randint(1, length)
        least.saw(length, rows)
        seen.append(rows / length)
        few = min(seen[-OF_LATE:])
        if len(seen) >= OF_LATE:
            assert told(least, 10_000) == max(1, int(few * 10_000))


def test_nothing_is_reckoned_of_few_prompts_nor_of_ids() -> None:
    least = LeastRows()
    for _ in range(OF_LATE - 1):
        least.saw(100, 50)
    assert told(least, 100) == 1
    least.saw(0, 50)
    assert told(least, 100) == 1
    least.saw(100, 50)
    assert told(least, 100) == 50
    assert told(least, 0) == 1


def test_one_of_many_is_looked_at_whatever_was_reckoned() -> None:
    least = LeastRows()
    for _ in range(OF_LATE):
        least.saw(100, 50)
    assert [least.of(100) for _ in range(4 * LOOKED_AT)].count(1) == 4
