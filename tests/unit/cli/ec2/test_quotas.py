from __future__ import annotations

import pytest

from services.cli.ec2.quotas import needs, vcpu_quota

VCPUS = {"g5.12xlarge": 48, "g6e.xlarge": 4, "p5.48xlarge": 192, "c7i.large": 2, "inf2.xlarge": 4}


@pytest.mark.parametrize(
    ("instance_type", "spot", "code"),
    [
        ("g5.12xlarge", True, "L-3819A6DF"),
        ("g6e.xlarge", False, "L-DB2E81BA"),
        ("gr6.4xlarge", True, "L-3819A6DF"),
        ("vt1.3xlarge", False, "L-DB2E81BA"),
        ("p4d.24xlarge", True, "L-7212CCBC"),
        ("p5.48xlarge", True, "L-C4BD4855"),
        ("p5.48xlarge", False, "L-417A185B"),
        ("c7i.xlarge", True, "L-34B43A08"),
        ("t3.medium", False, "L-1216C47A"),
        ("im4gn.large", False, "L-1216C47A"),
    ],
)
def test_a_types_vcpus_count_for_its_familys_quota(
    instance_type: str, spot: bool, code: str
) -> None:
    quota = vcpu_quota(instance_type, spot=spot)
    assert quota is not None
    assert quota.code == code
    assert f"--quota-code {code} " in quota.request


@pytest.mark.parametrize(
    "instance_type", ["inf2.xlarge", "trn1.2xlarge", "dl1.24xlarge", "x2i.large", ""]
)
def test_of_a_family_that_is_not_known_nothing_is_said(instance_type: str) -> None:
    assert vcpu_quota(instance_type, spot=True) is None


def test_a_plans_vcpus_are_summed_by_quota() -> None:
    bought = [("g5.12xlarge", True, 2), ("g6e.xlarge", True, 4), ("g6e.xlarge", False, 1)]
    found = {need.quota.code: need.vcpus for need in needs(bought, VCPUS)}
    assert found == {"L-3819A6DF": 112, "L-DB2E81BA": 4}
