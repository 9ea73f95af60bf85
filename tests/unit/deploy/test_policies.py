"""What the stack's roles may do, and what they may not, by the policies as they were deployed.
Policies that are too broad are put in on purpose, and each is caught by what must not be."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ec2.policies import Call, Context, allows
from tests.unit.deploy.stack import ACCOUNT, MESH, REGION, ROOT, Stack

EC2 = f"arn:aws:ec2:{REGION}:{ACCOUNT}"
PARAMETERS = f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/shuntserve/{MESH}"
INSTANCE = f"{EC2}:instance/i-0123456789abcdef0"
OTHER = f"{EC2}:instance/i-0fedcba9876543210"
OURS = {"aws:ResourceTag/shuntserve:mesh": MESH}
ROLES = ("ControllerRole", "RouterRole", "NodeRole")
PROVIDER = ROOT / "services/controller/providers/ec2"

Policies = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Facts:
    """Names that the stack's things got."""

    template: str
    vpc: str
    group: str
    image: str
    volume: str
    zone: str
    queue: str
    bucket: str
    node_role: str


@pytest.fixture(scope="module")
def facts(stack: Stack) -> Facts:
    queue = stack.outputs["QueueUrl"].rpartition("/")[2]
    return Facts(
        template=f"{EC2}:launch-template/{stack.outputs['NodeLaunchTemplate']}",
        vpc=f"{EC2}:vpc/{stack.ids['Vpc']}",
        group=f"{EC2}:security-group/{stack.ids['MeshGroup']}",
        image=f"arn:aws:ec2:{REGION}::image/{stack.launch('NodeTemplate')['ImageId']}",
        volume=f"{EC2}:volume/{stack.outputs['JournalVolume']}",
        zone=f"arn:aws:route53:::hostedzone/{stack.ids['Names']}",
        queue=f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}",
        bucket=f"arn:aws:s3:::{stack.outputs['Bucket']}",
        node_role=stack.outputs["NodeRole"],
    )


@pytest.fixture(scope="module")
def policies(stack: Stack) -> Policies:
    return {role: stack.policies(role) for role in ROLES}


def start(facts: Facts, **others: str) -> Context:
    """Of RunInstances on the instance, as an order of the controller's makes it."""
    return {
        "aws:RequestTag/shuntserve:mesh": MESH,
        "ec2:InstanceType": "g6e.xlarge",
        "ec2:LaunchTemplate": facts.template,
        **others,
    }


def secret(role: str, file: str = "key.pem") -> Call:
    return Call("ssm:GetParameter", f"{PARAMETERS}/certificates/{role}/{file}")


