"""What generations took, from the records that are journaled of them."""

from __future__ import annotations

import pytest

from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.controller.core.ledger.observed import Observed
from services.controller.core.ledger.records import Ended, Granted, HeadBound, IdsAppended

MODEL = ModelRef("m", "d")


def bound(observed: Observed, name: str, prompt: int, at_s: float) -> GenerationRequest:
    request = GenerationRequest(name, MODEL, (1,) * prompt, Sampling(max_tokens=500))
    observed.record(HeadBound(name, "i", "f", "p", request), at_s)
    return request


def told(
    observed: Observed,
    name: str,
    start: int,
    count: int,
    at_s: float,
    finish: FinishReason | None = None,
) -> None:
    span = TokenSpan(0, start, (7,) * count, finish_reason=finish)
    observed.record(IdsAppended(name, span), at_s)


def test_a_generations_rate_is_that_of_its_ids_and_of_its_neighbours_while_it_is_young() -> None:
    observed = Observed()
    for name in ("a", "b"):
        bound(observed, name, 10, 0.0)
    assert observed.tokens_per_s(["a", "b"]) == {"a": 0.0, "b": 0.0}
    told(observed, "a", 0, 1, 1.0)
    told(observed, "a", 1, 20, 3.0)
    told(observed, "b", 0, 1, 3.0)
    assert observed.tokens_per_s(["a", "b"]) == {"a": 10.0, "b": 10.0}


def test_a_replay_costs_what_grants_of_that_many_positions_took() -> None:
    observed = Observed()
    for number, positions in enumerate((100, 200, 400)):
        bound(observed, f"g{number}", positions, 10.0)
        told(observed, f"g{number}", 0, 1, 10.0 + 0.1 + positions / 1000)
    rates = observed.rates(MODEL, 5000.0)
    assert rates.replay_of_s(1000) == pytest.approx(1.1)
    assert rates.room_positions == 5000.0
    assert observed.rates(ModelRef("other", "d"), 1.0).replay_of_s(1000) == 0.0


def test_what_is_granted_again_has_its_output_to_compute_too() -> None:
    observed = Observed()
    request = bound(observed, "g", 100, 0.0)
    told(observed, "g", 0, 1, 0.1)
    told(observed, "g", 1, 299, 2.0)
    observed.record(Granted("g", 2, "i2", "f2", "p", request, ()), 3.0)
    told(observed, "g", 300, 1, 3.4)
    rates = observed.rates(MODEL, 1.0)
    assert rates.replay_of_s(400) == pytest.approx(0.4)
    assert rates.replay_of_s(100) == pytest.approx(0.1)


def test_a_generation_of_several_choices_is_over_with_its_last_one_wherever_they_ended() -> None:
    observed = Observed()
    request = GenerationRequest("g", MODEL, (1,), Sampling(max_tokens=500), choices=3)
    observed.record(HeadBound("g", "i", "f", "p", request), 0.0)
    told(observed, "g", 0, 50, 1.0, FinishReason.STOP)
    observed.record(Ended("g", 0, CancelReason.STOP, 50), 1.5)  # as its router has found, too
    observed.record(Granted("g", 2, "i2", "f2", "p", request, ()), 2.0)
    observed.record(Ended("g", 1, CancelReason.CLIENT, None), 3.0)
    assert list(observed._runs) == ["g"]
    observed.record(Ended("g", 2, CancelReason.STOP, 50), 4.0)
    assert not observed._runs
    assert list(observed.lengths(MODEL)._seen) == [(50, True)] * 2


def test_answers_that_end_are_remembered_and_those_that_were_cut_or_cancelled_are_no_ends() -> None:
    observed = Observed()
    for number in range(10):
        bound(observed, f"g{number}", 1, 0.0)
        told(observed, f"g{number}", 0, 50, 1.0, FinishReason.STOP)
    bound(observed, "stopped", 1, 0.0)
    told(observed, "stopped", 0, 10, 1.0)
    observed.record(Ended("stopped", 0, CancelReason.STOP, 10), 1.0)
    for name, finish in (("cut", FinishReason.LENGTH), ("gone", FinishReason.CANCELLED)):
        bound(observed, name, 1, 0.0)
        told(observed, name, 0, 10, 1.0, finish)
    lengths = observed.lengths(MODEL)
    assert lengths.ends_within(0, 20) == pytest.approx(1 / 12)
    assert lengths.ends_within(0, 60) == pytest.approx(1.0)


def test_a_push_costs_what_moves_with_their_blocks_took_beside_their_tails() -> None:
    observed = Observed()
    for number, positions in enumerate((100, 200, 400)):
        bound(observed, f"g{number}", positions, 0.0)
        told(observed, f"g{number}", 0, 1, 0.1 + positions / 1000)
    assert observed.rates(MODEL, 1.0).push_s == 0.0
    request = bound(observed, "m", 1000, 10.0)
    told(observed, "m", 0, 1, 11.1)
    observed.record(Granted("m", 2, "i2", "f2", "p", request, ()), 20.0)
    observed.moved("m", "kv")
    span = TokenSpan(0, 1, (7,), cached_tokens=991)
    observed.record(IdsAppended("m", span), 20.26)
    rates = observed.rates(MODEL, 1.0)
    assert rates.push_s == pytest.approx(0.25)
    assert rates.replay_of_s(1000) == pytest.approx(1.1), "a push is no replay"
