"""deploy/ec2/template.yaml as a stack on moto, and as it was written."""

from __future__ import annotations

from ast import literal_eval
from base64 import b64decode
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import yaml
from cfnlint.decode import cfn_yaml

ROOT = Path(__file__).parents[3]
TEMPLATE = ROOT / "deploy/ec2/template.yaml"
PAPER = ROOT / "deploy/ec2/paper.json"
HOST = ROOT / "deploy/ec2/host"
REGION = "us-east-1"  # moto has the zones of no other
ACCOUNT = "123456789012"
MESH = "prod"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/shuntserve"


def parsed() -> dict[str, Any]:
    """The template, its functions written out."""
    found: dict[str, Any] = cfn_yaml.load(str(TEMPLATE))
    return found


def given(**others: str) -> list[dict[str, str]]:
    """Parameters of a stack. moto does not take a list's default apart, so each list is among
    them."""
    declared = parsed()["Parameters"]
    lists = {
        name: said["Default"]
        for name, said in declared.items()
        if said["Type"] == "CommaDelimitedList"
    }
    chosen = {
        **lists,
        "MeshName": MESH,
        "GatewayCidr": "198.51.100.0/24",
        "OperatorCidr": "198.51.100.7/32",
        "PrometheusCidr": "198.51.100.9/32",
        "ServicesImage": f"{REGISTRY}/services:1.0",
        "NodeImage": f"{REGISTRY}/node:1.0",
        **others,
    }
    return [{"ParameterKey": key, "ParameterValue": value} for key, value in chosen.items()]


@dataclass(frozen=True)
class Stack:
    """One that was created."""

    name: str
    url: str
    _clients: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self._make_client(service)
        return self._clients[service]

    def _make_client(self, service: str) -> Any:
        return boto3.session.Session().client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def create(self, **others: str) -> None:
        self.client("cloudformation").create_stack(
            StackName=self.name,
            TemplateBody=TEMPLATE.read_text(),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=given(**others),
        )

    @cached_property
    def outputs(self) -> dict[str, str]:
        (told,) = self.client("cloudformation").describe_stacks(StackName=self.name)["Stacks"]
        assert told["StackStatus"] == "CREATE_COMPLETE"
        return {row["OutputKey"]: row["OutputValue"] for row in told["Outputs"]}

    @cached_property
    def ids(self) -> dict[str, str]:
        """What was made, by its name in the template."""
        client = self.client("cloudformation")
        rows = client.describe_stack_resources(StackName=self.name)["StackResources"]
        return {
            row["LogicalResourceId"]: row.get("PhysicalResourceId", "")
            for row in rows
            if row.get("LogicalResourceId")
        }

    def policies(self, role: str) -> list[dict[str, Any]]:
        """Of a role, by its name in the template, as they were deployed."""
        iam, name = self.client("iam"), self.ids[role]
        assert not iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
        return [
            # moto shows what CloudFormation made as Python prints it
            literal_eval(iam.get_role_policy(RoleName=name, PolicyName=one)["PolicyDocument"])
            for one in iam.list_role_policies(RoleName=name)["PolicyNames"]
        ]

    def launch(self, template: str) -> dict[str, Any]:
        """What a launch template says."""
        client = self.client("ec2")
        (version,) = client.describe_launch_template_versions(LaunchTemplateId=self.ids[template])[
            "LaunchTemplateVersions"
        ]
        data: dict[str, Any] = version["LaunchTemplateData"]
        return data

    def user_data(self, template: str) -> str:
        return b64decode(self.launch(template)["UserData"]).decode()

    def node_config(self) -> str:
        """What the controller begins the user data of every node with."""
        files = written(self.user_data("ControllerTemplate"))
        return files["/etc/shuntserve/market/node.yaml"]


def written(user_data: str) -> dict[str, str]:
    """Files that a cloud-config writes, by path."""
    return {
        file["path"]: b64decode(file["content"]).decode()
        if file.get("encoding") == "b64"
        else file["content"]
        for file in yaml.safe_load(user_data)["write_files"]
    }


def environment(text: str) -> dict[str, str]:
    """Of an environment file."""
    return dict(line.split("=", 1) for line in text.splitlines())
