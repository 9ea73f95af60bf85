"""The stack, deployed on moto: each resource by its own service's describe call. What moto drops is
listed here, and asserted as it stands in the template."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from services.cli.ec2.bucket import files_prefix
from services.controller.providers.ec2.messages import read
from tests.unit.deploy.stack import MESH, REGION, REGISTRY, Stack, environment, parsed, written

DROPPED = {
    "AWS::EC2::SecurityGroupEgress": "MeshCallsMesh MeshSendsTelemetry GatewayCallsController",
    "AWS::S3::BucketPolicy": "BucketPolicy",
    "AWS::SQS::QueuePolicy": "QueuePolicy",
}
"""Resources of which moto makes nothing. Of the others it drops: a VPC's DNS settings, that a
subnet gives addresses, which table a subnet has, what goes out of a group, the VPCs of a zone, the
bucket's public access block, ownership and lifecycle, the journal's encryption and tags, attributes
of load balancer and target groups, update policies of groups, patterns of parameters, and rules."""
HIDDEN = {"MeshSendsTelemetry"}
"""Those that are only there with a parameter that this stack has not."""


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    """As they stand in the template."""
    found: dict[str, Any] = parsed()["Resources"]
    return found


def properties(resources: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = resources[name]["Properties"]
    return found


def tags(rows: list[dict[str, str]]) -> dict[str, str]:
    return {row["Key"]: row["Value"] for row in rows}


def one(rows: list[Any]) -> Any:
    (row,) = rows
    return row


def heard(group: dict[str, Any]) -> set[tuple[int, int, str]]:
    """Ports, and who may reach them."""
    return {
        (rule["FromPort"], rule["ToPort"], who)
        for rule in group["IpPermissions"]
        for who in [
            *(row["CidrIp"] for row in rule["IpRanges"]),
            *(row["GroupId"] for row in rule["UserIdGroupPairs"]),
        ]
    }


def test_all_is_made_but_what_moto_drops(stack: Stack, resources: dict[str, Any]) -> None:
    dropped = {name for names in DROPPED.values() for name in names.split()}
    assert {resources[name]["Type"] for name in dropped} == DROPPED.keys()
    assert set(resources) - set(stack.ids) == dropped | HIDDEN


def test_a_network_of_three_zones_whose_models_do_not_go_through_the_internet(
    stack: Stack, resources: dict[str, Any]
) -> None:
    ec2, ids = stack.client("ec2"), stack.ids
    vpc = one(ec2.describe_vpcs(VpcIds=[ids["Vpc"]])["Vpcs"])
    assert vpc["CidrBlock"] == "10.42.0.0/16"
    said = properties(resources, "Vpc")
    assert (said["EnableDnsSupport"], said["EnableDnsHostnames"]) == (True, True)
    names = ["Subnet1", "Subnet2", "Subnet3"]
    subnets = ec2.describe_subnets(SubnetIds=[ids[name] for name in names])["Subnets"]
    assert len({subnet["AvailabilityZone"] for subnet in subnets}) == 3
    assert {subnet["CidrBlock"] for subnet in subnets} == {
        "10.42.0.0/18",
        "10.42.64.0/18",
        "10.42.128.0/18",
    }
    assert {subnet["VpcId"] for subnet in subnets} == {ids["Vpc"]}
    assert all(properties(resources, name)["MapPublicIpOnLaunch"] for name in names)
    assert stack.outputs["Subnets"] == ",".join(ids[name] for name in names)
    table = one(ec2.describe_route_tables(RouteTableIds=[ids["RouteTable"]])["RouteTables"])
    for name in names:
        way = properties(resources, f"RoutesOf{name}")
        assert way == {"SubnetId": {"Ref": name}, "RouteTableId": {"Ref": "RouteTable"}}
    ways = {route.get("DestinationCidrBlock"): route.get("GatewayId") for route in table["Routes"]}
    assert ways["0.0.0.0/0"] == ids["InternetGateway"]
    gateway = one(
        ec2.describe_internet_gateways(InternetGatewayIds=[ids["InternetGateway"]])[
            "InternetGateways"
        ]
    )
    assert [row["VpcId"] for row in gateway["Attachments"]] == [ids["Vpc"]]
    endpoint = one(
        ec2.describe_vpc_endpoints(VpcEndpointIds=[ids["BucketEndpoint"]])["VpcEndpoints"]
    )
    assert endpoint["VpcEndpointType"] == "Gateway"
    assert endpoint["ServiceName"] == f"com.amazonaws.{REGION}.s3"
    assert endpoint["RouteTableIds"] == [ids["RouteTable"]]


def test_the_mesh_is_open_to_itself_and_the_gateway_to_whom_the_operator_names(
    stack: Stack, resources: dict[str, Any]
) -> None:
    ec2, ids = stack.client("ec2"), stack.ids
    names = ["MeshGroup", "GatewayGroup", "RouterGroup"]
    listed = ec2.describe_security_groups(GroupIds=[ids[name] for name in names])["SecurityGroups"]
    groups = {group["GroupId"]: group for group in listed}
    mesh, gateway, router = (ids[name] for name in names)
    assert heard(groups[mesh]) == {
        (7001, 7010, mesh),
        (7001, 7001, gateway),
        (9100, 9100, "198.51.100.9/32"),
    }
    assert heard(groups[gateway]) == {
        (80, 80, "198.51.100.0/24"),
        (50051, 50051, "198.51.100.0/24"),
        (7001, 7001, "198.51.100.7/32"),
    }
    assert heard(groups[router]) == {
        (8080, 8080, gateway),
        (50051, 50051, gateway),
    }
    outwards = {
        name: [
            (rule["IpProtocol"], rule["FromPort"], rule["ToPort"])
            for rule in properties(resources, name)["SecurityGroupEgress"]
        ]
        for name in names
    }
    assert outwards == {
        "MeshGroup": [("tcp", 443, 443)],
        "RouterGroup": [("tcp", 443, 443)],
        "GatewayGroup": [("tcp", 8080, 8080), ("tcp", 50051, 50051)],
    }
    ends = {
        name: (said["FromPort"], said["ToPort"])
        for name in DROPPED["AWS::EC2::SecurityGroupEgress"].split()
        for said in [properties(resources, name)]
        if said["IpProtocol"] == "tcp"
    }
    assert ends == {
        "MeshCallsMesh": (7001, 7010),
        "MeshSendsTelemetry": (4317, 4318),
        "GatewayCallsController": (7001, 7001),
    }
    assert resources["MeshSendsTelemetry"]["Condition"] == "SendsTelemetry"
    assert resources["MeshHearsPrometheus"]["Condition"] == "HasPrometheus"
    for name in ("GatewayHearsOperators", "GatewayCallsController", "ControllerHearsOperators"):
        assert resources[name]["Condition"] == "HasOperator", name


def test_models_are_kept_encrypted_and_nobody_reads_them_in_the_clear(
    stack: Stack, resources: dict[str, Any]
) -> None:
    s3, bucket = stack.client("s3"), stack.outputs["Bucket"]
    encryption = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]
    assert encryption["Rules"][0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert tags(s3.get_bucket_tagging(Bucket=bucket)["TagSet"])["shuntserve:stack"] == MESH
    said = resources["Bucket"]
    assert (said["DeletionPolicy"], said["UpdateReplacePolicy"]) == ("Retain", "Retain")
    assert set(said["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
    owner = one(said["Properties"]["OwnershipControls"]["Rules"])
    assert owner == {"ObjectOwnership": "BucketOwnerEnforced"}
    rule = one(said["Properties"]["LifecycleConfiguration"]["Rules"])
    assert "AbortIncompleteMultipartUpload" in rule
    assert "ExpirationInDays" not in rule, "models do not go by themselves"
    denied = one(properties(resources, "BucketPolicy")["PolicyDocument"]["Statement"])
    assert (denied["Effect"], denied["Principal"], denied["Action"]) == ("Deny", "*", "s3:*")
    assert denied["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_what_ec2_says_of_instances_comes_to_the_queue(
    stack: Stack, resources: dict[str, Any]
) -> None:
    sqs, events, queue = stack.client("sqs"), stack.client("events"), stack.outputs["QueueUrl"]
    held = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    assert (held["MessageRetentionPeriod"], held["VisibilityTimeout"]) == ("900", "30")
    assert held["SqsManagedSseEnabled"] == "true"
    rule = events.describe_rule(Name=stack.ids["Notices"])
    assert rule["State"] == "ENABLED"
    target = one(events.list_targets_by_rule(Rule=stack.ids["Notices"])["Targets"])
    assert target["Arn"] == held["QueueArn"]
    notice = "EC2 Spot Instance Interruption Warning"
    for source, kind in (("aws.ec2", notice), ("aws.ec2", "EC2 Fleet Error"), ("mine", notice)):
        detail = json.dumps({"instance-id": "i-1", "instance-action": "terminate"})
        events.put_events(Entries=[{"Source": source, "DetailType": kind, "Detail": detail}])
    found = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
    assert [json.loads(message["Body"])["detail-type"] for message in found] == [notice]
    pattern = json.loads(rule["EventPattern"])
    for kind in pattern["detail-type"]:
        event = {"source": one(pattern["source"]), "detail-type": kind, "id": "e-1"}
        told = {**event, "detail": {"instance-id": "i-1"}, "time": "2026-11-27T02:00:00Z"}
        assert read(json.dumps(told)), kind
    allowed = one(properties(resources, "QueuePolicy")["PolicyDocument"]["Statement"])
    assert allowed["Principal"] == {"Service": "events.amazonaws.com"}
    assert allowed["Action"] == "sqs:SendMessage"
    assert allowed["Condition"] == {
        "ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": ["Notices", "Arn"]}}
    }


@pytest.mark.parametrize("name", ["Controller", "Router", "Node"])
def test_each_kind_of_host_has_a_role_of_its_own(stack: Stack, name: str) -> None:
    iam, ids = stack.client("iam"), stack.ids
    profile = iam.get_instance_profile(InstanceProfileName=ids[f"{name}Profile"])["InstanceProfile"]
    assert [role["RoleName"] for role in profile["Roles"]] == [ids[f"{name}Role"]]
    trusted = one(
        iam.get_role(RoleName=ids[f"{name}Role"])["Role"]["AssumeRolePolicyDocument"]["Statement"]
    )
    assert trusted["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert stack.launch(f"{name}Template")["IamInstanceProfile"] == {"Arn": profile["Arn"]}


@pytest.mark.parametrize("name", ["Controller", "Router", "Node"])
def test_hosts_ask_for_tokens_and_their_disks_are_encrypted(stack: Stack, name: str) -> None:
    said = stack.launch(f"{name}Template")
    assert said["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 2,
        "InstanceMetadataTags": "enabled",
    }
    disk = one(said["BlockDeviceMappings"])["Ebs"]
    assert disk["Encrypted"]
    assert disk["DeleteOnTermination"]
    assert said["ImageId"].startswith("ami-")
    kinds = {spec["ResourceType"]: tags(spec["Tags"]) for spec in said["TagSpecifications"]}
    assert kinds == {"volume": {"shuntserve:stack": MESH, "shuntserve:role": name.lower()}}
    groups = [stack.ids["MeshGroup"]] + [stack.ids["RouterGroup"]] * (name == "Router")
    assert said["SecurityGroupIds"] == groups


def test_a_nodes_template_leaves_to_the_order_what_is_the_orders(stack: Stack) -> None:
    said = stack.launch("NodeTemplate")
    assert not {"InstanceType", "InstanceMarketOptions", "UserData", "KeyName"} & said.keys()
    assert said["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert stack.outputs["NodeLaunchTemplate"] == stack.ids["NodeTemplate"]


def test_one_controller_whose_journal_outlives_it(stack: Stack, resources: dict[str, Any]) -> None:
    groups = stack.client("autoscaling")
    group = one(
        groups.describe_auto_scaling_groups(
            AutoScalingGroupNames=[stack.outputs["ControllerGroup"]]
        )["AutoScalingGroups"]
    )
    assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"]) == (0, 1, 1)
    assert group["LaunchTemplate"]["LaunchTemplateId"] == stack.ids["ControllerTemplate"]
    (subnet,) = group["VPCZoneIdentifier"].split(",")
    ec2 = stack.client("ec2")
    zone = one(ec2.describe_subnets(SubnetIds=[subnet])["Subnets"])["AvailabilityZone"]
    volume = one(ec2.describe_volumes(VolumeIds=[stack.outputs["JournalVolume"]])["Volumes"])
    assert properties(resources, "Journal")["Encrypted"] is True
    assert (volume["Size"], volume["AvailabilityZone"]) == (20, zone)
    assert tags(properties(resources, "Journal")["Tags"])["shuntserve:role"] == "journal"
    assert resources["Journal"]["UpdateReplacePolicy"] == "Snapshot"
    assert one(group["Instances"])["InstanceId"] not in {
        row["InstanceId"] for row in volume["Attachments"]
    }, "the volume is nobody's in particular"
    update = resources["Controllers"]["UpdatePolicy"]["AutoScalingRollingUpdate"]
    assert update["MinInstancesInService"] == 0, "there is one volume"


def test_what_the_stack_starts_is_no_node(stack: Stack) -> None:
    groups = stack.client("autoscaling")
    for output, role in (("ControllerGroup", "controller"), ("RouterGroup", "router")):
        group = one(
            groups.describe_auto_scaling_groups(AutoScalingGroupNames=[stack.outputs[output]])[
                "AutoScalingGroups"
            ]
        )
        held = tags(group["Tags"])
        assert held["shuntserve:role"] == role
        assert held["shuntserve:stack"] == MESH
        assert "shuntserve:mesh" not in held, "the controller would end it"
        assert all(row["PropagateAtLaunch"] for row in group["Tags"])


def test_routers_scale_alone_behind_the_gateway(stack: Stack, resources: dict[str, Any]) -> None:
    groups, balancers = stack.client("autoscaling"), stack.client("elbv2")
    group = one(
        groups.describe_auto_scaling_groups(AutoScalingGroupNames=[stack.outputs["RouterGroup"]])[
            "AutoScalingGroups"
        ]
    )
    assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"]) == (0, 64, 2)
    assert set(group["VPCZoneIdentifier"].split(",")) == set(stack.outputs["Subnets"].split(","))
    assert group["HealthCheckType"] == "ELB"
    gateway = one(
        balancers.describe_load_balancers(LoadBalancerArns=[stack.ids["Gateway"]])["LoadBalancers"]
    )
    assert (gateway["Type"], gateway["Scheme"]) == ("network", "internet-facing")
    assert gateway["SecurityGroups"] == [stack.ids["GatewayGroup"]]
    assert stack.outputs["GatewayHost"] == gateway["DNSName"]
    assert stack.outputs["GatewayUrl"] == f"http://{gateway['DNSName']}"
    listeners = balancers.describe_listeners(LoadBalancerArn=stack.ids["Gateway"])["Listeners"]
    ways = {
        (row["Port"], row["Protocol"]): one(row["DefaultActions"])["TargetGroupArn"]
        for row in listeners
    }
    assert ways == {
        (80, "TCP"): stack.ids["HttpTargets"],
        (50051, "TCP"): stack.ids["GrpcTargets"],
        (7001, "TCP"): stack.ids["OperatorTargets"],
    }
    arns = [stack.ids[name] for name in ("HttpTargets", "GrpcTargets", "OperatorTargets")]
    listed = balancers.describe_target_groups(TargetGroupArns=arns)["TargetGroups"]
    checks = {
        row["Port"]: (row["HealthCheckProtocol"], row.get("HealthCheckPath")) for row in listed
    }
    assert checks == {8080: ("HTTP", "/readyz"), 50051: ("HTTP", "/readyz"), 7001: ("TCP", None)}
    assert set(group["TargetGroupARNs"]) == {stack.ids["HttpTargets"], stack.ids["GrpcTargets"]}
    for name in ("HttpTargets", "GrpcTargets"):
        said = {a["Key"]: a["Value"] for a in properties(resources, name)["TargetGroupAttributes"]}
        assert float(said["deregistration_delay.timeout_seconds"]) >= 25, "a pause and a drain"


def test_the_controllers_name_is_in_the_meshs_own_zone(
    stack: Stack, resources: dict[str, Any]
) -> None:
    zone = stack.client("route53").get_hosted_zone(Id=stack.ids["Names"])
    assert zone["HostedZone"]["Name"].rstrip(".") == f"{MESH}.shunt.internal"
    (where,) = properties(resources, "Names")["VPCs"]
    assert where["VPCId"] == {"Fn::If": ["MakesVpc", {"Ref": "Vpc"}, {"Ref": "VpcId"}]}
    host = environment(written(stack.user_data("ControllerTemplate"))["/etc/shuntserve/host.env"])
    assert f"{host['NAME']}:7001" == stack.outputs["ControllerAddress"]
    assert host["ZONE"] == stack.ids["Names"]


def test_a_mesh_in_a_network_that_there_is(stack: Stack) -> None:
    """And with a bucket that there is, a certificate, and no operators from outside."""
    ec2 = stack.client("ec2")
    subnets = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])
    first, second = sorted(subnets["Subnets"], key=lambda row: row["AvailabilityZone"])[:2]
    certificate = stack.client("acm").request_certificate(DomainName="llm.example.com")
    other = Stack("second", stack.url)
    other.create(
        MeshName="second",
        VpcId=first["VpcId"],
        SubnetIds=f"{first['SubnetId']},{second['SubnetId']}",
        JournalZone=first["AvailabilityZone"],
        ModelBucket="models-of-ours",
        OperatorCidr="",
        GatewayCertificateArn=certificate["CertificateArn"],
        GatewayScheme="internal",
        OtlpEndpoint="http://collector:4317",
        Routers="3",
    )
    absent = {"Vpc", "Subnet1", "Subnet3", "BucketEndpoint", "Bucket", "OperatorListener"}
    assert not absent & other.ids.keys()
    assert other.outputs["Bucket"] == "models-of-ours"
    assert "OperatorAddress" not in other.outputs
    assert other.outputs["Subnets"] == f"{first['SubnetId']},{second['SubnetId']}"
    assert other.outputs["GatewayUrl"].startswith("https://")
    listeners = stack.client("elbv2").describe_listeners(LoadBalancerArn=other.ids["Gateway"])
    assert {(row["Port"], row["Protocol"]) for row in listeners["Listeners"]} == {
        (443, "TLS"),
        (50051, "TCP"),
    }
    volume = one(ec2.describe_volumes(VolumeIds=[other.outputs["JournalVolume"]])["Volumes"])
    assert volume["AvailabilityZone"] == first["AvailabilityZone"]
    files = written(other.user_data("ControllerTemplate"))
    host = environment(files["/etc/shuntserve/host.env"])
    assert host["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4317"
    controller = environment(files["/etc/shuntserve/controller.env"])
    assert controller["SHUNT_CONTROLLER_STORE"] == "s3://models-of-ours/models"
    router = environment(written(other.user_data("RouterTemplate"))["/etc/shuntserve/router.env"])
    assert f"{router['SHUNT_ROUTER_FILES']}/" == f"s3://models-of-ours/{files_prefix('second')}"
    node = environment(written(other.node_config())["/etc/shuntserve/host.env"])
    assert node["IMAGE"] == f"{REGISTRY}/node:1.0"


def test_user_data_fit_and_have_keys_that_cloud_init_knows(stack: Stack) -> None:
    known = {"packages", "bootcmd", "write_files", "runcmd"}
    texts = [stack.user_data(f"{name}Template") for name in ("Controller", "Router")]
    for text in [*texts, stack.node_config()]:
        assert text.startswith("#cloud-config\n")
        assert yaml.safe_load(text).keys() <= known
        assert len(text.encode()) <= 16 << 10
