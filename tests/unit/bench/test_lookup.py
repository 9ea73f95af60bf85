from __future__ import annotations

from pathlib import Path

from bench import lookup


def pair(with_s: float, without_s: float) -> dict[str, float]:
    return {"with_s": with_s, "without_s": without_s, "tokens": 8, "drafted": 4, "accepted": 2}


def test_the_ratio_is_of_all_time_and_single_pairs_stand_beside_it() -> None:
    figures = lookup.summed([pair(1.0, 3.0), pair(3.0, 3.0), pair(2.0, 3.0)])
    assert (figures["ratio"], figures["ratio_min"], figures["ratio_max"]) == (1.5, 1.0, 3.0)
    assert (figures["pairs"], figures["tokens"], figures["accepted"]) == (3, 24, 6)
    report = {"numerics_class": "c", "goals": {"new_1": 0.98}, "figures": {"new_1": figures}}
    assert "1.5 x (goal 0.98)" in lookup.table(report)


def test_fifty_chats_are_asked_and_none_twice() -> None:
    questions = Path(lookup.__file__).with_name("chats.txt").read_text().splitlines()
    assert len(set(questions)) == 50
