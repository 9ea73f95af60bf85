"""A router's report is checked by field before it counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from shuntserve.controller.v1 import controller_pb2 as pb

from services.common.demand import Demand, Shares, TenantDemand
from services.common.errors import InvalidArgument
from services.controller.core.cluster.workload import MAX_MODELS
from services.controller.wire_demand import (
    MAX_TENANTS,
    demand_from,
    shares_to,
    tenants_from,
)

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


TENANT = pb.TenantDemand(tenant="acme", requests=4, tokens=90, share=0.25)


def test_what_tenants_asked_is_what_was_counted_and_shares_go_back() -> None:
    assert tenants_from(report(tenants=[TENANT])) == {"acme": TenantDemand(4, 90, 0.25)}
    answer = shares_to(Shares(3, {"acme": 0.5}))
    assert (answer.routers, [(s.tenant, s.share) for s in answer.shares]) == (3, [("acme", 0.5)])


@pytest.mark.parametrize(
    ("tenants", "field"),
    [
        ([TENANT] * (MAX_TENANTS + 1), "tenants"),
        ([pb.TenantDemand(share=0.5)], "tenants.tenant"),
        ([pb.TenantDemand(tenant="a b")], "tenant"),
        ([pb.TenantDemand(tenant="a", share=1.5)], "tenants.share"),
        ([pb.TenantDemand(tenant="a", share=math.nan)], "tenants.share"),
    ],
)
def test_a_tenant_that_cannot_be_is_refused_by_its_field(tenants: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        tenants_from(report(tenants=tenants))
    assert refused.value.field == field
