"""When results are written down."""

from __future__ import annotations

from services.router.core.batches.batch import Usage
from services.router.core.batches.results import PIECE_BYTES, Results


def test_results_wait_longer_in_an_older_batch_and_never_for_long() -> None:
    results = Results()
    assert results.due_in_s(0.0, 0.0) is None
    results.add(0, b"x", Usage(1, 1), 10.0)
    results.add(1, b"y", None, 11.0)
    assert [results.due_in_s(age_s, 10.0) for age_s in (0.0, 1000.0, 86400.0)] == [2.0, 10.0, 300.0]
    assert results.due_in_s(0.0, 12.0) == 0.0


def test_a_full_piece_does_not_wait() -> None:
    results = Results()
    results.add(0, b"x" * PIECE_BYTES, Usage(1, 1), 0.0)
    assert results.due_in_s(86400.0, 0.0) == 0.0


def test_a_long_batch_has_few_pieces() -> None:
    """By the document that must hold them."""
    now_s, pieces = 0.0, 0
    while now_s < 86400.0:
        results = Results()
        results.add(0, b"x", None, now_s)
        now_s += results.due_in_s(now_s, now_s) or 0.0
        pieces += 1
    assert pieces < 900
