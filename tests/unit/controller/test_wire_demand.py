"""A router's report is checked by field before it counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from shuntserve.controller.v1 import controller_pb2 as pb

from services.common.demand import Demand
from services.common.errors import InvalidArgument
from services.controller.core.cluster.workload import MAX_MODELS
from services.controller.wire_demand import demand_from

ONE = pb.ModelDemand(model_id="m", requests=4, input_tokens=70, answers=3, output_tokens=90, open=1)


def report(**more: Any) -> pb.ReportDemandRequest:
    given = {"router_id": "r", "incarnation": "i", "measured_s": 2.0, "models": [ONE]}
    return pb.ReportDemandRequest(**(given | more))


def test_a_report_is_what_was_counted() -> None:
    assert demand_from(report()) == ("r", "i", 2.0, {"m": Demand(4, 70, 3, 90, 1)})


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"router_id": ""}, "router_id"),
        ({"incarnation": "x" * 200}, "incarnation"),
        ({"measured_s": math.nan}, "measured_s"),
        ({"measured_s": -1.0}, "measured_s"),
        ({"models": [ONE] * (MAX_MODELS + 1)}, "models"),
        ({"models": [pb.ModelDemand()]}, "models.model_id"),
    ],
)
def test_one_that_cannot_be_is_refused_by_its_field(more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        demand_from(report(**more))
    assert refused.value.field == field
