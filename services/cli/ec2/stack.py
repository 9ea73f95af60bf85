"""The stack of a mesh: made, changed, and deleted, from whatever state it was left in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.cli.ec2.account import Account, AwsRefusal
from services.cli.ec2.complaints import of_stack
from services.cli.ec2.template import Template
from services.cli.mesh_directory import MeshError

POLL_S = 3.0
LIMIT_S = 3600.0
"""One change of it; what takes longer goes on, and the same command waits for it again."""
MAX_TURNS = 8
"""States that a stack is brought through, from one that failed to one that stands."""
STACK_TAG = "shuntserve:stack"
"""What is the stack's own carries it; what its controller buys has the provider's tag."""
CAPABILITY = "CAPABILITY_IAM"
_STANDS = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE")
_DEAD = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
"""Nothing becomes of these but their deletion."""
_ABSENT = ("", "DELETE_COMPLETE", "REVIEW_IN_PROGRESS")
_ROLLBACK_FAILED = ("UPDATE_ROLLBACK_FAILED", "UPDATE_FAILED")
_NOTHING_TO_DO = "No updates are to be performed"
_MISSING = "does not exist"
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StackView:
    """A stack as CloudFormation describes it."""

    status: str
    reason: str
    outputs: Mapping[str, str]
    parameters: Mapping[str, str]
    arn: str

    @property
    def stands(self) -> bool:
        return self.status in _STANDS

    @property
    def is_busy(self) -> bool:
        return self.status.endswith("_IN_PROGRESS") and self.status != "REVIEW_IN_PROGRESS"


ABSENT = StackView("", "", {}, {}, "")


class Stack:
    """One, by its mesh's name."""

    def __init__(self, account: Account, name: str, tell: Tell, *, poll_s: float = POLL_S) -> None:
        """`tell` is given a line for each event of a resource."""
        self._cloud = account.client("cloudformation")
        self._region = account.region
        self._name = name
        self._tell = tell
        self._poll_s = poll_s
        self._told: set[str] = set()
        self._failures: list[str] = []

    def view(self) -> StackView:
        """As it is now; `ABSENT` where there is none. Raises AwsRefusal."""
        return self._view(self._name)

    def _view(self, name: str) -> StackView:
        try:
            found = self._cloud.describe_stacks(StackName=name)["Stacks"]
        except AwsRefusal as refusal:
            if refusal.code == "ValidationError" and _MISSING in refusal.said:
                return ABSENT
            raise
        if not found:
            return ABSENT
        one: dict[str, Any] = found[0]
        outputs = {row["OutputKey"]: row["OutputValue"] for row in one.get("Outputs", ())}
        parameters = {
            row["ParameterKey"]: row.get("ParameterValue", "") for row in one.get("Parameters", ())
        }
        status, reason = one["StackStatus"], one.get("StackStatusReason", "")
        if status == "DELETE_COMPLETE":
            return ABSENT
        return StackView(status, reason, outputs, parameters, one["StackId"])

    def standing(self) -> StackView:
        """Raises MeshError where it does not stand."""
        view = self.view()
        if not view.stands:
            what = f"is {view.status}" if view.status else "there is none"
            raise MeshError(
                f"no mesh {self._name} stands in {self._region} ({what}):"
                f" `shunt ec2 up --mesh {self._name}`"
            )
        return view

    def deploy(self, template: Template, given: Mapping[str, str]) -> StackView:
        """Makes it, or makes it what the template and these parameters say; parameters that are not
        given stay as they were. Raises MeshError, with what failed first."""
        for _ in range(MAX_TURNS):
            view = self.view()
            if view.is_busy:
                self._tell(f"stack {self._name} is {view.status}: waiting")
                self._settled(view)
            elif view.status in _ABSENT:
                self._create(template, given)
                return self._brought_up()
            elif view.status in _DEAD:
                self._tell(f"stack {self._name} is {view.status}: deleting what is left of it")
                self.delete()
            elif view.status in _ROLLBACK_FAILED:
                self._tell(f"stack {self._name} is {view.status}: rolling back")
                self._forget_events()
                self._cloud.continue_update_rollback(StackName=self._name)
                self._settled(view)
            elif not self._update(template, given, view):
                return view
            else:
                return self._brought_up()
        raise MeshError(f"stack {self._name} does not come to rest: {self.view().status}")

    def _create(self, template: Template, given: Mapping[str, str]) -> None:
        self._tell(f"creating stack {self._name}")
        self._failures.clear()
        self._cloud.create_stack(
            StackName=self._name,
            TemplateBody=template.body,
            Parameters=_rows({**template.defaults, **given}),
            Capabilities=[CAPABILITY],
            Tags=[{"Key": STACK_TAG, "Value": self._name}],
        )

    def _update(self, template: Template, given: Mapping[str, str], view: StackView) -> bool:
        """Whether there is anything to change."""
        kept = (view.parameters.keys() & template.parameters.keys()) - given.keys()
        self._forget_events()
        try:
            self._cloud.update_stack(
                StackName=self._name,
                TemplateBody=template.body,
                Parameters=[
                    *_rows(given),
                    *({"ParameterKey": name, "UsePreviousValue": True} for name in sorted(kept)),
                ],
                Capabilities=[CAPABILITY],
            )
        except AwsRefusal as refusal:
            if _NOTHING_TO_DO in refusal.said:
                self._tell(f"stack {self._name} is as it should be")
                return False
            raise
        self._tell(f"updating stack {self._name}")
        return True

    def _brought_up(self) -> StackView:
        view = self._settled(self.view())
        if view.stands and "ROLLBACK" not in view.status:
            self._tell(f"stack {self._name} stands")
            return view
        why = self._failures[0] if self._failures else of_stack(view.reason) or view.status
        raise MeshError(f"stack {self._name} is {view.status}: {why}")

    def delete(self) -> bool:
        """Until it is gone; False where there was none. Raises MeshError with what held it."""
        view = self.view()
        if not view.status:
            return False
        if view.is_busy and view.status != "DELETE_IN_PROGRESS":
            view = self._settled(view)
        self._forget_events()
        if view.status != "DELETE_IN_PROGRESS":
            self._tell(f"deleting stack {self._name}")
            self._cloud.delete_stack(StackName=self._name)
        left = self._settled(view)
        if left.status:
            why = self._failures[0] if self._failures else of_stack(left.reason) or left.status
            raise MeshError(f"stack {self._name} is {left.status}: {why}; say it once more")
        return True

    def _settled(self, before: StackView) -> StackView:
        """Waits for the end of what goes on, telling its events. By its ARN it is known even when
        it is gone."""
        name, deadline = before.arn or self._name, time.monotonic() + LIMIT_S
        while True:
            view = self._view(name)
            if view.status:
                self._tell_events(name)
            if not view.is_busy:
                return view
            if time.monotonic() > deadline:
                raise MeshError(f"stack {self._name} is {view.status} still: say it once more")
            time.sleep(self._poll_s)

    def _forget_events(self) -> None:
        """What was before is not told."""
        self._failures.clear()
        for event in self._events(self._name):
            self._told.add(event["EventId"])

    def _tell_events(self, name: str) -> None:
        fresh = [event for event in self._events(name) if event["EventId"] not in self._told]
        for event in reversed(fresh):
            self._told.add(event["EventId"])
            status, what = event["ResourceStatus"], event["LogicalResourceId"]
            line = f"  {status.lower():<20} {what}"
            reason = event.get("ResourceStatusReason", "")
            if status.endswith("_FAILED"):
                told = of_stack(reason)
                if "cancelled" not in reason:  # because of another one
                    self._failures.append(f"{what}: {told}")
                line += f": {told}"
            self._tell(line)

    def _events(self, name: str) -> list[dict[str, Any]]:
        """Newest first, one page: an event is old once it was looked at."""
        answer = self._cloud.describe_stack_events(StackName=name)
        found: list[dict[str, Any]] = answer["StackEvents"]
        return found

    def groups(self) -> list[str]:
        """Its Auto Scaling groups, by their physical names."""
        pages = self._cloud.pages("list_stack_resources", StackName=self._name)
        return [
            row["PhysicalResourceId"]
            for page in pages
            for row in page["StackResourceSummaries"]
            if row["ResourceType"] == "AWS::AutoScaling::AutoScalingGroup"
            and row.get("PhysicalResourceId")
        ]


def _rows(given: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"ParameterKey": name, "ParameterValue": value} for name, value in given.items()]
