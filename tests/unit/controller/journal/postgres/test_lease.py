from __future__ import annotations

from services.controller.journal.postgres.lease import Lease, Patience

LEASE_S = 2.0


def _seen(renewed: int = 1, *, epoch: int = 1, connected: bool = True, busy: bool = False) -> Lease:
    return Lease(epoch, "somebody", "h:1", renewed, connected, busy)


def test_a_lease_that_nobody_has_is_free_at_once() -> None:
    assert Patience(LEASE_S).over(Lease(0, "", "", 0, False, False), 0.0)


def test_a_holder_that_renews_keeps_it_for_ever() -> None:
    patience = Patience(LEASE_S)
    assert not any(patience.over(_seen(n), 1.9 * n) for n in range(50))


def test_a_holder_that_says_nothing_loses_it_after_the_lease() -> None:
    patience = Patience(LEASE_S)
    assert [patience.over(_seen(), now_s) for now_s in (5.0, 6.9, 7.0)] == [False, False, True]


def test_one_whose_session_is_gone_is_waited_for_half_as_long() -> None:
    patience = Patience(LEASE_S)
    gone = _seen(connected=False)
    assert [patience.over(gone, now_s) for now_s in (0.0, 0.9, 1.0)] == [False, False, True]


def test_one_for_whom_the_database_works_is_slow_and_not_gone() -> None:
    patience = Patience(LEASE_S)
    assert not any(patience.over(_seen(busy=True), float(n)) for n in range(50))
    assert [patience.over(_seen(), now_s) for now_s in (50.9, 51.0)] == [False, True]


def test_a_new_session_of_the_holder_counts_as_news() -> None:
    patience = Patience(LEASE_S)
    patience.over(_seen(epoch=1), 0.0)
    assert not patience.over(_seen(epoch=2), 2.5)
    assert patience.over(_seen(epoch=2), 4.5)


def test_the_time_that_the_database_was_away_is_nobodys_silence() -> None:
    patience = Patience(LEASE_S)
    patience.over(_seen(), 0.0)
    patience.forget()
    assert not patience.over(_seen(), 60.0)
    assert patience.over(_seen(), 62.0)
