import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.common.notices import Notice, NoticeKind
from services.engine.notices import line_of, notice_of

TIMES = st.floats(allow_nan=False, allow_infinity=False)
NOTICES = st.builds(
    Notice, st.sampled_from([kind for kind in NoticeKind if not kind.is_advice]), TIMES
) | st.just(Notice(NoticeKind.REBALANCE, None))


@given(NOTICES)
def test_a_notice_is_read_as_it_was_written(notice: Notice) -> None:
    line = line_of(notice)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert notice_of(line) == notice


@given(st.binary(max_size=200))
def test_any_other_line_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidArgument):
        notice_of(line)


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind": "spot"}',
        b'{"kind": "spot", "deadline_s": null}',
        b'{"kind": "spot", "deadline_s": NaN}',
        b'{"kind": "spot", "deadline_s": Infinity}',
        b'{"kind": "spot", "deadline_s": ' + b"9" * 400 + b"}",
        b'{"kind": "whim", "deadline_s": 1}',
        b'["spot", 1]',
        b"[" * 10_000,
    ],
)
def test_a_notice_without_a_time_or_a_kind_is_none(line: bytes) -> None:
    with pytest.raises(InvalidArgument):
        notice_of(line)


def test_advice_has_no_deadline() -> None:
    told = notice_of(b'{"kind": "rebalance", "deadline_s": 5}')
    assert told == Notice(NoticeKind.REBALANCE, None)
