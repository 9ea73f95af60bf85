import pytest

from services.common.generation import (
    FinishReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    finish_at,
    finish_of,
)


def request(**sampling: object) -> GenerationRequest:
    values = {"max_tokens": 10, "eos_token_ids": (2,), **sampling}
    return GenerationRequest("g", ModelRef("m", "d"), (1,), Sampling(**values))  # type: ignore[arg-type]


def test_an_end_of_sequence_id_stops() -> None:
    assert finish_at(request(), 0, 2) is FinishReason.STOP


def test_a_stop_id_stops_even_when_the_end_of_sequence_is_ignored() -> None:
    asked = request(ignore_eos=True, stop_token_ids=(9,))
    assert finish_at(asked, 0, 2) is None
    assert finish_at(asked, 0, 9) is FinishReason.STOP


@pytest.mark.parametrize(("position", "reason"), [(2, None), (3, FinishReason.STOP)])
def test_no_end_counts_before_the_least_number_of_tokens(
    position: int, reason: FinishReason | None
) -> None:
    assert finish_at(request(min_tokens=3), position, 2) is reason


def test_the_last_token_that_fits_ends_with_length() -> None:
    assert finish_at(request(), 8, 5) is None
    assert finish_at(request(), 9, 5) is FinishReason.LENGTH
    assert finish_at(request(), 9, 2) is FinishReason.STOP


def test_the_first_end_among_ids_counts_from_their_position() -> None:
    assert finish_of(request(), (5, 2, 7, 2), 4) == (6, FinishReason.STOP)
    assert finish_of(request(), (5, 6), 4) is None
