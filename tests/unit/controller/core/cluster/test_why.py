from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from services.common.errors import InvalidArgument
from services.controller.core.cluster.actions import LogEvent
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.plan_json import plan_from_json, plan_to_json
from services.controller.core.cluster.why import MAX_CHARS, MAX_ENTRIES, Alternative, Why
from tests.unit.controller.small_cluster import BACK, FRONT, PATIENT, all_of, planned, ready

WHY = Why(
    reasons=("because",),
    alternatives=(Alternative("another", "speed"),),
    causes=("offers_changed", "workload_changed"),
    gain=0.25,
    horizon_s=1800.0,
    adopted_unix_s=5.5,
    late="TTFT 2.0 s against 1.0 s",
)


def with_why(why: Why) -> Plan:
    plan = planned({"node-1": FRONT, "node-2": BACK}, number=2)
    return Plan(plan.number, plan.deployments, why)


def test_reasons_are_kept_with_the_plan() -> None:
    plan = with_why(WHY)
    assert plan_from_json(plan_to_json(plan)) == plan


def test_a_plan_that_was_kept_before_there_were_reasons_has_none() -> None:
    document = json.loads(plan_to_json(with_why(WHY)))
    del document["why"]
    assert plan_from_json(json.dumps(document)).why == Why()


def test_a_plan_that_keeps_its_targets_says_nothing_of_them() -> None:
    """So that programs of before this can read it."""
    timely = json.loads(plan_to_json(with_why(replace(WHY, late=""))))
    assert "late" not in timely["why"]
    assert plan_from_json(json.dumps(timely)).why.late == ""


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("reasons", "because", "why.reasons"),
        ("reasons", [1], "why.reasons"),
        ("alternatives", [{"plan": "p"}], "why.alternatives[0].lacks"),
        ("gain", "much", "why.gain"),
        ("other", 1, "why"),
    ],
)
def test_what_is_wrong_in_them_is_told_by_its_place(key: str, value: object, field: str) -> None:
    document = json.loads(plan_to_json(with_why(WHY)))
    document["why"][key] = value
    with pytest.raises(InvalidArgument) as caught:
        plan_from_json(json.dumps(document))
    assert caught.value.field == field


def test_what_is_kept_has_a_bound_whatever_its_maker_says() -> None:
    talk = "x" * 10 * MAX_CHARS
    many = (talk,) * 10 * MAX_ENTRIES
    why = Why(many, (Alternative(talk, talk),) * 10 * MAX_ENTRIES, many, gain=math.inf)
    assert [len(why.reasons), len(why.alternatives), len(why.causes)] == [MAX_ENTRIES] * 3
    said = (*why.reasons, *why.causes, why.alternatives[0].plan, why.alternatives[0].lacks)
    assert {len(text) for text in said} == {MAX_CHARS}
    assert why.gain is None, "no JSON has an infinite number"


@pytest.mark.parametrize("late", ["", "TTFT 2.0 s against 1.0 s"])
def test_a_plan_that_is_late_says_so_when_it_is_carried_out(late: str) -> None:
    cluster = ready(PATIENT)
    adopted = all_of(cluster.plan_ready(with_why(Why(late=late)), 100.0), LogEvent)
    (told,) = [event.attributes for event in adopted if event.kind == "plan_ready"]
    assert told == {"plan": "2"} | ({"late": late} if late else {})


def test_when_a_plan_was_adopted_is_noted_in_wall_time() -> None:
    cluster = ready(PATIENT)
    cluster.plan_ready(with_why(Why(("because",))), 100.0)
    assert cluster.plan is not None
    assert cluster.plan.why.adopted_unix_s == 100.0 + cluster.unix_offset_s
    assert cluster.plan.why.reasons == ("because",)
