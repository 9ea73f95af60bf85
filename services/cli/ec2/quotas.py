"""Quotas of an account that a mesh runs into, and how each is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """One of AWS's service quotas."""

    code: str
    name: str
    service: str = "ec2"

    @property
    def request(self) -> str:
        """The command that asks for more of it."""
        return (
            f"aws service-quotas request-service-quota-increase --service-code {self.service} "
            f"--quota-code {self.code} --desired-value N"
        )


_G_SPOT = Quota("L-3819A6DF", "All G and VT Spot Instance Requests")
_P_SPOT = Quota("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests")
_P5_SPOT = Quota("L-C4BD4855", "All P5 Spot Instance Requests")
_STANDARD_SPOT = Quota(
    "L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests"
)
_G = Quota("L-DB2E81BA", "Running On-Demand G and VT instances")
_P = Quota("L-417A185B", "Running On-Demand P instances")
_STANDARD = Quota("L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances")
OTHERS: Mapping[str, Quota] = {
    "VpcLimitExceeded": Quota("L-F678F1CE", "VPCs per Region", "vpc"),
    "InternetGatewayLimitExceeded": Quota("L-A4707A72", "Internet gateways per Region", "vpc"),
    "AddressLimitExceeded": Quota("L-0263D0A3", "EC2-VPC Elastic IPs"),
    "TooManyBuckets": Quota("L-DC2B2D3D", "General purpose buckets", "s3"),
    "TooManyLoadBalancers": Quota(
        "L-69A177A2", "Network Load Balancers per Region", "elasticloadbalancing"
    ),
}
"""By the error that says that one is used up."""
_FAMILY = re.compile(r"[a-z]+")
_STANDARD_FAMILIES = "acdhimrtz"


def vcpu_quota(instance_type: str, *, spot: bool) -> Quota | None:
    """The quota that counts an instance's vCPUs; None for a family that nobody here knows."""
    found = _FAMILY.match(instance_type)
    family = found.group() if found else ""
    if family in ("g", "gr", "vt"):
        return _G_SPOT if spot else _G
    if family == "p":
        if not spot:
            return _P
        return _P_SPOT if instance_type[1] in "234" else _P5_SPOT
    if family[:1] and family[:1] in _STANDARD_FAMILIES and family not in ("dl", "inf", "trn"):
        return _STANDARD_SPOT if spot else _STANDARD
    return None


@dataclass(frozen=True, slots=True)
class Need:
    """What a plan wants of a quota."""

    quota: Quota
    vcpus: int
    limit: float | None = None
    """What the account has; None where it does not tell."""

    @property
    def is_short(self) -> bool:
        return self.limit is not None and self.limit < self.vcpus


def needs(instances: Iterable[tuple[str, bool, int]], vcpus: Mapping[str, int]) -> tuple[Need, ...]:
    """Of instances, each a type, whether it is on spot, and how many there are."""
    sums: dict[Quota, int] = {}
    for instance_type, spot, count in instances:
        quota = vcpu_quota(instance_type, spot=spot)
        if quota is not None and instance_type in vcpus:
            sums[quota] = sums.get(quota, 0) + vcpus[instance_type] * count
    return tuple(Need(quota, total) for quota, total in sums.items())
