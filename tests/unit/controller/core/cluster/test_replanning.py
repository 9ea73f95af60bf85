"""When a plan is asked for: at once for a loss, at leisure for a gain, and never over and over."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.nodes import NodeShape
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.replanning import (
    Ask,
    Cause,
    Lack,
    Replanner,
    ReplanSettings,
)
from services.controller.core.cluster.workload import Workload

SETTINGS = ReplanSettings()
OFFER = Offer("spot", "g6", NodeShape(1, 1.0), count=2, price_per_hour=1.0, spot=True)
PLANNED = Workload(2.0, 700.0, 200.0)
REFUSED = Lack("pipeline-1", 0, refused=True)


@pytest.fixture
def calm() -> Replanner:
    """It has a plan, made at 0 for one offer and a workload."""
    replanner = Replanner(SETTINGS)
    replanner.offered([OFFER], -100.0)
    replanner.measured(PLANNED, 0.0)
    replanner.happened(Cause.OPERATOR, 0.0)
    assert ask(replanner, 0.0).improve
    replanner.taken(0.0)
    assert replanner.wakes_at_s() == inf
    return replanner


def ask(replanner: Replanner, now_s: float, running: dict[str, int] | None = None) -> Ask:
    found = replanner.due(running or {}, now_s)
    assert found is not None
    return found


def test_a_loss_is_asked_about_at_once_and_the_whole_later(calm):
    calm.happened(Cause.LOST, 10.0)
    assert calm.wakes_at_s() == 10.0
    found = ask(calm, 10.0)
    assert found.causes == (Cause.LOST,)
    assert not found.improve
    calm.taken(10.5)
    assert calm.wakes_at_s() == 10.5 + SETTINGS.cool_down_s
    assert calm.due({}, 70.0) is None
    later = ask(calm, 70.5)
    assert later.improve
    assert later.causes == (Cause.REPAIRED,)


def test_one_question_at_a_time(calm):
    calm.happened(Cause.LOST, 10.0)
    ask(calm, 10.0)
    calm.happened(Cause.NOTICED, 10.1)
    assert calm.due({}, 11.0) is None
    calm.kept(11.0)
    assert ask(calm, 11.0).causes == (Cause.NOTICED,)


def test_an_offer_counts_once_it_has_stood(calm):
    better = replace(OFFER, offer_id="new", count=3)
    calm.offered([OFFER, better], 100.0)
    assert calm.wakes_at_s() == 100.0 + SETTINGS.steady_s
    found = ask(calm, 130.0, {"spot": 2})
    assert found.causes == (Cause.OFFERS,)
    assert [one.name for one in found.candidates] == ["new#1", "new#2", "new#3"]


def test_an_offer_that_comes_and_goes_is_never_asked_about(calm):
    flapping = replace(OFFER, offer_id="flapping")
    for turn in range(50):
        calm.offered([OFFER, flapping] if turn % 2 else [OFFER], 100.0 + 10 * turn)
        assert calm.due({}, 100.0 + 10 * turn + 9) is None


def test_one_that_flaps_does_not_hide_one_that_stands(calm):
    steady = replace(OFFER, offer_id="steady")
    for turn in range(20):
        price = 1.0 if turn % 2 else 2.0
        flapping = replace(OFFER, offer_id="flapping", price_per_hour=price)
        calm.offered([OFFER, steady, flapping], 100.0 + 5 * turn)
    names = {one.offer.offer_id for one in ask(calm, 199.0).candidates}
    assert names == {"spot", "steady"}


def test_what_is_urgent_may_name_an_offer_that_is_new(calm):
    calm.offered([OFFER, replace(OFFER, offer_id="new")], 100.0)
    calm.happened(Cause.LOST, 100.0)
    names = {one.offer.offer_id for one in ask(calm, 100.0).candidates}
    assert names == {"spot", "new"}


def test_an_offer_that_said_no_is_not_named_for_a_while(calm):
    calm.refused("spot", 160.0)
    calm.lacking({REFUSED}, 100.0)
    found = ask(calm, 100.0)
    assert found.causes == (Cause.REFUSED,)
    assert found.candidates == ()
    calm.kept(100.0)
    calm.happened(Cause.LOST, 161.0)
    assert len(ask(calm, 161.0).candidates) == 2


def test_an_offer_of_which_there_is_more_is_named_before_its_while_is_over(calm):
    calm.refused("spot", 1e6)
    calm.happened(Cause.LOST, 161.0)
    assert ask(calm, 161.0).candidates == ()
    calm.kept(161.0)
    calm.opened("spot", 200.0)
    calm.happened(Cause.LOST, 201.0)
    assert len(ask(calm, 201.0).candidates) == 2
    calm.kept(201.0)
    calm.opened("nobody", 202.0)


def test_a_seat_that_stays_vacant_is_asked_about_once(calm):
    for now_s in (100.0, 101.0, 102.0):
        calm.lacking({REFUSED}, now_s)
        found = calm.due({}, now_s)
        assert (found is not None) == (now_s == 100.0)
        if found is not None:
            calm.kept(now_s)
    calm.lacking({REFUSED, replace(REFUSED, stage=1)}, 103.0)
    assert ask(calm, 103.0).causes == (Cause.REFUSED,)
    calm.kept(103.0)
    calm.lacking(set(), 104.0)
    calm.lacking({REFUSED}, 105.0)
    assert ask(calm, 105.0), "it was filled meanwhile"


def test_a_node_that_came_by_itself_may_come_back(calm):
    gone = replace(REFUSED, refused=False)
    calm.lacking({gone}, 100.0)
    assert calm.wakes_at_s() == 100.0 + SETTINGS.return_s
    calm.lacking(set(), 105.0)
    assert calm.wakes_at_s() == inf
    calm.lacking({gone}, 200.0)
    assert ask(calm, 210.0).causes == (Cause.LOST,)


def test_one_that_will_be_taken_away_without_a_replacement_is_asked_about(calm):
    calm.lacking({replace(REFUSED, node_id="node-1")}, 100.0)
    assert ask(calm, 100.0).causes == (Cause.NOTICED,)


def test_while_a_change_is_carried_out_only_what_is_urgent_is_asked(calm):
    calm.happened(Cause.CAME, 100.0)
    assert calm.wakes_at_s(busy=True) == inf
    assert calm.due({}, 200.0, busy=True) is None
    calm.happened(Cause.LOST, 200.0)
    found = calm.due({}, 200.0, busy=True)
    assert found is not None
    assert found.causes == (Cause.LOST,)
    calm.kept(200.0)
    assert ask(calm, 300.0).causes == (Cause.CAME,), "it was not forgotten"


def test_a_loss_overtakes_a_question_about_an_improvement(calm):
    calm.happened(Cause.CAME, 100.0)
    ask(calm, 101.0)
    assert not calm.overtaken
    calm.happened(Cause.LOST, 101.1)
    assert calm.overtaken
    calm.withdrawn(101.1)
    assert ask(calm, 101.1).causes == (Cause.LOST,)
    calm.kept(101.1)
    assert ask(calm, 300.0).causes == (Cause.CAME,)


def test_an_operator_waits_for_no_pause(calm):
    calm.happened(Cause.LOST, 10.0)
    ask(calm, 10.0)
    calm.failed("away", False, 10.0)
    calm.happened(Cause.OPERATOR, 10.1)
    found = ask(calm, 10.1)
    assert found.improve
    assert set(found.causes) == {Cause.LOST, Cause.OPERATOR}


def test_what_is_offered_at_the_start_is_no_news():
    replanner = Replanner(SETTINGS)
    replanner.start_with([OFFER])
    replanner.offered([OFFER], 0.0)
    assert replanner.wakes_at_s() == inf
    replanner.offered([replace(OFFER, count=5)], 10.0)
    assert ask(replanner, 10.0 + SETTINGS.steady_s).causes == (Cause.OFFERS,)


def test_a_budget_that_prices_outgrow_is_asked_about_once(calm):
    for now_s in (100.0, 101.0):
        calm.exceeded(True, now_s)
        found = calm.due({}, now_s)
        assert (found is not None) == (now_s == 100.0)
        if found is not None:
            assert found.causes == (Cause.BUDGET,)
            calm.kept(now_s)


def test_a_plan_that_was_made_for_no_workload_is_changed_by_none_where_arrivals_do_not_count():
    replanner = Replanner(replace(SETTINGS, counts_arrivals=False))
    replanner.measured(PLANNED, 0.0)
    assert replanner.wakes_at_s() == inf
    replanner.happened(Cause.OPERATOR, 0.0)
    assert ask(replanner, 0.0).workload == PLANNED
    replanner.taken(0.0)
    replanner.measured(replace(PLANNED, arrival_rate_rps=9.0), 100.0)
    assert replanner.wakes_at_s() == inf
    replanner.measured(replace(PLANNED, output_tokens=900.0), 100.0)
    assert ask(replanner, 101.0).causes == (Cause.WORKLOAD,)


def test_a_workload_counts_once_it_was_measured_for_a_while():
    replanner = Replanner(SETTINGS)
    replanner.measured(None, 0.0)
    replanner.measured(replace(PLANNED, window_s=SETTINGS.measured_s / 2), 0.0)
    assert replanner.wakes_at_s() == inf
    replanner.measured(replace(PLANNED, window_s=SETTINGS.measured_s), 30.0)
    assert ask(replanner, 31.0).causes == (Cause.WORKLOAD,)


def test_a_workload_within_the_envelope_is_the_same(calm):
    calm.measured(replace(PLANNED, arrival_rate_rps=2.4), 100.0)
    assert calm.wakes_at_s() == inf
    calm.measured(replace(PLANNED, arrival_rate_rps=4.0), 110.0)
    assert ask(calm, 111.0).workload.arrival_rate_rps == 4.0
    calm.kept(111.0)
    calm.measured(replace(PLANNED, arrival_rate_rps=4.1), 120.0)
    assert calm.wakes_at_s() == inf
    calm.measured(PLANNED, 500.0)
    calm.measured(replace(PLANNED, arrival_rate_rps=4.1), 500.5)
    assert calm.wakes_at_s() == inf


def test_nothing_is_improved_within_the_cool_down(calm):
    calm.measured(replace(PLANNED, output_tokens=900.0), 5.0)
    assert calm.due({}, SETTINGS.cool_down_s - 0.1) is None
    assert ask(calm, SETTINGS.cool_down_s).improve


def test_a_failure_is_asked_again_after_growing_pauses_and_for_good_only_when_all_else_changes(
    calm,
):
    calm.happened(Cause.LOST, 10.0)
    pauses, now_s = [], 10.0
    for _ in range(4):
        ask(calm, now_s)
        calm.failed("away", False, now_s)
        pauses.append(calm.wakes_at_s() - now_s)
        now_s = calm.wakes_at_s()
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    ask(calm, now_s)
    calm.failed("does not fit", True, now_s)
    assert calm.wakes_at_s() == inf
    calm.happened(Cause.CAME, now_s + 100.0)
    assert ask(calm, now_s + 200.0).causes == (Cause.CAME,)


EVENTS = st.lists(
    st.tuples(
        st.floats(0.01, 30.0),
        st.sampled_from(["lost", "offer", "price", "gone", "load", "refused"]),
        st.floats(0.5, 2.0),
    ),
    min_size=1,
    max_size=60,
)


@given(EVENTS, st.sampled_from(["taken", "kept", "failed"]))
def test_under_any_events_questions_are_bounded_and_time_goes_on(events, answer):
    replanner, now_s, losses, questions, improvements = Replanner(SETTINGS), 0.0, 0, 0, []
    for pause_s, kind, much in events:
        until_s = now_s + pause_s
        while replanner.wakes_at_s() <= until_s:
            now_s = max(now_s, replanner.wakes_at_s())
            found = replanner.due({}, now_s)
            assert found is not None, "it wakes for nothing"
            questions += 1
            if found.improve:
                improvements.append(now_s)
            if answer == "failed":
                replanner.failed("away", False, now_s)
            else:
                getattr(replanner, answer)(now_s)
            assert replanner.wakes_at_s() > now_s or not losses
        now_s = until_s
        if kind == "lost":
            losses += 1
            replanner.happened(Cause.LOST, now_s)
        elif kind == "refused":
            losses += 1
            replanner.refused("spot", now_s + 10.0 * much)
            replanner.lacking({replace(REFUSED, stage=losses)}, now_s)
        elif kind == "load":
            replanner.measured(replace(PLANNED, arrival_rate_rps=2.0 * much), now_s)
        else:
            count = 0 if kind == "gone" else 2
            replanner.offered([replace(OFFER, count=count, price_per_hour=much)], now_s)
    if answer == "taken":
        assert questions <= losses + len(improvements)
        gaps = [b - a for a, b in pairwise(improvements)]
        assert all(gap >= SETTINGS.cool_down_s - 1e-6 for gap in gaps)
