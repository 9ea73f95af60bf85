from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.prefix import told
from services.engine.backend import BLOCK_SIZE
from services.engine.core import prefix_log
from services.engine.core.prefix_log import UNTOLD, PrefixLog


def name(number: int) -> bytes:
    return bytes([number]) * 32


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=60))
def test_whoever_follows_from_anywhere_knows_what_is_held(
    moves: list[tuple[int, bool, bool]],
) -> None:
    log, held, known, position = PrefixLog(), set[int](), set[int](), UNTOLD
    for number, adds, looks in moves:
        (log.add if adds else log.remove)(name(number))
        (held.add if adds else held.discard)(told(name(number)))
        if not looks:
            continue
        news, position = log.since(position)
        if news is not None:
            assert news.block_positions == BLOCK_SIZE
            known = (set() if news.whole else known - set(news.removed)) | set(news.added)
        assert known == held


def test_who_has_heard_everything_is_told_nothing() -> None:
    log = PrefixLog()
    _, position = log.since(UNTOLD)
    assert log.since(position) == (None, position)


def test_who_is_too_far_behind_is_told_all_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_log, "MAX_CHANGES", 2)
    log = PrefixLog()
    _, position = log.since(UNTOLD)
    for number in range(3):
        log.add(name(number))
    news, _ = log.since(position)
    assert news is not None
    assert news.whole
    assert len(news.added) == 3


def test_no_more_is_told_than_fits_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_log, "MAX_TOLD", 2)
    log = PrefixLog()
    for number in range(3):
        log.add(name(number))
    log.remove(name(0))
    log.add(name(4))
    news, _ = log.since(UNTOLD)
    assert news is not None
    assert news.added == (told(name(1)), told(name(4)))
