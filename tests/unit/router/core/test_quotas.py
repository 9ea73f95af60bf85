from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.demand import Shares
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.common.tenants import Limits, Tenant
from services.router.core.quotas import Bucket, Quotas, RateLimitExceeded

ACME = Tenant("acme", limits=Limits(requests_per_minute=60, tokens_per_minute=1000, streams=2))
FREE = Tenant("free")


def _asks(name: str, tokens: int) -> GenerationRequest:
    """A request that may come to so many tokens."""
    sampling = Sampling(max_tokens=tokens - 1)
    return GenerationRequest(name, ModelRef("tiny", "d"), (1,), sampling)


def test_a_tenant_may_take_its_limit_at_once_and_then_as_fast_as_it_fills() -> None:
    quotas = Quotas()
    for _ in range(60):
        quotas.ask(ACME, 0.0)
    with pytest.raises(RateLimitExceeded) as refused:
        quotas.ask(ACME, 0.25)
    assert refused.value.retry_after_s == pytest.approx(0.75)
    quotas.ask(ACME, 1.0)
    with pytest.raises(RateLimitExceeded):
        quotas.ask(ACME, 1.0)


def test_one_tenants_requests_are_not_anothers() -> None:
    quotas, other = Quotas(), replace(ACME, name="other")
    for tenant in (ACME, other):
        for _ in range(60):
            quotas.ask(tenant, 0.0)
    for _ in range(1000):
        quotas.ask(FREE, 0.0)


@given(
    st.integers(1, 500),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 700)), min_size=1, max_size=80),
)
def test_no_stretch_of_time_has_more_than_what_was_full_and_what_it_filled(
    limit: int, asks: list[tuple[float, int]]
) -> None:
    bucket, now_s, taken = Bucket(limit, 0.0), 0.0, list[tuple[float, float]]()
    for pause_s, amount in asks:
        now_s += pause_s
        wait_s = bucket.take(amount, now_s)
        if wait_s == 0.0:
            taken.append((now_s, min(amount, bucket.capacity)))
        else:
            level = bucket.level(now_s)
            assert bucket.take(amount, now_s + wait_s * 0.99) > 0 or wait_s < 1e-4
            assert bucket.level(now_s) <= level
            now_s += wait_s
            assert bucket.take(amount, now_s) == 0.0, "what it says is when it can be had"
            taken.append((now_s, min(amount, bucket.capacity)))
    for index, (begin_s, _) in enumerate(taken):
        total = 0.0
        for at_s, took in taken[index:]:
            total += took
            assert total <= limit * (1 + (at_s - begin_s) / 60) * (1 + 1e-6) + 1e-3


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.sampled_from((1.0, 0.5, 0.25, 0.1)), st.integers(0, 50)),
        max_size=60,
    )
)
def test_a_share_that_changes_makes_nothing_out_of_nothing(
    steps: list[tuple[float, float, int]],
) -> None:
    bucket, now_s, taken, filled = Bucket(100, 0.0), 0.0, 0.0, 100.0
    for pause_s, share, asks in steps:
        filled += pause_s * bucket.a_minute / 60
        now_s += pause_s
        bucket.resize(100 * share, now_s)
        for _ in range(asks):
            taken += bucket.take(1, now_s) == 0.0
        assert taken <= filled + 1e-3


def test_what_a_request_did_not_come_to_is_given_back() -> None:
    quotas = Quotas()
    quotas.reserve(ACME, _asks("g1", 800), 0.0)
    with pytest.raises(RateLimitExceeded) as refused:
        quotas.reserve(ACME, _asks("g2", 300), 0.0)
    assert refused.value.retry_after_s == pytest.approx(6.0)
    quotas.settle("g1", 100, 0.0)
    quotas.settle("g1", 0, 0.0)
    quotas.reserve(ACME, _asks("g2", 900), 0.0)
    with pytest.raises(RateLimitExceeded):
        quotas.reserve(ACME, _asks("g3", 2), 0.0)


def test_a_request_that_may_be_more_than_the_limit_takes_all_and_owes_what_it_came_to() -> None:
    quotas = Quotas()
    quotas.reserve(ACME, _asks("g1", 5000), 0.0)
    quotas.settle("g1", 3000, 0.0)
    with pytest.raises(RateLimitExceeded) as refused:
        quotas.reserve(ACME, _asks("g2", 500), 0.0)
    assert refused.value.retry_after_s == pytest.approx(150.0)
    quotas.reserve(ACME, _asks("g2", 500), 150.0)


def test_a_reader_who_comes_back_counts_once_among_a_tenants_streams() -> None:
    quotas = Quotas()
    for name in ("g1", "g2", "g2"):
        quotas.check_stream(ACME, name)
        quotas.opened("acme", name)
    with pytest.raises(RateLimitExceeded):
        quotas.check_stream(ACME, "g3")
    quotas.closed("acme", "g2")
    with pytest.raises(RateLimitExceeded):
        quotas.check_stream(ACME, "g3")
    quotas.closed("acme", "g2")
    quotas.check_stream(ACME, "g3")
    for number in range(99):
        quotas.check_stream(FREE, f"f{number}")
        quotas.opened("free", f"f{number}")


def test_a_router_among_others_has_its_share_of_each_limit_and_room_for_one() -> None:
    quotas = Quotas()
    quotas.shares = Shares(3, {})
    for _ in range(20):
        quotas.ask(ACME, 0.0)
    with pytest.raises(RateLimitExceeded):
        quotas.ask(ACME, 0.0)
    quotas.shares = Shares(3, {"acme": 0.8})
    with pytest.raises(RateLimitExceeded):
        quotas.ask(ACME, 0.5)
    quotas.ask(ACME, 1.6)  # at 48 a minute
    small = replace(ACME, name="small", limits=Limits(requests_per_minute=1, streams=1))
    quotas.shares = Shares(50, {})
    quotas.ask(small, 0.0)
    quotas.check_stream(small, "g")


def test_limits_that_are_said_anew_count_at_once() -> None:
    quotas = Quotas()
    for _ in range(60):
        quotas.ask(ACME, 0.0)
    more = replace(ACME, limits=Limits(requests_per_minute=6000))
    with pytest.raises(RateLimitExceeded):
        quotas.ask(more, 0.0)
    quotas.ask(more, 0.01)
    quotas.ask(replace(ACME, limits=Limits()), 0.01)


def test_what_is_left_is_told_as_clients_read_it() -> None:
    quotas = Quotas()
    quotas.ask(ACME, 0.0)
    quotas.reserve(ACME, _asks("g1", 250), 0.0)
    requests, tokens = quotas.standings(ACME, 0.0)
    assert requests is not None
    assert tokens is not None
    assert (requests.limit, requests.remaining) == (60, 59)
    assert requests.reset_s == pytest.approx(1.0)
    assert (tokens.limit, tokens.remaining) == (1000, 750)
    assert tokens.reset_s == pytest.approx(15.0)
    assert quotas.standings(FREE, 0.0) == (None, None)


def test_what_is_asked_is_told_for_a_minute_of_tenants_with_limits_alone() -> None:
    quotas = Quotas()
    quotas.ask(FREE, 0.0)
    for _ in range(3):
        quotas.ask(ACME, 0.0)
    quotas.reserve(ACME, _asks("g1", 100), 0.0)
    (demand,) = quotas.demands(59.0).values()
    assert (demand.requests, demand.tokens, demand.share) == (3, 100, 1.0)
    assert quotas.demands(61.0) == {}
    quotas.shares = Shares(2, {"acme": 0.1})
    assert quotas.demands(61.0)["acme"].share == 0.1, "it holds that, and says so"
