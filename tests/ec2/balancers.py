"""Load balancers, as moto's CloudFormation does not know them: of other things than HTTP."""

from __future__ import annotations

from typing import Any

from moto.elbv2.models import FakeLoadBalancer, elbv2_backends


def teach() -> None:
    """From now on a stack's load balancer is of the type that its template says, and carries its
    tags. moto makes each one an `application`, and refuses a listener of TCP for that."""
    setattr(FakeLoadBalancer, "create_from_cloudformation_json", staticmethod(_create))  # noqa: B010


def _create(
    resource_name: str,
    cloudformation_json: Any,
    account_id: str,
    region_name: str,
    **_: Any,
) -> FakeLoadBalancer:
    said = cloudformation_json["Properties"]
    return elbv2_backends[account_id][region_name].create_load_balancer(
        resource_name,
        said.get("SecurityGroups"),
        said.get("Subnets"),
        scheme=said.get("Scheme", "internet-facing"),
        loadbalancer_type=said.get("Type", "application"),
        tags=said.get("Tags"),
    )
