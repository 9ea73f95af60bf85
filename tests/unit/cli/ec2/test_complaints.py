from __future__ import annotations

import pytest

from services.cli.ec2.complaints import advice, of_stack

DENIED = (
    "User: arn:aws:iam::123456789012:user/me is not authorized to perform: "
    "cloudformation:CreateStack on resource: arn:aws:cloudformation:us-east-1:1:stack/x because no"
    " identity-based policy allows the cloudformation:CreateStack action"
)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("NoCredentialsError", "aws configure"),
        ("ExpiredToken", "aws sso login"),
        ("InvalidClientTokenId", "AWS_PROFILE"),
        ("NoRegionError", "--region"),
        ("AuthFailure", "region enabled"),
        ("OptInRequired", "Regions"),
    ],
)
def test_credentials_are_told_what_they_lack(code: str, says: str) -> None:
    assert says in advice(code, "whatever", "sts:GetCallerIdentity")


def test_a_right_that_is_lacking_is_named_with_its_resource() -> None:
    told = advice("AccessDenied", DENIED, "cloudformation:CreateStack")
    assert "allow cloudformation:CreateStack on arn:aws:cloudformation:us-east-1:1:stack/x" in told


def test_where_aws_does_not_name_the_right_the_call_does() -> None:
    told = advice("UnauthorizedOperation", "You are not authorized.", "ec2:DescribeSubnets")
    assert "allow ec2:DescribeSubnets" in told


@pytest.mark.parametrize(
    ("code", "message", "quota"),
    [
        ("VcpuLimitExceeded", "for g6e.xlarge you have requested more", "L-DB2E81BA"),
        ("MaxSpotInstanceCountExceeded", "p4d.24xlarge: Max spot count", "L-7212CCBC"),
        ("VpcLimitExceeded", "The maximum number of VPCs has been reached.", "L-F678F1CE"),
        ("TooManyBuckets", "You have attempted to create more buckets", "L-DC2B2D3D"),
    ],
)
def test_a_quota_is_named_with_the_command_that_asks_for_more(
    code: str, message: str, quota: str
) -> None:
    told = advice(code, message, "ec2:RunInstances")
    assert f"--quota-code {quota} " in told


def test_a_quota_of_no_known_family_is_told_as_it_is() -> None:
    assert "too much" in advice("VcpuLimitExceeded", "too much", "ec2:RunInstances")


def test_the_type_that_was_asked_for_tells_the_quota_where_the_message_does_not() -> None:
    told = advice("VcpuLimitExceeded", "too much", "ec2:CreateFleet", "c7i.large")
    assert "L-1216C47A" in told


def test_what_is_not_known_is_told_as_it_is_and_is_not_endless() -> None:
    told = advice("Strange", "word " * 1000, "s3:PutObject")
    assert told.startswith("s3:PutObject: Strange: word word")
    assert len(told) < 500


def test_a_failed_resource_of_a_stack_is_told_in_the_same_words() -> None:
    assert "allow cloudformation:CreateStack" in of_stack(f"Resource handler returned: {DENIED}")
    assert "L-F678F1CE" in of_stack("The maximum number of VPCs. (Error Code: VpcLimitExceeded)")
    assert of_stack("it\n  is broken") == "it is broken"
