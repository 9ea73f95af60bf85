from __future__ import annotations

import pytest

from services.common.exchange import LeaveReason
from services.router.core.latencies import CAUSES, HANDED_OVER, Ended, Heard, Latencies, Moved


def reading(asked_s: float | None = 10.0) -> Latencies:
    latencies = Latencies()
    if asked_s is not None:
        latencies.asked(asked_s)
    return latencies


def test_a_request_has_one_first_token_and_times_between_all_others() -> None:
    latencies = reading()
    assert latencies.frame(0, 10.1) is None
    assert latencies.frame(1, 10.5) == Heard(first_token_s=0.5)
    assert latencies.frame(0, 10.6) is None
    assert latencies.frame(4, 11.5) == Heard(between_s=0.25)
    assert latencies.ended(5, 11.5) == Ended(whole_s=1.5, per_token_s=0.25)


def test_a_reader_that_came_back_knows_neither_the_first_token_nor_the_whole() -> None:
    latencies = reading(None)
    assert latencies.frame(2, 10.5) == Heard()
    assert latencies.frame(1, 11.0) == Heard(between_s=0.5)
    assert latencies.ended(3, 11.0) == Ended(None, None)


def test_the_first_token_is_waited_for_until_it_is_here() -> None:
    latencies = reading()
    latencies.frame(0, 10.1)
    assert latencies.waits_s(10.5) == 0.5
    latencies.frame(1, 10.6)
    assert latencies.waits_s(11.0) == 0.0
    assert reading(None).waits_s(11.0) == 0.0


def test_an_end_that_no_head_told_is_old_news() -> None:
    assert reading().ended(3, 11.0) is None


def test_an_answer_of_one_token_has_no_time_of_a_token() -> None:
    latencies = reading()
    latencies.frame(1, 10.5)
    assert latencies.ended(1, 10.5) == Ended(0.5, None)


@pytest.mark.parametrize(
    ("reason", "cause"), [(None, HANDED_OVER), *((one, one.value) for one in LeaveReason)]
)
def test_a_move_is_told_with_its_parts_when_the_new_head_has_a_token(
    reason: LeaveReason | None, cause: str
) -> None:
    latencies = reading()
    latencies.frame(1, 11.0)
    latencies.frame(0, 11.5)
    latencies.left(reason, 13.0)
    latencies.granted(True, 14.0)
    assert latencies.frame(0, 15.0) is None
    heard = latencies.frame(1, 17.0)
    assert heard == Heard(between_s=6.0, moved=Moved(cause, 1.5, 1.0, 3.0, 6.0))
    assert cause in CAUSES
    assert latencies.frame(1, 18.0) == Heard(between_s=1.0)


def test_a_move_before_the_first_token_begins_with_the_last_frame() -> None:
    latencies = reading()
    latencies.frame(0, 11.0)
    latencies.left(LeaveReason.UNREACHABLE, 12.0)
    latencies.granted(True, 13.0)
    heard = latencies.frame(1, 15.0)
    assert heard == Heard(first_token_s=5.0, moved=Moved("unreachable", 1.0, 1.0, 2.0, 4.0))


def test_a_second_question_begins_no_second_move_and_the_last_answer_counts() -> None:
    latencies = reading()
    latencies.frame(1, 11.0)
    latencies.left(LeaveReason.UNREACHABLE, 12.0)
    latencies.granted(True, 13.0)
    latencies.left(LeaveReason.REFUSED, 14.0)
    latencies.granted(True, 16.0)
    heard = latencies.frame(1, 17.0)
    assert heard is not None
    assert heard.moved == Moved("unreachable", 1.0, 4.0, 1.0, 6.0)


def test_a_head_that_is_named_again_is_no_move() -> None:
    latencies = reading()
    latencies.frame(1, 11.0)
    latencies.left(LeaveReason.SILENT, 12.0)
    latencies.granted(False, 13.0)
    assert latencies.frame(1, 14.0) == Heard(between_s=3.0)


def test_a_generation_without_a_head_yet_does_not_move() -> None:
    latencies = reading()
    latencies.left(None, 10.5)
    latencies.granted(True, 11.0)
    assert latencies.frame(1, 12.0) == Heard(first_token_s=2.0)
