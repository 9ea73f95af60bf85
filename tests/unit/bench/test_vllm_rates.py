from __future__ import annotations

import itertools
from collections.abc import Sequence

from bench import contestants, vllm_rates


class Counted:
    """Reads a prompt a step, and gives each that is read an id a step."""

    name = "counted"

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._outputs = 0

    def begin(self, prompts: Sequence[Sequence[int]], outputs: int) -> None:
        self._counts, self._outputs = [0] * len(prompts), outputs

    def step(self) -> list[int]:
        if all(count == self._outputs for count in self._counts):
            return []
        read = sum(count > 0 for count in self._counts) + 1
        for slot in range(min(read, len(self._counts))):
            self._counts[slot] = min(self._counts[slot] + 1, self._outputs)
        return list(self._counts)


def test_ids_count_from_the_step_by_which_every_prompt_has_one() -> None:
    ticks = itertools.count(0.0, 2.0)
    found = contestants.measure(Counted(), [[1, 2, 3]] * 3, 5, lambda: next(ticks))
    assert found == {"prefill": 9 / 2, "decode": (4 + 3 + 2) / 2}


def test_a_prompt_that_is_only_read_has_no_other_rate() -> None:
    ticks = itertools.count(0.0, 2.0)
    assert contestants.measure(Counted(), [[1, 2]], 1, lambda: next(ticks)) == {"prefill": 1.0}


def test_ratios_are_taken_within_a_round() -> None:
    rates = [
        {"native": 30.0, "backend": 10.0, "vllm": 10.0},
        {"native": 10.0, "backend": 4.0, "vllm": 5.0},
        {"native": 40.0, "backend": 9.0, "vllm": 10.0},
    ]
    found = vllm_rates.figure(rates, {"native": 2.5, "backend": 0.95})
    assert found["tokens_per_s"] == {"native": 30.0, "backend": 9.0, "vllm": 10.0}
    native, backend = found["over_vllm"]["native"], found["over_vllm"]["backend"]
    assert (native["ratio"], native["ratio_min"], native["ratio_max"]) == (3.0, 2.0, 4.0)
    assert backend["ratio"] == 0.9
    assert not vllm_rates.reached({"decode": found})
    assert vllm_rates.reached({"decode": vllm_rates.figure(rates, {"native": 2.5})})
    report = {"clock": "wall", "contestants": {"native": "c"}, "threads": {"1": {"decode": found}}}
    assert "0.9 x (0.8 to 1.0, 3 rounds, goal 0.95)" in vllm_rates.table(report)
