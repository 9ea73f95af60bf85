from __future__ import annotations

from pathlib import Path

import pytest

from experiments.shifts import azure, in_turns
from simulator.fleet.workload import Request


def test_services_take_turns_at_one_rate() -> None:
    one, other = ([Request(at / rate, rate, rate) for at in range(100)] for rate in (5, 1))
    asked = in_turns((one, other), rate_rps=2.0, turn_s=10.0, turns=3)
    assert [request.input for request in asked] == [5] * 20 + [1] * 20 + [5] * 20
    assert [request.arrival_s for request in asked] == pytest.approx([n / 2 for n in range(60)])


def test_azures_rows_are_read_in_seconds_and_tokens(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,0\n"
    )
    first, second = azure(path)
    assert first == Request(0.0, 374, 44)
    assert (second.input, second.output) == (396, 1), "an answer has a token at least"
    assert second.arrival_s == pytest.approx(4.314579)