def needs(facts: Facts) -> dict[str, list[Call]]:
    """What each role does all day."""
    created: Context = {
        "ec2:CreateAction": "CreateFleet",
        "aws:RequestTag/shuntserve:mesh": MESH,
    }
    disk: Context = {"ec2:CreateAction": "RunInstances", "aws:RequestTag/shuntserve:stack": MESH}
    named: Context = {
        "route53:ChangeResourceRecordSetsNormalizedRecordNames": [
            f"controller.{MESH}.shunt.internal"
        ],
        "route53:ChangeResourceRecordSetsRecordTypes": ["A"],
        "route53:ChangeResourceRecordSetsActions": ["UPSERT"],
    }
    fleet: Context = {"aws:RequestTag/shuntserve:mesh": MESH}
    attached: Context = {
        "aws:ResourceTag/shuntserve:stack": MESH,
        "aws:ResourceTag/shuntserve:role": "controller",
    }
    models = [
        Call("s3:GetObject", f"{facts.bucket}/models/objects/0"),
        Call("s3:ListBucket", facts.bucket, {"s3:prefix": "models/objects/0"}),
    ]
    images = [
        Call("ecr:GetAuthorizationToken", "*"),
        Call("ecr:BatchGetImage", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/shuntserve/node"),
    ]
    parts = [
        facts.template,
        f"{EC2}:network-interface/*",
        f"{EC2}:volume/*",
        f"{EC2}:spot-instances-request/*",
        f"{EC2}:capacity-reservation/cr-1",
        facts.group,
        facts.image,
    ]
    subnet: Context = {"ec2:Vpc": facts.vpc}
    file = f"{facts.bucket}/files/{MESH}/file-1"
    files = [
        *(Call(f"s3:{action}", file) for action in ("GetObject", "PutObject", "DeleteObject")),
        Call("s3:AbortMultipartUpload", file),
        Call("s3:ListBucketMultipartUploads", facts.bucket),
        Call("s3:ListBucket", facts.bucket, {"s3:prefix": f"files/{MESH}/pieces/"}),
    ]
    return {
        "ControllerRole": [
            *(Call(f"ec2:{action}", "*") for action in described()),
            Call("ec2:DescribeVolumes", "*"),
            Call("ec2:CreateFleet", f"{EC2}:fleet/fleet-1", fleet),
            Call("ec2:CreateFleet", f"{EC2}:instance/*"),
            *(Call("ec2:CreateFleet", part) for part in (facts.template, facts.image)),
            Call("ec2:RunInstances", f"{EC2}:instance/*", start(facts)),
            Call("ec2:RunInstances", f"{EC2}:subnet/subnet-1", subnet),
            *(Call("ec2:RunInstances", part) for part in parts),
            *(Call("ec2:CreateTags", f"{EC2}:{k}/*", created) for k in ("fleet", "instance")),
            Call("ec2:CreateTags", f"{EC2}:volume/vol-1", disk),
            Call("ec2:TerminateInstances", INSTANCE, OURS),
            Call("iam:PassRole", facts.node_role, {"iam:PassedToService": "ec2.amazonaws.com"}),
            Call("sqs:ReceiveMessage", facts.queue),
            Call("sqs:DeleteMessage", facts.queue),
            Call("ec2:AttachVolume", facts.volume),
            Call("ec2:AttachVolume", INSTANCE, attached),
            Call("route53:ChangeResourceRecordSets", facts.zone, named),
            *(secret(role) for role in ("controller", "placement", "tensorstore")),
            Call("ssm:GetParameter", f"{PARAMETERS}/types"),
            *models,
            *images,
        ],
        "RouterRole": [
            *(secret(role) for role in ("router", "tensorstore")),
            *models,
            *files,
            *images,
        ],
        "NodeRole": [
            *(secret("engine", file) for file in ("authority.pem", "certificate.pem", "key.pem")),
            own(INSTANCE),
            *models,
            *images,
        ],
    }


def own(caller: str) -> Call:
    """A node asks for what was issued to the instance."""
    return Call(
        "ssm:GetParameter",
        f"{PARAMETERS}/certificates/engine/{INSTANCE.rpartition('/')[2]}/key.pem",
        {"aws:ResourceTag/shuntserve:instance": INSTANCE, "ec2:SourceInstanceARN": caller},
    )


def must_not(facts: Facts) -> dict[str, list[Call]]:
    """What none of them may ever do, by role; what is in `needs` of a sibling is added."""
    launch = Call("ec2:RunInstances", f"{EC2}:instance/*", start(facts))
    ends = Call("ec2:TerminateInstances", INSTANCE, OURS)
    elsewhere = f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/shuntserve/other"
    to_ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
    of_all = [
        Call("ec2:TerminateInstances", INSTANCE),
        Call("ec2:TerminateInstances", INSTANCE, {"aws:ResourceTag/shuntserve:mesh": "other"}),
        Call("s3:PutObject", f"{facts.bucket}/models/objects/0"),
        Call("s3:DeleteObject", f"{facts.bucket}/models/objects/0"),
        Call("s3:AbortMultipartUpload", f"{facts.bucket}/models/objects/0"),
        Call("s3:GetObject", "arn:aws:s3:::payroll/models/x"),
        *(
            Call(f"s3:{action}Object", f"{facts.bucket}/files/other/file-1")
            for action in ("Get", "Put", "Delete")
        ),
        Call("s3:ListBucket", facts.bucket, {"s3:prefix": "files/"}),
        Call("s3:ListBucket", facts.bucket, {"s3:prefix": "files/other/"}),
        Call("s3:PutObject", f"arn:aws:s3:::payroll/files/{MESH}/file-1"),
        Call("s3:ListBucket", facts.bucket, {"s3:prefix": ""}),
        Call("ssm:PutParameter", f"{PARAMETERS}/types"),
        Call("ssm:GetParameter", f"{elsewhere}/certificates/engine/key.pem"),
        Call("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", to_ec2),
        Call("iam:CreateRole", f"arn:aws:iam::{ACCOUNT}:role/x"),
        Call("sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/admin"),
        Call("sqs:SendMessage", facts.queue),
        Call("ec2:CreateLaunchTemplateVersion", facts.template),
        Call("ec2:AuthorizeSecurityGroupIngress", facts.group),
        Call("ec2:DeleteVolume", facts.volume),
        Call("ec2:DetachVolume", facts.volume),
        Call("kms:Decrypt", "*"),
        Call("ecr:PutImage", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/shuntserve/node"),
    ]
    into = {"ec2:CreateAction": "CreateFleet", "aws:RequestTag/shuntserve:mesh": "other"}
    later = {"aws:RequestTag/shuntserve:mesh": MESH}
    name = {
        "route53:ChangeResourceRecordSetsNormalizedRecordNames": ["pay.shunt.internal"],
        "route53:ChangeResourceRecordSetsRecordTypes": ["A"],
        "route53:ChangeResourceRecordSetsActions": ["UPSERT"],
    }
    instances = f"{EC2}:instance/*"
    of_controllers = [
        Call("ec2:RunInstances", instances, start(facts, **{"ec2:InstanceType": "p5.48xlarge"})),
        Call("ec2:RunInstances", instances, {**later, "ec2:InstanceType": "g6e.xlarge"}),
        Call(
            "ec2:RunInstances", instances, start(facts, **{"aws:RequestTag/shuntserve:mesh": "b"})
        ),
        Call("ec2:RunInstances", f"{EC2}:subnet/subnet-1", {"ec2:Vpc": f"{EC2}:vpc/vpc-1"}),
        Call("ec2:RunInstances", f"{EC2}:security-group/sg-1"),
        Call("ec2:RunInstances", f"arn:aws:ec2:{REGION}::image/ami-1"),
        Call("ec2:CreateFleet", f"{EC2}:fleet/fleet-1"),
        Call("ec2:CreateTags", INSTANCE, later),  # of what it has not just started
        Call("ec2:CreateTags", INSTANCE, into),
        Call("ec2:AttachVolume", f"{EC2}:volume/vol-1"),
        Call("ec2:AttachVolume", INSTANCE, OURS),
        Call("route53:ChangeResourceRecordSets", facts.zone, name),
        Call("iam:PassRole", facts.node_role, {"iam:PassedToService": "lambda.amazonaws.com"}),
        Call("sqs:ReceiveMessage", f"arn:aws:sqs:{REGION}:{ACCOUNT}:orders"),
        secret("router"),
        secret("engine"),
    ]
    file = f"{facts.bucket}/files/{MESH}/file-1"
    of_files = [
        *(Call(f"s3:{action}Object", file) for action in ("Get", "Put", "Delete")),
        Call("s3:ListBucket", facts.bucket, {"s3:prefix": f"files/{MESH}/"}),
    ]
    of_hosts = [
        launch,
        ends,
        Call("ec2:DescribeInstances", "*"),
        Call("ec2:CreateFleet", f"{EC2}:fleet/fleet-1", later),
        Call("iam:PassRole", facts.node_role, to_ec2),
        Call("sqs:ReceiveMessage", facts.queue),
        Call("ec2:AttachVolume", facts.volume),
        secret("controller"),
        secret("placement"),
        Call("ssm:GetParameter", f"{PARAMETERS}/types"),
    ]
    return {
        "ControllerRole": [*of_all, *of_files, *of_controllers],
        "RouterRole": [*of_all, *of_hosts, secret("engine"), own(INSTANCE)],
        "NodeRole": [
            *(*of_all, *of_files, *of_hosts),
            *(secret("router"), secret("tensorstore"), own(OTHER)),
        ],
    }


def wrongs(policies: Policies, facts: Facts) -> list[tuple[str, Call]]:
    """What is allowed and must not be."""
    return [
        (role, call)
        for role, calls in must_not(facts).items()
        for call in calls
        if allows(policies[role], call)
    ]


def described() -> list[str]:
    """Actions of EC2 that the controller asks on no resource."""
    return [
        action for action in asked("ec2") if action.startswith(("Describe", "GetSpotPlacement"))
    ]


def asked(service: str) -> set[str]:
    """Operations that the provider calls, as its source names them."""
    found = set[str]()
    for path in PROVIDER.glob("*.py"):
        for client, name in re.findall(
            r"_(ec2|sqs)\.(?:call|pages)\(\s*\"(\w+)\"", path.read_text()
        ):
            if client == service:
                found.add("".join(part.capitalize() for part in name.split("_")))
    return found


def test_each_role_may_do_what_it_is_for(policies: Policies, facts: Facts) -> None:
    for role, calls in needs(facts).items():
        refused = [call for call in calls if not allows(policies[role], call)]
        assert not refused, role


def test_no_role_may_do_more(policies: Policies, facts: Facts) -> None:
    assert not wrongs(policies, facts)


def test_the_controllers_rights_are_the_calls_that_its_provider_makes(policies: Policies) -> None:
    """And those that an order is checked by, and those of its host's scripts."""
    allowed = {
        action
        for document in policies["ControllerRole"]
        for statement in document["Statement"]
        for action in (
            [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        )
    }
    assert asked("sqs") == {"ReceiveMessage", "DeleteMessageBatch"}  # checked as DeleteMessage
    calls = {f"ec2:{name}" for name in asked("ec2")}
    assert len(calls) >= 6
    of_orders = {"ec2:RunInstances", "ec2:CreateTags", "iam:PassRole"}
    of_hosts = {"ec2:AttachVolume", "ec2:DescribeVolumes", "route53:ChangeResourceRecordSets"}
    of_each = {"s3:GetObject", "s3:ListBucket", "ssm:GetParameter", "ecr:BatchGetImage"} | {
        "ecr:GetDownloadUrlForLayer",
        "ecr:GetAuthorizationToken",
    }
    of_queue = {"sqs:ReceiveMessage", "sqs:DeleteMessage"}
    assert allowed == calls | of_orders | of_hosts | of_each | of_queue


def test_no_right_is_to_whatever_there_is(policies: Policies) -> None:
    """Nothing but what has no resource is on any; no action is a pattern."""
    for role, documents in policies.items():
        for statement in (one for document in documents for one in document["Statement"]):
            actions = statement["Action"]
            actions = [actions] if isinstance(actions, str) else actions
            assert not any("*" in action for action in actions), role
            if statement["Resource"] == "*":
                reads = ("ec2:Describe", "ec2:GetSpotPlacementScores", "ecr:GetAuthorizationToken")
                assert all(action.startswith(reads) for action in actions), (role, actions)


def find(policies: Policies, role: str, sid: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = (one for one in policies[role][0]["Statement"] if one["Sid"] == sid)
    return found


def add(role: str, action: str, resource: str = "*") -> Callable[[Policies], None]:
    def change(policies: Policies) -> None:
        statement = {"Sid": "More", "Effect": "Allow", "Action": action, "Resource": resource}
        policies[role][0]["Statement"].append(statement)

    return change


def put(role: str, sid: str, key: str, value: Any) -> Callable[[Policies], None]:
    def change(policies: Policies) -> None:
        find(policies, role, sid)[key] = value

    return change


def drop(role: str, sid: str, key: str = "Condition") -> Callable[[Policies], None]:
    def change(policies: Policies) -> None:
        del find(policies, role, sid)[key]

    return change


def without(role: str, sid: str, operator: str, key: str) -> Callable[[Policies], None]:
    def change(policies: Policies) -> None:
        del find(policies, role, sid)["Condition"][operator][key]

    return change


TOO_BROAD = {
    "a node launches": add("NodeRole", "ec2:RunInstances"),
    "a node ends its neighbours": add("NodeRole", "ec2:TerminateInstances"),
    "a node reads every secret": add("NodeRole", "ssm:GetParameter"),
    "a node reads what names another": drop("NodeRole", "ReadsWhatCarriesItsInstance"),
    "a node writes models": put("NodeRole", "ReadsModels", "Action", "s3:*"),
    "a node reads any bucket": put("NodeRole", "ReadsModels", "Resource", "arn:aws:s3:::*"),
    "a host lists all": drop("RouterRole", "ListsModels"),
    "a router reads the engines' key": put(
        "RouterRole", "ReadsItsParameters", "Resource", f"{PARAMETERS}/certificates/*"
    ),
    "a router keeps files among the models": put(
        "RouterRole", "KeepsFiles", "Resource", "arn:aws:s3:::*"
    ),
    "a router lists the files of other meshes": drop("RouterRole", "ListsFiles"),
    "a router decrypts": add("RouterRole", "kms:*"),
    "the controller ends what is not tagged": drop("ControllerRole", "EndsItsNodes"),
    "the controller passes any role": put(
        "ControllerRole", "GivesNodesTheirRole", "Resource", f"arn:aws:iam::{ACCOUNT}:role/*"
    ),
    "the controller gives the role to others": drop("ControllerRole", "GivesNodesTheirRole"),
    "the controller buys any type": without(
        "ControllerRole", "StartsItsTypesWithItsTag", "StringEquals", "ec2:InstanceType"
    ),
    "the controller buys without the tag": without(
        "ControllerRole",
        "StartsItsTypesWithItsTag",
        "StringEquals",
        "aws:RequestTag/shuntserve:mesh",
    ),
    "the controller buys by no template": without(
        "ControllerRole", "StartsItsTypesWithItsTag", "ArnEquals", "ec2:LaunchTemplate"
    ),
    "the controller starts anywhere": drop("ControllerRole", "StartsInItsNetwork"),
    "the controller tags strangers": without(
        "ControllerRole", "TagsWhatItStarts", "StringEquals", "ec2:CreateAction"
    ),
    "the controller writes templates": add("ControllerRole", "ec2:CreateLaunchTemplateVersion"),
    "the controller takes any name": drop("ControllerRole", "TakesTheControllersName"),
    "the controller attaches any volume": put(
        "ControllerRole", "AttachesTheJournal", "Resource", f"{EC2}:volume/*"
    ),
    "the controller hears any queue": put("ControllerRole", "HearsOfNodes", "Resource", "*"),
    "all of EC2": add("ControllerRole", "ec2:*"),
}


@pytest.mark.parametrize("name", TOO_BROAD)
def test_a_policy_that_is_too_broad_is_caught(policies: Policies, facts: Facts, name: str) -> None:
    broad = deepcopy(policies)
    TOO_BROAD[name](broad)
    assert wrongs(broad, facts)


def test_the_source_that_is_read_for_calls_is_there() -> None:
    assert Path(PROVIDER / "hands.py").is_file()
    assert {"CreateFleet", "TerminateInstances"} <= asked("ec2")
