from __future__ import annotations

import pytest

from services.common.errors import ResourceExhausted
from services.router.core.admission import Admission


def filled(admission: Admission, model_id: str, deployed: tuple[str, ...]) -> int:
    """Takes every place that the model gets; how many it has then."""
    while True:
        try:
            admission.check(model_id, deployed)
        except ResourceExhausted:
            return admission.of(model_id)
        admission.take(model_id, "", 1)


def test_one_model_alone_has_every_place() -> None:
    admission = Admission(8)
    assert filled(admission, "a", ("a",)) == 8
    admission.leave("a", "")
    admission.check("a", ("a",))


def test_each_of_several_has_half_its_share_to_itself() -> None:
    admission = Admission(16)
    assert filled(admission, "a", ("a", "b")) == 12
    assert filled(admission, "b", ("a", "b")) == 4
    assert admission.total == 16
    with pytest.raises(ResourceExhausted, match="16 generations"):
        admission.check("b", ("a", "b"))


def test_what_is_not_deployed_takes_nobodys_own_place() -> None:
    admission = Admission(16)
    assert filled(admission, "", ("a", "b")) == 8
    assert filled(admission, "a", ("a", "b")) == 4
    assert filled(admission, "b", ("a", "b")) == 4


def test_the_refusal_names_the_model() -> None:
    admission = Admission(4)
    filled(admission, "a", ("a", "b"))
    with pytest.raises(ResourceExhausted, match="of a are followed") as refused:
        admission.check("a", ("a", "b"))
    assert refused.value.field == "model"


def held_by(admission: Admission, tenant: str, weight: int = 1) -> int:
    """Takes every place that the tenant gets; how many those are."""
    count = 0
    while True:
        try:
            admission.check("m", ("m",))
            admission.check_tenant(tenant, weight)
        except ResourceExhausted:
            return count
        admission.take("m", tenant, weight)
        count += 1


def test_a_tenant_that_floods_leaves_places_to_others_and_each_gets_its_part() -> None:
    admission = Admission(64)
    assert held_by(admission, "flood") == 48
    assert held_by(admission, "quiet") == 16
    assert admission.total == 64
    admission = Admission(64)
    assert held_by(admission, "flood") == 48
    assert held_by(admission, "light") == 16, "half would be its part, and there is not more"
    admission = Admission(64)
    assert held_by(admission, "heavy", 7) == 48
    assert held_by(admission, "light", 1) == 8
    assert held_by(admission, "heavy", 7) == 8


def test_who_is_nobodys_tenant_has_every_place() -> None:
    assert held_by(Admission(64), "") == 64


def test_places_that_were_left_are_anybodys_again() -> None:
    admission = Admission(64)
    held_by(admission, "a")
    for _ in range(48):
        admission.leave("m", "a")
    assert admission.total == 0
    assert held_by(admission, "b") == 48
