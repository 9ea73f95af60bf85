"""What is asked of models: a router's report as values, and a workload as a message."""

from __future__ import annotations

import math
from collections.abc import Mapping

from shuntserve.controller.v1 import controller_pb2 as pb

from services.common.demand import Demand, Shares, TenantDemand
from services.common.errors import InvalidArgument
from services.common.wire import tenant_from
from services.controller.core.cluster.workload import MAX_MODELS, Workload
from services.controller.wire import name_from

MAX_MODEL_CHARS = 256
MAX_TENANTS = 10_000
MAX_ROUTERS = 1024


def demand_from(
    message: pb.ReportDemandRequest,
) -> tuple[str, str, float, Mapping[str, Demand]]:
    """Router, process, seconds since its start, counts by model. Raises InvalidArgument, naming
    the field."""
    measured_s = message.measured_s
    if not math.isfinite(measured_s) or measured_s < 0:
        raise InvalidArgument("measured_s is a time of 0 or more", field="measured_s")
    if len(message.models) > MAX_MODELS:
        raise InvalidArgument(f"at most {MAX_MODELS} models", field="models")
    demands = {}
    for one in message.models:
        if not 1 <= len(one.model_id) <= MAX_MODEL_CHARS:
            raise InvalidArgument(f"1 to {MAX_MODEL_CHARS} characters", field="models.model_id")
        demands[one.model_id] = Demand(
            one.requests, one.input_tokens, one.answers, one.output_tokens, one.open
        )
    router_id = name_from(message.router_id, "router_id")
    return router_id, name_from(message.incarnation, "incarnation"), measured_s, demands


def tenants_from(message: pb.ReportDemandRequest) -> Mapping[str, TenantDemand]:
    """What tenants asked of a router. Raises InvalidArgument, naming the field."""
    if len(message.tenants) > MAX_TENANTS:
        raise InvalidArgument(f"at most {MAX_TENANTS} tenants", field="tenants")
    demands = {}
    for one in message.tenants:
        if not one.tenant:
            raise InvalidArgument("a tenant has a name", field="tenants.tenant")
        if not 0.0 <= one.share <= 1.0:
            raise InvalidArgument("a share lies in [0, 1]", field="tenants.share")
        demands[tenant_from(one.tenant)] = TenantDemand(one.requests, one.tokens, one.share)
    return demands


def shares_to(shares: Shares) -> pb.ReportDemandResponse:
    return pb.ReportDemandResponse(
        routers=shares.routers,
        shares=[
            pb.TenantShare(tenant=name, share=share) for name, share in shares.by_tenant.items()
        ],
    )


def workload_to(model_id: str, workload: Workload, open_requests: int) -> pb.WorkloadStatus:
    return pb.WorkloadStatus(
        model_id=model_id,
        arrival_rate_rps=workload.arrival_rate_rps,
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
        open=open_requests,
    )
