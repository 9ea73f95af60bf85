from __future__ import annotations

from typing import Any

import pytest

from services.cli.ec2.account import AwsRefusal
from services.cli.ec2.stack import Stack
from services.cli.ec2.template import Template, parsed_parameters
from services.cli.mesh_directory import MeshError

TEMPLATE = Template("body", {"MeshName": {}, "Routers": {"Default": 2}, "New": {"Default": "x"}})
ARN = "arn:aws:cloudformation:us-east-1:1:stack/m/1"


class CloudFormation:
    """A stack that is in one state after another."""

    def __init__(self, *states: str, events: list[dict[str, Any]] | None = None) -> None:
        self.states = list(states)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.events = events or []
        self.refuses: dict[str, tuple[str, str]] = {}

    def describe_stacks(self, StackName: str) -> dict[str, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if not state:
            raise AwsRefusal("ValidationError", f"Stack with id {StackName} does not exist", "x")
        parameters = [{"ParameterKey": k, "ParameterValue": "v"} for k in ("MeshName", "Routers")]
        outputs = [{"OutputKey": "Bucket", "OutputValue": "b"}]
        return {
            "Stacks": [
                {
                    "StackStatus": state,
                    "StackId": ARN,
                    "Parameters": parameters,
                    "Outputs": outputs,
                }
            ]
        }

    def describe_stack_events(self, StackName: str) -> dict[str, Any]:
        return {"StackEvents": self.events if "done" in [name for name, _ in self.calls] else []}

    def __getattr__(self, name: str) -> Any:
        def call(**arguments: Any) -> dict[str, Any]:
            self.calls += [(name, arguments), ("done", {})]
            if name in self.refuses:
                raise AwsRefusal(*self.refuses[name], f"cloudformation:{name}")
            return {}

        return call

    @property
    def changes(self) -> list[str]:
        return [name for name, _ in self.calls if name != "done"]


class InAccount:
    region = "us-east-1"

    def __init__(self, cloud: CloudFormation) -> None:
        self.cloud = cloud

    def client(self, _: str) -> CloudFormation:
        return self.cloud


@pytest.fixture
def said() -> list[str]:
    return []


def stack(cloud: CloudFormation, said: list[str]) -> Stack:
    return Stack(InAccount(cloud), "m", said.append, poll_s=0.0)  # type: ignore[arg-type]


def failed(what: str, reason: str, event_id: str = "1") -> dict[str, Any]:
    return {
        "EventId": event_id,
        "LogicalResourceId": what,
        "ResourceStatus": "CREATE_FAILED",
        "ResourceStatusReason": reason,
    }


@pytest.mark.parametrize(
    ("states", "changes"),
    [
        (["", "CREATE_IN_PROGRESS", "CREATE_COMPLETE"], ["create_stack"]),
        (["REVIEW_IN_PROGRESS", "CREATE_COMPLETE"], ["create_stack"]),
        (["CREATE_IN_PROGRESS", "CREATE_COMPLETE"], ["update_stack"]),
        (["CREATE_COMPLETE", "UPDATE_IN_PROGRESS", "UPDATE_COMPLETE"], ["update_stack"]),
        (["UPDATE_ROLLBACK_COMPLETE", "UPDATE_COMPLETE"], ["update_stack"]),
        (
            ["UPDATE_ROLLBACK_FAILED", "UPDATE_ROLLBACK_COMPLETE", "UPDATE_COMPLETE"],
            ["continue_update_rollback", "update_stack"],
        ),
        (
            ["ROLLBACK_COMPLETE", "ROLLBACK_COMPLETE", "DELETE_COMPLETE", "", "CREATE_COMPLETE"],
            ["delete_stack", "create_stack"],
        ),
        (["DELETE_IN_PROGRESS", "DELETE_COMPLETE", "", "CREATE_COMPLETE"], ["create_stack"]),
    ],
)
def test_a_stack_is_brought_up_from_whatever_state_it_was_left_in(
    states: list[str], changes: list[str], said: list[str]
) -> None:
    cloud = CloudFormation(*states)
    view = stack(cloud, said).deploy(TEMPLATE, {"MeshName": "m"})
    assert view.stands
    assert view.outputs == {"Bucket": "b"}
    assert cloud.changes == changes


def test_what_is_not_given_has_its_default_at_first_and_stays_as_it_was_then(
    said: list[str],
) -> None:
    cloud = CloudFormation("", "CREATE_COMPLETE")
    stack(cloud, said).deploy(TEMPLATE, {"MeshName": "m"})
    rows = cloud.calls[0][1]["Parameters"]
    assert {row["ParameterKey"]: row["ParameterValue"] for row in rows} == {
        "MeshName": "m",
        "Routers": "2",
        "New": "x",
    }
    cloud = CloudFormation("CREATE_COMPLETE", "UPDATE_COMPLETE")
    stack(cloud, said).deploy(TEMPLATE, {"MeshName": "m"})
    assert cloud.calls[0][1]["Parameters"] == [
        {"ParameterKey": "MeshName", "ParameterValue": "m"},
        {"ParameterKey": "Routers", "UsePreviousValue": True},
    ]


def test_a_stack_that_is_as_it_should_be_is_left_alone(said: list[str]) -> None:
    cloud = CloudFormation("CREATE_COMPLETE")
    cloud.refuses["update_stack"] = ("ValidationError", "No updates are to be performed.")
    assert stack(cloud, said).deploy(TEMPLATE, {}).stands
    assert said == ["stack m is as it should be"]


def test_the_first_failure_is_told_and_not_those_it_led_to(said: list[str]) -> None:
    events = [
        failed("Queue", "Resource creation cancelled", "2"),
        failed("Vpc", "The maximum number of VPCs. (Error Code: VpcLimitExceeded)", "1"),
    ]
    cloud = CloudFormation("", "CREATE_IN_PROGRESS", "ROLLBACK_COMPLETE", events=events)
    with pytest.raises(MeshError, match=r"Vpc: the account's quota is used up.*L-F678F1CE"):
        stack(cloud, said).deploy(TEMPLATE, {})
    assert [line.split()[:2] for line in said[1:]] == [
        ["create_failed", "Vpc:"],
        ["create_failed", "Queue:"],
    ]


def test_an_update_that_was_rolled_back_is_no_success(said: list[str]) -> None:
    cloud = CloudFormation("CREATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")
    with pytest.raises(MeshError, match="UPDATE_ROLLBACK_COMPLETE"):
        stack(cloud, said).deploy(TEMPLATE, {})


def test_a_stack_that_never_rests_is_given_up(said: list[str]) -> None:
    cloud = CloudFormation("UPDATE_ROLLBACK_FAILED")
    with pytest.raises(MeshError, match="does not come to rest"):
        stack(cloud, said).deploy(TEMPLATE, {})


@pytest.mark.parametrize(
    ("states", "changes", "existed"),
    [
        ([""], [], False),
        (["CREATE_COMPLETE", "DELETE_IN_PROGRESS", "DELETE_COMPLETE"], ["delete_stack"], True),
        (["DELETE_IN_PROGRESS", "DELETE_COMPLETE"], [], True),
        (["DELETE_FAILED", "DELETE_IN_PROGRESS", ""], ["delete_stack"], True),
        (["UPDATE_IN_PROGRESS", "UPDATE_COMPLETE", ""], ["delete_stack"], True),
    ],
)
def test_a_stack_is_deleted_from_whatever_state_it_is_in(
    states: list[str], changes: list[str], existed: bool, said: list[str]
) -> None:
    cloud = CloudFormation(*states)
    assert stack(cloud, said).delete() is existed
    assert cloud.changes == changes


def test_what_holds_a_stacks_end_up_is_told(said: list[str]) -> None:
    events = [failed("Bucket", "The bucket is not empty") | {"ResourceStatus": "DELETE_FAILED"}]
    cloud = CloudFormation("CREATE_COMPLETE", "DELETE_FAILED", events=events)
    with pytest.raises(MeshError, match="DELETE_FAILED: Bucket: The bucket is not empty"):
        stack(cloud, said).delete()


def test_where_none_stands_it_is_told_how_one_is_made(said: list[str]) -> None:
    with pytest.raises(MeshError, match="shunt ec2 up --mesh m"):
        stack(CloudFormation(""), said).standing()


def test_parameters_are_told_by_name(tmp_path: Any) -> None:
    with pytest.raises(MeshError, match="the stack has no Rooters"):
        TEMPLATE.check({"Rooters": "2"})
    assert TEMPLATE.needed == ("MeshName",)
    file = tmp_path / "paper.json"
    file.write_text('[{"ParameterKey": "Routers", "ParameterValue": "3"}]')
    assert parsed_parameters(["Routers=4", "A=b=c"], file) == {"Routers": "4", "A": "b=c"}
    for text in ("{}x", '[{"Key": 1}]', "3"):
        file.write_text(text)
        with pytest.raises(MeshError, match="--parameters"):
            parsed_parameters([], file)
    with pytest.raises(MeshError, match="--parameter: 'Routers' is not NAME=VALUE"):
        parsed_parameters(["Routers"])


def test_the_template_that_comes_with_the_commands_can_be_read() -> None:
    found = Template.read()
    assert set(found.needed) == {"GatewayCidr", "ServicesImage", "NodeImage"}
    assert found.defaults["MeshName"] == "shunt"
