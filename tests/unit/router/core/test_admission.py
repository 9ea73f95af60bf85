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
        admission.take(model_id)


def test_one_model_alone_has_every_place() -> None:
    admission = Admission(8)
    assert filled(admission, "a", ("a",)) == 8
    admission.leave("a")
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
